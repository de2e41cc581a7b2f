"""Training: deterministic batches, schedules, and a `fit` that resumes after a kill."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq.support.files import whole_file
from kerasq.training.distill import ends_in_softmax
from recipes import datasets, results
from recipes.team import Team

SCHEDULES = ("cosine", "step")
Target = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
_EVALUATED = 256  # images a batch, at most, where nothing is trained
_SHIFT = 4  # pixels an augmented image may move in each direction, at 32x32
_WARMUP_STEPS = 10  # steps of the staircase that leads to the first learning rate of "step"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What a training stage is run with.

    Attributes:
        epochs: passes over the training data.
        batch_size: images a step, of all replicas together.
        learning_rate: of SGD, the highest.
        momentum: of SGD (Nesterov's).
        weight_decay: decoupled, on kernels only.
        schedule: "cosine" to 0, or "step": a tenth after half and a hundredth after 3/4 of it.
        warmup_epochs: epochs in which the rate rises from 0.
        restarts: how often the cosine is gone through.
        label_smoothing: probability that is spread over all classes.
        augment: whether images are flipped left to right and shifted at random; by default those
            in colour are.
        seed: of the order of the images and of the augmentation.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup_epochs: int = 0
    restarts: int = 1
    label_smoothing: float = 0.0
    augment: bool | None = None
    seed: int = 0


def training_batches(
    x: np.ndarray,
    y: np.ndarray,
    settings: FitSettings,
    first_epoch: int = 0,
    multiple: int = 1,
    target: Target = lambda _, labels: labels,
) -> tuple[tf.data.Dataset, int]:
    """Endless shuffled float32 batches, and the number of them that make an epoch.

    What is to be learned is `target` of images and labels. The last batch of an epoch is filled up
    to a `multiple` of images, with the first ones again: replicas need equally many.

    Order and augmentation are functions of (seed, epoch, step) alone, so training that resumes at
    epoch k sees the batches it would have seen without the interruption.
    """
    steps = _steps_per_epoch(len(x), settings)
    images, labels = tf.constant(x), tf.constant(y)
    root = tf.constant(settings.seed, tf.int64)
    augment = x.shape[-1] == 3 if settings.augment is None else settings.augment

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        seed = tf.stack([root, epoch])
        order = tf.argsort(tf.random.stateless_uniform([len(x)], seed))
        order = tf.concat([order, order[: -len(x) % multiple]], axis=0)
        batches = tf.data.Dataset.from_tensor_slices(order).batch(settings.batch_size)
        return batches.enumerate(epoch * steps)

    def load(step: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = tf.gather(images, indices)
        if augment:
            batch = _augment(batch, tf.stack([root, step]))
        batch = tf.cast(batch, tf.float32)
        return batch, target(batch, tf.gather(labels, indices))

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo("int64").max // (steps + 1))
    batches = epochs.flat_map(epoch_batches).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    return batches.prefetch(tf.data.AUTOTUNE), steps


def _steps_per_epoch(samples: int, settings: FitSettings) -> int:
    """Batches an epoch, the last one possibly smaller."""
    return -(-samples // settings.batch_size)


def _augment(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Flips each image left to right with probability 1/2 and shifts it, edges reflected."""
    count, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    reach = max(1, _SHIFT * min(height, width) // 32)
    draws = tf.random.stateless_uniform([count, 3], seed, 0, 2 * reach + 1, tf.int32)
    flips = tf.random.stateless_uniform([count, 1, 1, 1], seed + 1) < 0.5
    images = tf.where(flips, images[:, :, ::-1], images)
    images = tf.pad(images, [[0, 0], [reach, reach], [reach, reach], [0, 0]], "REFLECT")
    images = tf.gather(images, draws[:, :1] + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(images, draws[:, 1:2] + tf.range(width), axis=2, batch_dims=1)


def ordered_batches(x: np.ndarray, y: np.ndarray) -> tf.data.Dataset:
    """Images, as float32, and labels in order, in batches of about one size."""
    # A last batch of another size would be traced again, a small one leave replicas without any.
    size = -(-len(x) // -(-len(x) // _EVALUATED))
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(size)
    return batches.map(lambda x, y: (tf.cast(x, tf.float32), y)).prefetch(2)


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """The model's outputs for all images, with a progress bar."""
    return model.predict(ordered_batches(x, np.zeros(len(x))), verbose="auto")


def is_autoencoder(model: keras.Model) -> bool:
    """Whether a model gives back images rather than classes."""
    return model.output_shape[1:] == model.input_shape[1:]


def accuracy(outputs: np.ndarray, x: np.ndarray, labels: np.ndarray) -> float:
    """The share (0..1) of rows whose largest output is the label.

    For an autoencoder the share of the variance of the images (0..1) that it gives back.
    """
    if outputs.shape != x.shape:
        return float(np.mean(np.argmax(outputs, axis=-1) == labels))
    images = x / np.float32(255)
    error = np.square(images - outputs, dtype=np.float64).sum()
    return float(1 - error / np.square(images - images.mean(axis=0), dtype=np.float64).sum())


def fit(
    model: keras.Model,
    data: datasets.Dataset,
    settings: FitSettings,
    backup_dir: Path,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    best_from: int = 0,
    log_dir: Path | None = None,
    team: Team | None = None,
) -> tuple[dict[str, list[float]], int, float]:
    """Compiles and trains `model`; resumes from the last finished epoch found in `backup_dir`.

    Args:
        model: trained in place, its weights in the end those of the best epoch: the one of the
            highest accuracy (least loss for autoencoders) on the images held out, as the model
            predicts them, which for a quantized model is what the integer kernels compute.
        data: its training images; a tenth of them is held out to evaluate each epoch on.
        settings: see `FitSettings`; must be the ones the backup was made with.
        backup_dir: where the state after the last finished epoch is kept.
        callbacks: more of them.
        best_from: the first epoch, counted from 0, that may be the best one.
        log_dir: for TensorBoard.
        team: who trains together.

    Returns:
        Losses and accuracies after each epoch, those before the interruption included; the best
        epoch, counted from 1 (0 where there was none); and the seconds that the epochs before the
        interruption took.
    """
    train, held_out = data.parts
    team = team or Team()
    monitor = "val_loss" if is_autoencoder(model) else "val_accuracy"
    backup = EpochBackup(backup_dir, monitor, best_from, writes=team.is_chief)
    with team.scope():
        compile_model(model, settings, _steps_per_epoch(len(train.x), settings))
        first_epoch = backup.restore(model)
    seconds_before = sum(backup.seconds)
    target = _target(model, settings)
    batches, steps = training_batches(
        train.x, train.y, settings, first_epoch, team.replicas, target
    )
    if first_epoch:
        print(f"Resuming after epoch {first_epoch} of {settings.epochs}")
    if first_epoch < settings.epochs:
        watchers = [*callbacks, backup]
        if log_dir is not None and team.is_chief:
            watchers.append(
                keras.callbacks.TensorBoard(log_dir, histogram_freq=1, write_graph=False)
            )
        model.fit(
            team.shared(batches),
            epochs=settings.epochs,
            initial_epoch=first_epoch,
            steps_per_epoch=steps,
            validation_data=team.shared(
                ordered_batches(held_out.x, held_out.y).map(lambda x, y: (x, target(x, y)))
            ),
            callbacks=watchers,
            shuffle=False,  # The batches are.
            verbose="auto" if team.is_chief else 0,
        )
    team.wait()  # The chief may still be writing.
    with team.scope():
        return backup.history, backup.restore_best(model), seconds_before


def compile_model(model: keras.Model, settings: FitSettings, steps_per_epoch: int) -> None:
    """Compiles with SGD under its schedule and cross-entropy, or the squared error of images."""
    optimizer = keras.optimizers.SGD(
        schedule(settings, steps_per_epoch),
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay or None,
    )
    if settings.weight_decay:
        optimizer.exclude_from_weight_decay(
            [v for v in model.trainable_variables if v.name != "kernel"]
        )
    is_classifier, smoothing = not is_autoencoder(model), settings.label_smoothing
    if smoothing and not is_classifier:
        raise ValueError(
            "`label_smoothing` must be 0.0 for an autoencoder, which learns no labels. "
            f"Received: label_smoothing={smoothing}."
        )
    loss: Any = "mse"
    if is_classifier:
        logits = not ends_in_softmax(model)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
        if smoothing:
            loss = keras.losses.CategoricalCrossentropy(logits, label_smoothing=smoothing)
    # XLA makes depthwise networks several times slower on a CPU (TensorFlow 2.21).
    model.compile(
        optimizer,
        loss=loss,
        metrics=["accuracy"] if is_classifier else [],
        jit_compile=False,
    )


def schedule(
    settings: FitSettings, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate by step."""
    is_step, half = settings.schedule == "step", settings.epochs / 2
    if settings.restarts > 1 and (is_step or settings.warmup_epochs):
        raise ValueError(
            "A schedule that restarts must be a cosine without warm-up. Received: "
            f"schedule={settings.schedule!r}, warmup_epochs={settings.warmup_epochs}. Leave these "
            "flags out where the rate starts anew, as with each portion of INQ."
        )
    if settings.warmup_epochs > (half if is_step else settings.epochs):
        raise ValueError(
            "`warmup_epochs` must end before the rate falls. Received: warmup_epochs="
            f"{settings.warmup_epochs}, epochs={settings.epochs}, schedule={settings.schedule!r}."
        )
    rate, schedules = settings.learning_rate, keras.optimizers.schedules
    steps = max(1, settings.epochs * steps_per_epoch)
    warmup = settings.warmup_epochs * steps_per_epoch
    if settings.restarts > 1:
        period = math.ceil(steps / settings.restarts)
        return schedules.CosineDecayRestarts(rate, period, t_mul=1.0, m_mul=1.0)
    if settings.schedule == "cosine":
        if not warmup:
            return schedules.CosineDecay(rate, steps)
        rest = max(1, steps - warmup)
        return schedules.CosineDecay(0.0, rest, warmup_target=rate, warmup_steps=warmup)
    stairs = range(1, _WARMUP_STEPS + 1) if warmup else range(0)
    boundaries = [warmup * i // _WARMUP_STEPS for i in stairs] + [steps // 2, steps * 3 // 4]
    values = [rate * (i - 0.5) / _WARMUP_STEPS for i in stairs] + [rate, rate / 10, rate / 100]
    return schedules.PiecewiseConstantDecay(boundaries, values)


def _target(model: keras.Model, settings: FitSettings) -> Target:
    """What a model learns: labels, or images in units of 0..1."""
    if is_autoencoder(model):
        return lambda images, _: images / 255.0
    if settings.label_smoothing:  # Keras smooths one-hot labels only.
        return lambda _, labels: tf.one_hot(labels, model.output_shape[-1])
    return lambda _, labels: labels


class EpochBackup(keras.callbacks.Callback):
    """Keeps the state after each epoch, so that a kill costs one epoch, and the best weights.

    `keras.callbacks.BackupAndRestore` (Keras 3.15) writes weights and epoch as two files in place:
    a kill between or during the writes leaves a state that cannot be loaded, or one whose weights
    are an epoch ahead. Here one rename makes a state valid, and the epoch is in its name.

    Args:
        directory: holds `epoch-<k>.weights.h5`, `best-<k>.weights.h5` and `history.json`.
        monitor: what the best epoch has the highest value of; the least where it is a loss.
        best_from: the first epoch, counted from 0, that may be the best one.
        writes: whether this process writes; all of them read.
    """

    def __init__(
        self,
        directory: Path,
        monitor: str = "val_accuracy",
        best_from: int = 0,
        writes: bool = True,
    ):
        super().__init__()
        self._directory = directory
        self._monitor = monitor
        self._best_from = best_from
        self._writes = writes
        self.history: dict[str, list[float]] = {}
        self.seconds: list[float] = []
        self._seeds: list[list] = []

    def restore(self, model: keras.Model) -> int:
        """Loads the last state into the compiled model; returns the number of finished epochs."""
        if self._writes:  # What a kill has left half written.
            for state in self._directory.glob(".*.weights.h5"):
                state.unlink()
        states = self._states("epoch")
        if not states:
            return 0
        model.optimizer.build(model.trainable_variables)
        model.load_weights(states[-1])
        if not int(model.optimizer.iterations.numpy()):
            raise RuntimeError(
                "The backup must hold the optimizer's state. Received: one without, in "
                f"{self._directory}. Start over with --noresume."
            )
        finished = _number(states[-1])
        saved = results.read_json(self._directory / "history.json")
        self.history = {k: v[:finished] for k, v in saved["history"].items()}
        self.seconds = saved["seconds"][:finished]
        self._seeds = saved["seeds"][:finished]
        for variable, value in zip(_seed_states(model), self._seeds[-1], strict=True):
            variable.assign(value)
        return finished

    def restore_best(self, model: keras.Model) -> int:
        """Loads the weights of the best epoch; returns its number, from 1, or 0 without one."""
        best = self._best()
        if best:
            model.load_weights(self._directory / f"best-{best:05d}.weights.h5")
        return best

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Writes the state: history first, then the weights, whose name makes both valid."""
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        self.seconds.append(time.perf_counter() - self._start)
        if not self._writes:
            return
        self._seeds.append([x.numpy().tolist() for x in _seed_states(self.model)])
        saved = {"history": self.history, "seconds": self.seconds, "seeds": self._seeds}
        results.write_json(self._directory / "history.json", saved)
        kinds = ("best", "epoch") if self._best() == epoch + 1 else ("epoch",)
        for kind in kinds:
            self._write(kind, epoch + 1)
        for state in [x for kind in kinds for x in self._states(kind)]:
            if _number(state) != epoch + 1:
                state.unlink()

    def _best(self) -> int:
        """The best epoch so far, counted from 1; 0 before there is one."""
        values = np.array(self.history.get(self._monitor, []))[self._best_from :]
        if not values.size:
            return 0
        values = -values if self._monitor.endswith("loss") else values
        return self._best_from + int(np.argmax(np.nan_to_num(values, nan=-np.inf))) + 1

    def _write(self, kind: str, epoch: int) -> None:
        with whole_file(self._directory / f"{kind}-{epoch:05d}.weights.h5") as temporary:
            self.model.save_weights(temporary)

    def _states(self, kind: str) -> list[Path]:
        """The saved states, oldest first."""
        return sorted(self._directory.glob(f"{kind}-*.weights.h5"))


def _seed_states(model: keras.Model) -> list[keras.Variable]:
    """The states of Dropout's random numbers, which Keras does not save with the weights."""
    found = {id(x): x for layer in model.layers for x in layer.variables}
    return [x for x in found.values() if "seed_generator" in x.path]


def _number(state: Path) -> int:
    """The epoch in a state's name."""
    return int(state.name.split(".")[0].split("-")[1])
