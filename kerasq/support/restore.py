"""Variables that are as they were, where what changes them does not end."""

import contextlib
from collections.abc import Iterable, Iterator

import keras
import tensorflow as tf


@contextlib.contextmanager
def restored_on_error(variables: Iterable[keras.Variable]) -> Iterator[None]:
    """Gives variables the values back that they had, where the block ends in an error.

    An interrupt (Ctrl-C) as well.
    """
    # As tensors, which a variable of several replicas gives as well.
    before = [(v, tf.convert_to_tensor(v.value).numpy()) for v in variables]
    try:
        yield
    except BaseException:
        for variable, value in before:
            variable.assign(value)
        raise
