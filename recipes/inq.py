"""Incremental network quantization: weights become 0 or a power of two, a part at a time.

  float       train --model on --dataset, or take a .keras file     float.keras
  calibrate   quantize and calibrate, no training                   calibrated.keras
  finetune    freeze a part of the weights, train the rest, again   finetuned.keras
  export      integer .tflite, run on the test set                  model.tflite
  latency     against the float .tflite, one sample at a time       float.tflite

The largest weights of each layer (or random ones) are frozen at 0 or +-2^n until --portions of
them are; the others are trained on, for --epochs in all, and the learning rate starts anew with
each portion. All of them are exact int8 codes: at 5 bits seven exponents of INQ's eight.
Everything is written to --out; a run that was killed continues from its last finished epoch.

Example: python recipes/inq.py --dataset=digits --bits=4 --epochs=6
"""

import os
import sys
from pathlib import Path

# Runs from a checkout, as a script and as a module; TensorFlow reads its log level on import.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from absl import flags

import kerasq
from kerasq.training.inq import PARTITIONS, RULES
from recipes import finetune, run, schemes, stages

_BITS = flags.DEFINE_integer("bits", 5, "Width of the weights.", 2, 5)
_PORTIONS = flags.DEFINE_list(
    "portions",
    None,
    "Shares of the weights that are frozen, by step. Default: 0.5,0.75,0.875,1.0 for 5 bits, "
    "0.3,0.5,0.8,0.9,0.95,1.0 for fewer. The paper takes smaller steps still at 3 bits "
    "(0.2,0.4,0.6,0.7,0.8,0.9,0.95,1.0) and 2 (0.2,0.4,0.6,0.7,0.8,0.85,0.9,0.95,0.975,1.0).",
)
_PARTITION = flags.DEFINE_enum(
    "partition", "magnitude", list(PARTITIONS), "Which weights first: the largest, or any."
)
_EXPONENTS = flags.DEFINE_enum(
    "exponents", "channel", ["channel", "tensor"], "What has a highest exponent of its own."
)
_HIGHEST_EXPONENT = flags.DEFINE_enum(
    "highest_exponent",
    None,
    list(RULES),
    "From the largest weight, as in the paper, or the one with the least squared error. Default: "
    "max at 5 and 4 bits, mse at 3 and 2, where max rounds most weights to 0.",
)
_OVERRIDES = schemes.overrides_flag()
for module in (finetune, run, schemes):
    flags.adopt_module_key_flags(module)
finetune.set_defaults(epochs=12, learning_rate=0.01)


def _portions() -> list[float]:
    # Those of ResNet-18 in the paper, at 5 and at 4 bits.
    default = (0.5, 0.75, 0.875, 1.0) if _BITS.value == 5 else (0.3, 0.5, 0.8, 0.9, 0.95, 1.0)
    try:
        return [float(portion) for portion in _PORTIONS.value or default]
    except ValueError:
        raise ValueError(
            "`portions` must be numbers, such as --portions=0.5,0.75,0.875,1.0. "
            f"Received: portions={_PORTIONS.value}."
        ) from None


def powers_of_two(job: run.Run) -> dict[str, float]:
    """Whether the weights in model.tflite are those that were trained, and powers of two.

    Returns:
        `weights_max_difference` of the exported weights from those of finetuned.keras, and
        `powers_of_two`, the share (0..1) of exported codes that are 0 or +-2^n.
    """
    model = job.load("finetuned.keras")
    lite = kerasq.TFLiteModel(job.path("model.tflite"))
    grids = {tensor.name: tensor.grid for tensor in lite.tensors}
    difference, codes = 0.0, []
    for layer in model.layers:
        name = f"{layer.name}/kernel"
        if (grid := grids.get(name)) is not None:
            trained, exported = layer.folded_kernel().numpy(), lite.constant(name)
            channels = layer.target.operators[layer.rule.operator].channels
            stored = np.moveaxis(grid.dequantize(exported), channels, -1)
            difference = max(difference, np.abs(stored.reshape(trained.shape) - trained).max())
            codes.append(np.abs(exported.astype(np.int64)).ravel())
    sizes = np.concatenate(codes)
    return {
        "weights_max_difference": float(difference),
        "powers_of_two": float(np.mean(sizes & (sizes - 1) == 0)),  # One bit, or none, is set.
    }


def main() -> None:
    """Float, calibrate, freeze and train in turn, export."""
    job = run.Run.from_flags("inq")
    portions = _portions()
    rule = _HIGHEST_EXPONENT.value or ("max" if _BITS.value > 3 else "mse")
    fit = finetune.settings(job, restarts=len(portions))
    inq = kerasq.IncrementalQuantization(
        portions,
        epochs=max(1, fit.epochs // len(portions)),
        partition=_PARTITION.value,
        per_channel=_EXPONENTS.value == "channel",
        highest_exponent=rule,
        seed=fit.seed,
    )
    if fit.epochs % len(portions) or not fit.epochs:
        raise ValueError(
            f"`epochs` must be a multiple of the number of portions, {len(portions)}. Received: "
            f"epochs={fit.epochs}. Take --epochs={len(portions)} or {2 * len(portions)}, or other "
            "--portions."
        )
    options = {
        "scheme": f"w{_BITS.value}a8",
        "overrides": _OVERRIDES.value,
        "batch_norm": finetune.BATCH_NORM.value,
        "target": schemes.TARGET.value,
        "granularity": schemes.GRANULARITY.value,
        "scales": schemes.SCALES.value,
    }

    def quantize(model: keras.Model) -> keras.Model:
        return kerasq.quantize_model(model, weights="power_of_two", **options)

    finetune.train_float(job, fit, quantize)
    finetune.calibrate(job, quantize, **options)
    finetune.finetune(
        job,
        fit,
        [inq],
        best_from=inq.first_epochs[-1],
        portions=portions,
        partition=_PARTITION.value,
        exponents=_EXPONENTS.value,
        highest_exponent=rule,
    )
    stages.export(job)
    stages.finish(job, **powers_of_two(job))


if __name__ == "__main__":
    run.start(main)
