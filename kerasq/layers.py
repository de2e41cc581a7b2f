"""Keras layers that a quantized model needs and Keras does not have."""

import functools
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf


@keras.saving.register_keras_serializable("kerasq")
class Scale(keras.layers.Layer):
    """`x * kernel + bias`, both of shape `(channels,)`, along the last axis.

    What a BatchNormalization that stands alone computes in inference, and Rescaling or
    Normalization. On the device it is a DEPTHWISE_CONV_2D of one pixel: with a scale for each
    channel, its int8 weights are exact.

    Args:
        use_bias: whether there is a bias.
        constant: whether both are constants, which no setting of `trainable` lets train.
        constant_gain: whether the kernel alone is.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(
        self,
        use_bias: bool = True,
        constant: bool = False,
        constant_gain: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.use_bias = use_bias
        self.constant = constant
        self.constant_gain = constant_gain

    def build(self, input_shape: Any) -> None:
        """Creates the weights."""
        # By the names that layers with a kernel have in Keras, which rules and wrappers look for.
        shape, trains = input_shape[-1:], not self.constant
        self.input_spec = keras.layers.InputSpec(axes={-1: input_shape[-1]})
        gain_trains = trains and not self.constant_gain
        self.kernel = self.add_weight(shape, "ones", name="kernel", trainable=gain_trains)
        if self.use_bias:
            self.bias = self.add_weight(shape, "zeros", name="bias", trainable=trains)

    @property
    def gain_and_shift(self) -> tuple[Any, ...]:
        """The weights, the shift if there is one; their order in `weights` is who trains first."""
        return (self.kernel, self.bias) if self.use_bias else (self.kernel,)

    def assign(self, gain: Any, *shift: Any) -> None:
        """Sets them."""
        for variable, values in zip(self.gain_and_shift, (gain, *shift), strict=True):
            variable.assign(values)

    def call(self, x: Any) -> Any:
        """The scaled values."""
        y = x * self.kernel
        return y + self.bias if self.use_bias else y

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the input."""
        return input_shape

    def get_config(self) -> dict:
        """The constructor's arguments."""
        own = {"use_bias": self.use_bias, "constant": self.constant}
        own["constant_gain"] = self.constant_gain
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("kerasq")
class InputScale(Scale):
    """A `Scale` of an input, in float, in front of the grid: the device has it, or who feeds it.

    Features of an input that differ by orders of magnitude share one grid only behind it.
    """

    def call(self, x: Any) -> Any:
        """The scaled values, product and sum rounded to float32, as NumPy and a device have it."""
        # XLA would round once: float64 holds products of float32, and rounds their sums as such.
        x, kernel, bias = (keras.ops.cast(v, "float64") for v in (x, self.kernel, self.bias))
        product = keras.ops.cast(keras.ops.cast(x * kernel, "float32"), "float64")
        return keras.ops.cast(product + bias, "float32")


@keras.saving.register_keras_serializable("kerasq")
class InputCast(keras.layers.Layer):
    """Integers of an input, such as pixels, as float values, in front of the grid."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)

    def call(self, x: Any) -> Any:
        """The values."""
        return keras.ops.cast(x, "float32")


@keras.saving.register_keras_serializable("kerasq")
class Requantize(keras.layers.Layer):
    """The identity, whose values get codes of the user's scheme: QUANTIZE.

    It ends a unit whose parts have codes of 16 bits; nothing where the scheme has them as well.
    """

    def call(self, x: Any) -> Any:
        """The values."""
        return x


# What is computed of an input before it lies on a grid.
IN_FRONT = (InputCast, InputScale)


@keras.saving.register_keras_serializable("kerasq")
class FrameConv2D(keras.layers.Conv2D):
    """A Conv2D of frames that lie below each other in one tall image, as frames of their own.

    Args:
        *args: those of Conv2D.
        frames: how many there are of the output, how many rows are computed of each, and how many
            of these stay: those at the end read rows of the next frame.
        **kwargs: those of Conv2D.
    """

    def __init__(self, *args: Any, frames: Iterable[int] = (1, 1, 1), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.frames = [*frames]

    def call(self, x: Any) -> Any:
        """The frames, `(samples, frames, rows, columns, filters)`."""
        y = super().call(x)
        (count, rows, kept), (columns, filters) = self.frames, y.shape[2:]
        if kept < rows:
            y = keras.ops.reshape(y, (-1, count, rows, columns * filters))[:, :, :kept]
        return keras.ops.reshape(y, (-1, count, kept, columns, filters))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """`(samples, frames, rows, columns, filters)`."""
        samples, _, *others = super().compute_output_shape(input_shape)
        count, _, kept = self.frames
        return (samples, count, kept, *others)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "frames": self.frames}


@keras.saving.register_keras_serializable("kerasq")
class Constant(keras.layers.Layer):
    """Values that do not depend on the input, such as the embedding of positions.

    Args:
        shape: shape of the values, without the axis of the samples.
        constant: whether no setting of `trainable` lets them train.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, shape: Any, constant: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.shape = tuple(shape)
        self.constant = constant

    def build(self, input_shape: Any) -> None:
        """Creates the values."""
        del input_shape
        options = {"shape": self.shape, "trainable": not self.constant}
        self.value = self.add_weight(name="value", initializer="zeros", **options)

    def call(self, x: Any) -> Any:
        """The values, as one sample, which goes with any number of them."""
        del x
        return keras.ops.expand_dims(self.value, 0)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the values, of any number of samples: a sum has as many as what is added."""
        del input_shape
        return (None, *self.shape)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "shape": self.shape, "constant": self.constant}


@keras.saving.register_keras_serializable("kerasq")
class Function(keras.layers.Layer):
    """A function of each value alone, from `keras.activations` or `keras.ops`.

    On the device it is a lookup table: CAST, ADD and GATHER.

    Args:
        function: its name, such as "softplus" or "sin".
        arguments: its keyword arguments.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, function: str, arguments: dict | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function
        self.arguments = arguments or {}

    def call(self, x: Any) -> Any:
        """The function's values."""
        # In TensorFlow's graphs Keras's own takes its 2 for a float32, whatever the exponent is.
        if self.function == "exp2":
            return keras.ops.power(2.0, x)
        # Of those that both have, such as relu, only keras.activations's take all arguments.
        home = keras.activations if hasattr(keras.activations, self.function) else keras.ops
        return getattr(home, self.function)(x, **self.arguments)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the input."""
        return input_shape

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "function": self.function, "arguments": self.arguments}


@keras.saving.register_keras_serializable("kerasq")
class Matmul(keras.layers.Layer):
    """The product of two stacks of matrices, `(..., m, k)` and `(..., k, n)`.

    Args:
        transpose: whether the second is `(..., n, k)`.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, transpose: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.transpose = transpose

    def call(self, x: Any) -> Any:
        """The products, `(..., m, n)`."""
        a, b = x
        # TFLiteConverter makes it an option of BATCH_MATMUL, so that nothing moves on the device.
        if self.transpose:
            *head, rows, columns = range(len(b.shape))
            b = keras.ops.transpose(b, (*head, columns, rows))
        return keras.ops.matmul(a, b)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """`(..., m, n)`, of stacks that are broadcast.

        Raises:
            ValueError: for stacks of other numbers of axes, which would mix samples.
        """
        a, b = input_shape
        if len(a) != len(b):
            raise ValueError(
                "Both stacks of matrices must have as many axes, or those of other samples would "
                f"be multiplied. Received: shapes {a} and {b}. Reshape one of them."
            )
        b = (*b[:-2], b[-1], b[-2]) if self.transpose else b
        return keras.ops.matmul(keras.KerasTensor(a), keras.KerasTensor(b)).shape

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "transpose": self.transpose}


@keras.saving.register_keras_serializable("kerasq")
class InverseRoot(keras.layers.Layer):
    """`1 / sqrt(x)` of values that are not negative: RSQRT, or a lookup table.

    Its grid follows from that of its input: the least code but 0 gives the largest one, or where
    that is beyond `largest`, a power of two less.

    Args:
        largest: what no value exceeds.
        is_rough: whether its value cancels out in what is computed of it. No gradient goes through,
            and it is a quarter larger in float, for ranges behind it to hold what integers make of
            it: the code 1 stands for up to 1.5, whose inverse root is 1.22 times less.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, largest: float, is_rough: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.largest = largest
        self.is_rough = is_rough

    def call(self, x: Any) -> Any:
        """The inverse roots."""
        y = keras.ops.rsqrt(keras.ops.maximum(x, self.largest**-2))
        return keras.ops.stop_gradient(1.25 * y) if self.is_rough else y

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the input."""
        return input_shape

    def get_config(self) -> dict:
        """The constructor's arguments."""
        own = {"largest": self.largest, "is_rough": self.is_rough}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("kerasq")
class UnitMatmul(Matmul):
    """A `Matmul` of vectors that are about 1 long with themselves: squares of lengths."""


@keras.saving.register_keras_serializable("kerasq")
class UnitAdd(keras.layers.Add):
    """A sum that is about 1."""


@keras.saving.register_keras_serializable("kerasq")
class Einsum(keras.layers.Layer):
    """An Einstein sum of two tensors.

    Args:
        equation: such as "bqhd,bkhd->bhqk".
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, equation: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.equation = equation

    def call(self, x: Any) -> Any:
        """The sums."""
        return keras.ops.einsum(self.equation, *x)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "equation": self.equation}


@keras.saving.register_keras_serializable("kerasq")
class Divide(keras.layers.Layer):
    """The quotient of two tensors, `x[0] / x[1]`."""

    def call(self, x: Any) -> Any:
        """The quotients."""
        return x[0] / x[1]


@keras.saving.register_keras_serializable("kerasq")
class Compare(keras.layers.Layer):
    """Whether values are greater than, equal to, ... a number, or one for each of them.

    Of two tensors, which become their difference and 0, as well.

    Args:
        function: "greater", "greater_equal", "less", "less_equal", "equal" or "not_equal", of
            `keras.ops`.
        value: the number, or lists of them.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, function: str, value: float | list = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function
        self.value = value

    def call(self, x: Any) -> Any:
        """The answers, bool."""
        return self.answers(*(x if isinstance(x, (list, tuple)) else (x, self.value)))

    def answers(self, first: Any, second: Any) -> Any:
        """Those to any two operands."""
        return getattr(keras.ops, self.function)(first, second)

    def compute_output_spec(self, x: Any) -> Any:
        """Of the shape that the operands broadcast to."""
        return Compare.call(self, x)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "function": self.function, "value": self.value}


@keras.saving.register_keras_serializable("kerasq")
class Select(keras.layers.Layer):
    """Values of one tensor where a condition holds, of another elsewhere."""

    def call(self, x: Any) -> Any:
        """The values, of condition, first and second tensor."""
        condition, *values = x
        return keras.ops.where(keras.ops.cast(condition, "bool"), *values)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That to which the three broadcast."""
        condition, *values = map(keras.KerasTensor, input_shape)
        return keras.ops.where(condition, *values).shape


@keras.saving.register_keras_serializable("kerasq")
class Held(Select):
    """What a state becomes where a condition holds, elsewhere what it was, or 0 for none.

    It lies on the grid of what it becomes.
    """

    def call(self, x: Any) -> Any:
        """The values, of condition, next state and, unless it is zeros, the one before."""
        condition, new, *before = x
        return keras.ops.where(condition, new, *(before or [0.0]))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the next state."""
        return input_shape[1]


# What stands for minus infinity, as in Keras: a softmax makes 0 of it.
MASKED = -1e9


@keras.saving.register_keras_serializable("kerasq")
class Masked(keras.layers.Layer):
    """Scores where a mask holds, and `MASKED` elsewhere, in front of a softmax: SELECT_V2.

    In codes that is the lowest one, on a grid that reaches far enough below the scores' own.
    Behind a softmax, 0 elsewhere.

    Args:
        value: `MASKED` or 0.
        mask: a constant mask as nested lists of 0 and 1, which broadcasts to the scores, or None.
        causal: whether those above the diagonal of the last two axes are masked as well.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(
        self,
        value: float = MASKED,
        mask: list | None = None,
        causal: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.value = value
        self.mask = mask
        self.causal = causal

    def call(self, x: Any) -> Any:
        """The masked scores, of scores, or of a condition for each of them and scores."""
        *conditions, scores = x if isinstance(x, (list, tuple)) else [x]
        if self.mask is not None:
            conditions.append(np.array(self.mask, bool))
        if self.causal:
            conditions.append(np.tri(*scores.shape[-2:], dtype=bool))
        held = functools.reduce(keras.ops.logical_and, conditions)
        return keras.ops.where(held, scores, self.value)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the scores."""
        return input_shape[-1] if isinstance(input_shape[-1], (list, tuple)) else input_shape

    def get_config(self) -> dict:
        """The constructor's arguments."""
        own = {"value": self.value, "mask": self.mask, "causal": self.causal}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("kerasq")
class Gelu(keras.layers.Layer):
    """The Gaussian error linear unit (Hendrycks & Gimpel 2016, arXiv 1606.08415).

    Args:
        approximate: by tanh; else by the error function.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, approximate: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.approximate = approximate

    def call(self, x: Any) -> Any:
        """The activation."""
        return keras.ops.gelu(x, approximate=self.approximate)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the input."""
        return input_shape

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "approximate": self.approximate}


@keras.saving.register_keras_serializable("kerasq")
class AddLoss(keras.layers.Layer):
    """The identity, which adds losses when it is called: those of a layer of the user's.

    Args:
        model: computes the losses, without weights.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model

    def call(self, x: Any, *read: Any) -> Any:
        """`x`; the losses are of the other tensors."""
        for loss in keras.tree.flatten(self.model(list(read))):
            self.add_loss(loss)
        return x

    def compute_output_spec(self, x: Any, *read: Any) -> keras.KerasTensor:
        """Shape and type of `x`."""
        del read
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        model = keras.saving.serialize_keras_object(self.model)
        return {**super().get_config(), "model": model}

    @classmethod
    def from_config(cls, config: dict) -> "AddLoss":
        """The layer of a configuration."""
        model = keras.saving.deserialize_keras_object(config["model"])
        return cls(**config | {"model": model})


@keras.saving.register_keras_serializable("kerasq")
class ActivityRegularizer(keras.layers.Layer):
    """The identity; Keras adds what `activity_regularizer` makes of its values to the losses.

    Args:
        activity_regularizer: that of a layer of the user's, behind which this stands.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, activity_regularizer: Any, **kwargs: Any) -> None:
        super().__init__(activity_regularizer=activity_regularizer, **kwargs)

    def call(self, x: Any) -> Any:
        """`x`."""
        return x

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the input."""
        return input_shape

    def get_config(self) -> dict:
        """The constructor's arguments."""
        # Keras 3.10 leaves it out.
        regularizer = keras.regularizers.serialize(self.activity_regularizer)
        return {**super().get_config(), "activity_regularizer": regularizer}


class _Reduction(keras.layers.Layer):
    """A function of all values along some axes, such as their sum.

    Args:
        axis: the axes, counted from 0, the one of the samples, which is not among them.
        keepdims: whether they stay, with a size of 1.
        **kwargs: see `keras.layers.Layer`.
    """

    # The name of the function in `keras.ops`.
    function = ""

    def __init__(self, axis: Iterable[int], keepdims: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = [*axis]
        self.keepdims = keepdims

    def call(self, x: Any) -> Any:
        """The values of the function."""
        return getattr(keras.ops, self.function)(x, axis=self.axis, keepdims=self.keepdims)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of the input, without the axes or with sizes of 1."""
        sizes = [1 if i in self.axis else size for i, size in enumerate(input_shape)]
        if self.keepdims:
            return tuple(sizes)
        return tuple(size for i, size in enumerate(sizes) if i not in self.axis)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "axis": self.axis, "keepdims": self.keepdims}


@keras.saving.register_keras_serializable("kerasq")
class Sum(_Reduction):
    """The sum along axes."""

    function = "sum"


@keras.saving.register_keras_serializable("kerasq")
class Mean(_Reduction):
    """The average along axes."""

    function = "mean"


@keras.saving.register_keras_serializable("kerasq")
class GridMean(Mean):
    """The average along axes, rounded to the grid of what it is of: equal values are their own."""


@keras.saving.register_keras_serializable("kerasq")
class Max(_Reduction):
    """The largest value along axes."""

    function = "max"


@keras.saving.register_keras_serializable("kerasq")
class Min(_Reduction):
    """The least value along axes."""

    function = "min"


@keras.saving.register_keras_serializable("kerasq")
class Variance(_Reduction):
    """The average square of the distance from the average, along axes."""

    function = "var"


@keras.saving.register_keras_serializable("kerasq")
class Deviation(_Reduction):
    """The square root of the variance along axes."""

    function = "std"


@keras.saving.register_keras_serializable("kerasq")
class Norm(_Reduction):
    """The square root of the sum of squares along axes."""

    def call(self, x: Any) -> Any:
        """The lengths of vectors."""
        squares = keras.ops.sum(keras.ops.square(x), axis=self.axis, keepdims=self.keepdims)
        return keras.ops.sqrt(squares)


@keras.saving.register_keras_serializable("kerasq")
class Stack(keras.layers.Layer):
    """Tensors of one shape beside each other, along a new axis.

    Args:
        axis: the new axis, counted from 0 in the output; not that one, of the samples.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, axis: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.axis = axis

    def call(self, x: Any) -> Any:
        """The stack."""
        return keras.ops.stack(x, axis=self.axis)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """That of one input, with the new axis."""
        first = tuple(input_shape[0])
        return (*first[: self.axis], len(input_shape), *first[self.axis :])

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "axis": self.axis}


@keras.saving.register_keras_serializable("kerasq")
class Take(keras.layers.Layer):
    """The values at constant places along an axis.

    Args:
        indices: the places, from 0 on; nested lists give several axes.
        axis: the axis; not the first one, that of the samples.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, indices: Any, axis: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.indices = indices
        self.axis = axis

    def call(self, x: Any) -> Any:
        """The values."""
        return keras.ops.take(x, keras.ops.array(self.indices, "int32"), axis=self.axis)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "indices": self.indices, "axis": self.axis}


@keras.saving.register_keras_serializable("kerasq")
class Pad(keras.layers.Layer):
    """Zeros, or values mirrored, on both ends of axes.

    Args:
        pad_width: how many, before and behind, for each axis; none for the first one, that of the
            samples.
        mode: "constant" (zeros), "reflect" (the value at the end is the mirror) or "symmetric"
            (the mirror is behind it).
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, pad_width: Any, mode: str = "constant", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pad_width = [list(pair) for pair in pad_width]
        self.mode = mode

    def call(self, x: Any) -> Any:
        """The longer axes."""
        return keras.ops.pad(x, self.pad_width, mode=self.mode)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "pad_width": self.pad_width, "mode": self.mode}


@keras.saving.register_keras_serializable("kerasq")
class ArgMax(keras.layers.Layer):
    """The place of the largest value along an axis, of equal ones the first.

    Args:
        axis: the axis, not that of the samples.
        keepdims: whether it stays, with size 1.
        output_dtype: "int32" or "int64".
        **kwargs: see `keras.layers.Layer`.
    """

    # Of TensorFlow: Keras's own tells -0.0 from 0.0, which are one code, and does so by operators
    # that LiteRT does not have.
    function = staticmethod(tf.argmax)

    def __init__(
        self, axis: int = -1, keepdims: bool = False, output_dtype: str = "int32", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.axis = axis
        self.keepdims = keepdims
        self.output_dtype = output_dtype

    def call(self, x: Any) -> Any:
        """The places."""
        places = self.function(x, self.axis, output_type=self.output_dtype)
        return tf.expand_dims(places, self.axis) if self.keepdims else places

    def compute_output_spec(self, x: Any) -> Any:
        """Integers, without the axis."""
        shape, axis = list(x.shape), self.axis % len(x.shape)
        shape[axis : axis + 1] = [1] * self.keepdims
        return keras.KerasTensor(shape, self.output_dtype)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        own = {"axis": self.axis, "keepdims": self.keepdims, "output_dtype": self.output_dtype}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("kerasq")
class ArgMin(ArgMax):
    """The place of the smallest value along an axis: see `ArgMax`."""

    function = staticmethod(tf.argmin)


@keras.saving.register_keras_serializable("kerasq")
class SequenceLSTM(keras.layers.LSTM):
    """Keras's LSTM with tanh and sigmoid that returns all steps: one operator of LiteRT."""
