"""Models of Keras 2, rebuilt in Keras 3."""

import os
import re

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras

import kerasq
from kerasq import legacy
from tests import networks

L = tf_keras.layers


def sequential():
    return tf_keras.Sequential(
        [
            tf_keras.Input((8, 8, 3)),
            L.Conv2D(4, 3, activation="relu"),
            L.BatchNormalization(),
            L.DepthwiseConv2D(3),
            L.SeparableConv2D(4, 3, padding="same"),
            L.PReLU(shared_axes=[1, 2]),
            L.Flatten(),
            L.Dense(3, activation="softmax"),
        ]
    )


def functional():
    image = tf_keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, padding="same", kernel_regularizer="l2")(image)
    y = tf.nn.relu(x * 2.0 + 1.0)
    z = tf.reduce_mean(x[:, 1:5, ::2], axis=[1, 2])
    w = tf.concat([tf.reshape(y, (-1, 256)), z, sequential()(image)], -1)
    return tf_keras.Model(image, {"a": L.Dense(3)(w), "b": L.Add()([x, y])})


def relu(x):
    return tf.nn.relu(x) + 0.1 * tf.sin(x)  # Not what its name says.


def of_ones_own():
    image = tf_keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, activation=tf.nn.relu6)(image)
    x = L.Conv2D(4, 3, activation=lambda x: 0.5 * tf.nn.leaky_relu(x))(L.Activation(relu)(x))
    x = L.Lambda(lambda x, size: tf.image.resize(x, size), arguments={"size": (6, 6)})(x)
    x = L.Lambda(lambda x: tf_keras.backend.concatenate([x, 2.0 * x]))(x)
    return tf_keras.Model(image, L.Dense(3, activation=L.LeakyReLU(0.3))(L.Flatten()(x)))


def recurrent():
    x = series = tf_keras.Input((6, 4))
    x = L.Bidirectional(L.LSTM(5, return_sequences=True))(x)
    x = L.TimeDistributed(L.Dense(3))(x)
    x = L.GRU(4, return_sequences=True)(x)
    x = L.MultiHeadAttention(2, 3)(x, L.LayerNormalization()(x))
    return tf_keras.Model(series, L.SimpleRNN(3)(x))


def shared():
    first, second = tf_keras.Input((4,)), tf_keras.Input((4,))
    dense = L.Dense(3)
    return tf_keras.Model([first, second], L.Concatenate()([dense(first), dense(second)]))


def normalized():
    norm = L.Normalization()
    norm.adapt(np.random.default_rng(0).normal(3.0, 2.0, (50, 4)))
    return tf_keras.Sequential([tf_keras.Input((4,)), norm, L.Dense(2)])


def application(name):
    def make():
        build = getattr(tf_keras.applications, name)
        return build(weights=None, input_shape=(64, 64, 3), classes=4)

    return make


def dense(wrap):
    return wrap(tf_keras.Sequential([tf_keras.Input((4,)), L.Dense(5, name="d")]))


def pruned():
    return dense(tfmot.sparsity.keras.prune_low_magnitude)


def clustered():
    initial = tfmot.clustering.keras.CentroidInitialization.LINEAR
    return dense(
        lambda model: tfmot.clustering.keras.cluster_weights(
            model, number_of_clusters=3, cluster_centroids_init=initial
        )
    )


MODELS = {
    "sequential": sequential,
    "functional": functional,
    "of_ones_own": of_ones_own,
    "recurrent": recurrent,
    "shared": shared,
    "normalized": normalized,
    "mobilenet_v3": application("MobileNetV3Small"),
    "densenet": application("DenseNet121"),
    "pruned": lambda: tfmot.sparsity.keras.strip_pruning(pruned()),
    "clustered": lambda: tfmot.clustering.keras.strip_clustering(clustered()),
}


def shaken(model, seed=0):
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "moving" in weight.name:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


def data(model, count=16):
    rng = np.random.default_rng(1)
    x = [rng.normal(size=(count, *y.shape[1:])).astype("f") for y in model.inputs]
    return x if len(x) > 1 else x[0]


@pytest.mark.parametrize("name", MODELS)
def test_the_rebuilt_model_is_equal(name):
    tf_keras.utils.set_random_seed(0)
    old = shaken(MODELS[name]())
    new = legacy.rebuild(old)
    x = data(old)
    want, got = (tf.nest.flatten(networks.run(model, x)) for model in (old, new))
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert isinstance(new, keras.Model) and new.name == old.name


@pytest.mark.parametrize("make", [sequential, of_ones_own])
def test_quantize_model_takes_one(make):
    old = shaken(make())
    q = kerasq.quantize_model(old)
    kerasq.calibrate(q, data(old))
    assert kerasq.export_tflite(q).float_ops == []
    np.testing.assert_allclose(networks.run(q, data(old)), networks.run(old, data(old)), atol=0.1)


def test_a_file_of_keras_2(tmp_path):
    """What Keras 3 itself refuses: DepthwiseConv2D has no `groups` there."""
    old = shaken(sequential())
    old.save(tmp_path / "old.h5")
    with h5py.File(tmp_path / "old.h5", "a") as file:
        file.attrs["keras_version"] = "2.4.0"
    with pytest.raises((TypeError, ValueError)):
        keras.models.load_model(tmp_path / "old.h5")
    new = kerasq.load_model(tmp_path / "old.h5")
    x = data(old)
    np.testing.assert_allclose(networks.run(new, x), networks.run(old, x), atol=1e-5)


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_functions_in_a_file(suffix, tmp_path):
    """Files name all arguments of functions, as TensorFlow does."""
    image = tf_keras.Input((8, 8, 3))
    x = L.LeakyReLU(alpha=0.1)(L.Conv2D(4, 3)(image))
    y = tf.maximum(tf.multiply(1.0 - x, 2.0) ** 2.0, 0.1) + 1.0
    y = tf.clip_by_value(tf.transpose(y, (0, 3, 1, 2)), 0.2, 5.0)
    y, z = tf.split(tf.reshape(y[:, 1:3], (-1, 72)), [24, 48], axis=1)
    old = tf_keras.Model(image, tf.concat([y, z, z], axis=1))
    old.save(tmp_path / f"old.{suffix}")
    new, x = kerasq.load_model(tmp_path / f"old.{suffix}"), data(old)
    np.testing.assert_allclose(networks.run(new, x), networks.run(old, x), atol=1e-5)


KERNEL = np.random.default_rng(2).normal(size=(3, 3, 4, 4)).astype("f")
FUNCTIONS = {
    "images": lambda x: tf.nn.depth_to_space(tf.image.resize(x, tf.shape(x)[1:3] * 2), 2),
    "products": lambda x: tf.einsum("bhwc,bhvc->bhwv", x, tf.matmul(x, x, transpose_b=True) @ x),
    "windows": lambda x: tf.nn.max_pool2d(tf.nn.conv2d(x, KERNEL, 1, "SAME"), 2, 2, "VALID"),
    "moves": lambda x: tf.reverse(
        tf.roll(tf.tile(tf.pad(x, [[0, 0], *[[1, 0]] * 3]), [1, 2, 1, 1]), 1, 1), [1]
    ),
    "parts": lambda x: tf.unstack(tf.repeat(tf.gather(x, [2, 0], axis=1), 2, axis=2), axis=-1)[1],
    "one": lambda x: tf.squeeze(tf.squeeze(x[:, :1, :1], 1), 1),
    "choices": lambda x: tf.where(tf.logical_and(x > -0.5, x < 0.5), x, tf.math.top_k(x, 4)[0]),
    "vectors": lambda x: tf.math.l2_normalize(x, -1) + tf.stop_gradient(tf.nn.log_softmax(x)),
    "labels": lambda x: tf.argmax(x, -1),
    "shapes": lambda x: tf.reshape(x, [tf.shape(x)[0], -1, tf.shape(x)[3]]),
    "tokens": lambda x: tf.concat([tf.fill([tf.shape(x)[0], 1, 4, 4], 0.5), x], 1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    image = tf_keras.Input((4, 4, 4))
    old = tf_keras.Model(image, FUNCTIONS[name](image))
    new = legacy.rebuild(old)
    want, got = networks.run(old, data(old)), networks.run(new, data(old))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(x, keras.layers.Lambda) for x in new.operations)
    assert new.operations[-1].name == old.layers[-1].name.replace(".", "_")


def test_functions_that_stay_float(capsys):
    """What has no operation in Keras is a layer, with what tells it numbers that are no floats."""
    tf_keras.utils.set_random_seed(0)
    image = tf_keras.Input((4, 4))
    x = tf.where(tf.math.is_nan(image), 0.0, L.Dense(4)(image))
    x = tf.cumsum(L.Dense(4)(x), 1) + tf.one_hot(tf.argmax(x, -1), 4) * 0.02
    old = tf_keras.Model(image, L.Dense(3)(x))
    q = kerasq.quantize_model(old)
    named = re.findall(r"'(\w+?)(?:_\d+)?' \(Lambda: cannot be traced", capsys.readouterr().out)
    assert sorted(named) == ["tf_math_cumsum", "tf_one_hot", "tf_where"]
    kerasq.calibrate(q, data(old))
    lite = kerasq.export_tflite(q)
    np.testing.assert_array_equal(lite.predict(data(old)), networks.run(q, data(old)))
    np.testing.assert_allclose(networks.run(q, data(old)), networks.run(old, data(old)), atol=0.1)


@pytest.mark.parametrize("is_file", [False, True])
def test_functions_called_by_the_names_of_their_arguments(is_file, tmp_path):
    x = tf_keras.Input((4, 6))
    y = tf.subtract(y=x, x=3.0) + tf.maximum(x=0.1, y=x) + tf.nn.leaky_relu(features=x, alpha=0.3)
    y = tf.concat(
        values=[y, tf.clip_by_value(clip_value_min=-0.5, clip_value_max=0.5, t=y)], axis=2
    )
    y, z = tf.split(value=tf.transpose(a=y, perm=[0, 2, 1]), num_or_size_splits=[8, 4], axis=1)
    y = tf.reshape(tensor=tf.reduce_mean(input_tensor=y, axis=2), shape=[-1, 8, 1])
    old = tf_keras.Model(x, tf.concat(values=[y * z[:, :1], z], axis=1))
    old.save(tmp_path / "old.h5")
    new = kerasq.load_model(tmp_path / "old.h5") if is_file else legacy.rebuild(old)
    x = data(old)
    np.testing.assert_allclose(networks.run(new, x), networks.run(old, x), atol=1e-5)


def test_the_hard_sigmoid_of_keras_2_is_refused():
    model = tf_keras.Sequential([tf_keras.Input((4,)), L.Dense(2, "hard_sigmoid", name="d")])
    with pytest.raises(ValueError, match=r"is not that of Keras 3.*Received: layer 'd'"):
        kerasq.quantize_model(model)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_files_of_keras_3(suffix, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.save(tmp_path / f"new.{suffix}")
    loaded = kerasq.load_model(tmp_path / f"new.{suffix}")
    x = np.ones((2, 4), "f")
    np.testing.assert_array_equal(networks.run(loaded, x), networks.run(model, x))


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path` must be a file. Received: .*none.h5"):
        kerasq.load_model(tmp_path / "none.h5")


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_damaged_files(suffix, tmp_path):
    path = tmp_path / f"new.{suffix}"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"that Keras reads. Received: .*new.{suffix}.*Save the"):
        kerasq.load_model(path)


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_h5_files_with_code_are_not_run(library, tmp_path):
    ran = str(tmp_path / "ran")
    layers = [
        library.Input((4,)),
        library.layers.Lambda(lambda x: (os.makedirs(ran, exist_ok=True), x)[1], name="f"),
    ]
    library.Sequential(layers).save(tmp_path / "code.h5")
    os.rmdir(ran)
    match = r"must hold no code.*Received: .*code.h5': Lambda in \['f'\].*`safe_mode=False`"
    for safe in ({}, {"safe_mode": True}, {"safe_mode": None}, {"safe_mode": 0}):
        with pytest.raises(ValueError, match=match):
            kerasq.load_model(tmp_path / "code.h5", **safe)
    assert not os.path.exists(ran)


@pytest.mark.parametrize("library", [keras, tf_keras])
def test_keras_files_with_code_are_not_run(library, tmp_path):
    double = library.layers.Lambda(lambda x: 2 * x)
    library.Sequential([library.Input((4,)), double]).save(tmp_path / "code.keras")
    match = r"must hold no code.*Received: .*code.keras': .*ambda.*`safe_mode=False`"
    for safe in ({}, {"safe_mode": True}, {"safe_mode": None}, {"safe_mode": 0}):
        with pytest.raises(ValueError, match=match):
            kerasq.load_model(tmp_path / "code.keras", **safe)


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("library", [keras, tf_keras])
def test_code_of_a_file_runs_where_it_is_trusted(library, suffix, tmp_path):
    layers = [library.Input((4,)), library.layers.Dense(3)]
    layers += [library.layers.Lambda(lambda x: 2 * x, name="double")]
    model = library.Sequential(layers)
    model.save(tmp_path / f"code.{suffix}")
    loaded, x = kerasq.load_model(tmp_path / f"code.{suffix}", safe_mode=False), data(model)
    np.testing.assert_allclose(networks.run(loaded, x), networks.run(model, x), atol=1e-6)


def twice(x):
    return 2 * x


def test_functions_by_name_are_no_code_in_a_file(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(twice)])
    model.save(tmp_path / "named.keras")
    loaded = kerasq.load_model(tmp_path / "named.keras", custom_objects={"twice": twice})
    x = np.ones((2, 4), "f")
    np.testing.assert_array_equal(networks.run(loaded, x), 2 * x)


@pytest.mark.parametrize("make", [pruned, clustered])
def test_what_is_not_stripped(make):
    with pytest.raises(ValueError, match=r"Received: '.*_d' \(.*\).*strip_pruning or strip_clust"):
        kerasq.quantize_model(make())


def test_what_cannot_be_rebuilt():
    class Own(tf_keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="must be a built Functional or Sequential one"):
        kerasq.quantize_model(Own())
    x = tf_keras.Input((4,))
    with pytest.raises(ValueError, match=r"Received: 'own' \(Pass\)"):
        legacy.rebuild(tf_keras.Model(x, type("Pass", (L.Layer,), {})(name="own")(x)))
    with pytest.raises(ValueError, match=r"'tf_math_bessel_i0' \(Lambda\): TensorFlow's BesselI0"):
        kerasq.quantize_model(tf_keras.Model(x, tf.math.bessel_i0(x)))


def test_what_tfmot_made_stays():
    tf_keras.utils.set_random_seed(0)
    q = kerasq.quantize_model(MODELS["clustered"](), keep_clusters=True)
    assert q.get_layer("d").clusters == 3
    model = MODELS["pruned"]()
    kernel = model.get_layer("d").kernel
    kernel.assign(np.where(np.abs(kernel) < 0.3, 0.0, kernel))
    q = kerasq.quantize_model(model, keep_zeros=True)
    np.testing.assert_array_equal(q.get_layer("d").mask, np.abs(kernel) >= 0.3)


def test_a_call_for_inference_stays_one():
    """As of a frozen network in front of a new head."""
    base = tf_keras.Sequential([tf_keras.Input((8,)), L.Dense(5), L.BatchNormalization()])
    x = tf_keras.Input((8,))
    model = tf_keras.Model(x, L.Dense(1)(base(x, training=False)))
    data = np.random.default_rng(0).normal(3.0, 2.0, (64, 8)).astype("float32")
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, data)
    near = np.abs(np.asarray(q(data, training=True)) - np.asarray(q(data))).max()
    assert near < 0.05 * np.abs(np.asarray(model(data))).max()
    statistics = [v for v in q.variables if "moving" in v.path]
    before = [v.numpy() for v in statistics]
    q(data, training=True)
    for old, new in zip(before, statistics, strict=True):
        np.testing.assert_array_equal(old, new)
