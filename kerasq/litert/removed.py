"""What a file says of the channels that its tensors lack: those that change nothing."""

import base64
import json
import zlib

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.litert import metadata

_NAME = "kerasq.removed"
# In the place of a channel's code: the file computes it.
KEPT = -(2**31)


def write(model: schema.ModelT, channels: dict[str, np.ndarray]) -> None:
    """Notes channels that were removed; nothing where none were.

    Args:
        model: the file, in object form.
        channels: by name of a tensor, for each channel that its layer has `KEPT`, or the code that
            stands for it, which is that of all its values if they are constant.
    """
    if not channels:
        return
    # Mostly one code again and again, and the same in layers that follow each other: of a thousand
    # channels some dozen bytes are left.
    entries = {
        name: [None if x == KEPT else x for x in codes.tolist()] for name, codes in channels.items()
    }
    content = zlib.compress(json.dumps(entries, separators=(",", ":")).encode(), 9)
    metadata.put(model, _NAME, base64.b85encode(content).decode())


def read(model: schema.ModelT) -> dict[str, np.ndarray]:
    """What `write` noted, int32, `(channels,)` each, of tensors that the file still has.

    Raises:
        ValueError: where the note is damaged.
    """
    found = metadata.find(model, _NAME)
    if found is None:
        return {}
    shapes = {x.name.decode(): x.shape for x in model.subgraphs[0].tensors}
    try:
        entries = json.loads(zlib.decompress(base64.b85decode(found)))
        # Vela keeps the note, and makes one operator of those between the ends.
        return {name: _codes(x, shapes[name]) for name, x in entries.items() if name in shapes}
    except (
        AttributeError,
        IndexError,
        KeyError,
        OverflowError,
        RecursionError,
        TypeError,
        ValueError,
        zlib.error,
    ) as error:
        raise ValueError(
            f"Metadata {_NAME!r} must hold the channels of tensors. Received: {error!r}. The file "
            "is damaged: export it again."
        ) from error


def _codes(entry: list, shape: np.ndarray) -> np.ndarray:
    """The codes of one tensor, of whose channels the file has `shape[-1]`."""
    codes = np.array([KEPT if x is None else x for x in entry], np.int32)
    if np.count_nonzero(codes == KEPT) != shape[-1]:
        raise ValueError(f"codes for another number of channels than {shape[-1]}")
    return codes


def filled(values: np.ndarray, channels: np.ndarray) -> np.ndarray:
    """Codes of a tensor with those of its removed channels in their places.

    Args:
        values: what the file computes, channels last.
        channels: the entry of the tensor, as `read` returns it.
    """
    fill = np.where(channels == KEPT, 0, channels).astype(values.dtype)
    full = np.broadcast_to(fill, (*values.shape[:-1], len(channels))).copy()
    full[..., channels == KEPT] = values
    return full
