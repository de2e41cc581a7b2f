"""A few samples of a model's inputs: those that it was calibrated on, or random ones."""

import math
import weakref
from typing import Any

import keras
import numpy as np

from kerasq import graph
from kerasq.wrappers import Boundary

# As many as have so many values, within these bounds.
VALUES, COUNT, MOST = 2**16, 4, 32
# By model, of the first batch that it was calibrated on. Not saved with it.
_KEPT: "weakref.WeakKeyDictionary[keras.Model, Any]" = weakref.WeakKeyDictionary()


def keep(model: keras.Model, batch: Any) -> None:
    """Keeps the first samples of a batch, in the structure of `model.input`."""
    sizes = [math.prod(x.shape[1:]) for x in keras.tree.flatten(batch)]
    count = min(MOST, max(COUNT, VALUES // max(1, *sizes)))
    _KEPT[model] = keras.tree.map_structure(lambda x: np.array(x[:count]), batch)


def samples_of(model: keras.Model) -> Any:
    """Samples in the structure of `model.input`.

    Without calibration these are uniform over the ranges of the inputs, zeros for integers.
    """
    if model in _KEPT:
        return _KEPT[model]
    rng = np.random.default_rng(0)
    ends = {
        id(graph.origin(layer.output)[1][0]): layer.output_quantizer.range()
        for layer in model.layers
        if isinstance(layer, Boundary) and layer.is_input and layer.output_quantizer is not None
    }

    def one(x: keras.KerasTensor) -> np.ndarray:
        shape = (COUNT, *x.shape[1:])
        if "float" not in x.dtype:
            return np.zeros(shape, x.dtype)
        low, high = map(float, ends.get(id(x), (-1.0, 1.0)))
        return rng.uniform(low, high, shape).astype("float32")

    return keras.tree.map_structure(one, model.input)
