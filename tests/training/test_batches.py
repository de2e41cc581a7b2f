import numpy as np
import pytest
import tensorflow as tf

import kerasq

X = np.arange(72 * 4, dtype="uint8").reshape(72, 4)
Y = np.arange(72)


def shift(images, seed):
    """Adds one number to all of a batch."""
    return images + tf.cast(tf.random.stateless_uniform([], seed, 0, 200, tf.int32), tf.uint8)


def test_each_epoch_holds_every_sample_once():
    batches, steps = kerasq.epoch_batches(X, Y, batch_size=16)
    found = list(batches.take(2 * steps))
    assert steps == 5 and [len(x) for x, _ in found[:steps]] == [16, 16, 16, 16, 8]
    orders = [np.concatenate([y for _, y in part]) for part in (found[:steps], found[steps:])]
    for order, part in zip(orders, (found[:steps], found[steps:]), strict=True):
        np.testing.assert_array_equal(np.sort(order), Y)
        np.testing.assert_array_equal(np.concatenate([x for x, _ in part]), X[order])
    assert not np.array_equal(*orders) and not np.array_equal(orders[0], Y)


@pytest.mark.parametrize("augment", [None, shift])
def test_batches_from_a_later_epoch_are_those_of_the_uninterrupted_run(augment):
    options = {"batch_size": 16, "seed": 3, "augment": augment}
    whole, steps = kerasq.epoch_batches(X, Y, **options)
    later, _ = kerasq.epoch_batches(X, Y, first_epoch=1, **options)
    expected = list(whole.skip(steps).take(steps))
    for (x, y), (want_x, want_y) in zip(later.take(steps), expected, strict=True):
        np.testing.assert_array_equal(x, want_x)
        np.testing.assert_array_equal(y, want_y)
        moved = int(x[0, 0]) - int(X[int(y[0]), 0])
        np.testing.assert_array_equal(x, X[y.numpy()] + np.array(moved % 256, "uint8"))
        assert augment is None or moved
    other, _ = kerasq.epoch_batches(X, Y, batch_size=16, seed=4)
    assert not np.array_equal(next(iter(other))[1], next(iter(whole))[1])


def test_epochs_are_filled_up_for_replicas():
    batches, steps = kerasq.epoch_batches(X[:35], Y[:35], batch_size=16, multiple=2)
    found = [y.numpy() for _, y in batches.take(steps + 1)]
    assert steps == 3 and [len(y) for y in found] == [16, 16, 4, 16]
    np.testing.assert_array_equal(np.sort(np.concatenate(found[:3])[:35]), Y[:35])
    assert found[2][-1] == found[0][0]
    # Which may take one batch more.
    batches, steps = kerasq.epoch_batches(X[:9], Y[:9], batch_size=3, multiple=4)
    assert steps == 4 and [len(y) for _, y in batches.take(steps + 1)] == [3, 3, 3, 3, 3]
