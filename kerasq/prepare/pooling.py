"""Poolings and reductions that LiteRT has no operator for, in parts."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from kerasq.layers import Constant, Function, Matmul, Mean, Requantize, Sum, Variance
from kerasq.prepare import masks
from kerasq.prepare.parts import Parts, reshaped

L = keras.layers


def pool_everything(
    parts: Parts, layer: keras.Layer, name: str, x: Any, mask: Any = None, training: Any = None
) -> Any:
    """The average of one pixel: Reshape. Of more it stays MEAN, unless some are masked."""
    del training
    if mask is not None:
        return _of_held(parts, layer, name, x, masks.condition(parts, name, mask))
    return _of_one(parts, layer, name, x, range(1, len(x.shape) - 1))


def _of_held(parts: Parts, layer: keras.Layer, name: str, x: Any, held: Any) -> Any:
    """The average of the steps that are not masked: a product with a softmax of equal scores.

    Where all are masked that is the average of all, and Keras divides by 0.
    """
    steps = x.shape[1]
    held = reshaped(parts, name, held, (1, steps), "held")
    scores = Constant((1, steps), True, name=parts.name(name, "scores"), dtype="float32")
    scores = parts.call(scores, held, [np.zeros((1, steps))])
    scores = masks.masked(parts, name, scores, [held])
    # 16 bits, for an average of many steps has weights of a few codes at 8.
    with parts.wide():
        shares = parts.call(L.Softmax(name=parts.name(name, "shares"), dtype="float32"), scores)
        product = Matmul(name=parts.name(name, "product"), dtype="float32")
        y = parts.call(product, [shares, x])
    y = parts.call(Requantize(name=parts.name(name, "average"), dtype="float32"), y)
    shape = y.shape[1:] if layer.keepdims else y.shape[2:]
    return parts.call(L.Reshape(shape, name=name, dtype="float32"), y)


def reduce(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """The sum, or average, of one value: Reshape."""
    return _of_one(parts, layer, name, x, layer.axis)


def _of_one(parts: Parts, layer: keras.Layer, name: str, x: Any, axes: Iterable[int]) -> Any:
    axes = [*axes]
    size = [x.shape[i] for i in axes]
    if None in size:
        raise ValueError(
            "The image size must be known, because the exported model has fixed shapes. "
            f"Received: {name!r} ({type(layer).__name__}) on an input of shape {x.shape}. "
            "Build the model with a fixed `keras.Input(shape=...)`."
        )
    # MEAN would round values to a grid of its own that only move.
    if np.prod(size) > 1:
        return None
    shape = layer.compute_output_shape(x.shape)[1:]
    return parts.call(L.Reshape(shape, name=name, dtype="float32"), x)


def average(parts: Parts, layer: keras.layers.AveragePooling2D, name: str, x: Any) -> Any:
    """Of one window, the whole sample: MEAN, whose output has a range of its own."""
    size, windows = x.shape[1:-1], layer.compute_output_shape(x.shape)[1:-1]
    is_whole = tuple(layer.pool_size) == tuple(size) and set(windows) == {1}
    # Of one place there is nothing to average, and AVERAGE_POOL_2D keeps the grid.
    if not is_whole or np.prod(size) == 1:
        return None
    return _whole(parts, type(layer).__name__, name, x)


def _whole(parts: Parts, kind: str, name: str, x: Any) -> Any:
    """The pooling of that kind over whole samples, which keeps their axes."""
    whole = getattr(L, f"Global{kind}")
    return parts.call(whole(keepdims=True, name=name, dtype="float32"), x)


def adaptive(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """Adaptive pooling to sizes that divide those of the image: pooling of boxes of one size."""
    kind, size = type(layer).__name__.removeprefix("Adaptive"), layer.output_size
    if set(size) == {1}:
        return _whole(parts, kind, name, x)
    boxes = tuple(n // m for n, m in zip(x.shape[1:-1], size, strict=True))
    return parts.call(getattr(L, kind)(boxes, name=name, dtype="float32"), x)


def variance(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """The average, "<name>_mean"; differences from it, "<name>_difference"; their squares."""
    options = {"dtype": "float32"}
    mean = Mean(layer.axis, keepdims=True, name=parts.name(name, "mean"), **options)
    difference = L.Subtract(name=parts.name(name, "difference"), **options)
    square = L.Multiply(name=parts.name(name, "square"), **options)
    y = parts.call(difference, [x, parts.call(mean, x)])
    y = parts.call(square, [y, y])
    return parts.call(Mean(layer.axis, layer.keepdims, name=name, **options), y)


def deviation(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """The variance, "<name>_variance", and its square root, Function."""
    own = parts.name(name, "variance")
    y = parts.call(Variance(layer.axis, layer.keepdims, name=own, dtype="float32"), x)
    return parts.call(Function("sqrt", name=name, dtype="float32"), y)


def norm(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """Squares, "<name>_square", their sum, "<name>_sum", and its square root, Function."""
    square = L.Multiply(name=parts.name(name, "square"), dtype="float32")
    total = Sum(layer.axis, layer.keepdims, name=parts.name(name, "sum"), dtype="float32")
    y = parts.call(total, parts.call(square, [x, x]))
    return parts.call(Function("sqrt", name=name, dtype="float32"), y)


def pool_3d(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """Pooling of depth and height, rows of pixels as channels, then of width: "<name>_width".

    LiteRT pools in two dimensions. Extremes and averages over a box may be taken over a side of it
    first: at the edges too, since padding does not count in either.
    """
    pool = L.MaxPooling2D if isinstance(layer, L.MaxPooling3D) else L.AveragePooling2D
    depth, height, width, channels = x.shape[1:]

    def reshaped(x: Any, shape: tuple, own: str) -> Any:
        return parts.call(L.Reshape(shape, name=own, dtype="float32"), x)

    def pooled(x: Any, size: tuple, strides: tuple, suffix: str) -> Any:
        own = parts.name(name, suffix)
        return parts.call(pool(size, strides, layer.padding, name=own, dtype="float32"), x)

    # Two axes beside the batch and the channels at a time: the third goes into the channels, where
    # nothing is pooled, and then depth and height count as one axis of windows of size 1.
    x = reshaped(x, (depth, height, width * channels), parts.name(name, "rows"))
    x = pooled(x, layer.pool_size[:2], layer.strides[:2], "planes")
    depth, height = x.shape[1:3]
    x = reshaped(x, (depth * height, width, channels), parts.name(name, "columns"))
    x = pooled(x, (1, layer.pool_size[2]), (1, layer.strides[2]), "width")
    return reshaped(x, (depth, height, x.shape[2], channels), name)
