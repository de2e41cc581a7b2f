"""The stages that recipes are made of: the float network, training, export, and the report."""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras

import kerasq
from recipes import datasets, evaluation, models, report, results, training
from recipes.run import FLOAT_ONLY, Run


def train_float(run: Run, trial: Callable[[keras.Model], Any]) -> None:
    """float.keras: the network, trained, or a trained file, copied.

    Args:
        run: what its flags say.
        trial: called on the network first, so that what cannot be quantized is known before it is
            trained.
    """
    is_file, fit = run.model.endswith(".keras"), run.fit
    run.settings.update(run.data_settings, model=run.model, widen=run.widen)
    run.settings.update(batch_size=fit.batch_size, seed=fit.seed)
    if digest := datasets.digest(run.data_settings["dataset"], run.data_settings["data_dir"]):
        run.settings["data_sha256"] = digest
    if is_file:
        run.settings["model_sha256"] = _digest(run.model)
        fit = dataclasses.replace(fit, epochs=0)
    else:
        run.settings.update(
            float_epochs=fit.epochs,
            float_learning_rate=fit.learning_rate,
            float_momentum=fit.momentum,
            augment=fit.augment,
        )

    def make() -> keras.Model:
        if is_file:
            model = load_float_model(run.model, run.data)
        else:
            model = models.build(run.model, run.data.image_shape, run.data.classes, run.widen)
            if run.is_chief:
                model.summary()
        if not FLOAT_ONLY.value:
            trial(model)
        return model

    train(run, "float", make, "float.keras", fit)
    if FLOAT_ONLY.value:
        finish(run)
        sys.exit()


def _digest(path: str) -> str:
    """Of a model file, so that a retrained one is not mistaken for it."""
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"`model` must be a .keras file, or a name. Received: model={path!r}, which does not "
            "exist. Leave the flag out to train a model here."
        )
    return datasets.file_digest(path)


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


def train(
    run: Run,
    stage: str,
    make: Callable[[], keras.Model],
    target: str,
    fit: training.FitSettings,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    best_from: int = 0,
    settings: dict[str, Any] | None = None,
) -> None:
    """Trains what `make` makes, saves it as `target` at its best epoch, and judges the file.

    Args:
        run: what the stage is one of.
        stage: its name.
        make: makes the model.
        target: name of the file.
        fit: how it is trained; for 0 epochs it is saved as it is.
        callbacks: of the training.
        best_from: the first epoch that may be the best one.
        settings: what the result depends on, by flag name; by default the run's.
    """

    def work() -> results.Figures:
        keras.utils.set_random_seed(fit.seed)
        with run.strategy.scope():
            model = make()
        found: results.Figures = {"history": {}, "best_epoch": 0}
        if fit.epochs:
            found["history"], found["best_epoch"], found["seconds"] = training.fit(
                model,
                run.data,
                fit,
                run.directory.backup_dir(stage),
                callbacks=callbacks,
                best_from=best_from,
                log_dir=run.path("logs") / stage,
            )
        if run.is_chief:
            # What learns from a teacher is no model to load; its student is.
            results.save_model(getattr(model, "student", model), run.path(target))
            # The file is judged, not the model in memory: the file is what others get.
            found["accuracy"], outputs = run.score(run.load(target))
            found |= evaluation.majority(outputs, run.data.test)
        return found

    run.stage(stage, (target,), work, together=True, settings=settings)


def export(run: Run) -> None:
    """model.tflite, compared with its simulation and, for size and speed, with float.tflite."""

    def compared() -> results.Figures:
        model = run.load("finetuned.keras")
        lite = kerasq.export_tflite(model, run.path("model.tflite"))
        return evaluation.integer(model, lite, run.data.test)

    def timed() -> results.Figures:
        run.float_tflite.save(run.path("float.tflite"))
        pair = [run.float_tflite, kerasq.TFLiteModel(run.path("model.tflite"))]
        float_ms, int8_ms = kerasq.latency(pair, num_threads=run.num_threads)
        size = len(run.float_tflite.content)
        return {"float_ms": float_ms, "int8_ms": int8_ms, "float_bytes": size}

    run.stage("export", ("model.tflite",), compared)
    run.settings["num_threads"] = run.num_threads
    run.stage("latency", ("float.tflite",), timed)


def finish(run: Run, **more: Any) -> None:
    """results.json, curves.png, and a table of the figures, `more` of them included."""
    if not run.is_chief:
        return
    summary = {"recipe": run.recipe, **report.summarize(run.figures), **more}
    summary["replicas"] = run.strategy.num_replicas_in_sync
    summary["settings"] = run.settings
    results.write_json(run.path("results.json"), summary)
    curves = {stage: figures.get("history", {}) for stage, figures in run.figures.items()}
    kerasq.plot_curves(curves, run.path("curves.png"))
    print(f"\n{report.text(summary)}\nWritten to {run.directory.path}/")
