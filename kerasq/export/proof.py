"""Before a file is written: it must compute what the model predicts."""

import platform
from typing import Any

import keras
import numpy as np

from kerasq.calibration.samples import COUNT, samples_of
from kerasq.comparison.compare import compare
from kerasq.comparison.report import Report
from kerasq.litert.runtime import TFLiteModel
from kerasq.targets import LITERT
from kerasq.wrappers import target_of

# Where LiteRT's default kernels are those that the simulation follows to the last code.
EXACT = ("x86_64", "AMD64")
# Of float outputs, in units of the largest one: operators sum in another order.
FLOAT_TOLERANCE = 1e-4
# The share of an output's power from which on a difference is no rounding: 20 dB.
OTHER = 1e-2


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
    off = max(_off(*pair) for pair in pairs)
    if not off or target_of(model) is not LITERT:
        return
    where = _fault(model, lite, x, pairs)
    if where:
        raise ValueError(
            "A file must compute what its model predicts. Received: outputs that differ in "
            f"{100 * off:.3g} % of their values on {COUNT} samples, {where}; kerasq.compare has "
            "the details. This is a fault of kerasq's: please report it. "
            "export_tflite(check=False) writes the file all the same."
        )


def _fault(model: keras.Model, lite: TFLiteModel, x: Any, pairs: list) -> str:
    """Where a file differs beyond what its kernels may round otherwise; "" where it does not."""
    is_exact = not lite.float_ops and platform.machine() in EXACT
    first = _first(compare(model, lite, x=[x]), 0 if is_exact else 1)
    if not first and (is_exact or any(_is_other(*pair) for pair in pairs)):
        return "in no one integer layer"
    return first


def _predictions(
    model: keras.Model, lite: TFLiteModel, x: Any
) -> list[tuple[np.ndarray, np.ndarray]]:
    """What the model predicts for each output, and what the file does."""
    simulated = [np.asarray(y) for y in keras.tree.flatten(model(x, training=False))]
    found = lite.predict(keras.tree.flatten(x))
    computed = [found] if isinstance(found, np.ndarray) else [found[n] for n in lite.output_names]
    return list(zip(simulated, computed, strict=True))


def _first(report: Report, steps: int) -> str:
    """In words, the first layer that is more than so many steps off; "" for none."""
    worse = [layer for layer in report.layers if (layer.max_lsb or 0) > steps]
    return f"first in layer {worse[0].name!r} ({worse[0].op})" if worse else ""


def _is_other(simulated: np.ndarray, computed: np.ndarray) -> bool:
    """Whether an output is another one, not only rounded otherwise on the way."""
    error = np.mean(np.square(simulated.astype("float64") - computed))
    return bool(error > OTHER * np.mean(np.square(simulated.astype("float64"))))


def _off(simulated: np.ndarray, computed: np.ndarray) -> float:
    """The share of an output's values that differ."""
    if np.array_equal(simulated, computed):
        return 0.0
    if not np.issubdtype(simulated.dtype, np.floating):
        return float(np.mean(simulated != computed))
    tolerance = FLOAT_TOLERANCE * float(np.abs(simulated).max())
    return float(np.mean(~(np.abs(simulated - computed) <= tolerance)))
