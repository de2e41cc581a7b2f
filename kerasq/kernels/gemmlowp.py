"""Exponentials and what follows from them in fixed-point numbers, as gemmlowp computes them.

A number with `n` integer bits is a code of `width` bits, 32 or 16, in steps of 2^(n + 1 - width);
here they are int64. Products are rounded half up, shifts to the right half away from zero; shifts
to the left end at the limits of the width.

Source: gemmlowp, fixedpoint/fixedpoint.h.
"""

import tensorflow as tf

from kerasq.kernels.fixed_point import (
    exponent_of,
    int64,
    power_of_two,
    round_half_away,
    shift_right,
    shift_right_half_up,
)
from kerasq.kernels.floats import float64

# exp(-2^k) for k from -2 on, in steps of 2^-31.
_EXPONENTIALS = {
    -2: 1672461947,
    -1: 1302514674,
    0: 790015084,
    1: 290630308,
    2: 39332535,
    3: 720401,
    4: 242,
}


def _constant(code: int, width: int) -> int:
    """A positive int32 code as one of `width` bits."""
    dropped = 32 - width
    return (code + 2**dropped // 2) >> dropped


def times(a: tf.Tensor, b: tf.Tensor | int, width: int = 32) -> tf.Tensor:
    """The product of two numbers, with as many integer bits as both have together."""
    return shift_right_half_up(a * b, int64(width - 1))


def shifted(a: tf.Tensor, bits: int, width: int = 32) -> tf.Tensor:
    """`a * 2^bits`, within the width of codes."""
    return round_half_away(a, -bits) if bits < 0 else _saturated(a * 2**bits, width)


def _saturated(a: tf.Tensor, width: int = 32) -> tf.Tensor:
    limit = 2 ** (width - 1)
    return tf.clip_by_value(a, int64(-limit), int64(limit - 1))


def leading_zeros(a: tf.Tensor) -> tf.Tensor:
    """Of positive int32 codes, the bits in front of the highest one."""
    return 31 - exponent_of(float64(a))


def exp_of_negative(a: tf.Tensor, integer_bits: int, width: int = 32) -> tf.Tensor:
    """exp(a) of numbers up to 0, without integer bits."""
    fraction_bits = width - 1 - integer_bits
    quarter = 2 ** (fraction_bits - 2)
    # What is left of multiples of 1/4, in [-1/4, 0).
    rest = tf.bitwise.bitwise_and(a, int64(quarter - 1)) - quarter
    found = _exp_within_a_quarter(shifted(rest, integer_bits, width), width)
    multiple = rest - a
    for exponent, factor in _EXPONENTIALS.items():
        if exponent < integer_bits:
            bit = shift_right(multiple, fraction_bits + exponent) % 2
            found = tf.where(bit == 1, times(found, _constant(factor, width), width), found)
    if integer_bits > 5:
        # Below -32.
        found = tf.where(a < -(2 ** (fraction_bits + 5)), int64(0), found)
    return tf.where(a == 0, int64(2 ** (width - 1) - 1), found)


def _exp_within_a_quarter(a: tf.Tensor, width: int) -> tf.Tensor:
    """exp(a) of numbers in [-1/4, 0): the Taylor series to the fourth power around -1/8."""
    at_centre, third = _constant(1895147668, width), _constant(715827883, width)
    x = a + 2 ** (width - 4)
    square = times(x, x, width)
    cube, fourth = times(square, x, width), times(square, square, width)
    rest = shifted(times(shifted(fourth, -2) + cube, third, width) + square, -1)
    return _saturated(at_centre + times(x + rest, at_centre, width), width)


def _newton(a: tf.Tensor, width: int = 32) -> tf.Tensor:
    """2 / (1 + a) of numbers in [0, 1), with 2 integer bits: three steps of Newton's method."""
    # Of positive numbers: half of the sum, rounded away from zero.
    half = (a + 2 ** (width - 1)) // 2
    # 48 / 17 - 32 / 17 * half
    x = _constant(1515870810, width) + times(half, -_constant(1010580540, width), width)
    for _ in range(3):
        rest = 2 ** (width - 3) - times(half, x, width)
        x += shifted(times(x, rest, width), 2, width)
    return x


def inverse_of_one_plus(a: tf.Tensor, width: int = 32) -> tf.Tensor:
    """1 / (1 + a) of numbers in [0, 1)."""
    return shifted(_newton(a, width), 1, width)


def logistic(a: tf.Tensor, integer_bits: int, width: int = 32) -> tf.Tensor:
    """1 / (1 + exp(-a)), without integer bits."""
    one = 2 ** (width - 1) - 1
    above = inverse_of_one_plus(exp_of_negative(-tf.abs(a), integer_bits, width), width)
    half = int64(2 ** (width - 2))
    return tf.where(a == 0, half, tf.where(a > 0, above, one - above))


def tanh(a: tf.Tensor, integer_bits: int, width: int = 32) -> tf.Tensor:
    """The hyperbolic tangent, without integer bits."""
    # 2 / (1 + exp(-2 |a|)) - 1: twice a number has one integer bit more, and the same code.
    inverse = _newton(exp_of_negative(-tf.abs(a), integer_bits + 1, width), width)
    return tf.sign(a) * shifted(inverse - 2 ** (width - 3), 2, width)


def log(a: tf.Tensor, integer_bits: int) -> tf.Tensor:
    """The logarithm of numbers from 1 on, with 5 integer bits.

    a = 2^k r: k log(2), and a rational function of r, which is the lesser of a and a / sqrt(2),
    each times the power of two that brings it below 1.

    Source: LiteRT, kernels/internal/common.h (`log_x_for_x_greater_than_or_equal_to_1`).
    """
    log_2, root, root_of_root = 1488522236, 1518500250, 1805811301
    quarter, unit = 2**23, 2**25  # With 6 integer bits, as the sum.
    zeros = leading_zeros(a)
    first = _saturated(times(a * power_of_two(zeros - 1), root) * 2)
    zeros_of_root = leading_zeros(times(a, root)) - 1
    second = _saturated(a * power_of_two(zeros_of_root))
    r = tf.minimum(first, second)
    power = tf.maximum(
        (integer_bits - zeros) * unit + quarter, (integer_bits - zeros_of_root) * unit - quarter
    )
    p = (r + root_of_root + 1) // 2
    q = (r - root_of_root) * 2
    square = times(q, q)
    numerator = times(q, r) + times(times(q, square), 117049297)
    denominator = times(p, 1057819769 + q + times(square, 127690142)) + times(q, 638450708)
    inverse = inverse_of_one_plus(denominator)
    return shifted(times(power, log_2) + times(shifted(numerator, -6), inverse), 1)
