"""What a .tflite file holds: its tensors, its operators, and the tensors at its ends."""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from kerasq.grid import Grid
from kerasq.litert import flatbuffer, metadata, preprocessing, removed
from kerasq.litert.metadata import Made
from kerasq.litert.operators import KERNEL_OPS
from kerasq.litert.preprocessing import Preprocessing

BOUNDARY_OPS = ("QUANTIZE", "DEQUANTIZE")


class Tensor(NamedTuple):
    """A tensor of the file.

    Attributes:
        name: its name.
        shape: its shape.
        dtype: the type that NumPy holds it in: packed INT4 codes are int8 there.
        grid: its grid in signed codes, also where `dtype` is uint8; None where it is float.
        type: the type in the file, such as "int4".
        bytes: the size of a constant; 0 where it is computed.
        codes: what the integers of a constant are, where fewer bits would hold them: "4-bit codes"
            (up to 5), "powers of two", "3 values a channel"; else empty.
        preprocessing: of an input that takes the codes of other values than a user has: what makes
            those of these, a function. `TFLiteModel.predict` calls it; a device has to.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    grid: Grid | None
    type: str
    bytes: int
    codes: str
    preprocessing: Preprocessing | None = None

    @property
    def zero_point(self) -> int:
        """The zero point as it is in the file: of unsigned codes, 128 above that of the grid."""
        assert self.grid is not None
        return int(self.grid.zero_point) + (128 if self.dtype == np.uint8 else 0)

    @property
    def constant(self) -> bool:
        """Whether the file holds its values."""
        return self.bytes > 0


class Op(NamedTuple):
    """An operator of the file.

    Attributes:
        name: the operator, such as "CONV_2D".
        inputs: names of the tensors that it reads, without optional ones that are absent.
        outputs: names of the tensors that it writes.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """All of a file's first subgraph, which is the model.

    Attributes:
        tensors, ops: its tensors and operators, in the order of the file.
        inputs, outputs: the tensors at its ends.
        input_names, output_names: what the signature calls them.
        byte_count: the size of the file.
        constant_bytes: how many of these are weights and constants.
        made: what it was made for; None where kerasq has not written it.
        removed: by tensor the channels that it lacks, as `kerasq.litert.removed` has them.
    """

    tensors: list[Tensor]
    ops: list[Op]
    inputs: list[Tensor]
    outputs: list[Tensor]
    input_names: list[str]
    output_names: list[str]
    byte_count: int
    constant_bytes: int
    made: Made | None
    removed: dict[str, np.ndarray]

    @functools.cached_property
    def by_name(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {tensor.name: tensor for tensor in self.tensors}

    def kernel(self, op: Op) -> Tensor | None:
        """The constant that an operator multiplies by; None where it multiplies by none."""
        if op.name not in KERNEL_OPS:
            return None
        kernel = self.by_name[op.inputs[1]]
        # FULLY_CONNECTED may also multiply two tensors that are both computed.
        return kernel if kernel.constant else None

    def float_ops(self) -> list[Op]:
        """Operators that compute in float; QUANTIZE and DEQUANTIZE are not counted."""
        floats = {tensor.name for tensor in self.tensors if tensor.dtype.kind in "fc"}
        return [
            op
            for op in self.ops
            if op.name not in BOUNDARY_OPS and floats & {*op.inputs, *op.outputs}
        ]


def read(model: Any, byte_count: int) -> Contents:
    """What a file of this object form and size holds."""
    graph = model.subgraphs[0]
    owns = dict(zip(graph.inputs, preprocessing.read(model), strict=True))
    tensors = [_tensor(model, tensor, owns.get(i)) for i, tensor in enumerate(graph.tensors)]
    signature = model.signatureDefs[0] if model.signatureDefs else None
    return Contents(
        tensors=tensors,
        ops=[_op(model, op, tensors) for op in graph.operators],
        inputs=[tensors[i] for i in graph.inputs],
        outputs=[tensors[i] for i in graph.outputs],
        input_names=_names(tensors, graph.inputs, signature and signature.inputs),
        output_names=_names(tensors, graph.outputs, signature and signature.outputs),
        byte_count=byte_count,
        constant_bytes=_constant_bytes(model),
        made=metadata.find_made(model),
        removed=removed.read(model),
    )


def _constant_bytes(model: Any) -> int:
    """The bytes of all weights and constants."""
    # Of buffers, not of tensors: equal constants are one buffer that several tensors share.
    described = {entry.buffer for entry in model.metadata or []}
    sizes = [0 if x.data is None else len(x.data) for x in model.buffers]
    return sum(size for i, size in enumerate(sizes) if i not in described)


def _tensor(model: Any, tensor: Any, own: Preprocessing | None) -> Tensor:
    return Tensor(
        name=tensor.name.decode(),
        # A scalar may have no shape at all.
        shape=() if tensor.shape is None else tuple(int(n) for n in tensor.shape),
        dtype=flatbuffer.dtype(tensor),
        grid=flatbuffer.grid_of(tensor),
        type=flatbuffer.type_name(tensor.type),
        bytes=flatbuffer.byte_count(model, tensor),
        codes=_codes(model, tensor),
        preprocessing=own,
    )


def _op(model: Any, op: Any, tensors: list[Tensor]) -> Op:
    return Op(
        name=flatbuffer.op_name(flatbuffer.op_code(model, op)),
        # An optional input that is absent, such as a bias, has the index -1.
        inputs=tuple(tensors[i].name for i in op.inputs if i >= 0),
        outputs=tuple(tensors[i].name for i in op.outputs),
    )


def _names(tensors: list[Tensor], indices: Any, ends: Any) -> list[str]:
    """The names that the signature gives to inputs or outputs; without one, the tensors' own."""
    if not ends:
        return [tensors[index].name for index in indices]
    # A tensor that is two outputs of the model has two names, each of which counts once.
    unused = list(ends)
    names = []
    for index in indices:
        end = next(end for end in unused if end.tensorIndex == index)
        unused.remove(end)
        names.append(end.name.decode())
    return names


def _codes(model: Any, tensor: Any) -> str:
    """What the integers of a constant are, in words: see `Tensor.codes`."""
    stored = {"int4": 4, "int8": 8}.get(flatbuffer.type_name(tensor.type))
    values, grid = flatbuffer.constant(model, tensor), flatbuffer.grid_of(tensor)
    # Integers without a grid are no codes, but shapes or axes; zeros fit any width, and equal
    # weights are those of an average.
    if stored is None or values is None or grid is None or np.all(values == values.flat[:1]):
        return ""
    needed = _bits_of(values)
    # DoReFa's codes are a bit wider than asked for: 5 bits may come of a scheme of 4, the widest
    # weights that the file could pack.
    if needed <= 5:
        return f"{needed}-bit codes" if needed < stored else ""
    if _are_powers_of_two(values):
        return "powers of two"
    return _few_values(values, grid)


def _bits_of(values: np.ndarray) -> int:
    """Width of the narrowest signed integers that hold all values."""
    # -2^k takes no more bits than 2^k - 1.
    largest = max(values.max(), -1 - values.min(), 0)
    return int(largest).bit_length() + 1


def _are_powers_of_two(values: np.ndarray) -> bool:
    """Whether all magnitudes are powers of two, or 0: they have one bit, which x - 1 lacks."""
    # int8 has no magnitude of -128.
    sizes = np.abs(values.astype(np.int64))
    return bool((sizes & (sizes - 1) == 0).all())


def _few_values(values: np.ndarray, grid: Grid) -> str:
    """How many values a channel has at most, in words, where these are few; else empty."""
    if grid.axis is None:
        return ""
    channels = np.moveaxis(values, grid.axis, 0).reshape(values.shape[grid.axis], -1)
    steps = np.diff(np.sort(channels), axis=1)
    most = 1 + np.count_nonzero(steps, axis=1).max()
    # A channel of three weights has no more than three values, whatever they are.
    return f"{most} values a channel" if most <= 3 and channels.shape[1] > 3 else ""
