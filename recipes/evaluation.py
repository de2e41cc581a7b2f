"""What a run ends with: export, agreement with the integer kernels, latency, and the report."""

import contextlib
import io
import statistics
import time
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import kerasq
from kerasq.support import tables
from kerasq.support.files import write_whole
from recipes import results, training

if TYPE_CHECKING:
    from recipes.run import Run

_ROUNDS = 200  # alternating latency measurements of each model
_HARM = 0.01  # loss of accuracy by fine-tuning that is spoken of
_COMPARED_IMAGES = 1000  # of which every layer is compared


def export(run: "Run", source: str) -> results.Figures:
    """Exports the quantized model `source` to model.tflite and compares the two.

    Returns:
        On the whole test set the `accuracy` of the integer kernels, the `agreement` of their
        classes with the simulation's, and the share of `exact` outputs (all 0..1); the file's size
        in `bytes` and that of its weights without biases in `kernel_bytes`; and on some of the
        images, for both kernel sets, the worst layer's difference and share of exact values (see
        `kerasq.compare`).
    """
    model = run.load(source)
    lite = kerasq.export_tflite(model, run.path("model.tflite"))
    x, y = run.data.x_test, run.data.y_test
    simulated, outputs = training.predict(model, x), lite.predict(x)
    optimized = kerasq.compare(model, lite, x=x[:_COMPARED_IMAGES])
    portable = kerasq.TFLiteModel(lite.content, kernels="reference")
    reference = kerasq.compare(model, portable, x=x[:_COMPARED_IMAGES])
    print(f"{lite}\n\n{optimized}\n\n{reference}")
    return {
        "accuracy": training.accuracy(outputs, x, y),
        **_agreement("agreement", simulated, outputs),
        "exact": float(np.mean(simulated == outputs)),
        "bytes": len(lite.content),
        "kernel_bytes": sum(t.bytes for t in lite.tensors if t.name.endswith("/kernel")),
        "optimized": parity(optimized),
        "reference": parity(reference),
    }


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


def powers_of_two(run: "Run") -> results.Figures:
    """Whether the weights in model.tflite are those that were trained, and powers of two.

    Returns:
        `weights_max_difference` of the exported weights from those of finetuned.keras, and
        `powers_of_two`, the share (0..1) of exported codes that are 0 or +-2^n.
    """
    model = run.load("finetuned.keras")
    lite = kerasq.TFLiteModel(run.path("model.tflite"))
    grids = {tensor.name: tensor.grid for tensor in lite.tensors}
    difference, codes = 0.0, []
    for layer in model.layers:
        name = f"{layer.name}/kernel"
        if (grid := grids.get(name)) is not None:
            trained, exported = layer.folded_kernel().numpy(), lite.constant(name)
            stored = grid.dequantize(exported)
            if grid.axis is not None:  # There is one for a single channel.
                stored = np.moveaxis(stored, grid.axis, -1)
            difference = max(difference, np.abs(stored.reshape(trained.shape) - trained).max())
            codes.append(np.abs(exported.astype(np.int64)).ravel())
    sizes = np.concatenate(codes)
    return {
        "weights_max_difference": float(difference),
        "powers_of_two": float(np.mean(sizes & (sizes - 1) == 0)),
    }


def distance(reference: np.ndarray, outputs: np.ndarray) -> results.Figures:
    """How far outputs are from those of the float model.

    Returns:
        `float_agreement`, the share (0..1) of samples of the same class, where outputs are classes,
        and `sqnr` in dB:
        `10 log10(sum y^2 / sum (y - z)^2)`.
    """
    noise = np.square(reference - outputs, dtype=np.float64).sum()
    ratio = np.square(reference, dtype=np.float64).sum() / noise
    same = _agreement("float_agreement", reference, outputs)
    return {**same, "sqnr": float(10 * np.log10(ratio))}


def _agreement(name: str, a: np.ndarray, b: np.ndarray) -> results.Figures:
    """The share (0..1) of samples of the same class; nothing where outputs are images."""
    return {name: float(np.mean(a.argmax(-1) == b.argmax(-1)))} if a.ndim == 2 else {}


def latency(run: "Run") -> results.Figures:
    """Converts float.keras as it is and times it against model.tflite, one sample at a time.

    Returns:
        `float_ms` and `int8_ms` (median milliseconds a sample) and `float_bytes`.
    """
    model = run.load("float.keras")
    content = run.float_tflite
    check_float(model, content, run.data.x_test[:16].astype("float32"))
    write_whole(run.path("float.tflite"), content)
    files = [content, run.path("model.tflite").read_bytes()]
    float_ms, int8_ms = alternating_latency(files, run.num_threads)
    return {"float_ms": float_ms, "int8_ms": int8_ms, "float_bytes": len(content)}


def convert_float(
    model: keras.Model, optimize: bool = False, weights: tf.DType | None = None
) -> bytes:
    """The float .tflite the plain converter makes of a model, for a batch of one.

    Optimized, weights are of the type `weights`, or int8 ("dynamic range").

    `from_concrete_functions([f], model)` would track the Keras model and leave its weights out, as
    uninitialized resource variables (TensorFlow 2.21): a small file that answers NaN.
    """
    image = keras.Input(batch_shape=(1, *model.input_shape[1:]), name="image")
    single = keras.Model(image, model(image, training=False))
    with contextlib.redirect_stdout(io.StringIO()):  # `model.export` prints what it saved
        converter = tf.lite.TFLiteConverter.from_keras_model(single)
        converter.optimizations = [tf.lite.Optimize.DEFAULT] if optimize else []
        converter.target_spec.supported_types = [] if weights is None else [weights]
        return converter.convert()


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


_SUMMARY = {
    "float_accuracy": ("float", "accuracy"),
    "majority": ("float", "majority"),
    "calibrated_accuracy": ("calibrate", "accuracy"),
    "calibrated_float_agreement": ("calibrate", "float_agreement"),
    "calibrated_sqnr": ("calibrate", "sqnr"),
    "finetuned_accuracy": ("finetune", "accuracy"),
    "best_epoch": ("finetune", "best_epoch"),
    "float_finetuned_accuracy": ("float_finetune", "accuracy"),
    "tflite_accuracy": ("export", "accuracy"),
    "agreement": ("export", "agreement"),
    "exact": ("export", "exact"),
    "float_bytes": ("latency", "float_bytes"),
    "tflite_bytes": ("export", "bytes"),
    "kernel_bytes": ("export", "kernel_bytes"),
    "optimized_kernels": ("export", "optimized"),
    "reference_kernels": ("export", "reference"),
    "float_ms": ("latency", "float_ms"),
    "tflite_ms": ("latency", "int8_ms"),
}


def summarize(figures: dict[str, results.Figures]) -> dict[str, Any]:
    """The figures of all stages as the flat object that results.json holds."""
    found = {k: figures[x][v] for k, (x, v) in _SUMMARY.items() if v in figures.get(x, {})}
    found["seconds"] = {stage: values["seconds"] for stage, values in figures.items()}
    return found


def remarks(summary: dict[str, Any]) -> list[str]:
    """What a user should not overlook: a float model that guesses, fine-tuning that does harm."""
    found = []
    if summary["float_accuracy"] <= summary.get("majority", -np.inf):
        found.append(
            "The float model is no better than always answering with the commonest class "
            f"({100 * summary['majority']:.2f} %). Are images and labels those it was trained on "
            "(pixels are 0 to 255, classes in the order of their names)? For training from "
            "scratch take more epochs or a smaller --batch_size."
        )
    lost = summary.get("calibrated_accuracy", 0.0) - summary.get("finetuned_accuracy", 1.0)
    if lost > _HARM:
        found.append(
            f"Fine-tuning lost {100 * lost:.2f} points against calibrated.keras: it may have "
            "diverged. Try a lower --learning_rate, or more --epochs."
        )
    return found


def report(summary: dict[str, Any]) -> str:
    """The summary as a table, the agreement and the time of each stage below it."""
    rows = [["", "accuracy", "bytes", "ms/image"]]
    for title, accuracy, prefix in (
        ("float", "float_accuracy", "float"),
        ("calibrated", "calibrated_accuracy", ""),
        ("fine-tuned", "finetuned_accuracy", ""),
        ("float, fine-tuned alike", "float_finetuned_accuracy", ""),
        ("integer .tflite", "tflite_accuracy", "tflite"),
    ):
        if accuracy in summary:
            size, ms = summary.get(f"{prefix}_bytes"), summary.get(f"{prefix}_ms")
            share = f"{100 * summary[accuracy]:.2f} %"
            rows.append([title, share, f"{size:,}" if size else "", f"{ms:.3f}" if ms else ""])
    lines = [tables.plain(rows)]
    if "exact" in summary:
        lines.append(
            f"Of the outputs of the .tflite {100 * summary['exact']:.2f} % are equal to its "
            "simulation's to the last bit."
        )
    if "agreement" in summary:
        reference = summary["reference_kernels"]
        lines.append(
            f"Both find the same class on {100 * summary['agreement']:.2f} % of the test images; "
            f"with the reference kernels (TFLite Micro's rounding) on "
            f"{100 * reference['argmax_agreement']:.2f} % of {reference['samples']:,} of them."
        )
    if "powers_of_two" in summary:
        lines.append(
            f"Of its weights {100 * summary['powers_of_two']:.2f} % are 0 or a power of two; they "
            f"differ from the trained ones by {summary['weights_max_difference']:g} at most."
        )
    lines += remarks(summary)
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in summary["seconds"].items())
    return "\n".join([*lines, f"Seconds: {seconds}."])
