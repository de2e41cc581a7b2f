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
            except (IndexError, TypeError, ValueError) as error:
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
    """

    target: str
    runtime: str
    version: str


def put_made(model: schema.ModelT, made: Made) -> None:
    """Notes in a file what it was made for."""
    put(model, _MADE, dataclasses.asdict(made))


def find_made(model: schema.ModelT) -> Made | None:
    """What a file was made for; None where another program than kerasq has written it.

    Raises:
        ValueError: where the note is damaged.
    """
    found = find(model, _MADE)
    if found is None:
        return None
    wanted = {field.name for field in dataclasses.fields(Made)}
    if not isinstance(found, dict) or {*found} != wanted:
        raise ValueError(
            f"Metadata {_MADE!r} must hold {sorted(wanted)}. Received: {found!r}. The file is "
            "damaged: export it again."
        )
    return Made(**{key: str(value) for key, value in found.items()})
