"""Centred codes: `code - zero_point` as float32 tensors, on which all simulated kernels work."""

from typing import Any

import keras
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels.floats import float64, product, quotient


def centre(x: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Centred codes of real values that lie on `grid`, up to float32 rounding."""
    # x is a code times the scale in float32, off by far less than half a step: any rounding finds
    # the code again.
    return tf.round(x / grid.scale)


def nearest(values: Any, grid: Grid) -> tf.Tensor:
    """Centred codes of numbers that codes are compared with, as those of equal values.

    Not rounded, and so equal to none, are numbers beyond the grid, and those that only 0 is near:
    it has a code of its own.
    """
    steps = values / grid.scale
    codes = tf.round(steps)
    is_one = tf.equal(clip(codes, grid), codes) & (tf.equal(codes, 0.0) == tf.equal(steps, 0.0))
    return tf.where(is_one, codes, steps)


def clip(codes: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Centred codes, of any type, limited to those that `grid` has."""
    # Zero points of fixed grids are integers.
    low, high = (tf.cast(end - grid.zero_point, tf.float32) for end in (grid.qmin, grid.qmax))
    return tf.clip_by_value(tf.cast(codes, tf.float32), low, high)


def quantize(x: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Centred codes of any real values: QUANTIZE from float, `rint(x * (1 / scale))` in float32.

    Of NaN, such as of 0 / 0 in a float layer, the highest code of int8 and the lowest of int16.
    """
    codes = clip(tf.round(in_steps(x, grid)), grid)
    return without_nan(codes, grid, grid.qmax if grid.bits <= 8 else grid.qmin)


def in_steps(x: tf.Tensor, grid: Grid) -> tf.Tensor:
    """`x * (1 / scale)`, each step rounded to float32."""
    # Near a tie x / scale may be another code than the product with the rounded reciprocal.
    return product(x, quotient(1.0, grid.scale))


def without_nan(codes: tf.Tensor, grid: Grid, code: tf.Tensor | int) -> tf.Tensor:
    """Centred codes, one in the place of each NaN."""
    return tf.where(tf.math.is_nan(codes), tf.cast(code - grid.zero_point, tf.float32), codes)


def quantize_weights(x: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Codes of weights: `rint(x / scale)` in double precision, so that no compiler moves a tie.

    Args:
        x: weights, float64.
        grid: their grid: per channel along the last axis, or one per tensor.
    """
    return clip(tf.round(x / float64(grid.scale)), grid)


def reduced_axes(layer: keras.Layer, codes: tf.Tensor) -> list[int]:
    """The axes that a layer takes sums over: its own, or all but the first and last."""
    # Global poolings have no axes of their own.
    return [*getattr(layer, "axis", range(1, codes.shape.rank - 1))]
