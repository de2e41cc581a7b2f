"""Quantization-aware training at 4, 3, 2 bits and 1: LSQ, PACT, DoReFa, ternary and binary weights.

  float       train --model on --dataset, or take a .keras file     float.keras
  calibrate   quantize and calibrate, no training                   calibrated.keras
  finetune    some epochs, the best one kept                        finetuned.keras
  export      integer .tflite, run on the test set                  model.tflite
  latency     against the float .tflite, one sample at a time       float.tflite

--quantizer is how weights lie and how ranges learn:

  lsq      uniform weights, learned steps (Esser et al. 2020)
  pact     DoReFa's weights, ranges learned from clipped values (Choi et al. 2018)
  dorefa   DoReFa's weights, ranges that follow the data (Zhou S. et al. 2016)
  twn      ternary weights, w2 (Li & Liu 2016)
  ttq      ternary weights, both magnitudes learned, w2 (Zhu et al. 2017)
  binary   binary weights, w1 (Rastegari et al. 2016)

The first and the last layer with weights stay at --ends. LiteRT has no kernels below 8 bits but for
packed 4-bit weights: narrower activations run as int8 codes of which few are in use (the summary
after calibration says which), weights that fit no packed kernel as int8 (the export report does).

Example: python recipes/low_bit.py --dataset=digits --scheme=w2a2 --quantizer=lsq --epochs=10
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
from kerasq import scheme
from kerasq.quantizers.weights import weight_quantizer
from recipes import finetune, run, schemes, stages

# `weights` and `range_gradient` of kerasq.quantize_model.
QUANTIZERS = {
    "lsq": ("uniform", "lsq"),
    "pact": ("dorefa", "clip"),
    "dorefa": ("dorefa", "none"),
    "twn": ("ternary", "lsq"),
    "ttq": ("trained_ternary", "lsq"),
    "binary": ("uniform", "lsq"),
}
_SCHEME = schemes.flag(
    "scheme",
    None,
    "Bits of weights and activations. Default: w4a4; w2a8 for twn and ttq, w1a8 for binary.",
)
_QUANTIZER = flags.DEFINE_enum("quantizer", "lsq", list(QUANTIZERS), "How codes are trained.")
_ENDS = schemes.flag("ends", "w8a8", "Scheme of the first and the last layer with weights.")
_OVERRIDES = schemes.overrides_flag()
_WIDEN = flags.DEFINE_float(
    "widen", 1.0, "Factor of the channels of --model (WRPN: Mishra et al. 2018).", 0.1
)
_PENALTY = flags.DEFINE_float(
    "range_penalty", 0.0, "PACT's L2 penalty on learned ranges of activations, as of weights.", 0.0
)
for module in (finetune, run, schemes):
    flags.adopt_module_key_flags(module)
finetune.set_defaults(epochs=8, learning_rate=0.03)


def main() -> None:
    """Float, calibrate, fine-tune, export."""
    job = run.Run.from_flags("low_bit", widen=_WIDEN.value)
    fit = finetune.settings(job)
    default = {"twn": "w2a8", "ttq": "w2a8", "binary": "w1a8"}.get(_QUANTIZER.value, "w4a4")
    weights, range_gradient = QUANTIZERS[_QUANTIZER.value]
    overrides = _OVERRIDES.value
    bits = scheme.resolve(_SCHEME.value or default).weight_bits
    fits = {1: ["binary"], 8: ["lsq"]}.get(bits, [x for x in QUANTIZERS if x != "binary"])
    if _QUANTIZER.value not in fits:
        raise ValueError(
            f"`quantizer` must be one of {fits} for weights of {bits} bits. Received: quantizer="
            f"{_QUANTIZER.value!r}, scheme={_SCHEME.value!r}. Leave --scheme out for the default."
        )
    weight_quantizer(weights, bits, range_gradient)  # Fails here, not after hours of training.
    options = {
        "scheme": _SCHEME.value or default,
        "weights": weights,
        "range_gradient": range_gradient,
        "range_penalty": _PENALTY.value,
        "batch_norm": finetune.BATCH_NORM.value,
        "target": schemes.TARGET.value,
        "granularity": schemes.GRANULARITY.value,
        "scales": schemes.SCALES.value,
    }

    def quantize(model: keras.Model) -> keras.Model:
        ends = dict.fromkeys(kerasq.first_and_last(model), _ENDS.value)
        taken = {name for pattern in overrides for name in scheme.fitting(pattern, ends)}
        ends = {name: own for name, own in ends.items() if name not in taken}
        return kerasq.quantize_model(model, overrides=ends | overrides, **options)

    finetune.train_float(job, fit, quantize)
    finetune.calibrate(job, quantize, **options, ends=_ENDS.value, overrides=overrides)
    finetune.finetune(job, fit)
    stages.export(job)
    stages.finish(job, quantizer=_QUANTIZER.value)


if __name__ == "__main__":
    run.start(main)
