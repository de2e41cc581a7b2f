"""Training as recipes do it: SGD, resumed after a kill, epochs judged on images held out."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import kerasq
from kerasq.support.progress import is_interactive
from kerasq.training.distill import ends_in_softmax
from kerasq.training.distribute import is_chief
from recipes import datasets, team

_EVALUATED = 256  # images a batch, at most, where nothing is trained
_SHIFT = 4  # pixels an augmented image may move in each direction, at 32x32


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What a training stage is run with.

    Attributes:
        epochs: passes over the training data.
        batch_size: images a step, of all replicas together.
        learning_rate: of SGD, the highest.
        momentum: of SGD (Nesterov's).
        weight_decay: decoupled, on kernels only.
        schedule: see `kerasq.schedule`.
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
    samples: datasets.Samples, settings: FitSettings, first_epoch: int = 0, multiple: int = 1
) -> tuple[tf.data.Dataset, int]:
    """Endless shuffled float32 batches, and the number of them that make an epoch.

    See `kerasq.epoch_batches`. Images are kept as they are, uint8 mostly, and cast by the batch.
    """
    is_colour = samples.x.shape[-1] == 3
    batches, steps = kerasq.epoch_batches(
        *samples,
        batch_size=settings.batch_size,
        first_epoch=first_epoch,
        seed=settings.seed,
        augment=_augment if settings.augment or (settings.augment is None and is_colour) else None,
        multiple=multiple,
    )
    return batches.map(lambda x, y: (tf.cast(x, tf.float32), y)).prefetch(2), steps


def _augment(images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Flips each image left to right with probability 1/2 and shifts it, edges reflected."""
    count, height, width = tf.shape(images)[0], images.shape[1], images.shape[2]
    reach = max(1, _SHIFT * min(height, width) // 32)
    draws = tf.random.stateless_uniform([count, 3], seed, 0, 2 * reach + 1, tf.int32)
    flips = tf.random.stateless_uniform([count, 1, 1, 1], seed + 1) < 0.5
    images = tf.where(flips, images[:, :, ::-1], images)
    images = tf.pad(images, [[0, 0], [reach, reach], [reach, reach], [0, 0]], "REFLECT")
    # Each image is cut out at its own place, which tf.image.stateless_random_crop cannot do.
    images = tf.gather(images, draws[:, :1] + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(images, draws[:, 1:2] + tf.range(width), axis=2, batch_dims=1)


def ordered_batches(samples: datasets.Samples) -> tf.data.Dataset:
    """Images, as float32, and labels in order, in batches of about one size."""
    # A last batch of another size would be traced again, a small one leave replicas without any.
    count = len(samples.x)
    size = -(-count // -(-count // _EVALUATED))
    batches = tf.data.Dataset.from_tensor_slices(tuple(samples)).batch(size)
    return batches.map(lambda x, y: (tf.cast(x, tf.float32), y)).prefetch(2)


def _verbose() -> str | int:
    """A bar for each epoch in a terminal, a line in a log."""
    return "auto" if is_interactive() else 2


def predict(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """The model's outputs for all images, with a progress bar in a terminal."""
    samples = datasets.Samples(x, np.zeros(len(x)))
    return model.predict(ordered_batches(samples), verbose="auto" if is_interactive() else 0)


def is_autoencoder(model: keras.Model) -> bool:
    """Whether a model gives back images rather than classes."""
    return model.output_shape[1:] == model.input_shape[1:]


def fit(
    model: keras.Model,
    data: datasets.Dataset,
    settings: FitSettings,
    backup_dir: Path,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    best_from: int = 0,
    log_dir: Path | None = None,
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

    Returns:
        Losses and accuracies after each epoch, those before the interruption included; the best
        epoch, counted from 1 (0 where there was none); and the seconds that the epochs before the
        interruption took.
    """
    train, held_out = data.parts
    strategy = model.distribute_strategy
    chief = is_chief(strategy)
    monitor = "val_loss" if is_autoencoder(model) else "val_accuracy"
    backup = kerasq.EpochBackup(backup_dir, monitor, best_from=best_from)
    with strategy.scope():
        compile_model(model, settings, -(-len(train.x) // settings.batch_size))
        first_epoch = backup.restore(model)
    seconds_before = sum(backup.seconds)
    if first_epoch:
        print(f"Resuming after epoch {first_epoch} of {settings.epochs}")
    if first_epoch < settings.epochs:
        target, replicas = _target(model, settings), strategy.num_replicas_in_sync
        batches, steps = training_batches(train, settings, first_epoch, replicas)
        watchers = [*callbacks, backup]
        if log_dir is not None and chief:
            board = keras.callbacks.TensorBoard(log_dir, histogram_freq=1, write_graph=False)
            watchers.append(board)
        model.fit(
            team.shared(batches.map(target)),
            epochs=settings.epochs,
            initial_epoch=first_epoch,
            steps_per_epoch=steps,
            validation_data=team.shared(ordered_batches(held_out).map(target)),
            callbacks=watchers,
            shuffle=False,  # The batches are.
            verbose=_verbose() if chief else 0,
        )
    team.wait(strategy)  # The chief may still be writing.
    with strategy.scope():
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
        # A learned range, or a gamma, that decays would shrink whatever its gradient says.
        optimizer.exclude_from_weight_decay(
            [v for v in model.trainable_variables if v.name != "kernel"]
        )
    # XLA makes depthwise networks several times slower on a CPU (TensorFlow 2.21).
    model.compile(
        optimizer,
        loss=_loss(model, settings.label_smoothing),
        metrics=[] if is_autoencoder(model) else ["accuracy"],
        jit_compile=False,
    )


def _loss(model: keras.Model, smoothing: float) -> Any:
    """Cross-entropy of classes, the squared error of images."""
    if is_autoencoder(model):
        if smoothing:
            raise ValueError(
                "`label_smoothing` must be 0.0 for an autoencoder, which learns no labels. "
                f"Received: label_smoothing={smoothing}."
            )
        return "mse"
    logits = not ends_in_softmax(model)
    if smoothing:  # Of one-hot labels only: see `_target`.
        return keras.losses.CategoricalCrossentropy(logits, label_smoothing=smoothing)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)


def schedule(
    settings: FitSettings, steps_per_epoch: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate by step."""
    return kerasq.schedule(
        settings.learning_rate,
        max(1, settings.epochs * steps_per_epoch),
        kind=settings.schedule,
        warmup_steps=settings.warmup_epochs * steps_per_epoch,
        restarts=settings.restarts,
    )


def _target(model: keras.Model, settings: FitSettings) -> Callable:
    """Maps images and labels to images and what is learned: labels, or the images in 0..1."""
    if is_autoencoder(model):
        return lambda images, _: (images, images / 255.0)
    if settings.label_smoothing:  # Keras smooths one-hot labels only.
        return lambda images, labels: (images, tf.one_hot(labels, model.output_shape[-1]))
    return lambda images, labels: (images, labels)
