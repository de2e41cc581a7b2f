"""The target "tflm" against TFLite Micro's own interpreter."""

import collections
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq import layers, registry
from kerasq.kernels import gemmlowp
from kerasq.kernels.int16 import inverse_root_grid
from kerasq.litert.micro import MicroInterpreter
from kerasq.plan import Plan
from kerasq.targets import TFLM
from tests import networks
from tests.single_op import Op, Tensor, build
from tests.test_kernels import CODES, grid, integers, simulate, tensors
from tests.test_registry import CASES

pytest.importorskip("tflite_micro")
L = keras.layers


def run(content, *inputs):
    interpreter = MicroInterpreter(content)
    for i, values in enumerate(inputs):
        interpreter.set_tensor(i, values)
    interpreter.invoke()
    return interpreter.get_tensor(0)


def assert_agrees(operator, layer, codes, grids, out, version=2, **options):
    """What the target says an operator does to codes is what the interpreter does."""
    found = simulate(operator, layer, codes, grids, out, TFLM)
    operands = [Tensor(x.shape, p, f"int{p.bits}") for x, p in zip(codes, grids, strict=True)]
    operands.append(Tensor(found.shape, out, f"int{out.bits}"))
    content = build(getattr(Op, operator), version, operands, **options)
    np.testing.assert_array_equal(run(content, *codes), found)


def scale(rng, low, high):
    return np.float32(2.0 ** rng.uniform(low, high))


def zero_point(rng, bits):
    return rng.integers(-128, 128) if bits == 8 else 0


def any_codes(rng, bits, shape):
    return rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape).astype(f"int{bits}")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("ADD", {"kind": "AddOptions", "potScaleInt16": False}),
        ("SUB", {"kind": "SubOptions", "potScaleInt16": False}),
        ("MUL", {"kind": "MulOptions"}),
    ],
)
def test_two_tensors(operator, options, bits):
    rng = np.random.default_rng(bits)
    for _ in range(8):
        out = grid(scale(rng, -10, 4), zero_point(rng, bits), bits=bits)
        # Sums of what is almost constant as well.
        ratios = [scale(rng, -12, 3), scale(rng, -12, 3)]
        if operator == "MUL":
            ratios = [scale(rng, -7, 0), np.float32(2.0 ** rng.uniform(-8, 7)) / out.scale]
        grids = [grid(out.scale * r, zero_point(rng, bits), bits=bits) for r in ratios]
        codes = [any_codes(rng, bits, (1, 20_000)) for _ in range(2)]
        assert_agrees(operator, None, codes, grids, out, **options)


def test_inverse_root():
    rng = np.random.default_rng(0)
    layer = layers.InverseRoot(4.0)
    codes = np.arange(2**15, dtype=np.int16)[None]
    for _ in range(8):
        source = grid(scale(rng, -30, 10), 0, bits=16)
        out = inverse_root_grid(layer, source).numpy()
        assert_agrees("RSQRT", layer, [codes], [source], out, version=3)
        found = simulate("RSQRT", layer, [codes], [source], out, TFLM)
        real = 1.0 / np.sqrt(np.maximum(codes, 1) * np.float64(source.scale))
        assert np.abs(found - np.minimum(np.rint(real / out.scale), 2**15 - 1)).max() <= 1
        assert found.max() == 2**15 - 1 and out.scale * 2**15 <= 4.0 * (1 + 2**-14)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    ("operator", "layer", "options"),
    [
        ("LOGISTIC", L.Activation("sigmoid"), {}),
        ("TANH", L.Activation("tanh"), {}),
        ("LEAKY_RELU", L.LeakyReLU(0.3), {"kind": "LeakyReluOptions", "alpha": 0.3}),
        ("RELU", L.ReLU(), {}),
        ("QUANTIZE", None, {"kind": "QuantizeOptions"}),
    ],
    ids=["LOGISTIC", "TANH", "LEAKY_RELU", "RELU", "QUANTIZE"],
)
def test_values_alone(operator, layer, options, bits):
    rng = np.random.default_rng(bits)
    codes = CODES if bits == 8 else np.arange(-(2**15), 2**15, 3).astype(np.int16)
    fixed = registry.ACTIVATIONS[layer.activation.__name__] if operator in "LOGISTIC TANH" else None
    for _ in range(12):
        source = grid(scale(rng, -12, 2), zero_point(rng, bits), bits=bits)
        other = grid(source.scale * scale(rng, -2, 2), zero_point(rng, bits), bits=bits)
        out = fixed.grids[bits] if fixed else other
        assert_agrees(operator, layer, [codes.reshape(1, -1)], [source], out, **options)


@pytest.mark.parametrize(
    ("operator", "bits", "low", "options"),
    [
        ("SOFTMAX", 8, -8, {"kind": "SoftmaxOptions", "beta": 1.0}),
        ("SOFTMAX", 16, -14, {"kind": "SoftmaxOptions", "beta": 1.0}),
        ("LOG_SOFTMAX", 8, -8, {}),
        ("L2_NORMALIZATION", 8, -8, {"kind": "L2NormOptions"}),
    ],
)
def test_rows(operator, bits, low, options):
    rng = np.random.default_rng(bits)
    names = {"SOFTMAX": "softmax", "LOG_SOFTMAX": "log_softmax"}
    out = grid(1 / 128)
    if operator in names:
        out = registry.ACTIVATIONS[names[operator]].grids[bits]
    for depth in (2, 3, 10, 39):
        for _ in range(3):
            source = grid(scale(rng, low, low + 8), zero_point(rng, bits), bits=bits)
            codes = any_codes(rng, bits, (200, depth))
            assert_agrees(operator, None, [codes], [source], out, **options)


@pytest.mark.parametrize("bits", [8, 16])
def test_quantize_from_float(bits):
    rng = np.random.default_rng(bits)
    for _ in range(10):
        out = grid(scale(rng, -10, 4), zero_point(rng, bits), bits=bits)
        x = (rng.uniform(-1, 1, (1, 9999)) * out.scale * 2.0**bits).astype("float32")
        x[0, :1000] = (np.arange(1000) - 499.5) * out.scale  # Ties.
        x[0, 1000] = np.nan
        found = integers(
            TFLM.run("QUANTIZE", L.Identity(), [tf.constant(x)], [], tensors(out)), out
        )
        operands = [Tensor(x.shape, dtype="float32"), Tensor(x.shape, out, f"int{bits}")]
        content = build(Op.QUANTIZE, 1, operands, kind="QuantizeOptions")
        np.testing.assert_array_equal(run(content, x), found)


def fixed_point(x, integer_bits):
    return tf.constant(np.rint(np.asarray(x) * 2.0 ** (31 - integer_bits)), tf.int64)


@pytest.mark.parametrize(
    ("function", "want", "x", "integer_bits", "result_bits"),
    [
        (lambda a: gemmlowp.exp_of_negative(a, 5), np.exp, np.linspace(-31, 0, 999), 5, 0),
        (lambda a: gemmlowp.tanh(a, 4), np.tanh, np.linspace(-15, 15, 999), 4, 0),
        (lambda a: gemmlowp.log(a, 12), np.log, np.linspace(1, 4000, 999), 12, 5),
    ],
    ids=["exp", "tanh", "log"],
)
def test_fixed_point_functions(function, want, x, integer_bits, result_bits):
    found = function(fixed_point(x, integer_bits)).numpy() * 2.0 ** (result_bits - 31)
    np.testing.assert_allclose(found, want(x), rtol=0, atol=2.0 ** (result_bits - 21))


# Whole models.


def assert_exact(q, x, run=networks.run):
    lite = kerasq.export_tflite(q, check=False)
    assert lite.target == "tflm" and lite.float_ops == []
    found = lite.predict(x)
    found = [*found.values()] if isinstance(found, dict) else [found]
    for a, b in zip(keras.tree.flatten(run(q, x)), found, strict=True):
        np.testing.assert_array_equal(a, b)
    return lite


def test_it_joins_no_more_than_ten_tensors():
    x = keras.Input((4, 3))
    model = keras.Model(x, L.Concatenate()([L.Conv1D(2, 1)(x) for _ in range(13)]))
    lite = assert_exact(networks.quantized(model, target="tflm"), networks.data(model, 8))
    assert [len(op.inputs) for op in lite.ops if op.name == "CONCATENATION"] == [4, 10]


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        *itertools.product(["mlp", "mobile"], ["w8a8", "w8a16", "w4a8", "w4a16", "w2a2"]),
        *itertools.product(["residual", "two_by_two"], ["w8a8", "w8a16", "w4a8"]),
    ],
)
def test_networks(name, scheme):
    model = getattr(networks, name)()
    x = networks.data(model, 32)
    # In a graph, too, on weights of few bits; on others that is `test_layers`.
    run = keras.Model.predict_on_batch if name == "mobile" else networks.run
    lite = assert_exact(networks.quantized(model, x, scheme=scheme, target="tflm"), x, run)
    # Packed weights only where it reads them.
    kinds = {op.name for op in lite.ops}
    packed = {x.name for x in lite.tensors if x.type == "int4"}
    assert bool(packed) == (scheme in ("w4a8", "w2a2"))
    assert "FULLY_CONNECTED" not in kinds or not packed
    assert lite.arena_bytes() > 0


def grouped(weighted=False):
    """Layers by the shapes of what they read, as a model has one kind; or those with weights."""
    found = collections.defaultdict(list)
    for case in CASES:
        make, shapes, row = case.values
        rule = registry.ACTIVATIONS[row] if isinstance(row, str) else registry.LAYERS[row]
        operators = [TFLM.operators.get(name) for name in rule.op.split(", ")]
        if not weighted or any(x is not None and x.channels is not None for x in operators):
            found[tuple(map(tuple, shapes))].append(make)
    return found


# Weights have 4 bits where there are any.
LAYERS = [
    *(("w8a8", "w8a16", *group) for group in grouped().items()),
    *(("w8a16", "w8a8", *group) for group in grouped().items()),
    *(("w4a8", "w4a16", *group) for group in grouped(weighted=True).items()),
    *(("w4a16", "w4a8", *group) for group in grouped(weighted=True).items()),
]


@pytest.mark.parametrize(
    ("scheme", "other", "shapes", "makes"), LAYERS, ids=["-".join(map(str, x[:3])) for x in LAYERS]
)
def test_layers(scheme, other, shapes, makes):
    """Every second layer, and the inputs, have the other scheme."""
    networks.set_seed(0)
    inputs = [keras.Input(shape, name=f"other_input_{i}") for i, shape in enumerate(shapes)]
    found = [make() for make in makes]
    for i, layer in enumerate(found):
        layer.name = f"{'other' if i % 2 else 'layer'}_{i}"
    x = inputs[0] if len(inputs) == 1 else inputs
    model = keras.Model(inputs, [layer(x) for layer in found])
    rng = np.random.default_rng(1)
    data = [rng.normal(0.3 * i, 3 / (i + 1), (24, *s)).astype("f") for i, s in enumerate(shapes)]
    options = {"scheme": scheme, "overrides": {"other_*": other}, "target": "tflm"}
    q = networks.quantized(model, data, **options)
    # In a graph, too: each kernel once.
    assert_exact(q, data, keras.Model.predict_on_batch if scheme == "w8a8" else networks.run)


@pytest.mark.parametrize("count", [511, 512, 1000])
def test_long_softmaxes_are_on_int16(count):
    """On int8 those that add up to 512 end the process."""
    x = keras.Input((count,))
    flat = np.zeros((4, count), "float32")
    data = np.concatenate([flat, np.random.default_rng(0).normal(0, 3, (8, count))]).astype("f")
    q = networks.quantized(keras.Model(x, L.Softmax(name="probs")(x)), data, target="tflm")
    lite = assert_exact(q, data)
    assert lite.outputs[0].dtype == (np.int8 if count < 512 else np.int16)
    step = lite.outputs[0].grid.scale
    np.testing.assert_allclose(lite.predict(flat)[:, 0], 1 / count, rtol=0, atol=2 * step)


def test_models_whose_long_softmax_is_on_int8(monkeypatch):
    """Such as those that were quantized for LiteRT, or before there was a limit."""
    x = keras.Input((512,))
    model = keras.Model(x, L.Softmax(name="probs")(x))
    with pytest.raises(ValueError, match=r"none of 'probs' \(SOFTMAX on int8\)"):
        kerasq.retarget(networks.quantized(model), "tflm")
    with monkeypatch.context() as patched:
        patched.setattr(Plan, "_is_long", lambda *_: False)
        q = networks.quantized(model, target="tflm")
    with pytest.raises(ValueError, match=r"must be over 511 values or fewer.*'probs', over 512"):
        kerasq.export_tflite(q)


@pytest.mark.parametrize("count", [1, 7, 10, 23, 130])
@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_repeats_are_concatenations(count, scheme):
    x = keras.Input((3,))
    data = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    model = keras.Model(x, L.RepeatVector(count)(x))
    lite = assert_exact(networks.quantized(model, data, scheme=scheme, target="tflm"), data)
    assert {op.name for op in lite.ops} <= {"RESHAPE", "CONCATENATION"}


@pytest.mark.parametrize("kind", [layers.Max, layers.Min])
@pytest.mark.parametrize("axes", [[1], [3], [1, 2], [1, 3], [1, 2, 3]])
def test_extremes_of_int16_are_those_of_halves(kind, axes):
    x = keras.Input((4, 5, 3))
    data = np.random.default_rng(0).normal(size=(16, 4, 5, 3)).astype("float32")
    model = keras.Model(x, kind(axes)(x))
    lite = assert_exact(networks.quantized(model, data, scheme="w8a16", target="tflm"), data)
    operator = {layers.Max: "MAXIMUM", layers.Min: "MINIMUM"}[kind]
    assert {op.name for op in lite.ops} == {"SLICE", operator, "RESHAPE"}


@pytest.mark.parametrize("mode", ["reflect", "symmetric"])
@pytest.mark.parametrize("widths", [[(0, 0), (1, 2), (0, 0)], [(0, 0), (3, 0), (1, 1)]])
def test_mirrored_borders_of_int16_are_concatenations(widths, mode):
    x = keras.Input((5, 3))
    data = np.random.default_rng(0).normal(size=(16, 5, 3)).astype("float32")
    model = keras.Model(x, keras.ops.pad(x, widths, mode))
    lite = assert_exact(networks.quantized(model, data, scheme="w8a16", target="tflm"), data)
    assert {op.name for op in lite.ops} == {"SLICE", "REVERSE_V2", "CONCATENATION"}


def test_places_of_int16_are_slices():
    x = keras.Input((15, 3))
    data = np.random.default_rng(0).normal(size=(16, 15, 3)).astype("float32")
    places = [[13, 2], [0, 5], [7, 7], [1, 3], [14, 4], [9, 0], [8, 12]]
    model = keras.Model(x, layers.Take(places, 1)(x))
    lite = assert_exact(networks.quantized(model, data, scheme="w8a16", target="tflm"), data)
    assert {op.name for op in lite.ops} == {"SLICE", "CONCATENATION", "RESHAPE"}


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_slices_of_five_axes(scheme):
    x = keras.Input((4, 5, 3, 2))
    data = np.random.default_rng(0).normal(size=(16, 4, 5, 3, 2)).astype("float32")
    outputs = [
        L.Cropping3D(((1, 2), (0, 3), (1, 1)))(x),
        x[:, -1],
        x[:, 1:, :-2, 2],
        x[:, :2],
        x[..., -1, :],
    ]
    q = networks.quantized(keras.Model(x, outputs), data, scheme=scheme, target="tflm")
    assert {op.name for op in assert_exact(q, data).ops} == {"SLICE", "RESHAPE"}
    q = networks.quantized(keras.Model(x, x[:, ::2]), data, scheme=scheme, target="tflm")
    with pytest.raises(ValueError, match=r"of 5 axes must be of places side by side.*Reshape"):
        kerasq.export_tflite(q)


# By operator, layers of more axes than it takes.
MANY_AXES = {
    "ADD": lambda x, one: x + one,
    "MUL": lambda x, one: x * one,
    "SLICE": lambda x, one: x[:, 1:],
    "TRANSPOSE": lambda x, one: L.Permute((5, 1, 2, 3, 4))(x),
}


@pytest.mark.parametrize("operator", MANY_AXES)
def test_more_axes_than_an_operator_takes(operator):
    """Which would end the process."""
    x, one = keras.Input((2, 1, 2, 3, 2)), keras.Input((1, 1, 2, 3, 2))
    inputs = [x, one] if operator in ("ADD", "MUL") else x
    model = keras.Model(inputs, L.Dense(2)(MANY_AXES[operator](x, one)))
    q = networks.quantized(model, target="tflm")
    with pytest.raises(ValueError, match=rf"What {operator} reads must have 5 axes.*Reshape that"):
        kerasq.export_tflite(q)
    content = kerasq.export_tflite(networks.quantized(model)).content
    kind = "STRIDED_SLICE" if operator == "SLICE" else operator
    with pytest.raises(ValueError, match=rf"TFLite Micro .*{kind}"):
        kerasq.TFLiteModel(content, target="tflm")


def test_rows_of_more_axes_than_an_operator_takes():
    x = keras.Input((2, 3, 2, 4))
    model = keras.Model(x, [L.UnitNormalization()(x), L.UnitNormalization(axis=2)(x)])
    data = networks.data(model, 16)
    lite = assert_exact(networks.quantized(model, data, target="tflm"), data)
    shapes = {t.name: t.shape for t in lite.tensors}
    found = [shapes[op.inputs[0]] for op in lite.ops if op.name == "L2_NORMALIZATION"]
    assert found == [(12, 4), (16, 3)]


def test_labels_of_int16_are_those_of_floats():
    x = keras.Input((7,))
    data = np.random.default_rng(0).normal(size=(64, 7)).astype("float32")
    model = keras.Model(x, keras.ops.argmax(L.Dense(5)(x), -1))
    q = networks.quantized(model, data, scheme="w8a16", target="tflm")
    lite = kerasq.export_tflite(q, check=False)
    assert [op.name for op in lite.ops] == ["FULLY_CONNECTED", "DEQUANTIZE", "ARG_MAX"]
    np.testing.assert_array_equal(lite.predict(data), networks.run(q, data))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_an_embedding(scheme):
    words = keras.Input((7,), dtype="int32")
    y = L.GlobalAveragePooling1D()(L.Conv1D(6, 3, activation="relu")(L.Embedding(20, 8)(words)))
    data = np.random.default_rng(0).integers(0, 20, (32, 7)).astype("int32")
    model = keras.Model(words, L.Dense(2, activation="softmax")(y))
    assert_exact(networks.quantized(model, data, scheme=scheme, target="tflm"), data)


def test_functions_without_an_operator_are_tables():
    x = keras.Input((9,))
    names = ["gelu", "exponential", "elu"]
    model = keras.Model(x, [L.Activation(name)(x) for name in names])
    data = np.random.default_rng(0).normal(size=(32, 9)).astype("float32")
    for scheme in ("w8a8", "w8a16"):  # Of 65536 codes it reads no table: they run at int8.
        lite = assert_exact(networks.quantized(model, data, scheme=scheme, target="tflm"), data)
        assert [op.name for op in lite.ops].count("GATHER") == 3


@pytest.mark.parametrize("activation", ["softmax", "log_softmax"])
def test_logits_that_are_almost_constant(activation):
    """Of steps below 2^-26 TFLite Micro ends the process."""
    x = keras.Input((6,))
    head = L.Dense(4, kernel_initializer=keras.initializers.RandomNormal(0, 1e-9, 0))(x)
    model = keras.Model(x, L.Activation(activation)(head))
    q = networks.quantized(model, target="tflm")
    lite = assert_exact(q, networks.data(model, 32))
    (logits,) = [op.inputs[0] for op in lite.ops if op.name == activation.upper()]
    (scale,) = [t.grid.scale for t in lite.tensors if t.name == logits]
    assert 2.0**-26 < scale < 1.01 * 2.0**-26
    other = kerasq.export_tflite(networks.quantized(model))
    with pytest.raises(
        ValueError, match=r"no int8 softmax whose input has steps of 2\^-26 or less"
    ):
        kerasq.TFLiteModel(other.content, target="tflm")


def test_a_saved_model_keeps_its_target(tmp_path):
    q = networks.quantized(networks.mlp(), target="tflm")
    q.save(tmp_path / "q.keras")
    again = kerasq.load_model(tmp_path / "q.keras")
    assert kerasq.export_tflite(again).content == kerasq.export_tflite(q).content
    report = kerasq.compare(again, kerasq.export_tflite(q), x=networks.data(q, 16))
    assert report.exact == 1.0 and report.kernels == "portable"


@pytest.mark.parametrize("dtype", [None, "uint8", "float32"])
def test_inputs_on_ties(dtype):
    """TFLite Micro rounds floats away from zero, and so does whoever feeds it codes."""
    q = networks.quantized(networks.mlp(), target="tflm")
    (grid,) = (tensor.grid for tensor in kerasq.export_tflite(q).inputs)
    steps = np.arange(258, dtype="float32").reshape(-1, 6) - 128.5
    x = grid.scale * steps
    lite = kerasq.export_tflite(q, input_dtype=dtype)
    assert (grid.quantize(x) != grid.quantize(x, away=True)).mean() > 0.2
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))


def test_constants_on_ties():
    """Files hold constants and rows of an Embedding as QUANTIZE would round them."""
    halves = np.append(np.arange(126) - 62.5, 100.0).astype("float32")  # Of steps of 1.
    x, words = keras.Input((127,)), keras.Input((7,), dtype="int32")
    rows = L.Embedding(127, 2, name="rows")
    outputs = [keras.ops.maximum(x, halves), L.Dense(2)(rows(words))]
    rows.set_weights([np.stack([halves, halves], -1)])
    model = keras.Model([x, words], outputs)
    rng = np.random.default_rng(0)
    data = [rng.normal(size=(32, 127)), rng.integers(0, 127, (32, 7)).astype("int32")]
    lite = assert_exact(networks.quantized(model, data, scales="power_of_two", target="tflm"), data)
    away = np.sign(halves) * np.floor(np.abs(halves) + 0.5)
    held = {t.name: lite.constant(t.name) for t in lite.tensors if t.constant and t.grid}
    (table,) = (codes for name, codes in held.items() if name.endswith("/table"))
    np.testing.assert_array_equal(table, np.stack([away, away], -1))
    assert any(np.array_equal(codes.ravel(), away) for codes in held.values())


def test_a_file_says_what_it_was_made_for(recwarn):
    q = networks.quantized(networks.mlp(), target="tflm")
    lite = kerasq.export_tflite(q)
    assert "Made for target 'tflm' (TFLite Micro 0.dev" in str(lite)
    assert "Runs here on TFLite Micro 0.dev" in str(lite)
    assert not recwarn and not lite.remarks()
    with pytest.warns(UserWarning, match="made for target 'tflm', whose kernels round otherwise"):
        other = kerasq.TFLiteModel(lite.content)
    assert "Runs here on LiteRT 2." in str(other)
    assert "target='tflm'" in other.remarks()[0]


def test_a_file_of_litert_is_refused_in_the_runtimes_words():
    x = keras.Input((4,))
    lite = kerasq.export_tflite(networks.quantized(keras.Model(x, L.Activation("gelu")(x))))
    with pytest.raises(ValueError, match=r"TFLite Micro interpreter .*opcode 'GELU'.*Export it"):
        kerasq.TFLiteModel(lite.content, target="tflm")
    with pytest.raises(ValueError, match=r"The arena is that of TFLite Micro"):
        lite.arena_bytes()
    with pytest.raises(ValueError, match=r"`target` must be one of \['litert', 'tflm'\]"):
        kerasq.TFLiteModel(lite.content, target="esp32")


def test_a_float_layer_that_it_lacks_is_named():
    x = keras.Input((4, 6))
    model = keras.Model(x, keras.ops.sort(L.Dense(5)(x)))
    with pytest.raises(ValueError, match=r"TOPK_V2.*what it lacks: \['sort'\]. Replace"):
        kerasq.export_tflite(networks.quantized(model, target="tflm"))


def test_kernels_round_twice_where_litert_rounds_once():
    """Why there is a target: the same file, and other codes."""
    model = networks.mobile()
    x = networks.data(model, 64)
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q)
    micro = kerasq.TFLiteModel(lite.content, target="tflm")
    assert 0 < np.mean(lite.predict(x) != micro.predict(x)) < 0.8


@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_products_whose_multiplier_is_next_to_a_tie(target):
    """Of scales 1 / 32767, it is 16384.5 of 2^-29: their product in float32 decides which way."""
    x = keras.Input((2, 3), name="x")
    model = keras.Model(x, layers.Matmul(transpose=True, name="product")([x, x]))
    data = networks.data(model, 200)
    q = networks.quantized(model, data, scheme="w8a16", target=target)
    for layer in q.layers[1:]:
        layer.output_quantizer.assign_range(-1.0, 1.0)
    lite = kerasq.export_tflite(q, check=False)
    assert {float(t.grid.scale) for t in (*lite.inputs, *lite.outputs)} == {np.float32(1 / 32767)}
    np.testing.assert_array_equal(lite.predict(data), networks.run(q, data))


def test_inverse_roots_of_tiny_values():
    """Their squares have steps whose inverse root is beyond int32: the range is widened."""
    x = keras.Input((2, 4), name="x")
    model = keras.Model(x, L.RMSNormalization(axis=1, name="norm")(x))
    data = 1e-10 * networks.data(model, 32)
    q = networks.quantized(model, data, target="tflm")
    assert_exact(q, data)
