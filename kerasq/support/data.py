"""Batches of model inputs from whatever users hold data in."""

import inspect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_NO_LABELS = "Where this is `(x, y)`: labels are not needed, give `x` alone."


def batches(
    model: keras.Model, data: Any, batch_size: int = 32, steps: int | None = None
) -> Iterator[Any]:
    """Yields float32 batches shaped like `model`'s inputs, checked.

    Args:
        model: the model that the batches are for.
        data: an array (or the structure of arrays that the model takes), which is cut into
            batches; or an iterable of batches, `x` or `(x, y)` or `(x, y, weights)`, such as a
            batched `tf.data.Dataset` or a `keras.utils.PyDataset`; or a function that returns one.
            A tuple of as many arrays as the model has inputs is a batch of these, and so is the
            dict of `(signature, dict)`, which TFLiteConverter takes.
        batch_size: samples in a batch, where `data` is an array.
        steps: the most batches to take, or None for all.

    Raises:
        ValueError: where there is no data, or a batch has the wrong shape, NaN or infinity.
    """
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(
            f"`steps` must be an integer of at least 1, or None for all. Received: steps={steps!r}."
        )
    # Counted as they come: generators have no length.
    count = -1
    for count, x in enumerate(_raw(model, data, batch_size, steps)):
        try:
            found = _checked(model, x, count)
        except ValueError as error:
            if not isinstance(data, tuple):
                raise
            raise ValueError(f"{error} {_NO_LABELS}") from error
        yield found
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
        if samples is not None:  # Otherwise the tuple holds two batches `(x, y)`.
            labels = label_batches(y, samples, _batch_size(model, batch_size))
            # Not strict: `steps` ends the samples before the labels.
            yield from zip(batches(model, x, batch_size, steps), labels, strict=False)
            return
    for index, batch in enumerate(itertools.islice(_iterable(data), steps)):
        if not isinstance(batch, tuple) or len(batch) < 2:
            raise ValueError(
                "`data` must hold labels for this metric: a tuple `(x, y)` of arrays, or batches "
                f"`(x, y)`. Received: batch {index} is {type(batch).__name__}."
            )
        yield _checked(model, batch[0], index), keras.tree.map_structure(np.asarray, batch[1])


def with_labels(
    model: keras.Model, data: Any, batch_size: int = 32
) -> Iterator[tuple[Any, Any | None]]:
    """As `labelled_batches`, of data with or without labels: these are None where there are none.

    Raises:
        ValueError: as `batches`.
    """
    if _is_pair(model, data) and sample_count(model, data[0]) is not None:
        yield from labelled_batches(model, data, batch_size)
    elif data is None or isinstance(data, str) or sample_count(model, data) is not None:
        yield from ((x, None) for x in batches(model, data, batch_size))
    else:
        yield from _pairs(model, data)


def _pairs(model: keras.Model, data: Any) -> Iterator[tuple[Any, Any | None]]:
    """Each batch of an iterable, with its labels."""
    count = -1
    for count, batch in enumerate(_iterable(data)):
        has_labels = isinstance(batch, tuple) and len(batch) > 1
        x = batch[0] if isinstance(batch, tuple) else batch
        labels = keras.tree.map_structure(np.asarray, batch[1]) if has_labels else None
        yield _checked(model, x, count), labels
    if count < 0:
        raise ValueError("`data` must hold at least one sample. Received: no batches.")


def label_batches(y: Any, samples: int, batch_size: int) -> Iterator[Any]:
    """Arrays of labels, cut where `batches` cuts the samples.

    Raises:
        ValueError: where there are not as many as samples.
    """
    leaves = keras.tree.flatten(y)
    lengths = [len(z) if np.ndim(z) else 0 for z in leaves]
    if any(length != samples for length in lengths):
        raise ValueError(
            "`data` must hold as many labels as samples. "
            f"Received: {samples} samples, labels {lengths}."
        )
    for i in range(0, samples, batch_size):
        yield keras.tree.map_structure(lambda z, i=i: z[i : i + batch_size], y)


def batch_spec(tensors: Any) -> Any:
    """The signature of a traced function that takes batches of any size of `tensors`."""
    # The last batch may be smaller: with its size in the signature it would be traced again.
    # Indices are float32 as well, like all that `batches` yields; Keras's Embedding casts them.
    return keras.tree.map_structure(
        lambda x: tf.TensorSpec((None, *x.shape[1:]), tf.float32, name=x.name), tensors
    )


def sample_count(model: keras.Model, data: Any) -> int | None:
    """How many samples arrays that hold all the data have; None for an iterable of batches.

    Raises:
        ValueError: where the inputs have different numbers of samples.
    """
    leaves = keras.tree.flatten(data) if _is_all_inputs(model, data) else [data]
    # By what arrays have, so that those of NumPy, TensorFlow and others count, and datasets do not.
    if not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
        return None
    lengths = {len(leaf) if len(leaf.shape) else 0 for leaf in leaves}
    if len(lengths) > 1:
        raise ValueError(
            f"`data` must have equally many samples for every input. Received: {sorted(lengths)}."
        )
    return lengths.pop()


def labelled_count(model: keras.Model, data: Any) -> int | None:
    """As `sample_count`, of data as `with_labels` takes them."""
    return sample_count(model, data[0] if _is_pair(model, data) else data)


def _is_pair(model: keras.Model, data: Any) -> bool:
    """Whether data is `(x, y)`."""
    if not isinstance(data, tuple) or len(data) != 2:
        return False
    # Of a model of two inputs `([a, b], y)`.
    has_inputs = isinstance(data[0], (list, tuple)) and _is_all_inputs(model, data[0])
    return has_inputs or not _is_all_inputs(model, data)


def _is_all_inputs(model: keras.Model, data: Any) -> bool:
    """Whether a structure holds one array an input; a list may hold batches as well."""
    if isinstance(data, dict):
        return True
    # Of two batches for a model of two inputs nothing tells these: Keras's `fit` takes those for
    # the inputs, too. One whose input is a dict has no batches that are arrays.
    is_list = isinstance(model.input, (list, tuple))
    return (
        isinstance(data, (list, tuple))
        and ((is_list and len(data) == len(model.inputs)) or _is_array_each(model, data))
        # Dicts of inputs are batches.
        and not any(isinstance(x, dict) for x in data)
    )


def _is_array_each(model: keras.Model, x: Sequence) -> bool:
    """Whether `x` is one array for each of several inputs."""
    return len(x) == len(model.inputs) > 1 and all(hasattr(y, "shape") for y in x)


def input_names(model: keras.Model) -> list[str]:
    """The name of each input: its key in a dict, by which Keras takes it, or its own."""
    if not isinstance(model.input, dict) or _is_nested(model.input):
        return [symbol.name for symbol in model.inputs]
    own = {id(symbol): key for key, symbol in model.input.items()}
    return [own[id(symbol)] for symbol in model.inputs]


def _keys(model: keras.Model, x: dict) -> list[str]:
    """The keys of the model's inputs, in their order: those of its own dict, or their names."""
    own, names = input_names(model), [symbol.name for symbol in model.inputs]
    return names if {*x} == {*names} != {*own} else own


def _by_name(x: dict, model: keras.Model) -> list:
    """The values of a dictionary in the order of the model's inputs.

    Raises:
        ValueError: where keys lack, or are not those of the model.
    """
    names = _keys(model, x)
    if set(x) != set(names):
        wrong = [key for key in x if key not in names]
        extra = f", of which the model does not have {wrong}: leave them out" if wrong else ""
        raise ValueError(
            f"`data` must hold every input of the model, {names}. Received: keys {list(x)}{extra}."
        )
    return [x[name] for name in names]


def _iterable(data: Any) -> Iterable:
    """The batches of a dataset, once through."""
    if isinstance(data, keras.utils.PyDataset):
        # In Keras 3.10 it has no `__iter__`: Python would count indices up until an IndexError.
        return (data[i] for i in range(len(data)))
    # As the `representative_dataset` of TFLiteConverter.
    found = data() if inspect.isroutine(data) else data
    if not isinstance(found, Iterable):
        raise ValueError(
            "`data` must be an array, an iterable of batches, or a function that returns one. "
            f"Received: {found!r:.80}."
        )
    return found


def _batch_size(model: keras.Model, batch_size: int) -> int:
    """The size that arrays are cut to: the model's own, where that is fixed."""
    return model.inputs[0].shape[0] or batch_size


def _raw(model: keras.Model, data: Any, batch_size: int, steps: int | None) -> Iterator[Any]:
    """Batches without labels, as they come."""
    if data is None or isinstance(data, str):
        raise ValueError(
            "`data` must be an array or an iterable of batches. "
            f"Received: data={data!r}. Load the file first."
        )
    _check_no_labels(model, data)
    samples = sample_count(model, data)
    if samples is not None:
        batch_size = _batch_size(model, batch_size)
        for i in range(0, samples, batch_size)[:steps]:
            yield keras.tree.map_structure(lambda x, i=i: x[i : i + batch_size], data)
        return
    for batch in itertools.islice(_iterable(data), steps):
        yield _inputs(model, batch)


def _check_no_labels(model: keras.Model, data: Any) -> None:
    """Raises a ValueError for `(x, y)`, where labels would be taken for a second batch."""
    if not _is_pair(model, data):
        return
    counts = [sample_count(model, part) for part in data]
    if counts[0] is not None and counts[0] == counts[1]:
        raise ValueError(
            "`data` must be samples without labels, or batches. Received: a tuple of two arrays of "
            f"{counts[0]} samples. {_NO_LABELS} Two batches are a list."
        )


def _inputs(model: keras.Model, batch: Any) -> Any:
    """What of a batch, as it comes, is for the inputs."""
    if not isinstance(batch, tuple) or not batch:
        return batch
    # TFLiteConverter's: the name of a signature, and its inputs.
    if len(batch) == 2 and isinstance(batch[0], str) and isinstance(batch[1], dict):
        return batch[1]
    return batch if _is_array_each(model, batch) else batch[0]


def _checked(model: keras.Model, x: Any, index: int) -> Any:
    """A batch as float32 arrays in the structure of the model's input.

    Raises:
        ValueError: see `batches`.
    """
    expected = keras.tree.flatten(model.inputs)
    if isinstance(x, dict) and not _is_nested(model.input):
        x = _by_name(x, model)
    leaves = [_real(leaf) for leaf in keras.tree.flatten(x)]
    if len(leaves) != len(expected):
        raise ValueError(
            f"`data` must hold {len(expected)} input(s) a batch. Received: {len(leaves)}."
            f"{_of_numbers(leaves)}"
        )
    for leaf, symbol in zip(leaves, expected, strict=True):
        _check_values(leaf, symbol, index)
    return keras.tree.pack_sequence_as(model.input, leaves)


def _is_nested(inputs: Any) -> bool:
    """Whether a model's input is a dict of more than tensors."""
    return isinstance(inputs, dict) and any(
        not isinstance(x, keras.KerasTensor) for x in inputs.values()
    )


def _of_numbers(leaves: list[np.ndarray]) -> str:
    """The way out where a batch is made of numbers, as that of nested lists is; else ""."""
    if not any(leaf.ndim == 0 for leaf in leaves):
        return ""
    return " Lists are batches one after the other: make an array of numbers, np.asarray(data)."


def _real(x: Any) -> np.ndarray:
    """An array as float32.

    Raises:
        ValueError: for one of other things than real numbers.
    """
    try:
        found = np.asarray(x)
        if found.dtype.kind not in "cSU":
            return np.asarray(found, np.float32)
        name = found.dtype.name
    except (TypeError, ValueError) as error:
        name = str(error)
    raise ValueError(f"`data` must be arrays of real numbers. Received: {name}.")


def _check_values(leaf: np.ndarray, symbol: keras.KerasTensor, index: int) -> None:
    """Raises a ValueError where an array is not what an input of the model takes."""
    fits = leaf.ndim == len(symbol.shape) and all(
        want in (None, have) for want, have in zip(symbol.shape, leaf.shape, strict=True)
    )
    if not fits:
        way_out = _of_numbers([leaf])
        if not way_out and leaf.ndim == len(symbol.shape) - 1:
            way_out = (
                " If that is one sample without an axis of samples, take x[None], or "
                "`.batch(1)` of a dataset."
            )
        raise ValueError(
            f"`data` must have the shape of model input {symbol.name!r}, {symbol.shape}. "
            f"Received: a batch of shape {leaf.shape}.{way_out}"
        )
    if not len(leaf):
        raise ValueError(
            f"`data` must hold at least one sample a batch. Received: none in batch {index}."
        )
    # One NaN would stay in every range that is an average.
    if not np.isfinite(leaf).all():
        raise ValueError(
            f"`data` must be finite. Received: NaN or infinity in batch {index}, "
            f"input {symbol.name!r}. Remove those samples."
        )
