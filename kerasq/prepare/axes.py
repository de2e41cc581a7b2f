"""Operations along axes: sums, averages and extremes, and what only moves values."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasq import fits
from kerasq.graph import Node, symbolic
from kerasq.layers import Norm, Pad, Stack, Take
from kerasq.prepare.parts import Called


def reduction(layer: type) -> Callable:
    """A function of all values along some axes, but for that of the samples."""

    def make(node: Node, args: tuple, options: dict) -> Called:
        axes = _axes(node.layer.axis, node.inputs[0])
        # An initial value is another one in the maximum, which no operator has.
        if axes is None or getattr(node.layer, "initial", None) is not None:
            return None
        return layer(axes, node.layer.keepdims, **options), args[0]

    return make


def _axes(axis: Any, tensor: keras.KerasTensor) -> list[int] | None:
    """As `fits.axes`; None where the samples are among them."""
    found = fits.axes(axis, tensor)
    return None if 0 in found else found


def norm(node: Node, args: tuple, options: dict) -> Called:
    """The lengths of vectors, or of matrices as such of all their values."""
    axis, order = node.layer.axis, node.layer.ord
    axes = _axes(axis, node.inputs[0])
    is_length = order is None or (order == 2 and axes is not None and len(axes) == 1)
    if axes is None or not (is_length or order == "fro"):
        return None
    return Norm(axes, node.layer.keepdims, **options), args[0]


def place(layer: type) -> Callable:
    """The place of the largest or smallest value along an axis."""

    def make(node: Node, args: tuple, options: dict) -> Called:
        # Of all axes, or along that of the samples, it would hang on the size of the batch.
        axes = _axes(node.layer.axis, node.inputs[0])
        if axes is None:
            return None
        own = {"keepdims": node.layer.keepdims, "output_dtype": node.output.dtype}
        return layer(node.layer.axis, **own, **options), args[0]

    return make


def stack(node: Node, args: tuple, options: dict) -> Called:
    """Tensors beside each other, none of them constant."""
    axes = _axes(node.layer.axis, node.output)
    if axes is None or len(symbolic(args[0])) != len(args[0]):
        return None
    return Stack(axes[0], **options), args[0]


def take(node: Node, args: tuple, options: dict) -> Called:
    """The values at constant places along an axis."""
    x, indices = args
    axes = None if node.layer.axis is None else _axes(node.layer.axis, node.inputs[0])
    if axes is None or symbolic(indices):
        return None
    places = np.asarray(keras.ops.convert_to_numpy(indices), int)
    size = x.shape[axes[0]]
    if size is None and (places < 0).any():
        return None
    # Keras counts negative ones from the end, GATHER has none.
    places = np.where(places < 0, places + (size or 0), places)
    return Take(places.tolist(), axes[0], **options), x


def pad(node: Node, args: tuple, options: dict) -> Called:
    """Zeros or mirrored values around a tensor."""
    widths = [list(pair) for pair in node.layer.pad_width]
    if len(widths) == 1:  # One for all axes.
        widths *= len(args[0].shape)
    value = node.kwargs.get("constant_values")
    is_zero = value is None or (not symbolic(value) and np.all(np.asarray(value) == 0.0))
    if any(widths[0]) or not is_zero:
        return None
    return Pad(widths, node.layer.mode, **options), args[0]
