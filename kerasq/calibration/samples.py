"""A few samples of a model's inputs: those that it was calibrated on, or random ones."""

import math
import weakref
from typing import Any

import keras
import numpy as np

from kerasq.wrappers import input_boundaries, preprocessing_of

# As many as have so many values, within these bounds.
VALUES, COUNT, MOST = 2**16, 4, 32
# By model, of the first batch that it was calibrated on. Not saved with it.
_KEPT: "weakref.WeakKeyDictionary[keras.Model, Any]" = weakref.WeakKeyDictionary()


def first(batch: Any) -> Any:
    """The first samples of a batch, as many as are kept."""
    sizes = [math.prod(x.shape[1:]) for x in keras.tree.flatten(batch)]
    count = min(MOST, max(COUNT, VALUES // max(1, *sizes)))
    return keras.tree.map_structure(lambda x: np.array(x[:count]), batch)


def keep(model: keras.Model, samples: Any) -> None:
    """Keeps samples in the structure of `model.input`."""
    _KEPT[model] = samples


def samples_of(model: keras.Model) -> Any:
    """Samples in the structure of `model.input`.

    Without calibration these are uniform over the ranges of the inputs, zeros for integers.
    """
    if model in _KEPT:
        return _KEPT[model]
    rng = np.random.default_rng(0)
    boundaries = input_boundaries(model)

    def one(x: keras.KerasTensor) -> np.ndarray:
        shape = (COUNT, *x.shape[1:])
        if "float" not in x.dtype:
            return np.zeros(shape, x.dtype)
        boundary = boundaries.get(id(x))
        quantizer = boundary and boundary.output_quantizer
        low, high = (-1.0, 1.0) if quantizer is None else map(float, quantizer.range())
        values = rng.uniform(low, high, shape)
        own = preprocessing_of(boundary)
        return (own.inverse(values) if own else values).astype("float32")

    return keras.tree.map_structure(one, model.input)
