"""What kerasq writes beside a model into its file: JSON, each entry under a name of its own."""

import dataclasses
import json
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

_MADE = "kerasq.made"


def put(model: schema.ModelT, name: str, value: Any) -> None:
    """Adds an entry to a file, in object form."""
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    entry.name, entry.buffer = name.encode(), len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]


def find(model: schema.ModelT, name: str) -> Any:
    """The entry of a name; None where there is none.

    Raises:
        ValueError: where it is not what `put` wrote.
    """
    for entry in model.metadata or []:
        if entry.name is not None and entry.name == name.encode():
            try:
                return json.loads(bytes(model.buffers[entry.buffer].data))
            except (IndexError, RecursionError, TypeError, ValueError) as error:
                raise ValueError(
                    f"Metadata {name!r} must be JSON. Received: {error}. The file is damaged: "
                    "export it again."
                ) from error
    return None


@dataclasses.dataclass(frozen=True)
class Made:
    """What a file was made for.

    Attributes:
        target: name of the target.
        runtime: of the interpreter that computes as the target does, such as "litert"; "" where
            there is none.
        version: of that interpreter, as it was installed; "" where none was.
        machines: the processors whose kernels are meant; none where they are the same on all.
        away: whether values half-way between two codes are rounded away from zero.
    """

    target: str
    runtime: str
    version: str
    machines: list[str]
    away: bool


def put_made(model: schema.ModelT, made: Made) -> None:
    """Notes in a file what it was made for."""
    put(model, _MADE, dataclasses.asdict(made))


def find_made(model: schema.ModelT) -> Made | None:
    """What a file was made for; None where another program than kerasq has written it.

    Raises:
        ValueError: where the note is damaged.
    """
    if _MADE not in _names(model):
        return None
    found = find(model, _MADE)
    wanted = {"target": str, "runtime": str, "version": str, "machines": list, "away": bool}
    kinds = {k: type(v) for k, v in found.items()} if isinstance(found, dict) else None
    if kinds != wanted:
        raise ValueError(
            f"Metadata {_MADE!r} must hold {sorted(wanted)}. Received: {found!r}. The file is "
            "damaged: export it again."
        )
    return Made(**found)


def _names(model: schema.ModelT) -> list[str]:
    return [x.name.decode(errors="replace") for x in model.metadata or [] if x.name is not None]
