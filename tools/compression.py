"""What zeros and clusters cost and save at int8, beside tfmot's. Prints a table.

Every row starts from one float network, for each seed. kerasq prunes while it fine-tunes, and keeps
the clusters of networks that k-means made here. tfmot's sparsity- and cluster-preserving training
(PQAT, CQAT, PCQAT) starts from the same clusters, and from the zeros that kerasq's rows have found
with all their weights, so that its rows are trained twice as long. What is finished is not run
again, and an interrupted run goes on.

With --dead_channels it trains nothing, but says what files gain where channels are 0 as a whole.

Example: python -m tools.compression --data_dir=cifar10 --out=runs/compression --jobs=2
         python -m tools.compression --dead_channels=0.3 --model=mobilenet_v1
"""

import dataclasses
import json
import os
import pathlib
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
from absl import app, flags

import kerasq
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.support import progress, tables
from kerasq.support.files import write_whole
from kerasq.training.distill import ends_in_softmax
from recipes import datasets, training
from tools import processes
from tools.keras2 import in_keras2

_ROOT = pathlib.Path(__file__).resolve().parents[1]

_DATASET = flags.DEFINE_string("dataset", "image_folder", "Images, by name: see recipes.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where they are: needed for training.")
_OUT = flags.DEFINE_string("out", None, "Folder of the runs: needed for training.")
_MODEL = flags.DEFINE_string("model", str(_ROOT / "docs/resnet8.keras"), "A trained .keras file.")
_DEAD = flags.DEFINE_float(
    "dead_channels",
    None,
    "Set this share of each layer's channels to 0 and compare files with and without them. Of a "
    "quantized --model 0: those that are. --model=mobilenet_v1 has random weights.",
    lower_bound=0.0,
    upper_bound=0.9,
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, one run each.")
_EPOCHS = flags.DEFINE_integer("epochs", 12, "Epochs of each row.", 2)
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time; the cores are shared among them.", 1)
_ONE = flags.DEFINE_string("one", None, "Run this row;seed of tfmot only, in this process.")
_BATCH_SIZE, _RATE, _MOMENTUM = 128, 0.01, 0.9
_ITERATIONS = 50  # Of k-means, at most.
# What `contents` finds in a file, and what the table calls it.
_CONTENTS = {"zeros": "zeros (%)", "codes": "codes", "bytes": "bytes", "zipped": "zipped"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What is run.

    Attributes:
        flags: of recipes/qat.py; None for tfmot's training.
        sparse: the row whose zeros the float network gets first; "" for none.
        clusters: how many values each of its kernels gets then, 0 included where it has zeros; 0:
            as they are.
    """

    flags: tuple[str, ...] | None = None
    sparse: str = ""
    clusters: int = 0


_BASE = "int8"
ROWS: dict[str, Row] = {
    _BASE: Row(flags=("--float_finetune",)),
    "50 % sparse": Row(flags=("--prune=0.5",)),
    "75 % sparse": Row(flags=("--prune=0.75",)),
    "90 % sparse": Row(flags=("--prune=0.9",)),
    "2:4": Row(flags=("--prune=0.5", "--pattern=2:4")),
    "16 clusters": Row(flags=("--keep_clusters",), clusters=16),
    "8 clusters": Row(flags=("--keep_clusters",), clusters=8),
    "75 % sparse, 16 clusters": Row(
        flags=("--keep_zeros", "--keep_clusters"), sparse="75 % sparse", clusters=16
    ),
    "tfmot, 50 % sparse": Row(sparse="50 % sparse"),
    "tfmot, 75 % sparse": Row(sparse="75 % sparse"),
    "tfmot, 90 % sparse": Row(sparse="90 % sparse"),
    "tfmot, 16 clusters": Row(clusters=16),
    "tfmot, 8 clusters": Row(clusters=8),
    "tfmot, 75 % sparse, 16 clusters": Row(sparse="75 % sparse", clusters=16),
}
_ROWS = flags.DEFINE_multi_enum("row", list(ROWS), list(ROWS), "Rows to run, a flag for each.")


def _folder(name: str, seed: str) -> pathlib.Path:
    return pathlib.Path(_OUT.value) / "".join(c if c.isalnum() else "_" for c in name) / seed


def _kernels(model: keras.Model) -> Iterator[keras.Variable]:
    """The kernels of a float network's convolutions and dense layers."""
    for layer in model.layers:
        yield from (x for x in layer.weights if x.name == "kernel")


def k_means(kernel: np.ndarray, count: int) -> np.ndarray:
    """The kernel with at most `count` values, 0 one of them where it has zeros.

    Lloyd's algorithm, from values at equal distances (Han et al. 2016, section 3.2).
    """
    weights = kernel[kernel != 0.0]
    centroids = np.linspace(weights.min(), weights.max(), count - (weights.size < kernel.size))
    for _ in range(_ITERATIONS):
        ids = np.abs(weights[:, None] - centroids).argmin(axis=1)
        sums, counts = (
            np.bincount(ids, weights, len(centroids)),
            np.bincount(ids, None, len(centroids)),
        )
        moved = np.where(counts, sums / np.maximum(counts, 1), centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    found = kernel.copy()
    found[kernel != 0.0] = centroids[np.abs(weights[:, None] - centroids).argmin(axis=1)]
    return found


def with_weights_of(model: keras.Model, quantized: keras.Model) -> None:
    """Gives a float network the weights of one that was quantized from it and trained."""
    for wrapper in quantized.layers:
        if isinstance(wrapper, KernelWrapper):
            model.get_layer(wrapper.source).set_weights(wrapper.layer.get_weights())
            if wrapper.batch_norm is not None:
                norm = model.get_layer(wrapper.batch_norm.name)
                norm.set_weights(wrapper.batch_norm.get_weights())


def start(row: Row, seed: str) -> str:
    """The file of the float network that a row starts from; made where there is none."""
    if not row.sparse and not row.clusters:
        return _MODEL.value
    path = _folder(f"start {row.sparse} {row.clusters}", seed).with_suffix(".keras")
    if not path.exists():
        model = keras.models.load_model(_MODEL.value)
        if row.sparse:
            trained = _folder(row.sparse, seed) / "finetuned.keras"
            with_weights_of(model, keras.models.load_model(trained))
        for kernel in _kernels(model) if row.clusters else ():
            kernel.assign(k_means(kernel.numpy(), row.clusters))
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
    return str(path)


def _quantized_by_tfmot(model: Any, row: Row) -> Any:
    """A model of Keras 2 in training that preserves what the row has."""
    import tensorflow_model_optimization as tfmot

    quantization, combine = tfmot.quantization.keras, tfmot.experimental.combine
    scheme = combine.Default8BitPrunePreserveQuantizeScheme()
    if row.clusters:
        scheme = combine.Default8BitClusterPreserveQuantizeScheme(bool(row.sparse))
    with quantization.quantize_scope():
        return quantization.quantize_apply(quantization.quantize_annotate_model(model), scheme)


def one(name: str, seed: str) -> None:
    """A row of tfmot: model.tflite and results.json, as recipes write them."""
    import tensorflow as tf
    import tf_keras
    from tensorflow_model_optimization.experimental import combine

    row, out = ROWS[name], _folder(name, seed)
    keras.utils.set_random_seed(int(seed))
    data = datasets.load(_DATASET.value, _DATA_DIR.value)
    fit = training.FitSettings(
        epochs=_EPOCHS.value,
        batch_size=_BATCH_SIZE,
        learning_rate=_RATE,
        momentum=_MOMENTUM,
        seed=int(seed),
    )
    float_model = keras.models.load_model(start(row, seed))
    model = _quantized_by_tfmot(in_keras2(float_model), row)
    batches, steps = training.training_batches(data.parts[0], fit)
    rate = tf_keras.optimizers.schedules.CosineDecay(_RATE, steps * fit.epochs)
    logits = not ends_in_softmax(float_model)
    model.compile(
        tf_keras.optimizers.SGD(rate, momentum=_MOMENTUM, nesterov=True),
        tf_keras.losses.SparseCategoricalCrossentropy(from_logits=logits),
    )
    model.fit(batches, epochs=fit.epochs, steps_per_epoch=steps, verbose=0)
    if row.clusters:
        model = combine.strip_clustering_cqat(model)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    content = converter.convert()
    outputs = kerasq.TFLiteModel(content).predict(data.test.x.astype("float32"))
    found = {"tflite_accuracy": float(np.mean(outputs.argmax(-1) == data.test.y))}
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "model.tflite", content)
    write_whole(out / "results.json", json.dumps(found).encode())


def run(name: str, seed: str, threads: int) -> None:
    """Runs a row in a process of its own, its output in a log."""
    row, out = ROWS[name], _folder(name, seed)
    out.mkdir(parents=True, exist_ok=True)
    log = out.with_suffix(".log")
    if row.flags is None:
        if not (out / "results.json").exists():
            this = ["-m", "tools.compression", *sys.argv[1:], f"--one={name};{seed}"]
            processes.run(this, log, threads)
        return
    own = [*row.flags, f"--model={start(row, seed)}", f"--out={out}", f"--seed={seed}"]
    own += [f"--dataset={_DATASET.value}", f"--data_dir={_DATA_DIR.value}"]
    own += [f"--epochs={_EPOCHS.value}", f"--batch_size={_BATCH_SIZE}"]
    own += [f"--learning_rate={_RATE}", f"--momentum={_MOMENTUM}"]
    processes.run([str(_ROOT / "recipes/qat.py"), *own], log, threads)


def contents(path: pathlib.Path) -> dict[str, float]:
    """Of a .tflite: the share of zeros in int8 kernels, most codes of one, bytes, and zipped.

    Channels of zeros alone are not in it, where it is kerasq's.
    """
    lite = kerasq.TFLiteModel(path)
    kernels = [
        lite.constant(tensor.name)
        for tensor in lite.tensors
        if tensor.constant and tensor.dtype == np.int8 and len(tensor.shape) > 1
    ]
    content = lite.content
    found: dict[str, float] = {"bytes": len(content), "zipped": len(zlib.compress(content, 9))}
    if kernels:
        found["zeros"] = float(np.mean(np.concatenate([x.ravel() for x in kernels]) == 0))
        found["codes"] = max(len(np.unique(x)) for x in kernels)
    return found


def table() -> list[list[str]]:
    """Accuracies, zeros, codes and bytes, means over seeds, of what has been run."""
    rows = [["", "accuracy (%)", "least", "greatest", "over float", *_CONTENTS.values()]]
    floats = _accuracies(_BASE, "float_finetuned_accuracy") if _BASE in _ROWS.value else {}
    if floats:
        files = [contents(_folder(_BASE, seed) / "float.tflite") for seed in _SEEDS.value]
        rows.append(_cells("float", floats, floats, files))
    for name in _ROWS.value:
        files = [contents(_folder(name, seed) / "model.tflite") for seed in _SEEDS.value]
        rows.append(_cells(name, _accuracies(name, "tflite_accuracy"), floats, files))
    return rows


def _accuracies(name: str, key: str) -> dict[str, float]:
    """Per cent by seed."""
    paths = {seed: _folder(name, seed) / "results.json" for seed in _SEEDS.value}
    return {seed: 100 * json.loads(path.read_text())[key] for seed, path in paths.items()}


def _cells(
    name: str, found: dict[str, float], floats: dict[str, float], files: list[dict[str, float]]
) -> list[str]:
    """A row of the table; differences from float are by seed, which see the same batches."""
    values = [*found.values()]
    over = [found[seed] - value for seed, value in floats.items() if found is not floats]
    texts = {"zeros": lambda x: f"{100 * np.mean(x):.1f}", "codes": lambda x: f"{max(x):,}"}
    columns = {key: [file[key] for file in files if key in file] for key in _CONTENTS}
    return [
        name,
        *(f"{x:.2f}" for x in (np.mean(values), min(values), max(values))),
        f"{np.mean(over):+.2f}" if over else "",
        *(texts.get(k, lambda x: f"{np.mean(x):,.0f}")(x) if x else "" for k, x in columns.items()),
    ]


def _run_all(names: list[str], threads: int) -> None:
    """Runs rows for all seeds, several at a time."""
    runs = [(name, seed) for seed in _SEEDS.value for name in names]
    for name, seed in runs:  # Before several of them want the same file.
        start(ROWS[name], seed)
    with ThreadPoolExecutor(_JOBS.value) as pool:
        jobs = [pool.submit(run, name, seed, threads) for name, seed in runs]
        for job in progress.track(jobs, len(jobs), "run"):
            job.result()


def _loaded(name: str) -> keras.Model:
    """A float or quantized model from its file, or a MobileNetV1 that nobody has trained."""
    if name == "mobilenet_v1":
        return keras.applications.MobileNet(weights=None)
    return keras.models.load_model(name)


def kill(q: keras.Model, share: float) -> None:
    """Sets channels of a quantized model to 0, bias included, but those of the last layer.

    A share of each layer's, of the least sum of magnitudes; depthwise ones have those of what they
    read.
    """
    layers = [x for x in q.layers if isinstance(x, KernelWrapper) and x.rule.channels == 1]
    for wrapper in layers[:-1]:
        kernel = wrapper.layer.kernel.numpy()
        sizes = np.abs(kernel).sum(axis=tuple(range(kernel.ndim - 1)))
        is_kept = np.argsort(np.argsort(sizes)) >= round(share * sizes.size)
        wrapper.layer.kernel.assign(kernel * is_kept)
        norm = wrapper.batch_norm
        shifts = [wrapper.layer.bias] if norm is None else [norm.beta, norm.moving_mean]
        for shift in filter(lambda x: x is not None, shifts):
            shift.assign(shift.numpy() * is_kept)


def dead_channels(name: str, share: float) -> list[list[str]]:
    """Bytes and milliseconds of a model's file with all channels, and without dead ones."""
    q = _loaded(name)
    if not any(isinstance(x, KernelWrapper) for x in q.layers):
        q = kerasq.quantize_model(q)
        kill(q, share)
        rng = np.random.default_rng(0)
        kerasq.calibrate(q, rng.uniform(0.0, 255.0, (8, *q.inputs[0].shape[1:])))
    files = [kerasq.export_tflite(q, remove_dead_channels=x) for x in (False, True)]
    rows = [["", "weights", "bytes", "ms"]]
    for label, lite, ms in zip(
        ("all channels", "without dead ones"), files, kerasq.latency(files, rounds=100), strict=True
    ):
        kernels = (lite.constant(x.name) for x in lite.tensors if x.name.endswith("/kernel"))
        weights = sum(x.size for x in kernels)
        rows.append([label, f"{weights:,}", f"{len(lite.content):,}", f"{ms:.3f}"])
    return rows


def main(argv: list[str]) -> None:
    """Prints the table of the rows, or that of dead channels."""
    if len(argv) > 1:
        raise app.UsageError(f"Takes flags only. Received: {argv[1:]}.")
    if _DEAD.value is not None:
        print(tables.markdown(dead_channels(_MODEL.value, _DEAD.value)))
    elif not _DATA_DIR.value or not _OUT.value:
        raise app.UsageError("Set --data_dir and --out, or --dead_channels.")
    elif _ONE.value:
        one(*_ONE.value.split(";"))
    else:
        _run_rows()


def _run_rows() -> None:
    """Runs what is missing of the rows and prints the table."""
    threads = max(1, (os.cpu_count() or 1) // _JOBS.value)
    needed = {*_ROWS.value, *(ROWS[name].sparse for name in _ROWS.value)}
    # Those first that find zeros for others.
    for is_second in (False, True):
        _run_all([x for x in ROWS if x in needed and bool(ROWS[x].sparse) == is_second], threads)
    print(tables.markdown(table()))


if __name__ == "__main__":
    app.run(main)
