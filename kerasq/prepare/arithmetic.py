"""Sums, products, extremes and averages of several tensors, and constant scales, in parts."""

import math
from typing import Any

import keras
import numpy as np

from kerasq.fits import is_per_channel
from kerasq.layers import Compare, Function
from kerasq.prepare import masks
from kerasq.prepare.parts import Parts

L = keras.layers


def two_by_two(parts: Parts, layer: keras.Layer, name: str, x: list) -> Any:
    """Of n inputs: n - 1 layers of two, "<name>_1", "<name>_2", ..., "<name>"."""
    is_bias = parts.feeds_softmax and isinstance(layer, L.Add) and len(x) == 2
    if is_bias and (y := masks.added(parts, name, x)) is not None:
        return y
    if even := _even(parts, name, x):
        return parts.call(type(layer)(name=name, dtype="float32"), even)
    # LiteRT's ADD, MUL, MAXIMUM and MINIMUM read two tensors. Each sum on the way has a range of
    # its own: one for all would have to hold the last.
    if len(x) < 3:
        return x[0] if len(x) == 1 else None
    total, *rest, last = x
    for i, term in enumerate(rest, start=1):
        own = parts.name(name, str(i))
        total = parts.call(type(layer)(name=own, dtype="float32"), [total, term])
    return parts.call(type(layer)(name=name, dtype="float32"), [total, last])


def _even(parts: Parts, name: str, x: list) -> list | None:
    """Tensors with one number of axes, where that of some is less than of others; else None."""
    rank = max(len(y.shape) for y in x)
    lower = [y for y in x if len(y.shape) < rank]
    if not lower or any(None in y.shape[1:] for y in lower):
        return None
    return [_expanded(parts, name, y, rank) for y in x]


def _expanded(parts: Parts, name: str, x: Any, rank: int) -> Any:
    """A tensor with as many axes as the others, new ones of 1 behind the samples, as Keras does."""
    if len(x.shape) == rank:
        return x
    shape = (*(1,) * (rank - len(x.shape)), *x.shape[1:])
    own = L.Reshape(shape, name=parts.name(name, "expanded"), dtype="float32")
    return parts.call(own, x)


def divide(parts: Parts, layer: keras.Layer, name: str, x: list) -> Any:
    """The divisor's reciprocal, "<name>_reciprocal", and Multiply."""
    # LiteRT's DIV on int8 ends the run with an error where a divisor is rounded to 0.
    del layer
    own = Function("reciprocal", name=parts.name(name, "reciprocal"), dtype="float32")
    inverse = parts.call(own, x[1])
    return parts.call(L.Multiply(name=name, dtype="float32"), [x[0], inverse])


def compare(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """Of two tensors: their difference, "<name>_difference", compared with 0."""
    if not isinstance(x, list):
        return None
    own = L.Subtract(name=parts.name(name, "difference"), dtype="float32")
    return parts.call(Compare(layer.function, name=name, dtype="float32"), parts.call(own, x))


def average(parts: Parts, layer: keras.Layer, name: str, x: list) -> Any:
    """Sum, "<name>_sum", and Scale."""
    del layer
    total = parts.call(L.Add(name=parts.name(name, "sum"), dtype="float32"), x)
    return parts.scale(name, total, 1.0 / len(x), 0.0)


def rescaling(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """Scale: see `_scaled`."""
    return _scaled(parts, name, x, layer.scale, layer.offset)


def normalization(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """Scale: `(x - mean) / max(sqrt(variance), epsilon)`; see `_scaled`."""
    mean, deviation = np.asarray(layer.mean), np.sqrt(np.asarray(layer.variance))
    if layer.invert:
        return _scaled(parts, name, x, deviation, mean)
    gain = 1.0 / np.maximum(deviation, keras.config.epsilon())
    return _scaled(parts, name, x, gain, -mean * gain)


def _scaled(parts: Parts, name: str, x: Any, gain: Any, shift: Any) -> Any:
    """Scale; where there is not one gain and shift a channel, "<name>_scaled" of a vector."""
    if is_per_channel(gain) and is_per_channel(shift):
        return parts.scale(name, x, np.ravel(gain), np.ravel(shift))
    # Each value as a channel has a gain of its own, and is rounded once.
    shape = x.shape[1:]
    vector = L.Reshape((math.prod(shape),), name=parts.name(name, "vector"), dtype="float32")
    gain, shift = (np.broadcast_to(v, (1, *shape)).ravel() for v in (gain, shift))
    y = parts.scale(parts.name(name, "scaled"), parts.call(vector, x), gain, shift)
    return parts.call(L.Reshape(shape, name=name, dtype="float32"), y)
