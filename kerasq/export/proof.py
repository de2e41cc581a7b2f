"""Before a file is written: it must compute what the model predicts."""

import platform

import keras
import numpy as np

from kerasq.calibration.samples import COUNT, samples_of
from kerasq.comparison.compare import compare
from kerasq.litert.runtime import TFLiteModel
from kerasq.targets import LITERT
from kerasq.wrappers import target_of

# Where LiteRT's default kernels are those that the simulation follows to the last code.
EXACT = ("x86_64", "AMD64")
# Of float outputs, in units of the largest one: operators sum in another order.
FLOAT_TOLERANCE = 1e-4


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
    simulated = [np.asarray(y) for y in keras.tree.flatten(model(x, training=False))]
    found = lite.predict(keras.tree.flatten(x))
    computed = [found] if isinstance(found, np.ndarray) else [found[n] for n in lite.output_names]
    off = [_off(*pair) for pair in zip(simulated, computed, strict=True)]
    if not any(off) or target_of(model) is not LITERT:
        return
    is_exact = not lite.float_ops and platform.machine() in EXACT
    report = compare(model, lite, x=[x])
    worse = [layer for layer in report.layers if (layer.max_lsb or 0) > (0 if is_exact else 1)]
    if worse or is_exact:
        first = f"first in layer {worse[0].name!r} ({worse[0].op})" if worse else "in no one layer"
        raise ValueError(
            "A file must compute what its model predicts. Received: outputs that differ in "
            f"{100 * max(off):.3g} % of their values on {len(simulated[0])} samples, {first}; "
            "kerasq.compare has the details. This is a fault of kerasq's: please report it. "
            "export_tflite(check=False) writes the file all the same."
        )


def _off(simulated: np.ndarray, computed: np.ndarray) -> float:
    """The share of an output's values that differ."""
    if np.array_equal(simulated, computed):
        return 0.0
    if not np.issubdtype(simulated.dtype, np.floating):
        return float(np.mean(simulated != computed))
    tolerance = FLOAT_TOLERANCE * float(np.abs(simulated).max())
    return float(np.mean(~(np.abs(simulated - computed) <= tolerance)))
