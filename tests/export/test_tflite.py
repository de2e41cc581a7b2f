import errno
import itertools
import os

import keras
import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

import kerasq
from tests import networks

L = keras.layers
DTYPES = ("int8", "uint8", "float32")


@pytest.fixture(scope="module")
def mlp():
    """A calibrated model, its data, and its export."""
    q = networks.quantized(networks.mlp())
    return q, networks.data(q, 20), kerasq.export_tflite(q)


@pytest.mark.parametrize(("given", "got"), itertools.product(DTYPES, DTYPES))
def test_dtypes_of_the_ends(mlp, given, got):
    q, x, plain = mlp
    lite = kerasq.export_tflite(q, input_dtype=given, output_dtype=got)
    assert lite.inputs[0].dtype == given and lite.outputs[0].dtype == got
    assert lite.float_ops == []
    np.testing.assert_array_equal(lite.predict(x), plain.predict(x))
    # By hand, as a user's own program would feed it.
    interpreter = Interpreter(model_content=lite.content)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()
    value = x[:1]
    if given != "float32":
        scale, zero = source["quantization"]
        limits = np.iinfo(given)
        codes = np.rint(value / np.float32(scale)) + zero
        value = np.clip(codes, limits.min, limits.max).astype(given)
    interpreter.set_tensor(source["index"], value)
    interpreter.invoke()
    found = interpreter.get_tensor(target["index"])
    assert found.dtype == got
    if got != "float32":
        scale, zero = target["quantization"]
        found = (found.astype("f") - zero) * np.float32(scale)
    np.testing.assert_allclose(found, plain.predict(x[:1]), atol=1e-6)


def test_without_a_dtype_the_ends_are_the_integers_of_their_grids(mlp):
    q, _, plain = mlp
    assert plain.inputs[0].dtype == plain.outputs[0].dtype == "int8"
    asked = kerasq.export_tflite(q, input_dtype="int8", output_dtype="int8")
    given = kerasq.export_tflite(q, input_dtype=None, output_dtype=None)
    assert asked.content == given.content == plain.content


def test_uint8_ends_have_shifted_zero_points(mlp):
    q, _, plain = mlp
    shifted = kerasq.export_tflite(q, input_dtype="uint8", output_dtype="uint8")
    for details in ("get_input_details", "get_output_details"):
        (a,), (b,) = (
            getattr(Interpreter(model_content=lite.content), details)() for lite in (plain, shifted)
        )
        assert b["quantization"] == (a["quantization"][0], a["quantization"][1] + 128)


@pytest.mark.parametrize(
    ("make", "batch_size"),
    [(networks.residual, 7), (networks.two_by_two, 1), (networks.two_by_two, 7)],
)
def test_batch_sizes(make, batch_size):
    q = networks.quantized(make())
    x = networks.data(q, 16)
    lite = kerasq.export_tflite(q, batch_size=batch_size)
    assert {tensor.shape[0] for tensor in (*lite.inputs, *lite.outputs)} == {batch_size}
    simulated = networks.run(q, x)
    found = lite.predict(x)
    if isinstance(found, dict):
        found = [found[name] for name in ("score", "label")]
    for a, b in zip(keras.tree.flatten(simulated), keras.tree.flatten(found), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("make", "dtype"), [(networks.residual, "int8"), (networks.two_by_two, "float32")]
)
def test_names_are_those_of_the_layers(make, dtype):
    q = networks.quantized(make())
    lite = kerasq.export_tflite(q, input_dtype=dtype, output_dtype=dtype)
    signature = Interpreter(model_content=lite.content).get_signature_list()
    assert signature == {
        "serving_default": {
            "inputs": [x.name for x in q.inputs],
            "outputs": sorted(q.output_names),  # The interpreter lists them by the alphabet.
        }
    }
    assert [tensor.name for tensor in lite.inputs] == [x.name for x in q.inputs]
    layers = {layer.name for layer in q.layers}
    for tensor in lite.tensors:
        assert tensor.name.removesuffix("_float32").split("/")[0] in layers, tensor.name
    for layer in q.layers:
        if hasattr(layer, "kernel"):
            assert {f"{layer.name}/kernel", f"{layer.name}/bias", layer.name} <= {
                tensor.name for tensor in lite.tensors
            }


@pytest.mark.parametrize("make", [networks.residual, networks.mobile, networks.two_by_two])
def test_tensors_have_distinct_names(make):
    lite = kerasq.export_tflite(networks.quantized(make()))
    names = [tensor.name for tensor in lite.tensors]
    assert sorted(names) == sorted(set(names))


def test_signature_runner_takes_names():
    q = networks.quantized(networks.two_by_two())
    lite = kerasq.export_tflite(q, input_dtype="float32", output_dtype="float32")
    left, right = networks.samples(q, 1)
    runner = Interpreter(model_content=lite.content).get_signature_runner("serving_default")
    found = runner(right=right, left=left)
    score, label = networks.run(q, [left, right])
    np.testing.assert_array_equal(found["score"], score)
    np.testing.assert_array_equal(found["label"], label)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["y"], ["y"]),
        (["y", "y"], ["y", "y_1"]),
        (["y", "y", "y"], ["y", "y_1", "y_2"]),
        (["y", "y_1", "y"], ["y", "y_1", "y_2"]),
        (["y", "y", "y_1"], ["y", "y_2", "y_1"]),
        (["y_1", "y"], ["y_1", "y"]),
        (["y_3", "y_2", "y"], ["y_3", "y_2", "y"]),
    ],
)
def test_outputs_that_share_a_tensor_have_names_of_their_own(names, found):
    networks.set_seed(0)
    inputs = keras.Input((3,), name="x")
    made = {name: L.Dense(i + 2, name=name)(inputs) for i, name in enumerate(sorted(set(names)))}
    q = networks.quantized(keras.Model(inputs, [made[name] for name in names]))
    lite = kerasq.export_tflite(q, check=False)
    assert lite.output_names == found
    x = networks.data(q, 5)
    outputs = lite.predict(x)
    outputs = list(outputs.values()) if len(names) > 1 else [outputs]
    for array, want in zip(outputs, keras.tree.flatten(networks.run(q, x)), strict=True):
        np.testing.assert_array_equal(array, want)


@pytest.mark.parametrize("batch_norm", ["fold", "keep"])
def test_exports_are_byte_identical(tmp_path, batch_norm):
    q = networks.quantized(networks.residual(), batch_norm=batch_norm)
    content = kerasq.export_tflite(q).content
    assert kerasq.export_tflite(q).content == content
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    assert kerasq.export_tflite(loaded).content == content


def test_the_file_is_the_content(tmp_path, mlp):
    q, x, _ = mlp
    path = tmp_path / "model.tflite"
    lite = kerasq.export_tflite(q, path)
    assert path.read_bytes() == lite.content and os.listdir(tmp_path) == ["model.tflite"]
    np.testing.assert_array_equal(kerasq.TFLiteModel(path).predict(x), lite.predict(x))
    kerasq.export_tflite(q, str(path), batch_size=2)
    assert kerasq.TFLiteModel(str(path)).inputs[0].shape[0] == 2


@pytest.mark.parametrize("make", [networks.residual, networks.mobile, networks.sequential])
def test_no_operator_computes_in_float(make):
    lite = kerasq.export_tflite(networks.quantized(make()), output_dtype="float32")
    assert lite.float_ops == []
    inside = [t for t in lite.tensors if t.name not in {o.name for o in lite.outputs}]
    assert {t.dtype.name for t in inside} <= {"int8", "int32"}


@pytest.mark.parametrize(
    "make",
    [
        lambda x: L.Flatten(name="out")(x),
        lambda x: L.Dropout(0.5, name="out")(L.Conv2D(2, 3, name="c")(x)),
        lambda x: L.MaxPooling2D(2, name="out")(x),
        lambda x: L.Activation("linear", name="out")(L.Conv2D(2, 3, name="c")(x)),
        lambda x: L.Flatten(name="out")(L.ReLU(name="r")(L.Conv2D(2, 3, name="c")(x))),
        lambda x: L.Dense(3, name="out")(L.Flatten(name="flat")(x)),
        lambda x: L.Dense(3, name="out")(L.Reshape((72,), name="shape")(L.Dropout(0.1)(x))),
        lambda x: L.Conv2D(2, 3, name="out")(L.ZeroPadding2D(1, name="pad")(x)),
        lambda x: L.Dense(1, activation="sigmoid", name="out")(L.GlobalMaxPooling2D()(x)),
        lambda x: L.GlobalAveragePooling2D(name="out")(x),
        lambda x: L.Concatenate(name="out")([x, L.ReLU(name="r")(x)]),
        lambda x: L.Softmax(name="out")(L.Activation("tanh", name="t")(x)),
        lambda x: L.Reshape((2, 36), name="out")(L.Flatten(name="flat")(L.Conv2D(2, 1)(x))),
    ],
    ids=[
        *("flatten", "dropout", "pool", "linear", "conv-flatten", "flatten-dense"),
        *("dropout-reshape-dense", "pad-conv", "one-output", "mean", "concatenate", "tanh-softmax"),
        "flatten-reshape",
    ],
)
def test_ends_of_every_kind(make):
    networks.set_seed(0)
    inputs = keras.Input((6, 6, 2), name="x")
    model = keras.Model(inputs, make(inputs))
    x = networks.data(model, 24)
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q, batch_size=3)
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    signature = Interpreter(model_content=lite.content).get_signature_list()
    assert signature["serving_default"] == {"inputs": ["x"], "outputs": ["out"]}


@pytest.mark.parametrize("keepdims", [False, True])
def test_pooling_an_image_of_one_pixel_does_not_split_the_partition(keepdims):
    networks.set_seed(0)
    image = keras.Input((3, 3, 2), name="x")
    y = L.Conv2D(4, 3, name="c")(image)
    y = L.GlobalAveragePooling2D(keepdims=keepdims, name="gap")(y)
    model = keras.Model(image, L.Dense(3, name="out")(L.Flatten(name="flat")(y)))
    x = networks.data(model, 24)
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    interpreter = Interpreter(model_content=lite.content)
    interpreter.allocate_tensors()
    names = [op["op_name"] for op in interpreter._get_ops_details()]
    assert names.count("DELEGATE") == 1


# Errors.


def test_a_model_that_is_not_quantized():
    with pytest.raises(ValueError, match=r"must be a quantized model.*'mlp'"):
        kerasq.export_tflite(networks.mlp())


def test_a_model_that_has_seen_no_data():
    q = kerasq.quantize_model(networks.mlp())
    text = r"(?s)must come from data.*4 layer\(s\).*'features_quantize', 'hidden', .*calibrate"
    with pytest.raises(ValueError, match=text):
        kerasq.export_tflite(q)


def test_layers_without_data_are_named_and_only_they():
    q = networks.quantized(networks.mlp())
    q.get_layer("head").output_quantizer.batches_seen.assign(0)
    with pytest.raises(ValueError, match=r"1 layer\(s\) that have seen none: \['head'\]"):
        kerasq.export_tflite(q)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"input_dtype": "int4"},
            r"`input_dtype` must be one of \['int8', 'int16', 'uint8', 'float32'\], or None. "
            r"Received: input_dtype='int4'",
        ),
        ({"output_dtype": 8}, r"`output_dtype` must be one of .*output_dtype=8"),
        (
            {"input_dtype": "int16"},
            r"`input_dtype` must fit the grids .*input_dtype='int16' where grids have \[8\] bits",
        ),
        ({"output_dtype": "int16"}, r"`output_dtype` must fit .*='int16' where grids have \[8\]"),
        ({"batch_size": 0}, r"`batch_size` must be a positive integer. Received: batch_size=0"),
    ],
)
def test_unknown_options(mlp, options, text):
    with pytest.raises(ValueError, match=text):
        kerasq.export_tflite(mlp[0], **options)


@pytest.mark.parametrize("batch_size", [1.5, None, "2"])
def test_a_batch_size_that_is_no_integer(mlp, batch_size):
    with pytest.raises((TypeError, ValueError), match="batch_size"):
        kerasq.export_tflite(mlp[0], batch_size=batch_size)


def test_a_directory_that_does_not_exist(mlp, tmp_path):
    path = tmp_path / "missing" / "model.tflite"
    with pytest.raises(FileNotFoundError, match=r"directory of the file must exist.*missing"):
        kerasq.export_tflite(mlp[0], path)
    assert not path.parent.exists()


def test_a_directory_in_place_of_a_file(mlp, tmp_path):
    with pytest.raises(IsADirectoryError, match="must name a file"):
        kerasq.export_tflite(mlp[0], tmp_path)


def test_an_unwritable_directory(mlp, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # Root may write anywhere.
    with pytest.raises(PermissionError, match="must be writable"):
        kerasq.export_tflite(mlp[0], tmp_path / "model.tflite")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_whole(mlp, tmp_path, monkeypatch, function):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"the old file")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match="No space left on device"):
        kerasq.export_tflite(mlp[0], path)
    monkeypatch.undo()
    assert path.read_bytes() == b"the old file"
    assert os.listdir(tmp_path) == ["model.tflite"]
    kerasq.export_tflite(mlp[0], path)
    assert path.read_bytes() == kerasq.export_tflite(mlp[0]).content


def test_keys_of_a_dict_are_the_names_of_inputs():
    """By which Keras takes them, whatever the tensors are called."""
    a, b = keras.Input((6,), name="b"), keras.Input((6,), name="a")
    layers = [keras.layers.Dense(3)(a), keras.layers.Dense(3)(b)]
    with pytest.warns(UserWarning, match="must match the names"):
        model = keras.Model({"a": a, "b": b}, keras.layers.Subtract()(layers))
    rng = np.random.default_rng(0)
    data = {key: rng.normal(0.0, s, (16, 6)).astype("f") for key, s in (("a", 0.1), ("b", 10.0))}
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, data)
    lite = kerasq.export_tflite(q)
    np.testing.assert_array_equal(lite.predict(data), q.predict_on_batch(data))
    assert networks.sqnr(model, q, data) > 25  # Calibrated by keys, too.
    plain = kerasq.export_float_tflite(model).predict(data)
    np.testing.assert_allclose(plain, model.predict_on_batch(data), atol=1e-5)
