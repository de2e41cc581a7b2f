"""`equalize`: values by hand, the same function, and where it must help."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq import fake_quant, kernels
from tests import networks
from tools.randomize import randomize

L = keras.layers


def far(model, other, x):
    """The largest difference of two models, over the largest value."""
    pairs = zip(*(keras.tree.flatten(m.predict_on_batch(x)) for m in (model, other)), strict=True)
    return max(np.abs(y - z).max() / np.abs(y).max() for y, z in pairs)


def equal(model, x=None, data=None, **options):
    """Equalizes a model, which must stay as it was, to one that computes the same."""
    before = [w.numpy() for w in model.weights]
    x = networks.data(model) if x is None else x
    found = kerasq.equalize(model, data, **options)
    assert far(model, found.model, x) < 1e-4
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    return found


def dense(units, **options):
    return L.Dense(units, name=f"dense_{units}", **options)


def test_two_layers_by_hand():
    """r_out = (8, 1/2), r_in = (2, 2): factors (2, 1/2)."""
    model = keras.Sequential([keras.Input((2,)), L.Dense(2, "relu", name="a"), dense(1)])
    weights = [[8.0, 0.5], [1.0, -0.5]], [3.0, 4.0], [[2.0], [-2.0]], [7.0]
    model.set_weights([np.array(w) for w in weights])
    found = equal(model)
    expected = [[4.0, 1.0], [0.5, -1.0]], [1.5, 8.0], [[4.0], [-1.0]], [7.0]
    for new, wanted in zip(found.model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(new, wanted, rtol=1e-6)
    assert (found.layers, found.before, found.left.keys()) == (("a",), (16.0,), {"dense_1"})
    np.testing.assert_allclose(found.after, 4.0, rtol=1e-6)
    assert "16.0" in str(found) and "dense_1: output of the model" in str(found)


def test_batch_normalization_takes_the_factors():
    """Folded, the kernel is (4, 1); behind it (1, 4): factors (2, 1/2)."""
    x = keras.Input((1,))
    y = L.BatchNormalization(epsilon=0.0, name="norm")(dense(2, use_bias=False)(x))
    model = keras.Model(x, dense(1)(L.LeakyReLU(0.5)(y)))
    weights = [[8.0, 5.0]], [3.0, 2.0], [1.0, 4.0], [0.5, 2.0], [36.0, 100.0], [[1.0], [4.0]], [0]
    model.set_weights([np.array(w) for w in weights])
    found = equal(model, np.linspace(-3, 3, 7, dtype="float32")[:, None])
    kernel, gamma, beta, mean, variance, last, _ = found.model.get_weights()
    np.testing.assert_array_equal(kernel, [[8.0, 5.0]])
    # What values reach, 10 and 10 at first, slows the last per cent of the way down.
    np.testing.assert_allclose(gamma, [1.5, 4.0], rtol=1e-2)
    np.testing.assert_allclose(beta, [0.5, 8.0], rtol=1e-2)
    np.testing.assert_array_equal([mean, variance], [[0.5, 2.0], [36.0, 100.0]])
    np.testing.assert_allclose(last, [[2.0], [2.0]], rtol=1e-2)


def test_dead_channels_are_left_alone():
    model = keras.Sequential([keras.Input((1,)), L.Dense(3, "relu"), L.Dense(1)])
    weights = [[0.0, 3.0, 2.0]], [1.0, 1.0, 1.0], [[5.0], [0.0], [8.0]], [0.0]
    model.set_weights([np.array(w) for w in weights])
    first, bias, last, _ = equal(model).model.get_weights()
    np.testing.assert_allclose(first, [[0.0, 3.0, 4.0]], rtol=1e-6)
    np.testing.assert_allclose(bias, [1.0, 1.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(last, [[5.0], [0.0], [4.0]], rtol=1e-6)


def spread(model, seed=0):
    """Channels of all kernels, and what is behind them, that differ by orders of magnitude."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.path.split("/")[-1] in ("kernel", "pointwise_kernel", "depthwise_kernel"):
            weight.assign(weight.numpy() * 10.0 ** rng.uniform(-1, 1, weight.shape[-1]))
    return model


def layered(x):
    """Layers of every kind that let factors through."""
    x = L.Conv2D(6, 3, padding="same", activation="relu")(x)
    x = L.ZeroPadding2D(1)(L.SeparableConv2D(8, 3, depth_multiplier=2, name="sep")(x))
    x = L.AveragePooling2D(2)(L.PReLU(shared_axes=[1, 2], alpha_initializer="uniform")(x))
    x = L.Conv2D(8, 3, groups=2, padding="same", activation=L.LeakyReLU(0.1), name="sliced")(x)
    x = L.Dropout(0.1)(L.UpSampling2D()(L.Conv2D(4, 1, groups=4)(x[:, :, :, :4])))
    x = L.Conv2DTranspose(6, 3, strides=2, padding="same", activation=tf.nn.relu)(x)
    x = L.DepthwiseConv2D(3, depth_multiplier=2, activation="relu")(L.MaxPooling2D(2)(x))
    x = L.Concatenate()([x, L.Conv2D(3, 1)(x)])
    x = L.Dense(7)(L.Flatten()(keras.ops.relu(x)))
    return L.Dense(3, activation="softmax", name="head")(L.ReLU()(x))


def test_layers_of_every_kind():
    networks.set_seed(0)
    image = keras.Input((8, 8, 3))
    model = spread(keras.Model(image, layered(image)))
    found = equal(model)
    names = {x.name for x in model.layers if x.weights and type(x) is not L.PReLU}
    assert {*found.left} == {"sliced", "head"}
    assert {*found.layers} == names - {"sliced", "head"} | {"sep_depthwise"}
    assert [x.name for x in found.model.layers if x.weights] == [
        x.name for x in model.layers if x.weights
    ]


def preactivation():
    """BatchNormalization in front of convolutions, on a residual stream."""
    networks.set_seed(0)
    x = image = keras.Input((8, 8, 3))
    x = L.Conv2D(6, 3, name="stem")(x)
    for i in range(2):
        y = L.ReLU()(L.BatchNormalization(name=f"norm_{i}")(x))
        x = L.Add()([x, L.Conv2D(6, 3, padding="same", name=f"conv_{i}")(y)])
    x = L.Dense(3)(L.GlobalAveragePooling2D()(x))
    return networks.shake_norms(keras.Model(image, x))


def test_batch_normalization_in_front():
    found = equal(spread(preactivation()))
    assert {*found.layers} == {"stem", "norm_0", "conv_0", "norm_1", "conv_1"}


@pytest.mark.parametrize("name", ["residual", "mobile", "two_by_two", "sequential"])
def test_networks(name):
    found = equal(spread(getattr(networks, name)()))
    assert found.layers and found.left


def test_what_is_added_has_one_factor():
    """r_out = max(8, 2) and r_in = max(1/2, 2): a factor of 2 for both terms and both readers."""
    x = keras.Input((1,))
    y = L.Add()([L.Dense(1, name="a")(x), L.Dense(1, name="b")(x)])
    model = keras.Model(x, L.Concatenate()([L.Dense(1, name="c")(y), L.Dense(1, name="d")(y)]))
    values = {"a": (8.0, 1.0), "b": (2.0, 1.0), "c": (0.5, 1.0), "d": (2.0, 1.0)}
    for name, (kernel, bias) in values.items():
        model.get_layer(name).set_weights([np.array([[kernel]]), np.array([bias])])
    found = equal(model).model
    expected = {"a": (4.0, 0.5), "b": (1.0, 0.5), "c": (1.0, 1.0), "d": (4.0, 1.0)}
    for name, wanted in expected.items():
        weights = [np.ravel(w) for w in found.get_layer(name).get_weights()]
        np.testing.assert_allclose(np.concatenate(weights), wanted, rtol=1e-6)


def test_shared_layers_and_nested_models():
    networks.set_seed(0)
    inner = keras.Sequential(
        [keras.Input((5,)), L.Dense(5, "relu", name="in"), dense(5)], name="inner"
    )
    shared = L.Dense(5, activation="relu6", name="shared")
    x = keras.Input((4,))
    y = shared(inner(shared(L.Dense(5, activation="relu", name="first")(x))))
    model = spread(keras.Model(x, L.Dense(2, name="head")(y)))
    found = equal(model, networks.data(model, scale=20.0))
    assert {*found.layers} == {"first", "shared", "in", "dense_5"}
    assert found.limited == ("shared", "shared_2")
    assert len([w for w in found.model.weights if "limits" not in w.path]) == len(model.weights)
    q = kerasq.quantize_model(found.model)
    assert {"first", "shared", "shared_2", "in"} <= {layer.name for layer in q.layers}


def limited(activation="layer", gamma=1.0):
    """A network whose channels differ by 100 in front of a limit."""
    networks.set_seed(0)
    x = image = keras.Input((6, 6, 2), name="image")
    own = {} if activation == "layer" else {"activation": activation}
    x = L.Conv2D(4, 3, padding="same", name="conv", **own)(x)
    if activation == "layer":
        x = L.ReLU(6.0, name="relu")(L.BatchNormalization(name="norm")(x))
    x = L.Conv2D(3, 3, name="last")(x)
    model = keras.Model(image, x)
    model.get_layer("conv").kernel.assign(model.get_layer("conv").kernel * [1, 3, 10, 30])
    if activation == "layer":
        model.get_layer("norm").gamma.assign([gamma, 0.1, 0.1, -0.1])
    return model


@pytest.mark.parametrize("activation", ["layer", "relu6", tf.nn.relu6, L.ReLU(6.0)])
def test_limits_that_are_reached_are_those_of_channels(activation):
    model = limited(activation, 4.0)
    x = networks.data(model, 64, scale=4.0)
    # It is a limit.
    assert far(model, kerasq.equalize(model, limits="remove").model, x) > 0.01
    found = equal(model, x)
    name = "relu" if activation == "layer" else "conv"
    assert found.limited == (name,) and not found.unlimited
    left = equal(model, x, limits="leave")
    assert left.left["conv"] == f"the limit of '{name}'" and not left.layers
    q = networks.quantized(found.model, x)
    report = kerasq.compare(q, kerasq.export_tflite(q), x=x)
    assert report.exact == 1.0 and networks.sqnr(model, q, x) > 30.0


def test_limits_that_are_not_reached_are_left_out():
    model = limited(gamma=0.9)  # 6 * 0.9 < 6, of a layer whose statistics say so.
    found = kerasq.equalize(model)
    assert found.unlimited == ("relu",) and found.model.get_layer("relu").max_value is None
    assert kerasq.equalize(limited(gamma=1.1)).limited == ("relu",)
    # Data, where there are some, says more.
    model = limited("relu6")
    small = networks.data(model, scale=0.01)
    assert equal(model, small, data=small).unlimited == ("conv",)
    assert equal(model, data=networks.data(model, scale=10.0), limits="leave").left["conv"]


def test_what_is_left_alone_is_named():
    x = keras.Input((4,), name="x")
    a = L.Dense(4, name="a")(x)
    b = L.BatchNormalization(scale=False, name="plain")(L.Dense(4, name="b")(a))
    y = L.Multiply(name="times")([L.Dense(4, activation="tanh", name="c")(x), b])
    model = keras.Model(x, L.Dense(2, name="d")(L.Activation("silu", name="act")(y)))
    found = equal(model)
    assert found.layers == ("a",)
    assert found.left == {
        "b": "no gamma in 'plain'",
        "c": "of 'c' (tanh)",
        "d": "output of the model",
    }


@keras.saving.register_keras_serializable("tests")
class OneScale(kerasq.WeightQuantizer):
    """One scale for all channels."""

    def scale(self, kernel):
        largest = 2 ** (self.bits - 1) - 1
        return tf.fill(kernel.shape[-1:], tf.reduce_max(tf.abs(kernel)) / largest)

    def codes(self, kernel):
        largest = 2.0 ** (self.bits - 1) - 1
        return tf.clip_by_value(tf.round(kernel / self.scale(kernel)), -largest, largest)

    def integer(self, kernel, gain, *, least):
        exact = tf.cast(kernel, tf.float64) * tf.cast(gain, tf.float64)
        high = tf.fill(kernel.shape[-1:], tf.cast(tf.reduce_max(tf.abs(exact)), tf.float32))
        grid = fake_quant.grid_from_range(-high, high, self.bits, narrow=True, axis=-1)
        grid = dataclasses.replace(grid, scale=tf.maximum(grid.scale, tf.reduce_max(least)))
        return kernels.quantize_weights(exact, grid), grid


@pytest.mark.parametrize(("weights", "gain"), [(OneScale(), 20.0), ("uniform", 5.0)])
def test_it_helps_channels_that_differ_by_orders_of_magnitude(weights, gain):
    """What one layer makes of channels the next one undoes."""
    networks.set_seed(0)
    image = keras.Input((6, 6, 3))
    x = L.BatchNormalization(name="norm")(L.Conv2D(16, 3, name="first")(image))
    x = L.DepthwiseConv2D(3, padding="same", name="middle")(L.ReLU()(x))
    model = keras.Model(image, L.Conv2D(5, 1, name="last")(L.PReLU("ones", shared_axes=[1, 2])(x)))
    factors = np.geomspace(1e-2, 1e2, 16)
    norm, last = model.get_layer("norm"), model.get_layer("last")
    norm.gamma.assign(factors)
    last.kernel.assign(last.kernel / factors[:, None])
    x = networks.data(model, 64)
    found = equal(model, x)
    found_sqnr = []
    for own in (model, found.model):
        q = networks.quantized(own, x, scheme="w7a8", weights=weights, batch_norm="fold")
        found_sqnr.append(networks.sqnr(model, q, x))
    assert kerasq.compare(q, kerasq.export_tflite(q), x=x).exact == 1.0
    assert found_sqnr[1] > found_sqnr[0] + gain, found_sqnr
    assert max(found.before) > 5e3 and max(found.after) < 3


def test_a_mobilenet():
    networks.set_seed(0)
    model = keras.applications.MobileNetV2(
        weights=None, alpha=0.35, input_shape=(64, 64, 3), classifier_activation=None
    )
    randomize(networks.shake_norms(model))
    found = equal(model, networks.images(model, 4))
    assert found.left == {"predictions": "output of the model"}
    assert len(found.layers) == 52 and len(found.limited) == 35


def test_it_is_saved(tmp_path):
    model = limited(gamma=4.0)
    found = kerasq.equalize(model)
    found.model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert far(model, loaded, networks.data(model)) < 1e-4
    # What has a limit for each channel already is left alone, and nothing is lost.
    assert equal(loaded).left["conv"] == "of 'relu_limits' (Constant)"


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float32"])
def test_precision_and_class_are_kept(policy):
    x = keras.Input((3,))
    y = L.Dense(4, activation="relu", dtype=policy)(x)

    class Trained(keras.Model):
        def train_step(self, data):
            return {}

    model = Trained(x, L.Dense(2, dtype=policy)(y))
    made = kerasq.equalize(model).model
    assert type(made) is Trained
    assert {layer.dtype_policy.name for layer in made.layers if layer.weights} == {policy}


def test_errors():
    model = networks.mlp()
    with pytest.raises(ValueError, match=r"`limits` must be one of .* limits='clip'"):
        kerasq.equalize(model, limits="clip")
    with pytest.raises(ValueError, match="is quantized already"):
        kerasq.equalize(kerasq.quantize_model(model))
    model.layers[1].bias.assign(np.full(12, np.nan))
    with pytest.raises(ValueError, match="'hidden': bias"):
        kerasq.equalize(model)


def test_a_channel_that_is_all_but_constant_is_not_blown_up():
    """Weights of next to nothing and a bias that is not: by weights alone its factor is 1e-4."""
    model = keras.Sequential(
        [
            keras.Input((4,)),
            L.Dense(4, use_bias=False, name="a"),
            L.BatchNormalization(name="norm"),
            L.ReLU(),
            L.Dense(3, name="b"),
        ]
    )
    norm = model.get_layer("norm")
    rng = np.random.default_rng(0)
    model.get_layer("a").kernel.assign(np.eye(4))
    model.get_layer("b").kernel.assign(rng.choice([-1.0, 1.0], (4, 3)))
    norm.gamma.assign([1.0, 1.0, 1.0, 1e-8])
    norm.beta.assign([0.0, 0.0, 0.0, 2.0])
    x = rng.normal(size=(64, 4)).astype("f")
    before = model.predict_on_batch(x)
    found = kerasq.equalize(model)
    np.testing.assert_allclose(found.model.predict_on_batch(x), before, rtol=1e-4, atol=1e-5)
    # By hand: the others reach 3, it reaches 2, so that its factor may be 2/3 of their mean.
    equalized = found.model.get_layer("norm")
    gamma, beta = equalized.gamma.numpy(), equalized.beta.numpy()
    assert beta[3] < 3.5 * gamma[:3].mean()
    q = networks.quantized(found.model, x, granularity="per_tensor")
    assert networks.sqnr(model, q, x) > 25.0
