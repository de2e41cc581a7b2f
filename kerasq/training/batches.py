"""Batches in an order that training which resumes at any epoch meets again."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from kerasq.support.numbers import check_integer


def epoch_batches(
    x: np.ndarray,
    y: np.ndarray,
    *,
    batch_size: int = 32,
    first_epoch: int = 0,
    seed: int = 0,
    augment: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    multiple: int = 1,
) -> tuple[tf.data.Dataset, int]:
    """Endless shuffled batches, and the number of them that make an epoch.

    Order and augmentation are functions of seed, epoch and step alone, so that training which
    resumes at epoch k, as with `kerasq.EpochBackup`, sees the batches that it would have seen
    without the interruption. `tf.data.Dataset.shuffle` would start over with those of epoch 0.

    Args:
        x: samples (n, ...).
        y: what is to be learned of each, (n, ...).
        batch_size: samples a batch; the last one of an epoch may have fewer.
        first_epoch: the epoch, counted from 0, that the batches begin with.
        seed: of order and augmentation.
        augment: takes a batch of `x` and a seed of shape (2,) for stateless operations, such as
            `tf.image.stateless_random_flip_left_right`; returns the batch that is trained on.
        multiple: an epoch is filled up to a multiple of so many samples, with its first ones
            again: replicas need equally many.

    Returns:
        `(x, y)` batches for `fit(batches, steps_per_epoch=steps, shuffle=False)`, and `steps`.

    Raises:
        ValueError: for sizes below 1, and where there are no samples, or not as many of `x` as of
            `y`.

    Example:
        >>> x, y = np.arange(10.0), np.arange(10)
        >>> batches, steps = kerasq.epoch_batches(x, y, batch_size=4, first_epoch=3)
        >>> steps, sorted(int(i) for _, labels in batches.take(steps) for i in labels)
        (3, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    _check(x, y, batch_size, multiple)
    more = -len(x) % multiple
    steps = -(-(len(x) + more) // batch_size)
    # As tensors, since a data set of TensorFlow cannot be read by index.
    samples, targets = tf.constant(x), tf.constant(y)
    root = tf.constant(seed, tf.int64)

    def one_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        draws = tf.random.stateless_uniform([len(x)], tf.stack([root, epoch]))
        order = tf.argsort(draws)
        order = tf.concat([order, order[:more]], axis=0)
        batches = tf.data.Dataset.from_tensor_slices(order).batch(batch_size)
        return batches.enumerate(epoch * steps)

    def load(step: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        batch = tf.gather(samples, indices)
        if augment is not None:
            batch = augment(batch, tf.stack([root, step]))
        return batch, tf.gather(targets, indices)

    # As many epochs as there are before the number of a step overflows.
    epochs = tf.data.Dataset.range(first_epoch, np.iinfo("int64").max // (steps + 1))
    batches = epochs.flat_map(one_epoch).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    return batches.prefetch(tf.data.AUTOTUNE), steps


def _check(x: np.ndarray, y: np.ndarray, batch_size: int, multiple: int) -> None:
    """Raises a ValueError where there is nothing to make batches of."""
    check_integer("batch_size", batch_size, 1)
    check_integer("multiple", multiple, 1)
    shapes = [np.shape(z) for z in (x, y)]
    if not all(shapes) or not shapes[0][0] or shapes[0][0] != shapes[1][0]:
        raise ValueError(
            "`x` and `y` must be arrays of equally many samples, at least one. "
            f"Received: shapes {shapes[0]} and {shapes[1]}."
        )
