"""Before a file is written: it must compute what the model predicts."""

import dataclasses
import platform
from typing import Any

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq.calibration.samples import COUNT, samples_of
from kerasq.comparison.compare import compare, step_of
from kerasq.comparison.report import Report, Tally
from kerasq.litert.contents import Tensor
from kerasq.litert.runtime import TFLiteModel
from kerasq.litert.runtimes import RUNTIMES
from kerasq.targets import LITERT, X86_64, Target
from kerasq.wrappers import infer, target_of

# Where LiteRT's default kernels are those that the simulation follows to the last code, unless the
# target names the processor.
EXACT = X86_64.machines
# Of float outputs, in units of the largest one: operators sum in another order.
FLOAT_TOLERANCE = 1e-4
# The share of an output's power from which on a difference is no rounding: 20 dB.
OTHER = 1e-2
_ALONE = (
    "Layers must compute each sample by itself, since a file has a fixed number of them. Received:"
)
_LEAVE = "Leave the first axis as it is in layers and `keras.ops`, such as flips and sums."


@dataclasses.dataclass(frozen=True)
class _Pair:
    """An output of a model, as it predicts it and as its file does."""

    tensor: keras.KerasTensor
    simulated: np.ndarray
    computed: np.ndarray

    def is_other(self) -> bool:
        """Whether the file's output is another one, not only rounded otherwise on the way."""
        error = np.mean(np.square(self.simulated.astype("float64") - self.computed))
        return bool(error > OTHER * np.mean(np.square(self.simulated.astype("float64"))))

    def off(self) -> float:
        """The share of values that differ."""
        tally = Tally()
        tally.add(self.simulated, self.computed, step_of(self.tensor))
        equal = tally.share(tally.equal)
        if equal is not None:
            return 1 - equal
        # Of infinite values, and NaN, there may be any number: they are equal, or not.
        finite = np.where(np.isfinite(self.simulated), self.simulated, 0.0)
        tolerance = FLOAT_TOLERANCE * float(np.abs(finite).max())
        is_same = np.isclose(self.simulated, self.computed, 0.0, tolerance, equal_nan=True)
        return float(np.mean(~is_same))


def prove(model: keras.Model, lite: TFLiteModel) -> None:
    """Raises a ValueError, which names the first layer, where a file is not its model's.

    Both predict samples that calibration has seen, or random values of the inputs' ranges. Outputs
    of an integer model must be equal. Behind float layers, whose rounding is not defined, and on
    processors with other kernels, each layer may be 1 step off on equal inputs. A file for another
    target than LiteRT's default kernels only has to run on those: they are not what it is for.

    Args:
        model: what was exported.
        lite: its export.
    """
    x = keras.tree.map_structure(lambda values: values[:COUNT], samples_of(model))
    pairs = _predictions(model, lite, x)
    off = max(pair.off() for pair in pairs)
    if not off or target_of(model).runtime != lite.target:
        return
    if where := _fault(model, lite, x, pairs):
        if _mixes_samples(model, x, pairs):
            predicts = "a model that predicts something else for a sample alone than in a batch"
            raise ValueError(f"{_ALONE} {predicts}. {_LEAVE}")
        raise ValueError(
            "A file must compute what its model predicts. Received: outputs that differ in "
            f"{100 * off:.3g} % of their values on {COUNT} samples, {where}; kerasq.compare has "
            "the details. export_tflite(check=False) writes the file all the same."
        )


def _fault(model: keras.Model, lite: TFLiteModel, x: Any, pairs: list[_Pair]) -> str:
    """Where a file differs beyond what its kernels may round otherwise, and what to do.

    "" where it does not.
    """
    is_exact = _is_exact(lite, target_of(model))
    first = _first(compare(model, lite, x=[x]), 0 if is_exact else 1)
    is_other = any(pair.is_other() for pair in pairs)
    if first or is_exact or (is_other and not lite.float_ops):
        return f"{first or 'in no one layer'}; this is a fault of kerasq's: please report it"
    if not is_other:
        return ""
    return (
        f"in float layers, which {RUNTIMES[lite.target].title} computes otherwise, as exponentials "
        "of large values, or on TFLite Micro loops of layers that return sequences; scale what "
        "they read, set unroll=True, or replace them"
    )


def _is_exact(lite: TFLiteModel, target: Target) -> bool:
    """Whether the kernels that run a file here are those that the simulation follows."""
    # TFLite Micro's are the same everywhere.
    machines = target.machines or EXACT
    is_known = lite.target != LITERT.name or platform.machine() in machines
    return is_known and not lite.float_ops


def _mixes_samples(model: keras.Model, x: Any, pairs: list[_Pair]) -> bool:
    """Whether outputs of a batch are others than those of its samples."""
    count = len(keras.tree.flatten(x)[0])
    alone = [
        [np.asarray(y) for y in graphs.run(model, part, infer)]
        for part in (keras.tree.map_structure(lambda v, i=i: v[i : i + 1], x) for i in range(count))
    ]
    for pair, parts in zip(pairs, zip(*alone, strict=True), strict=True):
        joined = np.concatenate(parts)
        if joined.shape != pair.simulated.shape:
            return True
        if dataclasses.replace(pair, computed=joined).off() > 0.0:
            return True
    return False


def _predictions(model: keras.Model, lite: TFLiteModel, x: Any) -> list[_Pair]:
    """What the model predicts for each output, and what the file does.

    Raises:
        ValueError: where these are of other samples.
    """
    _check_rows(lite.outputs, lite.inputs[0].shape[:1])
    simulated = [np.asarray(y) for y in graphs.run(model, x, infer)]
    found = lite.predict(keras.tree.flatten(x))
    computed = [found] if isinstance(found, np.ndarray) else [found[n] for n in lite.output_names]
    # Such as of attention between a sequence and an image, where rows become columns.
    shapes = [y.shape for y in simulated]
    if shapes != [y.shape for y in computed]:
        raise ValueError(f"{_ALONE} outputs of shape {shapes} in a batch. {_LEAVE}")
    return [_Pair(*each) for each in zip(model.outputs, simulated, computed, strict=True)]


def _check_rows(outputs: tuple[Tensor, ...] | list[Tensor], rows: tuple[int, ...]) -> None:
    """Raises a ValueError unless a file's outputs have a row for each sample."""
    shapes = [y.shape for y in outputs]
    if any(shape[:1] != rows for shape in shapes):
        raise ValueError(f"{_ALONE} outputs of shape {shapes}. {_LEAVE}")


def _first(report: Report, steps: int) -> str:
    """In words, the first layer that is more than so many steps off; "" for none."""
    worse = [layer for layer in report.layers if (layer.max_lsb or 0) > steps]
    return f"first in layer {worse[0].name!r} ({worse[0].op})" if worse else ""
