"""One contract that every row of the registry keeps."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq import layers, registry
from tests import networks

L = keras.layers
IMAGE = (6, 6, 3)
SEQUENCE = (12, 4)

# By row: the layer under test, and the shapes of the model's inputs.
LAYERS = {
    L.Conv2D: [
        (lambda: L.Conv2D(4, 3, strides=2, padding="same", name="x"), [IMAGE]),
        (lambda: L.Conv2D(4, (3, 2), use_bias=False, name="x"), [IMAGE]),
        (lambda: L.Conv2D(4, 3, dilation_rate=2, name="x"), [IMAGE]),
        (lambda: L.Conv2D(4, 3, name="x"), [(6, 6, 1)]),
    ],
    L.DepthwiseConv2D: [
        (lambda: L.DepthwiseConv2D(3, padding="same", name="x"), [IMAGE]),
        (lambda: L.DepthwiseConv2D(3, strides=2, depth_multiplier=2, name="x"), [IMAGE]),
        (lambda: L.DepthwiseConv2D(2, use_bias=False, name="x"), [IMAGE]),
    ],
    L.Dense: [
        (lambda: L.Dense(5, name="x"), [(7,)]),
        (lambda: L.Dense(1, use_bias=False, name="x"), [(7,)]),
        (lambda: L.Dense(5, name="x"), [IMAGE]),
    ],
    L.Conv1D: [
        (lambda: L.Conv1D(4, 3, strides=2, name="x"), [SEQUENCE]),
        (lambda: L.Conv1D(4, 3, padding="causal", dilation_rate=2, name="x"), [SEQUENCE]),
    ],
    L.DepthwiseConv1D: [
        (lambda: L.DepthwiseConv1D(3, padding="same", depth_multiplier=2, name="x"), [SEQUENCE]),
    ],
    L.SeparableConv2D: [(lambda: L.SeparableConv2D(4, 3, strides=2, name="x"), [IMAGE])],
    L.SeparableConv1D: [(lambda: L.SeparableConv1D(4, 3, name="x"), [SEQUENCE])],
    layers.Scale: [
        (lambda: layers.Scale(name="x"), [IMAGE]),
        (lambda: layers.Scale(name="x"), [(9,)]),
    ],
    L.Rescaling: [(lambda: L.Rescaling(0.3, offset=-1.0, name="x"), [IMAGE])],
    L.Normalization: [
        (lambda: L.Normalization(mean=[1, 2, 3], variance=[4, 1, 2], name="x"), [IMAGE]),
        (lambda: L.Normalization(mean=1.0, variance=4.0, axis=None, invert=True), [SEQUENCE]),
    ],
    L.Subtract: [(lambda: L.Subtract(name="x"), [IMAGE, IMAGE])],
    L.Multiply: [
        (lambda: L.Multiply(name="x"), [IMAGE, IMAGE]),
        (lambda: L.Multiply(name="x"), [IMAGE, (1, 1, 3)]),
        (lambda: L.Multiply(name="x"), [(5,), (5,), (5,)]),
    ],
    L.Maximum: [(lambda: L.Maximum(name="x"), [IMAGE, IMAGE, IMAGE])],
    L.Minimum: [(lambda: L.Minimum(name="x"), [IMAGE, IMAGE])],
    L.Average: [(lambda: L.Average(name="x"), [IMAGE, IMAGE, IMAGE])],
    L.Add: [(lambda: L.Add(name="x"), [IMAGE, IMAGE]), (lambda: L.Add(name="x"), [(5,), (5,)])],
    L.Concatenate: [
        (lambda: L.Concatenate(name="x"), [IMAGE, (6, 6, 2)]),
        (lambda: L.Concatenate(axis=1, name="x"), [IMAGE, (2, 6, 3), IMAGE]),
    ],
    L.AveragePooling2D: [
        (lambda: L.AveragePooling2D(2, name="x"), [IMAGE]),
        (lambda: L.AveragePooling2D(3, strides=2, padding="same", name="x"), [IMAGE]),
    ],
    L.GlobalAveragePooling2D: [
        (lambda: L.GlobalAveragePooling2D(name="x"), [IMAGE]),
        (lambda: L.GlobalAveragePooling2D(keepdims=True, name="x"), [IMAGE]),
    ],
    L.AveragePooling1D: [(lambda: L.AveragePooling1D(2, name="x"), [SEQUENCE])],
    L.GlobalAveragePooling1D: [
        (lambda: L.GlobalAveragePooling1D(name="x"), [SEQUENCE]),
        (lambda: L.GlobalAveragePooling1D(keepdims=True, name="x"), [SEQUENCE]),
    ],
    L.MaxPooling1D: [(lambda: L.MaxPooling1D(3, padding="same", name="x"), [SEQUENCE])],
    L.GlobalMaxPooling1D: [(lambda: L.GlobalMaxPooling1D(name="x"), [SEQUENCE])],
    L.Permute: [(lambda: L.Permute((3, 1, 2), name="x"), [IMAGE])],
    L.ZeroPadding1D: [(lambda: L.ZeroPadding1D((1, 2), name="x"), [SEQUENCE])],
    L.MaxPooling2D: [
        (lambda: L.MaxPooling2D(2, name="x"), [IMAGE]),
        (lambda: L.MaxPooling2D(3, strides=2, padding="same", name="x"), [IMAGE]),
    ],
    L.GlobalMaxPooling2D: [
        (lambda: L.GlobalMaxPooling2D(name="x"), [IMAGE]),
        (lambda: L.GlobalMaxPooling2D(keepdims=True, name="x"), [IMAGE]),
    ],
    L.Flatten: [(lambda: L.Flatten(name="x"), [IMAGE])],
    L.Reshape: [(lambda: L.Reshape((9, -1), name="x"), [IMAGE])],
    L.ZeroPadding2D: [(lambda: L.ZeroPadding2D(((1, 0), (2, 1)), name="x"), [IMAGE])],
    L.ReLU: [
        (lambda: L.ReLU(name="x"), [IMAGE]),
        (lambda: L.ReLU(6.0, name="x"), [IMAGE]),
        (lambda: L.ReLU(3.0, name="x"), [IMAGE]),
    ],
    L.LeakyReLU: [(lambda: L.LeakyReLU(0.2, name="x"), [IMAGE])],
    layers.Gelu: [(lambda: layers.Gelu(name="x"), [IMAGE])],
    L.ELU: [(lambda: L.ELU(name="x"), [(9,)]), (lambda: L.ELU(name="x"), [IMAGE])],
    L.Softmax: [(lambda: L.Softmax(name="x"), [(9,)]), (lambda: L.Softmax(name="x"), [IMAGE])],
}
ACTIVATIONS = [
    *("relu", "relu6", "softmax", "elu", "sigmoid", "tanh"),
    *("gelu", "exponential", "hard_silu", "silu", "hard_sigmoid"),
]
# Rows without an operator of their own: tested behind or before a Dense.
WITHOUT_OP = {
    L.BatchNormalization: [L.Dense(5, name="dense"), L.BatchNormalization(name="norm")],
    L.Identity: [L.Identity(name="same"), L.Dense(5, name="dense")],
    L.Dropout: [L.Dropout(0.5, name="drop"), L.Dense(5, name="dense")],
    "linear": [L.Activation("linear", name="linear"), L.Dense(5, name="dense")],
}
# Identities in inference, in front of a convolution.
IDENTITIES = [
    *(L.SpatialDropout2D(0.5), L.AlphaDropout(0.5), L.GaussianDropout(0.5), L.GaussianNoise(0.5)),
    *(L.ActivityRegularization(0.1), L.RandomFlip(), L.RandomRotation(0.1), L.RandomZoom(0.1)),
    *(L.RandomTranslation(0.1, 0.1), L.RandomShear((0.0, 0.1), (0.0, 0.1)), L.RandomPerspective()),
    *(L.RandomErasing(), L.RandomBrightness(0.1), L.RandomContrast(0.1), L.RandomSaturation(0.1)),
    *(L.RandomHue(0.1), L.RandomSharpness(0.1), L.RandomGrayscale(), L.RandomGaussianBlur()),
    *(L.RandomPosterization(4), L.RandomInvert(), L.RandomColorJitter()),
    *(L.RandomColorDegeneration(0.1), L.SpatialDropout1D(0.5), L.SpatialDropout3D(0.5)),
]
# What shapes are changed with, around operators that want an image.
SHAPES = {"RESHAPE"}
# LiteRT 8-bit quantization specification: scale and zero point of the output.
SPECIFIED = {"SOFTMAX": (1 / 256, -128), "LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}
# LiteRT 2.3 has no reference kernel for these: a file that needs one is refused.
WITHOUT_REFERENCE = {"ELU"}
# The same specification: "input and outputs must all have same scale/zero_point".
SAME_SCALE = {"AVERAGE_POOL_2D", "MAX_POOL_2D", "REDUCE_MAX", "RESHAPE", "PAD", "TRANSPOSE"}

CASES = [
    pytest.param(make, shapes, row, id=f"{row.__name__}-{i}")
    for row, variants in LAYERS.items()
    for i, (make, shapes) in enumerate(variants)
] + [
    pytest.param(
        lambda name=name: L.Activation(name, name="x"), [shape], name, id=f"{name}-{len(shape)}"
    )
    for name in ACTIVATIONS
    for shape in ((9,), IMAGE)
]


def single(layer, shapes):
    """A model of one layer, and data whose scale differs from input to input."""
    inputs = [keras.Input(shape, name=f"in{i}") for i, shape in enumerate(shapes)]
    model = keras.Model(inputs, layer(inputs if len(inputs) > 1 else inputs[0]))
    rng = np.random.default_rng(1)
    if getattr(layer, "bias", None) is not None:
        layer.bias.assign(rng.normal(size=layer.bias.shape))
    x = [
        rng.normal(0.3 * i, 3.0 / (i + 1), (40, *shape)).astype("f")
        for i, shape in enumerate(shapes)
    ]
    return model, x if len(x) > 1 else x[0]


def steps(a, b, scale):
    return np.rint((a - b) / scale)


def test_every_row_has_a_case():
    rows = {*registry.LAYERS, *registry.ACTIVATIONS}
    assert {*LAYERS, *ACTIVATIONS, *WITHOUT_OP, *map(type, IDENTITIES)} == rows


@pytest.mark.parametrize(("make", "shapes", "row"), CASES)
def test_contract(make, shapes, row):
    rule = registry.ACTIVATIONS[row] if isinstance(row, str) else registry.LAYERS[row]
    model, x = single(make(), shapes)
    q = networks.quantized(model, x)
    simulated = q.predict(x, verbose=0)
    lite = kerasq.export_tflite(q)

    # The operator is the one the row names, nothing is in float.
    names = [op.name for op in lite.ops if op.name != "QUANTIZE"]
    relus = {"RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1"}
    if rule.op != "RESHAPE":
        names = [name for name in names if name not in SHAPES]
    if rule.output == "parts":
        assert [*dict.fromkeys(names)] == rule.op.split(", ")
    elif rule.op == "RELU":
        assert set(names) <= relus
    else:
        # Several inputs: n - 1 of them, but for the one that takes any number.
        count = len(x) - 1 if isinstance(x, list) and rule.op != "CONCATENATION" else 1
        assert [name for name in names if name != "PAD" or rule.op == "PAD"] == [rule.op] * count
    assert lite.float_ops == []
    assert all(tensor.dtype.kind == "i" for tensor in lite.tensors)

    # The grids are those that LiteRT specifies.
    grid = lite.outputs[0].grid
    if rule.op in SPECIFIED:
        assert (grid.scale, grid.zero_point) == (
            np.float32(SPECIFIED[rule.op][0]),
            SPECIFIED[rule.op][1],
        )
        assert rule.output == "fixed"
    if rule.output != "parts":
        assert (rule.op in SAME_SCALE) == (rule.output in ("same", "input"))
    if rule.op in SAME_SCALE:
        source = lite.inputs[0].grid
        assert (grid.scale, grid.zero_point) == (source.scale, source.zero_point)

    # The simulation is bit-equal to LiteRT's default kernels, and near the reference kernels.
    np.testing.assert_array_equal(simulated, lite.predict(x))
    if rule.op in WITHOUT_REFERENCE:
        with pytest.raises(ValueError, match=rf"Didn't find op for builtin opcode '{rule.op}'"):
            kerasq.TFLiteModel(lite.content, kernels="reference")
    else:
        reference = kerasq.TFLiteModel(lite.content, kernels="reference").predict(x)
        assert np.abs(steps(simulated, reference, grid.scale)).max() <= len(names)

    # It still is the float layer, give or take the grids of its inputs and weights.
    factor = {"EXP": 16, "MUL": 16, "DEPTHWISE_CONV_2D, CONV_2D": 16}.get(rule.op, 4)
    tolerance = (max(8, factor) if rule.kernel else factor) * max(
        [grid.scale, *(tensor.grid.scale for tensor in lite.inputs)]
    )
    np.testing.assert_allclose(simulated, model.predict(x, verbose=0), atol=tolerance)
    assert len(np.unique(simulated)) > 10


@pytest.mark.parametrize("row", WITHOUT_OP, ids=str)
def test_rows_without_an_operator(row):
    rule = registry.ACTIVATIONS[row] if isinstance(row, str) else registry.LAYERS[row]
    assert rule.op == "-"
    model = keras.Sequential(
        [keras.Input((7,)), *(type(x).from_config(x.get_config()) for x in WITHOUT_OP[row])]
    )
    networks.shake_norms(model)
    x = np.random.default_rng(0).normal(size=(40, 7)).astype("f")
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q)
    assert [op.name for op in lite.ops] == ["FULLY_CONNECTED"]
    np.testing.assert_array_equal(q.predict(x, verbose=0), lite.predict(x))
    np.testing.assert_allclose(lite.predict(x), model.predict(x, verbose=0), atol=0.15)


@pytest.mark.parametrize("layer", IDENTITIES, ids=lambda layer: type(layer).__name__)
def test_identities_leave_nothing_behind(layer):
    shape = {L.SpatialDropout1D: SEQUENCE, L.SpatialDropout3D: (4, 4, 4, 3)}.get(type(layer), IMAGE)
    end = L.Dense(5, name="dense")
    copy = type(layer).from_config(layer.get_config())
    model = keras.Sequential([keras.Input(shape), copy, L.Flatten(name="flat"), end])
    x = np.random.default_rng(0).uniform(size=(40, *shape)).astype("f")
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q)
    assert [op.name for op in lite.ops] == ["RESHAPE", "FULLY_CONNECTED"]
    np.testing.assert_array_equal(q.predict(x, verbose=0), lite.predict(x))
    np.testing.assert_allclose(lite.predict(x), model.predict(x, verbose=0), atol=0.15)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (L.Conv2D(4, 3, groups=2, name="g"), r"'g' \(Conv2D\): needs groups=1, has groups=2"),
        (
            L.Conv2D(4, 3, data_format="channels_first", name="c"),
            r"'c' \(Conv2D\): needs data_format='channels_last', has data_format='channels_first'",
        ),
        (
            L.MaxPooling2D(2, data_format="channels_first", name="m"),
            r"'m' \(MaxPooling2D\): needs data_format='channels_last'",
        ),
        (L.ReLU(6.0, negative_slope=0.1, name="r"), r"'r' \(ReLU\): needs negative_slope=0.0 or"),
        (L.ReLU(threshold=1.0, name="t"), r"'t' \(ReLU\): needs threshold=0, has threshold=1.0"),
        (L.Softmax(axis=1, name="s"), r"'s' \(Softmax\): needs axis=-1, has axis=1"),
        (L.Dense(2, activation="mish", name="d"), r"'d' \(Dense\): activation 'mish' has no"),
        (L.Activation("selu", name="e"), r"'e' \(Activation\): activation 'selu' has no integer"),
        (L.ELU(alpha=0.5, name="a"), r"'a' \(ELU\): needs alpha=1, has alpha=0.5"),
        (L.LSTM(2, name="l"), r"'l' \(LSTM\): this layer type has no rule"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_complaint(layer, text):
    import re

    assert re.match(text, registry.complaint(layer))


@pytest.mark.parametrize("row", [*LAYERS, *ACTIVATIONS], ids=str)
def test_no_complaint_about_what_has_a_rule(row):
    layer = L.Activation(row) if isinstance(row, str) else LAYERS[row][0][0]()
    assert registry.complaint(layer) is None
    assert registry.rule(layer) is registry.find(layer) is not None


def test_rule_of_an_unknown_layer():
    with pytest.raises(
        ValueError, match=r"must have a rule. Received: 'lstm' \(LSTM\): this layer"
    ):
        registry.rule(L.LSTM(2, name="lstm"))
    assert registry.find(L.LSTM(2)) is None


def test_a_subclass_is_not_its_parent():
    class Scaled(L.Dense):
        def call(self, x):
            return 2.0 * super().call(x)

    assert "no rule" in registry.complaint(Scaled(2))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (L.ReLU(), (True, None)),
        (L.ReLU(6.0), (True, 6.0)),
        (L.ReLU(3.0), (True, 3.0)),
        (L.Activation("relu"), (True, None)),
        (L.Activation("relu6"), (True, 6.0)),
        (L.Activation("tanh"), (False, None)),
        (L.Dense(2, activation="relu"), (False, None)),
    ],
)
def test_relu_limit(layer, expected):
    assert registry.relu_limit(layer) == expected


def test_table_has_every_row():
    lines = registry.table().splitlines()
    assert len(lines) == 2 + len(registry.LAYERS) + len(registry.ACTIVATIONS)
    assert len({len(line) for line in lines}) == 1
    assert lines[2].split("|")[1].strip() == "Conv2D"
    assert "CONV_2D" in lines[2]
    rows = {cells[0]: cells for cells in ([x.strip() for x in y.split("|")[1:-1]] for y in lines)}
    packed = "int8 per channel, packed int4 under"
    assert rows["Conv2D"][3:5] == ["int8, int16", f"{packed} int8 and int16"]
    assert rows["DepthwiseConv2D"][3:5] == ["int8, int16", f"{packed} int8"]
    assert rows["Activation('tanh')"] == [
        *("Activation('tanh')", "TANH", "fixed", "int8, int16", "", "")
    ]
    assert rows["ELU"] == ["ELU", "ELU", "range", "int8", "", "alpha 1"]
    assert rows["Activation('elu')"][1:4] == ["ELU", "range", "int8"]
