"""Moments of a model's inputs, from what users say of them, or from their grids."""

import math
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq.calibration.moments import Moments, Normal
from kerasq.wrappers import input_boundaries, preprocessing_of

# Two numbers, or two arrays with one for each feature; for several inputs, by name.
Pairs = tuple[Any, Any] | Mapping[str, tuple[Any, Any]]

# Sides of images, and lengths of sequences, that a model leaves open.
SIDE = 32


class Inputs:
    """What is known of the inputs: see `kerasq.calibration.propagation.propagate`."""

    def __init__(self, model: keras.Model, ends: Pairs | None, moments: Pairs | None) -> None:
        self.model, self.ends, self.given = model, ends, moments
        self.tensors = keras.tree.flatten(model.inputs)
        for name, pairs in (("input_range", ends), ("input_moments", moments)):
            self._check_names(name, pairs)

    def _check_names(self, name: str, pairs: Pairs | None) -> None:
        own = [x.name for x in self.tensors]
        if isinstance(pairs, Mapping) and {*pairs} != {*own}:
            raise ValueError(
                f"`{name}` must be a pair, or one for each input, {own}. Received: {[*pairs]}."
            )

    def moments(self) -> list[Moments]:
        """Those of each input."""
        return [self._of(x) for x in self.tensors]

    def _of(self, x: keras.KerasTensor) -> Moments:
        pair = _grid_ends(self.model, x) if self.ends is None else self.ends
        low, high = _pair("input_range", pair, x)
        if not np.all(low < high):
            raise ValueError(
                "`input_range` must be two ends, the lower one first. "
                f"Received: {pair!r:.80} for input {x.name!r}."
            )
        mean, deviation = (low + high) / 2.0, (high - low) / math.sqrt(12.0)
        if self.given is not None:
            mean, deviation = _pair("input_moments", self.given, x)
        if not np.all(deviation >= 0.0):
            raise ValueError(
                "`input_moments` must be means and deviations, which are not below 0. "
                f"Received: {self.given!r:.80} for input {x.name!r}."
            )
        values = (mean, np.square(deviation), low, high)
        mean, variance, low, high = (tf.constant(v, tf.float32) for v in values)
        return Moments(Normal(mean=mean, variance=variance, low=low, high=high))


def _pair(name: str, pairs: Any, x: keras.KerasTensor) -> list[np.ndarray]:
    """Two numbers, or two a feature, in the shape of a sample."""
    pair = pairs[x.name] if isinstance(pairs, Mapping) else pairs
    shape = (1, *(size or SIDE for size in x.shape[1:]))
    try:
        first, second = (np.broadcast_to(np.asarray(v, np.float64), shape) for v in pair)
    except (TypeError, ValueError):
        first = second = np.asarray(np.nan)
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError(
            f"`{name}` must be two finite numbers, or two arrays with one for each feature. "
            f"Received: {pair!r:.80} for input {x.name!r} of shape {x.shape}."
        )
    return [first, second]


def _grid_ends(model: keras.Model, x: keras.KerasTensor) -> tuple[Any, Any]:
    """The ends of an input, as its grid has them.

    Raises:
        ValueError: where it has none, or one that says nothing of the lower end.
    """
    boundary = input_boundaries(model).get(id(x))
    quantizer = None if boundary is None else boundary.output_quantizer
    if quantizer is None or quantizer.symmetric:
        raise ValueError(
            "`input_range` must be given where an input has no grid, or one that is symmetric, of "
            f"16 bits or of a power of two. Received: None for input {x.name!r}. Give the ends of "
            "its values."
        )
    ends = np.stack([end.numpy() for end in quantizer.range()])
    own = preprocessing_of(boundary)
    if own is not None:
        ends = own.inverse(ends[:, None])
    return ends.min(axis=0), ends.max(axis=0)
