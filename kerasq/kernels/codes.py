"""Centred codes: `code - zero_point` as float32 tensors, on which all simulated kernels work."""

import tensorflow as tf

from kerasq.grid import Grid


def centre(x: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Centred codes of real values that lie on `grid`, up to float32 rounding."""
    return tf.round(x / grid.scale)


def clip(codes: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Centred codes, of any type, limited to those that `grid` has."""
    codes = tf.cast(codes, tf.float32)
    return tf.clip_by_value(codes, grid.qmin - grid.zero_point, grid.qmax - grid.zero_point)


def quantize(x: tf.Tensor, grid: Grid) -> tf.Tensor:
    """Centred codes of any real values: QUANTIZE from float (ties to even)."""
    return clip(tf.round(x * (1.0 / grid.scale)), grid)
