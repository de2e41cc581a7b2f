"""Whether a .tflite file that is well-formed makes sense: LiteRT's kernels do not ask.

The interpreter verifies offsets and sizes of the flatbuffer itself. What is checked here, it takes
on trust, and may end the process by.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from kerasq.litert import flatbuffer
from kerasq.litert.operators import OPERATORS

# Elements of a tensor: more than that no file of the format's 2 GiB computes.
_MOST = 2**31 - 1
# A scale: XNNPACK takes no smaller ones for numbers.
_LEAST = np.finfo(np.float32).tiny


def verify(model: Any) -> None:
    """Raises a ValueError where a file, in object form, refers to what is not there.

    Checked are indices, shapes, the sizes of constants and grids, and that operators which compute
    on integers have grids to compute on.
    """
    if flatbuffer.is_for_npu(model):
        raise ValueError(
            "A .tflite file must have operators that this machine runs. Received: one that Vela "
            "has compiled for the NPU. Open the file that it was made from."
        )
    found = next(_faults(model), None)
    if found:
        raise ValueError(
            f"A .tflite file must be a whole model. Received: {found}. The file is damaged: export "
            "it again."
        )


def _faults(model: Any) -> Iterator[str]:
    """In words, what is wrong."""
    if not model.subgraphs or not model.buffers:
        yield "a file without a model"
    for graph in model.subgraphs or ():
        yield from _of_graph(model, graph)
    for signature in (model.signatureDefs or ())[:1]:
        yield from _of_signature(model.subgraphs[0], signature)


def _of_graph(model: Any, graph: Any) -> Iterator[str]:
    for index, tensor in enumerate(graph.tensors):
        yield from (f"tensor {index}, {fault}" for fault in _of_tensor(model, tensor))
    if not _in_range(graph, (*graph.inputs, *graph.outputs)):
        yield "inputs or outputs that are no tensors"
    for index, op in enumerate(graph.operators):
        yield from (f"operator {index}, {fault}" for fault in _of_operator(model, graph, op))
    yield from _of_order(model, graph)


def _of_signature(graph: Any, signature: Any) -> Iterator[str]:
    for named, ends in ((signature.inputs, graph.inputs), (signature.outputs, graph.outputs)):
        if sorted(end.tensorIndex for end in named) != sorted(ends):
            yield "a signature of other inputs or outputs than the model's"
        if not all(_is_text(end.name) for end in named):
            yield "a signature whose names are no text"


def _of_order(model: Any, graph: Any) -> Iterator[str]:
    """What operators read must be there: inputs, constants, and what those before have written."""
    known = {-1, *graph.inputs}
    known |= {
        i
        for i, x in enumerate(graph.tensors)
        if x.isVariable or x.externalBuffer or flatbuffer.byte_count(model, x)
    }
    for index, op in enumerate(graph.operators):
        if not known.issuperset(op.inputs):
            yield f"operator {index}, which reads what none before it writes"
        known.update(op.outputs)
    if not known.issuperset(i for i in graph.outputs if _has_values(graph, i)):
        yield "outputs that no operator writes"


def _has_values(graph: Any, index: int) -> bool:
    """Whether a tensor, if it is one, has values that can be written."""
    shape = graph.tensors[index].shape if _in_range(graph, [index]) else None
    return shape is None or 0 not in shape


def _of_tensor(model: Any, tensor: Any) -> Iterator[str]:
    name, shape = tensor.name, () if tensor.shape is None else tensor.shape
    if not _is_text(name):
        yield "whose name is no text"
    if tensor.type not in flatbuffer.NUMPY_TYPES:
        return  # One that kerasq does not read, such as a resource: the interpreter has its rules.
    if not 0 <= tensor.buffer < len(model.buffers):
        yield "whose buffer is not there"
        return
    if min(shape, default=0) < 0 or math.prod(map(int, shape)) > _MOST:
        yield f"of shape {[*map(int, shape)]}"
        return
    size, held = _size(tensor.type, shape), flatbuffer.byte_count(model, tensor)
    if held not in (0, size) and tensor.sparsity is None:
        yield f"a constant of {held} bytes whose shape needs {size}"
    yield from _of_grid(tensor.quantization, tensor.type, shape)


def _is_text(name: bytes | None) -> bool:
    try:
        return name is not None and isinstance(name.decode(), str)
    except UnicodeDecodeError:
        return False


def _size(kind: int, shape: Any) -> int:
    """The bytes of a tensor."""
    count = math.prod(map(int, shape))
    is_packed = kind == flatbuffer.Type.INT4
    return (
        (count + 1) // 2 if is_packed else count * np.dtype(flatbuffer.NUMPY_TYPES[kind]).itemsize
    )


def _of_grid(parameters: Any, kind: int, shape: Any) -> Iterator[str]:
    scale = None if parameters is None else parameters.scale
    if scale is None or len(scale) == 0:
        return
    scale, axis = np.asarray(scale), parameters.quantizedDimension
    if not np.all(np.isfinite(scale) & (scale >= 0)):
        yield "whose scales are negative or no numbers"
    if not _are_codes(parameters.zeroPoint, kind, len(scale)):
        yield "whose zero points are no codes"
    if len(scale) > 1 and not (0 <= axis < len(shape) and shape[axis] == len(scale)):
        yield f"whose {len(scale)} scales do not fit axis {axis}"


def _are_codes(zero_point: Any, kind: int, count: int) -> bool:
    """Whether there is a zero point for each scale, a code of the type and of 16 bits at most."""
    if zero_point is None or len(zero_point) not in (1, count):
        return False
    values, dtype = np.asarray(zero_point, np.float64), np.dtype(flatbuffer.NUMPY_TYPES[kind])
    low, high = -(2.0**15), 2.0**15
    if kind == flatbuffer.Type.INT4:
        low, high = -8, 7
    elif dtype.kind in "iu":
        ends = np.iinfo(dtype.name)
        low, high = max(low, ends.min), min(high, ends.max)
    return bool(((low <= values) & (values <= high)).all())


def _of_operator(model: Any, graph: Any, op: Any) -> Iterator[str]:
    if not 0 <= op.opcodeIndex < len(model.operatorCodes):
        yield "whose kind is not there"
        return
    if _lacks_ends(model, op):
        yield "without inputs or outputs"
        return
    if not _in_range(graph, _ends(op)):
        yield "which reads or writes what is no tensor"
        return
    if not _in_range(graph, flatbuffer.intermediates(op)):
        yield "whose intermediate tensors are not there"
    # Kernels change the variables that they read; those of an LSTM are set to zero before.
    if any(graph.tensors[i].isVariable for i in op.outputs) and not _is_quantize(model, op):
        yield "which writes a variable"
    yield from _of_known(model, graph, op)


def _lacks_ends(model: Any, op: Any) -> bool:
    """Whether an operator has no lists of what it reads and writes, or writes nothing."""
    least = 0 if flatbuffer.op_code(model, op) in flatbuffer.WITHOUT_OUTPUTS else -1
    return op.inputs is None or op.outputs is None or min(op.outputs, default=least) < 0


def _is_quantize(model: Any, op: Any) -> bool:
    return flatbuffer.op_code(model, op) == flatbuffer.Op.QUANTIZE


def _ends(op: Any) -> list[int]:
    """The tensors of an operator."""
    # -1 is an optional input that is absent.
    return [i for i in (*op.inputs, *op.outputs) if i != -1]


def _of_known(model: Any, graph: Any, op: Any) -> Iterator[str]:
    code = flatbuffer.op_code(model, op)
    if not flatbuffer.is_known(code):
        yield f"of kind {code}, which there is not"
        return
    kind = flatbuffer.op_name(code)
    if kind not in OPERATORS:
        return
    # A bias may be absent, and the shape of a RESHAPE, which its options have as well.
    if -1 in [*op.inputs[: 1 if kind == "RESHAPE" else 2]]:
        yield f"{kind}, which lacks an input"
    elif not OPERATORS[kind].pass_through:
        yield from _without_grid(model, graph, kind, op)


def _without_grid(model: Any, graph: Any, kind: str, op: Any) -> Iterator[str]:
    """The codes without a grid that an operator computes on."""
    place = OPERATORS[kind].data
    if len(op.inputs) <= place:
        yield f"{kind}, which lacks an input"
        return
    # What it computes on decides, of QUANTIZE what it makes: a condition, or a shape, has no grid.
    values = graph.tensors[op.outputs[0] if kind == "QUANTIZE" else op.inputs[place]]
    codes = (flatbuffer.Type.INT8, flatbuffer.Type.INT16)
    if kind in ("CAST", "GATHER", "DEQUANTIZE") or values.type not in codes:
        return
    for tensor in (graph.tensors[i] for i in _ends(op)):
        if tensor.type in codes and not _has_grid(model, tensor):
            yield f"{kind}, which computes on {tensor.name.decode()!r}, whose grid is not there"


def _has_grid(model: Any, tensor: Any) -> bool:
    grid = flatbuffer.grid_of(tensor)
    # Weights may be all 0, and their scales.
    is_constant = flatbuffer.byte_count(model, tensor) > 0
    return grid is not None and bool(is_constant or np.all(grid.scale >= _LEAST))


def _in_range(graph: Any, indices: Any) -> bool:
    return all(0 <= i < len(graph.tensors) for i in indices)
