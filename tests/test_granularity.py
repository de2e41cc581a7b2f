"""`granularity="per_tensor"`: one scale for a kernel, in the simulation and in the file."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.kernel_wrapper import KernelWrapper
from tests import networks

L = keras.layers
TARGETS = ("litert", "litert-x86-64", "tflm")


def wrappers(q):
    return {x.name: x for x in q.layers if isinstance(x, KernelWrapper)}


def assert_one_scale(lite):
    """Kernels and biases of a file lie on one grid each."""
    found = [x for x in lite.tensors if x.name.endswith(("/kernel", "/bias"))]
    assert found
    for tensor in found:
        assert np.size(tensor.grid.scale) == 1 and tensor.grid.axis is None, tensor.name
    return {x.name: x for x in found}


def assert_exact(q, x):
    """The file has one scale a kernel, and computes what its model does to the last code."""
    lite = kerasq.export_tflite(q, check=False)
    report = kerasq.compare(q, lite, x=x)
    assert report.exact == 1.0 and report.max_lsb == 0, str(report)
    assert_one_scale(lite)
    return lite


# By the number of inputs, even or odd, as that of outputs: kernels take them by twos and eights.
LAYERS = {
    "CONV_2D": lambda n: L.Conv2D({8: 12, 9: 5}[n], 3, padding="same"),
    "grouped": lambda n: L.Conv2D({8: 12, 9: 15}[n], 3, groups={8: 2, 9: 3}[n], padding="same"),
    "DEPTHWISE_CONV_2D": lambda n: L.DepthwiseConv2D(3, depth_multiplier={8: 3, 9: 1}[n]),
    "FULLY_CONNECTED": lambda n: L.Dense({8: 12, 9: 5}[n]),
    "one unit": lambda n: L.Dense(1),
    "TRANSPOSE_CONV": lambda n: L.Conv2DTranspose({8: 12, 9: 5}[n], 3, strides=2, padding="same"),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w4a8", "w4a16"])
def test_every_operator_on_ties(scheme, target):
    """Where all scales are powers of two, sums are full of ties, which kernels round in turn."""
    rng = np.random.default_rng(0)
    inputs = [keras.Input((5, 5, n), name=f"x{n}") for n in (8, 9)]
    outputs = [make(x.shape[-1])(x) for make in LAYERS.values() for x in inputs]
    model = keras.Model(inputs, outputs)
    q = kerasq.quantize_model(model, scheme, target=target, granularity="per_tensor")
    x = [rng.integers(-3, 4, (8, *y.shape[1:])).astype("float32") / 16 for y in inputs]
    kerasq.calibrate(q, x)
    on_powers_of_two(q, rng)
    lite = kerasq.export_tflite(q, check=False)
    found = lite.predict(x)
    for name, values in zip(lite.output_names, networks.run(q, x), strict=True):
        np.testing.assert_array_equal(found[name], values, name)
    for layer in wrappers(q).values():
        (read,) = (values for values in x if values.shape[1:] == layer.input.shape[1:])
        assert share_of_ties(layer, read) > 0.02, layer.name
    packs = scheme == "w4a8" or (scheme == "w4a16" and target != "tflm")
    assert kernel_types(lite) == ({"int4", "int8"} if packs else {"int8"})


def kernel_types(lite):
    return {x.type for x in assert_one_scale(lite).values() if x.name.endswith("/kernel")}


def on_powers_of_two(q, rng):
    """Inputs in steps of 1/16, weights of 1/128; outputs so that sums fill some of the codes."""
    for layer in wrappers(q).values():
        bits = layer.bits
        largest = 2 ** (bits.weight_bits - 1) - 1
        codes = rng.integers(-largest, largest + 1, layer.kernel.shape).astype("float32")
        codes.flat[0] = largest
        layer.kernel.assign(codes / 128)
        if layer.weight_quantizer.range_gradient != "none":
            layer.weight_quantizer.kernel_range.assign([largest / 128])
        layer.producers[0].output_quantizer.assign_range(*ends(1 / 16, bits.code_bits))
        step = 2.0 ** (-7 if bits.weight_bits == 8 else -10)
        layer.output_quantizer.assign_range(*ends(step, bits.code_bits))
        assert layer.integer_weights().grid.scale == 1 / 128


def share_of_ties(layer, x):
    """The share of a layer's sums that lie half-way between two codes of its output."""
    sums = layer.sums(x, layer.input_grids()[0], layer.integer_weights())
    steps = np.asarray(sums, np.float64) / (16 * 128 * float(layer.grid().scale))
    return np.mean(steps - np.floor(steps) == 0.5)


def ends(step, bits):
    """The range of a grid of that step."""
    return (-(2 ** (bits - 1)) + (bits > 8)) * step, (2 ** (bits - 1) - 1) * step


def uneven(model, seed=0):
    """Gains of channels that differ a hundredfold, so that one scale is far from each one's own."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            layer.gamma.assign(layer.gamma * 10.0 ** rng.uniform(-1, 1, layer.gamma.shape))
    return model


# Those whose files have packed weights.
@pytest.mark.parametrize("target", TARGETS[1:])
@pytest.mark.parametrize(
    ("make", "scheme", "batch_norm"),
    [
        (networks.mobile, "w8a8", "keep"),
        (networks.mobile, "w4a16", "fold"),
        (networks.residual, "w4a8", "keep"),
        (networks.residual, "w8a8", "fold"),
    ],
)
def test_networks(make, scheme, batch_norm, target):
    model = uneven(make())
    x = networks.data(model)
    options = {"scheme": scheme, "batch_norm": batch_norm, "target": target}
    q = networks.quantized(model, x, granularity="per_tensor", **options)
    lite = assert_exact(q, x)
    # By hand, where nothing is learned: the largest weight, folded, has the last code.
    for layer in wrappers(q).values() if scheme.startswith("w8") else ():
        folded = np.asarray(layer.folded_kernel())
        (scale,) = np.atleast_1d(lite_scale(lite, layer.name))
        np.testing.assert_allclose(scale, np.abs(folded).max() / 127, rtol=1e-6)
        codes = np.asarray(layer.integer_weights().codes)
        np.testing.assert_allclose(codes, folded / scale, atol=0.501)
    # Small channels have few codes.
    plain = networks.quantized(model, x, **options)
    assert networks.sqnr(model, q, x) < networks.sqnr(model, plain, x)


def lite_scale(lite, layer):
    return next(x.grid.scale for x in lite.tensors if x.name == f"{layer}/kernel")


def test_every_kind_of_kernel():
    """Also constants, and what others become: EinsumDense, attention, products with constants."""
    rng = np.random.default_rng(0)
    image, ids = keras.Input((6, 6, 4), name="image"), keras.Input((6,), name="ids", dtype="int32")
    y = L.Rescaling([0.5, 2.0, 0.01, 1.0], [0.0, 1.0, -1.0, 0.5])(image)
    y = L.SeparableConv2D(6, 3, padding="same", activation="relu6")(y)
    y = L.PReLU(shared_axes=[1, 2], alpha_initializer=keras.initializers.Constant(0.2))(y)
    y = L.Conv2DTranspose(4, 2, strides=2)(y) * np.float32([0.1, 3.0, -2.0, 1.0])
    y = L.BatchNormalization()(L.MaxPooling2D(4)(y))
    rows = L.Reshape((9, 4))(y)
    z = L.Embedding(10, 4)(ids)
    z = L.MultiHeadAttention(2, 3)(z, rows)
    z = L.EinsumDense("abc,cd->abd", (None, 5), bias_axes="d")(L.Conv1D(4, 3, padding="same")(z))
    z = keras.activations.hard_sigmoid(L.DepthwiseConv1D(2, padding="same")(z))
    model = keras.Model(
        [image, ids], [z, keras.ops.matmul(rows, np.eye(4, 3, dtype="float32") * 7)]
    )
    x = [rng.normal(size=(8, 6, 6, 4)).astype("float32"), rng.integers(0, 10, (8, 6))]
    q = networks.quantized(model, x, granularity="per_tensor")
    lite = assert_exact(q, x)
    weighted = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}
    assert weighted <= {op.name for op in lite.ops} and not lite.float_ops
    kernels = [x for x in assert_one_scale(lite) if x.endswith("/kernel")]
    assert len(kernels) == sum(op.name in weighted for op in lite.ops)
    # All other grids of the file have one scale anyway, those of the rows of embeddings too.
    assert all(x.grid is None or x.grid.axis is None for x in lite.tensors)


def calls_twice():
    """A convolution, with its BatchNormalization, called on an input and on what it made of it."""
    networks.set_seed(0)
    image = keras.Input((6, 6, 4), name="image")
    conv, norm = L.Conv2D(4, 3, padding="same", name="conv"), L.BatchNormalization(name="norm")
    y = L.ReLU()(norm(conv(image)))
    y = L.ReLU()(norm(conv(y * 3.0)))
    return uneven(keras.Model(image, L.Dense(3)(L.Flatten()(y))), 1)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_layers_that_are_called_twice(scheme, tmp_path):
    model = calls_twice()
    x = networks.data(model)
    q = networks.quantized(model, x, scheme=scheme, granularity="per_tensor")
    first, again = q.get_layer("conv"), q.get_layer("conv_2")
    assert again.leader is first and again.granularity == "per_tensor"
    assert_exact(q, x)
    q.save(tmp_path / "q.keras")
    loaded = kerasq.load_model(tmp_path / "q.keras")
    assert loaded.get_layer("conv_2").is_per_tensor
    np.testing.assert_array_equal(loaded.predict_on_batch(x), q.predict_on_batch(x))


@pytest.mark.parametrize("batch_norm", ["keep", "fold"])
def test_saved_cloned_and_retargeted(batch_norm, tmp_path):
    pytest.importorskip("tflite_micro")
    model = uneven(networks.mobile())
    x = networks.data(model)
    options = {"scheme": "w4a8", "granularity": "per_tensor", "batch_norm": batch_norm}
    q = networks.quantized(model, x, **options)
    for layer in wrappers(q).values():
        assert layer.weight_quantizer.kernel_range.shape == (1,)
    q.save(tmp_path / "q.keras")
    clone = keras.models.clone_model(q)
    clone.set_weights(q.get_weights())
    for other in (kerasq.load_model(tmp_path / "q.keras"), clone):
        assert all(layer.is_per_tensor for layer in wrappers(other).values())
        np.testing.assert_array_equal(other.predict_on_batch(x), q.predict_on_batch(x))
    micro = kerasq.retarget(q, "tflm")
    fresh = networks.quantized(model, x, target="tflm", **options)
    assert kerasq.export_tflite(micro).content == assert_exact(fresh, x).content


def folding(gamma, variance, kernel, scheme="w8a8"):
    """A convolution of one pixel and its BatchNormalization: the wrapper of a quantized model."""
    image = keras.Input((4, 4, kernel.shape[-2]), name="image")
    y = L.Conv2D(kernel.shape[-1], 1, use_bias=False, name="conv")(image)
    model = keras.Model(image, L.BatchNormalization(name="norm", epsilon=1e-3)(y))
    model.get_layer("conv").kernel.assign(kernel)
    model.get_layer("norm").gamma.assign(gamma)
    model.get_layer("norm").moving_variance.assign(variance)
    q = kerasq.quantize_model(model, scheme, granularity="per_tensor")
    x = np.random.default_rng(1).normal(size=(8, 4, 4, kernel.shape[-2])).astype("float32")
    kerasq.calibrate(q, x)
    return q.get_layer("conv"), x


def test_training_rounds_the_folded_kernel():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(1, 1, 3, 4)).astype("float32")
    gamma, variance = np.float32([2.0, -0.05, 0.5, 1.0]), np.float32([0.1, 1.0, 30.0, 0.5])
    layer, x = folding(gamma, variance, kernel)
    # In NumPy: the folded kernel on 255 codes, behind which the batch normalizes.
    gain = gamma / np.sqrt(variance + 1e-3)
    scale = np.abs(kernel * gain).max() / 127
    rounded = np.rint(kernel * gain / scale) * scale / gain
    y = x @ rounded[0, 0]
    mean, deviation = y.mean((0, 1, 2)), np.sqrt(y.var((0, 1, 2)) + 1e-3)
    weight = tf.constant(rng.normal(size=y.shape), tf.float32)
    with tf.GradientTape() as tape:
        found = layer.run_fake_quant(x, training=True)
        loss = tf.reduce_sum(found * weight)
    np.testing.assert_allclose(found, gamma * (y - mean) / deviation, rtol=1e-3, atol=1e-4)
    norm = layer.batch_norm
    np.testing.assert_allclose(norm.moving_mean, 0.01 * mean, rtol=1e-3, atol=1e-6)
    # The gradients are those of the float layers whose kernel is the rounded one.
    with tf.GradientTape() as plain:
        at = tf.constant(rounded[0, 0]), tf.constant(gamma)
        plain.watch(at)
        z = tf.tensordot(tf.constant(x), at[0], 1)
        m, v = tf.nn.moments(z, [0, 1, 2])
        wanted = tf.reduce_sum(at[1] * (z - m) / tf.sqrt(v + 1e-3) * weight)
    variables = [layer.kernel.value, norm.gamma.value]
    for a, b in zip(tape.gradient(loss, variables), plain.gradient(wanted, at), strict=True):
        np.testing.assert_allclose(tf.reshape(a, b.shape), b, rtol=1e-2, atol=1e-3)


def test_the_range_of_few_bits_learns_from_all_channels():
    """LSQ (Esser et al. 2020, sections 2.1 and 2.2) with one step for the tensor."""
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((5,)), L.Dense(3, use_bias=False, name="d")])
    q = kerasq.quantize_model(model, "w4a8", granularity="per_tensor")
    x = rng.normal(size=(16, 5)).astype("float32")
    kerasq.calibrate(q, x)
    layer, w = q.get_layer("d"), rng.normal(size=(5, 3)).astype("float32")
    layer.kernel.assign(w)
    layer.weight_quantizer.kernel_range.assign([1.0])
    upstream = rng.normal(size=(16, 3)).astype("float32")
    with tf.GradientTape() as tape:
        y = layer.run_fake_quant(x, training=True)
        loss = tf.reduce_sum(y * upstream)
    on_grid = np.clip(np.rint(w * 7), -7, 7) / 7
    np.testing.assert_allclose(y, x @ on_grid, rtol=1e-4, atol=1e-5)
    g, clipped = x.T @ upstream, np.abs(w) > 1.0
    assert 0 < clipped.sum() < clipped.size
    slope = np.where(clipped, np.sign(w), on_grid - w)
    # 7 steps from 0 to the range, of 15 weights.
    wanted = (g * slope).sum() * 7 * 7 / np.sqrt(15 * 7)
    variables = [layer.kernel.value, layer.weight_quantizer.kernel_range.value]
    dw, dhigh = tape.gradient(loss, variables)
    np.testing.assert_allclose(dw, np.where(clipped, 0.0, g), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dhigh, [wanted], rtol=1e-3)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_a_channel_that_is_switched_off_can_be_trained_back_on(scheme):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(1, 1, 3, 4)).astype("float32")
    gamma = np.float32([1.0, 0.0, 0.5, 1e-30])
    layer, x = folding(gamma, np.ones(4, "float32"), kernel, scheme)
    codes = np.asarray(layer.integer_weights().codes)
    assert not codes[..., [1, 3]].any() and codes[..., [0, 2]].all()
    with tf.GradientTape() as tape:
        y = layer.run_fake_quant(x, training=True)
        loss = tf.reduce_sum(tf.square(y - x[..., :1]))
    norm = layer.batch_norm
    found = tape.gradient(loss, [layer.kernel.value, norm.gamma.value, norm.beta.value])
    assert all(np.isfinite(value).all() for value in (y, *found))
    assert abs(float(found[1][1])) > 0.1
    nothing, off = (np.zeros(3, "float32") for _ in range(2))
    layer, x = folding(nothing, np.ones(3, "float32"), kernel[..., :3], scheme)
    assert np.isfinite(layer.run_fake_quant(x, training=True)).all() and not off.any()


@pytest.mark.parametrize(("scheme", "batch_norm"), [("w8a8", "fold"), ("w3a8", "keep")])
def test_training_lowers_the_loss(scheme, batch_norm):
    model = uneven(networks.mobile())
    norm = model.get_layer("expand_norm")
    norm.gamma.assign(norm.gamma * np.r_[0.0, np.ones(15)])
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 128)
    x = (rng.normal(size=(5, 12, 12, 3))[labels] + rng.normal(size=(128, 12, 12, 3))).astype("f")
    q = networks.quantized(model, x, scheme=scheme, batch_norm=batch_norm, granularity="per_tensor")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    q.compile(keras.optimizers.SGD(0.02 if batch_norm == "keep" else 1e-3, momentum=0.9), loss)
    losses = q.fit(x, labels, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < 0.8 * losses[0]
    assert all(np.isfinite(value).all() for value in q.get_weights())
    assert_exact(q, x[:16])


@pytest.mark.parametrize(
    ("weights", "scheme"),
    [
        ("uniform", "w1a8"),
        ("ternary", "w2a8"),
        ("trained_ternary", "w2a8"),
        ("dorefa", "w3a8"),
        ("power_of_two", "w4a8"),
    ],
)
def test_other_kinds_of_weights(weights, scheme):
    model = uneven(networks.residual())
    x = networks.data(model)
    options = {"weights": weights, "scheme": scheme, "granularity": "per_tensor"}
    q = networks.quantized(model, x, batch_norm="fold", **options)
    assert_exact(q, x)
    for layer in wrappers(q).values():
        scales = np.asarray(layer.weight_quantizer.scale(layer.ranged_kernel()))
        np.testing.assert_allclose(layer.integer_weights().grid.scale, scales[0], rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"must be uniform .* Received: weights of kind '.*' in la"
    ):
        kerasq.quantize_model(model, **options)


def test_powers_of_two_stay_such_in_the_file():
    model = uneven(networks.mobile())
    x = networks.data(model, 32)
    options = {"weights": "power_of_two", "batch_norm": "fold", "granularity": "per_tensor"}
    q = networks.quantized(model, x, scheme="w4a8", **options)
    q.compile(keras.optimizers.SGD(1e-3, momentum=0.9), "mse")
    q.fit(
        x,
        np.zeros((32, 5)),
        epochs=2,
        verbose=0,
        callbacks=[kerasq.IncrementalQuantization([0.5, 1])],
    )
    lite = assert_exact(q, x)
    for layer in wrappers(q).values():
        codes = np.abs(lite.constant(f"{layer.name}/kernel").astype(int))
        assert not (codes & (codes - 1)).any()
        # The variable is where training goes on from.
        scale = lite_scale(lite, layer.name)
        steps = np.asarray(layer.folded_kernel()) / scale
        np.testing.assert_allclose(steps, np.asarray(layer.integer_weights().codes), atol=1e-4)


def test_sensitivity_and_allocation():
    model = uneven(networks.mobile())
    x = networks.data(model, 32)
    options = {"granularity": "per_tensor", "method": "minmax"}
    table = kerasq.sensitivity(model, x, candidates=("w8a8", "w4a8"), **options)
    q = networks.quantized(model, x, granularity="per_tensor")
    np.testing.assert_allclose(table.base, networks.sqnr(model, q, x), rtol=1e-4)
    assert table.granularity == "per_tensor"
    other = kerasq.sensitivity(model, x, candidates=("w8a8", "w4a8"), method="minmax")
    assert other.granularity == "per_channel" and other.base > table.base
    found = kerasq.allocate(model, x, budget={"bytes": 900}, sensitivity=table, method="minmax")
    q = networks.quantized(model, x, overrides=found.overrides, granularity="per_tensor")
    np.testing.assert_allclose(found.chosen.measured, networks.sqnr(model, q, x), rtol=1e-4)
    with pytest.raises(ValueError, match=r"`granularity` must be that of `sensitivity`"):
        kerasq.allocate(
            model, None, budget={"bytes": 900}, sensitivity=table, granularity="per_channel"
        )


def test_biases_and_rounding_without_training():
    model = uneven(networks.residual())
    x, other = networks.images(model, 64, 0), networks.images(model, 64, 1)
    options = {"scheme": "w4a8", "granularity": "per_tensor"}
    q = networks.quantized(model, x, **options)
    before = networks.sqnr(model, q, other)
    kerasq.correct_biases(q, x)
    assert networks.sqnr(model, q, other) > before
    assert_exact(q, other)
    q = networks.quantized(model, x, **options)
    found = kerasq.adaround(q, x, iterations=300)
    assert networks.sqnr(model, q, other) > before and max(found.moved) > 0.0
    assert_exact(q, other)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_encodings(scheme, tmp_path):
    model = uneven(networks.mobile())
    x = networks.data(model)
    options = {"scheme": scheme, "granularity": "per_tensor"}
    q = networks.quantized(model, x, **options)
    saved = kerasq.save_encodings(q, tmp_path / "e.json")["param_encodings"]
    for found in saved:
        assert found["enc_type"] == "PER_TENSOR" and len(found["scale"]) == 1
    other = networks.quantized(model, 3.0 * x, **options)
    if scheme == "w4a8":
        for layer in wrappers(other).values():
            layer.weight_quantizer.kernel_range.assign([0.1])
    kerasq.load_encodings(other, tmp_path / "e.json")
    for found in saved:
        grid = other.get_layer(found["name"].removesuffix("/kernel")).integer_weights().grid
        np.testing.assert_allclose(grid.scale, found["scale"][0], rtol=1e-5)
    plain = kerasq.quantize_model(model, scheme)
    with pytest.raises(ValueError, match="must have enc_type='PER_CHANNEL', as the model does"):
        kerasq.load_encodings(plain, tmp_path / "e.json")


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"`granularity` must be one of \['per_channel', 'per_ten"):
        kerasq.quantize_model(networks.mlp(), granularity="per_row")
