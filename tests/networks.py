"""Small seeded networks that the tests share. Each call builds a new one."""

import random

import keras
import numpy as np

import kerasq

L = keras.layers


def set_seed(seed: int) -> None:
    """Sets what weights are drawn from, and dropout.

    `keras.utils.set_random_seed` sets TensorFlow's seed too, which has TensorFlow forget every
    kernel and function that was ready to run: up to a fifth of the time of tests.
    """
    random.seed(seed)


def shake_norms(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives BatchNormalization statistics that folding must get right.

    A third of the gammas is negative and the variances span two orders of magnitude.
    """
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            n = layer.moving_mean.shape[0]
            sign = np.where(np.arange(n) % 3 == 1, -1.0, 1.0)
            if layer.gamma is not None:
                layer.gamma.assign(sign * rng.uniform(0.5, 1.5, n))
            if layer.beta is not None:
                layer.beta.assign(rng.normal(0.0, 0.5, n))
            layer.moving_mean.assign(rng.normal(0.0, 0.2, n))
            layer.moving_variance.assign(10.0 ** rng.uniform(-1.0, 1.0, n))
    return model


def residual(seed: int = 0) -> keras.Model:
    """CNN with residual add, concatenation and pooling on 12 x 12 x 3 images."""
    set_seed(seed)
    image = keras.Input((12, 12, 3), name="image")
    x = L.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="conv")(image)
    x = L.BatchNormalization(name="conv_norm")(x)
    x = L.ReLU(name="conv_relu")(x)
    y = L.Conv2D(8, 3, padding="same", name="branch")(x)
    y = L.BatchNormalization(name="branch_norm")(y)
    z = L.Add(name="add")([x, y])
    z = L.ReLU(name="add_relu")(z)
    w = L.Concatenate(name="cat")([z, y])
    w = L.MaxPooling2D(2, name="pool")(w)
    w = L.ZeroPadding2D(1, name="pad")(w)
    w = L.AveragePooling2D(2, strides=1, name="average")(w)
    w = L.GlobalAveragePooling2D(name="gap")(w)
    w = L.Dropout(0.2, name="drop")(w)
    probs = L.Dense(10, activation="softmax", name="probs")(w)
    return shake_norms(keras.Model(image, probs, name="residual"), seed)


def mobile(seed: int = 0) -> keras.Model:
    """MobileNetV2-style: an inverted residual, depthwise, ReLU6; all gammas signed."""
    set_seed(seed)
    image = keras.Input((12, 12, 3), name="image")

    def norm(x: keras.KerasTensor, name: str, relu: bool = True) -> keras.KerasTensor:
        x = L.BatchNormalization(name=f"{name}_norm")(x)
        return L.ReLU(6.0, name=f"{name}_relu")(x) if relu else x

    x = norm(L.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(image), "stem")
    y = norm(L.Conv2D(16, 1, use_bias=False, name="expand")(x), "expand")
    y = L.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(y)
    y = norm(y, "depthwise")
    y = norm(L.Conv2D(8, 1, use_bias=False, name="project")(y), "project", relu=False)
    x = L.Add(name="sum")([x, y])
    x = L.GlobalAveragePooling2D(name="gap")(x)
    logits = L.Dense(5, name="logits")(x)
    return shake_norms(keras.Model(image, logits, name="mobile"), seed)


def mlp(seed: int = 0) -> keras.Model:
    """Three dense layers on 6 features."""
    set_seed(seed)
    features = keras.Input((6,), name="features")
    x = L.Dense(12, activation="relu", name="hidden")(features)
    x = L.Dense(8, activation="tanh", name="squash")(x)
    x = L.Dense(3, name="head")(x)
    return keras.Model(features, x, name="mlp")


def two_by_two(seed: int = 0) -> keras.Model:
    """Two inputs, two outputs."""
    set_seed(seed)
    left, right = keras.Input((4,), name="left"), keras.Input((3,), name="right")
    x = L.Dense(6, activation="relu", name="left_hidden")(left)
    y = L.Dense(6, activation="relu", name="right_hidden")(right)
    total = L.Add(name="total")([x, y])
    score = L.Dense(1, activation="sigmoid", name="score")(total)
    label = L.Dense(3, activation="softmax", name="label")(L.Concatenate(name="both")([x, y]))
    return keras.Model([left, right], [score, label], name="two_by_two")


def sequential(seed: int = 0) -> keras.Model:
    """A Sequential CNN."""
    set_seed(seed)
    return shake_norms(
        keras.Sequential(
            [
                keras.Input((8, 8, 1), name="image"),
                L.Conv2D(4, 3, name="conv"),
                L.BatchNormalization(name="norm"),
                L.Activation("relu", name="relu"),
                L.Flatten(name="flat"),
                L.Dense(3, name="logits"),
            ],
            name="sequential",
        ),
        seed,
    )


def convolutions(seed: int = 0) -> keras.Model:
    """Only what the converter's own lowering accepts: convolutions, depthwise, add, pooling."""
    set_seed(seed)
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(8, 3, padding="same", name="first")(image)
    x = L.ReLU(name="first_relu")(x)
    y = L.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = L.BatchNormalization(name="depthwise_norm")(y)
    y = L.ReLU(6.0, name="depthwise_relu")(y)
    z = L.Add(name="sum")([x, y])
    z = L.MaxPooling2D(2, name="pool")(z)
    z = L.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="last")(z)
    return shake_norms(keras.Model(image, z, name="convolutions"), seed)


def samples(model: keras.Model, count: int = 16, seed: int = 0, scale: float = 2.0) -> list:
    """Normal random arrays for `model`, one an input."""
    rng = np.random.default_rng(seed)
    return [rng.normal(0.0, scale, (count, *x.shape[1:])).astype(np.float32) for x in model.inputs]


def data(model: keras.Model, count: int = 16, seed: int = 0, scale: float = 2.0) -> object:
    """As `samples`, but the array itself where there is one input."""
    arrays = samples(model, count, seed, scale)
    return arrays if len(arrays) > 1 else arrays[0]


def quantized(model: keras.Model, x: object = None, **options: object) -> keras.Model:
    """`model` quantized and calibrated on the full range of `x` (by default, of `data`)."""
    q = kerasq.quantize_model(model, **options)
    kerasq.calibrate(q, data(model) if x is None else x, method="minmax")
    return q


def images(model: keras.Model, count: int = 64, seed: int = 0) -> np.ndarray:
    """Uniform random images of different brightness, for a model of one input.

    Of one brightness, averages of all samples would be rounded the same way, up or down by luck.
    """
    rng = np.random.default_rng(seed)
    height, width, channels = model.input_shape[1:]
    pixels = rng.uniform(0, 1, (count, height, width, channels))
    return (pixels * rng.uniform(0, 1, (count, 1, 1, channels))).astype(np.float32)


def run(model: keras.Model, x: object) -> object:
    """What a model predicts, as arrays, without a trace, which would take ten times as long.

    Graphs of every kernel are those of `predict` in tests/test_registry.py, tests/test_graphs.py,
    tests/export/test_mixed.py and tests/targets/, which XLA compiles where a model was compiled.
    """
    return keras.tree.map_structure(np.asarray, model(x, training=False))


def sqnr(model: keras.Model, q: keras.Model, x: np.ndarray) -> float:
    """The power of a float model's output over that of the error of a quantized one, in dB."""
    y, z = (run(found, x).astype(np.float64) for found in (model, q))
    return float(10 * np.log10(np.square(y).sum() / np.square(y - z).sum()))
