"""Moments of a network's tensors, beside many samples that are as normal as it takes them to be."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq import graph
from kerasq.calibration.propagation import propagate
from kerasq.wrappers import infer_float
from tests import networks

L = keras.layers
SAMPLES = 4000


def standing(model, seed=0):
    """Gives each BatchNormalization statistics that are those of normal inputs."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, L.BatchNormalization):
            n = layer.gamma.shape[0]
            layer.gamma.assign(rng.uniform(0.5, 1.5, n) * np.where(np.arange(n) % 3 == 1, -1, 1))
            layer.beta.assign(rng.normal(0.0, 0.7, n))
            layer.moving_mean.assign(np.full(n, 2.0))
            layer.moving_variance.assign(np.full(n, 9.0))
    return model


def normal_layer(x, name="norm"):
    """Values that are exactly normal behind their BatchNormalization, where inputs are N(2, 9)."""
    x = L.Dense(x.shape[-1], use_bias=False, kernel_initializer="identity", name="one")(x)
    return L.BatchNormalization(name=name, epsilon=1e-9)(x)


def network(build, shape=(6, 6, 4)):
    networks.set_seed(0)
    x = keras.Input(shape, name="image")
    model = standing(keras.Model(x, build(normal_layer(x))))
    for layer in model.layers:
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(np.random.default_rng(1).normal(0.0, 0.5, layer.bias.shape))
    return kerasq.quantize_model(model)


def sampled(q, shape=(6, 6, 4)):
    """By name of a tensor, its values in the float network."""
    x = np.random.default_rng(0).normal(2.0, 3.0, (SAMPLES, *shape)).astype("float32")
    values = {}

    def call(node, *args, **kwargs):
        y = infer_float(node, *args, **kwargs)
        names = map(graph.tensor_name, node.outputs)
        values.update(zip(names, keras.tree.flatten(y), strict=True))
        return y

    graph.run(q, x, call)
    return {name: np.asarray(y, np.float64) for name, y in values.items()}


def silu_network(x):
    return L.Conv2D(3, 3, padding="same", name="last")(L.Activation("silu", name="silu")(x))


def hard_silu_network(x):
    return L.Conv2D(3, 3, name="last")(L.Activation("hard_silu", name="silu")(x))


BUILDS = {
    "conv, padded": lambda x: L.Conv2D(5, 3, padding="same", strides=2)(L.ReLU()(x)),
    "groups, dilated": lambda x: L.Conv2D(6, 3, groups=2, dilation_rate=2)(L.ReLU(1.0)(x)),
    "depthwise": lambda x: L.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(L.ReLU()(x)),
    "transposed": lambda x: L.Conv2DTranspose(3, 3, strides=2, padding="same")(L.ReLU()(x)),
    "dense behind flatten": lambda x: L.Dense(5)(L.Flatten()(L.ReLU(6.0)(x))),
    "moves": lambda x: L.Conv2D(3, 2)(
        L.Cropping2D(1)(L.ZeroPadding2D(2)(L.Dropout(0.5)(L.Permute((2, 1, 3))(L.ReLU()(x)))))
    ),
    "leaky": lambda x: L.Dense(4)(L.LeakyReLU(negative_slope=0.3)(x)),
    "silu": silu_network,
    "hard silu": hard_silu_network,
    "prelu": lambda x: L.Dense(3)(
        L.PReLU(shared_axes=[1, 2], alpha_initializer=keras.initializers.Constant(0.25))(x)
    ),
    "functions": lambda x: L.Concatenate()(
        [L.Activation(name)(x) for name in ("sigmoid", "tanh", "gelu", "elu", "softplus")]
    ),
    "maximum of neighbours": lambda x: L.Dense(4)(L.MaxPooling2D(3, strides=2)(L.ReLU()(x))),
    "squares": lambda x: L.Dense(2)(L.Multiply()([x, x])),
    "split": lambda x: L.Multiply()([*keras.ops.split(x, 2, axis=-1)]),
    "joined": lambda x: L.Dense(4)(L.Concatenate()([L.ReLU()(x[..., 2:]), x[..., :2]])),
    "softmax": lambda x: L.Dense(2)(L.Softmax()(x)),
}


@pytest.mark.parametrize("name", BUILDS)
def test_moments_are_those_of_samples(name):
    q = network(BUILDS[name])
    found, remarks = propagate(q, (-13.0, 17.0), (2.0, 3.0))
    assert bool(remarks) == (name == "softmax")
    values = sampled(q)
    assert len(found) >= 3
    for tensor, x in found.items():
        mean, variance = values[tensor].mean(axis=0), values[tensor].var(axis=0)
        deviation = np.sqrt(variance.max())
        # By chance as much as 5 of their own deviations, of some hundred values.
        drawn = 0.15 if name in ("maximum of neighbours", "softmax", "squares") else 0.08
        np.testing.assert_allclose(x.mean[0], mean, atol=drawn * deviation, err_msg=tensor)
        own = np.sqrt(x.variance[0]), np.sqrt(variance)
        np.testing.assert_allclose(*own, atol=drawn * deviation, err_msg=tensor)
        off = np.sqrt(np.mean(np.square(x.mean[0] - mean))) / deviation
        assert off < 0.4 * drawn, tensor
        low, high = x.ends
        # Products of normal values lie beyond 6 deviations now and then.
        slack = 0.01 * deviation
        outside = (values[tensor] < low - slack) | (values[tensor] > high + slack)
        assert outside.mean() < (1e-4 if name in ("squares", "split") else 1e-9), tensor
        assert high - low < 4.0 * np.ptp(values[tensor]), tensor


def test_sums_of_independent_tensors():
    a, b = keras.Input((4, 4, 3), name="a"), keras.Input((4, 4, 3), name="b")
    x = L.ReLU()(normal_layer(a))
    y = L.BatchNormalization(name="other")(L.Conv2D(3, 1, name="two", bias_initializer="ones")(b))
    model = standing(keras.Model([a, b], L.ReLU(name="out")(L.Subtract(name="apart")([y, x]))))
    q = kerasq.quantize_model(model)
    found, _ = propagate(q, {"a": (0.0, 1.0), "b": (0.0, 1.0)})
    x, y, z = (found[name] for name in ("one", "two", "apart"))
    np.testing.assert_allclose(z.normal.mean, y.mean - x.mean, rtol=1e-6)
    np.testing.assert_allclose(z.normal.variance, y.variance + x.variance, rtol=1e-6)
    assert z.ends[0] == 0.0 and 0.0 < z.ends[1] <= y.ends[1] - x.ends[0]


@pytest.mark.parametrize(
    ("layer", "count"), [(L.AveragePooling2D(2), 4), (L.GlobalAveragePooling2D(), 36)]
)
def test_averages_are_of_values_that_partly_move_together(layer, count):
    """Wider than those of noise, whose pixels are independent, and narrower than a pixel."""
    q = network(lambda x: L.Dense(2)(type(layer).from_config(layer.get_config())(L.ReLU()(x))))
    found, _ = propagate(q, (-13.0, 17.0), (2.0, 3.0))
    (name,) = [x for x in found if "average_pooling" in x]
    before, x, values = found["one"], found[name], sampled(q)[name]
    np.testing.assert_allclose(x.mean[0], values.mean(axis=0), atol=0.05)
    of_pixels = np.broadcast_to(before.variance[0, 0, 0], x.variance.shape)
    np.testing.assert_allclose(x.variance, of_pixels / np.sqrt(count), rtol=1e-4)
    independent = of_pixels / count
    np.testing.assert_allclose(values.var(axis=0), independent[0], rtol=0.2)
    assert x.ends[0] == 0.0 and values.max() < x.ends[1] < before.ends[1]


def test_epsilon_counts_where_a_channel_is_dead():
    q = network(lambda x: x)
    norm = q.get_layer("one").batch_norm
    norm.moving_variance.assign([9.0, 1e-9, 0.0, 9.0])
    gamma = np.square(norm.gamma.numpy())
    variance = propagate(q, (0.0, 1.0))[0]["one"].variance[0, 0, 0]
    np.testing.assert_allclose(variance, gamma * [1.0, 0.5, 0.0, 1.0], rtol=1e-4)


def test_a_batch_norm_that_is_new_is_part_of_its_layer():
    """Its statistics say nothing: moments go through it as values do."""
    networks.set_seed(0)
    q = network(lambda x: L.BatchNormalization(name="new")(L.Conv2D(3, 1, name="before")(x)))
    norm = q.get_layer("before").batch_norm
    norm.moving_mean.assign(np.zeros(3))
    norm.moving_variance.assign(np.ones(3))
    norm.gamma.assign([3.0, -2.0, 1.0])
    found, values = propagate(q, (-13.0, 17.0))[0], sampled(q)
    np.testing.assert_allclose(found["before"].mean[0], values["before"].mean(axis=0), atol=0.2)
    own = np.sqrt(found["before"].variance[0])
    np.testing.assert_allclose(own, values["before"].std(axis=0), rtol=0.05)


def test_rows_of_an_embedding_within_the_range():
    words = keras.Input((5,), name="words", dtype="int32")
    x = L.Embedding(10, 4, name="rows")(words)
    model = keras.Model(words, L.BatchNormalization(name="norm")(L.Dense(3, name="dense")(x)))
    q = kerasq.quantize_model(standing(model))
    found, _ = propagate(q, (2, 6))
    rows = model.get_layer("rows").embeddings.numpy()[2:7]
    np.testing.assert_allclose(found["rows"].mean[0, 0], rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["rows"].variance[0, 4], rows.var(axis=0), rtol=1e-5)
    assert found["rows"].ends == (rows.min(), rows.max())
    with pytest.raises(ValueError, match=r"reach rows of the Embedding 'rows'. Received: \[10, 12"):
        propagate(q, (10, 12))


def test_images_of_any_size():
    x = keras.Input((None, None, 3), name="image")
    y = L.Conv2D(4, 3, padding="same", name="first")(x)
    y = L.ReLU()(L.BatchNormalization(name="norm")(y))
    q = kerasq.quantize_model(standing(keras.Model(x, L.Conv2D(2, 3)(y))))
    found, _ = propagate(q, (0, 255))
    norm = q.get_layer("first").batch_norm
    np.testing.assert_allclose(found["first"].normal.mean[0, 3, 5], norm.beta.numpy(), rtol=1e-6)


def test_layers_in_float():
    """What is not wrapped: statistics where they are, draws for the rest, which are printed."""
    networks.set_seed(0)
    x = keras.Input((6, 6, 4), name="image")
    y = L.ReLU(name="relu")(L.BatchNormalization(name="norm")(L.Conv2D(4, 1, name="conv")(x)))
    model = standing(keras.Model(x, L.Dense(3, name="head")(L.Flatten(name="flat")(y))))
    q = kerasq.quantize_model(model, overrides={"conv": "float"})
    found, (remark,) = propagate(q, (0.0, 1.0))
    assert "['conv']" in remark
    np.testing.assert_allclose(
        found["norm"].mean[0, 1, 2], model.get_layer("norm").beta.numpy(), rtol=1e-6
    )
