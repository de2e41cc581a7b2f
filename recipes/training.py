"""Training stages: deterministic batches, and a `fit` that resumes after a kill."""

import dataclasses
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from kerasq.files import whole_file
from recipes import datasets, results

_SHIFT = 4  # pixels an augmented image may move in each direction, at 32x32


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings:
    """What a training stage is run with.

    Attributes:
        epochs: passes over the training data.
        batch_size: images a step.
        learning_rate: of SGD at the first step; a cosine takes it to 0 at the last one.
        momentum: of SGD (Nesterov's).
        weight_decay: decoupled, on kernels only.
        augment: whether images are flipped and shifted at random.
        seed: of the order of the images and of the augmentation.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float = 0.0
    augment: bool = False
    seed: int = 0


def training_batches(
    x: np.ndarray, y: np.ndarray, settings: FitSettings, first_epoch: int = 0
) -> tuple[tf.data.Dataset, int]:
    """Endless shuffled float32 batches, and the number of them that make an epoch.

    Order and augmentation are functions of (seed, epoch, step) alone, so training that resumes at
    epoch k sees the batches it would have seen without the interruption.
    """
    steps = _steps_per_epoch(len(x), settings)
    images, labels = tf.constant(x), tf.constant(y)
    root = tf.constant(settings.seed, tf.int64)

    def epoch_batches(epoch: tf.Tensor) -> tf.data.Dataset:
        seed = tf.stack([root, epoch])
        order = tf.argsort(tf.random.stateless_uniform([len(x)], seed))
        batches = tf.data.Dataset.from_tensor_slices(order).batch(settings.batch_size)
        return batches.enumerate(epoch * steps)

    def load(step: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = tf.gather(images, indices)
        if settings.augment:
            batch = _augment(batch, tf.stack([root, step]))
        return tf.cast(batch, tf.float32), tf.gather(labels, indices)

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


def ordered_batches(x: np.ndarray, batch_size: int = 256) -> tf.data.Dataset:
    """The images in order, as float32 batches."""
    batches = tf.data.Dataset.from_tensor_slices(x).batch(batch_size)
    return batches.map(lambda batch: tf.cast(batch, tf.float32)).prefetch(2)


def predict(model: keras.Model, x: np.ndarray, batch_size: int = 256) -> np.ndarray:
    """The model's outputs for all images, with a progress bar."""
    return model.predict(ordered_batches(x, batch_size), verbose="auto")


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The share (0..1) of rows whose largest output is the label."""
    return float(np.mean(np.argmax(outputs, axis=-1) == labels))


def fit(
    model: keras.Model, data: datasets.Dataset, settings: FitSettings, backup_dir: Path
) -> dict[str, list[float]]:
    """Compiles and trains `model`; resumes from the last finished epoch found in `backup_dir`.

    Args:
        model: trained in place; its weights are overwritten when training resumes.
        data: trained on, and evaluated on after each epoch.
        settings: see `FitSettings`; must be the ones the backup was made with.
        backup_dir: where the state after the last finished epoch is kept.

    Returns:
        Loss and accuracy after each epoch, those before the interruption included.
    """
    compile_model(model, settings, _steps_per_epoch(len(data.x_train), settings))
    backup = EpochBackup(backup_dir)
    first_epoch = backup.restore(model)
    batches, steps = training_batches(data.x_train, data.y_train, settings, first_epoch)
    if first_epoch:
        print(f"Resuming after epoch {first_epoch} of {settings.epochs}")
    if first_epoch < settings.epochs:
        model.fit(
            batches,
            epochs=settings.epochs,
            initial_epoch=first_epoch,
            steps_per_epoch=steps,
            validation_data=_labelled_batches(data.x_test, data.y_test),
            callbacks=[backup],
            verbose="auto",
        )
    return backup.history


def compile_model(model: keras.Model, settings: FitSettings, steps_per_epoch: int) -> None:
    """Compiles with SGD under a cosine schedule and cross-entropy on integer labels."""
    schedule = keras.optimizers.schedules.CosineDecay(
        settings.learning_rate, decay_steps=max(1, settings.epochs * steps_per_epoch)
    )
    optimizer = keras.optimizers.SGD(
        schedule,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay or None,
    )
    if settings.weight_decay:
        optimizer.exclude_from_weight_decay(
            [v for v in model.trainable_variables if v.name != "kernel"]
        )
    # XLA makes depthwise networks several times slower on a CPU (TensorFlow 2.21).
    model.compile(
        optimizer,
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,
    )


def _labelled_batches(x: np.ndarray, y: np.ndarray) -> tf.data.Dataset:
    """The images and labels in order, as batches for `evaluate`."""
    labels = tf.data.Dataset.from_tensor_slices(y).batch(256)
    return tf.data.Dataset.zip(ordered_batches(x), labels)


class EpochBackup(keras.callbacks.Callback):
    """Keeps weights, optimizer state and history after each epoch, so that a kill costs one epoch.

    `keras.callbacks.BackupAndRestore` (Keras 3.15) writes weights and epoch as two files in place:
    a kill between or during the writes leaves a state that cannot be loaded, or one whose weights
    are an epoch ahead. Here one rename makes a state valid, and the epoch is in its name.

    Args:
        directory: holds `epoch-<k>.weights.h5` and `history.json`.
    """

    def __init__(self, directory: Path):
        super().__init__()
        self._directory = directory
        self.history: dict[str, list[float]] = {}

    def restore(self, model: keras.Model) -> int:
        """Loads the last state into the compiled model; returns the number of finished epochs."""
        states = self._states()
        if not states:
            return 0
        model.optimizer.build(model.trainable_variables)
        model.load_weights(states[-1])
        finished = int(states[-1].name.split(".")[0].removeprefix("epoch-"))
        saved = results.read_json(self._directory / "history.json")
        self.history = {name: values[:finished] for name, values in saved.items()}
        return finished

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Writes the state: history first, then the weights, whose name makes both valid."""
        for name, value in (logs or {}).items():
            self.history.setdefault(name, []).append(float(value))
        results.write_json(self._directory / "history.json", self.history)
        older = self._states()
        target = self._directory / f"epoch-{epoch + 1:05d}.weights.h5"
        with whole_file(target) as temporary:
            self.model.save_weights(temporary)
        for state in older:
            state.unlink()

    def _states(self) -> list[Path]:
        """The saved states, oldest first."""
        return sorted(self._directory.glob("epoch-*.weights.h5"))
