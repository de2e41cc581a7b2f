"""What the functions that make the parts of a layer call: see `kerasq.prepare.decompose`."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import keras

# A layer that computes what an operation does, and what it is called on; None where there is none.
Called = tuple[keras.Layer, Any] | None


class Parts(Protocol):
    """Names and calls of the layers that one layer is made into.

    Attributes:
        is_wide: whether parts are called within `wide`.
        feeds_softmax: whether nothing but softmax reads what the user's layer returns.
    """

    is_wide: bool
    feeds_softmax: bool

    def name(self, name: str, suffix: str) -> str:
        """A name for a part of the layer `name`: "<name>_<suffix>", or with a number behind it."""

    def call(
        self, layer: keras.Layer, x: Any, weights: list[Any] | None = None, units: float = 1.0
    ) -> Any:
        """Calls a new layer, or its own parts.

        `weights` are its weights, and `units` what its kernel is to be trained in.
        """

    def repeated(self, key: str, call: Callable[[], Any]) -> Any:
        """What `call()` returns; calls of one key share weights and ranges, layer by layer.

        As those of a recurrent layer's steps do. The weights are those of the first one. Keys are
        of the user's layer: a further call of that shares its weights, and has its own ranges.
        """

    def wide(self) -> AbstractContextManager[None]:
        """Layers that are called inside have values of 16 bits, whatever the user's scheme.

        `Requantize` puts what leaves the unit on a grid of that scheme.
        """

    def scale(
        self, name: str, x: Any, gain: Any, shift: Any, learned: str = "", trainable: bool = True
    ) -> Any:
        """`gain * x + shift` along the last axis, both of shape `()` or `(channels,)`.

        `learned` is "gain", beside a shift of 0, or "shift": that trains where `trainable`. What is
        not learned is a constant. One number a sample is one channel, between Reshape.
        """


def reshaped(parts: Parts, name: str, x: Any, shape: tuple, suffix: str) -> Any:
    """`x` with samples of a shape, by "<name>_<suffix>"; as it is where it has that shape."""
    if tuple(x.shape[1:]) == tuple(shape):
        return x
    own = parts.name(name, suffix)
    return parts.call(keras.layers.Reshape(shape, name=own, dtype="float32"), x)


def between_permutes(
    parts: Parts, axes: list[int], name: str, x: Any, call: Callable[[Any], Any], *, moved: str
) -> Any:
    """What a call makes of a tensor with some of its axes moved behind all others, and moved back.

    Args:
        parts: of the layer `name`.
        axes: in their order, counted from that of the samples.
        name: of the layer, and of the Permute that moves axes back.
        x: the tensor.
        call: called on the tensor of moved axes.
        moved: suffix of the Permute that moves them.

    Returns:
        A tensor with axes as those of `x`; None where it is the last axis alone.
    """
    rank = len(x.shape)
    if axes == [rank - 1]:
        return None
    order = [*(i for i in range(1, rank) if i not in axes), *axes]
    permute = keras.layers.Permute(order, name=parts.name(name, moved), dtype="float32")
    y = call(parts.call(permute, x))
    back = [1 + order.index(i) for i in range(1, rank)]
    return parts.call(keras.layers.Permute(back, name=name, dtype="float32"), y)
