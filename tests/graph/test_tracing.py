"""Functions of TensorFlow in layers, as the operations of Keras that compute the same."""

import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq import graph as graphs
from tests import networks

L, ops = keras.layers, keras.ops
MATRIX = np.random.default_rng(1).normal(size=(4, 3)).astype("f")
KERNEL = np.random.default_rng(2).normal(size=(3, 3, 4, 2)).astype("f")
TOKEN = np.random.default_rng(3).normal(size=(1, 1, 8, 4)).astype("f")
COLUMN = np.arange(8, dtype="f").reshape(8, 1)


def read(layer):
    """The graph of a model of one layer, which is opened; it must compute the same."""
    image = keras.Input((8, 8, 4))
    model = keras.Model(image, layer(image))
    graph = graphs.read(model, lambda x: type(x) not in (L.Lambda, Mixed))
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 4)).astype("f")
    want, got = networks.run(model, x), networks.run(graph.model, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    return graph


def kinds(graph):
    return [type(node.layer).__name__ for node in graph.nodes]


def by_rows(x):
    return x + tf.constant(COLUMN)


FUNCTIONS = {
    # Of each value alone.
    "relu6": (tf.nn.relu6, "Relu6"),
    "leaky_relu": (functools.partial(tf.nn.leaky_relu, alpha=0.3), "LeakyRelu"),
    "gelu": (tf.nn.gelu, "Gelu"),
    "gelu by tanh": (lambda x: tf.nn.gelu(x, approximate=True), "Gelu"),
    "silu": (tf.nn.swish, "Silu"),
    "clip": (lambda x: tf.clip_by_value(x, 0.0, 1.0), "Clip"),
    "mish": (lambda x: x * tf.tanh(tf.math.softplus(x)), "Softplus Tanh Multiply"),
    "constant first": (lambda x: tf.constant(2.0) * tf.nn.elu(x), "Elu Multiply"),
    "log1p": (lambda x: tf.math.log1p(tf.abs(x)), "Absolute Log1p"),
    "where": (lambda x: tf.where(x > 0, x, 0.1 * x), "Greater Multiply Where"),
    "a function of Keras, too": (lambda x: tf.nn.relu(ops.gelu(x)), "Gelu Relu"),
    "a tf.function": (tf.function(lambda x: tf.nn.relu(x) + x), "Relu Add"),
    # Over axes.
    "softmax": (lambda x: tf.nn.softmax(x, axis=1), "Transpose Softmax Transpose"),
    "mean": (lambda x: tf.reduce_mean(x, [1, 2], keepdims=True), "Mean"),
    "moments": (
        lambda x: tf.nn.moments(x, [1, 2])[1],
        "Mean StopGradient Subtract Square Mean Squeeze",
    ),
    "argmax": (lambda x: tf.argmax(x, -1), "Argmax"),
    # What moves values.
    "concat": (lambda x: tf.concat([x, tf.nn.relu(x)], -1), "Relu Concatenate"),
    "stack": (lambda x: tf.stack(tf.unstack(x, axis=-1)[:2], 1), "Unstack Stack"),
    "split": (lambda x: tf.split(x, [1, 3], -1)[1], "Split"),
    "slices": (lambda x: tf.nn.relu(x)[:, 1:5, ::2, None, ..., -1], "Relu GetItem"),
    "slices back": (
        lambda x: tf.slice(x, [0, 1, 2, 0], [-1, 3, -1, 4])[:, ::-1],
        "GetItem GetItem",
    ),
    "gather": (lambda x: tf.gather(x, [2, 0], axis=-1), "Take"),
    "reshape": (lambda x: tf.reshape(x, [tf.shape(x)[0], -1, tf.shape(x)[2] * 2]), "Reshape"),
    "reshape by the shape of Keras": (
        lambda x: ops.reshape(x, (ops.shape(x)[0], -1, ops.shape(x)[3])),
        "Reshape",
    ),
    "reshape by a list": (lambda x: tf.reshape(x, [-1, *x.shape.as_list()[1:3], 2, 2]), "Reshape"),
    "as many samples": (lambda x: tf.broadcast_to(x[:, :1], tf.shape(x)), "GetItem Tile"),
    "one for each sample": (
        lambda x: tf.concat([tf.repeat(TOKEN, tf.shape(x)[0], axis=0), x], 1),
        "Reshape GetItem ZerosLike Reshape Add Concatenate",
    ),
    "more of them than values": (
        lambda x: ops.add(ops.ones((ops.shape(x)[0], 9, 9, 4)), 1.0),
        "Reshape GetItem ZerosLike Tile GetItem Reshape Add Add",
    ),
    "flip": (tf.image.flip_left_right, "Flip"),
    "roll and tile": (lambda x: tf.tile(tf.roll(x, 1, 2), [1, 2, 1, 1]), "Roll Tile"),
    "pad": (lambda x: tf.pad(x, [[0, 0], [1, 2], [1, 1], [0, 0]]), "ZeroPadding2D"),
    "mirror": (lambda x: tf.pad(x, [[0, 0], [1, 2], [1, 1], [0, 0]], "REFLECT"), "Pad"),
    # Of images and matrices.
    "bilinear": (lambda x: tf.image.resize(x, tf.shape(x)[1:3] * 2), "Resizing"),
    "nearest": (lambda x: tf.image.resize(x, (4, 16), "nearest"), "Resizing"),
    "depth_to_space": (lambda x: tf.nn.depth_to_space(x, 2), "Reshape Transpose Reshape"),
    "space_to_depth": (lambda x: tf.nn.space_to_depth(x, 2), "Reshape Transpose Reshape"),
    "pooling": (
        lambda x: tf.nn.avg_pool2d(tf.nn.max_pool2d(x, 2, 2, "SAME"), 3, 1, "VALID"),
        "MaxPooling2D AveragePooling2D",
    ),
    "conv": (lambda x: tf.nn.conv2d(x, KERNEL, 2, "SAME"), "Conv"),
    "depthwise": (lambda x: tf.nn.depthwise_conv2d(x, KERNEL, (1,) * 4, "VALID"), "DepthwiseConv"),
    "matmul": (lambda x: x @ tf.constant(MATRIX), "Matmul"),
    "transposed": (lambda x: tf.matmul(x, x, transpose_b=True), "Swapaxes Matmul"),
    "tensordot": (lambda x: tf.tensordot(x, MATRIX, 1), "Matmul"),
    "einsum": (lambda x: tf.einsum("bhwc,cd->bhwd", x, MATRIX), "Einsum"),
    # Keras would add it along another axis.
    "rows": (lambda x: tf.nn.relu(by_rows(tf.transpose(x, [0, 3, 1, 2]))), "Transpose Add Relu"),
    "constants alone": (
        lambda x: x / tf.sqrt(tf.reduce_prod(tf.cast(tf.shape(x)[1:3], tf.float32))),
        "Divide",
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    function, expected = FUNCTIONS[name]
    assert kinds(read(L.Lambda(function))) == expected.split()


@tf.custom_gradient
def straight_through(x):
    return tf.round(x), lambda upstream: upstream


REFUSED = {
    "BesselI0 .* has no equal in Keras": tf.math.bessel_i0,
    "StatelessIf .* has no equal": lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: -x),
    "has a gradient of its own": straight_through,
    "computes with the number of samples": lambda x: x * tf.cast(tf.shape(x)[0], tf.float32),
    r"batch_dims=1, not 0, has no": lambda x: tf.gather(x, tf.argmax(x, -1), batch_dims=1),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_equal_stays_one_layer(reason):
    (node,) = read(L.Lambda(REFUSED[reason], output_shape=(8, 8, 4))).nodes
    assert isinstance(node.layer, L.Lambda)
    assert re.search(reason, node.source.refusal)


class Mixed(L.Layer):
    """Layers, variables of its own and functions of TensorFlow."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.norm = L.Conv2D(4, 3, padding="same"), L.BatchNormalization()
        self.drop = L.Dropout(0.5)

    def build(self, shape):
        self.conv.build(shape)
        self.norm.build(shape)
        self.gain = self.add_weight(shape=(4,), initializer="ones", name="gain")
        self.steps = self.add_weight(shape=(), initializer="zeros", name="steps", trainable=False)

    def call(self, x, training=False):
        self.steps.assign_add(1.0)
        y = self.drop(self.norm(self.conv(x), training=training), training=training)
        return self.gain * tf.nn.relu(y) + x


def test_layers_stay_layers_and_variables_variables():
    layer = Mixed()
    graph = read(layer)
    expected = ["Conv2D", "BatchNormalization", "Dropout", "Relu", "Multiply", "Add"]
    assert kinds(graph) == expected
    assert graph.nodes[4].args[0] is layer.gain
    # False is the default of the layer, which `fit` overrides.
    assert graph.nodes[1].kwargs.get("training") is None
    assert layer.steps.numpy() == 1.0  # That of the prediction: none of the opening.


class Token(L.Layer):
    """The class token of vision transformers."""

    def __init__(self, repeat, **kwargs):
        super().__init__(**kwargs)
        self.repeat = repeat

    def build(self, shape):
        self.token = self.add_weight(shape=(1, 1, shape[-1]), name="token")

    def call(self, x):
        return ops.concatenate([self.repeat(self.token, ops.shape(x)[0]), x], 1)


@pytest.mark.parametrize(
    "repeat",
    [
        lambda x, n: ops.broadcast_to(x, (n, 1, 3)),
        lambda x, n: ops.tile(x, (n, 1, 1)),
        lambda x, n: ops.repeat(x, n, axis=0),
    ],
)
def test_a_token_for_each_sample_is_integer_and_trains(repeat):
    x = keras.Input((4, 3))
    model = keras.Model(x, L.Dense(2)(Token(repeat, name="t")(x)))
    x = networks.data(model)
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q, check=False)
    assert not lite.float_ops
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    assert networks.sqnr(model, q, x) > 25
    (token,) = [x for x in q.trainable_variables if re.match("t_add.*/bias", x.path)]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(q(x, training=True))
    assert np.all(tape.gradient(loss, token.value) != 0.0)
