"""Accuracy of classifiers that are no CNN: recurrent ones on digits by rows, a vision transformer.

A Markdown table: the float network, int8 calibrated, int8 fine-tuned, and its file, test images in
percent, mean and standard deviation over seeds.

Example: python -m tools.classifiers --networks=GRU,LSTM
         python -m tools.classifiers --networks=ViT --dataset=image_folder --data_dir=cifar10
"""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from absl import app, flags

import kerasq
from kerasq.support import tables
from recipes import datasets, models, training

L = keras.layers
_UNITS = 24
_BATCH = 256  # images a batch, where nothing is trained


def _by_rows(layer: type[keras.Layer]) -> Callable[[models.Shape, int], keras.Model]:
    """A recurrent network on the rows of grey images."""

    def make(shape: models.Shape, classes: int) -> keras.Model:
        image = keras.Input(shape, name="image")
        rows = L.Reshape(shape[:2])(L.Rescaling(1.0 / 255.0)(image))
        return keras.Model(image, L.Dense(classes, activation="softmax")(layer(_UNITS)(rows)))

    return make


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A network, and how it is trained.

    Attributes:
        make: builds it, of the shape of an image and the number of classes.
        dataset: what it is trained on, unless a flag says otherwise.
        epochs: of float training.
        finetune_epochs: of fine-tuning.
        batch_size: images a step.
        rate: Adam's highest learning rate; of fine-tuning a tenth.
    """

    make: Callable[[models.Shape, int], keras.Model]
    dataset: str
    epochs: int
    finetune_epochs: int
    batch_size: int
    rate: float


_GRU = Task(
    make=_by_rows(L.GRU),
    dataset="digits",
    epochs=30,
    finetune_epochs=5,
    batch_size=32,
    rate=5e-3,
)
TASKS = {
    "GRU": _GRU,
    "LSTM": dataclasses.replace(_GRU, make=_by_rows(L.LSTM)),
    "ViT": Task(
        make=models.vit,
        dataset="cifar10",
        epochs=60,
        finetune_epochs=5,
        batch_size=128,
        rate=1e-3,
    ),
}

_NETWORKS = flags.DEFINE_list("networks", [*TASKS], "Rows of the table.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Networks of each kind.", lower_bound=1)
_DATASET = flags.DEFINE_string("dataset", None, "Another data set: see recipes/datasets.py.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of image_folder, file of npz.")
_EPOCHS = flags.DEFINE_integer("epochs", None, "Epochs of float training.", lower_bound=1)
_TUNING = flags.DEFINE_integer("finetune_epochs", None, "Epochs of fine-tuning.", lower_bound=1)
_IMAGES = flags.DEFINE_integer(
    "images", None, "So many of either kind, for a trial.", lower_bound=1
)


def _train(
    model: keras.Model, samples: datasets.Samples, task: Task, epochs: int, rate: float, seed: int
) -> None:
    settings = training.FitSettings(
        epochs=epochs, batch_size=task.batch_size, learning_rate=rate, momentum=0.0, seed=seed
    )
    batches, steps = training.training_batches(samples, settings)
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    model.fit(batches, steps_per_epoch=steps, epochs=epochs, verbose=0)


def _accuracy(predict: Callable[[np.ndarray], np.ndarray], samples: datasets.Samples) -> float:
    """Of what predicts a batch, in percent."""
    starts = range(0, len(samples.x), _BATCH)
    found = [np.argmax(predict(samples.x[i : i + _BATCH].astype("float32")), -1) for i in starts]
    return 100.0 * float(np.mean(np.concatenate(found) == samples.y))


def _infer(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    # Not traced, which for the steps of a recurrent network would take longer.
    return lambda x: np.asarray(model(x, training=False))


def measure(task: Task, data: datasets.Dataset, seed: int) -> list[float]:
    """Accuracies of one network, in percent: float, calibrated, fine-tuned, and its file's."""
    keras.utils.set_random_seed(seed)
    model = task.make(data.image_shape, data.classes)
    _train(model, data.train, task, _EPOCHS.value or task.epochs, task.rate, seed)
    q = kerasq.quantize_model(model)
    # Files may have one class after the other.
    chosen = np.random.default_rng(seed).permutation(len(data.train.x))[:_BATCH]
    kerasq.calibrate(q, data.train.x[chosen].astype("float32"))
    calibrated = _accuracy(_infer(q), data.test)
    _train(q, data.train, task, _TUNING.value or task.finetune_epochs, task.rate / 10.0, seed)
    lite = kerasq.export_tflite(q)
    found = [_accuracy(f, data.test) for f in (_infer(model), _infer(q), lite.predict)]
    return [found[0], calibrated, *found[1:]]


def load(task: Task) -> datasets.Dataset:
    """The images of a task."""
    data = datasets.load(_DATASET.value or task.dataset, _DATA_DIR.value)
    if _IMAGES.value is None:
        return data
    return dataclasses.replace(data, train=_some(data.train), test=_some(data.test))


def _some(samples: datasets.Samples) -> datasets.Samples:
    """So many as are asked for, of any class: files may have one class after the other."""
    chosen = np.random.default_rng(0).permutation(len(samples.x))[: _IMAGES.value]
    return datasets.Samples(samples.x[chosen], samples.y[chosen])


def main(argv: list[str]) -> None:
    """Prints the table, after each row."""
    if len(argv) > 1:
        raise app.UsageError(f"There are no arguments but flags. Received: {argv[1:]}.")
    if unknown := sorted({*_NETWORKS.value} - {*TASKS}):
        raise app.UsageError(f"--networks must name rows of {[*TASKS]}. Received: {unknown}.")
    rows = [["network", "float", "calibrated", "fine-tuned", "its file"]]
    for name in _NETWORKS.value:
        task = TASKS[name]
        data = load(task)
        figures = np.array([measure(task, data, seed) for seed in range(_SEEDS.value)])
        cells = zip(figures.mean(0), figures.std(0), strict=True)
        rows.append([name, *(f"{mean:.1f} ± {spread:.1f}" for mean, spread in cells)])
        print(tables.markdown(rows), flush=True)


if __name__ == "__main__":
    app.run(main)
