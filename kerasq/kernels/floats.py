"""Floating-point steps as a device takes them, each rounded once.

TensorFlow's graph optimizer rearranges float32 products and quotients, and with that their last
bit, on which a code may hang. A product of two float32 numbers is exact in float64, and a quotient
is far enough from all ties of float32, so going through float64 and back rounds as float32 does.
"""

import tensorflow as tf


def float32(x: tf.Tensor) -> tf.Tensor:
    """`x` as float32."""
    return tf.cast(x, tf.float32)


def float64(x: tf.Tensor) -> tf.Tensor:
    """`x` as float64."""
    return tf.cast(x, tf.float64)


def round_away(x: tf.Tensor) -> tf.Tensor:
    """float64 to the nearest integers, ties away from zero."""
    return tf.sign(x) * tf.floor(tf.abs(x) + 0.5)


def product(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """`a * b` of float32 numbers, rounded to float32."""
    return float32(float64(a) * float64(b))


def quotient(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """`a / b` of float32 numbers, rounded to float32."""
    return float32(float64(a) / float64(b))


def plus(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """`a + b` of float32 numbers, rounded to float32."""
    return float32(float64(a) + float64(b))
