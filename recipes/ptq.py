"""Post-training quantization: no training, the ways of doing it side by side.

  float          train --model on --dataset, or take a .keras file    float.keras
  static         int8 weights and activations, the ranges of the activations found by each
                 calibration method                                   static_<method>.tflite
  dynamic_range  int8 weights, activations quantized on the fly       dynamic_range.tflite
  float16        float16 weights, float arithmetic                    float16.tflite

The static model of the best accuracy on images held out from training becomes model.tflite; of
several, that of the highest SQNR there. Everything is written to --out, with results.json and
accuracy.png.

Example: python recipes/ptq.py --dataset=digits
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
from recipes import post_training, run, schemes

_SCHEME = schemes.flag("scheme", "w8a8", "Bits of weights and activations of the static models.")
_OVERRIDES = schemes.overrides_flag()
for module in (run, schemes):
    flags.adopt_module_key_flags(module)


def main() -> None:
    """Float, then each way of quantizing it."""
    job = run.Run.from_flags("ptq")
    options = {"scheme": _SCHEME.value, "overrides": schemes.overrides(_OVERRIDES.value)}

    def quantize(model: keras.Model) -> keras.Model:
        return kerasq.quantize_model(model, **options)

    job.train_float(quantize)
    job.settings.update(options, num_threads=job.num_threads, **job.calibration_settings)
    for method in post_training.METHODS:
        post_training.static(job, quantize, method)
    for flavour in post_training.FLAVOURS:
        post_training.converted(job, flavour)
    post_training.finish(job)


if __name__ == "__main__":
    run.start(main)
