"""One contract that every row of the registry keeps."""

import re

import keras
import numpy as np
import pytest

import kerasq
from kerasq import fits, layer_rules, layers, registry
from tests import networks

# Exports are not checked before these tests compare them, on more than four samples.
L = keras.layers
IMAGE = (6, 6, 3)
SEQUENCE = (12, 4)
VOLUME = (4, 5, 6, 2)

# By row: the layer under test, and the shapes of the model's inputs.
LAYERS = {
    L.Conv2D: [
        (lambda: L.Conv2D(4, 3, strides=2, padding="same", name="x"), [IMAGE]),
        (lambda: L.Conv2D(4, (3, 2), use_bias=False, name="x"), [IMAGE]),
        (lambda: L.Conv2D(4, 3, dilation_rate=2, name="x"), [IMAGE]),
        (lambda: L.Conv2D(4, 3, name="x"), [(6, 6, 1)]),
        (lambda: L.Conv2D(8, 3, groups=2, name="x"), [(6, 6, 4)]),
    ],
    L.DepthwiseConv2D: [
        (lambda: L.DepthwiseConv2D(3, padding="same", name="x"), [IMAGE]),
        (lambda: L.DepthwiseConv2D(3, strides=2, depth_multiplier=2, name="x"), [IMAGE]),
        (lambda: L.DepthwiseConv2D(2, use_bias=False, name="x"), [IMAGE]),
    ],
    L.Conv3D: [(lambda: L.Conv3D(3, 2, padding="same", name="x"), [VOLUME])],
    L.Conv3DTranspose: [(lambda: L.Conv3DTranspose(3, 2, name="x"), [VOLUME])],
    L.Dense: [
        (lambda: L.Dense(5, name="x"), [(7,)]),
        (lambda: L.Dense(1, use_bias=False, name="x"), [(7,)]),
        (lambda: L.Dense(3, use_bias=False, name="x"), [(4, 1)]),
        (lambda: L.Dense(3, name="x"), [(1, 1)]),
        (lambda: L.Dense(5, name="x"), [IMAGE]),
    ],
    L.Conv1D: [
        (lambda: L.Conv1D(4, 3, strides=2, name="x"), [SEQUENCE]),
        (lambda: L.Conv1D(1, 3, bias_initializer="ones", name="x"), [SEQUENCE]),
        (lambda: L.Conv1D(4, 3, padding="causal", dilation_rate=2, name="x"), [SEQUENCE]),
    ],
    L.DepthwiseConv1D: [
        (lambda: L.DepthwiseConv1D(3, padding="same", depth_multiplier=2, name="x"), [SEQUENCE]),
        (lambda: L.DepthwiseConv1D(3, bias_initializer="ones", name="x"), [(12, 1)]),
    ],
    L.Conv2DTranspose: [
        (lambda: L.Conv2DTranspose(4, 3, strides=2, padding="same", name="x"), [IMAGE]),
        (lambda: L.Conv2DTranspose(9, (2, 3), use_bias=False, name="x"), [IMAGE]),
    ],
    L.Conv1DTranspose: [
        (lambda: L.Conv1DTranspose(4, 3, strides=2, padding="same", name="x"), [SEQUENCE])
    ],
    L.SeparableConv2D: [(lambda: L.SeparableConv2D(4, 3, strides=2, name="x"), [IMAGE])],
    L.SeparableConv1D: [(lambda: L.SeparableConv1D(4, 3, name="x"), [SEQUENCE])],
    layers.Scale: [
        (lambda: layers.Scale(name="x"), [IMAGE]),
        (lambda: layers.Scale(name="x"), [(9,)]),
    ],
    L.Rescaling: [
        (lambda: L.Rescaling(0.3, offset=-1.0, name="x"), [IMAGE]),
        (lambda: L.Rescaling(np.arange(1.0, 7.0).reshape(6, 1, 1), name="x"), [IMAGE]),
    ],
    L.Normalization: [
        (lambda: L.Normalization(mean=[1, 2, 3], variance=[4, 1, 2], name="x"), [IMAGE]),
        (lambda: L.Normalization(mean=1.0, variance=4.0, axis=None, invert=True), [SEQUENCE]),
        (
            lambda: L.Normalization((1, 2), np.arange(48).reshape(12, 4), np.ones((12, 4))),
            [SEQUENCE],
        ),
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
    layers.Stack: [
        (lambda: layers.Stack(1, name="x"), [IMAGE, IMAGE, IMAGE]),
        (lambda: layers.Stack(2, name="x"), [(9,), (9,)]),
    ],
    layers.Sum: [
        (lambda: layers.Sum([1, 2], name="x"), [IMAGE]),
        (lambda: layers.Sum([2], keepdims=True, name="x"), [SEQUENCE]),
    ],
    layers.Mean: [
        (lambda: layers.Mean([2], name="x"), [SEQUENCE]),
        (lambda: layers.Mean([1, 3], keepdims=True, name="x"), [IMAGE]),
    ],
    layers.Max: [(lambda: layers.Max([3], keepdims=True, name="x"), [IMAGE])],
    layers.Min: [(lambda: layers.Min([1], name="x"), [SEQUENCE])],
    layers.Variance: [(lambda: layers.Variance([1, 2], name="x"), [IMAGE])],
    layers.Norm: [(lambda: layers.Norm([2], keepdims=True, name="x"), [SEQUENCE])],
    layers.Deviation: [(lambda: layers.Deviation([2], keepdims=True, name="x"), [SEQUENCE])],
    layers.Take: [(lambda: layers.Take([[2, 0], [1, 2]], 3, name="x"), [IMAGE])],
    layers.Pad: [(lambda: layers.Pad([(0, 0), (2, 1), (0, 3)], name="x"), [SEQUENCE])],
    L.AveragePooling2D: [
        (lambda: L.AveragePooling2D(2, name="x"), [IMAGE]),
        (lambda: L.AveragePooling2D(3, strides=2, padding="same", name="x"), [IMAGE]),
    ],
    L.GlobalAveragePooling2D: [
        (lambda: L.GlobalAveragePooling2D(name="x"), [IMAGE]),
        (lambda: L.GlobalAveragePooling2D(keepdims=True, name="x"), [IMAGE]),
    ],
    L.GlobalAveragePooling3D: [(lambda: L.GlobalAveragePooling3D(name="x"), [VOLUME])],
    L.GlobalMaxPooling3D: [(lambda: L.GlobalMaxPooling3D(name="x"), [VOLUME])],
    L.AveragePooling3D: [
        (lambda: L.AveragePooling3D((2, 3, 2), padding="same", name="x"), [VOLUME]),
        (lambda: L.AveragePooling3D(2, strides=1, name="x"), [VOLUME]),
    ],
    L.MaxPooling3D: [(lambda: L.MaxPooling3D(2, padding="same", name="x"), [VOLUME])],
    L.ZeroPadding3D: [(lambda: L.ZeroPadding3D(1, name="x"), [VOLUME])],
    L.Cropping1D: [(lambda: L.Cropping1D((1, 2), name="x"), [SEQUENCE])],
    L.Cropping2D: [(lambda: L.Cropping2D(((1, 0), (2, 1)), name="x"), [IMAGE])],
    L.Cropping3D: [(lambda: L.Cropping3D(1, name="x"), [VOLUME])],
    L.CenterCrop: [(lambda: L.CenterCrop(4, 3, name="x"), [IMAGE])],
    L.RepeatVector: [(lambda: L.RepeatVector(3, name="x"), [(9,)])],
    L.UpSampling1D: [(lambda: L.UpSampling1D(2, name="x"), [SEQUENCE])],
    L.UpSampling2D: [(lambda: L.UpSampling2D((2, 3), interpolation="bilinear", name="x"), [IMAGE])],
    L.UpSampling3D: [(lambda: L.UpSampling3D(2, name="x"), [VOLUME])],
    L.Resizing: [
        (lambda: L.Resizing(7, 5, name="x"), [IMAGE]),
        (lambda: L.Resizing(3, 11, name="x"), [IMAGE]),
    ],
    L.PReLU: [(lambda: L.PReLU("uniform", shared_axes=[1, 2], name="x"), [IMAGE])],
    layers.Matmul: [
        (lambda: layers.Matmul(name="x"), [(5, 7), (7, 4)]),
        (lambda: layers.Matmul(True, name="x"), [(3, 5, 7), (3, 6, 7)]),
    ],
    L.Dot: [
        (lambda: L.Dot((2, 2), name="x"), [SEQUENCE, (7, 4)]),
        (lambda: L.Dot((1, 2), name="x"), [(4, 12), SEQUENCE]),
        (lambda: L.Dot(1, name="x"), [(9,), (9,)]),
    ],
    layers.Einsum: [
        (lambda: layers.Einsum("bqhd,bkhd->bhqk", name="x"), [(5, 2, 3), (4, 2, 3)]),
        (lambda: layers.Einsum("btf,btg->bfg", name="x"), [SEQUENCE, (12, 3)]),
    ],
    L.EinsumDense: [
        (lambda: L.EinsumDense("abc,cde->adbe", (2, 12, 3), bias_axes="de", name="x"), [SEQUENCE]),
        (lambda: L.EinsumDense("abc,bd->adc", (5, 4), bias_axes="d", name="x"), [SEQUENCE]),
        (lambda: L.EinsumDense("abc,cd->abd", (12, 5), bias_axes="d", name="x"), [SEQUENCE]),
        (lambda: L.EinsumDense("abc,cde->abde", (12, 2, 3), name="x"), [SEQUENCE]),
        (lambda: L.EinsumDense("abcd,cde->abe", (6, 5), bias_axes="e", name="x"), [IMAGE]),
    ],
    L.TimeDistributed: [(lambda: L.TimeDistributed(L.Dense(3), name="x"), [SEQUENCE])],
    L.Attention: [
        (lambda: L.Attention(name="x"), [(6, 8), (6, 8)]),
        (lambda: L.Attention(name="x"), [SEQUENCE, (5, 7), (5, 4)]),
    ],
    L.AdditiveAttention: [
        (lambda: L.AdditiveAttention(name="x"), [(6, 8), (6, 8)]),
    ],
    layers.Function: [(lambda: layers.Function("softplus", name="x"), [IMAGE])],
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
    L.Softmax: [
        (lambda: L.Softmax(name="x"), [(9,)]),
        (lambda: L.Softmax(name="x"), [IMAGE]),
        (lambda: L.Softmax((1, 3), name="x"), [(2, 3, 4)]),
        (lambda: L.Softmax((1, 2), name="x"), [(3, 2)]),
    ],
    **{  # Those that this version of Keras has: the name ends in "2D".
        cls: [(lambda cls=cls: cls(2, name="x"), [(*(6,) * int(cls.__name__[-2]), 3)])]
        for cls in (*layer_rules.ADAPTIVE_AVERAGE, *layer_rules.ADAPTIVE_MAX)
    },
    L.UnitNormalization: [
        (lambda: L.UnitNormalization(name="x"), [(9,)]),
        (lambda: L.UnitNormalization([2], name="x"), [IMAGE]),
    ],
}
ACTIVATIONS = [
    *("relu", "relu6", "softmax", "log_softmax", "elu", "sigmoid", "tanh"),
    *("gelu", "exponential", "hard_silu", "silu", "hard_sigmoid"),
    *layer_rules.FUNCTIONS,
]
# Rows with tests of their own, below or in test_graphs.py.
ELSEWHERE = {
    L.MultiHeadAttention,
    L.GroupQueryAttention,
    layers.Constant,
    layers.Masked,  # tests/prepare/test_masks.py
    "glu",
}
ELSEWHERE |= {
    layers.AddLoss,
    layers.ActivityRegularizer,
    layers.ArgMax,
    layers.ArgMin,
    layers.Divide,
    layers.Compare,
}
ELSEWHERE |= {layers.Select}
# Parts of the normalizations in tests/prepare/test_normalization.py, and those.
ELSEWHERE |= {layers.GridMean, layers.InverseRoot, layers.UnitMatmul, layers.UnitAdd}
ELSEWHERE |= {layers.Requantize, L.LayerNormalization, L.RMSNormalization, L.GroupNormalization}
# In tests/prepare/test_recurrence.py.
ELSEWHERE |= {*fits.RECURRENT, L.Bidirectional, layers.Held}
# In tests/prepare/test_fused_recurrence.py.
ELSEWHERE |= {layers.SequenceLSTM}
# In tests/prepare/test_convolutions.py.
ELSEWHERE |= {layers.FrameConv2D}
# Rows that stay float, as layers of a model behind a Dense.
FLOATS = {
    L.Embedding: (lambda x: L.Embedding(9, 4, name="x")(x), (12,)),
}
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
    L.Masking(),
]
# What shapes are changed with, around operators that want an image.
SHAPES = {"RESHAPE", "TRANSPOSE"}
# LiteRT 8-bit quantization specification: scale and zero point of the output.
SPECIFIED = {"SOFTMAX": (1 / 256, -128), "LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}
SPECIFIED |= {"LOG_SOFTMAX": (1 / 16, 127), "L2_NORMALIZATION": (1 / 128, 0)}
# LiteRT 2.3 has no reference kernel for these: a file that needs one is refused.
WITHOUT_REFERENCE = {"ELU"}
# The same specification: "input and outputs must all have same scale/zero_point".
SAME_SCALE = {"AVERAGE_POOL_2D", "MAX_POOL_2D", "REDUCE_MAX", "RESHAPE", "PAD", "TRANSPOSE"}
SAME_SCALE |= {"RESIZE_BILINEAR", "STRIDED_SLICE", "TILE", "REDUCE_MIN", "GATHER"}

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
    assert {*LAYERS, *ACTIVATIONS, *WITHOUT_OP, *FLOATS, *ELSEWHERE, *map(type, IDENTITIES)} == rows
    floats = {cls for cls, rule in registry.LAYERS.items() if rule.output == "float"}
    assert {*FLOATS} == floats


@pytest.mark.parametrize("row", FLOATS, ids=lambda row: row.__name__)
def test_float_rows(row, capsys):
    call, shape = FLOATS[row]
    dtype = "int32" if row is L.Embedding else "float32"
    inner = x = keras.Input(shape, name="in", dtype=dtype)
    if row is not L.Embedding:
        x = L.Dense(shape[-1], name="before")(x)
    model = keras.Model(inner, L.Dense(2, name="behind")(L.Flatten(name="flat")(call(x))))
    x = np.random.default_rng(0).uniform(0, 8, (40, *shape)).astype(dtype)
    q = networks.quantized(model, x)
    printed = capsys.readouterr().out
    lite = kerasq.export_tflite(q, check=False)
    if row is L.Embedding:  # Its table is float only where floats are read.
        assert lite.float_ops == [] and "GATHER" in {op.name for op in lite.ops}
    else:
        assert f"'x' ({row.__name__})" in printed
        assert "x" in {op.outputs[0].split("/")[0] for op in lite.float_ops}
    report = kerasq.compare(q, lite, x=x)
    assert max(layer.max_lsb or 0 for layer in report.layers) == 0
    want = networks.run(q, x)
    np.testing.assert_allclose(lite.predict(x), want, atol=0.03 * np.abs(want).max())


@pytest.mark.parametrize(("make", "shapes", "row"), CASES)
def test_contract(make, shapes, row):
    rule = registry.ACTIVATIONS[row] if isinstance(row, str) else registry.LAYERS[row]
    model, x = single(make(), shapes)
    q = networks.quantized(model, x)
    simulated = q.predict_on_batch(x)
    lite = kerasq.export_tflite(q, check=False)

    # The operator is the one the row names, nothing is in float.
    names = [op.name for op in lite.ops if op.name != "QUANTIZE"]
    relus = {"RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1"}
    wanted = [name for name in rule.op.split(", ") if name != "RELU"]  # QUANTIZE, which cuts at 0.
    if rule.op == "AVERAGE_POOL_2D":  # A convolution by equal weights where nothing is padded.
        names = [name.replace("DEPTHWISE_CONV_2D", rule.op) for name in names]
    if rule.op != "RESHAPE":
        names = [name for name in names if name not in SHAPES or name in rule.op]
    if rule.output == "decomposed":
        assert [*dict.fromkeys(names)] == wanted
    elif rule.op == "TILE":
        assert {*names} == {"TILE"}
    elif rule.op == "RELU":
        assert set(names) <= relus
    else:
        # Several inputs: n - 1 of them, but for those that take any number.
        any_number = ("CONCATENATION", "PACK")
        count = len(x) - 1 if isinstance(x, list) and rule.op not in any_number else 1
        assert [name for name in names if name != "PAD" or rule.op == "PAD"] == rule.op.split(
            ", "
        ) * count
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
    if rule.output != "decomposed":
        assert (rule.op in SAME_SCALE) == (rule.output in ("same", "input"))
    if rule.op in SAME_SCALE:
        source = lite.inputs[0].grid
        assert (grid.scale, grid.zero_point) == (source.scale, source.zero_point)

    # The simulation is bit-equal to LiteRT's default kernels, and near the reference kernels.
    np.testing.assert_array_equal(simulated, lite.predict(x))
    if rule.op in WITHOUT_REFERENCE:
        with pytest.raises(ValueError, match=rf"Didn't find op for builtin opcode '{rule.op}'"):
            kerasq.TFLiteModel(lite.content, kernels="reference")
    elif "SUM" not in rule.op.split(", "):  # Which they get wrong: tests/litert/test_operators.py.
        reference = kerasq.TFLiteModel(lite.content, kernels="reference").predict(x)
        assert np.abs(steps(simulated, reference, grid.scale)).max() <= len(lite.ops)

    # It still is the float layer, give or take the grids of its inputs and weights.
    factors = {"EXP": 16, "MUL": 16, "DEPTHWISE_CONV_2D, CONV_2D": 16, "BATCH_MATMUL, SOFTMAX": 32}
    factor = factors.get(rule.op, 4)
    tolerance = (max(8, factor) if rule.kernel else factor) * max(
        [grid.scale, *(tensor.grid.scale for tensor in lite.inputs)]
    )
    if row not in ("hard_shrink", "soft_shrink"):  # They jump.
        want = networks.run(model, x)
        want = np.maximum(want, grid.low) if rule.op == "LOG_SOFTMAX" else want
        np.testing.assert_allclose(simulated, want, atol=tolerance)
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
    lite = kerasq.export_tflite(q, check=False)
    assert [op.name for op in lite.ops] == ["FULLY_CONNECTED"]
    np.testing.assert_array_equal(networks.run(q, x), lite.predict(x))
    np.testing.assert_allclose(lite.predict(x), networks.run(model, x), atol=0.15)


@pytest.mark.parametrize("layer", IDENTITIES, ids=lambda layer: type(layer).__name__)
def test_identities_leave_nothing_behind(layer):
    shape = {L.SpatialDropout1D: SEQUENCE, L.SpatialDropout3D: (4, 4, 4, 3)}.get(type(layer), IMAGE)
    end = L.Dense(5, name="dense")
    copy = type(layer).from_config(layer.get_config())
    model = keras.Sequential([keras.Input(shape), copy, L.Flatten(name="flat"), end])
    x = np.random.default_rng(0).uniform(size=(40, *shape)).astype("f")
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q, check=False)
    assert [op.name for op in lite.ops] == ["RESHAPE", "FULLY_CONNECTED"]
    np.testing.assert_array_equal(networks.run(q, x), lite.predict(x))
    np.testing.assert_allclose(lite.predict(x), networks.run(model, x), atol=0.15)


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (
            L.Conv2D(4, 3, data_format="channels_first", name="c"),
            r"needs data_format='channels_last', has data_format='channels_first'",
        ),
        (
            L.MaxPooling2D(2, data_format="channels_first", name="m"),
            r"needs data_format='channels_last'",
        ),
        (
            L.UpSampling2D(interpolation="bicubic", name="u"),
            r"needs interpolation='bilinear', has interpolation='bicubic'",
        ),
        (
            L.Resizing(4, 4, interpolation="nearest", antialias=True, name="z"),
            r"needs antialias=False, has antialias=True",
        ),
        (L.Masking(-1.0, name="s"), "needs mask_value=0.0, has mask_value=-1.0"),
        (L.Activation("sparsemax", name="a"), "'sparsemax'"),
        (
            L.Dense(2, activation=L.PReLU(), name="k"),
            "needs an activation without weights, has 'PReLU'",
        ),
        (L.CategoryEncoding(3, name="l"), "no rule for this type of layer"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_complaint(layer, text):
    assert re.match(text, registry.complaint(layer))


def test_a_gated_linear_unit():
    """Keras takes its output for as long as its input, so nothing can read it but the user."""
    model = keras.Sequential([keras.Input((6,)), L.Activation("glu", name="x")])
    x = np.random.default_rng(0).normal(size=(40, 6)).astype("f")
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q, check=False)
    assert [op.name for op in lite.ops] == ["SPLIT", "LOGISTIC", "MUL"]
    np.testing.assert_array_equal(networks.run(q, x), lite.predict(x))
    np.testing.assert_allclose(lite.predict(x), networks.run(model, x), atol=0.05)


@pytest.mark.parametrize("row", [*LAYERS, *ACTIVATIONS], ids=str)
def test_no_complaint_about_what_has_a_rule(row):
    layer = L.Activation(row) if isinstance(row, str) else LAYERS[row][0][0]()
    assert registry.complaint(layer) is None
    assert registry.rule(layer) is registry.find(layer) is not None


def test_rule_of_an_unknown_layer():
    with pytest.raises(
        ValueError, match=r"must have a rule. Received: 'mel' \(MelSpectrogram: no rule for"
    ):
        registry.rule(L.MelSpectrogram(name="mel"))
    assert registry.find(L.MelSpectrogram()) is None


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
    tables = (registry.LAYERS, registry.ACTIVATIONS, registry.OPERATIONS)
    assert len(lines) == 2 + sum(map(len, tables))
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
    condition = "with another alpha than 1, and on int16, Function"
    assert rows["ELU"] == ["ELU", "ELU", "range", "int8, int16", "", condition]
    assert rows["Embedding"][:5] == ["Embedding", "GATHER", "float", "float32", ""]
    assert rows["Activation('elu')"][1:4] == ["ELU", "range", "int8, int16"]


class Blur(L.Layer):
    """A convolution with weights of its own names."""

    def build(self, shape):
        self.w = self.add_weight(name="w", shape=(3, 3, shape[-1], 4))
        self.b = self.add_weight(name="b", shape=(4,), initializer="ones")

    def call(self, x):
        return keras.ops.conv(x, self.w, padding="same") + self.b


class Wave(L.Layer):
    """A function of each value."""

    def call(self, x):
        return keras.ops.sin(x) * keras.ops.cos(2.0 * x)


class Spread(L.Layer):
    """What LiteRT has no kernel for."""

    def call(self, x):
        return keras.ops.cumsum(x, axis=1)


@pytest.fixture
def registered():
    registry.register_layer(Blur, op="CONV_2D", kernel="w", bias="b")
    registry.register_layer(Wave, op="GATHER")
    registry.register_layer(Spread, op="-", output="float")
    yield
    registry._REGISTERED.clear()


def test_every_operator_can_be_registered():
    """Rules of layers that become several others are no rules for one operator."""
    for op, kernel in (
        ("FULLY_CONNECTED", "w"),
        ("DEPTHWISE_CONV_2D", "w"),
        ("BATCH_MATMUL", None),
    ):
        registry.register_layer(Blur, op, kernel=kernel)
        rule = registry.find(Blur(name="blur"))
        assert rule.fits is None and rule.output == "range" and rule.op == op
    registry._REGISTERED.clear()


def test_an_identity_that_is_registered_leaves_nothing_behind():
    registry.register_layer(Wave, op="-")
    wave = Wave(name="wave")
    assert registry.is_dropped(wave) and registry.passes_through(wave)
    with pytest.raises(ValueError, match="`output` must be 'same' for an operator that keeps"):
        registry.register_layer(Wave, op="-", output=kerasq.Grid(scale=1.0, zero_point=0))
    registry._REGISTERED.clear()


def test_registered_layers(registered, tmp_path):
    model = keras.Sequential(
        [
            keras.Input(IMAGE),
            Blur(name="blur"),
            L.ReLU(),
            Wave(name="wave"),
            Spread(name="spread"),
            Blur(name="end"),
        ]
    )
    x = np.random.default_rng(0).normal(size=(40, *IMAGE)).astype("f")
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q, check=False)
    names = [op.name for op in lite.ops if op not in lite.float_ops]
    assert names == ["CONV_2D", "CAST", "ADD", "GATHER", "DEQUANTIZE", "QUANTIZE", "CONV_2D"]
    assert {op.outputs[0].split("/")[0] for op in lite.float_ops} == {"spread"}
    assert {layer.max_lsb for layer in kerasq.compare(q, lite, x=x).layers} <= {0, None}
    want, got = networks.run(model, x), networks.run(q, x)
    assert np.abs(want - got).max() <= 0.1 * np.abs(want).max()


@pytest.mark.parametrize(
    ("cls", "options", "text"),
    [
        (L.Dense, {"op": "ADD"}, "`cls` must be a layer class of your own"),
        (Blur, {"op": "CONV_9D"}, r"`op` must be one of \['-', 'ADD'.*Received: op='CONV_9D'"),
        (Blur, {"op": "CONV_2D"}, "`kernel` must name the weight"),
        (Blur, {"op": "ADD", "kernel": "w"}, "`kernel` must name the weight"),
        (Blur, {"op": "REDUCE_MAX"}, "`output` must be 'same' for an operator that keeps the grid"),
        (Blur, {"op": "ADD", "output": "wide"}, "`output` must be 'range', 'same', 'float' or"),
    ],
)
def test_register_layer_refuses(cls, options, text):
    with pytest.raises(ValueError, match=text):
        registry.register_layer(cls, **options)


def attended(layer, *args, **kwargs):
    def call(x):
        return L.Dense(3, name="end")(layer(x, *(x for _ in args), **kwargs))

    series = keras.Input(SEQUENCE, name="series")
    return keras.Model(series, call(series))


def run_all(model, scheme="w8a8"):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, *model.input_shape[1:])).astype("f")
    q = networks.quantized(model, x, scheme=scheme)
    lite = kerasq.export_tflite(q, check=False)
    want, got = networks.run(model, x), networks.run(q, x)
    assert np.abs(want - got).max() <= 0.1 * np.abs(want).max()
    assert {layer.max_lsb for layer in kerasq.compare(q, lite, x=x).layers} <= {0, None}
    return lite


@pytest.mark.parametrize(
    ("layer", "scheme"),
    [
        (lambda: L.MultiHeadAttention(2, 4, name="x"), "w8a8"),
        (
            lambda: L.MultiHeadAttention(
                3, 4, value_dim=5, output_shape=7, use_bias=False, name="x"
            ),
            "w8a16",
        ),
        (lambda: L.GroupQueryAttention(4, 4, 2, name="x"), "w8a8"),
    ],
)
def test_heads(layer, scheme):
    networks.set_seed(5)
    lite = run_all(attended(layer(), "value", "key"), scheme)
    assert lite.float_ops == []
    names = [op.name for op in lite.ops]
    assert names.count("FULLY_CONNECTED") == 5 and names.count("BATCH_MATMUL") == 2


@pytest.mark.parametrize(
    "model",
    [
        lambda: attended(lambda x: L.Attention(score_mode="concat", name="x")([x, x])),
        lambda: attended(L.EinsumDense("abc,bcd->abd", (12, 5), name="x")),
    ],
)
def test_what_has_no_integer_form_stays_float(model, capsys):
    lite = run_all(model())
    assert "'x' (" in capsys.readouterr().out
    assert {op.outputs[0].split("/")[0] for op in lite.float_ops} == {"x"}
