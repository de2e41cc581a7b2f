import concurrent.futures
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import kerasq
from kerasq import TFLiteModel
from tests import networks

L = keras.layers


@pytest.fixture(scope="module")
def mlp():
    """A quantized model, 20 samples, and its export."""
    q = networks.quantized(networks.mlp())
    return q, networks.data(q, 20), kerasq.export_tflite(q)


@pytest.fixture(scope="module")
def pair():
    """A model of two inputs and two outputs, 9 samples, and its export."""
    q = networks.quantized(networks.two_by_two())
    return q, networks.samples(q, 9), kerasq.export_tflite(q)


@pytest.fixture(scope="module")
def plain():
    """Content of a float model, by the plain converter."""
    return tf.lite.TFLiteConverter.from_keras_model(networks.mlp()).convert()


def by_hand(content, x):
    """Codes of a model with one int8 input and output, sample by sample in the interpreter."""
    interpreter = Interpreter(model_content=content)
    (given,), (got,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.allocate_tensors()
    scale, zero = given["quantization"]
    codes = []
    for sample in x:
        value = np.clip(np.rint(sample / np.float32(scale)) + zero, -128, 127)
        interpreter.set_tensor(given["index"], value[None].astype(np.int8))
        interpreter.invoke()
        codes.append(interpreter.get_tensor(got["index"])[0])
    return np.array(codes), got["quantization"]


# predict.


@pytest.mark.parametrize("batch_size", [1, 7, 32])
@pytest.mark.parametrize("count", [0, 1, 7, 20])
def test_any_number_of_samples_on_any_batch(mlp, batch_size, count):
    q, x, single = mlp
    lite = kerasq.export_tflite(q, batch_size=batch_size)
    found = lite.predict(x[:count])
    assert found.shape == (count, 3) and found.dtype == np.float32
    codes, (scale, zero) = by_hand(single.content, x[:count])
    expected = (codes.reshape(-1, 3).astype("f") - zero) * np.float32(scale)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_several_threads_call_one_model(mlp):
    """The interpreter itself refuses that: of references to its internal data."""
    q, _, lite = mlp
    inputs = [networks.data(q, 300, seed) for seed in range(4)]
    wanted = [lite.predict(x) for x in inputs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, want in zip(pool.map(lite.predict, inputs), wanted, strict=True):
                np.testing.assert_array_equal(found, want)


def test_raw_codes(mlp):
    _, x, lite = mlp
    found = lite.predict(x, dequantize=False)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, by_hand(lite.content, x)[0])


def test_raw_codes_of_unsigned_and_float_outputs(mlp):
    q, x, lite = mlp
    codes = lite.predict(x, dequantize=False).astype(int)
    unsigned = kerasq.export_tflite(q, output_dtype="uint8").predict(x, dequantize=False)
    assert unsigned.dtype == np.uint8
    np.testing.assert_array_equal(unsigned, codes + 128)
    floats = kerasq.export_tflite(q, output_dtype="float32").predict(x, dequantize=False)
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, lite.predict(x), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8])
def test_any_type_of_numbers(mlp, dtype):
    _, _, lite = mlp
    x = np.arange(12).reshape(2, 6).astype(dtype)
    np.testing.assert_array_equal(lite.predict(x), lite.predict(x.astype(np.float32)))
    np.testing.assert_array_equal(lite.predict(x.tolist()), lite.predict(x))


@pytest.mark.parametrize("count", [0, 1, 9])
def test_several_inputs_as_list_tuple_or_dict(pair, count):
    q, (left, right), lite = pair
    left, right = left[:count], right[:count]
    expected = networks.run(q, [left, right]) if count else [np.zeros((0, n)) for n in (1, 3)]
    for x in ([left, right], (left, right), {"right": right, "left": left}):
        found = lite.predict(x)
        assert set(found) == {"score", "label"}
        np.testing.assert_array_equal(found["score"], expected[0])
        np.testing.assert_array_equal(found["label"], expected[1])


def test_a_dict_may_hold_more_than_the_inputs(pair):
    _, (left, right), lite = pair
    found = lite.predict({"left": left, "right": right, "id": np.arange(9)})
    np.testing.assert_array_equal(found["score"], lite.predict([left, right])["score"])


def test_a_list_of_samples_is_one_input(mlp):
    _, x, lite = mlp
    np.testing.assert_array_equal(lite.predict(list(x)), lite.predict(x))
    np.testing.assert_array_equal(lite.predict([x]), lite.predict(x))


def test_results_do_not_change_with_the_next_call(mlp):
    _, x, lite = mlp
    first = lite.predict(x[:1], dequantize=False)
    copy = first.copy()
    lite.predict(x[1:])
    np.testing.assert_array_equal(first, copy)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (np.zeros((2, 5)), r"`x` must have sample shapes \[\(6,\)\].*features.*\(2, 5\)"),
        (np.zeros(6), r"`x` must have sample shapes \[\(6,\)\].*\(6,\)"),
        (np.zeros((2, 6, 1)), r"`x` must have sample shapes .*\(2, 6, 1\)"),
        ([np.zeros((2, 6)), np.zeros((2, 6))], r"`x` must have sample shapes"),
        ({"feature": np.zeros((2, 6))}, r"must hold every input. Received: no \['features'\]"),
    ],
)
def test_wrong_inputs(mlp, x, text):
    with pytest.raises(ValueError, match=text):
        mlp[2].predict(x)


def test_inputs_of_different_lengths(pair):
    _, (left, right), lite = pair
    with pytest.raises(ValueError, match=r"(?i)samples|length|shape"):
        lite.predict([left, right[:4]])
    with pytest.raises(ValueError, match=r"(?i)samples|length|shape"):
        lite.predict([left[:4], right])


def test_wrong_number_of_inputs(pair):
    _, (left, _), lite = pair
    with pytest.raises(ValueError, match=r"`x` must have sample shapes \[\(4,\), \(3,\)\]"):
        lite.predict(left)


# Kernels and threads.


def test_kernels_are_those_asked_for():
    q = networks.quantized(networks.mobile())
    x = networks.data(q, 64)
    content = kerasq.export_tflite(q).content
    fast, slow = TFLiteModel(content), TFLiteModel(content, kernels="reference")
    assert (fast.kernels, slow.kernels) == ("optimized", "reference")
    a, b = (lite.predict(x, dequantize=False).astype(int) for lite in (fast, slow))
    assert (a != b).any()  # They round differently (design.md, fact 12) ...
    assert np.abs(a - b).mean() < 2  # ... but only a little.


@pytest.mark.parametrize("threads", [1, 2, None])
def test_threads_do_not_change_the_result(mlp, threads):
    _, x, lite = mlp
    other = TFLiteModel(lite.content, num_threads=threads)
    assert other.num_threads == threads
    np.testing.assert_array_equal(other.predict(x), lite.predict(x))


def test_unknown_kernels(mlp):
    text = r"`kernels` must be one of \['optimized', 'reference'\]. Received: kernels='fast'"
    with pytest.raises(ValueError, match=text):
        TFLiteModel(mlp[2].content, kernels="fast")


# Files.


def test_a_path_a_string_and_bytes_are_the_same(tmp_path, mlp):
    _, x, lite = mlp
    path = tmp_path / "model.tflite"
    lite.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.tflite"]
    for source in (path, str(path), lite.content, bytearray(lite.content)):
        other = TFLiteModel(source)
        assert other.content == lite.content and isinstance(other.content, bytes)
        np.testing.assert_array_equal(other.predict(x), lite.predict(x))


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.tflite"):
        TFLiteModel(tmp_path / "nothing.tflite")


@pytest.mark.parametrize("length", [0, 3, 100, 2000])
def test_content_that_is_no_model(length):
    garbage = np.random.default_rng(0).integers(0, 256, length).astype(np.uint8).tobytes()
    text = rf"must load in the LiteRT interpreter .*Received: {length} bytes"
    with pytest.raises(ValueError, match=text):
        TFLiteModel(garbage)


def test_a_file_cut_short(mlp):
    content = mlp[2].content
    with pytest.raises(ValueError, match="must load in the LiteRT interpreter"):
        TFLiteModel(content[: len(content) // 2])


# What is inside.


def test_ops_and_tensors(mlp):
    _, _, lite = mlp
    assert [op.name for op in lite.ops] == [*["FULLY_CONNECTED"] * 2, "TANH", "FULLY_CONNECTED"]
    assert lite.ops[0].inputs == ("features", "hidden/kernel", "hidden/bias")
    assert lite.ops[0].outputs == ("hidden",)
    tensors = {tensor.name: tensor for tensor in lite.tensors}
    assert len(tensors) == len(lite.tensors) == 11
    kernel = tensors["hidden/kernel"]
    assert (kernel.shape, kernel.dtype, kernel.constant) == ((12, 6), np.int8, True)
    assert kernel.grid.axis == 0 and kernel.grid.scale.shape == (12,)
    assert tensors["hidden/bias"].dtype == np.int32
    hidden = tensors["hidden"]
    assert (hidden.shape, hidden.dtype, hidden.constant) == ((1, 12), np.int8, False)
    assert hidden.grid.zero_point == -128
    assert lite.inputs == [tensors["features"]] and lite.outputs == [tensors["head"]]


def test_unsigned_tensors_have_signed_grids(mlp):
    lite = kerasq.export_tflite(mlp[0], output_dtype="uint8")
    assert lite.outputs[0].dtype == np.uint8
    assert lite.outputs[0].grid.zero_point == mlp[2].outputs[0].grid.zero_point


@pytest.mark.parametrize(("dtype", "shift"), [("int8", 0), ("uint8", 128)])
def test_the_report_says_how_inputs_are_quantized(mlp, dtype, shift):
    lite = kerasq.export_tflite(mlp[0], input_dtype=dtype, output_dtype="float32")
    (tensor,) = lite.inputs
    scale = str(np.float32(tensor.grid.scale))
    text = f"{dtype}, scale {scale}, zero point {tensor.grid.zero_point + shift}."
    assert f"Input {tensor.name}: {text}" in str(lite)
    assert f"Output {lite.outputs[0].name}: float32." in str(lite)


def test_the_report_has_the_grid_of_every_output(mlp):
    lite = kerasq.export_tflite(mlp[0], output_dtype="float32")
    rows = [line.split() for line in str(lite).splitlines()]
    for tensor in (x for x in lite.tensors if x.grid is not None and not x.constant):
        wanted = [f"{float(tensor.grid.scale):.4g}", str(tensor.zero_point)]
        assert tensor in lite.inputs or wanted in [x[-2:] for x in rows if x[:1] == [tensor.name]]
    (last,) = [x for x in rows if x[:2] == [lite.outputs[0].name, "DEQUANTIZE"]]
    assert last[2:] == ["float32"]  # It lies on no grid.


def test_a_file_of_no_fixed_shape_says_so():
    model = keras.Sequential([keras.Input((None, None, 3), name="image"), L.Conv2D(2, 3)])
    content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    try:
        TFLiteModel(content)
    except ValueError as error:
        assert re.search(r"image.* has no fixed shape, \[-1, -1, -1, 3\]: convert", str(error))
    else:
        pytest.skip("This version of LiteRT takes such files.")


class Counter(tf.Module):
    """Adds up what it is called with."""

    def __init__(self):
        super().__init__()
        self.sum = tf.Variable(np.zeros((1, 3), np.float32))

    @tf.function(input_signature=[tf.TensorSpec([1, 3])])
    def call(self, x):
        self.sum.assign_add(x)
        return 2.0 * self.sum


def test_a_file_with_a_variable():
    """Its operators have no inputs, or no outputs, or neither."""
    counter = Counter()
    functions = [counter.call.get_concrete_function()]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(functions, counter)
    converter.experimental_enable_resource_variables = True
    lite = TFLiteModel(converter.convert())
    x = np.float32([[1, 2, 3]])
    np.testing.assert_array_equal([lite.predict(x), lite.predict(x)], [2 * x, 4 * x])
    found = {(op.name, len(op.inputs), len(op.outputs)) for op in lite.ops}
    assert {("CALL_ONCE", 0, 0), ("VAR_HANDLE", 0, 1), ("ASSIGN_VARIABLE", 2, 0)} <= found
    assert "(ASSIGN_VARIABLE)" in str(lite)


def test_a_float_model_has_float_ops(plain):
    lite = TFLiteModel(plain)
    assert "FULLY_CONNECTED" in {op.name for op in lite.float_ops}
    assert lite.float_ops == lite.ops
    model = networks.mlp()
    x = networks.data(model, 5)
    np.testing.assert_allclose(lite.predict(x), networks.run(model, x), atol=1e-5)


def test_quantize_at_the_ends_is_no_float_op(mlp):
    lite = kerasq.export_tflite(mlp[0], input_dtype="float32", output_dtype="float32")
    names = [op.name for op in lite.ops]
    assert names[0] == "QUANTIZE" and names[-1] == "DEQUANTIZE"
    assert lite.float_ops == []


# evaluate.


def classifier():
    q = networks.quantized(networks.residual())
    x = networks.data(q, 50)
    return q, x, np.random.default_rng(1).integers(0, 10, 50), kerasq.export_tflite(q)


@pytest.fixture(scope="module")
def classified():
    """A classifier, samples, labels, and its export: bit-equal to it."""
    return classifier()


def keras_evaluate(q, x, y, loss, metrics):
    q.compile(loss=loss, metrics=metrics)
    return q.evaluate(x, y, verbose=0, return_dict=True)


def test_evaluate_equals_keras_with_sparse_labels(classified):
    q, x, y, lite = classified
    expected = keras_evaluate(
        q,
        x,
        y,
        "sparse_categorical_crossentropy",
        ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(3, name="top3")],
    )
    found = lite.evaluate(
        (x, y),
        [
            "accuracy",
            keras.metrics.SparseTopKCategoricalAccuracy(3, name="top3"),
            keras.metrics.SparseCategoricalCrossentropy(name="loss"),
        ],
    )
    assert list(found) == ["accuracy", "top3", "loss"]
    assert all(isinstance(value, float) for value in found.values())
    assert found["accuracy"] == pytest.approx(expected["accuracy"])
    assert found["top3"] == pytest.approx(expected["top3"])
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_evaluate_equals_keras_with_one_hot_labels(classified):
    q, x, y, lite = classified
    y = keras.utils.to_categorical(y, 10)
    expected = keras_evaluate(q, x, y, "categorical_crossentropy", ["accuracy"])
    assert lite.evaluate((x, y), ["accuracy"])["accuracy"] == pytest.approx(expected["accuracy"])
    found = lite.evaluate((x, y), ["categorical_accuracy"])
    assert found == {"categorical_accuracy": pytest.approx(expected["accuracy"])}


def test_evaluate_of_batches_equals_that_of_arrays(classified):
    _, x, y, lite = classified
    whole = lite.evaluate((x, y), ["accuracy"])
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(16)
    assert lite.evaluate(dataset, ["accuracy"]) == pytest.approx(whole)
    pieces = [(x[i : i + 16], y[i : i + 16], np.ones(len(y[i : i + 16]))) for i in range(0, 50, 16)]
    assert lite.evaluate(iter(pieces), ["accuracy"]) == pytest.approx(whole)


def test_evaluate_of_two_classes_and_of_regression():
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((6,)), L.Dense(1, activation="sigmoid", name="p")])
    x = networks.data(model, 40)
    y = np.random.default_rng(0).integers(0, 2, (40, 1))
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q)
    expected = keras_evaluate(q, x, y, "binary_crossentropy", ["accuracy", "mse", "mae"])
    found = lite.evaluate((x, y), ["accuracy", "mse", keras.metrics.MeanAbsoluteError(name="mae")])
    for name in ("accuracy", "mse", "mae"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)


def test_evaluate_of_nothing(mlp):
    with pytest.raises(ValueError, match="`data` must hold at least one"):
        mlp[2].evaluate([], ["mse"])


def test_evaluate_twice_starts_anew(classified):
    _, x, y, lite = classified
    assert lite.evaluate((x, y), ["accuracy"]) == lite.evaluate((x, y), ["accuracy"])


def test_metrics_that_are_no_list(classified):
    _, x, y, lite = classified
    with pytest.raises(
        ValueError, match=r"`metrics` must be a list.* Received: metrics='accuracy'"
    ):
        lite.evaluate((x, y), "accuracy")


def test_unknown_metric(classified):
    _, x, y, lite = classified
    with pytest.raises(ValueError, match="nonsense"):
        lite.evaluate((x, y), ["nonsense"])


def test_long_runs_show_a_progress_bar(mlp, monkeypatch, capsys):
    _, x, lite = mlp
    lite.predict(x)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("kerasq.support.progress.QUIET_SECONDS", -1.0)
    lite.predict(x)
    assert "20/20" in capsys.readouterr().out


def test_evaluate_several_outputs_by_name():
    q = networks.quantized(networks.two_by_two())
    lite = kerasq.export_tflite(q)
    x = networks.data(q, 30)
    score, label = np.arange(30) % 2, np.arange(30) % 3
    found = lite.evaluate((x, {"score": score, "label": label}), {"label": ["accuracy"]})
    expected = np.mean(lite.predict(x)["label"].argmax(-1) == label)
    assert found == {"label_accuracy": pytest.approx(expected)}
    both = {"score": "accuracy", "label": ["accuracy"]}
    found = lite.evaluate((x, [score, label]), both)
    assert found["label_accuracy"] == pytest.approx(expected) and "score_accuracy" in found
    with pytest.raises(ValueError, match=r"a dict by output.*\['score', 'label'\]"):
        lite.evaluate((x, [score, label]), ["accuracy"])
    with pytest.raises(ValueError, match=r"a dict by output.*'lable'"):
        lite.evaluate((x, [score, label]), {"lable": ["accuracy"]})
