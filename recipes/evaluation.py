"""The last stages every recipe shares: export, agreement with the integer kernels, latency."""

import contextlib
import io
import statistics
import time

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import kerasq
from kerasq.files import write_whole
from recipes import results, training
from recipes.float_stage import FloatStage

_ROUNDS = 200  # alternating latency measurements of each model
_REFERENCE_IMAGES = 1000  # the reference kernels are slow


def export(
    stage: FloatStage, directory: results.RunDirectory, settings: dict, source: str
) -> results.Figures:
    """Exports the quantized model `source` to model.tflite and compares the two.

    Args:
        stage: where the test data comes from.
        directory: holds `source`.
        settings: everything `source` depends on.
        source: name of the quantized .keras file.

    Returns:
        `accuracy` of the integer kernels, `agreement` of their argmax with the simulation's on
        the test set (both 0..1), the file's size in `bytes` and that of its weights without biases
        in `kernel_bytes`, and, for both kernel sets, the worst layer's difference and share of
        exact values (see `kerasq.compare`).
    """

    def work() -> results.Figures:
        model = keras.models.load_model(directory.path / source)
        lite = kerasq.export_tflite(model, directory.path / "model.tflite")
        x, y = stage.data.x_test, stage.data.y_test
        optimized = kerasq.compare(model, lite, x)
        portable = kerasq.TFLiteModel(lite.content, kernels="reference")
        reference = kerasq.compare(model, portable, x[:_REFERENCE_IMAGES])
        print(f"{lite}\n\n{optimized}\n\n{reference}")
        return {
            "accuracy": training.accuracy(lite.predict(x), y),
            "agreement": optimized.argmax_agreement,
            "bytes": len(lite.content),
            "kernel_bytes": sum(t.bytes for t in lite.tensors if t.name.endswith("/kernel")),
            "optimized": parity(optimized),
            "reference": parity(reference),
        }

    return directory.stage("export", settings, ("model.tflite",), work)


def parity(report: kerasq.Report) -> results.Figures:
    """What a comparison found, in a few figures."""
    return {
        "samples": report.samples,
        "argmax_agreement": report.argmax_agreement,
        "max_lsb": report.max_lsb,
        "exact": report.exact,
        "worst_layer_max_lsb": max(x.max_lsb for x in report.layers if x.max_lsb is not None),
        "worst_layer_exact": min(x.exact for x in report.layers if x.exact is not None),
    }


def sqnr(reference: np.ndarray, outputs: np.ndarray) -> float:
    """Signal to quantization noise in dB: `10 log10(sum y^2 / sum (y - z)^2)`."""
    noise = np.square(reference - outputs, dtype=np.float64).sum()
    return float(10 * np.log10(np.square(reference, dtype=np.float64).sum() / noise))


def measure_latency(
    stage: FloatStage, directory: results.RunDirectory, settings: dict, num_threads: int
) -> results.Figures:
    """Converts float.keras as it is and times it against model.tflite, one sample at a time.

    Returns:
        `float_ms` and `int8_ms` (median milliseconds a sample) and `float_bytes`.
    """

    def work() -> results.Figures:
        model = keras.models.load_model(directory.path / "float.keras")
        content = convert_float(model)
        check_float(model, content, stage.data.x_test[:16].astype("float32"))
        write_whole(directory.path / "float.tflite", content)
        files = [content, (directory.path / "model.tflite").read_bytes()]
        float_ms, int8_ms = alternating_latency(files, num_threads)
        return {"float_ms": float_ms, "int8_ms": int8_ms, "float_bytes": len(content)}

    settings = settings | {"num_threads": num_threads}
    return directory.stage("latency", settings, ("float.tflite",), work)


def convert_float(model: keras.Model) -> bytes:
    """The float .tflite the plain converter makes of a model, for a batch of one.

    `from_concrete_functions([f], model)` would track the Keras model and leave its weights out, as
    uninitialized resource variables (TensorFlow 2.21): a small file that answers NaN.
    """
    image = keras.Input(batch_shape=(1, *model.input_shape[1:]), name="image")
    single = keras.Model(image, model(image, training=False))
    with contextlib.redirect_stdout(io.StringIO()):  # `model.export` prints what it saved
        return tf.lite.TFLiteConverter.from_keras_model(single).convert()


def check_float(model: keras.Model, content: bytes, x: np.ndarray) -> None:
    """Raises unless the float .tflite computes what the Keras model does: its figures would lie."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    outputs = []
    for image in x:
        interpreter.set_tensor(source["index"], image[np.newaxis])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(target["index"])[0])
    difference = np.max(np.abs(np.array(outputs) - model.predict(x, verbose=0)))
    if not difference < 1e-3:  # NaN must fail too
        raise RuntimeError(
            "The float .tflite must compute what the Keras model does. Received: outputs that "
            f"differ by {difference} in {len(content)} bytes. This is a fault of the conversion: "
            "do not use its size or latency."
        )


def alternating_latency(files: list[bytes], num_threads: int) -> list[float]:
    """Median milliseconds of one invocation of each model.

    The models take turns, so that a change of the machine's load or clock meets all of them.
    """
    interpreters = [Interpreter(model_content=f, num_threads=num_threads) for f in files]
    for interpreter in interpreters:
        interpreter.allocate_tensors()
    times: list[list[float]] = [[] for _ in files]
    for _ in range(_ROUNDS):
        for interpreter, measured in zip(interpreters, times, strict=True):
            start = time.perf_counter()
            interpreter.invoke()
            measured.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(measured) for measured in times]
