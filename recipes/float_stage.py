"""The flags and the first stage every recipe shares: a data set and a trained float model."""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import keras
from absl import flags

from recipes import datasets, models, results, training

_DATASET = flags.DEFINE_enum("dataset", "digits", list(datasets.DATASETS), "Data set.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Where --dataset=image_folder (train/<class>/*.jpg, test/<class>/*.jpg) or npz (a file with "
    "x_train, y_train, x_test, y_test) is read from.",
)
_MODEL = flags.DEFINE_enum(
    "model",
    None,
    list(models.MODELS),
    "Float network. Default: cnn for gray images, resnet8 for colour.",
)
_FLOAT_MODEL = flags.DEFINE_string(
    "float_model", None, "A trained .keras file to use instead of training --model here."
)
_FLOAT_EPOCHS = flags.DEFINE_integer(
    "float_epochs", None, "Epochs of float training. Default: 20 for digits, else 12.", 1
)
_FLOAT_LEARNING_RATE = flags.DEFINE_float(
    "float_learning_rate", 0.1, "First learning rate of float training (SGD, cosine to 0).", 0.0
)
_FLOAT_MOMENTUM = flags.DEFINE_float("float_momentum", 0.9, "Momentum of float training.", 0.0, 1.0)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images a training step. Default: 32 for digits, else 128.", 1
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, order and augmentation.", 0)
_OUT = flags.DEFINE_string("out", None, "Folder of the artifacts. Default: runs/<dataset>_<model>.")

_WEIGHT_DECAY = 2e-4  # the gradient of MLPerf Tiny's L2(1e-4) on the kernels


@dataclasses.dataclass(frozen=True, kw_only=True)
class FloatStage:
    """What the shared flags say.

    Attributes:
        dataset: name of the data set.
        data_dir: where it is read from, if it is read from a path.
        model: name of the network.
        float_model: a trained file used instead of training.
        fit: how the network is trained.
        out: folder of the artifacts.
    """

    dataset: str
    data_dir: str | None
    model: str
    float_model: str | None
    fit: training.FitSettings
    out: Path

    @classmethod
    def from_flags(cls) -> "FloatStage":
        """Reads the flags and fills in the defaults that depend on the data set."""
        digits = _DATASET.value == "digits"
        gray = _DATASET.value in ("digits", "mnist", "fashion_mnist")
        model = _MODEL.value or ("cnn" if gray else "resnet8")
        return cls(
            dataset=_DATASET.value,
            data_dir=_DATA_DIR.value,
            model=model,
            float_model=_FLOAT_MODEL.value,
            fit=training.FitSettings(
                epochs=_FLOAT_EPOCHS.value or (20 if digits else 12),
                batch_size=_BATCH_SIZE.value or (32 if digits else 128),
                learning_rate=_FLOAT_LEARNING_RATE.value,
                momentum=_FLOAT_MOMENTUM.value,
                weight_decay=_WEIGHT_DECAY,
                augment=not gray,
                seed=_SEED.value,
            ),
            out=Path(_OUT.value or f"runs/{_DATASET.value}_{_label(model, _FLOAT_MODEL.value)}"),
        )

    @functools.cached_property
    def data(self) -> datasets.Dataset:
        """The data set, loaded when a stage first needs it."""
        return datasets.load(self.dataset, self.data_dir)

    def settings(self) -> dict[str, Any]:
        """What the float model depends on, by flag name, as JSON values."""
        settings = {"dataset": self.dataset, "data_dir": self.data_dir}
        if self.float_model:
            return settings | {
                "float_model": self.float_model,
                "float_model_sha256": _digest(self.float_model),
            }
        return settings | {
            "model": self.model,
            "float_epochs": self.fit.epochs,
            "float_learning_rate": self.fit.learning_rate,
            "float_momentum": self.fit.momentum,
            "batch_size": self.fit.batch_size,
            "seed": self.fit.seed,
        }


def run(stage: FloatStage, directory: results.RunDirectory) -> results.Figures:
    """Trains (or copies) the float model to float.keras; its accuracy and history as figures."""

    def work() -> results.Figures:
        history: dict[str, list[float]] = {}
        if stage.float_model:
            model = load_float_model(stage.float_model, stage.data)
        else:
            keras.utils.set_random_seed(stage.fit.seed)
            model = models.build(stage.model, stage.data.image_shape, stage.data.classes)
            model.summary()
            history = training.fit(model, stage.data, stage.fit, directory.backup_dir("float"))
        outputs = training.predict(model, stage.data.x_test)
        results.save_model(model, directory.path / "float.keras")
        return {"accuracy": training.accuracy(outputs, stage.data.y_test), "history": history}

    return directory.stage("float", stage.settings(), ("float.keras",), work)


def load_float_model(path: str, data: datasets.Dataset) -> keras.Model:
    """Loads a .keras file and checks that it takes the data set's images to its classes."""
    model = keras.models.load_model(path)
    taken, given = model.input_shape[1:], data.image_shape
    if taken != given or model.output_shape[-1] != data.classes:
        raise ValueError(
            "`float_model` must take the images of the data set to its classes. Received: a model "
            f"from {taken} to {model.output_shape[-1]} classes for images of {given} in "
            f"{data.classes} classes."
        )
    return model


def _label(model: str, float_model: str | None) -> str:
    """What the default folder calls the network."""
    return Path(float_model).stem if float_model else model


def _digest(path: str) -> str:
    """The first digits of a model file's SHA-256, so that a retrained file is not mistaken."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"`float_model` must be a .keras file. Received: float_model={path!r}, which does not "
            "exist. Leave the flag out to train a model here."
        )
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
