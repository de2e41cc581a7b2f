"""What kerasq writes beside a model into its file: JSON, each entry under a name of its own."""

import dataclasses
import json
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

_MADE = "kerasq.made"
# The types of its entries: of what it was made for, and of what it was made from.
_TARGET = {"target": str, "runtime": str, "version": str, "machines": list, "away": bool}
_MODEL = {"kerasq": str, "schemes": dict, "training": dict}


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
    """What a file was made for, and of what.

    Attributes:
        target: name of the target.
        runtime: of the interpreter that computes as the target does, such as "litert"; "" where
            there is none.
        version: of that interpreter, as it was installed; "" where none was.
        machines: the processors whose kernels are meant; none where they are the same on all.
        away: whether values half-way between two codes are rounded away from zero.
        kerasq: the version of kerasq; "" where an older one has written the file.
        schemes: how many layers have each scheme, such as `{"w8a8": 12}`.
        training: the optimizer and its steps, `{"optimizer": "SGD", "steps": 400}`; empty where the
            model has none, as after calibration alone, `distill`, or loading of weights.
    """

    target: str
    runtime: str
    version: str
    machines: list[str]
    away: bool
    kerasq: str = ""
    schemes: dict[str, int] = dataclasses.field(default_factory=dict)
    training: dict[str, Any] = dataclasses.field(default_factory=dict)


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
    kinds = {k: type(v) for k, v in found.items()} if isinstance(found, dict) else {}
    # Older versions of kerasq did not write the rest.
    if kinds not in (_TARGET, _TARGET | _MODEL):
        raise ValueError(
            f"Metadata {_MADE!r} must hold {sorted(_TARGET)}. Received: {found!r}. The file is "
            "damaged: export it again."
        )
    return Made(**found)


def _names(model: schema.ModelT) -> list[str]:
    return [x.name.decode(errors="replace") for x in model.metadata or [] if x.name is not None]
