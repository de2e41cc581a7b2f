"""Quantization-aware fine-tuning: a float Keras model to an integer .tflite that agrees with it.

  float       train --model on --dataset, or take a .keras file     float.keras
  calibrate   quantize and calibrate, no training                   calibrated.keras
  finetune    a few epochs at a reduced rate, the best one kept     finetuned.keras
  export      integer .tflite, run on the test set                  model.tflite
  latency     against the float .tflite, one sample at a time       float.tflite

Everything is written to --out, with results.json, curves.png and TensorBoard logs. A run that was
killed continues from its last finished epoch when it is started again with the same flags.

Zeros and clusters of a --model stay with --keep_zeros and --keep_clusters; --prune makes zeros.
--accumulator_bits=16 has weights whose sums fit accumulators so wide.

Example: python recipes/qat.py --dataset=digits --epochs=3
"""

import os
import sys
import zlib
from pathlib import Path

# Runs from a checkout, as a script and as a module; TensorFlow reads its log level on import.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from absl import flags

import kerasq
from kerasq.support.samples import spread
from kerasq.training.pruning import PATTERNS
from recipes import finetune, run, schemes, stages, training

_SCHEME = schemes.flag("scheme", "w8a8", "Bits of weights and activations, such as w4a8.")
_OVERRIDES = schemes.overrides_flag()
_RANGE_GRADIENT = flags.DEFINE_enum(
    "range_gradient",
    None,
    ["lsq", "clip", "none"],
    "How the ranges learn. Default: lsq below 8 bits, else none: they follow the data.",
)
_ACCUMULATOR_BITS = flags.DEFINE_integer(
    "accumulator_bits",
    None,
    "Width of accumulators that the sums of no layer overflow, by weights that keep to it.",
    8,
    32,
)
_KEEP_ZEROS = flags.DEFINE_bool(
    "keep_zeros", False, "Weights that are 0 stay 0, such as those of a pruned --model."
)
_KEEP_CLUSTERS = flags.DEFINE_bool(
    "keep_clusters", False, "Weights that are equal stay equal, in layers of a clustered --model."
)
_PRUNE = flags.DEFINE_float(
    "prune",
    None,
    "Share of each layer's weights, the smallest, that become 0 while fine-tuning, and stay 0.",
    0.0,
    1.0,
)
_PATTERN = flags.DEFINE_enum("pattern", "unstructured", list(PATTERNS), "How those zeros lie.")
_PRUNE_EPOCHS = flags.DEFINE_integer(
    "prune_epochs", None, "Epochs until all are 0. Default: half of --epochs.", 1
)
_PRUNE_SKIP = flags.DEFINE_list("prune_skip", [], "Layers, or patterns of names, not to prune.")
# Test images, at most, that narrow accumulators are simulated on.
_SIMULATED = 1000
for module in (finetune, run, schemes):
    flags.adopt_module_key_flags(module)


def pruning(fit: training.FitSettings) -> list[kerasq.MagnitudePruning]:
    """What prunes while fine-tuning, if anything does."""
    if _PRUNE.value is None:
        return []
    epochs = _PRUNE_EPOCHS.value or max(1, fit.epochs // 2)
    if epochs > fit.epochs:
        raise ValueError(
            "`prune` must be done within the epochs of fine-tuning. Received: "
            f"prune_epochs={epochs}, epochs={fit.epochs}. Take more --epochs."
        )
    return [
        kerasq.MagnitudePruning(
            _PRUNE.value, epochs, pattern=_PATTERN.value, skip=_PRUNE_SKIP.value
        )
    ]


def compressed(job: run.Run) -> dict[str, float]:
    """What zeros and clusters save, which is printed: nothing where none are kept.

    Returns:
        `zeros`, the share (0..1) of the weights' codes that are 0, `codes`, the most that a layer
        has, and the bytes of both files in a zip.
    """
    if not job.is_chief or not (_KEEP_ZEROS.value or _KEEP_CLUSTERS.value or _PRUNE.value):
        return {}
    found = kerasq.compression(job.load("finetuned.keras"))
    print(found)
    sizes = {
        f"{name}_zipped_bytes": len(zlib.compress(job.path(f"{file}.tflite").read_bytes(), 9))
        for name, file in (("tflite", "model"), ("float", "float"))
    }
    return {"zeros": found.zeros, "codes": max(x.codes for x in found.layers), **sizes}


def weights() -> str | kerasq.WeightQuantizer:
    """How weights lie."""
    bits = _ACCUMULATOR_BITS.value
    return "uniform" if bits is None else kerasq.A2Q(accumulator_bits=bits)


def overflowing(job: run.Run) -> dict[str, float]:
    """Layers on accumulators of the chosen width, which is printed; nothing where none is chosen.

    Returns:
        `overflows`, the largest of the layers' shares (0..1) of sums that do not fit.
    """
    if not job.is_chief or _ACCUMULATOR_BITS.value is None:
        return {}
    # Of an image folder the first ones are all of one class.
    test = job.data.test
    found = kerasq.fixed_point(
        job.load("finetuned.keras"),
        (spread(test.x, _SIMULATED), spread(test.y, _SIMULATED)),
        accumulator_bits=_ACCUMULATOR_BITS.value,
        overflow="wrap",
    )
    print(found)
    return {"overflows": found.overflows}


def main() -> None:
    """Float, calibrate, fine-tune, export."""
    job = run.Run.from_flags("qat")
    fit = finetune.settings(job)
    options = {
        "scheme": _SCHEME.value,
        "overrides": _OVERRIDES.value,
        "batch_norm": finetune.BATCH_NORM.value,
        "target": schemes.TARGET.value,
        "granularity": schemes.GRANULARITY.value,
        "scales": schemes.SCALES.value,
        "range_gradient": _RANGE_GRADIENT.value,
        "keep_zeros": _KEEP_ZEROS.value or _PRUNE.value is not None,
        "keep_clusters": _KEEP_CLUSTERS.value,
    }
    callbacks = pruning(fit)

    def quantize(model: keras.Model) -> keras.Model:
        return kerasq.quantize_model(model, weights=weights(), **options)

    finetune.train_float(job, fit, quantize)
    finetune.calibrate(job, quantize, accumulator_bits=_ACCUMULATOR_BITS.value, **options)
    finetune.finetune(
        job,
        fit,
        callbacks,
        best_from=callbacks[0].epochs - 1 if callbacks else 0,
        prune=_PRUNE.value,
        prune_pattern=_PATTERN.value,
        prune_epochs=callbacks[0].epochs if callbacks else None,
        prune_skip=_PRUNE_SKIP.value,
    )
    stages.export(job)
    stages.finish(job, **compressed(job), **overflowing(job))


if __name__ == "__main__":
    run.start(main)
