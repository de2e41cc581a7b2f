"""UNIDIRECTIONAL_SEQUENCE_LSTM on int8 with an int16 cell: LiteRT's "8x8->16", bit for bit.

    gate = f(x W + b + h U)                 for input, forget, candidate and output
    c    = forget c + input candidate
    h    = output tanh(c)

Of each gate the two products are rescaled apart, in gemmlowp's way, onto steps of 2^-12. That of
the input is kept within int16, then their sum is. Gates, and tanh(c), have steps of 2^-15, and are
gemmlowp's functions on 16 bits. The cell has steps of a power of two.

Source: LiteRT, kernels/lstm_eval.cc (`LstmStepInteger8x8_16`) and
kernels/unidirectional_sequence_lstm.cc (`PopulateQuantizedLstmParams8x8_16`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels import gemmlowp
from kerasq.kernels.codes import clip
from kerasq.kernels.fixed_point import int64, multiply_rounding_twice, round_half_away
from kerasq.kernels.floats import float64, product
from kerasq.support.shared import shared

# Sums of gates are in steps of 2^-12.
GATE_STEPS = 2.0**12
# LiteRT has no tanh of cells of more integer bits, and leaves a buffer as it was.
CELL_BITS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class LstmWeights:
    """The weights of an LSTM as the device stores them; gates in Keras's order: i, f, c, o.

    Attributes:
        kernel: codes, `(features, 4 units)`.
        kernel_scale: a scale for each gate, `(4,)`.
        recurrent: codes, `(units, 4 units)`.
        recurrent_scale: a scale for each gate, `(4,)`.
        bias: codes in steps of the input's scale times `kernel_scale`, `(4 units,)`.
    """

    kernel: tf.Tensor
    kernel_scale: tf.Tensor
    recurrent: tf.Tensor
    recurrent_scale: tf.Tensor
    bias: tf.Tensor


def sequence(layer: Any, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """The operator, of a layer that has `integer_weights()` and `cell_bits()`."""
    return run(codes[0], grids[0], layer.integer_weights(), out, layer.cell_bits())


def run(
    codes: tf.Tensor, grid: Grid, weights: LstmWeights, out: Grid, cell_bits: tf.Tensor | int
) -> tf.Tensor:
    """Centred codes of the hidden state at all steps, `(samples, steps, units)`, float32.

    Args:
        codes: centred codes of the input, `(samples, steps, features)`.
        grid: its grid, of 8 bits.
        weights: kernels and bias.
        out: the grid of the hidden state, of 8 bits.
        cell_bits: integer bits of the cell state, in [0, 6]: it lies in [-2^n, 2^n).
    """
    cell_bits = int64(cell_bits)
    # Steps first, and what the input adds to all of them at once. float64 holds any sums.
    steps = tf.transpose(float64(codes), [1, 0, 2])
    total = tf.matmul(steps, float64(weights.kernel)[None]) + float64(weights.bias)
    units = weights.recurrent.shape[0]
    added = _int16(_rescaled(total, grid, weights.kernel_scale, units))
    recurrent = float64(weights.recurrent)

    def step(states: tuple[tf.Tensor, tf.Tensor], x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        cell, hidden = states
        # Not between limits before it is added.
        state = _rescaled(tf.matmul(hidden, recurrent), out, weights.recurrent_scale, units)
        cell, gate = _next_cell(_int16(x + state), cell, cell_bits)
        return cell, float64(_hidden(gate, cell, out, cell_bits))

    shape = [tf.shape(codes)[0], units]
    first = tf.zeros(shape, tf.int64), tf.zeros(shape, tf.float64)
    _, hidden = tf.scan(step, added, first)
    return tf.cast(tf.transpose(hidden, [1, 0, 2]), tf.float32)


def _rescaled(total: tf.Tensor, grid: Grid, scales: tf.Tensor, units: int) -> tf.Tensor:
    """Sums, channels of four gates last, in steps of 2^-12."""
    # The product of two scales is float32; a power of two more rounds nothing.
    real = float64(product(scales, grid.scale)) * GATE_STEPS
    return multiply_rounding_twice(total, tf.repeat(real, units))


def _int16(x: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(x, int64(-(2**15)), int64(2**15 - 1))


def _next_cell(total: tf.Tensor, cell: tf.Tensor, bits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The next cell state, and the output gate."""
    entry, forget, candidate, output = tf.split(total, 4, axis=-1)
    entry, forget, output = (gemmlowp.logistic(x, 3, width=16) for x in (entry, forget, output))
    candidate = gemmlowp.tanh(candidate, 3, width=16)
    kept = round_half_away(forget * cell, 15)
    return _int16(kept + round_half_away(entry * candidate, 15 + bits)), output


def _hidden(gate: tf.Tensor, cell: tf.Tensor, out: Grid, bits: tf.Tensor) -> tf.Tensor:
    """Centred codes of `gate tanh(cell)`."""
    squashed = _tanh_of_cell(cell, bits)
    # LiteRT divides in double, and rounds the quotient to float32.
    real = float64(tf.cast(2.0**-30 / float64(out.scale), tf.float32))
    return clip(multiply_rounding_twice(gate * squashed, real), out)


@shared
def _tanh_of_cell(cell: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    def at(integer_bits: int) -> Callable[[], tf.Tensor]:
        return lambda: gemmlowp.tanh(cell, integer_bits, width=16)

    return tf.switch_case(tf.cast(bits, tf.int32), [at(n) for n in range(CELL_BITS + 1)])
