"""Graphs of every shape: nested, shared, subclassed, with operators."""

import keras
import numpy as np
import pytest

import kerasq
from tests import networks

L = keras.layers


def exact(model, x, tolerance=0.1, **options):
    """The quantized model: near the float one, and equal to its export."""
    q = kerasq.quantize_model(model, **options)
    kerasq.calibrate(q, x, method="minmax")
    want = keras.tree.flatten(model.predict(x, verbose=0))
    got = keras.tree.flatten(q.predict(x, verbose=0))
    for a, b in zip(want, got, strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max()
    lite = kerasq.export_tflite(q)
    assert lite.float_ops == []
    for a, b in zip(keras.tree.flatten(lite.predict(x)), got, strict=True):
        np.testing.assert_array_equal(a, b)
    return q


def images(count=48, shape=(8, 8, 3), seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def tower():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            L.Conv2D(4, 3, name="conv"),
            L.BatchNormalization(name="norm"),
            L.ReLU(name="relu"),
            L.GlobalAveragePooling2D(name="gap"),
        ],
        name="tower",
    )


def siamese():
    """A model and a layer called twice, dicts in and out, an inner name that is taken outside."""
    keras.utils.set_random_seed(0)
    a, b = keras.Input((8, 8, 3), name="a"), keras.Input((8, 8, 3), name="b")
    shared, encode = L.Dense(5, activation="relu", name="shared"), tower()
    networks.shake_norms(encode)
    y = L.Concatenate(name="cat")([shared(encode(a)), shared(encode(b, training=False))])
    z = L.Flatten(name="flat")(L.Conv2D(4, 3, name="conv")(a))
    outputs = {"p": L.Dense(2, name="p")(y), "q": L.Dense(3, name="q")(z)}
    return keras.Model({"a": a, "b": b}, outputs)


@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
def test_shared_layers_share_their_weights_also_after_loading(tmp_path, batch_norm):
    model = siamese()
    x = {"a": images(), "b": 3.0 * images(seed=1)}
    nodes = [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    q = exact(model, x, batch_norm=batch_norm)
    assert nodes == [len(layer._inbound_nodes) for layer in model._flatten_layers()]
    assert {"conv", "tower_conv", "tower_conv_2", "shared", "shared_2"} <= {
        layer.name for layer in q.layers
    }
    y = model.predict(x, verbose=0)
    q.compile("sgd", "mse")
    q.fit(x, y, verbose=0)
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0)["p"], q.predict(x, verbose=0)["p"])
    loaded.compile("sgd", "mse")
    loaded.fit(x, y, verbose=0)
    for name in ("shared", "tower_conv"):
        one, other = loaded.get_layer(name), loaded.get_layer(f"{name}_2")
        assert one.kernel is other.kernel
        assert one.kernel_range is other.kernel_range
        assert one.grid().numpy().scale != other.grid().numpy().scale
    lite = kerasq.export_tflite(loaded)
    np.testing.assert_array_equal(lite.predict(x)["p"], loaded.predict(x, verbose=0)["p"])
    kernels = [t for t in lite.tensors if t.name.startswith("shared") and "kernel" in t.name]
    assert len(kernels) == 2


def test_a_key_for_a_nested_model_is_for_its_layers():
    q = kerasq.quantize_model(siamese(), overrides={"tower": "w4a8"})
    assert q.get_layer("tower_conv").scheme == q.get_layer("tower_conv_2").scheme == "w4a8"
    assert q.get_layer("conv").scheme == "w8a8"


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.body = keras.Sequential([L.Conv2D(4, 3, activation="relu"), L.Flatten()])
        self.drop = L.Dropout(0.3)
        self.head = L.Dense(3, name="head")

    def call(self, x, training=None):
        return self.head(self.drop(self.body(x), training=training)) * 2.0


def test_a_subclassed_model_becomes_functional():
    keras.utils.set_random_seed(0)
    model = Subclassed()
    model(images(2))
    q = exact(model, images())
    assert q.inputs[0].name == "x"
    assert q.get_layer("head")


class Untraceable(keras.Model):
    def call(self, x):
        return x + float(np.asarray(x).sum())


def test_a_subclassed_model_that_cannot_be_traced():
    model = Untraceable()
    model(images(2))
    with pytest.raises(ValueError, match=r"must run on symbolic inputs.*'untraceable"):
        kerasq.quantize_model(model)


OPERATIONS = {
    "affine": lambda x, y: x * 2.0 + 1.0,
    "reflected": lambda x, y: 1.0 - x / 4.0,
    "channels": lambda x, y: x * np.array([1.0, -2.0, 0.5, 3.0], "f"),
    "two": lambda x, y: x * y - y,
    "gated": lambda x, y: x * keras.ops.sigmoid(y),
    "bounds": lambda x, y: keras.ops.maximum(keras.ops.minimum(x, y), 0.0),
    "concatenated": lambda x, y: keras.ops.concatenate([x, y], axis=1),
    "reshaped": lambda x, y: keras.ops.reshape(keras.ops.transpose(x, (0, 3, 1, 2)), (-1, 144)),
    "mean": lambda x, y: keras.ops.mean(x, axis=(1, 2)) + keras.ops.max(y, axis=(1, 2)),
    "square": lambda x, y: keras.ops.square(x) + keras.ops.relu(-y),
    "silu": lambda x, y: keras.ops.silu(x),
    "clip": lambda x, y: keras.ops.clip(x, 0.0, 0.5),
}


@pytest.mark.parametrize("case", OPERATIONS)
def test_operations(case):
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x, y = L.Conv2D(4, 3, name="x")(image), L.Conv2D(4, 3, name="y")(image)
    model = keras.Model(image, OPERATIONS[case](x, y))
    exact(model, images())


def test_an_operation_without_a_layer_is_named():
    image = keras.Input((8, 8, 3), name="image")
    model = keras.Model(image, keras.ops.sin(L.Conv2D(4, 3, name="x")(image)))
    with pytest.raises(ValueError, match=r"'sin.*' \(Sin\)"):
        kerasq.quantize_model(model)


LAYERS = {
    "separable": lambda: L.SeparableConv2D(4, 3, activation="relu", depth_multiplier=2),
    "pre-activation": lambda: [L.BatchNormalization(), L.ReLU(), L.Conv2D(4, 3)],
    "rescaling": lambda: [L.Rescaling(0.5, offset=-1.0), L.Conv2D(4, 3)],
    "silu": lambda: L.Conv2D(4, 3, activation="silu"),
    "hard_silu": lambda: L.Conv2D(4, 3, activation="hard_silu"),
    "hard_sigmoid": lambda: L.Conv2D(4, 3, activation="hard_sigmoid"),
    "gelu": lambda: L.Conv2D(4, 3, activation="gelu"),
    "leaky": lambda: [L.Conv2D(4, 3), L.LeakyReLU(0.1)],
    "sloped": lambda: [L.Conv2D(4, 3), L.ReLU(negative_slope=0.2)],
    "noise": lambda: [L.GaussianNoise(0.3), L.RandomFlip(), L.Conv2D(4, 3)],
    "dense": lambda: [L.Dense(5, activation="relu"), L.Permute((3, 1, 2))],
    "sequence": lambda: [
        L.Reshape((16, 12)),
        L.Conv1D(6, 3, padding="causal", dilation_rate=2, use_bias=False),
        L.BatchNormalization(),
        L.ReLU(),
        L.SeparableConv1D(6, 3, padding="same"),
        L.MaxPooling1D(2),
        L.DepthwiseConv1D(3),
        L.AveragePooling1D(2),
        L.Dense(7, activation="relu"),
        L.GlobalAveragePooling1D(),
    ],
}


@pytest.mark.parametrize("case", LAYERS)
def test_layers(case):
    keras.utils.set_random_seed(0)
    layers = LAYERS[case]()
    layers = layers if isinstance(layers, list) else [layers]
    model = keras.Sequential([keras.Input((8, 8, 3), name="image"), *layers])
    exact(networks.shake_norms(model), images())
