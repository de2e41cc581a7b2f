"""TFLite Metadata: labels and normalization as MediaPipe and Android's tools read them.

A buffer named TFLITE_METADATA holds a flatbuffer of the schema `metadata_schema.fbs` (1.5.0, which
ships with MediaPipe); the file of labels that it names lies in a zip archive behind the model.
"""

import dataclasses
import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from flatbuffers.number_types import Int8Flags
from flatbuffers.table import Table

from kerasq.litert import flatbuffer, preprocessing
from kerasq.litert.flatbuffer import Type
from kerasq.litert.preprocessing import Preprocessing

# The name of the file of labels, one a line.
LABELS = "labels.txt"
_NAME = "TFLITE_METADATA"
# The oldest parser that knows all fields that are written here.
_PARSER = "1.0.0"
# Members of the schema's enumerations and unions.
_FEATURES, _IMAGE = 1, 2
_COLOURS = {3: 1, 1: 2}  # By number of channels: RGB, grayscale.
_NORMALIZATION = 1
_AXIS_LABELS, _VALUE_LABELS = 2, 3
_INTEGERS = (Type.INT32, Type.INT64)
# What reading metadata and an archive raises where these are damaged.
_UNREADABLE = (
    *(EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    *(struct.error, zipfile.BadZipFile, zlib.error),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Description:
    """What a user says of a model.

    Attributes:
        name: that of the model.
        labels: names of the classes, or none.
        normalization: `(mean, std)` of `x = (raw - mean) / std`, which is computed in front of the
            model; None where nothing is.
    """

    name: str
    labels: Sequence[str] = ()
    normalization: tuple[Any, Any] | None = None


def class_count(shape: Sequence[int | None], is_score: bool) -> int | None:
    """How many classes an output has: the values of a sample, along the last axis.

    None of places of classes, which an argmax gives: of them nobody says how many there are.
    """
    return [1, *shape[1:]][-1] if is_score else None


def check_labels(labels: Any, classes: Sequence[int | None]) -> None:
    """Raises a ValueError unless labels fit a model.

    Args:
        labels: names of the classes, or none.
        classes: of each output, as `class_count` says.
    """
    scores = [count for count in classes if count is not None]
    is_free = None in classes or (_are_names(labels) and not labels)
    if not _are_names(labels) or not (is_free or any(_fits(len(labels), n) for n in scores)):
        raise ValueError(
            "`labels` must be a list of names, of a line each, one for each class of an output, "
            f"two where that is one value. Received: {labels!r} for outputs of {scores}."
        )


def _are_names(labels: Any) -> bool:
    """Whether labels are a list of names, each of which takes a line of a file."""
    is_list = isinstance(labels, Sequence) and not isinstance(labels, str)
    return is_list and all(isinstance(x, str) and x.splitlines() == [x] for x in labels)


def _fits(count: int, values: int) -> bool:
    """Whether an output has so many classes; one value is a regression's, or one of two classes."""
    return values == count or (values, count) == (1, 2)


def check_normalization(normalization: Any, channels: Sequence[int]) -> None:
    """Raises a ValueError unless a normalization, or None, fits inputs of so many channels."""
    if normalization is None:
        return
    try:
        mean, std = _vectors(normalization)
        is_legal = len(channels) == 1 and mean.shape in ((1,), (channels[0],))
        is_legal = is_legal and bool(np.isfinite((mean, std)).all() and std.all())
    except (TypeError, ValueError):
        is_legal = False
    if not is_legal:
        raise ValueError(
            "`normalization` must be (mean, std) of the one input, numbers or one a channel, std "
            f"not 0. Received: normalization={normalization!r} for inputs of {[*channels]} "
            "channels. Leave it out where nothing is computed in front of the model."
        )


def _vectors(normalization: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation as float32 vectors of one length."""
    mean, std = normalization
    mean, std = np.broadcast_arrays(*(np.atleast_1d(np.float32(x)) for x in (mean, std)))
    return mean, std


def described(content: bytes, description: Description) -> bytes:
    """A file with metadata, and behind it the archive of labels, where there are any.

    Args:
        content: the file.
        description: what has been checked to fit it.
    """
    model = flatbuffer.read(content)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(_written(model, description), np.uint8)
    entry.name, entry.buffer = _NAME.encode(), len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    content = flatbuffer.write(model)
    return _with_labels(content, description.labels) if description.labels else content


def read_labels(model: schema.ModelT, content: bytes) -> tuple[str, ...]:
    """Names of the classes, of the first output that has some; none where a file says none.

    Nor where it says what cannot be read: that is no part of the model, which runs all the same.

    Args:
        model: the file in object form.
        content: the file.
    """
    for entry in model.metadata or []:
        if entry.name == _NAME.encode():
            try:
                name = _labels_file(bytes(model.buffers[entry.buffer].data))
                return _lines(content, name) if name else ()
            except _UNREADABLE:
                return ()
    return ()


def _labels_file(data: bytes) -> str:
    """What the metadata call the file of labels; "" where there is none."""
    root = Table(bytearray(data), int.from_bytes(data[:4], "little"))
    for graph in _tables(root, 3)[:1]:
        for output in _tables(graph, 3):
            for file in _tables(output, 6):
                kind = file.Offset(_slot(2))
                if kind and file.Get(Int8Flags, file.Pos + kind) in (_AXIS_LABELS, _VALUE_LABELS):
                    return file.String(file.Pos + file.Offset(_slot(0))).decode()
    return ""


def _lines(content: bytes, name: str) -> tuple[str, ...]:
    """The lines of a file in the archive behind a model."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return tuple(archive.read(name).decode().splitlines())


def _tables(table: Table, field: int) -> list[Table]:
    """The tables of a vector, which is a field of a table."""
    offset = table.Offset(_slot(field))
    if not offset:
        return []
    start = table.Vector(offset)
    places = range(start, start + 4 * table.VectorLen(offset), 4)
    return [Table(table.Bytes, table.Indirect(place)) for place in places]


def _slot(field: int) -> int:
    """Where a table keeps the offset of a field, by its number in the schema."""
    return 4 + 2 * field


def _with_labels(content: bytes, labels: Sequence[str]) -> bytes:
    """A file with an archive behind it, which both readers find: one from each end."""
    file = io.BytesIO(content)
    with zipfile.ZipFile(file, "a") as archive:
        # Of one date, so that the same model is the same bytes.
        archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(labels))
    return file.getvalue()


def _written(model: schema.ModelT, description: Description) -> bytes:
    """The metadata flatbuffer."""
    graph, found = model.subgraphs[0], _Tables()
    inputs = [
        _input(found, graph.tensors[i], _normalization(description, own, graph.tensors[i]))
        for i, own in zip(graph.inputs, preprocessing.read(model), strict=True)
    ]
    outputs = [_output(found, graph.tensors[i], description.labels) for i in graph.outputs]
    subgraph = found.table({2: found.vector(inputs), 3: found.vector(outputs)})
    root = {0: found.text(description.name), 3: found.vector([subgraph]), 7: found.text(_PARSER)}
    return found.finish(found.table(root))


def _normalization(
    description: Description, own: Preprocessing | None, tensor: schema.TensorT
) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean and deviation of all that is computed in front of an input's grid; None for nothing."""
    if description.normalization is None and own is None and not _is_image(tensor):
        return None
    mean, std = _vectors(description.normalization or (0.0, 1.0))
    if own is None:
        return mean, std
    if not own.gain.all():
        return None  # A constant is no normalization.
    # (raw - mean) / std * gain + shift, as one normalization.
    return mean - own.shift * std / own.gain, std / own.gain


def _is_image(tensor: schema.TensorT) -> bool:
    return len(tensor.shape) == 4 and int(tensor.shape[-1]) in _COLOURS


def _input(
    found: "_Tables",
    tensor: schema.TensorT,
    normalization: tuple[np.ndarray, np.ndarray] | None,
) -> int:
    if _is_image(tensor):
        colour = np.int8(_COLOURS[int(tensor.shape[-1])])
        content = found.union(_IMAGE, found.table({0: colour}))
    else:
        content = found.union(_FEATURES, found.table({}))
    fields = {0: found.text(tensor.name.decode()), 3: content}
    if normalization is not None:
        mean, std = (found.floats(x) for x in normalization)
        unit = found.union(_NORMALIZATION, found.table({0: mean, 1: std}))
        fields[4] = found.vector([unit])
    return found.table(fields)


def _output(found: "_Tables", tensor: schema.TensorT, labels: Sequence[str]) -> int:
    fields = {
        0: found.text(tensor.name.decode()),
        3: found.union(_FEATURES, found.table({})),
    }
    classes = class_count(tensor.shape, tensor.type not in _INTEGERS)
    if labels and (classes is None or _fits(len(labels), classes)):
        # A value says which label it is, or each has a value of its own.
        kind = _AXIS_LABELS if classes == len(labels) else _VALUE_LABELS
        fields[6] = found.vector([found.table({0: found.text(LABELS), 2: np.int8(kind)})])
    return found.table(fields)


class _Tables:
    """Tables of a flatbuffer, by the numbers of their fields in the schema."""

    def __init__(self) -> None:
        self._builder = flatbuffers.Builder(512)

    def text(self, value: str) -> int:
        """The offset of a string."""
        return self._builder.CreateString(value)

    def floats(self, values: np.ndarray) -> int:
        """The offset of a vector of float32."""
        return self._builder.CreateNumpyVector(np.asarray(values, np.float32))

    def vector(self, tables: Sequence[int]) -> int:
        """The offset of a vector of tables."""
        self._builder.StartVector(4, len(tables), 4)
        for offset in reversed(tables):
            self._builder.PrependUOffsetTRelative(offset)
        return self._builder.EndVector()

    def union(self, member: int, table: int) -> int:
        """The offset of a table whose first field is a union, which takes two numbers."""
        return self.table({0: np.uint8(member), 1: table})

    def table(self, fields: dict[int, Any]) -> int:
        """The offset of a table: of offsets, and NumPy's one-byte numbers."""
        builder = self._builder
        builder.StartObject(max(fields, default=-1) + 1)
        for number, value in fields.items():
            if isinstance(value, np.int8):
                builder.PrependInt8Slot(number, int(value), 0)
            elif isinstance(value, np.uint8):
                builder.PrependUint8Slot(number, int(value), 0)
            else:
                builder.PrependUOffsetTRelativeSlot(number, value, 0)
        return builder.EndObject()

    def finish(self, root: int) -> bytes:
        """The flatbuffer."""
        self._builder.Finish(root, file_identifier=b"M001")
        return bytes(self._builder.Output())
