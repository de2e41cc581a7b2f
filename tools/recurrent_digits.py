"""Accuracy of recurrent classifiers on the digits of scikit-learn, as sequences of their 8 rows.

A Markdown table: the float network, int8 calibrated, and int8 fine-tuned, test images in percent,
mean and standard deviation over seeds; and what the file of the first seed differs in.

Example: python -m tools.recurrent_digits --seeds=3
"""

import keras
import numpy as np
from absl import app, flags

import kerasq
from kerasq.support import tables
from recipes import datasets

L = keras.layers
_SEEDS = flags.DEFINE_integer("seeds", 3, "Networks of each kind.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 40, "Epochs of float training.", lower_bound=1)
_TUNING = flags.DEFINE_integer("finetune_epochs", 5, "Epochs of fine-tuning.", lower_bound=1)
_UNITS = 24


def _network(layer: type[keras.Layer]) -> keras.Model:
    rows = keras.Input((8, 8), name="rows")
    return keras.Model(rows, L.Dense(10, activation="softmax")(layer(_UNITS)(rows)))


def _train(model: keras.Model, data: tuple, epochs: int, rate: float) -> None:
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-len(data[0]) // 32))
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(schedule), loss, metrics=["accuracy"])
    model.fit(*data, batch_size=32, epochs=epochs, verbose=0)


def _accuracy(model: keras.Model, x: np.ndarray, labels: np.ndarray) -> float:
    return 100.0 * float(np.mean(np.argmax(model(x, training=False), -1) == labels))


def measure(layer: type[keras.Layer], seed: int) -> list[float]:
    """Accuracies of one network, in percent: float, calibrated, fine-tuned, and its file's."""
    keras.utils.set_random_seed(seed)
    found = datasets.load("digits")
    train = found.train.x.reshape(-1, 8, 8) / 255.0, found.train.y
    test = found.test.x.reshape(-1, 8, 8).astype("float32") / 255.0, found.test.y
    model = _network(layer)
    _train(model, train, _EPOCHS.value, 5e-3)
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, train[0][:256].astype("float32"))
    calibrated = _accuracy(q, *test)
    _train(q, train, _TUNING.value, 5e-4)
    lite = kerasq.export_tflite(q)
    file = 100.0 * float(np.mean(np.argmax(lite.predict(test[0]), -1) == test[1]))
    return [_accuracy(model, *test), calibrated, _accuracy(q, *test), file]


def main(argv: list[str]) -> None:
    """Prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"There are no arguments but flags. Received: {argv[1:]}.")
    rows = [["layer", "float", "calibrated", "fine-tuned", "its file"]]
    for layer in (L.GRU, L.LSTM):
        figures = np.array([measure(layer, seed) for seed in range(_SEEDS.value)])
        cells = zip(figures.mean(0), figures.std(0), strict=True)
        rows.append([layer.__name__, *(f"{mean:.1f} ± {spread:.1f}" for mean, spread in cells)])
        print(tables.markdown(rows), flush=True)


if __name__ == "__main__":
    app.run(main)
