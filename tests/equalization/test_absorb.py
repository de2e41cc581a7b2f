"""`absorb_biases`: values by hand, what is left alone, and where it must help."""

import keras
import numpy as np
import pytest

import kerasq
from tests import networks
from tests.equalization.test_equalize import far

L = keras.layers


def high(*behind, beta=(5.0, 1.0, 2.0), gamma=(1.0, -1.0, -0.5), relu=None, shape=(6, 6, 2)):
    """A network whose values are far above 0 in front of a ReLU."""
    networks.set_seed(0)
    first = L.Conv2D if len(shape) == 3 else L.Dense
    sizes = (3, 1) if len(shape) == 3 else (3,)
    layers = [keras.Input(shape), first(*sizes, name="first"), L.BatchNormalization(name="norm")]
    model = keras.Sequential([*layers, relu or L.ReLU(name="relu"), *behind])
    norm = model.get_layer("norm")
    norm.beta.assign(beta)
    norm.gamma.assign(gamma)
    return model


def small(model):
    """Data of which all values in front of the ReLU are above what is absorbed."""
    return networks.data(model, 64, scale=0.2)


def test_by_hand():
    """c = max(0, beta - 3 |gamma|) = (2, 0, 1/2); W c = 2 * 1 + 1/2 * 4."""
    model = high(L.Dense(1, name="head"), shape=(2,))
    head = model.get_layer("head")
    head.set_weights([np.array([[1.0], [2.0], [4.0]]), np.array([3.0])])
    x = small(model)
    before = [w.numpy() for w in model.weights]
    found = kerasq.absorb_biases(model)
    assert (found.layers, found.largest, found.into) == (("norm",), (2.0,), (("head",),))
    np.testing.assert_allclose(found.model.get_layer("norm").beta, [3.0, 1.0, 1.5])
    np.testing.assert_allclose(found.model.get_layer("head").bias, [7.0])
    np.testing.assert_allclose(found.model.get_layer("head").kernel, head.kernel)
    assert far(model, found.model, x) < 1e-5
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert "norm" in str(found) and "head" in str(found)
    # Once is enough.
    again = kerasq.absorb_biases(found.model)
    assert not again.layers and str(again) == "No bias is high."


@pytest.mark.parametrize(
    "behind",
    [
        [L.Conv2D(4, 3, use_bias=False), L.ReLU()],
        [L.Conv2D(4, 1, padding="same", use_bias=False), L.BatchNormalization(), L.ReLU()],
        [L.DepthwiseConv2D(3, depth_multiplier=2, activation="relu6")],
        [L.SeparableConv2D(4, 3, use_bias=False)],
        [L.MaxPooling2D(2), L.Flatten(), L.Dropout(0.5), L.Dense(3)],
        [L.UpSampling2D(), L.Cropping2D(1), L.GlobalAveragePooling2D(), L.Dense(3)],
        [L.BatchNormalization(), L.ReLU(), L.Conv2D(2, 3)],
    ],
    ids=lambda layers: layers[0].name,
)
@pytest.mark.parametrize("relu", [L.ReLU, L.LeakyReLU, lambda: L.ReLU(12.0)])
def test_what_makes_up_for_it(behind, relu):
    model = high(*[L.deserialize(L.serialize(x)) for x in behind], relu=relu())
    found = kerasq.absorb_biases(model)
    assert found.layers == ("norm",) and not found.left
    assert far(model, found.model, small(model)) < 1e-5
    np.testing.assert_allclose(found.model.get_layer("norm").beta, [3.0, 1.0, 1.5])


@pytest.mark.parametrize(
    ("behind", "reason"),
    [
        ([L.Conv2D(4, 3, padding="same", name="c")], "'c' (Conv2D), which pads with zeros"),
        ([L.Conv2DTranspose(4, 3, name="c")], "'c' (Conv2DTranspose), which pads with zeros"),
        ([L.ZeroPadding2D(name="z"), L.Conv2D(4, 1)], "'z' (ZeroPadding2D)"),
        ([L.MaxPooling2D(2)], "output of the model"),
        ([L.Activation("tanh", name="t")], "'t' (Activation)"),
    ],
    ids=["same", "transpose", "zeros", "output", "tanh"],
)
def test_what_cannot_make_up_for_it_is_named(behind, reason):
    model = high(*behind)
    found = kerasq.absorb_biases(model)
    assert not found.layers and found.left == {"norm": reason}
    assert reason in str(found)
    assert far(model, found.model, small(model)) == 0.0


def test_all_readers_take_it():
    """Through Add, into two layers; where one of them cannot, none does."""

    def model(padding):
        networks.set_seed(0)
        x = image = keras.Input((6, 6, 2))
        x = L.ReLU()(L.BatchNormalization(name="norm")(L.Conv2D(3, 3)(x)))
        y = L.Conv2D(3, 3, padding=padding, name="a")(L.AveragePooling2D(1)(x))
        z = L.Conv2D(3, 3, name="b")(L.Add()([x, x]))
        made = keras.Model(image, [y, z])
        made.get_layer("norm").beta.assign([5.0, 4.0, 0.0])
        return made

    found = kerasq.absorb_biases(model("valid"))
    assert [{*names} for names in found.into] == [{"a", "b"}]
    assert far(model("valid"), found.model, small(model("valid"))) < 1e-5
    found = kerasq.absorb_biases(model("same"))
    assert found.left == {"norm": "'a' (Conv2D), which pads with zeros"}


def test_limits():
    """That of a ReLU which is reached is not one number any more; a limit for each channel is."""
    model = high(L.Conv2D(4, 3, name="last"), relu=L.ReLU(6.0, name="relu"))
    assert kerasq.absorb_biases(model).left == {"norm": "the limit of 'relu' (ReLU)"}
    model.get_layer("last").kernel.assign(model.get_layer("last").kernel * [[[[1.0], [4], [9]]]])
    equalized = kerasq.equalize(model)
    assert equalized.limited == ("relu",)
    found = kerasq.absorb_biases(equalized.model)
    assert found.layers == ("norm",)
    x = networks.data(model, 64, scale=0.7)  # Some are above the limit.
    y = keras.Model(model.inputs, model.get_layer("relu").output).predict_on_batch(x)
    assert (y == 6.0).any() and y[..., 0].min() > 2.0 and y[..., 2].min() > 0.5
    assert far(model, found.model, x) < 1e-5


def test_an_axis_of_steps_is_none_of_channels():
    x = keras.Input((5, 4), name="x")
    y = L.BatchNormalization(axis=1, name="norm")(L.Dense(4)(x))
    model = keras.Model(x, L.Dense(3)(L.ReLU()(y)))
    model.get_layer("norm").beta.assign([9.0, 8.0, 7.0, 6.0, 5.0])
    found = kerasq.absorb_biases(model)
    assert found.left == {"norm": "its axis, which is none of channels"} and not found.layers


def test_shared_layers_are_left_alone():
    networks.set_seed(0)
    x = image = keras.Input((6, 6, 3))
    last = L.Conv2D(3, 1, name="last")
    y = last(L.ReLU()(L.BatchNormalization(name="norm")(L.Conv2D(3, 1)(x))))
    model = keras.Model(image, last(y))
    model.get_layer("norm").beta.assign([5.0, 4.0, 0.0])
    found = kerasq.absorb_biases(model)
    assert found.left == {"norm": "'last' (Conv2D), called more than once"}


def test_it_helps_where_biases_are_high():
    """A channel between 95 and 105, beside others of about 1: the codes below 95 are lost."""
    model = high(L.Conv2D(4, 3), beta=(100.0, 0.0, 0.5), gamma=(1.0, 1.0, 1.0))
    last = model.layers[-1]
    last.kernel.assign(last.kernel * [[[[0.1], [1.0], [1.0]]]])
    last.bias.assign(-100.0 * last.kernel.numpy()[:, :, 0].sum((0, 1)))  # As training would.
    x = small(model)
    before, after = (
        networks.sqnr(model, networks.quantized(own, x), x)
        for own in (model, kerasq.absorb_biases(model).model)
    )
    assert after > before + 15.0
    q = networks.quantized(kerasq.absorb_biases(model).model, x)
    assert kerasq.compare(q, kerasq.export_tflite(q), x=x).exact == 1.0


def test_without_batch_normalization():
    with pytest.raises(ValueError, match=r"must have BatchNormalization.*'mlp', without any"):
        kerasq.absorb_biases(networks.mlp())
