"""What the functions that make the parts of a layer call: see `kerasq.prepare.decompose`."""

from typing import Any, Protocol

import keras

# A layer that computes what an operation does, and what it is called on; None where there is none.
Called = tuple[keras.Layer, Any] | None


class Parts(Protocol):
    """Names and calls of the layers that one layer is made into."""

    def name(self, name: str, suffix: str) -> str:
        """A name for a part of the layer `name`: "<name>_<suffix>", or with a number behind it."""

    def call(self, layer: keras.Layer, x: Any, weights: list[Any] | None = None) -> Any:
        """Calls a new layer, or its own parts; `weights` are its weights."""

    def scale(self, name: str, x: Any, gain: Any, shift: Any, trainable: bool | None = None) -> Any:
        """`gain * x + shift` along the last axis, both of shape `()` or `(channels,)`.

        `trainable` is that of the layer; None for constants, which never train.
        """
