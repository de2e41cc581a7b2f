"""Quantization-aware fine-tuning: a float Keras model to an integer .tflite that agrees with it.

  float       train --model on --dataset, or take a .keras file     float.keras
  calibrate   quantize and calibrate, no training                   calibrated.keras
  finetune    a few epochs at a reduced rate, the best one kept     finetuned.keras
  export      integer .tflite, run on the test set                  model.tflite
  latency     against the float .tflite, one sample at a time       float.tflite

Everything is written to --out, with results.json, curves.png and TensorBoard logs. A run that was
killed continues from its last finished epoch when it is started again with the same flags.

Example: python recipes/qat.py --dataset=digits --epochs=3
"""

import os
import sys
from pathlib import Path

# Runs from a checkout, as a script and as a module; TensorFlow reads its log level on import.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from absl import flags

import kerasq
from recipes import finetune, run, schemes, stages

_SCHEME = schemes.flag("scheme", "w8a8", "Bits of weights and activations, such as w4a8.")
_OVERRIDES = schemes.overrides_flag()
_RANGE_GRADIENT = flags.DEFINE_enum(
    "range_gradient",
    None,
    ["lsq", "clip", "none"],
    "How the ranges learn. Default: lsq below 8 bits, else none: they follow the data.",
)
for module in (finetune, run, schemes):
    flags.adopt_module_key_flags(module)


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
        "range_gradient": _RANGE_GRADIENT.value,
    }

    def quantize(model: keras.Model) -> keras.Model:
        return kerasq.quantize_model(model, **options)

    finetune.train_float(job, fit, quantize)
    finetune.calibrate(job, quantize, **options)
    finetune.finetune(job, fit)
    stages.export(job)
    stages.finish(job)


if __name__ == "__main__":
    run.start(main)
