"""What whoever feeds a file computes of an input, before its values are put on the grid."""

import dataclasses
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.litert import metadata

# The name of the file's metadata that holds it: a list with an entry for each input.
_NAME = "kerasq.preprocessing"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Preprocessing:
    """`x * gain + shift` along the last axis; the input takes the codes of the result.

    Attributes:
        gain: float32, `(channels,)`.
        shift: float32, `(channels,)`.

    Example:
        >>> own = Preprocessing(gain=np.float32([2.0, 0.5]), shift=np.float32([0.0, 1.0]))
        >>> own(np.array([[1.0, 4.0]]))
        array([[2., 3.]], dtype=float32)
    """

    gain: np.ndarray
    shift: np.ndarray

    def __call__(self, x: Any) -> np.ndarray:
        """Values in the units of the input's grid, float32, each step rounded once."""
        return np.asarray(x, np.float32) * self.gain + self.shift

    def inverse(self, y: np.ndarray) -> np.ndarray:
        """Values of which `y` is computed; where the gain is 0, any of them."""
        return (y - self.shift) / np.where(self.gain == 0, 1.0, self.gain)


def write(model: schema.ModelT, inputs: list[Preprocessing | None]) -> None:
    """Adds what belongs to the inputs, in their order, to a file; nothing where all are None."""
    if not any(inputs):
        return
    # Python's floats hold float32 numbers, and their digits lead back to them.
    entries = [own and {"gain": own.gain.tolist(), "shift": own.shift.tolist()} for own in inputs]
    metadata.put(model, _NAME, entries)


def read(model: schema.ModelT) -> list[Preprocessing | None]:
    """What belongs to each input of a file."""
    entries = metadata.find(model, _NAME)
    inputs = model.subgraphs[0].inputs
    if entries is None:
        return [None for _ in inputs]
    if not isinstance(entries, list) or len(entries) != len(inputs):
        raise ValueError(_damaged(f"{entries!r} for {len(inputs)} inputs"))
    shapes = [model.subgraphs[0].tensors[i].shape for i in inputs]
    return [_checked(own, shape) for own, shape in zip(entries, shapes, strict=True)]


def _checked(own: Any, shape: Any) -> Preprocessing | None:
    """What an entry says of an input of a shape."""
    if own is None:
        return None
    try:
        found = _of(**own)
    except (TypeError, ValueError) as error:
        raise ValueError(_damaged(repr(own))) from error
    for values in (found.gain, found.shift):
        fits = values.shape in ((), (1,), tuple(shape[-1:]))
        if not fits or not np.isfinite(values).all():
            raise ValueError(_damaged(f"{own!r} for an input of shape {[*map(int, shape)]}"))
    return found


def _damaged(received: str) -> str:
    return (
        f"Metadata {_NAME!r} must hold gain and shift of each input, or null. Received: "
        f"{received}. The file is damaged: export it again."
    )


def _of(gain: list[float], shift: list[float]) -> Preprocessing:
    return Preprocessing(gain=np.asarray(gain, np.float32), shift=np.asarray(shift, np.float32))
