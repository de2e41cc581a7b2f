"""Mixed precision end to end: int8, int16, packed int4 and float in one model."""

import contextlib
import dataclasses
import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq import targets
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.targets import LITERT
from kerasq.wrappers import QuantizeWrapper
from tests import networks

# Exports are not checked before these tests compare them, on more than four samples.
L = keras.layers
LARGEST_STEPS = {"int8": 1, "int16": 2}
HEADS = ["softmax", "sigmoid", "tanh"]


# Networks. Names say what a layer is for.


def images(channels=3, size=8):
    networks.set_seed(0)
    return keras.Input((size, size, channels), name="image")


def interleaved():
    """Every width next to every other; `depth` has 4-bit weights that cannot be packed."""
    image = images()
    x = L.Conv2D(8, 3, padding="same", activation="relu", name="stem")(image)
    x = L.Conv2D(8, 3, padding="same", use_bias=False, name="wide")(x)
    x = L.BatchNormalization(name="wide_norm")(x)
    x = L.ReLU(name="wide_relu")(x)
    x = L.Conv2D(9, 3, padding="same", activation="relu", name="packed")(x)
    x = L.DepthwiseConv2D(3, padding="same", name="depth")(x)
    x = L.DepthwiseConv2D(3, padding="same", name="packed_depth")(x)
    x = L.Conv2D(6, 3, name="real")(x)
    x = L.BatchNormalization(name="real_norm")(x)
    x = L.ReLU(name="real_relu")(x)
    x = L.Conv2D(4, 3, name="back")(x)
    x = L.GlobalAveragePooling2D(name="gap")(x)
    x = L.Dense(5, name="packed_wide")(x)
    return networks.shake_norms(keras.Model(image, L.Softmax(name="probs")(x)))


INTERLEAVED = {
    "wide": "w8a16",
    "packed": "w4a8",
    "depth": "w4a16",
    "packed_depth": "w4a8",
    "real": "float",
    "packed_wide": "w4a16",
    "probs": "w8a16",
}


def add():
    """Residual sums: `total` of two layers, `narrow` of `total` and one of them."""
    image = images()
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="stem")(image)
    y = L.Conv2D(4, 3, padding="same", name="branch")(x)
    total = L.Add(name="total")([x, y])
    return keras.Model(image, L.Add(name="narrow")([total, x]))


def block():
    """An inverted residual and an odd head."""
    image = images()
    x = L.Conv2D(6, 3, strides=2, padding="same", use_bias=False, name="conv")(image)
    x = L.ReLU(6.0, name="conv_relu")(L.BatchNormalization(name="conv_norm")(x))
    y = L.DepthwiseConv2D(3, padding="same", use_bias=False, name="depth")(x)
    y = L.ReLU(name="depth_relu")(L.BatchNormalization(name="depth_norm")(y))
    y = L.Conv2D(6, 1, name="project")(y)
    x = L.GlobalAveragePooling2D(name="gap")(L.Add(name="total")([x, y]))
    return networks.shake_norms(keras.Model(image, L.Dense(5, name="dense")(x)))


def concatenation():
    image = images()
    x = L.Conv2D(4, 3, padding="same", name="narrow")(image)
    y = L.Conv2D(3, 3, padding="same", activation="relu", name="relu")(image)
    z = L.Conv2D(2, 3, padding="same", name="wide")(image)
    both = L.Concatenate(name="cat")([x, y, z])
    return keras.Model(image, L.Conv2D(2, 3, name="last")(both))


def heads():
    """Softmax, sigmoid and tanh at the ends; sigmoid and tanh inside."""
    networks.set_seed(0)
    features = keras.Input((6,), name="features")
    x = L.Dense(12, activation="relu", name="hidden")(features)
    gates = [
        L.Dense(5, activation="sigmoid", name="gate")(x),
        L.Dense(4, activation="tanh", name="squash")(x),
        L.Activation("tanh", name="inner_tanh")(x),
        L.Activation("sigmoid", name="inner_sigmoid")(x),
    ]
    x = L.Concatenate(name="cat")(gates)
    return keras.Model(features, [L.Dense(4, activation=name, name=name)(x) for name in HEADS])


def chain():
    image = images()
    x = image
    for name in ("first", "second", "third"):
        x = L.Conv2D(4, 3, padding="same", activation="relu", name=name)(x)
    return keras.Model(image, L.Flatten(name="flat")(L.MaxPooling2D(2, name="pool")(x)))


def readers():
    """Four readers of `source`."""
    image = images()
    x = L.Conv2D(4, 3, activation="relu", name="source")(image)
    names = ("narrow0", "wide0", "narrow1", "wide1")
    return keras.Model(image, [L.Conv2D(2, 3, name=name)(x) for name in names])


def normed():
    """BatchNormalization behind every layer with a kernel."""
    image = x = images()
    for name in ("wide", "packed", "real", "plain"):
        x = L.Conv2D(4, 3, padding="same", use_bias=name == "packed", name=name)(x)
        x = L.BatchNormalization(name=f"{name}_norm")(x)
        x = L.ReLU(name=f"{name}_relu")(x) if name != "plain" else x
    return networks.shake_norms(keras.Model(image, x))


def odd():
    """Kernels of 81, 27 and 15 weights."""
    image = images()
    x = L.DepthwiseConv2D(3, name="depth")(L.Conv2D(3, 3, name="conv")(image))
    return keras.Model(image, L.Dense(5, name="dense")(L.GlobalAveragePooling2D(name="gap")(x)))


def pooled():
    """Everything that moves, picks or averages values."""
    image = images(size=12)
    x = L.Conv2D(4, 3, name="stem")(image)
    x = L.ZeroPadding2D(1, name="pad")(x)
    x = L.MaxPooling2D(2, name="pool")(x)
    x = L.AveragePooling2D(2, strides=1, name="average")(x)
    x = L.Dropout(0.3, name="drop")(x)
    y = L.Reshape((25, 4), name="shape")(x)
    z = L.GlobalMaxPooling2D(name="top")(x)
    y = L.Dense(4, name="flat_head")(L.Flatten(name="flat")(y))
    return keras.Model(image, L.Add(name="total")([y, L.Dense(4, name="top_head")(z)]))


def relus():
    """A ReLU behind a convolution, a sum and a concatenation, and one that stands alone."""
    image = images()
    x = L.Conv2D(4, 3, padding="same", name="conv")(image)
    x = L.ReLU(name="conv_relu")(x)
    y = L.Conv2D(4, 3, padding="same", name="branch")(x)
    z = L.ReLU(name="add_relu")(L.Add(name="add")([x, y]))
    z = L.ReLU(name="cat_relu")(L.Concatenate(name="cat")([z, y]))
    y = L.ReLU(name="branch_relu")(y)
    return keras.Model(image, [L.Conv2D(2, 3, name="last")(z), y])


def relu6s():
    """As `relus`; the values go far beyond 6."""
    image = images()
    x = L.Conv2D(
        4,
        3,
        padding="same",
        kernel_initializer=keras.initializers.RandomNormal(stddev=1.0),
        name="conv",
    )(image)
    x = L.ReLU(6.0, name="conv_relu6")(x)
    y = L.Conv2D(4, 3, padding="same", activation="relu6", name="branch")(x)
    z = L.ReLU(6.0, name="add_relu6")(L.Add(name="add")([x, y]))
    z = L.ReLU(6.0, name="cat_relu6")(L.Concatenate(name="cat")([z, y]))
    z = L.Conv2D(3, 3, name="open")(z)
    w = L.Activation("relu6", name="alone_relu6")(L.Add(name="twice")([z, z]))
    return keras.Model(image, [L.Conv2D(2, 3, name="last")(w), x])


def sequence(reshaped):
    """An LSTM behind the input, or behind a Dense layer whose outputs are made a sequence."""

    def make():
        networks.set_seed(0)
        steps = x = keras.Input((3, 4), name="steps")
        if reshaped:
            x = L.Dense(12, name="mix")(L.Flatten(name="flat")(steps))
            x = L.Reshape((3, 4), name="shape")(x)
        x = L.LSTM(5, unroll=True, activation="softmax", name="island")(x)
        return keras.Model(steps, L.Dense(3, name="last")(x))

    return make


def island(layer):
    """A layer without a rule between two convolutions."""

    def make():
        image = images()
        x = L.Conv2D(4, 3, activation="relu", name="before")(image)
        x = layer()(x)
        return keras.Model(image, L.Conv2D(2, 3, name="after")(x))

    return make


ISLANDS = {
    "layer_normalization": island(lambda: L.LayerNormalization(name="island")),
    "mish": island(lambda: L.Activation("mish", name="island")),
    "up_sampling": island(lambda: L.UpSampling2D(2, interpolation="bilinear", name="island")),
    "lstm": sequence(reshaped=False),
    "lstm_behind_reshape": sequence(reshaped=True),
}


def concatenation_only():
    model = concatenation()
    return keras.Model(model.input, model.get_layer("cat").output)


def flattened_concatenation():
    image = images()
    convs = [L.Conv2D(4, 3, padding="same", name=name)(image) for name in ("left", "right")]
    x = L.Flatten(name="flat")(L.Concatenate(name="cat")(convs))
    return keras.Model(image, L.Dense(3, name="head")(x))


def norm_beside_its_input():
    image = images()
    x = L.Conv2D(4, 3, name="before")(image)
    return keras.Model(
        image, L.Concatenate(name="cat")([L.LayerNormalization(name="island")(x), x])
    )


def norm_behind_average():
    image = images()
    x = L.AveragePooling2D(2, name="average")(L.Conv2D(4, 3, name="before")(image))
    return keras.Model(image, L.Conv2D(2, 1, name="after")(L.LayerNormalization(name="island")(x)))


def pooled_relu():
    image = images()
    x = L.MaxPooling2D(2, name="pool")(L.Conv2D(4, 3, name="conv")(image))
    x = L.Flatten(name="flat")(L.ReLU(6.0, name="relu")(x))
    return keras.Model(image, L.Dense(2, name="head")(x))


def mish_then_dropout():
    image = images()
    x = L.Activation("mish", name="island")(L.Conv2D(4, 3, name="before")(image))
    return keras.Model(image, L.Dropout(0.1, name="drop")(x))


# Calibrated models and their exports, each made once.

NORMED = {"wide": "w8a16", "packed": "w4a8", "real": "float"}
CASES = {
    "interleaved": (interleaved, {"overrides": INTERLEAVED}),
    "all_w8a16": (networks.residual, {"scheme": "w8a16"}),
    "all_w4a16": (block, {"scheme": "w4a16"}),
    "all_w4a8": (block, {"scheme": "w4a8"}),
    "batch_norm_fold": (normed, {"overrides": NORMED, "batch_norm": "fold"}),
    "batch_norm_keep": (normed, {"overrides": NORMED}),
    "several_ends": (
        networks.two_by_two,
        {"overrides": {"left": "w8a16", "left_hidden": "w8a16", "score": "w4a16"}},
    ),
    "int16_add": (add, {"overrides": {"branch": "w8a16", "total": "w8a16"}}),
    "int16_concat": (concatenation, {"overrides": {"cat": "w8a16", "wide": "w8a16"}}),
    "int8_concat": (concatenation, {"overrides": {"wide": "w8a16", "narrow": "float"}}),
    "int16_heads": (
        heads,
        {
            "overrides": {
                **dict.fromkeys(["inner_*", "gate", "squash", "cat"], "w8a16"),
                **dict.fromkeys(HEADS, "w4a16"),
            }
        },
    ),
    "int16_int8_int16": (chain, {"overrides": {"first": "w8a16", "third": "w4a16"}}),
    "int16_output": (chain, {"overrides": {"third": "w8a16"}}),
    "int16_pooling": (pooled, {"scheme": "w8a16"}),
    "int16_relu": (relus, {"scheme": "w8a16"}),
    "int16_relu6": (relu6s, {"scheme": "w8a16"}),
    "int16_input": (chain, {"overrides": {"image": "w8a16"}}),
    "readers_of_int8": (readers, {"overrides": {"wide*": "w8a16"}}),
    "readers_of_int16": (readers, {"overrides": {"wide*": "w8a16", "source": "w8a16"}}),
    "readers_of_float": (readers, {"overrides": {"wide*": "w8a16", "source": "float"}}),
    "float_first": (chain, {"overrides": {"first": "float"}}),
    "float_input": (chain, {"overrides": {"first": "float", "image": "float"}}),
    "float_middle": (chain, {"overrides": {"second": "float"}}),
    "float_last": (chain, {"overrides": {"third": "float"}}),
    "float_but_one": (chain, {"scheme": "float", "overrides": {"second": "w8a8"}}),
    "flattened_concat": (flattened_concatenation, {}),
    "flattened_int16_concat": (flattened_concatenation, {"overrides": {"cat": "w8a16"}}),
    "flattened_concat_float_head": (flattened_concatenation, {"overrides": {"head": "float"}}),
    "pooled_relu": (pooled_relu, {}),
    "pooled_int16_relu": (pooled_relu, {"scheme": "w8a16"}),
    "float_concat": (
        concatenation,
        {"overrides": {"narrow": "w8a16", "cat": "float", "last": "float"}},
    ),
    "float_concat_at_the_end": (
        concatenation_only,
        {"overrides": {"narrow": "w8a16", "cat": "float"}},
    ),
    "norm_behind_average": (norm_behind_average, {"overrides": {"island": "float"}}),
    "norm_beside_its_input": (norm_beside_its_input, {"overrides": {"island": "float"}}),
    "mish_then_dropout": (mish_then_dropout, {"overrides": {"island": "float"}}),
    **{name: (make, {"overrides": {"island": "float"}}) for name, make in ISLANDS.items()},
}


PREDICTED = ["interleaved", "all_w8a16", "all_w4a16", "several_ends", "int16_heads", "float_last"]


@functools.cache
def exported(name):
    """A calibrated model, its data, and its export."""
    make, options = CASES[name]
    model = make()
    x = networks.data(model, 24)
    # Where all 4-bit weights are packed.
    q = networks.quantized(model, x, target="litert-x86-64", **options)
    return q, x, kerasq.export_tflite(q, check=False)


def outputs(predicted, lite):
    """Predictions as a list, in the order of the model's outputs."""
    if isinstance(predicted, dict):
        return [predicted[name] for name in lite.output_names]
    return keras.tree.flatten(predicted)


@contextlib.contextmanager
def eagerly():
    """Integers are exact either way; tracing takes ten times as long as the numbers do."""
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def assert_layers_agree(q, x, lite):
    """On both kernel sets; and exactly, end to end, on the default ones."""
    weighted = {layer.name for layer in q.layers if isinstance(layer, KernelWrapper)}
    for kernels in ("optimized", "reference"):
        with eagerly():
            report = kerasq.compare(q, kerasq.TFLiteModel(lite.content, kernels=kernels), x=x)
        assert weighted <= {layer.name for layer in report.layers}
        for layer in report.layers:
            if layer.dtype == "float32":
                assert layer.max_lsb is None and layer.max_error < 1e-4, (kernels, layer)
            else:
                assert layer.max_lsb <= LARGEST_STEPS[layer.dtype], (kernels, layer)
        if kernels == "optimized" and any(output.grid is not None for output in lite.outputs):
            # Sums of a float layer are added up in an order that hangs on the processor.
            has_floats = any(layer.dtype == "float32" for layer in report.layers)
            least = 0.999 if has_floats else 1.0
            assert report.max_lsb <= has_floats and report.exact >= least


def assert_exact(q, x, lite):
    found = outputs(lite.predict(x), lite)
    wanted = outputs(q.predict_on_batch(x), lite)
    for a, b, output in zip(found, wanted, lite.outputs, strict=True):
        assert np.ptp(b) > 0
        if output.dtype == np.float32:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(a, b)


def tensor(lite, name):
    (found,) = [t for t in lite.tensors if t.name == name]
    return found


def types(lite, *names):
    return [tensor(lite, name).type for name in names]


def written_by(lite, kind):
    """The outputs of the operators of a kind, in order."""
    return [op.outputs[0] for op in lite.ops if op.name == kind]


@pytest.mark.parametrize("name", list(CASES))
def test_layers_agree(name):
    assert_layers_agree(*exported(name))


@pytest.mark.parametrize("name", PREDICTED)
def test_predictions_are_equal(name):
    assert_exact(*exported(name))


# What is in the file.


def test_interleaved_has_every_width():
    _, _, lite = exported("interleaved")
    assert types(lite, "image", "stem", "packed", "packed_depth", "back") == ["int8"] * 5
    assert types(lite, "wide", "depth", "packed_wide", "probs") == ["int16"] * 4
    kernels = [f"{name}/kernel" for name in ("packed", "packed_depth", "packed_wide")]
    assert types(lite, *kernels) == ["int4"] * 3
    # LiteRT has no kernel for packed weights here: 4-bit codes are stored as int8.
    assert (
        types(lite, "depth/kernel") == ["int8"]
        and tensor(lite, "depth/kernel").codes == "4-bit codes"
    )
    assert [op.name for op in lite.float_ops] == ["CONV_2D"]
    assert types(lite, *lite.float_ops[0].inputs, *lite.float_ops[0].outputs) == ["float32"] * 4
    assert written_by(lite, "DEQUANTIZE") == ["packed_depth_float"]


@pytest.mark.parametrize(
    ("name", "packed"), [("all_w8a16", set()), ("all_w4a16", {"CONV_2D", "FULLY_CONNECTED"})]
)
def test_all_int16(name, packed):
    q, x, lite = exported(name)
    assert lite.float_ops == [] and not written_by(lite, "QUANTIZE")[len(q.layers) :]
    constants = {t.name for t in lite.tensors if t.constant}
    assert {t.type for t in lite.tensors if t.name not in constants} == {"int16"}
    weighted = [op for op in lite.ops if len(op.inputs) == 3]
    assert {op.name for op in weighted} >= packed
    for op in weighted:
        assert types(lite, op.inputs[1]) == ["int4" if op.name in packed else "int8"], op
    assert lite.inputs[0].dtype == lite.outputs[0].dtype == np.int16
    codes = lite.predict(x, dequantize=False)
    assert codes.dtype == np.int16
    np.testing.assert_array_equal(lite.outputs[0].grid.dequantize(codes), lite.predict(x))


@pytest.mark.parametrize("name", ["interleaved", "all_w8a16", "all_w4a16", "int16_int8_int16"])
def test_biases_are_int64_under_int16(name):
    q, _, lite = exported(name)
    weighted = [layer for layer in q.layers if isinstance(layer, KernelWrapper)]
    for layer in weighted:
        bias = "int64" if layer.bits.activation_bits == 16 else "int32"
        assert types(lite, f"{layer.name}/bias") == [bias], layer.name
    assert any(layer.bits.activation_bits == 16 for layer in weighted)


def test_four_bit_weights_take_half_the_bytes():
    sizes = {}
    for scheme in ("w8a8", "w4a8", "w4a16"):
        q = networks.quantized(odd(), scheme=scheme, target="litert-x86-64")
        lite = kerasq.export_tflite(q)
        names = ("conv", "depth", "dense")
        sizes[scheme] = [tensor(lite, f"{name}/kernel").bytes for name in names]
    assert sizes == {
        "w8a8": [81, 27, 15],
        "w4a8": [41, 14, 8],
        "w4a16": [41, 27, 8],  # no packed kernel for DEPTHWISE_CONV_2D
    }


def test_what_processors_round_otherwise_is_packed_where_one_is_named():
    lite = kerasq.export_tflite(networks.quantized(odd(), scheme="w4a8"))
    names = ("conv", "depth", "dense")  # Of five inputs.
    assert [tensor(lite, f"{name}/kernel").bytes for name in names] == [81, 27, 15]
    (remark,) = lite.remarks()
    assert "conv (4-bit codes as int8, CONV_2D on int8); depth (4-bit codes" in remark
    assert remark.endswith("target='litert-arm64' or 'litert-x86-64'.")


def test_the_report_names_what_is_not_packed_and_what_is_float():
    lines = str(exported("interleaved")[2]).splitlines()
    assert "Float operators: real_relu (CONV_2D)." in lines
    unpacked = (
        "Weights stored wider than they are, for want of a narrower kernel: "
        "depth (4-bit codes as int8, DEPTHWISE_CONV_2D on int16)."
    )
    assert unpacked in lines
    (row,) = [line for line in lines if line.startswith("depth ")]
    assert re.fullmatch(r"depth +DEPTHWISE_CONV_2D +int16 +int8, 4-bit codes +81 .*", row)
    (row,) = [line for line in lines if line.startswith("packed ")]
    assert re.fullmatch(r"packed +CONV_2D +int8 +int4 +324 .*", row)


def test_the_report_of_a_model_without_either():
    text = str(exported("all_w4a8")[2])
    assert "Integer only." in text and "4-bit" not in text


# Boundaries.


def test_boundary_on_a_tensor_with_several_readers():
    """One QUANTIZE of each width, not one a reader."""
    for source, boundaries in {
        "int8": ["source_int16"],
        "int16": ["image_quantize_int16", "source_int8"],
        "float": ["source_int16", "source_int8"],
    }.items():
        q, _, lite = exported(f"readers_of_{source}")
        assert sorted(written_by(lite, "QUANTIZE")) == boundaries, source
        assert {layer.name for layer in q.layers} >= {*boundaries}
        assert types(lite, "narrow0", "narrow1", "wide0", "wide1") == ["int8"] * 2 + ["int16"] * 2


def test_int16_int8_int16():
    _, _, lite = exported("int16_int8_int16")
    assert types(lite, "first", "second", "third") == ["int16", "int8", "int16"]
    boundaries = ["image_quantize_int16", "first_int8", "second_int16"]
    assert written_by(lite, "QUANTIZE") == boundaries
    for one, other in (("first", "first_int8"), ("second", "second_int16")):
        assert {tensor(lite, name).grid.bits for name in (one, other)} == {8, 16}


def test_int16_add_of_int8_and_int16():
    _, _, lite = exported("int16_add")
    total, narrow = [op for op in lite.ops if op.name == "ADD"]
    # The coarser of the two is where the other one goes.
    assert total.inputs == ("stem_int16", "total/input_1") and types(lite, "total") == ["int16"]
    one, other = (tensor(lite, name).grid for name in total.inputs)
    assert one.equals(other) and one.scale > tensor(lite, "branch").grid.scale
    assert narrow.inputs == ("total_int8", "stem") and types(lite, "narrow") == ["int8"]
    assert written_by(lite, "QUANTIZE") == ["stem_int16", "total/input_1", "total_int8"]


def test_int16_concat_requantizes_int8_inputs_straight_onto_its_grid():
    q, _, lite = exported("int16_concat")
    (cat,) = [op for op in lite.ops if op.name == "CONCATENATION"]
    sources = {op.outputs[0]: op.inputs[0] for op in lite.ops if op.name == "QUANTIZE"}
    assert types(lite, *cat.inputs, *cat.outputs) == ["int16"] * 4
    assert [sources.get(name, name) for name in cat.inputs] == ["narrow", "relu", "wide"]
    assert types(lite, "narrow", "relu", "wide") == ["int8", "int8", "int16"]
    grid = tensor(lite, "cat").grid
    assert all(tensor(lite, name).grid.equals(grid) for name in cat.inputs)
    assert not {"narrow_int16", "relu_int16"} & {layer.name for layer in q.layers}


def test_int16_softmax_sigmoid_and_tanh_have_the_grid_that_their_kernels_insist_on():
    _, x, lite = exported("int16_heads")
    found = lite.predict(x)
    for name in (*HEADS, "gate", "squash", "inner_tanh", "inner_sigmoid"):
        grid = tensor(lite, name).grid
        assert types(lite, name) == ["int16"]
        assert (grid.scale, grid.zero_point) == (1 / 32768, 0)
    for name in HEADS:
        assert np.abs(found[name]).max() <= 1.0 and len(np.unique(found[name])) > 80
    np.testing.assert_allclose(found["softmax"].sum(-1), 1.0, atol=1e-3)


# Float layers.


@pytest.mark.parametrize(
    ("name", "floats", "ends"),
    [
        ("float_first", ["first"], ["int8", "int8"]),
        ("float_input", ["first"], ["float32", "int8"]),
        ("float_middle", ["second"], ["int8", "int8"]),
        ("float_last", ["third"], ["int8", "float32"]),
        ("float_but_one", ["first", "third"], ["float32", "float32"]),
    ],
)
def test_float_layers(name, floats, ends):
    q, _, lite = exported(name)
    assert [op.outputs[0] for op in lite.float_ops if op.name == "CONV_2D"] == floats
    for layer in ("first", "second", "third"):
        dtype = "float32" if layer in floats else "int8"
        assert types(lite, layer) == [dtype]
        assert (type(q.get_layer(layer)) is L.Conv2D) == (layer in floats)
    assert [lite.inputs[0].type, lite.outputs[0].type] == ends
    floats_read = [op.inputs[0] for op in lite.ops if op.outputs[0] in floats]
    assert types(lite, *floats_read) == ["float32"] * len(floats)


@pytest.mark.parametrize("scheme", ["float", "w8a8"])
def test_slopes_along_five_axes(scheme):
    x = keras.Input((2, 3, 3, 4), name="x")
    y = L.PReLU("uniform", name="slopes")(L.Conv3D(4, 2, padding="same", name="conv")(x))
    model = keras.Model(x, L.Conv3D(2, 1, name="last")(y))
    q = networks.quantized(model, overrides={"slopes": scheme})
    x = networks.data(model)
    np.testing.assert_allclose(kerasq.export_tflite(q).predict(x), networks.run(q, x), atol=1e-6)
    assert networks.sqnr(model, q, x) > 30.0


def test_a_float_layer_of_five_axes_that_no_kernel_is_for():
    x = keras.Input((4, 4, 4, 3), name="x")
    y = L.MaxPooling3D(2, name="pool")(L.Conv3D(3, 1, name="conv")(x))
    model = keras.Model(x, y)
    text = r"'pool' \(MaxPooling3D\): .* no operator of LiteRT; replace it, or give it integers"
    with pytest.raises(ValueError, match=text):
        kerasq.quantize_model(model, overrides={"pool": "float"})
    assert kerasq.export_tflite(networks.quantized(model)).float_ops == []


@pytest.mark.parametrize("name", list(ISLANDS))
def test_a_layer_type_without_a_rule_as_island(name):
    q, _, lite = exported(name)
    assert lite.float_ops
    assert {op.outputs[0].split("/")[0] for op in lite.float_ops} == {"island"}
    assert type(q.get_layer("island")) is type(ISLANDS[name]().get_layer("island"))
    assert types(lite, q.layers[-1].name) == ["int8"]


def test_layers_without_a_kernel_stay_float_unasked_and_are_printed(capsys):
    q = kerasq.quantize_model(ISLANDS["lstm"]())
    assert isinstance(q.get_layer("island"), L.LSTM)
    assert (
        "Stay in float, for want of an integer kernel: 'island' (LSTM: integer only of Keras's "
        "activations of each value, not of softmax)." in capsys.readouterr().out
    )


@pytest.mark.parametrize("name", ["batch_norm_fold", "batch_norm_keep"])
def test_batch_norm_and_relu_behind_a_float_convolution_stay_float(name):
    q, _, lite = exported(name)
    kinds = {"real": L.Conv2D, "real_norm": L.BatchNormalization, "real_relu": L.ReLU}
    assert {name: type(q.get_layer(name)) for name in kinds} == kinds
    assert "wide_norm" not in {layer.name for layer in q.layers}
    read = {op.outputs[0]: op.inputs[0] for op in lite.ops}
    # From the last of the three to the first there is nothing but float.
    behind = read["real_relu_int8"]
    while behind in read and read[behind] != "packed":
        assert types(lite, behind) == ["float32"]
        behind = read[behind]
    assert behind == "packed_float"
    kept = q.get_layer("wide").batch_norm is not None
    assert kept == (name == "batch_norm_keep")


def test_scheme_float_leaves_a_model_as_it_is():
    model = networks.residual()
    q = kerasq.quantize_model(model, scheme="float", overrides={"branch": "w8a8"})
    wrappers = [layer.name for layer in q.layers if isinstance(layer, QuantizeWrapper)]
    assert wrappers == ["conv_relu_int8", "branch"]
    names = [layer.name for layer in model.layers]
    assert [x.name for x in q.layers if x.name not in wrappers] == [
        name for name in names if name not in ("branch", "branch_norm")
    ]


# ReLUs under int16, where the range does not start at 0.


def test_int16_relu_behind_convolution_sum_and_concatenation():
    q, x, lite = exported("int16_relu")
    names = {layer.name for layer in q.layers}
    assert not {"conv_relu", "add_relu"} & names and {"cat_relu", "branch_relu"} <= names
    assert sorted(written_by(lite, "RELU")) == ["branch_relu", "cat_relu"]
    grids = [tensor(lite, name).grid for name in ("conv", "add", "cat", "cat_relu")]
    assert [(grid.bits, grid.zero_point) for grid in grids] == [(16, 0)] * 4
    names = ["conv", "add", "cat_relu", "cat", "branch"]
    found = keras.Model(q.input, [q.get_layer(name).output for name in names])(x)
    lowest = dict(zip(names, [float(tf.reduce_min(y)) for y in found], strict=True))
    assert lowest["conv"] == lowest["add"] == lowest["cat_relu"] == 0.0
    assert lowest["cat"] < 0 and lowest["branch"] < 0
    assert lite.predict(x)["branch_relu"].min() == 0.0


def test_int16_relu6():
    q, x, lite = exported("int16_relu6")
    limited = {
        layer.name: float(layer.output_quantizer.range_max.numpy())
        for layer in q.layers
        if getattr(layer, "limit", None) is not None
    }
    assert {*limited} == {"conv", "branch", "add", "cat_relu6", "twice"}
    assert limited["conv"] == limited["twice"] == 6.0 and max(limited.values()) == 6.0
    found = lite.predict(x)["conv"]
    assert found.min() == 0.0 and found.max() == np.float32(6.0)


# Files.


@pytest.mark.parametrize("name", ["interleaved", "batch_norm_keep", "float_but_one", "lstm"])
def test_save_and_load(tmp_path, name):
    q, x, lite = exported(name)
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    for a, b in zip(q.layers, loaded.layers, strict=True):
        assert (a.name, getattr(a, "scheme", None)) == (b.name, getattr(b, "scheme", None))
    np.testing.assert_array_equal(loaded.predict_on_batch(x), q.predict_on_batch(x))
    assert kerasq.export_tflite(loaded).content == lite.content


@pytest.mark.parametrize("name", ["interleaved", "batch_norm_keep", "several_ends", "lstm"])
def test_exports_are_byte_identical(name):
    q, _, lite = exported(name)
    assert kerasq.export_tflite(q, check=False).content == lite.content


# Types of the ends.


@pytest.mark.parametrize(
    ("name", "given", "got"),
    [
        ("int16_input", (None, None), ("int16", "int8")),
        ("int16_input", ("int16", "int8"), ("int16", "int8")),
        ("int16_input", ("int16", "uint8"), ("int16", "uint8")),
        ("int16_input", ("float32", "float32"), ("float32", "float32")),
        ("int16_output", (None, None), ("int8", "int16")),
        ("int16_output", ("int8", "int16"), ("int8", "int16")),
        ("int16_output", ("uint8", "int16"), ("uint8", "int16")),
        ("int16_output", ("uint8", "float32"), ("uint8", "float32")),
        ("float_but_one", (None, None), ("float32", "float32")),
        ("float_but_one", ("int8", "uint8"), ("float32", "float32")),
        ("float_last", ("uint8", "int16"), ("uint8", "float32")),
        ("float_input", ("int16", "uint8"), ("float32", "uint8")),
    ],
)
def test_types_of_the_ends(name, given, got):
    q, x, plain = exported(name)
    lite = kerasq.export_tflite(q, input_dtype=given[0], output_dtype=given[1])
    assert (lite.inputs[0].type, lite.outputs[0].type) == got
    np.testing.assert_array_equal(lite.predict(x), plain.predict(x))


def test_an_override_of_an_input_is_its_width():
    q, _, lite = exported("int16_input")
    assert lite.inputs[0].grid.bits == 16 and lite.inputs[0].grid.zero_point == 0
    assert q.get_layer("image_quantize").scheme == "w8a16"
    assert written_by(lite, "QUANTIZE") == ["image_quantize_int8"]
    assert types(lite, "first") == ["int8"]


def test_several_ends_have_widths_of_their_own():
    _, _, lite = exported("several_ends")
    assert {t.name: t.type for t in lite.inputs} == {"left": "int16", "right": "int8"}
    assert {t.name: t.type for t in lite.outputs} == {"score": "int16", "label": "int8"}


@pytest.mark.parametrize(
    ("name", "end", "dtype", "bits"),
    [
        ("int16_input", "input_dtype", "int8", 16),
        ("int16_input", "input_dtype", "uint8", 16),
        ("int16_input", "output_dtype", "int16", 8),
        ("int16_output", "input_dtype", "int16", 8),
        ("int16_output", "output_dtype", "int8", 16),
        ("int16_output", "output_dtype", "uint8", 16),
        ("several_ends", "input_dtype", "int8", 16),
        ("several_ends", "input_dtype", "int16", 8),
        ("several_ends", "output_dtype", "uint8", 16),
        ("several_ends", "output_dtype", "int16", 8),
    ],
)
def test_types_that_do_not_fit(name, end, dtype, bits):
    text = (
        rf"`{end}` must fit the grids.*{end}='{dtype}' where grids have \[{bits}\] bits. Use None"
    )
    with pytest.raises(ValueError, match=text):
        kerasq.export_tflite(exported(name)[0], **{end: dtype})


@pytest.mark.parametrize("end", ["input_dtype", "output_dtype"])
@pytest.mark.parametrize("dtype", ["int4", "float16", "", 16])
def test_types_that_there_are_not(end, dtype):
    text = rf"`{end}` must be one of \['int8', 'int16', 'uint8', 'float32'\], or None"
    with pytest.raises(ValueError, match=rf"{text}\. Received: {end}={dtype!r}\."):
        kerasq.export_tflite(exported("int16_input")[0], **{end: dtype})


# Functions of each value alone, and what else has an int16 kernel.


def curves():
    """A transposed convolution, both kinds of LEAKY_RELU and EXP, and functions by table."""
    networks.set_seed(0)
    image = keras.Input((4, 4, 3), name="image")
    x = L.Conv2DTranspose(6, 3, strides=2, activation="gelu", name="up")(image)
    outputs = [
        L.LeakyReLU(0.3, name="leaky")(x),
        L.ELU(name="elu")(x),
        L.Conv2D(4, 3, activation="elu", name="conv")(x),
        keras.ops.exp(x),
        keras.ops.sqrt(L.ReLU(name="relu")(x) + 0.1),
    ]
    return keras.Model(image, outputs)


@pytest.mark.parametrize("scheme", ["w8a16", "w4a16"])
def test_curves_at_int16(scheme, capsys):
    model = curves()
    x = networks.data(model, 32)
    q = networks.quantized(model, x, scheme=scheme)
    lite = kerasq.export_tflite(q)
    printed = capsys.readouterr().out
    assert "Stay" not in printed and "Run at" not in printed and lite.float_ops == []
    names = [op.name for op in lite.ops]
    assert {"TRANSPOSE_CONV", "LEAKY_RELU"} <= {*names} and not {"EXP", "GELU"} & {*names}
    # gelu, two times elu, exp and sqrt: tables of all 65536 codes.
    tables = [tensor for tensor in lite.tensors if tensor.name.endswith("/table")]
    assert [(t.shape, t.type) for t in tables] == [((2**16,), "int16")] * names.count("GATHER")
    assert len(tables) == 5
    found = lite.predict(x)
    # What a compiler makes of exponentials and roots must not move a code.
    compiled = tf.function(lambda x: q(x, training=False), jit_compile=True)
    want = model.predict_on_batch(x)
    for name, y, z, w in zip(
        lite.output_names, q.predict_on_batch(x), compiled(x), want, strict=True
    ):
        np.testing.assert_array_equal(y, found[name])
        np.testing.assert_array_equal(z, found[name])
        assert np.abs(y - w).max() < (0.02 if scheme == "w8a16" else 0.5) * np.abs(w).max()


def test_int16_where_the_target_has_none_runs_at_int8(capsys):
    operators = dict(LITERT.operators)
    operators["LEAKY_RELU"] = dataclasses.replace(operators["LEAKY_RELU"], int16=None)
    kernels = {key: x for key, x in LITERT.kernels.items() if key != ("LEAKY_RELU", 16)}
    target = dataclasses.replace(LITERT, name="own", operators=operators, kernels=kernels)
    targets.register(target)
    try:
        image = images(size=8)
        x = L.LeakyReLU(name="leaky")(L.Conv2D(4, 3, name="before")(image))
        model = keras.Model(image, L.Conv2D(2, 3, name="after")(x))
        x = networks.data(model, 8)
        q = networks.quantized(model, x, scheme="w8a16", target="own")
        text = "Run at int8, for want of an int16 kernel: 'leaky' (LEAKY_RELU)."
        assert text in capsys.readouterr().out
        lite = kerasq.export_tflite(q, check=False)
        assert types(lite, "before", "leaky", "after") == ["int16", "int8", "int16"]
        assert_exact(q, x, lite)
    finally:
        targets.TARGETS.pop("own")


# Training.


@pytest.fixture(scope="module")
def fitted():
    """A mixed model, its data, int16 ranges before and after two steps, losses, gradients."""
    model = interleaved()
    x = networks.data(model, 16)
    y = np.arange(16) % 5
    q = networks.quantized(model, x, overrides=INTERLEAVED, range_gradient="lsq")
    wide = {
        layer.name: layer.output_quantizer.range_max
        for layer in q.layers
        if isinstance(layer, QuantizeWrapper)
        and layer.bits.activation_bits == 16
        and layer.output_quantizer is not None
    }
    with tf.GradientTape() as tape:
        probabilities = q(x, training=True)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, probabilities))
    found = tape.gradient(loss, [variable.value for variable in wide.values()])
    gradients = dict(zip(wide, found, strict=True))
    before = {name: float(variable.numpy()) for name, variable in wide.items()}
    q.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    history = q.fit(x, y, batch_size=8, epochs=1, verbose=0)
    after = {name: float(variable.numpy()) for name, variable in wide.items()}
    return q, x, before, after, history.history["loss"], gradients


def test_gradients_reach_the_int16_ranges(fitted):
    q, _, before, after, losses, gradients = fitted
    boundaries = {"stem_int16", "packed_int16", "gap_int16"}
    assert {*gradients} == {"wide", "depth", "packed_wide"} | boundaries
    for name, gradient in gradients.items():
        assert gradient is not None and np.isfinite(gradient), name
    assert any(float(gradient) != 0 for gradient in gradients.values())
    assert any(after[name] != before[name] for name in before)
    assert all(np.isfinite([*after.values(), *losses])) and int(q.optimizer.iterations.numpy()) == 2
    assert {variable.dtype for variable in q.trainable_variables} == {"float32"}
    assert all(np.isfinite(variable.numpy()).all() for variable in q.variables)


def test_the_export_after_fit_agrees(fitted):
    q, x, *_ = fitted
    lite = kerasq.export_tflite(q, check=False)
    assert lite.content != exported("interleaved")[2].content
    assert_layers_agree(q, x, lite)
    assert_exact(q, x, lite)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "softmax"])
def test_int16_curves_up_to_where_kernels_wrap_around(activation):
    x = keras.Input((64,))
    model = keras.Model(x, keras.layers.Activation(activation, name="curve")(x))
    values = np.linspace(-1.0, 1.0, 64, dtype="f")[None]
    for limit, is_legal in ((163_000.0, True), (165_000.0, False)):
        q = networks.quantized(model, limit * values, scheme="w8a16")
        if is_legal:
            found = kerasq.export_tflite(q).predict(limit * values)
            np.testing.assert_array_equal(found, q(limit * values))
            continue
        with pytest.raises(ValueError, match=r"input of layer 'curve' must have a range below 163"):
            kerasq.export_tflite(q)


@pytest.mark.parametrize("scheme", ["w8a16", "w4a4"])
def test_one_feature_on_sequences(scheme):
    """With a ReLU the converter makes a MUL and an ADD of it, but where it is a matrix."""
    dense = keras.layers.Dense(3, activation="relu", name="dense")
    model = keras.Sequential([keras.Input((4, 1), name="x"), dense])
    x = networks.data(model, 32)
    q = networks.quantized(model, x, scheme=scheme)
    lite = kerasq.export_tflite(q, batch_size=2)
    assert lite.float_ops == [] and [op.name for op in lite.ops][-1] == "FULLY_CONNECTED"
    assert not {"MUL", "ADD"} & {op.name for op in lite.ops}
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
