"""Graphs of every shape: nested, shared, subclassed, with operators, of layers of one's own."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.litert import flatbuffer
from kerasq.scheme import resolve
from kerasq.wrappers import QuantizeWrapper
from tests import networks

# Exports are not checked before these tests compare them, on more than four samples.
L = keras.layers
SHARED_KERNELS = (b"shared/kernel", b"shared_2/kernel")


def exact(model, x, tolerance=0.1, run=networks.run, **options):
    """The quantized model: near the float one, and equal to its export."""
    q = kerasq.quantize_model(model, **options)
    kerasq.calibrate(q, x, method="minmax")
    want = keras.tree.flatten(networks.run(model, x))
    got = keras.tree.flatten(run(q, x))
    for a, b in zip(want, got, strict=True):
        assert np.abs(a - b).max() <= tolerance * np.abs(a).max()
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == []
    for a, b in zip(outputs(lite, x), got, strict=True):
        np.testing.assert_array_equal(a, b)
    return q


def outputs(lite, x):
    """What a file predicts, in the order of its outputs."""
    found = lite.predict(x)
    return [*found.values()] if isinstance(found, dict) else [found]


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
    networks.set_seed(0)
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
    y = networks.run(model, x)
    q.compile("sgd", "mse")
    q.fit(x, y, verbose=0)
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.predict_on_batch(x)["p"], q.predict_on_batch(x)["p"])
    loaded.compile("sgd", "mse")
    loaded.fit(x, y, verbose=0)
    for name in ("shared", "tower_conv"):
        one, other = loaded.get_layer(name), loaded.get_layer(f"{name}_2")
        assert one.kernel is other.kernel
        assert one.weight_quantizer is other.weight_quantizer
        # The towers have ranges of their own; both calls of "shared" are concatenated.
        is_one = one.output_quantizer is other.output_quantizer
        assert is_one == (name == "shared")
        assert is_one == one.grid().numpy().equals(other.grid().numpy())
    lite = kerasq.export_tflite(loaded)
    np.testing.assert_array_equal(lite.predict(x)["p"], loaded.predict_on_batch(x)["p"])
    content = flatbuffer.read(lite.content)
    kernels = [t for t in content.subgraphs[0].tensors if t.name in SHARED_KERNELS]
    assert len(kernels) == 1


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
    networks.set_seed(0)
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
    networks.set_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x, y = L.Conv2D(4, 3, name="x")(image), L.Conv2D(4, 3, name="y")(image)
    model = keras.Model(image, OPERATIONS[case](x, y))
    exact(model, images())


@pytest.mark.parametrize("layer", [L.Multiply, L.Subtract, L.Maximum, L.Average])
def test_merges_of_an_image_and_a_vector(layer):
    networks.set_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, name="x")(image)
    gate = L.Dense(4, activation="sigmoid", name="gate")(L.GlobalAveragePooling2D()(x))
    exact(keras.Model(image, layer(name="both")([x, gate])), images())


def constant(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def reductions(x):
    ops = keras.ops
    y = ops.sum(x, -1, keepdims=True) * x
    ends = [ops.sum(y, (1, 2)), ops.mean(x, -1), ops.mean(y, (1, -1), keepdims=True)]
    ends += [ops.min(x, 1), ops.max(y, -1), ops.amax(x, (2, 3)), ops.mean(x, (1, 2, 3))]
    return [*ends, ops.var(x, (1, 2)), ops.mean(x[:, :1], 1), ops.norm(x, axis=-1)]


def moves(x):
    ops, y = keras.ops, L.Conv2D(4, 1, name="y")(x)
    ends = [ops.stack([x, y], 1), ops.stack([x, y, x], axis=-1), ops.take(x, [2, 0, -1], axis=-1)]
    ends += [ops.take(x, 3, axis=1), ops.pad(x, [(0, 0), (1, 2), (0, 1), (0, 0)])]
    ends += [ops.pad(x, [(0, 0), (1, 2), (3, 0), (0, 0)], mode=m) for m in ("reflect", "symmetric")]
    ends += ops.split(x, [1, 3], axis=-1) + ops.split(y, 2, axis=1)
    ends += [ops.repeat(x, 2, axis=1), ops.tile(x, (1, 2, 1, 1)), ops.roll(x, 2, axis=1)]
    return [*ends, ops.flip(x, 2), x[:, 1:5:2, ::-1], ops.unstack(x, axis=1)[2]]


def windows(x):
    ops = keras.ops
    y = ops.conv(x, constant(3, 3, 4, 6), padding="same")
    ends = [ops.depthwise_conv(y, constant(3, 3, 6, 2)), ops.average_pool(y, 2)]
    ends += [ops.separable_conv(y, constant(3, 3, 6, 1), constant(1, 1, 6, 3), strides=2)]
    ends += [ops.max_pool(x, 3, strides=2, padding="same"), ops.image.resize(y, (9, 5))]
    ends += [ops.image.resize(x, (12, 12), interpolation="nearest")]
    z = ops.reshape(x, (-1, 36, 4))
    z = ops.conv(z, constant(3, 4, 2), padding="same", dilation_rate=2)
    return [*ends, ops.max_pool(z, 2)]


def products(x):
    ops = keras.ops
    rows = ops.reshape(x, (-1, 36, 4))
    y = ops.einsum("btf,hfd->bhtd", rows, 0.3 * constant(2, 4, 3))
    ends = [y, ops.einsum("cd,...c->...d", constant(4, 5), x), ops.matmul(constant(3, 6), x)]
    ends += [ops.einsum("btf,ts->bsf", rows, constant(36, 7)), ops.matmul(x, constant(4, 3))]
    scores = ops.softmax(ops.einsum("bhqd,bhkd->bhqk", y, y))
    ends += [ops.einsum("bhqk,bhkd->bqhd", scores, y), ops.einsum("btf,btf->bt", rows, rows)]
    return [*ends, x / np.abs(constant(1, 6, 6, 1)), x / np.float32([1, 2, 3, 4])]


FAMILIES = {
    reductions: "CONV_2D SUM MUL MEAN REDUCE_MIN REDUCE_MAX SUB STRIDED_SLICE RESHAPE "
    "CAST ADD GATHER",
    moves: "CONV_2D PACK GATHER PAD MIRROR_PAD SPLIT SPLIT_V RESHAPE TILE SLICE CONCATENATION "
    "REVERSE_V2 STRIDED_SLICE UNPACK",
    windows: "CONV_2D DEPTHWISE_CONV_2D AVERAGE_POOL_2D MAX_POOL_2D RESIZE_BILINEAR RESHAPE "
    "RESIZE_NEAREST_NEIGHBOR",
    products: "CONV_2D FULLY_CONNECTED BATCH_MATMUL SOFTMAX MUL RESHAPE TRANSPOSE "
    "DEPTHWISE_CONV_2D",
}


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_operations(family, scheme):
    networks.set_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    model = keras.Model(image, family(L.Conv2D(4, 3, name="x")(image)))
    q = exact(model, images(), scheme=scheme)
    lite = kerasq.export_tflite(q, batch_size=3)
    # On int8 averages of whole windows are DEPTHWISE_CONV_2D.
    found = {op.name for op in lite.ops} - {"QUANTIZE"}
    assert found | ({"AVERAGE_POOL_2D"} & {*FAMILIES[family].split()}) == {
        *FAMILIES[family].split()
    }
    x = images(3, seed=1)
    for got, want in zip(outputs(lite, x), networks.run(q, x), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.skipif(not hasattr(keras.ops, "depth_to_space"), reason="Keras 3.10 has neither")
@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_blocks_of_pixels_and_channels(scheme):
    networks.set_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(8, 3, padding="same", name="x")(image)
    ends = [keras.ops.depth_to_space(x, 2), keras.ops.space_to_depth(x, 4)]
    q = exact(keras.Model(image, ends), images(), scheme=scheme)
    names = {op.name for op in kerasq.export_tflite(q, check=False).ops} - {"CONV_2D"}
    # On int16 neither has a kernel.
    wide = {"RESHAPE", "TRANSPOSE"}
    assert names == (wide if scheme == "w8a16" else {"DEPTH_TO_SPACE", "SPACE_TO_DEPTH"})


def test_a_deviation_is_a_root_from_a_table():
    image = keras.Input((8, 8, 3), name="image")
    exact(keras.Model(image, keras.ops.std(image, (1, 2))), images())


class Kernels(L.Layer):
    """Operations on variables, of which one trains."""

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(3, 3, shape[-1], 4))
        self.v = self.add_weight(name="v", shape=(3, 3, 2, 4), trainable=False)

    def call(self, x):
        y = keras.ops.conv(x, self.w)
        return keras.ops.conv_transpose(y, self.v, strides=2, padding="same")


def test_kernels_that_are_variables():
    networks.set_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    q = exact(keras.Model(image, Kernels(name="own")(image)), images())
    convs = [layer for layer in q.layers if hasattr(layer, "kernel")]
    assert [layer.trainable for layer in convs] == [True, False]
    assert [layer.kernel.shape for layer in convs] == [(3, 3, 3, 4), (3, 3, 2, 4)]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: keras.ops.cumsum(x, axis=1), "Cumsum"),
        (lambda x: keras.ops.einsum("bhwc,bhwc->c", x, x), "Einsum"),
        (lambda x: keras.ops.sum(x, axis=0, keepdims=True), "Sum"),
        (lambda x: keras.ops.max(x, axis=-1, initial=0.5), "Max"),
        (lambda x: keras.ops.take(x, [0, 5]), "Take"),
        (lambda x: keras.ops.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0)], constant_values=2.0), "Pad"),
        (lambda x: x / np.zeros((1, 6, 6, 1), "float32"), "TrueDivide"),
    ],
)
def test_an_operation_without_a_layer_stays_float_and_is_named(call, name, capsys):
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, name="x")(image)
    kerasq.quantize_model(keras.Model(image, call(x)))
    assert f"(keras.ops, {name})" in capsys.readouterr().out


LAYERS = {
    "depthwise by groups": lambda: L.Conv2D(6, 3, groups=3, activation="relu"),
    "depthwise by groups, 1D": lambda: [
        L.Reshape((64, 3)),
        L.Conv1D(3, 3, groups=3, padding="same"),
    ],
    "transposed and norm": lambda: [
        L.Conv2DTranspose(4, 3, strides=2, use_bias=False),
        L.BatchNormalization(),
        L.ReLU(),
    ],
    "nearest": lambda: [L.UpSampling2D(2), L.Resizing(7, 5, interpolation="nearest")],
    "one pixel": lambda: [L.Conv2D(4, 8), L.GlobalAveragePooling2D(), L.Dense(3)],
    "softmax": lambda: [L.Conv2D(4, 3), L.Softmax(axis=1)],
    "elu": lambda: [L.Conv2D(4, 3), L.ELU(0.5)],
    "relu of all": lambda: [L.Conv2D(4, 3), L.ReLU(2.0, negative_slope=0.1, threshold=0.01)],
    "tiny slope": lambda: [L.Conv2D(4, 3), L.LeakyReLU(0.001)],
    "no slope": lambda: [L.Conv2D(4, 3), L.LeakyReLU(0.0)],
    "lambda": lambda: [L.Conv2D(4, 3), L.Lambda(lambda x: 2.0 * x - 0.5)],
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
    networks.set_seed(0)
    layers = LAYERS[case]()
    layers = layers if isinstance(layers, list) else [layers]
    model = keras.Sequential([keras.Input((8, 8, 3), name="image"), *layers])
    exact(networks.shake_norms(model), images())


ops = keras.ops
# What stays integer, behind a convolution.
STAY_INTEGER = {
    "slices": lambda x: x[:, 1:5, ::2],
    "one row": lambda x: x[:, 1],
    "ellipsis": lambda x: x[..., 0],
    "split": lambda x: ops.concatenate(ops.split(x, 2, axis=-1)[::-1], -1),
    "unstack": lambda x: ops.unstack(x, 4, axis=-1)[2],
    "flip": lambda x: ops.flip(x, axis=1),
    "roll": lambda x: ops.roll(x, 1, axis=1),
    "repeat": lambda x: ops.repeat(x, 2, axis=1),
    "tile": lambda x: ops.tile(x, (1, 2, 1, 1)),
    "swapaxes": lambda x: ops.swapaxes(x, 1, 3),
    "moveaxis": lambda x: ops.moveaxis(x, 1, 3),
    "sin": ops.sin,
    "power": lambda x: ops.abs(x) ** 1.5,
    "clip": lambda x: ops.clip(x, -0.5, 0.3),
    "softplus": ops.softplus,
    "relu": keras.activations.relu,
    "a map": lambda x: x * np.linspace(0.0, 1.0, 64).reshape(8, 8, 1).astype("f"),
    "less a map": lambda x: ops.subtract(np.linspace(0.0, 1.0, 256).reshape(1, 8, 8, 4), x),
    "at least": lambda x: ops.maximum(x, 0.05),
    "reciprocal": lambda x: 1.0 / (ops.abs(x) + 1.0),
    "a slope each": L.PReLU("uniform"),
    "mean": lambda x: ops.mean(x, axis=(1, 2)),
    "softmax": lambda x: ops.softmax(x, axis=1),
    "elu": lambda x: ops.elu(x, alpha=0.5),
}


@pytest.mark.parametrize("case", STAY_INTEGER)
def test_operations_stay_integer(case):
    networks.set_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, padding="same")(image)
    exact(keras.Model(image, STAY_INTEGER[case](x)), images())


def test_a_maximum_from_a_start_stays_float(capsys):
    image = keras.Input((8, 8, 3), name="image")
    y = ops.max(L.Conv2D(4, 3)(image), axis=(1, 2), initial=0.5)
    q = kerasq.quantize_model(keras.Model(image, y))
    assert "(keras.ops, Max)" in capsys.readouterr().out
    kerasq.calibrate(q, images())
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_allclose(lite.predict(images()), networks.run(q, images()), atol=1e-6)


class Gated(L.Layer):
    """A layer that computes with its own variable."""

    def build(self, shape):
        self.gain = self.add_weight(name="gain", shape=(shape[-1],), initializer="ones")

    def call(self, x, training=None):
        return 2.0 * x if training else x * self.gain + 0.5


class Block(L.Layer):
    """A layer that holds others."""

    def __init__(self, filters=4, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = L.Conv2D(filters, 3, padding="same", activation="relu")
        self.drop = L.Dropout(0.1)

    def call(self, x):
        return self.drop(self.conv(x)) + x

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


class Inhibited(Gated):
    """A layer that calls a function of TensorFlow that Keras does not have."""

    def call(self, x):
        return self.gain * tf.nn.local_response_normalization(x)


def behind_a_convolution(layer):
    networks.set_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    return keras.Model(image, layer(L.Conv2D(4, 3, padding="same", name="conv")(image)))


class Positions(L.Layer):
    """What transformers add to a sequence."""

    def build(self, shape):
        self.rows = self.add_weight(name="rows", shape=shape[1:], initializer="normal")

    def call(self, x):
        return x + self.rows


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_constants_of_a_sample(scheme):
    series = keras.Input((6, 4), name="series")
    model = keras.Model(series, L.Dense(3)(Positions(name="at")(L.Dense(4)(series))))
    q = exact(model, images(shape=(6, 4)), scheme=scheme)
    assert [w.shape for w in q.trainable_weights if w.path.endswith("value")] == [(6, 4)]


class Product(L.Layer):
    """A Dense of one's own."""

    def build(self, shape):
        self.matrix = self.add_weight(name="matrix", shape=(shape[-1], 5))

    def call(self, x):
        return ops.matmul(x, self.matrix)


def test_a_product_with_a_matrix_is_a_dense():
    model = behind_a_convolution(Product(name="product"))
    q = exact(model, images())
    assert [w.shape for w in q.trainable_weights if w.path.endswith("kernel")][-1] == (4, 5)
    before = networks.run(q, images())
    model.get_layer("product").matrix.assign(np.zeros((4, 5)))
    np.testing.assert_array_equal(networks.run(q, images()), before)


def test_constants_of_float_operations_survive_the_export():
    class Ramp(L.Layer):
        def call(self, x):
            ramp = ops.cast(ops.arange(8), "float32")
            return ops.cumsum(x, axis=1) * ops.reshape(ramp, (8, 1, 1))

    q = kerasq.quantize_model(behind_a_convolution(Ramp()))
    kerasq.calibrate(q, images())
    lite, want = kerasq.export_tflite(q, check=False), networks.run(q, images())
    np.testing.assert_allclose(lite.predict(images()), want, atol=1e-5 * np.abs(want).max())


def words(make, dtype="int32"):
    ids = keras.Input((6,), dtype=dtype, name="ids")
    return keras.Model(ids, L.Dense(3)(make(ids))), np.random.default_rng(0).integers(
        0, 90, (64, 6)
    )


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_indices_are_not_quantized(dtype):
    model, ids = words(lambda x: L.Flatten()(L.Embedding(100, 4)(x)), dtype)
    q = networks.quantized(model, ids.astype(dtype))
    want = networks.run(model, ids)
    assert np.abs(networks.run(q, ids) - want).max() <= 0.05 * np.abs(want).max()
    assert kerasq.compare(q, kerasq.export_tflite(q, check=False), x=ids.astype(dtype)).max_lsb == 0


def test_rows_that_only_float_layers_read_stay_float():
    gru = L.GRU(4, activation="softmax")
    model, ids = words(lambda x: gru(L.Dropout(0.1)(L.Embedding(100, 4, name="table")(x))))
    lite = kerasq.export_tflite(networks.quantized(model, ids))
    assert "table" in {op.outputs[0].split("/")[0] for op in lite.float_ops}


@pytest.mark.parametrize(
    "layer",
    [
        lambda x: L.MultiHeadAttention(1, 4, name="x")(x, x),
        lambda x: L.Attention(name="x")([x, x]),
    ],
)
def test_masks_that_would_be_lost_are_an_error(layer):
    model, _ = words(lambda ids: layer(L.Embedding(100, 4, mask_zero=True)(ids)))
    with pytest.raises(ValueError, match=r"'x' \(.*\): reads a mask that Keras passes"):
        kerasq.quantize_model(model)


def test_gradients_stop_where_they_did():
    networks.set_seed(0)
    x = keras.Input((4,), name="x")
    model = keras.Model(x, L.Dense(3, name="end")(ops.stop_gradient(L.Dense(4, name="first")(x))))
    q = exact(model, images(shape=(4,)))
    q.compile("sgd", "mse")
    before = q.get_layer("first").kernel.numpy()
    q.fit(images(shape=(4,)), np.ones((48, 3)), verbose=0)
    np.testing.assert_array_equal(q.get_layer("first").kernel.numpy(), before)


def test_an_activation_of_ones_own_is_not_taken_for_keras_s():
    def leaky_relu(x):
        return ops.leaky_relu(x, 0.5)

    q = exact(behind_a_convolution(L.Dense(2, activation=leaky_relu, name="own")), images())
    assert q.get_layer("own").layer.negative_slope == 0.5


@pytest.mark.parametrize("target", ["litert", "litert-x86-64", "litert-arm64", "tflm", "ethos-u"])
@pytest.mark.parametrize("scheme", ["w4a8", "w4a16"])
def test_few_bits_in_groups(scheme, target, capsys):
    """Beside int8 codes, LiteRT rounds convolutions of packed weights otherwise in groups."""
    convs = [L.Conv2D(8, 3, groups=2, activation="relu"), L.Conv2D(8, 3, groups=4), L.Conv2D(4, 1)]
    model = keras.Sequential([keras.Input((8, 8, 4)), *convs])
    x = images(shape=(8, 8, 4))
    q = networks.quantized(model, x, scheme=scheme, target=target)
    lite = kerasq.export_tflite(q)
    if target in ("litert", "litert-x86-64", "tflm"):  # Which run here.
        assert kerasq.compare(q, lite, x=x).exact == 1.0
    kinds = [t.type for t in lite.tensors if t.name.endswith("/kernel")]
    bits = resolve(scheme).code_bits
    found = [q.layers[-1].target.packs("CONV_2D", 4, bits, groups=i) for i in (2, 4, 1)]
    assert kinds == ["int4" if is_packed else "int8" for is_packed in found]
    if bits == 8:
        assert found == [target == "tflm"] * 2 + [target not in ("litert", "ethos-u")]
    # Naming a processor helps where there is a convolution without groups.
    model = keras.Sequential([keras.Input((8, 8, 4)), L.Conv2D(8, 3, groups=2)])
    capsys.readouterr()
    kerasq.export_tflite(networks.quantized(model, x, scheme=scheme, target=target))
    assert "Where the processor is known" not in capsys.readouterr().out


def test_layers_of_ones_own_are_opened():
    q = exact(behind_a_convolution(Gated(name="gated")), images())
    gains = [w for layer in q.layers for w in layer.trainable_weights if w.path.endswith("/kernel")]
    assert [w.shape for w in gains] == [(3, 3, 3, 4), (4,)]
    q = exact(behind_a_convolution(lambda x: Block()(Block()(x))), images())
    assert sum(type(layer).__name__ == "KernelWrapper" for layer in q.layers) == 3


def test_a_layer_that_cannot_be_opened_stays_float(capsys):
    q = kerasq.quantize_model(behind_a_convolution(Inhibited(name="own")))
    assert "'own' (Inhibited: cannot be traced: TensorFlow's LRN" in capsys.readouterr().out
    kerasq.calibrate(q, images())
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_allclose(lite.predict(images()), networks.run(q, images()), atol=1e-6)


def test_float_layers_called_twice_keep_one_set_of_weights(tmp_path):
    norm = L.LayerNormalization(name="norm")
    model = behind_a_convolution(
        lambda x: L.Concatenate(name="cat")([norm(x), L.Conv2D(4, 3, padding="same")(norm(x))])
    )
    q = kerasq.quantize_model(model, overrides={"norm": "float"})
    assert len([w for w in q.weights if "norm/" in w.path]) == 2
    kerasq.calibrate(q, images())
    lite = kerasq.export_tflite(q, check=False)
    assert {op.outputs[0].split("/")[0] for op in lite.float_ops} >= {"norm", "norm_2"}
    assert kerasq.compare(q, lite, x=images()).max_lsb == 0
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    want = networks.run(q, images())
    np.testing.assert_array_equal(networks.run(loaded, images()), want)


def test_float_layers_with_several_outputs_and_integer_inputs():
    words, numbers = keras.Input((6,), dtype="int32", name="words"), keras.Input((5,), name="n")
    x = L.Embedding(9, 4, name="table")(words)
    x, state = L.GRU(3, return_state=True, activation="softmax", name="gru")(x)
    outputs = L.Dense(2, name="end")(L.Concatenate(name="cat")([x, state, numbers]))
    model = keras.Model([words, numbers], outputs)
    rng = np.random.default_rng(0)
    data = [rng.integers(0, 9, (40, 6)), rng.normal(size=(40, 5)).astype("f")]
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, [data])
    lite = kerasq.export_tflite(q, check=False)
    want = networks.run(q, data)
    np.testing.assert_allclose(lite.predict(data), want, atol=0.05 * np.abs(want).max())


def test_a_subclass_of_functional_with_a_call_of_its_own():
    class Halved(keras.Model):
        def call(self, x):
            return super().call(0.5 * x) + 1.0

    image = keras.Input((8, 8, 3), name="image")
    exact(Halved(image, L.Conv2D(4, 3)(image)), images())


def test_calls_with_keywords_and_sums_of_one_and_of_many():
    add = L.Add(name="total")
    exact(
        behind_a_convolution(lambda x: add([L.Add()([x]), add(inputs=[x, x * 2.0, x * 3.0])])),
        images(),
    )


def test_an_adapted_normalization():
    norm = L.Normalization()
    x = 20.0 + 5.0 * images()
    norm.adapt(x)
    exact(keras.Sequential([keras.Input((8, 8, 3)), norm, L.Conv2D(4, 3)]), x)


def halved_relu(x):
    return ops.relu(x) * 0.5


def wavy(x):
    return tf.nn.relu(x) + 0.1 * tf.sin(x)


ACTIVATIONS = {
    "tf.nn.relu": (tf.nn.relu, ["KernelWrapper"]),
    "tf.nn.tanh": (tf.nn.tanh, ["KernelWrapper", "Activation"]),
    "tf.nn.gelu": (tf.nn.gelu, ["KernelWrapper", "Gelu"]),
    "partial": (functools.partial(tf.nn.leaky_relu, alpha=0.3), ["KernelWrapper", "LeakyReLU"]),
    "layer": (L.LeakyReLU(0.3), ["KernelWrapper", "LeakyReLU"]),
    "layer with weights": (L.PReLU("uniform", shared_axes=[1, 2]), None),
    "limit": (lambda x: keras.activations.relu(x, max_value=0.5), ["KernelWrapper"]),
    "function": (halved_relu, ["KernelWrapper", "KernelWrapper"]),
    "of TensorFlow": (wavy, ["KernelWrapper", "Activation", "Function", "KernelWrapper", "Add"]),
    "identity": (lambda x: x, ["KernelWrapper"]),
}


def made_of(q, start):
    """What computes in a quantized model, from a layer on."""
    wrappers = [x for x in q.layers if isinstance(x, QuantizeWrapper)]
    place = [x.name.startswith(start) for x in wrappers].index(True)
    own = [x if x.rule.kernel else x.layer for x in wrappers[place:]]
    return sorted(type(x).__name__ for x in own)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_that_are_none_of_keras_s(name):
    function, kinds = ACTIVATIONS[name]
    networks.set_seed(0)
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(4, 3, activation=function, name="own")]
    )
    q = kerasq.quantize_model(model)
    assert kinds is None or made_of(q, "own") == sorted(kinds)
    assert q.output_names == ["own"]
    kerasq.calibrate(q, images())
    want = networks.run(model, images())
    np.testing.assert_allclose(networks.run(q, images()), want, atol=0.05 * np.abs(want).max())


@pytest.fixture(scope="module")
def activated():
    """A network of such activations, one of them called twice, quantized."""
    networks.set_seed(0)
    shared, image = L.Dense(4, activation=wavy, name="shared"), keras.Input((8, 8, 3))
    x = L.Conv2D(4, 3, activation=tf.nn.relu6)(image)
    x = L.Activation(halved_relu, name="alone")(L.BatchNormalization()(x))
    x = L.Flatten()(shared(shared(x)))
    model = keras.Model(image, L.Dense(3, activation=L.LeakyReLU(0.3), name="end")(x))
    overrides = {L.Dense: "w8a8", "end": "w4a8"}
    q = kerasq.quantize_model(model, overrides=overrides)
    q.compile("sgd", "mse")
    before = [w.numpy() for w in q.trainable_weights]
    q.fit(images(), np.ones((48, 3)), epochs=2, verbose=0)
    assert all(np.any(a != w.numpy()) for a, w in zip(before, q.trainable_weights, strict=True))
    return q


def test_the_scheme_of_a_layer_is_that_of_its_activation(activated):
    assert activated.get_layer("end_linear").bits.weight_bits == 4
    assert activated.get_layer("shared_multiply_2").scheme == "w8a8"
    assert len([w for w in activated.weights if w.shape == (4, 4)]) == 1  # Of both calls.


def test_activations_are_exported_and_saved(activated, tmp_path):
    lite = kerasq.export_tflite(activated)
    assert lite.float_ops == []
    want = activated.predict_on_batch(images())
    np.testing.assert_array_equal(lite.predict(images()), want)
    activated.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(loaded.predict_on_batch(images()), want)


def test_an_activation_that_cannot_be_traced_is_named(capsys):
    def inhibited(x):
        return tf.nn.local_response_normalization(x)

    networks.set_seed(0)
    layer = L.Conv2D(2, 3, activation=inhibited, name="own")
    q = networks.quantized(keras.Sequential([keras.Input((8, 8, 3)), layer]))
    assert "'own' (activation 'inhibited of your own')" in capsys.readouterr().out
    lite = kerasq.export_tflite(q)
    assert [op.name for op in lite.float_ops] == ["LOCAL_RESPONSE_NORMALIZATION"]


class Penalized(L.Layer):
    """A layer that adds a loss of what it computes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = L.Dense(3)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        y = self.dense(x)
        self.add_loss(0.5 * ops.mean(ops.square(y)))
        return ops.relu(y)


class PenalizedByTensorFlow(Penalized):
    def call(self, x):
        y = self.dense(x)
        self.add_loss(0.5 * tf.reduce_mean(tf.square(y)))
        return tf.nn.relu(y)


@pytest.mark.parametrize("layer", [Penalized, PenalizedByTensorFlow])
def test_losses_of_layers_that_are_opened_are_kept(layer, tmp_path):
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((4,)), layer(), layer(), L.Dense(2)])
    x = images(shape=(4,))
    model(x)
    want = [float(loss) for loss in model.losses]
    q = exact(model, x)
    q.save(tmp_path / "q.keras")
    for found in (q, keras.models.load_model(tmp_path / "q.keras")):
        found(x, training=True)
        np.testing.assert_allclose(found.losses, want, rtol=0.05)


def test_a_loss_of_variables_alone_stays_in_a_float_layer(capsys):
    class Own(Penalized):
        def call(self, x):
            self.add_loss(ops.sum(self.dense.kernel))
            return self.dense(x)

    model = keras.Sequential([keras.Input((4,)), Own(name="own"), L.Dense(2)])
    q = kerasq.quantize_model(model)
    assert "'own' (Own: cannot be traced: `add_loss` must be" in capsys.readouterr().out
    q(np.ones((3, 4), "float32"), training=True)
    kernel = model.get_layer("own").dense.kernel.numpy()
    assert [float(x) for x in q.losses] == pytest.approx([kernel.sum()])


def quotients(ops):
    """A tensor by another, a map by constants, and a number by a tensor; lengths and logarithms."""
    networks.set_seed(0)
    x = keras.Input((4, 3), name="x")
    y = L.Dense(3, name="dense")(x)
    below = ops.abs(x) + 1.0
    table = np.random.default_rng(1).uniform(0.5, 1.0, (1, 4, 3)).astype("float32")
    outputs = [y / below, y / table, 3.0 / below, ops.normalize(y, axis=-2), ops.log_softmax(y)]
    return keras.Model(x, outputs)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_quotients(scheme, capsys):
    model = quotients(keras.ops)
    x = np.random.default_rng(0).normal(size=(48, 4, 3)).astype("float32")
    q = exact(model, x, run=keras.Model.predict_on_batch, scheme=scheme)
    printed = capsys.readouterr().out
    assert "Stay in float" not in printed
    narrow = {"w8a8": [], "w8a16": ["(L2_NORMALIZATION)", "(LOG_SOFTMAX)"]}[scheme]
    assert [name for name in ("(L2_NORMALIZATION)", "(LOG_SOFTMAX)") if name in printed] == narrow
    assert q.outputs[0].shape == (None, 4, 3)


def test_a_quotient_by_what_is_rounded_to_0():
    """LiteRT's own DIV would end the run with an error."""
    x = keras.Input((4,), name="x")
    model = keras.Model(x, x / keras.ops.square(x))
    values = np.random.default_rng(0).uniform(0.1, 4.0, (48, 4)).astype("float32")
    q = networks.quantized(model, values)
    lite = kerasq.export_tflite(q)
    values[:, 0] = 0.0
    np.testing.assert_array_equal(q.predict_on_batch(values), lite.predict(values))
    assert np.isfinite(lite.predict(values)).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: keras.ops.normalize(x, axis=-1, order=1),
        lambda x: keras.ops.normalize(x, epsilon=0.5),
        lambda x: keras.ops.log_softmax(x, axis=1),
    ],
)
def test_what_those_kernels_do_not_compute_stays_float(function, capsys):
    x = keras.Input((4, 3), name="x")
    model = keras.Model(x, function(L.Dense(3)(x)))
    lite = kerasq.export_tflite(networks.quantized(model))
    assert "Stay in float" in capsys.readouterr().out and lite.float_ops


def test_one_slope_for_all_is_called_on_any_number_of_channels():
    layer = L.PReLU(keras.initializers.Constant(0.3), shared_axes=[1], name="slope")
    x = keras.Input((9,), name="x")
    y = layer(x)
    model = keras.Model(x, [y, layer(ops.min(y, axis=1, keepdims=True))])
    exact(model, networks.data(model, 64))


@pytest.mark.parametrize(
    ("layer", "sizes"),
    [
        (L.Normalization(name="shared"), (1, 3)),
        (L.RMSNormalization(axis=-1, name="shared"), (1, 3)),
        (L.RMSNormalization(axis=-2, name="shared"), (4, 4)),
    ],
)
def test_weights_for_other_channels_are_refused(layer, sizes):
    x, y = keras.Input((1, sizes[0])), keras.Input((2, sizes[1]))
    model = keras.Model([x, y], [layer(x), layer(y)])
    with pytest.raises(ValueError, match=r"'shared' of 1 called on [23]\. Repeat"):
        kerasq.quantize_model(model)


class Own(L.Layer):
    """A weight of a shape for the input's, and what a function of the two returns."""

    def __init__(self, shape, function):
        super().__init__(name="own")
        self.shape, self.function = shape, function

    def build(self, input_shape):
        init = keras.initializers.RandomUniform(0.5, 1.5)
        self.w = self.add_weight(self.shape(*input_shape[1:]), init, name="w")

    def call(self, x):
        return self.function(x, self.w)


@pytest.mark.parametrize(
    ("shape", "function"),
    [
        (lambda t, c: (1, t, c), lambda x, w: x + w),
        (lambda t, c: (c,), lambda x, w: w - x),
        (lambda t, c: (c,), lambda x, w: x / w),
        (lambda t, c: (c,), lambda x, w: x * w),
        (lambda t, c: (c,), lambda x, w: ops.maximum(x, w)),
        (lambda t, c: (c,), lambda x, w: ops.where(x > 0.0, x, x * w)),
        (lambda t, c: (c, 5), lambda x, w: ops.matmul(x, w)),
        (lambda t, c: (6, t), lambda x, w: ops.matmul(w, x)),
        (lambda t, c: (c, 2, 3), lambda x, w: ops.einsum("btc,chd->bthd", x, w)),
        (lambda t, c: (3, c, 5), lambda x, w: ops.conv(x, w, padding="same")),
    ],
)
def test_what_is_called_twice_trains_one_weight(shape, function):
    """And no more than the float model does."""
    a, b = keras.Input((4, 3), name="a"), keras.Input((4, 3), name="b")
    networks.set_seed(0)
    layer = Own(shape, function)
    model = keras.Model([a, b], [layer(a), layer(b)])
    x = networks.data(model, 64)
    q = exact(model, x, 0.2)
    assert sum(np.prod(v.shape) for v in q.trainable_variables) == model.count_params()
    q.compile("sgd", ["mse", "mse"])
    (before,) = (v.numpy() for v in q.trainable_variables)
    q.fit(x, model.predict_on_batch(x[::-1]), verbose=0)
    assert (before != q.trainable_variables[0].numpy()).any()
    lite = kerasq.export_tflite(q)
    for one, other in zip(q.predict_on_batch(x), lite.predict(x).values(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("shape", "functions"),
    [
        ((3, 3, 3), [lambda x, w: ops.conv(x, w, padding="same", dilation_rate=2), ops.conv]),
        (
            (3, 3),
            [
                lambda x, w: ops.einsum("bti,io->bto", x, w),
                lambda x, w: ops.einsum("bto,io->bti", x, w),
            ],
        ),
        (
            (3,),
            [
                lambda x, w: ops.rms_normalization(x, w, axis=-1, epsilon=1e-3),
                lambda x, w: ops.rms_normalization(x, w, axis=-1, epsilon=10.0),
            ],
        ),
        ((3,), [lambda x, w: x + w, lambda x, w: w - x, lambda x, w: ops.maximum(x, w)]),
        ((), [lambda x, w: ops.full_like(x, w) + x, lambda x, w: x * w]),
    ],
)
def test_one_variable_in_several_ways(shape, functions):
    networks.set_seed(0)
    layer = Own(lambda *_: shape, lambda x, w: [f(x, w) for f in functions])
    x = keras.Input((6, 3), name="x")
    model = keras.Model(x, layer(x))
    for mode in ("auto", "float"):
        q = kerasq.quantize_model(model, preprocessing=mode)
        kerasq.calibrate(q, data := networks.data(model, 64, scale=1.0))
        lite = kerasq.export_tflite(q)
        for a, b, c in zip(
            networks.run(model, data), networks.run(q, data), outputs(lite, data), strict=True
        ):
            assert np.square(a).sum() > 1000 * np.square(a - b).sum()  # 30 dB
            np.testing.assert_array_equal(b, c)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x + w,
        lambda x, w: w - x,
        lambda x, w: x * w,
        lambda x, w: ops.square(x - w),
        lambda x, w: ops.minimum(w, ops.maximum(x, -w)),
    ],
)
def test_weights_along_an_axis_that_the_tensor_lacks(function, capsys):
    """As of the centres of clusters."""
    networks.set_seed(0)
    x = keras.Input((4, 3), name="x")
    layer = Own(lambda t, c: (5, c), lambda x, w: function(x[:, :, None], w))
    model = keras.Model(x, layer(L.Dense(3, name="dense")(x)))
    q = exact(model, networks.data(model, 64))
    assert "Stay in float" not in capsys.readouterr().out
    assert sum(np.prod(v.shape) for v in q.trainable_variables) == model.count_params()


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x * ops.tanh(w)[0],
        lambda x, w: ops.softmax(w)[0] * x,
        lambda x, w: ops.matmul(x, ops.matmul(w, ops.transpose(w))),
    ],
)
def test_what_is_computed_of_weights_alone_is_said(function, capsys):
    x = keras.Input((4, 3), name="x")
    model = keras.Model(x, Own(lambda t, c: (c, c), function)(L.Dense(3, name="dense")(x)))
    networks.quantized(model)
    said = "Left out in training, as what is computed of weights alone is a constant: own/w.\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    "read",
    [
        lambda x, w: L.Attention(name="attention")([x, w]),
        lambda x, w: x * L.Activation("mish", name="float")(w),
        lambda x, w: L.Reshape((4, 1), name="column")(L.Dense(1, name="dense")(w)) * x,
        lambda x, w: ops.matmul(L.Dot(axes=2, name="float")([w, w]), x),
    ],
)
def test_layers_that_read_a_constant(read, batch_size):
    """Which has another shape than the input that it is called on, and is of one sample."""
    networks.set_seed(0)
    x = keras.Input((12,), name="x")
    w = kerasq.layers.Constant((4, 3), name="memory")(x)
    model = keras.Model(x, read(L.Reshape((4, 3), name="rows")(x), w))
    model.get_layer("memory").set_weights([np.linspace(-1.0, 1.0, 12).reshape(4, 3)])
    data = networks.data(model, 64)
    q = networks.quantized(model, data)
    lite = kerasq.export_tflite(q, batch_size=batch_size)
    np.testing.assert_allclose(lite.predict(data), networks.run(q, data), atol=1e-6)
    assert networks.sqnr(model, q, data) > 25


class Inference(L.Layer):
    """Calls a layer for inference, always."""

    def __init__(self, inner):
        super().__init__(name="own")
        self.inner = inner

    def call(self, x):
        return self.inner(x, training=False)


@pytest.mark.parametrize("make", [lambda: L.Dropout(0.5), lambda: L.LSTM(3, dropout=0.5)])
def test_what_is_called_for_inference_drops_nothing(make):
    networks.set_seed(0)
    x = keras.Input((4, 3), name="x")
    model = keras.Model(x, Inference(make())(L.Dense(3)(x)))
    q = networks.quantized(model, data := networks.data(model))
    assert not [layer for layer in q.layers if isinstance(layer, L.Dropout) and layer.rate]
    assert networks.sqnr(model, q, data) > 25


def test_a_batch_normalization_behind_two_kernels_is_said_to_train_apart(capsys):
    x, norm = keras.Input((5,)), L.BatchNormalization(name="norm")
    kerasq.quantize_model(keras.Model(x, norm(L.Dense(3)(x)) + norm(L.Dense(3)(x))))
    assert "Train apart, a copy for each call: weights of 'norm'." in capsys.readouterr().out


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: ops.matmul(x, w),
        lambda x, w: ops.einsum("btc,cd->btd", x, w),
        lambda x, w: ops.conv(x, w[None]),
    ],
)
def test_constant_kernels_do_not_train(function):
    """Such as those of a mel scale."""
    w = np.random.default_rng(0).uniform(size=(3, 5)).astype("float32")
    x = keras.Input((4, 3), name="x")
    model = keras.Model(x, function(L.Dense(3, name="dense")(x), w))
    q = networks.quantized(model)
    assert [v.path for v in q.trainable_variables] == ["dense/kernel", "dense/bias"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: ops.round(x, decimals=1),
        lambda x: ops.squareplus(x, b=1),
        lambda x: ops.clip(x, np.array([-1.0]), np.array([1.0])),
        lambda x: ops.clip(x, -0.5, np.linspace(0.5, 1.0, 4)),
        lambda x: ops.maximum(x[..., :1], np.zeros(3, "float32")),
        L.Conv1D(8, 3, groups=4, padding="causal", dilation_rate=2, name="causal"),
        lambda x: ops.image.resize(
            x[..., None], (8, 8), pad_to_aspect_ratio=True, fill_mode="constant", fill_value=3.0
        ),
    ],
    ids=["round", "squareplus", "one", "array", "broadcast", "causal", "resize"],
)
def test_all_arguments_count(function):
    x = keras.Input((6, 4), name="x")
    model = keras.Model(x, function(x))
    data = networks.data(model, 64)
    q = networks.quantized(model, data, scheme="w8a16")
    assert q.output_shape == model.output_shape
    assert networks.sqnr(model, q, data) > 45


def test_regularizers_that_parts_do_not_have_are_said(capsys):
    rules = {"kernel_regularizer": "l2", "kernel_constraint": "non_neg"}
    x = keras.Input((6, 4), name="x")
    y = L.MultiHeadAttention(2, 2, name="heads", **rules)(x, x)
    y = L.BatchNormalization(gamma_regularizer="l2", name="norm")(L.Dense(4, "tanh", **rules)(y))
    y = L.Dense(3, "gelu", name="head", **rules)(y)
    kerasq.quantize_model(keras.Model(x, y))
    said = "Left out in training: regularizers or constraints of weights of 'heads', 'norm'.\n"
    assert said in capsys.readouterr().out


def test_lora_is_merged_first():
    layer = L.Dense(4, name="dense")
    model = keras.Sequential([keras.Input((5,)), layer])
    layer.enable_lora(2)
    with pytest.raises(ValueError, match=r"must be merged .* Received: 'dense' with enable_lora"):
        kerasq.quantize_model(model)


class Tagger(keras.Model):
    def __init__(self):
        super().__init__()
        self.rows = L.Embedding(9, 4, mask_zero=True)
        self.loop = L.LSTM(3, return_sequences=True, name="loop")

    def call(self, x):
        return self.loop(self.rows(x))


@pytest.mark.parametrize("is_traced", [False, True])
def test_masks_of_outputs_are_said_to_be_lost(is_traced, capsys):
    x = np.ones((2, 5), "int32")
    model = Tagger() if is_traced else keras.Sequential([keras.Input((5,)), *Tagger().layers])
    model(x)
    kerasq.quantize_model(model)
    printed = capsys.readouterr().out
    assert "give `sample_weight` instead. Outputs: loop." in printed
    kerasq.quantize_model(keras.Sequential([keras.Input((5, 4)), L.LSTM(3)]))
    assert "masks" not in capsys.readouterr().out
