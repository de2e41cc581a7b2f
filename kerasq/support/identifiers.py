"""Identifiers as Keras has them: a name, a configuration or an instance."""

from typing import Any, TypeVar

import keras

T = TypeVar("T")


def find(argument: str, identifier: Any, base: type[T], named: dict[str, type[T]]) -> T:
    """The object that an identifier stands for.

    Args:
        argument: name of the argument that it was given for.
        identifier: a key of `named`, what `keras.saving.serialize_keras_object` made of an
            instance, or an instance.
        base: the class that it must be an instance of.
        named: the classes that have names; they need no arguments.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(identifier, str) and identifier in named:
        return named[identifier]()
    found = identifier
    # Of a dictionary without a class Keras makes a dictionary: it is refused below, with advice.
    if isinstance(identifier, dict) and "class_name" in identifier:
        found = keras.saving.deserialize_keras_object(identifier)
    if not isinstance(found, base):
        raise ValueError(
            f"`{argument}` must be one of {list(named)}. Received: {argument}={identifier!r}. "
            f"Or pass a kerasq.{base.__name__}: an instance of it or of a subclass, not the class, "
            "or a configuration."
        )
    return found
