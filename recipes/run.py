"""A run of a recipe: the flags that all recipes share, and the stages that they are made of."""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags, logging

import kerasq
from recipes import datasets, evaluation, models, results, training
from recipes.team import STRATEGIES, Team

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
    list(STRATEGIES),
    "What trains together: mirrored, the GPUs of this machine; multi_worker, the processes that "
    "TF_CONFIG names, which must share --out.",
)
_REPLICAS = flags.DEFINE_integer(
    "replicas", 1, "Logical CPU devices that --strategy=mirrored trains on, if more than one.", 1
)
_FLOAT_ONLY = flags.DEFINE_bool("float_only", False, "Stop after the float stage.")
_CALIBRATION_STEPS = flags.DEFINE_integer(
    "calibration_steps", 20, "Training batches (not augmented) to calibrate on.", 1
)
_NUM_THREADS = flags.DEFINE_integer("num_threads", 1, "Threads latency is measured with.", 1)

_WEIGHT_DECAY = 2e-4  # the gradient of MLPerf Tiny's L2(1e-4) on the kernels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What the shared flags say, and what the stages found so far.

    Attributes:
        recipe: what was run.
        data_settings: what the data set depends on, by flag name.
        model: name of the network, or path of a trained file.
        widen: factor of the channels.
        fit: how the float network is trained.
        directory: folder of the artifacts.
        settings: what the newest model depends on, by flag name, as JSON values.
        float_settings: what float.keras depends on.
        figures: of each stage, by its name.
    """

    recipe: str
    data_settings: dict[str, Any]
    model: str
    widen: float
    fit: training.FitSettings
    directory: results.RunDirectory
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    float_settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    figures: dict[str, results.Figures] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_flags(cls, recipe: str, widen: float = 1.0) -> "Run":
        """Reads the flags and fills in the defaults that depend on the data set."""
        logging.set_verbosity(logging.ERROR)  # TensorFlow's remarks on its own tracing and saving
        if _DETERMINISTIC.value:
            tf.config.experimental.enable_op_determinism()
        team = Team(_STRATEGY.value, _REPLICAS.value)
        digits = _DATASET.value == "digits"
        small = _DATASET.value in ("digits", "mnist", "fashion_mnist")
        model = _MODEL.value or ("cnn" if small else "resnet8")
        if widen != 1.0 and model.endswith(".keras"):
            raise ValueError(
                "`widen` must be 1 where `model` is a file. "
                f"Received: widen={widen}, model={model!r}. Give the network by its name."
            )
        batch_size = _BATCH_SIZE.value or (32 if digits else 128)
        if batch_size % team.replicas:
            raise ValueError(
                "`batch_size` must be a multiple of the number of replicas. Received: batch_size="
                f"{batch_size}, {team.replicas} replicas. Take {team.replicas} times a number."
            )
        if team.strategy is not None:
            print(f"--strategy={_STRATEGY.value}: replicas={team.replicas}", flush=True)
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
            fit=training.FitSettings(
                epochs=_FLOAT_EPOCHS.value or (20 if digits else 12),
                batch_size=batch_size,
                learning_rate=_FLOAT_LEARNING_RATE.value,
                momentum=_FLOAT_MOMENTUM.value,
                weight_decay=_WEIGHT_DECAY,
                augment=_AUGMENT.value,
                seed=_SEED.value,
            ),
            directory=results.RunDirectory(out, team, _RESUME.value),
            settings={"recipe": recipe},
        )

    @property
    def team(self) -> Team:
        """Who trains together."""
        return self.directory.team

    @functools.cached_property
    def data(self) -> datasets.Dataset:
        """The data set, loaded when a stage first needs it."""
        found = self.data_settings
        return datasets.load(found["dataset"], found["data_dir"], found["image_size"])

    def path(self, name: str) -> Path:
        """The path of an artifact."""
        return self.directory.path / name

    def load(self, name: str) -> keras.Model:
        """A model among the artifacts."""
        return keras.models.load_model(self.path(name))

    @property
    def num_threads(self) -> int:
        """Threads that latency is measured with."""
        return _NUM_THREADS.value

    @property
    def calibration_settings(self) -> dict[str, int]:
        """What `calibration_batches` depend on, by flag name."""
        return {"calibration_steps": _CALIBRATION_STEPS.value}

    def calibration_batches(self) -> tf.data.Dataset:
        """Training images as they are, in batches."""
        plain = dataclasses.replace(self.fit, augment=False)
        batches, _ = training.training_batches(*self.data.parts[0], plain)
        return batches.take(_CALIBRATION_STEPS.value)

    def score(self, model: keras.Model) -> tuple[float, Any]:
        """The accuracy on the test images, and the outputs."""
        outputs = training.predict(model, self.data.x_test)
        return training.accuracy(outputs, self.data.x_test, self.data.y_test), outputs

    @functools.cached_property
    def float_outputs(self) -> np.ndarray:
        """What float.keras makes of the test images."""
        return training.predict(self.load("float.keras"), self.data.x_test)

    @functools.cached_property
    def float_held_out(self) -> np.ndarray:
        """What float.keras makes of the images held out."""
        return training.predict(self.load("float.keras"), self.data.parts[1].x)

    @functools.cached_property
    def float_tflite(self) -> bytes:
        """float.keras as the plain converter has it."""
        return evaluation.convert_float(self.load("float.keras"))

    def stage(
        self,
        name: str,
        artifacts: tuple[str, ...],
        work: Callable,
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

    # The stages.

    def train_float(self, trial: Callable[[keras.Model], Any]) -> None:
        """float.keras: the network, trained, or a trained file, copied.

        Args:
            trial: called on the network first, so that what cannot be quantized is known before
                it is trained.
        """
        is_file = self.model.endswith(".keras")
        self.settings.update(self.data_settings, model=self.model, widen=self.widen)
        if digest := datasets.digest(self.data_settings["dataset"], self.data_settings["data_dir"]):
            self.settings["data_sha256"] = digest
        self.settings.update(batch_size=self.fit.batch_size, seed=self.fit.seed)
        if is_file:
            self.settings["model_sha256"] = _digest(self.model)
        else:
            self.settings.update(
                float_epochs=self.fit.epochs,
                float_learning_rate=self.fit.learning_rate,
                float_momentum=self.fit.momentum,
                augment=self.fit.augment,
            )

        def make() -> keras.Model:
            if is_file:
                model = load_float_model(self.model, self.data)
            else:
                shape, classes = self.data.image_shape, self.data.classes
                model = models.build(self.model, shape, classes, self.widen)
                if self.team.is_chief:
                    model.summary()
            if not _FLOAT_ONLY.value:
                trial(model)
            return model

        self.float_settings.update(self.settings)
        fit = dataclasses.replace(self.fit, epochs=0) if is_file else self.fit
        self._train("float", make, "float.keras", fit)
        if _FLOAT_ONLY.value:
            self.finish()
            sys.exit()

    def finetune(
        self,
        fit: training.FitSettings,
        *,
        float_too: bool = False,
        prepare: Callable[[keras.Model, keras.Model], keras.Model] | None = None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        best_from: int = 0,
        **settings: Any,
    ) -> None:
        """finetuned.keras: the calibrated model after some epochs, at its best one.

        Args:
            fit: how it is trained.
            float_too: whether the float model is trained for as long, in the same way, to compare.
            prepare: makes of the calibrated model and the float one what is trained in its place.
            callbacks: of the quantized model's training.
            best_from: the first epoch that may be the best one.
            settings: what the result depends on besides `fit`, by flag name.
        """
        tuned = dataclasses.asdict(fit)
        self.settings.update(tuned, **settings)

        def make() -> keras.Model:
            model = self.load("calibrated.keras")
            return prepare(model, self.load("float.keras")) if prepare else model

        self._train("finetune", make, "finetuned.keras", fit, callbacks, best_from)
        if float_too:
            self._train(
                "float_finetune",
                functools.partial(self.load, "float.keras"),
                "float_finetuned.keras",
                dataclasses.replace(fit, restarts=1),
                settings=self.float_settings | tuned | {"restarts": 1},
            )

    def _train(
        self,
        name: str,
        make: Callable[[], keras.Model],
        target: str,
        fit: training.FitSettings,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        best_from: int = 0,
        settings: dict[str, Any] | None = None,
    ) -> None:
        """Trains what `make` makes, saves it, and judges the file."""

        def work() -> results.Figures:
            keras.utils.set_random_seed(fit.seed)
            with self.team.scope():
                model = make()
            found: results.Figures = {"history": {}, "best_epoch": 0}
            if fit.epochs:
                found["history"], found["best_epoch"], found["seconds"] = training.fit(
                    model,
                    self.data,
                    fit,
                    self.directory.backup_dir(name),
                    callbacks=[*callbacks, *self._log(name)],
                    best_from=best_from,
                    log_dir=self.path("logs") / name,
                    team=self.team,
                )
            if self.team.is_chief:
                results.save_model(getattr(model, "student", model), self.path(target))
                found["accuracy"], outputs = self.score(self.load(target))
                if outputs.ndim == 2:
                    counts = np.bincount(self.data.y_test)
                    found["majority"] = float(counts.max() / counts.sum())
            return found

        self.stage(name, (target,), work, together=True, settings=settings)

    def _log(self, name: str) -> list[keras.callbacks.Callback]:
        is_quantized = name == "finetune" and self.team.is_chief
        return [kerasq.LogRanges(self.path("logs") / name)] if is_quantized else []

    def export(self, source: str = "finetuned.keras") -> None:
        """model.tflite, compared with its simulation and, for size and speed, with float.tflite."""
        self.stage("export", ("model.tflite",), lambda: evaluation.export(self, source))
        self.settings["num_threads"] = self.num_threads
        self.stage("latency", ("float.tflite",), lambda: evaluation.latency(self))

    def finish(self, **more: Any) -> None:
        """results.json, curves.png, and a table of the figures."""
        if not self.team.is_chief:
            return
        summary = {"recipe": self.recipe, **evaluation.summarize(self.figures), **more}
        summary["replicas"] = self.team.replicas
        summary["settings"] = self.settings
        results.write_json(self.path("results.json"), summary)
        curves = {name: values.get("history", {}) for name, values in self.figures.items()}
        results.plot_curves(self.path("curves.png"), curves)
        print(f"\n{evaluation.report(summary)}\nWritten to {self.directory.path}/")


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
            again = "Start all workers again with the same command, to go on from the last epoch."
            sys.exit(f"\n{error.message:.400}\n\nAnother worker has died. {again}")
        except KeyboardInterrupt:
            sys.exit("\nInterrupted. The same command goes on from the last finished epoch.")

    app.run(guarded)


def load_float_model(path: str, data: datasets.Dataset) -> keras.Model:
    """Loads a .keras file and checks that it takes the data set's images to its classes."""
    model = keras.models.load_model(path)
    taken, given = model.input_shape[1:], data.image_shape
    outputs, named = model.output_shape[-1], data.name != "npz"
    # An archive may have no image of the last classes.
    fits = outputs == data.classes if named else outputs >= data.classes
    if taken != given or not (fits or training.is_autoencoder(model)):
        raise ValueError(
            "`model` must take the images of the data set to its classes. Received: a model "
            f"from {taken} to {outputs} classes for images of {given} in "
            f"{data.classes} classes. Choose another --dataset or --image_size; build a model for "
            "any size anew for one, with keras.Input of that shape."
        )
    return model


def _digest(path: str) -> str:
    """The first digits of a model file's SHA-256, so that a retrained file is not mistaken."""
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"`model` must be a .keras file, or a name. Received: model={path!r}, which does not "
            "exist. Leave the flag out to train a model here."
        )
    return datasets.file_digest(path)
