"""What all weight quantizers share: codes of a kernel, and how they train."""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kerasq import fake_quant, kernels
from kerasq.grid import Grid
from kerasq.quantizers.activations import NARROWEST


class WeightQuantizer(keras.layers.Layer):
    """Base of all weight quantizers: how a kernel lies on integer codes, and how it trains.

    `w_q = scale[c] * codes(w)`, symmetric (zero point 0) with one scale for each channel c, the
    last axis of the kernel (LiteRT 8-bit quantization specification, per-channel weights). Codes
    of fewer than 8 bits are int8 on the device, or packed INT4 where all of them fit 4 bits.

    `kerasq.quantize_model(weights=...)` takes an instance as a prototype: each kernel gets a
    quantizer of its own with the same configuration, and with `bits` and `range_gradient` from its
    scheme. The gradient of `w_q` is that of `smooth(w)`: unless a class says other, dL/dw = g, the
    incoming gradient, everywhere (straight-through estimator, Bengio et al. 2013).

    A class of your own implements `codes` and `scale`; where these need variables, `start` makes
    them with `parameter`. Arguments of its own go into `get_config`, and
    `keras.saving.register_keras_serializable` lets models that use it be loaded.

    Args:
        bits: width that the scheme asks for.
        range_gradient: how a range learns, where there is one: "lsq", "clip" or "none".
        **kwargs: see `keras.layers.Layer`.

    Example:
        >>> @keras.saving.register_keras_serializable("example")
        ... class Halves(kerasq.WeightQuantizer):
        ...     "Multiples of 1/2, whatever the weights are."
        ...
        ...     def scale(self, kernel):
        ...         return keras.ops.full(kernel.shape[-1:], 0.5)
        ...
        ...     def codes(self, kernel):
        ...         largest = 2 ** (self.bits - 1) - 1
        ...         return keras.ops.clip(keras.ops.round(kernel / 0.5), -largest, largest)
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="head")])
        >>> q = kerasq.quantize_model(model, "w4a8", weights=Halves())
    """

    # Where `quantize_model` uses a class; at other widths weights are uniform, or binary at 1 bit.
    # A class of your own may have fewer.
    widths: range = range(2, 9)

    def __init__(self, bits: int = 8, range_gradient: str = "lsq", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bits = bits
        self.range_gradient = range_gradient

    @property
    def code_bits(self) -> int:
        """Width of the codes, at most 8: `bits`, unless the values need more."""
        return self.bits

    @property
    def bias_limit(self) -> float:
        """What codes of biases stay below, where that is less than the target's own limit."""
        return math.inf

    def start(self, kernel: Callable[[], tf.Tensor]) -> None:
        """Creates the variables, with first values from `kernel()`.

        Args:
            kernel: returns the float kernel, `(..., channels)`, when a variable is initialized.
        """
        del kernel
        # Nobody calls this layer, and Keras loads no variables into one that is not built.
        self.built = True

    def parameter(
        self, name: str, shape: Any, *, value: Callable[[], Any], **options: Any
    ) -> keras.Variable:
        """A float32 variable with the first value `value()`; options as for `add_weight`."""
        return self.add_weight(
            name=name,
            shape=shape,
            # Keras says which shape and type it wants, which the value has anyway.
            initializer=lambda *_, **__: value(),
            # Replicas see other gradients: between them the value is their mean.
            aggregation="mean",
            # Under a policy of mixed precision, bfloat16 could not hold it exactly.
            autocast=False,
            **options,
        )

    def scale(self, kernel: tf.Tensor) -> tf.Tensor:
        """Step between two codes, `(channels,)`, float32."""
        raise NotImplementedError

    def codes(self, kernel: tf.Tensor) -> tf.Tensor:
        """The codes of a kernel, whole numbers in float32, same shape.

        Their magnitude is at most `2^(code_bits - 1) - 1`.
        """
        raise NotImplementedError

    def fake_quant(self, kernel: tf.Tensor, gain: Any = 1.0) -> tf.Tensor:
        """`gain * scale * codes`, same shape, with the gradient of `gain * smooth(kernel)`."""
        # No gradient comes back to codes and scale: they may take any means and signs.
        exact = self.codes(kernel) * self.scale(kernel)
        return gain * fake_quant.straight_through(self.smooth(kernel), exact)

    def smooth(self, kernel: tf.Tensor) -> tf.Tensor:
        """A function of the kernel whose gradient stands for that of the steps; here itself."""
        return kernel

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        own = {"bits": self.bits, "range_gradient": self.range_gradient}
        return {**super().get_config(), **own}

    def integer(
        self, kernel: tf.Tensor, gain: tf.Tensor, *, least: tf.Tensor
    ) -> tuple[tf.Tensor, Grid]:
        """Codes of `kernel * gain` (float32) and their grid: what the device gets.

        Args:
            kernel: the float kernel, `(..., channels)`.
            gain: a factor, or one a channel; negative ones turn the signs of codes.
            least: no scale is below it, `(channels,)`; codes are rounded again where one would be.
        """
        parts = self.parts(kernel)
        return self.fold(kernel, gain, least=least, parts=parts, bits=self.code_bits)

    def parts(self, kernel: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """The tensors that `fold` needs beside the kernel."""
        return self.codes(kernel), self.scale(kernel)

    @staticmethod
    def fold(
        kernel: tf.Tensor,
        gain: tf.Tensor,
        *,
        least: tf.Tensor,
        parts: tuple[tf.Tensor, ...],
        bits: int,
    ) -> tuple[tf.Tensor, Grid]:
        """`integer` of tensors alone, so that all layers share a trace: codes of `bits` bits."""
        del kernel
        codes, scale = parts
        own = scale * tf.abs(gain)
        # Nor may it be 0, as it would be where a BatchNormalization has switched a channel off.
        least = tf.maximum(least, NARROWEST / 127)
        grid = Grid(
            scale=tf.maximum(own, least),
            zero_point=tf.zeros_like(own),
            bits=bits,
            narrow=True,
            axis=-1,
        )
        # 1 in nearly all channels. In float64, whose quotients no graph optimizer rearranges.
        ratio = tf.cast(own, tf.float64) / tf.cast(grid.scale, tf.float64)
        codes = tf.cast(codes * tf.sign(gain), tf.float64)
        return kernels.clip(tf.round(codes * ratio), grid), grid


def inner_axes(kernel: tf.Tensor) -> list[int]:
    """All axes but that of the channels."""
    return list(range(kernel.shape.rank - 1))


def step_of(high: tf.Tensor, steps: int) -> tf.Tensor:
    """`high / steps`, the same eagerly and in a graph, where float32 is multiplied by 1 / steps."""
    return tf.cast(tf.cast(high, tf.float64) / steps, tf.float32)
