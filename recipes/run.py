"""A run of a recipe: the flags that all recipes share, its data, its folder and its figures."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

import kerasq
from recipes import datasets, evaluation, models, results, team, training

_DATASET = flags.DEFINE_enum("dataset", "digits", list(datasets.DATASETS), "Data set.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Where --dataset=image_folder (train/<class>/*.jpg or png, test/<class>/...; classes are "
    "numbered in the order of their names) or npz (a file with x_train, y_train, x_test, y_test) "
    "is read from. Networks are fed pixels of 0 to 255.",
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Height and width that images are resized to. Default: as they are.", 1
)
_MODEL = flags.DEFINE_string(
    "model",
    None,
    f"Network: one of {', '.join(models.MODELS)}, a name in keras.applications (trained from "
    "scratch, as those are), or the path of a trained .keras file. Default: cnn for digits, mnist "
    "and fashion_mnist, else resnet8.",
)
_FLOAT_EPOCHS = flags.DEFINE_integer(
    "float_epochs", None, "Epochs of float training. Default: 20 for digits, else 12.", 1
)
_FLOAT_LEARNING_RATE = flags.DEFINE_float(
    "float_learning_rate", 0.1, "First learning rate of float training (SGD, cosine to 0).", 0.0
)
_FLOAT_MOMENTUM = flags.DEFINE_float("float_momentum", 0.9, "Momentum of float training.", 0.0, 1.0)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "Images a training step, over all replicas. Default: 32 for digits, else 128.",
    1,
)
_AUGMENT = flags.DEFINE_bool(
    "augment",
    None,
    "Flip images left to right and shift them, at random, in training. Default: if in colour.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, order and augmentation.", 0)
_DETERMINISTIC = flags.DEFINE_bool(
    "deterministic",
    True,
    "Two runs of a seed give the same numbers on the same machine; --nodeterministic for operators "
    "that have no deterministic kernel on a GPU.",
)
_OUT = flags.DEFINE_string(
    "out", None, "Folder of the artifacts. Default: runs/<recipe>_<dataset>_<model>."
)
_RESUME = flags.DEFINE_bool(
    "resume",
    True,
    "Continue the run in --out from its last finished epoch; --noresume starts over.",
)
_STRATEGY = flags.DEFINE_enum(
    "strategy",
    "none",
    list(team.STRATEGIES),
    "What trains together: mirrored, the GPUs of this machine; multi_worker, the processes that "
    "TF_CONFIG names, which must share --out.",
)
_REPLICAS = flags.DEFINE_integer(
    "replicas", 1, "Logical CPU devices that --strategy=mirrored trains on, if more than one.", 1
)
FLOAT_ONLY = flags.DEFINE_bool("float_only", False, "Stop after the float stage.")
_CALIBRATION_STEPS = flags.DEFINE_integer(
    "calibration_steps", 20, "Training batches (not augmented) to calibrate on.", 1
)
_NUM_THREADS = flags.DEFINE_integer("num_threads", 1, "Threads latency is measured with.", 1)

_WEIGHT_DECAY = 2e-4  # the gradient of MLPerf Tiny's L2(1e-4) on the kernels
_GRAY = ("digits", "mnist", "fashion_mnist")  # small images, for which "cnn" is enough


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What the shared flags say, and what the stages found so far.

    Attributes:
        recipe: what was run.
        data_settings: the arguments of `datasets.load`, by flag name.
        model: name of the network, or path of a trained file.
        widen: factor of the channels.
        fit: how the float network is trained.
        calibration_steps: batches that `calibration_batches` gives.
        num_threads: threads that latency is measured with.
        directory: folder of the artifacts.
        settings: what the newest model depends on, by flag name, as JSON values.
        figures: of each stage, by its name.
    """

    recipe: str
    data_settings: dict[str, Any]
    model: str
    widen: float
    fit: training.FitSettings
    calibration_steps: int
    num_threads: int
    directory: results.RunDirectory
    settings: dict[str, Any]
    figures: dict[str, results.Figures] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_flags(cls, recipe: str, widen: float = 1.0) -> "Run":
        """Reads the flags and fills in the defaults that depend on the data set."""
        logging.set_verbosity(logging.ERROR)  # TensorFlow's remarks on its own tracing and saving
        if _DETERMINISTIC.value:
            tf.config.experimental.enable_op_determinism()
        # First of all: devices are cut up, and clusters joined, before TensorFlow computes.
        strategy = team.strategy(_STRATEGY.value, _REPLICAS.value)
        if _STRATEGY.value != "none":
            replicas = strategy.num_replicas_in_sync
            print(f"--strategy={_STRATEGY.value}: replicas={replicas}", flush=True)
        model = _MODEL.value or ("cnn" if _DATASET.value in _GRAY else "resnet8")
        if widen != 1.0 and model.endswith(".keras"):
            raise ValueError(
                "`widen` must be 1 where `model` is a file. "
                f"Received: widen={widen}, model={model!r}. Give the network by its name."
            )
        out = _OUT.value or f"runs/{recipe}_{_DATASET.value}_{Path(model).stem}"
        return cls(
            recipe=recipe,
            data_settings={
                "dataset": _DATASET.value,
                "data_dir": _DATA_DIR.value,
                "image_size": _IMAGE_SIZE.value,
            },
            model=model,
            widen=widen,
            fit=_float_fit(strategy.num_replicas_in_sync),
            calibration_steps=_CALIBRATION_STEPS.value,
            num_threads=_NUM_THREADS.value,
            directory=results.RunDirectory(out, strategy, _RESUME.value),
            settings={"recipe": recipe},
        )

    @property
    def strategy(self) -> tf.distribute.Strategy:
        """Who trains together."""
        return self.directory.strategy

    @property
    def is_chief(self) -> bool:
        """Whether this process writes files and does what is not trained."""
        return self.directory.is_chief

    @functools.cached_property
    def data(self) -> datasets.Dataset:
        """The data set, loaded when a stage first needs it: one that is finished does not."""
        return datasets.load(*self.data_settings.values())

    def path(self, name: str) -> Path:
        """The path of an artifact."""
        return self.directory.path / name

    def load(self, name: str) -> keras.Model:
        """A model among the artifacts."""
        return keras.models.load_model(self.path(name))

    def calibration_batches(self) -> tf.data.Dataset:
        """Training images as they are, in batches."""
        plain = dataclasses.replace(self.fit, augment=False)
        batches, _ = training.training_batches(self.data.parts[0], plain)
        return batches.take(self.calibration_steps)

    def score(self, model: keras.Model) -> tuple[float, np.ndarray]:
        """The accuracy on the test images, and the outputs."""
        outputs = training.predict(model, self.data.test.x)
        return evaluation.accuracy(outputs, self.data.test), outputs

    @functools.cached_property
    def float_outputs(self) -> np.ndarray:
        """What float.keras makes of the test images."""
        return training.predict(self.load("float.keras"), self.data.test.x)

    @functools.cached_property
    def float_tflite(self) -> kerasq.TFLiteModel:
        """float.keras as the plain converter has it."""
        return kerasq.export_float_tflite(self.load("float.keras"))

    def stage(
        self,
        name: str,
        artifacts: tuple[str, ...],
        work: Callable[[], results.Figures],
        together: bool = False,
        settings: dict[str, Any] | None = None,
    ) -> results.Figures:
        """Does a part of the run, or takes its figures from before: see `RunDirectory.stage`.

        It depends on `settings`; by default on those of the run.
        """
        depends = self.settings if settings is None else settings
        found = self.directory.stage(name, depends, artifacts, work, together)
        self.figures[name] = found
        return found


def _float_fit(replicas: int) -> training.FitSettings:
    """How the flags want the float network to be trained."""
    is_small = _DATASET.value == "digits"
    batch_size = _BATCH_SIZE.value or (32 if is_small else 128)
    if batch_size % replicas:
        raise ValueError(
            "`batch_size` must be a multiple of the number of replicas. Received: batch_size="
            f"{batch_size}, {replicas} replicas. Take {replicas} times a number."
        )
    return training.FitSettings(
        epochs=_FLOAT_EPOCHS.value or (20 if is_small else 12),
        batch_size=batch_size,
        learning_rate=_FLOAT_LEARNING_RATE.value,
        momentum=_FLOAT_MOMENTUM.value,
        weight_decay=_WEIGHT_DECAY,
        augment=_AUGMENT.value,
        seed=_SEED.value,
    )


def start(main: Callable[[], None]) -> None:
    """Runs a recipe as a script; what the user can mend is said without a traceback."""

    def guarded(_: list[str]) -> None:
        try:
            main()
        except (ValueError, OSError) as error:
            sys.exit(f"\n{error}")
        except ImportError as error:
            sys.exit(f"\n{error}. Recipes need more packages: pip install '.[recipes]'")
        except tf.errors.UnavailableError as error:
            # One of a cluster alone cannot go on: its collective operations wait for the others.
            again = "Start all workers again with the same command, to go on from the last epoch."
            sys.exit(f"\n{error.message:.400}\n\nAnother worker has died. {again}")
        except KeyboardInterrupt:
            sys.exit("\nInterrupted. The same command goes on from the last finished epoch.")

    app.run(guarded)
