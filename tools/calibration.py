"""Default calibration beside TFLiteConverter's post-training quantization.

Prints the table of docs/results.md: small networks, trained here on data that come with
scikit-learn or are made here, each quantized by both without fine-tuning, at int8 and at int16.
Means over seeds.

Example: python -m tools.calibration
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from sklearn import datasets

import kerasq
from kerasq.support import tables

L = keras.layers
Array = np.ndarray

SAMPLES = 320  # that both calibrate on
DTYPES = {"int8": "w8a8", "int16": "w8a16"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a network is trained for.

    Attributes:
        make: builds and trains it, and returns it with data: those to train on, those to test on,
            and what the outputs for the latter should be.
        metric: of outputs, as a list, and what they should be; greater is better.
        unit: of the metric.
    """

    make: Callable[[], tuple[keras.Model, Array, Array, Any]]
    metric: Callable[[list[Array], Any], float]
    unit: str


def _fit(model: keras.Model, x: Array, y: Any, loss: Any, epochs: int, rate: float = 3e-3) -> None:
    model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(x, y, epochs=epochs, batch_size=32, verbose=0)


def _accuracy(outputs: list[Array], labels: Array) -> float:
    return 100 * float(np.mean(outputs[0].argmax(-1) == labels))


def _snr(outputs: list[Array], wanted: Array) -> float:
    return _decibels(wanted, outputs[0])


def _explained(outputs: list[Array], wanted: Array) -> float:
    """The coefficient of determination, in per cent."""
    wanted = wanted.reshape(outputs[0].shape)
    return 100 * (1 - float(np.mean((wanted - outputs[0]) ** 2) / np.var(wanted)))


def _mask_iou(outputs: list[Array], masks: Array) -> float:
    found = outputs[0][..., 0] > 0.5
    return 100 * float((found & masks).sum() / (found | masks).sum())


def _box_iou(outputs: list[Array], wanted: tuple[Array, Array]) -> float:
    """Of boxes (x0, y0, x1, y1) that have the right class; others count as 0."""
    boxes, labels = wanted
    found = outputs[0]
    low = np.maximum(found[:, :2], boxes[:, :2])
    high = np.minimum(found[:, 2:], boxes[:, 2:])
    inner = np.prod(np.maximum(high - low, 0), -1)
    areas = [np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), -1) for b in (found, boxes)]
    right = outputs[1].argmax(-1) == labels
    return 100 * float(np.mean(right * inner / np.maximum(sum(areas) - inner, 1e-6)))


def _decibels(wanted: Array, found: Array) -> float:
    error = np.mean((wanted.astype("float64") - found) ** 2)
    return 10 * float(np.log10(np.mean(wanted.astype("float64") ** 2) / max(error, 1e-30)))


def _regressor() -> Any:
    x = np.random.default_rng(0).normal(size=(1600, 14)).astype("float32")
    y = np.sin(x[:, :1]) * 3 + x[:, 1:2] * x[:, 2:3]
    layers = [L.Dense(32, activation="relu"), L.Dense(32, activation="relu"), L.Dense(1)]
    model = keras.Sequential([keras.Input((14,)), *layers])
    _fit(model, x[:1200], y[:1200], "mse", 30, 1e-2)
    return model, x[:1200], x[1200:], y[1200:]


def _table(load: Callable, first: keras.Layer, classes: int | None) -> Any:
    """A network on a table of scikit-learn's, whose features are normalized inside."""
    x, y = load(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype("float32"), y[order]
    cut = len(x) * 2 // 3
    if isinstance(first, L.Normalization):
        first.adapt(x[:cut])
    hidden = [L.Dense(32, activation="relu"), L.Dense(16, activation="relu")]
    end = L.Dense(1) if classes is None else L.Dense(classes, activation="softmax")
    model = keras.Sequential([keras.Input(x.shape[1:]), first, *hidden, end])
    scale = 100.0 if classes is None else 1
    loss = "mse" if classes is None else "sparse_categorical_crossentropy"
    _fit(model, x[:cut], y[:cut] / scale, loss, 60)
    return model, x[:cut], x[cut:], y[cut:] / scale


def _digits() -> tuple[Array, Array]:
    images, labels = datasets.load_digits(return_X_y=True)
    return (images / 16).astype("float32").reshape(-1, 8, 8, 1), labels


def _digits_classifier() -> Any:
    x, y = _digits()
    layers = [L.Conv2D(16, 3, padding="same"), L.BatchNormalization(), L.ReLU(), L.MaxPooling2D()]
    layers += [L.DepthwiseConv2D(3, padding="same"), L.BatchNormalization(), L.ReLU(6.0)]
    layers += [L.Conv2D(32, 1, activation="relu"), L.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers, L.Dense(10, activation="softmax")])
    _fit(model, x[:1200], y[:1200], "sparse_categorical_crossentropy", 15)
    return model, x[:1200], x[1200:], y[1200:]


def _attention() -> Any:
    """A digit read as a sequence of eight rows."""
    x, y = _digits()
    rows = keras.Input((8, 8))
    h = L.Dense(16)(rows)
    h = L.Add()([h, L.MultiHeadAttention(2, 8)(h, h)])
    h = L.Flatten()(L.Dense(16, activation="relu")(h))
    model = keras.Model(rows, L.Dense(10, activation="softmax")(h))
    _fit(model, x[:1200, ..., 0], y[:1200], "sparse_categorical_crossentropy", 20)
    return model, x[:1200, ..., 0], x[1200:, ..., 0], y[1200:]


def _autoencoder() -> Any:
    x = _digits()[0].reshape(-1, 64)
    layers = [L.Dense(32, activation="relu"), L.Dense(12), L.Dense(32, activation="relu")]
    model = keras.Sequential([keras.Input((64,)), *layers, L.Dense(64)])
    _fit(model, x[:1200], x[:1200], "mse", 40)
    return model, x[:1200], x[1200:], x[1200:]


def _waves(count: int) -> Array:
    """Sines of 64 samples as 16-bit integers, whose amplitudes span two orders of magnitude."""
    rng, t = np.random.default_rng(0), np.arange(64)
    amplitude = rng.uniform(2, 4.4, (count, 1))
    cycles, phase = rng.uniform(0.5, 3, (count, 1)), rng.uniform(0, 2 * np.pi, (count, 1))
    waves = 10**amplitude * np.sin(2 * np.pi * cycles * t / 64 + phase)
    return (waves + rng.normal(0, 20, waves.shape)).round().astype("float32")


def _samples() -> Any:
    """An autoencoder on raw 16-bit samples."""
    x = _waves(1500)
    wave = keras.Input((64,))
    h = L.Dense(32, activation="relu")(L.Rescaling(1 / 32768)(wave))
    h = L.Dense(32, activation="relu")(L.Dense(10)(L.BatchNormalization()(h)))
    model = keras.Model(wave, L.Rescaling(32768.0)(L.Dense(64)(h)))
    _fit(model, x[:1200], x[:1200], "mse", 30)
    return model, x[:1200], x[1200:], x[1200:]


def _tones() -> Any:
    """Which of eight tones a noisy waveform has."""
    rng, t = np.random.default_rng(0), np.arange(256)
    y = rng.integers(0, 8, 1200)
    x = np.sin(2 * np.pi * (8 + 4 * y[:, None]) * t / 256 + rng.uniform(0, 6, (1200, 1)))
    x = x * 10 ** rng.uniform(-1, 0, (1200, 1)) + rng.normal(0, 0.1, x.shape)
    x = x[..., None].astype("float32")
    layers = [L.Conv1D(16, 16, strides=4), L.BatchNormalization(), L.ReLU(), L.MaxPooling1D(2)]
    layers += [L.SeparableConv1D(16, 5, activation="relu"), L.GlobalAveragePooling1D()]
    model = keras.Sequential([keras.Input((256, 1)), *layers, L.Dense(8, activation="softmax")])
    _fit(model, x[:900], y[:900], "sparse_categorical_crossentropy", 15)
    return model, x[:900], x[900:], y[900:]


def _forecaster() -> Any:
    """The next value of a noisy sum of two periods, by dilated causal convolutions."""
    rng, t = np.random.default_rng(0), np.arange(2100)
    series = np.sin(t / 7) * 5 + np.sin(t / 31) * 20 + rng.normal(0, 0.5, len(t)) + 40
    windows = np.lib.stride_tricks.sliding_window_view(series, 33).astype("float32")
    x, y = windows[:, :32, None], windows[:, 32:]
    layers = [
        L.Conv1D(16, 3, padding="causal", dilation_rate=d, activation="relu") for d in (1, 2, 4)
    ]
    front, back = L.Rescaling(0.05, offset=-2.0), L.Rescaling(20.0, offset=40.0)
    end = [L.Flatten(), L.Dense(1), back]
    model = keras.Sequential([keras.Input((32, 1)), front, *layers, *end])
    _fit(model, x[:1500], y[:1500], "mse", 15)
    return model, x[:1500], x[1500:], y[1500:]


def _canvases(count: int = 1200) -> tuple[Array, Array, Array]:
    """Digits at random places of 24 x 24 canvases, in noise: with boxes and labels.

    First `count` of 1200 digits, to train on, then one of each other digit.
    """
    digits, labels = _digits()
    rng = np.random.default_rng(0)
    which = np.concatenate([np.arange(count) % 1200, np.arange(1200, len(digits))])
    canvases = rng.uniform(0, 0.3, (len(which), 24, 24, 1)).astype("float32")
    corners = rng.integers(0, 17, (len(which), 2))
    for canvas, digit, (x, y) in zip(canvases, digits[which], corners, strict=True):
        canvas[y : y + 8, x : x + 8] = np.maximum(canvas[y : y + 8, x : x + 8], digit)
    return canvases, np.hstack([corners, corners + 8]).astype("float32"), labels[which]


def _segmentation() -> Any:
    x, boxes, _ = _canvases()
    rows = np.arange(24)
    inside = [(rows >= boxes[:, i, None]) & (rows < boxes[:, i + 2, None]) for i in (1, 0)]
    masks = inside[0][:, :, None] & inside[1][:, None, :]
    image = keras.Input((24, 24, 1))
    a = L.Conv2D(8, 3, padding="same", activation="relu")(image)
    b = L.Conv2D(16, 3, strides=2, padding="same", activation="relu")(a)
    c = L.Conv2D(16, 3, strides=2, padding="same", activation="relu")(b)
    c = L.UpSampling2D(interpolation="bilinear")(L.Conv2D(16, 3, padding="same")(c))
    b = L.Concatenate()([b, c])
    a = L.Concatenate()([a, L.Conv2DTranspose(8, 2, strides=2, activation="relu")(b)])
    model = keras.Model(image, L.Conv2D(1, 3, padding="same", activation="sigmoid")(a))
    _fit(model, x[:1200], masks[:1200, ..., None].astype("float32"), "binary_crossentropy", 8)
    return model, x[:1200], x[1200:], masks[1200:]


def _detection() -> Any:
    """A box in pixels and a class."""
    count = 6000
    x, boxes, labels = _canvases(count)
    image = keras.Input((24, 24, 1))
    h = image
    for filters, strides in ((16, 2), (32, 2), (32, 1)):
        h = L.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(h)
        h = L.ReLU()(L.BatchNormalization()(h))
    h = L.Dense(64, activation="relu")(L.Flatten()(h))
    box = L.Rescaling(24.0)(L.Dense(4, activation="sigmoid")(h))
    model = keras.Model(image, [box, L.Dense(10, activation="softmax")(h)])
    losses = ["mae", "sparse_categorical_crossentropy"]
    _fit(model, x[:count], [boxes[:count], labels[:count]], losses, 16)
    return model, x[:count], x[count:], (boxes[count:], labels[count:])


def _image_to_image() -> Any:
    """Noise taken off canvases."""
    clean, *_ = _canvases()
    noisy = clean + np.random.default_rng(1).normal(0, 0.2, clean.shape).astype("float32")
    layers = [L.Conv2D(12, 3, padding="same", activation="relu") for _ in range(2)]
    end = L.Conv2D(1, 3, padding="same")
    model = keras.Sequential([keras.Input((24, 24, 1)), *layers, end])
    _fit(model, noisy[:1200], clean[:1200], "mse", 5)
    return model, noisy[:1200], noisy[1200:], clean[1200:]


def _text() -> Any:
    """Which of two words comes first in a line of twenty."""
    rng = np.random.default_rng(0)
    x = rng.integers(3, 200, (3000, 20))
    places = rng.permuted(np.tile(np.arange(20), (3000, 1)), axis=1)[:, :2]
    x[np.arange(3000), places[:, 0]], x[np.arange(3000), places[:, 1]] = 1, 2
    y = (places[:, 0] < places[:, 1]).astype("int64")
    x = x.astype("int32")
    words = keras.Input((20,), dtype="int32")
    h = L.Embedding(200, 16)(words)
    for dilation in (1, 2, 4, 8):
        h = L.Conv1D(24, 3, padding="causal", dilation_rate=dilation, activation="relu")(h)
    model = keras.Model(words, L.Dense(2, activation="softmax")(L.GlobalMaxPooling1D()(h)))
    _fit(model, x[:2400], y[:2400], "sparse_categorical_crossentropy", 12)
    return model, x[:2400], x[2400:], y[2400:]


TASKS = {
    "regressor": Task(make=_regressor, metric=_explained, unit="R2, %"),
    "table, diabetes": Task(
        make=lambda: _table(datasets.load_diabetes, L.BatchNormalization(), None),
        metric=_explained,
        unit="R2, %",
    ),
    "table, wine": Task(
        make=lambda: _table(datasets.load_wine, L.Normalization(), 3), metric=_accuracy, unit="%"
    ),
    "table, breast cancer": Task(
        make=lambda: _table(datasets.load_breast_cancer, L.Normalization(), 2),
        metric=_accuracy,
        unit="%",
    ),
    "digits": Task(make=_digits_classifier, metric=_accuracy, unit="%"),
    "attention": Task(make=_attention, metric=_accuracy, unit="%"),
    "autoencoder": Task(make=_autoencoder, metric=_snr, unit="dB"),
    "raw audio": Task(make=_samples, metric=_snr, unit="dB"),
    "tones": Task(make=_tones, metric=_accuracy, unit="%"),
    "forecaster": Task(make=_forecaster, metric=_explained, unit="R2, %"),
    "segmentation": Task(make=_segmentation, metric=_mask_iou, unit="IoU, %"),
    "detection": Task(make=_detection, metric=_box_iou, unit="IoU, %"),
    "image to image": Task(make=_image_to_image, metric=_snr, unit="dB"),
    "text": Task(make=_text, metric=_accuracy, unit="%"),
}
_TASKS = flags.DEFINE_multi_enum("task", [*TASKS], [*TASKS], "Tasks, a flag each.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of training, a network each.")
_METHOD = flags.DEFINE_string("method", None, "Of kerasq.calibrate; its default by default.")


def converted(
    model: keras.Model,
    x: Array,
    dtype: str,
    *,
    integer_ends: bool = False,
    per_channel: bool = True,
) -> kerasq.TFLiteModel:
    """TFLiteConverter's post-training quantization; its inputs and outputs are float by default."""
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter._experimental_disable_per_channel = not per_channel
    converter.representative_dataset = lambda: ([x[i : i + 1]] for i in range(len(x)))
    sets = tf.lite.OpsSet
    only_int16 = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
    only = {"int8": sets.TFLITE_BUILTINS_INT8, "int16": only_int16}[dtype]
    converter.target_spec.supported_ops = [only, sets.TFLITE_BUILTINS]
    if integer_ends:
        converter.inference_input_type = converter.inference_output_type = getattr(tf, dtype)
    return kerasq.TFLiteModel(converter.convert())


def calibrated(model: keras.Model, x: Array, dtype: str) -> kerasq.TFLiteModel:
    """The same by kerasq."""
    q = kerasq.quantize_model(model, DTYPES[dtype])
    kerasq.calibrate(q, x, method=_METHOD.value)
    return kerasq.export_tflite(q)


def _outputs(model: Any, lite: kerasq.TFLiteModel | None, x: Array) -> list[Array]:
    """In the order of the Keras model, whatever a converter has made of that."""
    if lite is None:
        return keras.tree.flatten(model.predict(x, verbose=0))
    found = lite.predict(x)
    arrays = [found] if isinstance(found, np.ndarray) else [*found.values()]
    shapes = [tuple(y.shape[1:]) for y in model.outputs]
    return sorted(arrays, key=lambda a: shapes.index(a.shape[1:]))


def figures(name: str, seed: int) -> dict[str, list[float]]:
    """By type, of the float model the metric, and of the converter and kerasq that and the SQNR.

    NaN where there is no model.
    """
    keras.utils.set_random_seed(seed)
    task = TASKS[name]
    model, train, test, wanted = task.make()
    floats = _outputs(model, None, test)
    found: dict[str, list[float]] = {}
    for dtype in DTYPES:
        found[dtype] = [task.metric(floats, wanted)]
        for make in (converted, calibrated):
            try:
                lite = make(model, train[:SAMPLES], dtype)
            # Such as that an operator has no int16 kernel, or the converter no ranges of indices.
            except (ValueError, RuntimeError) as error:
                print(name, dtype, make.__name__, str(error).split(". ")[0], flush=True)
                found[dtype] += [np.nan, np.nan]
                continue
            outputs = _outputs(model, lite, test)
            # Of several outputs that which has lost the most.
            sqnr = min(_decibels(*pair) for pair in zip(floats, outputs, strict=True))
            found[dtype] += [task.metric(outputs, wanted), sqnr]
        print(name, seed, dtype, *(f"{x:.1f}" for x in found[dtype]), flush=True)
    return found


def main(argv: list[str]) -> None:
    """Prints the table: means over seeds."""
    if len(argv) > 1:
        raise app.UsageError(f"Takes flags only. Received: {argv[1:]}.")
    rows = [["task", "type", "metric", "float", "converter", "SQNR", "kerasq", "SQNR"]]
    for name in _TASKS.value:
        found = [figures(name, int(seed)) for seed in _SEEDS.value]
        for dtype in DTYPES:
            means = np.mean([x[dtype] for x in found], axis=0)
            cells = ["-" if np.isnan(x) else f"{x:.1f}" for x in means]
            rows.append([name, dtype, TASKS[name].unit, *cells])
    print(tables.markdown(rows, left=3))


if __name__ == "__main__":
    app.run(main)
