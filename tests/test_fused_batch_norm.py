import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasq.fused_batch_norm import normalize
from tests import networks

SHAPES = [(16, 5, 4, 3), (16, 7, 3), (32, 3), (4, 3, 3, 3, 3)]


def norm(shape, **options):
    networks.set_seed(0)
    made = keras.layers.BatchNormalization(**options)
    made.build((None, *shape[1:]))
    rng = np.random.default_rng(1)
    made.set_weights([rng.uniform(0.5, 2.0, w.shape) for w in made.get_weights()])
    return made


def samples(shape):
    return tf.constant(np.random.default_rng(0).normal(1.0, 3.0, shape), tf.float32)


def run(call, made, x):
    """The output, the gradients, and the moving statistics behind the call."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = call(x)
        loss = tf.reduce_sum(tf.sin(y))
    trained = [v.value for v in made.trainable_variables]
    return [y, *tape.gradient(loss, [x, *trained]), *map(tf.identity, made.variables)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"center": False, "momentum": 0.9},
        {"scale": False, "epsilon": 1e-4},
        {"epsilon": 1e-6},
        {"axis": -1, "trainable": False},
    ],
)
@pytest.mark.parametrize("in_function", [False, True])
def test_it_is_the_layer_in_training(shape, options, in_function):
    x, ours, theirs = samples(shape), norm(shape, **options), norm(shape, **options)
    one = lambda x: normalize(ours, x)  # noqa: E731
    if in_function:
        signature = [tf.TensorSpec([None, *shape[1:]])]
        one = tf.function(one, input_signature=signature, autograph=False)
    found = run(one, ours, x)
    expected = run(lambda x: theirs(x, training=True), theirs, x)
    assert found[0].shape == x.shape
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_layers_of_ones_own_are_called():
    class Shifted(keras.layers.BatchNormalization):
        def call(self, inputs, training=None, mask=None):
            return super().call(inputs, training=training) + 7.0

    made = Shifted()
    made.build((None, 3))
    np.testing.assert_allclose(
        tf.reduce_mean(normalize(made, samples((32, 3))), axis=0), 7.0, rtol=1e-5
    )


def test_a_batch_of_one_value_has_no_variance():
    made = keras.layers.BatchNormalization(momentum=0.0)
    made.build((None, 3))
    y = normalize(made, tf.constant([[1.0, 2.0, 3.0]]))
    np.testing.assert_allclose(y, np.zeros((1, 3)), atol=1e-6)
    np.testing.assert_array_equal(made.moving_variance, np.zeros(3))
