"""Batches of model inputs from whatever users hold data in."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf


def batches(
    model: keras.Model, data: Any, batch_size: int = 32, steps: int | None = None
) -> Iterator[Any]:
    """Yields float32 batches shaped like `model`'s inputs, checked.

    Args:
        model: the model that the batches are for.
        data: an array (or the structure of arrays that the model takes), which is cut into
            batches; or an iterable of batches, `x` or `(x, y)` or `(x, y, weights)`, such as a
            batched `tf.data.Dataset` or a `keras.utils.PyDataset`.
        batch_size: samples in a batch, where `data` is an array.
        steps: the most batches to take, or None for all.

    Raises:
        ValueError: where there is no data, or a batch has the wrong shape, NaN or infinity.
    """
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(
            f"`steps` must be an integer of at least 1, or None for all. Received: steps={steps!r}."
        )
    count = -1
    for count, x in enumerate(_raw(model, data, batch_size, steps)):
        yield _checked(model, x, count)
    if count < 0:
        raise ValueError(
            "`data` must hold at least one sample. Received: no batches "
            f"(data={type(data).__name__}, steps={steps}). "
            "A generator that was read before is empty: make a new one."
        )


def labelled_batches(
    model: keras.Model, data: Any, batch_size: int = 32, steps: int | None = None
) -> Iterator[tuple[Any, Any]]:
    """Yields `(x, y)` batches, `x` checked as in `batches`.

    Args:
        model: the model that the batches are for.
        data: a tuple `(x, y)` of arrays, or an iterable of batches `(x, y)` or `(x, y, weights)`.
        batch_size: samples in a batch, where `data` holds arrays.
        steps: the most batches to take, or None for all.

    Raises:
        ValueError: as `batches`, and where there are no labels.
    """
    if isinstance(data, tuple) and len(data) == 2:
        x, y = data
        samples = sample_count(model, x)
        if samples is not None:
            if any(len(z) != samples for z in keras.tree.flatten(y)):
                lengths = [len(z) for z in keras.tree.flatten(y)]
                raise ValueError(
                    "`data` must hold as many labels as samples. "
                    f"Received: {samples} samples, labels {lengths}."
                )
            starts = range(0, samples, model.inputs[0].shape[0] or batch_size)
            labels = (
                keras.tree.map_structure(lambda z, i=i: z[i : i + starts.step], y) for i in starts
            )
            yield from zip(batches(model, x, batch_size, steps), labels, strict=False)
            return
    for index, batch in enumerate(itertools.islice(_iterable(data), steps)):
        if not isinstance(batch, tuple) or len(batch) < 2:
            raise ValueError(
                "`data` must hold labels for this metric: a tuple `(x, y)` of arrays, or batches "
                f"`(x, y)`. Received: batch {index} is {type(batch).__name__}."
            )
        yield _checked(model, batch[0], index), keras.tree.map_structure(np.asarray, batch[1])


def batch_spec(tensors: Any) -> Any:
    """The signature of a traced function that takes batches of any size of `tensors`."""
    return keras.tree.map_structure(
        lambda x: tf.TensorSpec((None, *x.shape[1:]), tf.float32, name=x.name), tensors
    )


def sample_count(model: keras.Model, data: Any) -> int | None:
    """How many samples arrays that hold all the data have; None for an iterable of batches."""
    leaves = [data]
    if isinstance(data, dict) or (
        isinstance(data, (list, tuple))
        and len(data) == len(model.inputs)
        and isinstance(model.input, (list, tuple))
    ):
        leaves = keras.tree.flatten(data)
    if not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
        return None
    lengths = {len(leaf) if len(leaf.shape) else 0 for leaf in leaves}
    if len(lengths) > 1:
        raise ValueError(
            f"`data` must have equally many samples for every input. Received: {sorted(lengths)}."
        )
    return lengths.pop()


def _by_name(x: dict, names: list[str]) -> list:
    missing = [name for name in names if name not in x]
    if missing:
        raise ValueError(
            f"`data` must hold every input of the model, {names}. Received: keys {list(x)}."
        )
    return [x[name] for name in names]


def _iterable(data: Any) -> Iterable:
    """The batches; a PyDataset has no end of its own."""
    if isinstance(data, keras.utils.PyDataset):
        return (data[i] for i in range(len(data)))
    return data


def _raw(model: keras.Model, data: Any, batch_size: int, steps: int | None) -> Iterator[Any]:
    if data is None or isinstance(data, str):
        raise ValueError(
            "`data` must be an array or an iterable of batches. "
            f"Received: data={data!r}. Load the file first."
        )
    samples = sample_count(model, data)
    if samples is not None:
        batch_size = model.inputs[0].shape[0] or batch_size
        for i in range(0, samples, batch_size)[:steps]:
            yield keras.tree.map_structure(lambda x, i=i: x[i : i + batch_size], data)
        return
    for batch in itertools.islice(_iterable(data), steps):
        yield batch[0] if isinstance(batch, tuple) else batch


def _checked(model: keras.Model, x: Any, index: int) -> Any:
    expected = keras.tree.flatten(model.inputs)
    if isinstance(x, dict) and not isinstance(model.input, dict):
        x = _by_name(x, [symbol.name for symbol in expected])
    leaves = [np.asarray(leaf, np.float32) for leaf in keras.tree.flatten(x)]
    if len(leaves) != len(expected):
        raise ValueError(
            f"`data` must hold {len(expected)} input(s) a batch. Received: {len(leaves)}."
        )
    for leaf, symbol in zip(leaves, expected, strict=True):
        fits = leaf.ndim == len(symbol.shape) and all(
            want in (None, have) for want, have in zip(symbol.shape, leaf.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"`data` must have the shape of model input {symbol.name!r}, {symbol.shape}. "
                f"Received: a batch of shape {leaf.shape}."
            )
        if not len(leaf):
            raise ValueError(
                f"`data` must hold at least one sample a batch. Received: none in batch {index}."
            )
        if not np.isfinite(leaf).all():
            raise ValueError(
                f"`data` must be finite. Received: NaN or infinity in batch {index}, "
                f"input {symbol.name!r}. Remove those samples."
            )
    return keras.tree.pack_sequence_as(model.input, leaves)
