"""Float models under Keras's mixed precision policies: 16-bit training, exact inference."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.kernel_wrapper import KernelWrapper
from tests import networks

L = keras.layers


@pytest.fixture(params=["mixed_bfloat16", "mixed_float16"])
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def quantized(**options):
    model = networks.mobile()
    assert model.layers[1].compute_dtype != "float32"
    q = kerasq.quantize_model(model, **options)
    x = networks.data(q, 32)
    kerasq.calibrate(q, x)
    return q, x


def trained(**options):
    q, x = quantized(**options)
    q.compile(keras.optimizers.SGD(1e-3), "mse")
    q.fit(x, np.zeros((32, 5), "f"), batch_size=16, epochs=1, verbose=0)
    return q, x


@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
def test_inference_is_bit_for_bit_that_of_the_device(policy, batch_norm):
    q, x = trained(batch_norm=batch_norm)
    predicted = q.predict_on_batch(x)
    assert predicted.dtype == np.float32
    np.testing.assert_array_equal(kerasq.export_tflite(q).predict(x), predicted)


def test_kernels_are_trained_in_16_bits_and_nothing_else_is(policy):
    q, x = quantized()

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(q(x, training=True))
        return tape.gradient(loss, q.trainable_variables)

    graph = step.get_concrete_function(tf.TensorSpec(x.shape)).graph
    narrow = getattr(tf, policy.removeprefix("mixed_"))
    types: dict = {}
    for op in graph.get_operations():
        types.setdefault(op.type, set()).update(y.dtype for y in op.outputs)
    convolutions = {"Conv2D", "Conv2DBackpropFilter", "DepthwiseConv2dNative"}
    assert all(types[name] == {narrow} for name in convolutions)
    assert narrow in types["MatMul"]
    assert types["FakeQuantWithMinMaxVars"] == types["Mean"] == {tf.float32}
    gradients = step(tf.constant(x))
    assert all(g.dtype == tf.float32 and np.isfinite(g).all() for g in gradients)


def test_saving_keeps_the_training_type(policy, tmp_path):
    q, x = trained()
    q.save(tmp_path / "q.keras")
    keras.config.set_dtype_policy("float32")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    types = [layer.training_dtype for layer in loaded.layers if isinstance(layer, KernelWrapper)]
    assert {*types} == {policy.removeprefix("mixed_")}
    np.testing.assert_array_equal(loaded.predict_on_batch(x), q.predict_on_batch(x))


def test_layers_that_are_made_anew_compute_in_float32(policy):
    """Sums of three, pooling of whole images, activations of their own, boundaries."""
    inputs = keras.Input((4, 4, 2))
    y = [L.Conv2D(3, 1, name=f"branch_{i}")(inputs) for i in range(3)]
    y = L.GlobalAveragePooling2D()(L.Add(name="sum")(y))
    model = keras.Model(inputs, L.Dense(2, activation="sigmoid", name="wide")(y))
    q = kerasq.quantize_model(model, overrides={"wide": "w8a16", "branch_1": "float"})
    x = networks.data(q, 16)
    kerasq.calibrate(q, x)
    np.testing.assert_allclose(kerasq.export_tflite(q).predict(x), networks.run(q, x), atol=1e-6)
    computing = [layer for layer in q.layers if not isinstance(layer, L.InputLayer)]
    assert {layer.compute_dtype for layer in computing} == {"float32"}


def test_the_loss_of_float16_models_is_scaled_whatever_the_global_policy():
    x = inputs = keras.Input((4,))
    x = L.Dense(2, dtype="mixed_float16")(x)
    q = kerasq.quantize_model(keras.Model(inputs, x))
    q.compile("sgd", "mse")
    q.fit(np.ones((8, 4)), np.ones((8, 2)), verbose=0)
    assert isinstance(q.optimizer, keras.optimizers.LossScaleOptimizer)
    lite = kerasq.export_tflite(q, check=False)
    data = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    np.testing.assert_array_equal(lite.predict(data), networks.run(q, data))


def test_models_of_64_bit_variables_are_refused():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, L.Dense(2, dtype="float64", name="wide")(inputs))
    with pytest.raises(ValueError, match=r"'wide' .*: needs dtype='float32', has 'float64'"):
        kerasq.quantize_model(model)
