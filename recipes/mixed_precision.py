"""Mixed precision: the width of each layer by measurement, under a budget.

  float       train --model on --dataset, or take a .keras file     float.keras
  allocate    what each layer costs alone, and the best widths      sensitivity.png, pareto.png
  calibrate   quantize and calibrate, no training                   calibrated.keras
  finetune    a few epochs at a reduced rate, the best one kept     finetuned.keras
  export      integer .tflite, run on the test set                  model.tflite
  latency     against the float .tflite, one sample at a time       float.tflite

--budget is bytes (of the weights) or bit_operations, as a number or as a share of all layers at the
first candidate (bytes=75%), or the least SQNR of the outputs in dB (sqnr=25), or a share of the
layers that gets the widest candidate (layers=20%), the most sensitive ones, without a Pareto plot,
as nothing is weighed there. Bytes do not count
activations: int16 ones (w8a16) take twice the memory and run slower; leave them out of --candidates
where that matters. Everything is written to --out; a run that was killed continues from its last
finished epoch.

Bytes are saved by packed weights: most of them only where --target names the processor.

Example: python recipes/mixed_precision.py --dataset=digits --budget=bit_operations=70%
"""

import os
import sys
from pathlib import Path
from typing import Any

# Runs from a checkout, as a script and as a module; TensorFlow reads its log level on import.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from absl import flags

import kerasq
from kerasq import scheme
from kerasq.analysis.allocate import COSTS
from recipes import finetune, run, schemes, stages

_BUDGET = flags.DEFINE_string(
    "budget", "bit_operations=75%", "What the schemes may cost, see above."
)
_CANDIDATES = flags.DEFINE_list(
    "candidates",
    None,
    "Schemes that a layer may get. Default: w8a8,w4a8,w8a16; for a budget in bytes w8a8,w4a8, as "
    "int16 activations would seem to cost nothing.",
)
for module in (finetune, run, schemes):
    flags.adopt_module_key_flags(module)


def _candidates() -> list[str]:
    wide = [] if _BUDGET.value.startswith("bytes=") else ["w8a16"]
    return _CANDIDATES.value or ["w8a8", "w4a8", *wide]


def parsed(budget: str) -> tuple[str, float, bool]:
    """What a budget is in, how much, and whether that is a share."""
    unit, _, amount = budget.partition("=")
    is_share = amount.endswith("%")
    try:
        value = float(amount.rstrip("%")) / (100 if is_share else 1)
    except ValueError:
        value = -1.0
    legal = unit in COSTS or (unit == "layers" and is_share) or (unit == "sqnr" and not is_share)
    if not legal or value <= 0.0:
        raise ValueError(
            "`budget` must be bytes=30000, bytes=75%, bit_operations=..., sqnr=25 or layers=20%. "
            f"Received: budget={budget!r}."
        )
    return unit, value, is_share


def _widths(name: str) -> tuple[int, int]:
    """Bits of activations and weights: what makes a scheme the wider one."""
    widths = scheme.resolve(name)
    return widths.activation_bits, widths.weight_bits


def _kernels() -> dict[str, Any]:
    """What scales are like."""
    return {"granularity": schemes.GRANULARITY.value, "scales": schemes.SCALES.value}


def overrides(job: run.Run, model: keras.Model) -> dict[Any, str]:
    """The scheme of each layer that the budget allows; prints and plots where it comes from."""
    unit, value, is_share = parsed(_BUDGET.value)
    first, *others = _candidates()
    batches = job.calibration_batches()
    device = {"target": schemes.TARGET.value, **_kernels()}
    ranges: dict[str, Any] = {"steps": None, "method": finetune.CALIBRATION_METHOD.value, **device}
    if unit == "layers":
        widest = max(others, key=_widths)
        table = kerasq.sensitivity(model, batches, candidates=(first, widest), **ranges)
        print(table)
        table.plot(job.path("sensitivity.png"))
        inputs = {x.name for x in model.inputs}
        can = [not np.isnan(x) for x in table.raised[:, 1]]
        layers = [x for x, ok in zip(table.layers, can, strict=True) if ok and x not in inputs]
        count = max(1, round(value * (len(table.layers) - len(inputs))))
        return dict.fromkeys(layers[:count], widest)
    if is_share:
        costs = kerasq.summary(kerasq.quantize_model(model, first, **device))
        value = round(value * (costs.weight_bytes if unit == "bytes" else costs.bit_operations))
        print(f"--budget={_BUDGET.value}: {value:,} {unit}")
    found = kerasq.allocate(
        model, batches, budget={unit: value}, candidates=_candidates(), **ranges
    )
    print(f"{found.sensitivity}\n\n{found}")
    found.sensitivity.plot(job.path("sensitivity.png"))
    found.plot(job.path("pareto.png"))
    return found.overrides


def main() -> None:
    """Float, allocate, calibrate, fine-tune, export."""
    parsed(_BUDGET.value)
    first, *others = map(_widths, _candidates())
    if _BUDGET.value.startswith("layers=") and not any(x > first for x in others):
        raise ValueError(
            "`candidates` must have a wider scheme behind the first one for budget=layers=... "
            f"Received: candidates={_candidates()}."
        )
    job = run.Run.from_flags("mixed_precision")
    fit = finetune.settings(job)
    options = {"candidates": _candidates(), "budget": _BUDGET.value}
    depends = {"batch_norm": finetune.BATCH_NORM.value, "target": schemes.TARGET.value}
    depends |= _kernels()

    def allocate() -> dict[str, Any]:
        return {"overrides": overrides(job, job.load("float.keras"))}

    def quantize(model: keras.Model) -> keras.Model:
        chosen = job.figures["allocate"]["overrides"]
        return kerasq.quantize_model(model, _candidates()[0], overrides=chosen, **depends)

    finetune.train_float(job, fit, lambda x: kerasq.quantize_model(x, _candidates()[0], **depends))
    job.settings.update(**options, **depends, **finetune.calibration_settings(job))
    job.stage("allocate", ("sensitivity.png",), allocate)
    finetune.calibrate(job, quantize, **depends)
    finetune.finetune(job, fit)
    stages.export(job)
    stages.finish(job, overrides=job.figures["allocate"]["overrides"])


if __name__ == "__main__":
    run.start(main)
