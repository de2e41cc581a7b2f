"""Sums, products, extremes and averages of several tensors, and constant scales, in parts."""

from typing import Any

import keras
import numpy as np

from kerasq.prepare.parts import Parts

L = keras.layers


def two_by_two(parts: Parts, layer: keras.Layer, name: str, x: list) -> Any:
    """Of n inputs: n - 1 layers of two, "<name>_1", "<name>_2", ..., "<name>"."""
    # LiteRT's ADD, MUL, MAXIMUM and MINIMUM read two tensors. Each sum on the way has a range of
    # its own: one for all would have to hold the last.
    if len(x) < 3:
        return x[0] if len(x) == 1 else None
    total, *rest, last = x
    for i, term in enumerate(rest, start=1):
        own = parts.name(name, str(i))
        total = parts.call(type(layer)(name=own, dtype="float32"), [total, term])
    return parts.call(type(layer)(name=name, dtype="float32"), [total, last])


def average(parts: Parts, layer: keras.Layer, name: str, x: list) -> Any:
    """Sum, "<name>_sum", and Scale."""
    del layer
    total = parts.call(L.Add(name=parts.name(name, "sum"), dtype="float32"), x)
    return parts.scale(name, total, 1.0 / len(x), 0.0)


def rescaling(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """Scale."""
    return parts.scale(name, x, layer.scale, layer.offset)


def normalization(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """Scale: `(x - mean) / max(sqrt(variance), epsilon)`."""
    # Keras keeps both with axes of size 1; the registry wants one value, or one a channel.
    mean, deviation = np.ravel(layer.mean), np.sqrt(np.ravel(layer.variance))
    if layer.invert:
        return parts.scale(name, x, deviation, mean)
    gain = 1.0 / np.maximum(deviation, keras.config.epsilon())
    return parts.scale(name, x, gain, -mean * gain)
