"""Fake-quant in TensorFlow: the straight-through estimator and three gradients for the range.

All functions are pure. `low` and `high` are the ends of the range in real units; the grid between
them is the one of `kerasq.grid.Grid.from_range`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from kerasq.grid import Grid
from kerasq.support.shared import shared

RANGE_GRADIENTS = ("lsq", "clip", "none")


def range_gradient_at(bits: int, chosen: str | None) -> str:
    """How a range learns: as `chosen`, or by its width.

    At 8 bits and more LSQ's steps hardly move a range, and a range that follows the data needs no
    gradient of its own: steps are faster, and keep one tensor less. Where codes are few, what
    clipping costs and what rounding costs must be weighed: that is learned.
    """
    return chosen or ("lsq" if bits < 8 else "none")


def threshold_gradient(chosen: str | None) -> str:
    """How the threshold of a power of two learns: it follows the data where that is chosen."""
    return "none" if chosen == "none" else "tqt"


def grid_from_range(
    low: tf.Tensor,
    high: tf.Tensor,
    bits: int,
    narrow: bool = False,
    axis: int | None = None,
    levels: int | None = None,
) -> Grid:
    """`Grid.from_range` on tensors: scale and zero point are float32 tensors."""
    grid = Grid(scale=0.0, zero_point=0, bits=bits, narrow=narrow, axis=axis, levels=levels)
    scale, zero_point = _scale_and_zero_point(low, high, grid.qmin, grid.qmax)
    return dataclasses.replace(grid, scale=scale, zero_point=zero_point)


@shared
def _scale_and_zero_point(
    low: tf.Tensor, high: tf.Tensor, qmin: int, qmax: int
) -> tuple[tf.Tensor, tf.Tensor]:
    steps = qmax - qmin
    # In float64, since the file gets the float32 that `Grid.from_range` gives, to the last bit.
    low, high = tf.cast(low, tf.float64), tf.cast(high, tf.float64)
    scale = (high - low) / steps
    below = tf.clip_by_value(-low * steps / (high - low), 0.0, float(steps))
    # Ties go up; tf.round takes them to even.
    return tf.cast(scale, tf.float32), tf.cast(tf.floor(below + 0.5), tf.float32) + qmin


@tf.custom_gradient
def straight_through(smooth: tf.Tensor, exact: tf.Tensor) -> Any:
    """The value of `exact` with the gradient of `smooth` (Bengio et al. 2013)."""
    # Not smooth + stop_gradient(exact - smooth), whose sum float32 would round off the grid.
    del smooth
    return tf.identity(exact), lambda upstream: (upstream, None)


def straight_through_of(
    smooth: Callable[[Any], tf.Tensor], inputs: Any, variables: list[Any], exact: tf.Tensor
) -> tf.Tensor:
    """`straight_through(smooth(inputs), exact)`; `smooth` is called where a gradient is asked for.

    Args:
        smooth: computed of the inputs and of Keras variables.
        inputs: tensors, nested.
        variables: those that may get a gradient.
        exact: the value.
    """
    values = [variable.value for variable in variables]
    # In a stateless call they are tensors, which are theirs in that call alone.
    if not all(isinstance(value, tf.Variable) for value in values):
        return straight_through(smooth(inputs), exact)
    tensors = tf.nest.flatten(inputs)
    watched = [x for x in tensors if x.dtype.is_floating]

    @tf.custom_gradient
    def run(exact: tf.Tensor, *_: tf.Tensor) -> Any:
        def grad(upstream: tf.Tensor) -> tuple:
            with tf.GradientTape() as tape:
                tape.watch(watched)
                y = smooth(inputs)
            return None, *tape.gradient(y, [*watched, *values], upstream)

        return tf.identity(exact), grad

    return run(exact, *watched, *map(tf.convert_to_tensor, values))


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
    """Rounds `x` to the grid over [low, high] and clips it there; one range per tensor.

    With `n = qmax - qmin`, `y` the result, `g` the incoming gradient, and low and high nudged so
    that 0.0 is on the grid:

        dL/dx    = g where low <= x <= high, else 0          (straight-through estimator)
        dL/dlow  = sum of g where x < low           ("clip": PACT, Choi et al. 2018, equation 3)
        dL/dhigh = sum of g where x > high
        "lsq" adds -e to dL/dlow and +e to dL/dhigh, e = sum of g * (y - x) / (high - low) inside
        (Esser et al. 2020, section 2.1, by the chain rule through scale = (high - low) / n), and
        multiplies both by n^2 / sqrt(count * n): the range, n steps, moves as LSQ's step size does
        with its own factor (section 2.2). At 8 bits and more it is n / sqrt(count * n), n times
        less: there ranges are wide enough as calibrated. "tqt" is "lsq" without that factor, which
        along scale = (high - low) / n is the gradient of a threshold (Jain et al. 2020, equation 6;
        `kerasq.quantizers.threshold`).

    Since the range is n times the step, it moves n times slower, relative to its size, than the
    step does in LSQ, where steps keep pace with the weights: hardly at 8 bits, where following the
    noise of the rounding errors only harms, and about as in LSQ at 2. "none" gives the range no
    gradient.

    Args:
        x: real values.
        low: lower end, a scalar, at most 0.
        high: upper end, a scalar, at least 0, above `low`.
        bits: width of a code.
        narrow: leave out the lowest code.
        gradient: one of `RANGE_GRADIENTS`, or "tqt".
        count: number of values that share one range (per sample for activations), for "lsq".
    """
    options = {"num_bits": bits, "narrow_range": narrow}

    @tf.custom_gradient
    def run(x: tf.Tensor, low: tf.Tensor, high: tf.Tensor) -> Any:
        y = tf.raw_ops.FakeQuantWithMinMaxVars(inputs=x, min=low, max=high, **options)

        def grad(upstream: tf.Tensor) -> tuple:
            # One op for all three: the gradients of "clip".
            dx, dlow, dhigh = tf.raw_ops.FakeQuantWithMinMaxVarsGradient(
                gradients=upstream, inputs=x, min=low, max=high, **options
            )
            if gradient == "none":
                return dx, None, None
            if gradient in ("lsq", "tqt"):
                # Behind dx, or TensorFlow may compute it in the forward pass already, and keep it.
                with tf.control_dependencies([dx]):
                    residual = y - x
                error = _dot(dx, residual) / (high - low)
                is_lsq = gradient == "lsq"
                factor = _lsq_factor(2**bits - 1 - narrow, count, bits) if is_lsq else 1.0
                dlow, dhigh = (dlow - error) * factor, (dhigh + error) * factor
            return dx, dlow, dhigh

        return y, grad

    # Variables of several devices, read inside, would count as others than the arguments.
    return run(*map(tf.convert_to_tensor, (x, low, high)))


def fake_quant_following(
    x: tf.Tensor,
    low: tf.Tensor,
    high: tf.Tensor,
    *,
    bits: int,
    relu: bool = False,
    limit: float | None = None,
    symmetric: bool = False,
) -> tf.Tensor:
    """`fake_quant` onto a range that follows the data: nothing lies beyond it for long.

        dL/dx = g, but behind a ReLU only where 0 < y < limit

    for the incoming gradient g and the result y (straight-through estimator, Bengio et al. 2013):
    that of the layer's own activation. It needs no more than y, which the next layer keeps anyway.

    Args:
        x: real values, the ReLU not yet applied.
        low: lower end, a scalar, at most 0.
        high: upper end, a scalar, at least 0, above `low`.
        bits: width of a code.
        relu: whether a ReLU is part of the layer.
        limit: its upper limit, or None.
        symmetric: whether the range goes below 0, where a ReLU cuts, and may go beyond its limit.
    """

    @tf.custom_gradient
    def run(x: tf.Tensor) -> Any:
        # A range that starts at 0 cuts as the ReLU does.
        cut = _relu(x, limit) if relu and symmetric else x
        y = tf.raw_ops.FakeQuantWithMinMaxVars(inputs=cut, min=low, max=high, num_bits=bits)

        def grad(upstream: tf.Tensor) -> tf.Tensor:
            if not relu:
                return upstream
            if limit is None:
                return tf.raw_ops.ReluGrad(gradients=upstream, features=y)
            # Behind the gradient, or TensorFlow may scale in the forward pass, and keep that.
            with tf.control_dependencies([upstream]):
                features = y if limit == 6.0 else y * (6.0 / limit)
            return tf.raw_ops.Relu6Grad(gradients=upstream, features=features)

        return y, grad

    return run(x)


def fake_quant_per_channel(
    x: tf.Tensor,
    high: tf.Tensor,
    *,
    bits: int = 8,
    gradient: str = "lsq",
    gain: tf.Tensor | float = 1.0,
    clips: bool = True,
) -> tf.Tensor:
    """`gain` times `x` rounded to the symmetric, narrow grids over [-high[c], high[c]].

    One range per channel, the last axis of `x`. Values and gradients are those of
    `gain * fake_quant(x[..., c], -high[c], high[c], narrow=True, count=...)` with as many values
    as share a range; below 8 bits n is the number of steps from 0 to `high`, LSQ's for weights.
    TensorFlow's op for it is ten times slower (docs/performance.md), so the codes
    `x * (2^(bits-1) - 1) / high` go through the op for constant ranges.

    Args:
        x: real values, shape `(..., channels)`.
        high: the largest magnitudes, shape `(channels,)`, above 0.
        bits: width of a code.
        gradient: one of `RANGE_GRADIENTS`, or "tqt".
        gain: a constant; it gets no gradient.
        clips: whether values may lie beyond their range; if not, their gradient is `gain * g`.
    """
    largest = 2 ** (bits - 1) - 1
    grid = {"min": -largest, "max": largest, "num_bits": bits, "narrow_range": True}
    count = math.prod(x.shape[:-1])
    is_one = isinstance(gain, float) and gain == 1.0

    @tf.custom_gradient
    def run(x: tf.Tensor, high: tf.Tensor) -> Any:
        # A value at the very end of its range must not come out above it.
        exact = x * (largest * (1.0 - 2.0**-22) / high)
        codes = tf.raw_ops.FakeQuantWithMinMaxArgs(inputs=exact, **grid)

        def inside(gradients: tf.Tensor) -> tf.Tensor:
            """The gradients of values that are not clipped; 0 for the others."""
            return tf.raw_ops.FakeQuantWithMinMaxArgsGradient(
                gradients=gradients, inputs=exact, **grid
            )

        def grad(upstream: tf.Tensor) -> tuple:
            # A pass over all weights, which most layers can do without.
            upstream = upstream if is_one else upstream * gain
            dx = inside(upstream) if clips else upstream
            if gradient == "none":
                return dx, None
            # What moves with `high`, in codes: the ends where x is clipped, LSQ's error inside.
            followed = codes if gradient == "clip" else exact
            # Behind dx, or TensorFlow may compute it in the forward pass already, and keep it.
            with tf.control_dependencies([dx]):
                slope = upstream * (codes - inside(followed))
            # A product with ones: sums of columns are faster so than by tf.reduce_sum.
            total = tf.matmul(tf.ones([1, count]), tf.reshape(slope, [count, -1]))[0]
            factor = 1.0
            if gradient == "lsq":
                # LSQ's steps for weights are those above 0; at 8 bits both sides count, as above.
                factor = _lsq_factor(largest if bits < 8 else 2 * largest, count, bits)
            return dx, total * (factor / largest)

        return codes * (high * (gain / largest)), grad

    # As in `fake_quant`.
    return run(*map(tf.convert_to_tensor, (x, high)))


def _relu(x: tf.Tensor, limit: float | None) -> tf.Tensor:
    return tf.nn.relu(x) if limit is None else tf.clip_by_value(x, 0.0, limit)


def _dot(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """The sum of `a * b`, without the product in memory: the diagonal of a matrix product."""
    # Two rows are a tenth faster than one or four (TensorFlow 2.21, two cores).
    rows = 2 if any(size is not None and size % 2 == 0 for size in a.shape) else 1
    a, b = tf.reshape(a, [rows, -1]), tf.reshape(b, [rows, -1])
    return tf.linalg.trace(tf.matmul(a, b, transpose_b=True))


def _lsq_factor(levels: int, count: float, bits: int) -> float:
    """What "lsq" multiplies the gradient of a range by: see `fake_quant`."""
    return (levels if bits < 8 else 1) * levels / math.sqrt(max(count, 1.0) * levels)
