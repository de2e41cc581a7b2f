"""Fake-quant in TensorFlow: the straight-through estimator and three gradients for the range.

All functions are pure. `low` and `high` are the ends of the range in real units; the grid between
them is the one of `kerasq.grid.Grid.from_range`.
"""

import math
from typing import Any

import tensorflow as tf

from kerasq.grid import Grid

RANGE_GRADIENTS = ("lsq", "clip", "none")


def grid_from_range(
    low: tf.Tensor, high: tf.Tensor, bits: int, narrow: bool = False, axis: int | None = None
) -> Grid:
    """`Grid.from_range` on tensors: scale and zero point are float32 tensors."""
    grid = Grid(scale=0.0, zero_point=0, bits=bits, narrow=narrow, axis=axis)
    levels = grid.qmax - grid.qmin
    low, high = tf.cast(low, tf.float64), tf.cast(high, tf.float64)
    scale = (high - low) / levels
    nudged = tf.floor(tf.clip_by_value(-low / scale, 0.0, float(levels)) + 0.5)
    zero_point = tf.cast(nudged, tf.float32) + grid.qmin
    return Grid(
        scale=tf.cast(scale, tf.float32), zero_point=zero_point, bits=bits, narrow=narrow, axis=axis
    )


@tf.custom_gradient
def straight_through(smooth: tf.Tensor, exact: tf.Tensor) -> Any:
    """The value of `exact` with the gradient of `smooth` (Bengio et al. 2013)."""
    del smooth
    return tf.identity(exact), lambda upstream: (upstream, None)


def fake_quant(
    x: tf.Tensor,
    low: tf.Tensor,
    high: tf.Tensor,
    *,
    bits: int = 8,
    narrow: bool = False,
    gradient: str = "lsq",
    count: float = 1.0,
) -> tf.Tensor:
    """Rounds `x` to the grid over [low, high] and clips it there.

    Per tensor when `low` is a scalar; per channel, along the last axis of `x`, when it is a vector.
    With `n = qmax - qmin`, `y` the result, `g` the incoming gradient, and low and high nudged so
    that 0.0 is on the grid:

        dL/dx    = g where low <= x <= high, else 0          (straight-through estimator)
        dL/dlow  = sum of g where x < low                    ("clip": PACT, Choi et al. 2018)
        dL/dhigh = sum of g where x > high
        "lsq" adds -e to dL/dlow and +e to dL/dhigh, e = sum of g * (y - x) / (high - low) inside
        (Esser et al. 2020, equation 3, by the chain rule through scale = (high - low) / n), and
        multiplies both by n / sqrt(count * n): the gradient of the step size, n times that of the
        range, times LSQ's own factor (section 2.2).

    Since the range is n times the step, it moves n times slower, relative to its size, than the
    step does in LSQ, where steps keep pace with the weights: hardly at 8 bits, where following the
    noise of the rounding errors only harms, and about as in LSQ at 2. Any other name gives the
    range no gradient.

    Args:
        x: real values.
        low: lower end, at most 0.
        high: upper end, at least 0, above `low`.
        bits: width of a code.
        narrow: leave out the lowest code.
        gradient: one of `RANGE_GRADIENTS`.
        count: number of values that share one range (per sample for activations), for "lsq".
    """
    per_channel = low.shape.rank == 1
    suffix = "PerChannel" if per_channel else ""
    forward = getattr(tf.raw_ops, f"FakeQuantWithMinMaxVars{suffix}")
    backward = getattr(tf.raw_ops, f"FakeQuantWithMinMaxVars{suffix}Gradient")
    levels = 2**bits - 1 - narrow
    lsq_scale = levels / math.sqrt(max(count, 1.0) * levels)

    @tf.custom_gradient
    def run(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> Any:
        y = forward(inputs=x, min=low, max=high, num_bits=bits, narrow_range=narrow)

        def grad(upstream: tf.Tensor) -> tuple:
            dx, dlow, dhigh = backward(
                gradients=upstream, inputs=x, min=low, max=high, num_bits=bits, narrow_range=narrow
            )
            if gradient not in ("lsq", "clip"):
                return dx, None, None
            if gradient == "lsq":
                axes = list(range(x.shape.rank - 1)) if per_channel else None
                error = tf.reduce_sum(dx * (y - x), axis=axes) / (high - low)
                dlow, dhigh = (dlow - error) * lsq_scale, (dhigh + error) * lsq_scale
            return dx, dlow, dhigh

        return y, grad

    return run(x, low, high)
