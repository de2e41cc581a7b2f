"""Multiplication of integers by a real number the way LiteRT's integer kernels do it.

The real multiplier is stored as `mantissa * 2^(exponent - 31)` with a mantissa of 31 bits. The
rules differ in how often they round, and where ties go. All arithmetic is in int64, so it is
exact; results are int64.

Source: LiteRT, kernels/internal/common.h (`MultiplyByQuantizedMultiplier`).
"""

import tensorflow as tf

from kerasq.kernels.floats import float64
from kerasq.support.shared import shared


def int64(x: tf.Tensor) -> tf.Tensor:
    """`x` as int64."""
    return tf.cast(x, tf.int64)


def power_of_two(exponent: tf.Tensor) -> tf.Tensor:
    """2^exponent as int64."""
    return tf.bitwise.left_shift(tf.ones_like(exponent), exponent)


def shift_right(x: tf.Tensor, bits: tf.Tensor | int) -> tf.Tensor:
    """`floor(x / 2^bits)`."""
    # The operator takes two tensors of one shape.
    return tf.bitwise.right_shift(x, tf.zeros_like(x) + int64(bits))


def shift_right_half_up(x: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """`x / 2^bits` rounded to the nearest integer, ties up."""
    # 2^bits / 2 rather than 2^(bits - 1), which 0 bits do not have.
    half = shift_right(power_of_two(bits), 1)
    return shift_right(x + half, bits)


def round_half_away(x: tf.Tensor, bits: tf.Tensor | int) -> tf.Tensor:
    """`x / 2^bits` rounded to the nearest integer, ties away from zero."""
    return tf.sign(x) * shift_right_half_up(tf.abs(x), int64(bits))


def exponent_of(x: tf.Tensor) -> tf.Tensor:
    """The e of positive float64 numbers that are m * 2^e, 1 <= m < 2; as int64."""
    # Read off the bits of the float: a logarithm may round across a power of two.
    biased = tf.bitwise.right_shift(tf.bitcast(x, tf.int64), tf.constant(52, tf.int64))
    return biased - 1023


def decompose(real: tf.Tensor, bits: int = 31) -> tuple[tf.Tensor, tf.Tensor]:
    """Mantissa in [2^(bits - 1), 2^bits) and exponent of a positive float64 multiplier.

    `real = mantissa * 2^(exponent - bits)`, the mantissa rounded half up.

    Source: LiteRT, kernels/internal/quantization_util.cc (`QuantizeMultiplier`), of 31 bits.
    """
    exponent = exponent_of(real) + 1
    scaled = real * 2.0 ** float64(bits - exponent)
    mantissa = int64(tf.floor(scaled + 0.5))
    # 1 where rounding went up to 2^bits, which has a bit too many: LiteRT halves it, too.
    carry = shift_right(mantissa, bits)
    mantissa, exponent = shift_right(mantissa, carry), exponent + carry
    # Below 2^-32 all bits would be shifted out, and shifts have a limit: LiteRT multiplies by 0.
    is_none = exponent < -31
    return tf.where(is_none, int64(0), mantissa), tf.where(is_none, int64(0), exponent)


def divide(mantissa: tf.Tensor, exponent: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """A multiplier divided by a count, as MEAN does it: the mantissa is rounded down."""
    # The mantissa first goes up by the bits of `count`, but by no more than 32, for which int64 has
    # room, nor by so many that the right shift exceeds 31.
    bits = min(count.bit_length() - 1, 32)
    bits = tf.minimum(exponent + 31, bits)
    return mantissa * power_of_two(bits) // count, exponent - bits


@shared
def multiply_rounding_twice(
    x: tf.Tensor, real: tf.Tensor, ties: str = "away", count: int = 1
) -> tf.Tensor:
    """The rule of gemmlowp: a doubling high multiplication, ties up, then a rounding right shift.

    Args:
        x: int32 values, in any type.
        real: positive multiplier, float64.
        ties: where the ties of the shift go: "away" from zero (the portable kernels) or "up"
            (the vectorized ones); "down" for a shift that does not round.
        count: what the multiplier is divided by.
    """
    return _by_mantissa(x, *divide(*decompose(real), count), ties)


@shared
def multiply_wrapping(x: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
    """`multiply_rounding_twice` of numbers that its shift up may take beyond int32.

    It wraps around there, which is 2^16 times beyond the range of an output of 16 bits.
    """
    mantissa, exponent = decompose(real)
    shifted = int64(x) * power_of_two(tf.maximum(exponent, 0))
    wrapped = int64(tf.cast(shifted, tf.int32))
    return _by_mantissa(wrapped, mantissa, tf.minimum(exponent, 0), "away")


@shared
def multiply_mantissa(x: tf.Tensor, mantissa: tf.Tensor, exponent: tf.Tensor) -> tf.Tensor:
    """`multiply_rounding_twice` by `mantissa * 2^(exponent - 31)`, a mantissa of up to 31 bits."""
    return _by_mantissa(x, mantissa, exponent, "away")


def _by_mantissa(x: tf.Tensor, mantissa: tf.Tensor, exponent: tf.Tensor, ties: str) -> tf.Tensor:
    # Multipliers above 1 shift the values up before, those below 1 the result down after.
    left, right = tf.maximum(exponent, 0), tf.maximum(-exponent, 0)
    doubled = int64(x) * power_of_two(left) * mantissa
    # The 31 bits that the high half of a doubled 64-bit product leaves out; ties up, as the nudge
    # of 2^30 makes them.
    high = shift_right_half_up(doubled, int64(31))
    shift = {"up": shift_right_half_up, "down": shift_right, "away": round_half_away}[ties]
    return shift(high, right)


@shared
def multiply_rounding_once(
    x: tf.Tensor, real: tf.Tensor, bits: int = 31, ties: str = "up"
) -> tf.Tensor:
    """`x * mantissa * 2^(exponent - bits)`, rounded; |x| below 2^47 and real below 2^16.

    Args:
        x: integers, of any type.
        real: positive multiplier, float64.
        bits: width of the mantissa.
        ties: where they go: "up", `floor(product + 1/2)`, or to the "even" number.
    """
    mantissa, exponent = decompose(real, bits)
    mantissa *= 2 ** (31 - bits)
    # The product has up to 78 bits: x is cut in two at bit 15, below which nothing can carry.
    high = shift_right(int64(x), 15)
    low = tf.bitwise.bitwise_and(int64(x), int64(2**15 - 1))
    half = power_of_two(30 - exponent)
    lower = low * mantissa + half
    upper = high * mantissa + shift_right(lower, 15)
    found = shift_right(upper, 16 - exponent)
    if ties == "up":
        return found
    # What is shifted out of a tie and a half is 0.
    is_tie = (lower % 2**15 == 0) & (upper % power_of_two(16 - exponent) == 0)
    return found - tf.where(is_tie, found % 2, int64(0))


@shared
def multiply_15_bits(x: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
    """The rule for int64 accumulators: the mantissa is first rounded to 15 bits."""
    mantissa, exponent = decompose(real)
    short = shift_right_half_up(mantissa, int64(16))
    # 48-bit sums times 15 bits fit int64. Rounding may not reach 2^15, which is not 15 bits.
    short = tf.minimum(short, 2**15 - 1)
    return shift_right_half_up(int64(x) * short, 15 - exponent)


def inverse_root(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mantissa and exponent of `1 / sqrt(x)` for integers: five steps of Newton's method.

    Source: LiteRT, kernels/internal/common.h (`GetInvSqrtQuantizedMultiplierExp`).
    """
    is_small, x = x <= 1, tf.maximum(x, 2)
    # x times a power of 4 that gives it 28 or 29 bits.
    pairs = (28 - exponent_of(float64(x))) // 2
    scaled = shift_right(x * power_of_two(2 * tf.maximum(pairs, 0)), 2 * tf.maximum(-pairs, 0))
    # Of 31 bits, 28 are fractions.
    whole = shift_right(scaled, 1)
    half, y = shift_right_half_up(whole, int64(1)), tf.ones_like(x) * 2**28
    for _ in range(5):
        cube = _high(_high(y, y), y) * 2**6
        y = (_high(int64(3 * 2**27), y) - _high(half, cube)) * 2**3
    y, exponent = _high(y, int64(round(2**30.5))), pairs - 11
    y *= power_of_two(tf.maximum(exponent, 0))
    full = int64(2**31 - 1)
    return tf.where(is_small, full, y), tf.where(is_small, int64(0), tf.minimum(exponent, 0))


def _high(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """`a * b / 2^31` of positive numbers, rounded half up."""
    return shift_right_half_up(a * b, int64(31))
