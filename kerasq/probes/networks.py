"""The networks that probes are exports of: one operator each, on inputs of other ranges."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

L, K = keras.layers, keras.ops

SHAPE = (6, 6, 8)
# Standard deviation and mean of each input.
RANGES = ((0.3, 0.0), (1.0, 0.4), (2.3, -1.1), (6.1, 5.0))

Branch = Callable[[Any, Any], Any]


def _random(seed: int) -> dict[str, Any]:
    """Weights that are the same wherever probes are made."""
    normal = keras.initializers.RandomNormal
    return {"kernel_initializer": normal(0, 0.3, seed), "bias_initializer": normal(0, 0.5, seed)}


def _rows(x: Any) -> Any:
    return K.reshape(x, (-1, 36, 8))


def _both(layer: Callable[[], keras.layers.Layer]) -> Branch:
    """A layer on all channels, and on an odd number: kernels take them by twos and eights."""
    return lambda x, _: [layer()(x), layer()(x[..., :5])]


def _depthwise() -> keras.layers.Layer:
    own = _random(2)
    own["depthwise_initializer"] = own.pop("kernel_initializer")
    return L.DepthwiseConv2D(3, depth_multiplier=2, **own)


def _lstm() -> keras.layers.Layer:
    recurrent = keras.initializers.RandomNormal(0, 0.3, 6)
    own = {"recurrent_initializer": recurrent, "unit_forget_bias": False}
    return L.LSTM(12, return_sequences=True, **own, **_random(5))


# Operators with weights, whose width counts as well.
WEIGHTED: dict[str, Branch] = {
    "CONV_2D": _both(lambda: L.Conv2D(12, 3, padding="same", **_random(1))),
    "DEPTHWISE_CONV_2D": _both(_depthwise),
    "FULLY_CONNECTED": _both(lambda: L.Dense(12, **_random(4))),
    "TRANSPOSE_CONV": _both(
        lambda: L.Conv2DTranspose(5, 3, strides=2, padding="same", **_random(3))
    ),
}

# By operator, what Keras has for it, of an input `x`, or of two that lie on different grids.
BRANCHES: dict[str, Branch] = {
    "ADD": K.add,
    "ARG_MAX": lambda x, _: K.argmax(x, -1),
    "ARG_MIN": lambda x, _: K.argmin(x, -1),
    "AVERAGE_POOL_2D": lambda x, _: L.AveragePooling2D(3, strides=2, padding="same")(x),
    "BATCH_MATMUL": lambda x, y: K.matmul(_rows(x), K.transpose(_rows(y), (0, 2, 1))),
    "CONCATENATION": lambda x, _: K.concatenate([x, x], -1),
    # Whose file has floats at both ends; see `FLOAT_ENDS`.
    "DEQUANTIZE": lambda x, _: K.flip(x, 2),
    "ELU": lambda x, _: L.ELU()(x),
    "EXP": lambda x, _: K.exp(x),
    "GATHER": lambda x, _: L.Activation("softplus")(x),
    "GELU": lambda x, _: L.Activation("gelu")(x),
    "L2_NORMALIZATION": lambda x, _: L.UnitNormalization()(x),
    "LEAKY_RELU": lambda x, _: L.LeakyReLU(0.3)(x),
    "LOGISTIC": lambda x, _: L.Activation("sigmoid")(x),
    "LOG_SOFTMAX": lambda x, _: L.Activation("log_softmax")(x),
    "MAXIMUM": lambda x, _: K.maximum(x, K.flip(x, 1)),
    "MAX_POOL_2D": lambda x, _: L.MaxPooling2D(2)(x),
    "MEAN": lambda x, _: L.GlobalAveragePooling2D()(x),
    "MINIMUM": lambda x, _: K.minimum(x, K.flip(x, 1)),
    "MIRROR_PAD": lambda x, _: K.pad(x, ((0, 0), (1, 2), (1, 1), (0, 0)), "reflect"),
    # All products of the channels: one value in 30,000 tells how it is rounded on Arm.
    "MUL": lambda x, y: K.multiply(K.expand_dims(x, -1), K.expand_dims(y, -2)),
    "PACK": lambda x, _: K.stack([x, x], 1),
    "PAD": lambda x, _: L.ZeroPadding2D(2)(x),
    # Of an input that lies on another grid.
    "QUANTIZE": lambda x, y: K.concatenate([x, y], -1),
    "REDUCE_MAX": lambda x, _: K.max(x, 3),
    "REDUCE_MIN": lambda x, _: K.min(x, 3),
    "RELU": lambda x, _: L.ReLU()(x),
    "RESHAPE": lambda x, _: L.Flatten()(x),
    "RESIZE_BILINEAR": lambda x, _: L.UpSampling2D(2, interpolation="bilinear")(x),
    "RESIZE_NEAREST_NEIGHBOR": lambda x, _: L.UpSampling2D(2)(x),
    "REVERSE_V2": lambda x, _: K.flip(x, 1),
    "TOPK_V2": lambda x, _: K.top_k(x, 2)[0],
    # As a part of it, on int16 alone.
    "RSQRT": lambda x, _: L.RMSNormalization()(x),
    "SELECT_V2": lambda x, y: K.where(x > y, x, y),
    "SOFTMAX": lambda x, _: L.Softmax()(x),
    "SPLIT": lambda x, _: K.split(x, 2, -1)[1],
    "SPLIT_V": lambda x, _: K.split(x, [3, 5], -1)[1],
    "STRIDED_SLICE": lambda x, _: x[:, 1:5, ::2],
    "SUB": K.subtract,
    "SUM": lambda x, _: K.sum(x, (1, 2)),
    "TANH": lambda x, _: L.Activation("tanh")(x),
    "TILE": lambda x, _: K.tile(x, (1, 2, 1, 1)),
    "TRANSPOSE": lambda x, _: L.Permute((2, 3, 1))(x),
    # Few steps: the simulation takes as long for each as for an operator.
    "UNIDIRECTIONAL_SEQUENCE_LSTM": lambda x, _: _lstm()(_rows(x)[:, :4]),
    "UNPACK": lambda x, _: K.unstack(x, axis=1)[2],
    "EQUAL": lambda x, _: K.where(K.equal(x, 0.0), 1.0, x),
    "GREATER": lambda x, _: K.where(x > 0.25, x, -x),
    "GREATER_EQUAL": lambda x, _: K.where(x >= 0.25, x, -x),
    "LESS": lambda x, _: K.where(x < 0.25, x, -x),
    "LESS_EQUAL": lambda x, _: K.where(x <= 0.25, x, -x),
    "NOT_EQUAL": lambda x, _: K.where(K.not_equal(x, 0.0), x, 1.0),
}

if hasattr(K, "depth_to_space"):  # Keras 3.10 has neither, and no slice to the end.
    BRANCHES["SLICE"] = lambda x, _: K.slice(x, (0, 1, 2, 0), (-1, 3, 4, 8))
    BRANCHES["DEPTH_TO_SPACE"] = lambda x, _: K.depth_to_space(x, 2)
    BRANCHES["SPACE_TO_DEPTH"] = lambda x, _: K.space_to_depth(x, 3)

FLOAT_ENDS = ("DEQUANTIZE",)


def network(branch: Branch, count: int) -> keras.Model:
    """So many inputs, and the operator on each of them (and the one behind it)."""
    inputs = [keras.Input(SHAPE, name=f"x{i}") for i in range(count)]
    seconds = [*inputs[1:], inputs[0]]
    found = [branch(x, y) for x, y in zip(inputs, seconds, strict=True)]
    return keras.Model(inputs, keras.tree.flatten(found))


def samples(count: int, inputs: int) -> Iterator[np.ndarray]:
    """Real values for each input: so many samples."""
    rng = np.random.default_rng(0)
    for deviation, mean in RANGES[:inputs]:
        yield rng.normal(mean, deviation, (count, *SHAPE)).astype("float32")
