"""Calibration and fine-tuning as all recipes that train do them: flags, and the stages."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from absl import flags

import kerasq
from kerasq.calibration.observers import OBSERVERS
from kerasq.training.schedule import SCHEDULES
from recipes import evaluation, results, stages, training
from recipes.run import Run

CALIBRATION_METHOD = flags.DEFINE_enum(
    "calibration_method",
    None,
    list(OBSERVERS),
    "How the first ranges come from the data. Default: mse up to 8 bits, else minmax.",
)
EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs of fine-tuning; 0 exports as calibrated.", 0)
LEARNING_RATE = flags.DEFINE_float(
    "learning_rate",
    None,
    "Highest learning rate of fine-tuning. Without a default: --float_learning_rate / 100.",
    0.0,
)
MOMENTUM = flags.DEFINE_float(
    "momentum",
    None,
    "Momentum of fine-tuning. Without a default: --float_momentum * 5/9, or 0.5 for 0.9.",
    0.0,
    1.0,
)
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.0, "Decoupled, on kernels.", 0.0)
_SCHEDULE = flags.DEFINE_enum(
    "schedule",
    "cosine",
    list(SCHEDULES),
    "Learning rate: cosine to 0, or a tenth after half of the steps and a hundredth after 3/4.",
)
_WARMUP_EPOCHS = flags.DEFINE_integer(
    "warmup_epochs", 0, "Epochs in which the learning rate rises from 0.", 0
)
_FREEZE_RANGES_EPOCH = flags.DEFINE_integer(
    "freeze_ranges_epoch",
    None,
    "From this epoch on, counted from 0, ranges and BatchNormalization statistics stay.",
    0,
)
_LABEL_SMOOTHING = flags.DEFINE_float(
    "label_smoothing", 0.0, "Probability that is spread over all classes.", 0.0, 1.0
)
_DISTILL_WEIGHT = flags.DEFINE_float(
    "distill_weight", 0.0, "Share of the float model's opinion in the loss.", 0.0, 1.0
)
_TEMPERATURE = flags.DEFINE_float("temperature", 4.0, "Of the distillation.", 0.1)
_FLOAT_FINETUNE = flags.DEFINE_bool(
    "float_finetune", False, "Fine-tune the float model for the same epochs too, to compare with."
)
BATCH_NORM = flags.DEFINE_enum(
    "batch_norm",
    "keep",
    ["keep", "fold"],
    "BatchNormalization: kept and trained, or folded before fine-tuning.",
)
# Training images that values and ranges are checked on after each epoch.
_CHECKED = 128
# And those that SQNR and histograms of TensorBoard are of: the network runs on them in float, too.
_LOGGED = 32


def set_defaults(epochs: int, learning_rate: float) -> None:
    """Defaults for weights that change much: more epochs, at rates as for the float network."""
    flags.set_default(EPOCHS, epochs)
    flags.set_default(LEARNING_RATE, learning_rate)
    flags.set_default(MOMENTUM, 0.9)


def settings(run: Run, restarts: int = 1) -> training.FitSettings:
    """How the quantized model is trained: as the float model was, with less rate and momentum."""
    rate, momentum = LEARNING_RATE.value, MOMENTUM.value
    found = dataclasses.replace(
        run.fit,
        epochs=EPOCHS.value,
        learning_rate=run.fit.learning_rate / 100 if rate is None else rate,
        momentum=run.fit.momentum * 5 / 9 if momentum is None else momentum,
        weight_decay=_WEIGHT_DECAY.value,
        schedule=_SCHEDULE.value,
        warmup_epochs=_WARMUP_EPOCHS.value,
        label_smoothing=_LABEL_SMOOTHING.value,
        restarts=restarts,
    )
    training.schedule(found, 1)  # What cannot be fails here, not after hours of training.
    freeze = _FREEZE_RANGES_EPOCH.value
    if freeze and freeze >= found.epochs:
        raise ValueError(
            "`freeze_ranges_epoch` must be one of the epochs, counted from 0. Received: "
            f"freeze_ranges_epoch={freeze}, epochs={found.epochs}."
        )
    return found


def _learner(student: keras.Model, teacher: keras.Model) -> keras.Model:
    """What is trained: the model itself, or one that learns from a teacher as well."""
    if not _DISTILL_WEIGHT.value:
        return student
    if training.is_autoencoder(student):
        raise ValueError(
            "`distill_weight` must be 0.0 for an autoencoder, whose outputs are no classes. "
            f"Received: distill_weight={_DISTILL_WEIGHT.value}."
        )
    return kerasq.distill(
        student, teacher, weight=_DISTILL_WEIGHT.value, temperature=_TEMPERATURE.value
    )


def _drawn(run: Run, count: int) -> np.ndarray:
    """Some training images, which the seed draws."""
    images = run.data.parts[0].x
    order = np.random.default_rng(run.fit.seed).permutation(len(images))
    return images[np.sort(order[:count])]


def train_float(
    run: Run, fit: training.FitSettings, quantize: Callable[[keras.Model], keras.Model]
) -> None:
    """float.keras: see `stages.train_float`. What cannot be fine-tuned is known before as well."""

    def trial(model: keras.Model) -> None:
        training.compile_model(_learner(quantize(model), model), fit, 1)

    stages.train_float(run, trial)


def calibration_settings(run: Run) -> dict[str, Any]:
    """What ranges from data depend on, by flag name."""
    method, steps = CALIBRATION_METHOD.value, run.calibration_steps
    return {"calibration_method": method, "calibration_steps": steps}


def calibrate(run: Run, quantize: Callable[[keras.Model], keras.Model], **depends: Any) -> None:
    """calibrated.keras: quantized, calibrated, not trained.

    Args:
        run: has a float model.
        quantize: makes a quantized model of it.
        depends: what that depends on, by flag name.
    """
    run.settings.update(depends, **calibration_settings(run))

    def work() -> results.Figures:
        keras.utils.set_random_seed(run.fit.seed)
        model = quantize(run.load("float.keras"))
        kerasq.calibrate(model, run.calibration_batches(), method=CALIBRATION_METHOD.value)
        print(kerasq.summary(model))
        accuracy, outputs = run.score(model)
        results.save_model(model, run.path("calibrated.keras"))
        return {"accuracy": accuracy, **evaluation.distance(run.float_outputs, outputs)}

    run.stage("calibrate", ("calibrated.keras",), work)


def finetune(
    run: Run,
    fit: training.FitSettings,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    best_from: int = 0,
    **depends: Any,
) -> None:
    """finetuned.keras: the calibrated model after some epochs as the flags say, at its best one.

    Args:
        run: has been calibrated.
        fit: what `settings` said.
        callbacks: more of them.
        best_from: the first epoch, counted from 0, that may be the best one.
        depends: what the result depends on besides, by flag name.
    """
    tuned, freeze = dataclasses.asdict(fit), _FREEZE_RANGES_EPOCH.value
    run.settings.update(
        tuned,
        freeze_ranges_epoch=freeze,
        distill_weight=_DISTILL_WEIGHT.value,
        temperature=_TEMPERATURE.value,
        **depends,
    )
    watchers = [*callbacks]
    if freeze is not None:
        watchers.append(kerasq.FreezeRanges(freeze))
    if run.is_chief:
        watchers.append(kerasq.CheckTraining(run.data.parts[0].x[:_CHECKED]))
        watchers.append(kerasq.LogRanges(run.path("logs") / "finetune", _drawn(run, _LOGGED)))

    def make() -> keras.Model:
        return _learner(run.load("calibrated.keras"), run.load("float.keras"))

    stages.train(
        run, "finetune", make, "finetuned.keras", fit, callbacks=watchers, best_from=best_from
    )
    if _FLOAT_FINETUNE.value:
        # The same epochs and rates, so that the comparison is fair; restarts are for portions.
        stages.train(
            run,
            "float_finetune",
            functools.partial(run.load, "float.keras"),
            "float_finetuned.keras",
            dataclasses.replace(fit, restarts=1),
            settings=run.directory.settings("float") | tuned | {"restarts": 1},
        )
