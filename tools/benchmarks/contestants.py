"""What the benchmark measures: each function prepares one contestant and returns what to repeat.

A repetition returns its own figure: seconds, or bytes. Every contestant runs in a process of its
own (`worker`), so each function imports only what it needs.
"""

import ctypes
import functools
import gc
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tools.benchmarks import networks

Call = Callable[[], float]
_COUNTED = 13  # steps whose peak memory is taken


def _seconds(call: Callable[[], Any]) -> Call:
    def run() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return run


def _once(call: Callable[[], Any]) -> Call:
    """CPU seconds of the first call, which traces.

    Of the CPU: what else runs on a machine does not count, and a single call has no median.
    """
    start = time.process_time()
    call()
    seconds = time.process_time() - start
    return lambda: seconds


def _images(count: int, shape: tuple = networks.SHAPE) -> np.ndarray:
    """Random pixels: no kernel here takes another time for other values."""
    return np.random.default_rng(0).normal(size=(count, *shape)).astype("float32")


def _inputs(model: Any, count: int) -> np.ndarray:
    """Samples for a model; those of keras.applications take pixels of 0..255."""
    shape = model.input_shape[1:]
    if shape == networks.APPLICATION_SHAPE:
        pixels = np.random.default_rng(0).uniform(0, 255, (count, *shape))
        return pixels.astype("float32")
    return _images(count, shape)


def _keras(policy: str = "float32") -> Any:
    import keras

    keras.config.set_dtype_policy(policy)
    return keras


def _tf_keras(policy: str) -> Any:
    import tf_keras

    tf_keras.mixed_precision.set_global_policy(policy)
    return tf_keras


def _model(keras: Any, network: str, batch_norm: bool = True) -> Any:
    """A float model whose BatchNormalization has seen data; without, deep networks output 0."""
    model = networks.build(keras, network, batch_norm)
    if network in networks.APPLICATIONS:
        from tools import zoo

        zoo.shake(model, [_inputs(model, 32)])
        return model
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    model(_inputs(model, 32), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model


def _quantized(model: Any, **options: Any) -> Any:
    import kerasq

    quantized = kerasq.quantize_model(model, **options)
    kerasq.calibrate(quantized, _inputs(model, 64))
    return quantized


def _tfmot(model: Any) -> Any:
    import tensorflow_model_optimization as tfmot

    return tfmot.quantization.keras.quantize_model(model)


# Recurrent layers: an LSTM as one operator, all step by step, or a loop that stays float.
RECURRENT: dict[str, Callable[[Any], Any]] = {
    "kerasq, fused": functools.partial(_quantized, recurrence="fused"),
    "kerasq, unrolled": functools.partial(_quantized, recurrence="unrolled"),
    "kerasq, float loop": functools.partial(_quantized, overrides={"loop": "float"}),
}
# Fine-tuning steps: what becomes of the float model, by contestant. BatchNormalization is kept, as
# the peers keep it, or folded; without any a float model is the lower bound.
STEPS: dict[str, Callable[[Any], Any]] = {
    "kerasq": _quantized,
    "kerasq, folded": functools.partial(_quantized, batch_norm="fold"),
    "Keras 3": lambda model: model,
    "Keras 3, no BatchNorm": lambda model: model,
    "tf_keras": lambda model: model,
    "tfmot": _tfmot,
}
_ALL = STEPS | RECURRENT


def step(
    contestant: str, network: str, batch: int, policy: str = "float32", xla: bool = False
) -> Call:
    """One step of what `model.fit` repeats, without its callbacks; reading data costs nothing."""
    import tensorflow as tf

    keras = _tf_keras(policy) if contestant in ("tf_keras", "tfmot") else _keras(policy)
    model = _ALL[contestant](_model(keras, network, "no BatchNorm" not in contestant))
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=xla)
    one = model.make_train_function() or model.train_function  # tf_keras returns the first.
    labels = np.arange(batch) % networks.CLASSES
    data = tf.data.Dataset.from_tensors((_inputs(model, batch), labels)).repeat()
    iterator = iter(data)

    def run() -> None:
        one(iterator)
        tf.test.experimental.sync_devices()  # A GPU works on after a call has returned.

    return _seconds(run)


# Memory


def step_memory(contestant: str, network: str, batch: int, whole: bool) -> Call:
    """Peak bytes of fine-tuning, tracing included.

    Above what the process holds once the model is there; with `whole`, above what it held before,
    so that building, quantizing and calibrating count too.
    """
    import tensorflow as tf

    import kerasq  # noqa: F401 - both contestants have imported the same.

    step(
        "Keras 3, no BatchNorm", "chain2", 8
    )()  # Libraries and pools that the first step of a process loads.
    gpu = bool(tf.config.list_physical_devices("GPU"))
    before = _reset_peak(gpu)
    one = step(contestant, network, batch)
    if not whole:
        before = _reset_peak(gpu)
    for _ in range(_COUNTED):
        one()
    if gpu:
        peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] - before
    else:
        peak = _resident("VmHWM") - before
    return lambda: peak


def _reset_peak(gpu: bool) -> int:
    """Forgets the peak; returns the bytes in use."""
    import tensorflow as tf

    gc.collect()
    if gpu:
        tf.config.experimental.reset_memory_stats("GPU:0")
        return tf.config.experimental.get_memory_info("GPU:0")["current"]
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Resets VmHWM.
    return _resident("VmRSS")


def _resident(field: str) -> int:
    """Bytes of this process's memory, now ("VmRSS") or at most ("VmHWM"); Linux only."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"{field} must be in /proc/self/status, as on Linux. Received: no such line.")


# Calibration


def calibration(network: str, samples: int) -> Call:
    """`kerasq.calibrate` on a model quantized for the occasion."""
    import kerasq

    quantized = kerasq.quantize_model(_model(_keras(), network))
    data = _inputs(quantized, samples)
    return _seconds(lambda: kerasq.calibrate(quantized, data))


def prediction(network: str, samples: int) -> Call:
    """`model.predict` of the float model, traced anew each time, as calibration is."""
    model = _model(_keras(), network)
    model.compile(jit_compile=False)  # As calibration, which would otherwise be compared to XLA.
    data = _inputs(model, samples)

    def run() -> None:
        model.predict_function = None
        model.predict(data, batch_size=32, verbose=0)

    return _seconds(run)


# Export: these return seconds and leave a file behind


def kerasq_export(network: str, path: str | None, contestant: str = "kerasq") -> Call:
    """`kerasq.export_tflite`."""
    import kerasq

    quantized = _ALL[contestant](_model(_keras(), network))
    return _seconds(lambda: kerasq.export_tflite(quantized, path))


def bare_converter(network: str, path: str) -> Call:
    """TFLiteConverter of the float model, as it comes."""
    import tensorflow as tf

    model = _model(_keras(), network)

    def run() -> None:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        pathlib.Path(path).write_bytes(converter.convert())

    return _seconds(run)


def converter_int8(network: str, path: str) -> Call:
    """TFLiteConverter's own post-training quantization to int8."""
    # It quantizes no loop of Keras 3: what users do is to have Keras unroll it.
    name = f"{network}, unrolled" if network in networks.RECURRENT else network
    model = _model(_keras(), name)
    return _seconds(_post_training(model, _inputs(model, 16), path))


def _post_training(model: Any, data: np.ndarray, path: str) -> Callable[[], None]:
    """TFLiteConverter's own post-training quantization, still to be run."""
    import tensorflow as tf

    def run() -> None:
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([x[None]] for x in data)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        pathlib.Path(path).write_bytes(converter.convert())

    return run


def ai_edge_int8(network: str, path: str) -> Call:
    """ai-edge-quantizer's post-training quantization to int8 (float in and out)."""
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    model = _model(_keras(), network)
    data = _inputs(model, 16)

    def run() -> None:
        content = tf.lite.TFLiteConverter.from_keras_model(model).convert()
        signatures = Interpreter(model_content=content).get_signature_list()
        ((signature, ends),) = signatures.items()
        samples = [{ends["inputs"][0]: x[None]} for x in data]
        tool = quantizer.Quantizer(content, recipe.static_wi8_ai8())
        ranges = tool.calibrate({signature: samples})
        result = tool.quantize(ranges, enable_progress_report=False)
        pathlib.Path(path).write_bytes(result.quantized_model)

    return _seconds(run)


# The road from a float model and a hundred samples to a file: once in each process, in seconds of
# the CPU. Leaves the file behind, and its peak of memory as PATH.peak, in bytes.

ROAD = 100  # samples


def road(network: str, path: str) -> Call:
    """`kerasq.quantize_model`, `calibrate` and `export_tflite`."""
    import kerasq

    model = _model(_keras(), network)
    data = _inputs(model, ROAD)

    def run() -> None:
        quantized = kerasq.quantize_model(model)
        kerasq.calibrate(quantized, data)
        kerasq.export_tflite(quantized, path)

    return _road(run, path)


def converter_road(network: str, path: str) -> Call:
    """TFLiteConverter's own post-training quantization to int8."""
    model = _model(_keras(), network)
    return _road(_post_training(model, _inputs(model, ROAD), path), path)


def _road(run: Callable[[], Any], path: str) -> Call:
    before = _reset_peak(gpu=False)
    seconds = _once(run)
    pathlib.Path(f"{path}.peak").write_text(str(_resident("VmHWM") - before))
    return seconds


def latency(path: str, threads: int) -> Call:
    """Seconds for one sample, the median over a tenth of a second."""
    import kerasq

    model = kerasq.TFLiteModel(path)
    (first,) = kerasq.latency([model], num_threads=threads, rounds=3)
    rounds = max(1, round(100 / first))
    return lambda: kerasq.latency([model], num_threads=threads, rounds=rounds)[0] / 1e3


def imports(modules: str) -> Call:
    """`import <modules>` in a new interpreter."""
    script = (
        f"import time; t = time.perf_counter(); import {modules}; print(time.perf_counter() - t)"
    )

    def run() -> float:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
        return float(done.stdout)

    return run


# Tracing: what users wait for before anything runs. Once in each process, as traces stay.

TRACED = 32  # samples


def first_prediction(contestant: str, network: str) -> Call:
    """The first `predict` of a model."""
    return _once(_prediction(contestant, network))


def later_prediction(contestant: str, network: str) -> Call:
    """`predict` of a model that has predicted before: of a quantized one, the simulation."""
    predict = _prediction(contestant, network)
    predict()
    return _seconds(predict)


def _prediction(contestant: str, network: str) -> Callable[[], Any]:
    model = STEPS[contestant](_model(_keras(), network))
    data = _inputs(model, TRACED)
    return lambda: model.predict(data, verbose=0)


def first_step(contestant: str, network: str) -> Call:
    """The first `fit` of a model, of one step."""
    model = STEPS[contestant](_model(_keras(), network))
    model.compile("sgd", "sparse_categorical_crossentropy")
    images = _inputs(model, TRACED)
    labels = np.arange(TRACED) % networks.CLASSES
    return _once(lambda: model.fit(images, labels, batch_size=TRACED, verbose=0))


def first_comparison(network: str) -> Call:
    """`kerasq.compare` in a process that has predicted nothing yet."""
    import kerasq

    quantized = _quantized(_model(_keras(), network))
    lite = kerasq.export_tflite(quantized)
    images = _inputs(quantized, TRACED)
    return _once(lambda: kerasq.compare(quantized, lite, x=images))


# Growth: what takes a model of many layers


def quantization(network: str) -> Call:
    """`kerasq.quantize_model`."""
    import kerasq

    model = _model(_keras(), network)
    return _seconds(lambda: kerasq.quantize_model(model))


def comparison(network: str) -> Call:
    """`kerasq.compare` on 64 samples."""
    import kerasq

    quantized = _quantized(_model(_keras(), network))
    lite = kerasq.export_tflite(quantized)
    return _seconds(lambda: kerasq.compare(quantized, lite, x=_images(64)))


def sensitivity(network: str) -> Call:
    """`kerasq.sensitivity` on 64 samples, one candidate besides float."""
    import kerasq

    model = _model(_keras(), network)
    data = _images(64)
    return _seconds(lambda: kerasq.sensitivity(model, data, candidates=("w8a8", "float")))
