import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq import wrappers
from kerasq.kernel_wrapper import KernelWrapper
from tests import networks
from tests.processes import script

L = keras.layers
KERNELS = {
    "conv": lambda: L.Conv2D(4, 3, padding="same", name="k"),
    "conv_no_bias": lambda: L.Conv2D(4, 3, use_bias=False, name="k"),
    "depthwise": lambda: L.DepthwiseConv2D(3, name="k"),
    "depthwise_2": lambda: L.DepthwiseConv2D(3, depth_multiplier=2, name="k"),
    "dense": lambda: L.Dense(5, name="k"),
}
GRADIENTS = ("lsq", "clip", "none")


def one_kernel(kind, norm, seed=0):
    """A model of one layer with a kernel, a BatchNormalization behind it if `norm`."""
    networks.set_seed(seed)
    inputs = keras.Input((6,) if kind == "dense" else (6, 6, 3), name="x")
    layer = KERNELS[kind]()
    y = layer(inputs)
    if layer.use_bias:
        layer.bias.assign(np.random.default_rng(seed).normal(size=layer.bias.shape))
    if norm:
        y = L.BatchNormalization(name="n")(y)
    return networks.shake_norms(keras.Model(inputs, y), seed)


def twin(model, in_scale):
    """Codes, scales and bias codes of `model`'s one kernel, in NumPy from the float model.

    Krishnamoorthi 2018, section 3.1; Jacob et al. 2018, sections 2.4 and 3.2.
    """
    layer = model.get_layer("k")
    kernel = layer.kernel.numpy().astype(np.float64)
    if isinstance(layer, L.DepthwiseConv2D):
        kernel = kernel.reshape(*kernel.shape[:2], -1)
    bias = layer.bias.numpy() if layer.use_bias else np.zeros(kernel.shape[-1])
    for norm in model.layers:
        if isinstance(norm, L.BatchNormalization):
            gain = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + norm.epsilon)
            kernel = kernel * gain
            bias = norm.beta.numpy() + (bias - norm.moving_mean.numpy()) * gain
    scale = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / 127
    return np.rint(kernel / scale), scale, np.rint(bias / (in_scale * scale))


# Weights and bias.


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("batch_norm", ["fold", "keep", None])
@pytest.mark.parametrize("gradient", ["lsq", "none"])
def test_integer_weights_against_numpy(kind, batch_norm, gradient):
    model = one_kernel(kind, batch_norm is not None)
    q = networks.quantized(model, batch_norm=batch_norm or "fold", range_gradient=gradient)
    wrapper = q.get_layer("k")
    found = wrapper.integer_weights()
    codes, scale, bias = twin(model, float(wrapper.input_grids()[0].scale))
    np.testing.assert_allclose(found.grid.scale, scale, rtol=1e-5)
    # A value on a tie may fall to either side in float32.
    assert np.mean(found.codes.numpy() != codes) < 0.01
    assert np.abs(found.codes.numpy() - codes).max() <= 1
    assert np.abs(found.bias.numpy() - bias).max() <= 1
    assert np.mean(found.bias.numpy() != bias) <= 0.25
    assert np.abs(found.codes).max() == 127
    assert (found.grid.numpy().zero_point == 0).all() and found.grid.axis == -1
    if batch_norm:
        assert (model.get_layer("n").gamma.numpy() < 0).any()


def test_the_bias_of_training_lies_on_the_accumulators_grid():
    """A kernel of zeros leaves nothing but the bias: round(b / (s_in s_w)) s_in s_w."""
    model = one_kernel("dense", norm=False)
    model.get_layer("k").kernel.assign(np.eye(6, 5))
    q = networks.quantized(model, range_gradient="clip")
    wrapper = q.get_layer("k")
    step = float(wrapper.input_grids()[0].scale) / 127
    bias = np.array([0.4, 0.5, 1.5, -2.5, 1000.3]) * step
    wrapper.bias.assign(bias)
    expected = np.rint(wrapper.bias.numpy() / step) * step
    found = wrapper.run_fake_quant(tf.zeros((1, 6)), training=True)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    assert not np.allclose(found, bias, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "batch_norm"), [("conv", "fold"), ("depthwise", "keep"), ("dense", "fold")]
)
def test_dead_channels_and_huge_biases_do_not_overflow(kind, batch_norm):
    model = one_kernel(kind, norm=True)
    layer, norm = model.get_layer("k"), model.get_layer("n")
    kernel, beta = layer.kernel.numpy(), norm.beta.numpy()
    kernel[..., 0] = 0.0
    if kind == "depthwise":
        kernel[:, :, 0] = 0.0
    beta[0], beta[1] = 700.0, -300.0
    layer.kernel.assign(kernel)
    norm.beta.assign(beta)
    x = networks.data(model, 32, scale=1.0)
    q = networks.quantized(model, x, batch_norm=batch_norm)
    bias = q.get_layer("k").integer_weights().bias.numpy()
    assert np.isfinite(bias).all() and np.abs(bias).max() < 2**31
    y = networks.run(q, x)
    np.testing.assert_allclose(y, networks.run(model, x), atol=8.0)
    for kernels in ("optimized", "reference"):
        lite = kerasq.TFLiteModel(kerasq.export_tflite(q).content, kernels=kernels)
        step = lite.outputs[0].grid.scale
        assert np.abs(lite.predict(x) - y).max() <= step * 1.01
    (stored,) = [t for t in kerasq.export_tflite(q).tensors if t.name == "k/bias"]
    assert stored.dtype == np.int32


# Training and inference.


@pytest.mark.parametrize("make", [networks.residual, networks.two_by_two])
@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
@pytest.mark.parametrize("training", [True, False])
def test_every_variable_that_trains_has_a_gradient(make, batch_norm, training):
    model = make()
    x = networks.samples(model)
    options = {"batch_norm": batch_norm, "range_gradient": "lsq"}
    q = networks.quantized(model, x if len(x) > 1 else x[0], **options)
    rng = np.random.default_rng(0)
    with tf.GradientTape() as tape:
        y = keras.tree.flatten(q(x if len(x) > 1 else x[0], training=training))
        loss = sum(tf.reduce_sum(out * rng.normal(size=out.shape)) for out in y)
    variables = q.trainable_variables
    kinds = {v.name for v in variables}
    assert {"kernel", "bias", "range_min", "range_max", "kernel_range"} <= kinds
    gradients = tape.gradient(loss, [v.value for v in variables])
    for variable, gradient in zip(variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.isfinite(gradient).all(), variable.path
    moving = [v.path for v, g in zip(variables, gradients, strict=True) if np.any(g)]
    still = {v.path for v in variables} - set(moving)
    # Only biases whose effect a BatchNormalization removes again, and dead units, may stand still.
    assert len(still) <= len(variables) // 4, still


@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
def test_gradients_of_inference_are_those_of_training(batch_norm):
    model = one_kernel("conv", norm=False)
    x = networks.data(model, 4)
    q = networks.quantized(model, x, batch_norm=batch_norm)
    found = []
    for training in (True, False):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(q(x, training=training) ** 2)
        found.append(tape.gradient(loss, [v.value for v in q.trainable_variables]))
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02 * np.abs(a).max())


@pytest.mark.parametrize("kind", KERNELS)
def test_training_and_inference_agree(kind):
    model = one_kernel(kind, norm=True)
    x = networks.data(model, 64)
    q = networks.quantized(model, x, batch_norm="fold")
    train, infer = q(x, training=True).numpy(), q(x, training=False).numpy()
    lsb = np.rint((train - infer) / q.get_layer("k").grid().numpy().scale)
    assert np.abs(lsb).max() <= 1
    assert np.mean(lsb == 0) > 0.98


def test_training_and_inference_agree_in_a_network():
    model = networks.mobile()
    x = networks.data(model, 64)
    q = networks.quantized(model, x, batch_norm="fold")
    train, infer = q(x, training=True).numpy(), q(x, training=False).numpy()
    lsb = np.rint((train - infer) / q.get_layer("logits").grid().numpy().scale)
    assert np.mean(np.abs(lsb) <= 1) > 0.9


def test_keep_normalizes_by_the_batch_in_training_and_by_the_past_in_inference():
    model = one_kernel("conv", norm=True)
    q = networks.quantized(model, batch_norm="keep")
    x = networks.data(model, 16) + 3.0
    mean = q.get_layer("k").batch_norm.moving_mean
    before = mean.numpy()
    infer = q(x, training=False).numpy()
    np.testing.assert_array_equal(mean.numpy(), before)
    train = q(x, training=True).numpy()
    assert (mean.numpy() != before).any()
    assert np.abs(train - infer).max() > 0.1


# Ranges that take their first values while training.


def digits(model, count=64, seed=3):
    x = networks.data(model, count, seed)
    return x, np.random.default_rng(seed).integers(0, 10, count)


def seen(q):
    return [int(quantizer.batches_seen) for quantizer in wrappers.ranged(q).values()]


@pytest.mark.parametrize(
    ("gradient", "eager"), [("lsq", False), ("lsq", True), ("clip", False), ("none", False)]
)
def test_fit_sets_the_ranges(gradient, eager):
    q = kerasq.quantize_model(networks.mlp(), range_gradient=gradient)
    assert seen(q) == [0] * len(seen(q))
    x = networks.data(q, 64)
    q.compile(keras.optimizers.SGD(1e-3), "mse", run_eagerly=eager)
    q.fit(x, np.zeros((64, 3), "f"), batch_size=16, shuffle=False, verbose=0)
    assert seen(q) == [4] * len(seen(q))
    grid = q.get_layer("features_quantize").grid().numpy()
    assert grid.low == pytest.approx(x.min(), abs=float(grid.scale))
    assert grid.high == pytest.approx(x.max(), abs=float(grid.scale))
    lite = kerasq.export_tflite(q)
    np.testing.assert_array_equal(q.predict_on_batch(x), lite.predict(x))


def test_a_training_loop_of_ones_own_sets_the_ranges():
    q = kerasq.quantize_model(networks.mlp())
    x = networks.data(q, 48)
    optimizer = keras.optimizers.SGD(1e-3)
    optimizer.build(q.trainable_variables)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(q(x, training=True) ** 2)
        gradients = tape.gradient(loss, [v.value for v in q.trainable_variables])
        optimizer.apply_gradients(zip(gradients, q.trainable_variables, strict=True))
        return loss

    for i in range(3):
        step(x[16 * i : 16 * i + 16])
    assert seen(q) == [3] * len(seen(q))
    np.testing.assert_array_equal(
        networks.run(q, x), kerasq.export_tflite(q, check=False).predict(x)
    )
    # The input's range holds all batches: nothing trains it.
    low, high = x.min(), x.max()
    grid = q.get_layer("features_quantize").grid().numpy()
    np.testing.assert_allclose([grid.low, grid.high], [low, high], atol=grid.scale)


def test_fit_after_calibrate_leaves_the_input_range_alone():
    q = networks.quantized(networks.mlp())
    before = q.get_layer("features_quantize").grid().numpy()
    x = 10.0 * networks.data(q, 32)
    q.compile("sgd", "mse")
    q.fit(x, np.zeros((32, 3), "f"), verbose=0)
    after = q.get_layer("features_quantize").grid().numpy()
    assert (before.scale, before.zero_point) == (after.scale, after.zero_point)


def test_predicting_before_any_data_says_so():
    q = kerasq.quantize_model(networks.mlp())
    x = networks.data(q)
    for predict in (q.predict, q.predict_on_batch, q):
        with pytest.raises(ValueError) as caught:
            predict(x)
        assert str(caught.value) == (  # No more than that: neither a trace nor the tensors.
            "The range of layer 'features_quantize' has seen no data, so its output has no meaning "
            "yet. Call kerasq.calibrate(model, data) or fit the model first."
        )
    kerasq.calibrate(q, x)
    assert np.isfinite(q.predict(x, verbose=0)).all()


@pytest.mark.parametrize(("batch_norm", "gradient"), [("fold", "lsq"), ("fold", "none")])
def test_raw_pixels_do_not_diverge(batch_norm, gradient):
    """Folded kernels once diverged behind pixels of 0..255 at the float model's own rate."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (128, 12, 12, 3)).astype("f")
    y = (x[:, :6].mean((1, 2, 3)) > x[:, 6:].mean((1, 2, 3))).astype(int)
    model = networks.residual()
    for norm in model.layers:  # As training on such pixels leaves them.
        if isinstance(norm, L.BatchNormalization):
            before = keras.Model(model.input, norm.input)
            z = networks.run(before, x)
            norm.moving_mean.assign(z.mean((0, 1, 2)))
            norm.moving_variance.assign(z.var((0, 1, 2)))
    q = networks.quantized(model, x, batch_norm=batch_norm, range_gradient=gradient)
    networks.set_seed(0)
    q.compile(keras.optimizers.SGD(0.001, 0.9), "sparse_categorical_crossentropy")
    losses = q.fit(x, y, epochs=6, batch_size=16, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert losses == sorted(losses, reverse=True) or losses[-1] < 0.8 * losses[0]
    assert max(losses) < 5.0


def test_ranges_stay_legal_under_a_wild_optimizer():
    q = networks.quantized(networks.mobile(), range_gradient="lsq")
    x = networks.data(q, 32)
    q.compile(keras.optimizers.SGD(10.0, clipnorm=1.0), "mse")
    q.fit(x, np.zeros((32, 5), "f"), batch_size=8, epochs=2, verbose=0)
    for name, quantizer in wrappers.ranged(q).items():
        low, high = (float(end) for end in quantizer.range())
        assert low <= 0.0 < high, name
        assert quantizer.limit is None or high <= quantizer.limit, name
    for layer in q.layers:
        if isinstance(layer, KernelWrapper):
            assert (layer.weight_quantizer.kernel_range.numpy() > 0).all()


def test_two_replicas_train_the_same_ranges(tmp_path):
    code = """
        import keras, numpy as np, tensorflow as tf
        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
        import kerasq
        from kerasq import wrappers
        from tests import networks
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        assert strategy.num_replicas_in_sync == 2
        with strategy.scope():
            q = kerasq.quantize_model(networks.mlp())
            q.compile(keras.optimizers.SGD(0.01), "mse")
        x = networks.data(q, 16)
        q.fit(x, np.zeros((16, 3), "f"), batch_size=16, epochs=1, verbose=0, shuffle=False)
        found = 0
        for v in q.variables:
            copies = [c.numpy() for c in strategy.experimental_local_results(v.value)]
            assert len(copies) == 2
            np.testing.assert_array_equal(copies[0], copies[1], err_msg=v.path)
            found += v.name.startswith("range_m")
        assert found >= 6, found
        grid = q.get_layer("features_quantize").grid().numpy()
        low = np.mean([x[:8].min(), x[8:].min()])
        high = np.mean([x[:8].max(), x[8:].max()])
        np.testing.assert_allclose([grid.low, grid.high], [low, high], atol=grid.scale)
        kerasq.export_tflite(q)
        print("trained")
    """
    (tmp_path / "mirrored.py").write_text(textwrap.dedent(code))
    done = script(tmp_path / "mirrored.py")
    assert "trained" in done.stdout, done.stderr[-3000:]


# Saving and copying.


@pytest.mark.parametrize(
    ("batch_norm", "gradient"),
    [("fold", "lsq"), ("keep", "lsq"), ("fold", "clip"), ("keep", "none"), ("fold", "none")],
)
def test_saved_loaded_and_cloned_models_are_bit_equal(tmp_path, batch_norm, gradient):
    q = kerasq.quantize_model(networks.sequential(), batch_norm=batch_norm, range_gradient=gradient)
    x = networks.data(q, 32)
    q.compile(keras.optimizers.SGD(1e-3), "mse")
    q.fit(x, np.zeros((32, 3), "f"), batch_size=16, verbose=0)
    expected = q(x).numpy()
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded(x), expected)
    clone = keras.models.clone_model(q)
    clone.set_weights(q.get_weights())
    np.testing.assert_array_equal(clone(x), expected)
    assert [v.path for v in loaded.trainable_variables] == [v.path for v in q.trainable_variables]
    assert len({id(v) for v in q.variables}) == len(q.variables)


def test_a_loaded_model_trains_on_as_the_original_would(tmp_path):
    q = kerasq.quantize_model(networks.residual(), batch_norm="keep")
    x, y = digits(q, 32)
    q.compile(keras.optimizers.SGD(1e-2, 0.9), "sparse_categorical_crossentropy")
    q.fit(x, y, batch_size=16, verbose=0)
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    for model in (q, loaded):
        networks.set_seed(0)
        model.get_layer("drop").rate = 0.0
        model.fit(x, y, batch_size=32, shuffle=False, verbose=0)
    for a, b in zip(q.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [networks.mobile, networks.two_by_two, networks.sequential])
def test_saved_models_of_other_shapes(tmp_path, make):
    q = networks.quantized(make())
    x = networks.data(q)
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    pairs = zip(*(keras.tree.flatten(networks.run(m, x)) for m in (q, loaded)), strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)


def test_config_round_trip():
    q = kerasq.quantize_model(networks.mobile(), batch_norm="keep", range_gradient="clip")
    wrapper = q.get_layer("expand")
    copy = KernelWrapper.from_config(wrapper.get_config())
    assert copy.get_config() == wrapper.get_config()
    assert (copy.relu, copy.limit, copy.range_gradient) == (True, 6.0, "clip")
    assert copy.batch_norm.name == "expand_norm"


# Which grid a tensor lies on.


def test_quantized_by_looks_through_layers_that_copy():
    q = kerasq.quantize_model(networks.residual())
    found = wrappers.quantized_by(q.get_layer("pad").output)
    assert found is q.get_layer("cat")


def test_float_values_have_no_wrapper_and_are_refused():
    hidden = networks.mlp().get_layer("hidden").output
    assert wrappers.quantized_by(hidden) is None
    assert wrappers.quantized_by(L.Dropout(0.5)(hidden)) is None
    text = r"Layer 'reader' must read quantized values. .*among .*'hidden'.*quantize_model"
    for layer, wrapper in (
        (L.Dense(2, name="reader"), KernelWrapper),
        (L.Activation("tanh", name="reader"), wrappers.QuantizeWrapper),
    ):
        with pytest.raises(ValueError, match=text):
            wrapper(layer)(hidden)


def test_ranged_lists_every_range():
    q = kerasq.quantize_model(networks.mlp())
    assert list(wrappers.ranged(q)) == ["features_quantize", "hidden", "squash_linear", "head"]
    assert wrappers.ranged(networks.mlp()) == {}


def test_integer_weights_are_the_same_in_a_traced_function():
    """TensorFlow's graph optimizer rearranges float32 products: no weight may change its code."""
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((2000,), name="x"), L.Dense(1000, name="dense")])
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, np.random.default_rng(0).normal(size=(32, 2000)))
    dense = q.get_layer("dense")
    dense.kernel_gain.assign(0.37)
    eager = dense.integer_weights()
    traced = tf.function(lambda: (dense.integer_weights().codes, dense.integer_weights().bias))()
    np.testing.assert_array_equal(eager.codes, traced[0])
    np.testing.assert_array_equal(eager.bias, traced[1])
