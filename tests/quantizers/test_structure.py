"""Zeros and clusters of kernels: they stay in training, in every method, and in the file."""

import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.quantizers.structure import Structure, clusters_of
from tests import networks

L = keras.layers


def all_kinds():
    """A layer of each kind with weights, a normalization here and there."""
    networks.set_seed(0)
    image = keras.Input((6, 6, 4), name="image")
    x = L.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(image)
    x = L.ReLU(name="relu")(L.BatchNormalization(name="conv_norm")(x))
    x = L.BatchNormalization(name="dw_norm")(L.DepthwiseConv2D(3, name="dw")(x))
    x = L.SeparableConv2D(8, 3, padding="same", name="sep")(x)
    x = L.Conv2D(8, 3, groups=2, name="groups")(x)
    x = L.Conv2DTranspose(4, 2, strides=2, name="up")(x)
    x = L.Reshape((16, 4), name="rows")(x)
    x = L.SeparableConv1D(4, 3, name="sep1")(L.Conv1D(4, 3, name="conv1")(x))
    x = L.Conv1DTranspose(4, 2, name="up1")(L.DepthwiseConv1D(3, name="dw1")(x))
    x = L.EinsumDense("btc,cd->btd", (11, 4), name="einsum")(x)
    x = L.GlobalAveragePooling1D(name="gap")(x)
    model = keras.Model(image, L.Dense(3, name="head")(x), name="all_kinds")
    return with_kernels(networks.shake_norms(model), sparse)


def with_kernels(model, make):
    """The model with `make(kernel, rng)` for each of its kernels."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        for variable in layer.weights:
            if "kernel" in variable.name:
                variable.assign(make(variable.numpy(), rng))
    return model


def sparse(kernel, rng):
    """Every other weight is 0; the others are so large that none rounds to 0."""
    size = rng.uniform(0.3, 1.0, kernel.shape) * np.abs(kernel).max()
    return np.sign(kernel) * size * (rng.random(kernel.shape) < 0.5)


def clustered(count):
    """Makes kernels of so many values, 0 among them."""

    def make(kernel, rng):
        values = np.float32(np.abs(kernel).max() * np.linspace(-1.0, 0.75, count))
        values[np.abs(values).argmin()] = 0.0
        return values[rng.integers(0, count, kernel.shape)]

    return make


def kernels(q):
    return [x for x in q.layers if isinstance(x, KernelWrapper) and x.leader is None]


def trained(q, x, optimizer=None, epochs=2):
    wanted = np.random.default_rng(1).normal(size=(len(x), *q.output_shape[1:]))
    q.compile(optimizer or keras.optimizers.SGD(3e-3, momentum=0.9, weight_decay=0.01), "mse")
    q.fit(x, wanted, batch_size=8, epochs=epochs, verbose=0)
    return q


def exported(lite, wrapper):
    """The codes of a layer in the file, as its kernel lies."""
    # Of one dimension, it has two in the file, by an operator in front.
    ours = (f"{wrapper.name}/kernel", f"{wrapper.name}/reshape_input/kernel")
    (name,) = {tensor.name for tensor in lite.tensors} & {*ours}
    codes = lite.constant(name)
    channels = wrapper.target.operators[wrapper.rule.operator].channels
    return np.moveaxis(codes, channels, -1).reshape(wrapper.flat_kernel().shape)


def test_zeros_stay_zero_codes_in_every_kind_of_layer():
    model = all_kinds()
    x = networks.data(model)
    q = networks.quantized(model, x, keep_zeros=True)
    before = [wrapper.flat_kernel().numpy() for wrapper in kernels(q)]
    floats = [v.numpy() for v in model.weights if "kernel" in v.name]
    assert sum((w == 0).sum() for w in before) == sum((w == 0).sum() for w in floats) > 300
    trained(q, x, keras.optimizers.AdamW(1e-3, weight_decay=0.01))
    for target in ("litert", "tflm") if importlib.util.find_spec("tflite_micro") else ("litert",):
        moved = kerasq.retarget(q, target)
        lite = kerasq.export_tflite(moved, remove_dead_channels=False)
        for wrapper, kernel in zip(kernels(moved), before, strict=True):
            np.testing.assert_array_equal(exported(lite, wrapper) == 0, kernel == 0, wrapper.name)
            np.testing.assert_array_equal(wrapper.flat_kernel() == 0, kernel == 0)
            assert np.abs(wrapper.flat_kernel() - kernel).max() > 1e-4  # The others train.
        np.testing.assert_array_equal(lite.predict(x), moved.predict_on_batch(x))


def test_zeros_of_a_whole_lstm(tmp_path):
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((3, 4)), L.LSTM(5, name="rnn"), L.Dense(2, name="head")])
    model = with_kernels(model, sparse)
    x = networks.data(model)
    q = networks.quantized(model, x, keep_zeros=True, recurrence="fused")
    trained(q, x, epochs=1)
    for name, (a, b) in zip(
        ("rnn_steps/kernel", "rnn_steps/recurrent_kernel"),
        zip(model.layers[0].weights, q.get_layer("rnn_steps").kernels(), strict=False),
        strict=True,
    ):
        np.testing.assert_array_equal(a.numpy() == 0, b.numpy() == 0)
        (row,) = [row for row in kerasq.compression(q).layers if row.name == name]
        assert row.zeros == pytest.approx(np.mean(a.numpy() == 0))
    np.testing.assert_array_equal(kerasq.export_tflite(q).predict(x), q.predict_on_batch(x))
    q.save(tmp_path / "q.keras")
    layer = keras.models.load_model(tmp_path / "q.keras").get_layer("rnn_steps")
    kernel = layer.layer.cell.kernel
    moved = kernel.constraint(kernel.value + 1.0).numpy()
    np.testing.assert_array_equal(moved == 0, model.layers[0].weights[0].numpy() == 0)


def test_without_the_option_they_do_not():
    model = with_kernels(networks.mlp(), sparse)
    q = trained(networks.quantized(model), networks.data(model))
    assert all((wrapper.flat_kernel().numpy() == 0).mean() < 0.2 for wrapper in kernels(q))
    assert all(wrapper.structure is None for wrapper in kernels(q))


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_clusters_stay(granularity):
    model = with_kernels(networks.sequential(), clustered(8))
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):  # Signs of gains are those of codes.
            layer.gamma.assign(np.abs(layer.gamma))
    x = networks.data(model)
    q = networks.quantized(model, x, keep_clusters=True, granularity=granularity)
    before = [wrapper.flat_kernel().numpy() for wrapper in kernels(q)]
    # Its steps are not those of each weight alone.
    trained(q, x, keras.optimizers.Adafactor(0.01))
    lite = kerasq.export_tflite(q)
    for wrapper, kernel in zip(kernels(q), before, strict=True):
        values, ids = np.unique(kernel, return_inverse=True)
        after, codes = wrapper.flat_kernel().numpy(), exported(lite, wrapper)
        assert len(values) == 8 and np.abs(after - kernel).max() > 1e-3
        for i in range(8):
            assert len(np.unique(after[ids.reshape(after.shape) == i])) == 1
        by_channel = [len(np.unique(c)) for c in np.moveaxis(codes, -1, 0)]
        assert max(by_channel) <= 8
        # Gains that are folded in tell channels apart, where they have one scale.
        is_alone = granularity == "per_channel" or wrapper.batch_norm is None
        assert (len(np.unique(codes)) == 8) == is_alone
    assert kerasq.compare(q, lite, x=x).max_lsb == 0


def test_sparse_and_clustered_folded(tmp_path):
    model = with_kernels(networks.sequential(), clustered(5))
    x = networks.data(model)
    q = networks.quantized(
        model, x, keep_zeros=True, keep_clusters=True, batch_norm="fold", scheme="w4a8"
    )
    wrapper = q.get_layer("conv")
    kernel = wrapper.flat_kernel().numpy()
    trained(q, x)
    after = wrapper.flat_kernel().numpy()
    np.testing.assert_array_equal(after == 0, kernel == 0)
    for a, b in zip(np.moveaxis(kernel, -1, 0), np.moveaxis(after, -1, 0), strict=True):
        assert len(np.unique(a)) == len(np.unique(b)) <= 5
    codes = wrapper.integer_weights().codes.numpy()
    assert max(len(np.unique(c)) for c in np.moveaxis(codes, -1, 0)) <= 5
    q.save(tmp_path / "q.keras")
    again = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(again.predict_on_batch(x), q.predict_on_batch(x))
    np.testing.assert_array_equal(again.get_layer("conv").structure.ids, wrapper.structure.ids)


def test_gradients_by_hand():
    structure = Structure(zeros=True, clusters=3)
    kernel = tf.constant([[0.5, -1.0], [0.5, 0.0], [-1.0, 0.5]])
    structure.start(lambda: kernel)
    # Values in order are -1, 0 and 0.5.
    np.testing.assert_array_equal(structure.ids, [[2, 0], [2, 1], [0, 2]])
    with tf.GradientTape() as tape:
        tape.watch(kernel)
        y = tf.reduce_sum(structure.kept(kernel) * [[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]])
    expected = [[37 / 3, 9.0], [37 / 3, 0.0], [9.0, 37 / 3]]
    np.testing.assert_allclose(tape.gradient(y, kernel), expected, rtol=1e-6)
    # A member that is pruned counts no more.
    structure.mask.assign([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    moved = structure.restored(tf.constant([[9.0, -1.0], [0.5, 0.3], [-2.0, 0.7]]))
    np.testing.assert_allclose(moved, [[0.0, -1.5], [0.6, 0.0], [-1.5, 0.6]], rtol=1e-6)


def test_what_is_clustered():
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(3, 3, 8, 16)).astype("float32")
    assert clusters_of(dense) is None
    assert clusters_of(np.where(rng.random(dense.shape) < 0.9, 0, dense)) is None
    few = np.round(dense * 4)
    np.testing.assert_array_equal(np.unique(few)[clusters_of(few)], few)
    # Each channel by itself, as where a gain was folded in.
    ids = clusters_of(few * rng.uniform(1, 2, 16).astype("float32"))
    for i in range(16):
        assert len(np.unique(ids[..., i])) == len(np.unique(few[..., i]))
    assert not set(ids[..., 0].ravel()) & set(ids[..., 1].ravel())
    assert clusters_of(np.float32([[1.0, 2.0], [3.0, 4.0]])) is None
    assert clusters_of(np.zeros((2, 2), "float32")) is None


def test_copies_keep_them():
    model = with_kernels(networks.residual(), sparse)
    x = networks.data(model)
    q = networks.quantized(model, x, keep_zeros=True, keep_clusters=True)
    wanted = [wrapper.mask.numpy() for wrapper in kernels(q)]
    assert not all(mask.all() for mask in wanted)
    cloned = keras.models.clone_model(q)
    cloned.set_weights(q.get_weights())
    for copy in (cloned, kerasq.retarget(q, "tflm")):
        for wrapper, mask in zip(kernels(copy), wanted, strict=True):
            np.testing.assert_array_equal(wrapper.mask, mask)
            changed = wrapper.kernel.constraint(tf.ones(wrapper.kernel.shape))
            np.testing.assert_array_equal(wrapper.rule.flatten(changed), mask)


def test_a_shared_layer_and_its_own_constraint():
    networks.set_seed(0)
    layer = L.Dense(4, kernel_constraint=keras.constraints.MaxNorm(0.5), name="twice")
    x = keras.Input((4,))
    model = with_kernels(keras.Model(x, layer(layer(x))), sparse)
    data = networks.data(model)
    q = networks.quantized(model, data, keep_zeros=True)
    trained(q, data, keras.optimizers.SGD(0.1, momentum=0.9))
    kernel = q.get_layer("twice").flat_kernel().numpy()
    np.testing.assert_array_equal(kernel == 0, model.get_layer("twice").kernel.numpy() == 0)
    assert np.linalg.norm(kernel, axis=0).max() <= 0.5 + 1e-6


def test_rounding_up_or_down_revives_nothing():
    """By hand: clipping takes 2 from one weight, for which one of 0 that is rounded up makes up."""
    model = keras.Sequential([keras.Input((2,)), L.Dense(2, use_bias=False, name="d")])
    model.set_weights([np.float32([[9.0, 9.0], [0.0, 0.0]])])
    x = np.random.default_rng(0).normal(0.5, 1.0, (64, 1)) * [1.0, 1.0]
    found = []
    for keep in (False, True):
        q = networks.quantized(model, x.astype("float32"), scheme="w4a8", keep_zeros=keep)
        layer = q.get_layer("d")
        layer.weight_quantizer.kernel_range.assign([7.0, 7.0])
        kerasq.adaround(q, x, iterations=300, learning_rate=2e-2)
        found.append(layer.integer_weights().codes.numpy()[1])
    np.testing.assert_array_equal(found, [[1.0, 1.0], [0.0, 0.0]])


def test_clusters_are_not_rounded_apart():
    model = with_kernels(networks.mlp(), clustered(6))
    x = networks.data(model)
    q = networks.quantized(model, x, scheme="w4a8", keep_clusters=True)
    before = q.predict_on_batch(x)
    assert set(kerasq.adaround(q, x, iterations=10).left) == {w.name for w in kernels(q)}
    np.testing.assert_array_equal(q.predict_on_batch(x), before)
    q = networks.quantized(model, x, scheme="w4a8", keep_clusters=True)
    assert set(kerasq.seq_mse(q, x).left) == {w.name for w in kernels(q)}


def test_powers_of_two_beside_zeros():
    model = with_kernels(networks.mlp(), sparse)
    x = networks.data(model)
    q = networks.quantized(model, x, scheme="w4a8", weights="power_of_two", keep_zeros=True)
    q.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    inq = kerasq.IncrementalQuantization((0.25, 0.5, 1.0))
    q.fit(x, np.zeros((len(x), 3)), epochs=3, verbose=0, callbacks=[inq])
    for wrapper in kernels(q):
        mask = wrapper.mask.numpy()
        codes = np.abs(wrapper.integer_weights().codes.numpy())
        assert (codes[mask == 0] == 0).all() and set(np.unique(codes)) <= {0, 8, 16, 32, 64}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scheme": "w1a8", "keep_zeros": True}, "stay 0 must have a code.*'Binary'"),
        (
            {"scheme": "w2a8", "weights": "dorefa", "keep_zeros": True},
            "stay 0 must have a code.*'DoReFa'",
        ),
        (
            {"scheme": "w4a8", "weights": "power_of_two", "keep_clusters": True},
            "kept by uniform weights.*'PowerOfTwo' in layer 'hidden', which has 6 clusters",
        ),
    ],
)
def test_weights_that_cannot(options, text):
    model = with_kernels(networks.mlp(), clustered(6))
    with pytest.raises(ValueError, match=text):
        kerasq.quantize_model(model, **options)


@pytest.mark.parametrize("weights", ["ternary", "trained_ternary"])
def test_ternary_weights_have_a_zero(weights):
    model = with_kernels(networks.mlp(), sparse)
    q = networks.quantized(model, scheme="w2a8", weights=weights, keep_zeros=True)
    for wrapper in kernels(q):
        codes, mask = wrapper.integer_weights().codes.numpy(), wrapper.mask.numpy()
        assert (codes[mask == 0] == 0).all()
