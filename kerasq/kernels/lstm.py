"""UNIDIRECTIONAL_SEQUENCE_LSTM on int8 with an int16 cell, "8x8->16", bit for bit.

    gate = f(x W + b + h U)                 for input, forget, candidate and output
    c    = forget c + input candidate
    h    = output tanh(c)

Of each gate the two products are rescaled apart, in gemmlowp's way, onto steps of 2^-12. That of
the input is kept within int16, then their sum is. Gates, and tanh(c), have steps of 2^-15. The cell
has steps of a power of two.

In LiteRT sigmoid and tanh are gemmlowp's functions on 16 bits; in TFLite Micro they are the tables
of LOGISTIC and TANH on int16, the product of the hidden state is kept within int16 as well, and
what is divided by a power of two is rounded twice.

Source: LiteRT, kernels/lstm_eval.cc (`LstmStepInteger8x8_16`) and
kernels/unidirectional_sequence_lstm.cc (`PopulateQuantizedLstmParams8x8_16`); tflite-micro,
micro/kernels/lstm_eval.h (`LstmStep`) and lstm_eval_common.cc (`PrepareGateParametersInteger`).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels import gemmlowp, int16
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rules:
    """What runtimes compute each in their own way.

    Attributes:
        recurrent: what becomes of the hidden state's product before it is added.
        sigmoid: of numbers in steps of 2^-12.
        tanh: of int16 with so many integer bits.
        divide: by two to the power of a number.
        by_scale: `2^-30` over a scale, in float64.
    """

    recurrent: Callable[[tf.Tensor], tf.Tensor]
    sigmoid: Callable[[tf.Tensor], tf.Tensor]
    tanh: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    divide: Callable[[tf.Tensor, Any], tf.Tensor]
    by_scale: Callable[[tf.Tensor], tf.Tensor]


def sequence(layer: Any, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """LiteRT's operator, of a layer that has `integer_weights()` and `cell_bits()`."""
    return run(codes[0], grids[0], layer.integer_weights(), out, layer.cell_bits())


def micro_sequence(layer: Any, codes: list, grids: list[Grid], out: Grid) -> tf.Tensor:
    """TFLite Micro's operator, see `sequence`."""
    return run(codes[0], grids[0], layer.integer_weights(), out, layer.cell_bits(), MICRO)


def _int16(x: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(x, int64(-(2**15)), int64(2**15 - 1))


def _gemmlowp_sigmoid(x: tf.Tensor) -> tf.Tensor:
    return gemmlowp.logistic(x, 3, width=16)


@shared
def _gemmlowp_tanh(x: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    def at(integer_bits: int) -> Callable[[], tf.Tensor]:
        return lambda: gemmlowp.tanh(x, integer_bits, width=16)

    return tf.switch_case(tf.cast(bits, tf.int32), [at(n) for n in range(CELL_BITS + 1)])


LITERT = _Rules(
    recurrent=lambda x: x,
    sigmoid=_gemmlowp_sigmoid,
    tanh=_gemmlowp_tanh,
    divide=round_half_away,
    # It divides in double, and rounds the quotient to float32.
    by_scale=lambda scale: float64(tf.cast(2.0**-30 / float64(scale), tf.float32)),
)


def _steps(bits: Any) -> Grid:
    """The grid of int16 with so many integer bits."""
    scale = 2.0 ** (float64(bits) - 15.0)
    return Grid(scale=tf.cast(scale, tf.float32), zero_point=tf.zeros(()), bits=16)


def _table_sigmoid(x: tf.Tensor) -> tf.Tensor:
    return int64(int16.sigmoid(None, [x], [_steps(3)], _steps(0)))


def _table_tanh(x: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    return int64(int16.tanh(None, [x], [_steps(bits)], _steps(0)))


MICRO = _Rules(
    recurrent=_int16,
    sigmoid=_table_sigmoid,
    tanh=_table_tanh,
    divide=lambda x, bits: multiply_rounding_twice(x, 2.0 ** -float64(bits)),
    by_scale=lambda scale: 2.0**-30 / float64(scale),
)


def run(
    codes: tf.Tensor,
    grid: Grid,
    weights: LstmWeights,
    out: Grid,
    cell_bits: tf.Tensor | int,
    rules: _Rules = LITERT,
) -> tf.Tensor:
    """Centred codes of the hidden state at all steps, `(samples, steps, units)`, float32.

    Args:
        codes: centred codes of the input, `(samples, steps, features)`.
        grid: its grid, of 8 bits.
        weights: kernels and bias.
        out: the grid of the hidden state, of 8 bits.
        cell_bits: integer bits of the cell state, in [0, 6]: it lies in [-2^n, 2^n).
        rules: `LITERT` or `MICRO`.
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
        state = _rescaled(tf.matmul(hidden, recurrent), out, weights.recurrent_scale, units)
        cell, gate = _next_cell(_int16(x + rules.recurrent(state)), cell, cell_bits, rules)
        found = multiply_rounding_twice(
            gate * rules.tanh(cell, cell_bits), rules.by_scale(out.scale)
        )
        return cell, float64(clip(found, out))

    shape = [tf.shape(codes)[0], units]
    first = tf.zeros(shape, tf.int64), tf.zeros(shape, tf.float64)
    _, hidden = tf.scan(step, added, first)
    return tf.cast(tf.transpose(hidden, [1, 0, 2]), tf.float32)


def _rescaled(total: tf.Tensor, grid: Grid, scales: tf.Tensor, units: int) -> tf.Tensor:
    """Sums, channels of four gates last, in steps of 2^-12."""
    # The product of two scales is float32; a power of two more rounds nothing.
    real = float64(product(scales, grid.scale)) * GATE_STEPS
    return multiply_rounding_twice(total, tf.repeat(real, units))


def _next_cell(
    total: tf.Tensor, cell: tf.Tensor, bits: tf.Tensor, rules: _Rules
) -> tuple[tf.Tensor, tf.Tensor]:
    """The next cell state, and the output gate."""
    entry, forget, candidate, output = tf.split(total, 4, axis=-1)
    entry, forget, output = map(rules.sigmoid, (entry, forget, output))
    kept = rules.divide(forget * cell, 15)
    added = rules.divide(entry * rules.tanh(candidate, int64(3)), 15 + bits)
    return _int16(kept + added), output
