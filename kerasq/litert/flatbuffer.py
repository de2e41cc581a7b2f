"""Small helpers on the object form of a .tflite flatbuffer."""

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from kerasq.grid import Grid

Op = schema.BuiltinOperator
Type = schema.TensorType

# Four-bit codes travel as int8; in the file they are packed, two in a byte.
NUMPY_TYPES = {
    Type.FLOAT32: np.float32,
    Type.FLOAT16: np.float16,
    Type.INT4: np.int8,
    Type.INT8: np.int8,
    Type.UINT8: np.uint8,
    Type.INT16: np.int16,
    Type.UINT16: np.uint16,
    Type.INT32: np.int32,
    Type.INT64: np.int64,
    Type.BOOL: np.bool_,
    Type.UINT32: np.uint32,
    Type.UINT64: np.uint64,
    # Of float layers, such as those with a Fourier transform.
    Type.FLOAT64: np.float64,
    Type.COMPLEX64: np.complex64,
    Type.COMPLEX128: np.complex128,
}
# Of the two types that NumPy holds as int8 the later one wins: arrays are stored as INT8.
_TYPES = {np.dtype(value): key for key, value in NUMPY_TYPES.items()}
_BITS = {Type.INT4: 4, Type.INT8: 8, Type.UINT8: 8}
_TYPE_NAMES = {code: name.lower() for name, code in vars(Type).items() if name[0] != "_"}
_OP_NAMES = {code: name for name, code in vars(Op).items() if not name.startswith("_")}


# What reads nothing, or writes nothing: variables, tables, and what sets them before all calls.
WITHOUT_INPUTS = {Op.VAR_HANDLE, Op.HASHTABLE, Op.CALL_ONCE}
WITHOUT_OUTPUTS = {Op.ASSIGN_VARIABLE, Op.HASHTABLE_IMPORT, Op.CALL_ONCE}


def read(content: bytes) -> schema.ModelT:
    """The object form of a file's content."""
    try:
        model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
    except IndexError as error:
        raise ValueError(
            f"A .tflite file must be a whole model. Received: {error}. The file is damaged: export "
            "it again."
        ) from error
    for graph in model.subgraphs or ():
        # What CALL_ONCE runs has no ends.
        graph.inputs, graph.outputs = _present(graph.inputs), _present(graph.outputs)
        _complete(graph.operators or (), model.operatorCodes or ())
    return model


def _complete(ops: Any, codes: Any) -> None:
    """Gives operators the empty lists that the file has left out."""
    kinds = {i: code.builtinCode for i, code in enumerate(codes)}
    for op in ops:
        kind = kinds.get(op.opcodeIndex)
        op.inputs = _present(op.inputs) if kind in WITHOUT_INPUTS else op.inputs
        op.outputs = _present(op.outputs) if kind in WITHOUT_OUTPUTS else op.outputs


def _present(indices: Any) -> Any:
    """A list that a file may leave out where it is empty."""
    return np.zeros(0, np.int32) if indices is None else indices


def write(model: schema.ModelT) -> bytes:
    """The content of a file, from its object form."""
    builder = _Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class _Builder(flatbuffers.Builder):
    """Puts constants where kernels may read 16 bytes at once, as the schema asks.

    Zero points that are equal are in the file once: of channels all are 0, eight bytes each, and
    weights and biases of all layers of a width share them.
    """

    def __init__(self) -> None:
        super().__init__(1024)
        self._zero_points: dict[bytes, int] = {}

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> int:
        """As flatbuffers' own, which knows no `force_align`."""
        # Bytes are the content of buffers; all that describes a model has wider elements.
        return super().StartVector(elemSize, numElems, 16 if elemSize == 1 else alignment)

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        """As flatbuffers' own; of zero points that are in the file already, their place."""
        if x.dtype != np.int64:
            return super().CreateNumpyVector(x)
        place = self._zero_points.get(x.tobytes())
        if place is None:
            place = self._zero_points[x.tobytes()] = super().CreateNumpyVector(x)
        return place


def op_code(model: schema.ModelT, op: schema.OperatorT) -> int:
    """The builtin code of an operator, such as 3 for CONV_2D."""
    return model.operatorCodes[op.opcodeIndex].builtinCode


def is_known(code: int) -> bool:
    """Whether a builtin operator code is one."""
    return code in _OP_NAMES


def op_name(code: int) -> str:
    """The name of a builtin operator code, such as "CONV_2D"."""
    return _OP_NAMES[code]


def op_kinds(model: schema.ModelT) -> list[str]:
    """The names of all operators that a file has, those inside of loops too."""
    ops = [op for graph in model.subgraphs for op in graph.operators]
    return sorted({op_name(op_code(model, op)) for op in ops})


def is_for_npu(model: schema.ModelT) -> bool:
    """Whether Vela has compiled a file for Arm's Ethos-U: the NPU is an operator of it."""
    return any(code.customCode == b"ethos-u" for code in model.operatorCodes or ())


def type_name(code: int) -> str:
    """The name of a tensor type, such as "int8"."""
    return _TYPE_NAMES[code]


def dtype(tensor: schema.TensorT) -> np.dtype:
    """The type of a tensor's values in NumPy: object where that has none, as of strings."""
    return np.dtype(NUMPY_TYPES.get(tensor.type, np.object_))


def byte_count(model: schema.ModelT, tensor: schema.TensorT) -> int:
    """The size of a constant tensor in the file; 0 where it is computed."""
    data = model.buffers[tensor.buffer].data
    return 0 if data is None else len(data)


def constant(model: schema.ModelT, tensor: schema.TensorT) -> np.ndarray | None:
    """The values of a constant tensor, or None where it is computed, or NumPy has no such type."""
    data = model.buffers[tensor.buffer].data
    if data is None or len(data) == 0 or dtype(tensor) == np.object_:
        return None
    content, shape = bytes(bytearray(data)), () if tensor.shape is None else tensor.shape
    if tensor.type == Type.INT4:
        return unpack(content, int(np.prod(shape))).reshape(shape)
    values: np.ndarray = np.frombuffer(content, dtype(tensor))
    return values.reshape(shape)


def pack(codes: np.ndarray) -> np.ndarray:
    """Four-bit codes two in a byte, the first in the lower half, as LiteRT reads INT4."""
    # An odd number of codes leaves half a byte over.
    even = np.append(codes.ravel(), np.zeros(codes.size % 2, np.int8))
    # In two's complement the lower half of a negative code says all of it.
    halves = even.astype(np.uint8) & 15
    return halves[0::2] | halves[1::2] << 4


def unpack(content: bytes, count: int) -> np.ndarray:
    """What `pack` packed, as int8."""
    packed: np.ndarray = np.frombuffer(content, np.uint8)
    halves = np.stack([packed & 15, packed >> 4], -1).ravel()
    codes = halves[:count].astype(np.int8)
    return np.where(codes > 7, codes - 16, codes).astype(np.int8)


def pack_constant(model: schema.ModelT, tensor: schema.TensorT) -> None:
    """Stores a constant int8 tensor of four-bit codes as INT4."""
    codes = constant(model, tensor)
    assert codes is not None
    model.buffers[tensor.buffer].data = pack(codes)
    tensor.type = Type.INT4


def new_tensor(
    model: schema.ModelT,
    name: str,
    shape: Any,
    dtype: Any,
    grid: Grid | None = None,
    values: np.ndarray | None = None,
) -> int:
    """Appends a tensor to the first subgraph and returns its index."""
    tensor = schema.TensorT()
    tensor.name = name.encode()
    tensor.shape = np.asarray(shape, np.int32)
    tensor.type = _TYPES[np.dtype(dtype)]
    # The shape of a scalar is empty, as is one that is not known: this tells them apart.
    tensor.hasRank = True
    # Buffer 0 is that of tensors without data, by the schema's convention.
    tensor.buffer = 0
    if grid is not None:
        set_grid(tensor, grid)
    if values is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(np.asarray(values, dtype).tobytes(), np.uint8)
        model.buffers.append(buffer)
        tensor.buffer = len(model.buffers) - 1
    tensors = model.subgraphs[0].tensors
    tensors.append(tensor)
    return len(tensors) - 1


def set_grid(tensor: schema.TensorT, grid: Grid) -> None:
    """Writes a grid's scale, zero point and axis."""
    parameters = schema.QuantizationParametersT()
    parameters.scale = np.atleast_1d(np.asarray(grid.scale, np.float32))
    parameters.zeroPoint = np.atleast_1d(np.asarray(grid.zero_point, np.int64))
    parameters.quantizedDimension = grid.axis or 0
    parameters.detailsType = 0
    tensor.quantization = parameters


def grid_of(tensor: schema.TensorT) -> Grid | None:
    """The grid that a tensor's parameters describe, in signed codes; None where it has none.

    Where the tensor is UINT8 or UINT16, codes and zero points of the signed grid are lower by half
    the number of codes.
    """
    parameters = tensor.quantization
    if parameters is None or parameters.scale is None or len(parameters.scale) == 0:
        return None
    # Grids have 16 bits at most: of a bias, which is int32, only scale and axis are meant.
    bits = _BITS.get(tensor.type, 16)
    offset = 2 ** (bits - 1) if tensor.type in (Type.UINT8, Type.UINT16) else 0
    scale = np.asarray(parameters.scale, np.float32)
    zero_point = np.asarray(parameters.zeroPoint, np.int64).astype(np.int32) - offset
    # A file does not tell a tensor of one channel from one without channels.
    if len(scale) == 1:
        return Grid(scale=scale[0], zero_point=zero_point[0], bits=bits)
    return Grid(scale=scale, zero_point=zero_point, bits=bits, axis=parameters.quantizedDimension)


def new_op(
    model: schema.ModelT,
    code: int,
    inputs: list[int],
    outputs: list[int],
    version: int = 1,
    options: tuple[str, dict] | None = None,
) -> schema.OperatorT:
    """An operator on the operator code entry that it needs.

    `options` are the name of their class in the schema, and their values.
    """
    op = schema.OperatorT()
    op.opcodeIndex = code_index(model, code, version)
    op.inputs, op.outputs = np.asarray(inputs, np.int32), np.asarray(outputs, np.int32)
    if options is not None:
        kind, values = options
        op.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        op.builtinOptions = getattr(schema, f"{kind}T")()
        for name, value in values.items():
            setattr(op.builtinOptions, name, value)
    return op


def code_index(model: schema.ModelT, code: int, version: int) -> int:
    """The index of an operator code entry, appended where there is none yet."""
    for index, entry in enumerate(model.operatorCodes):
        if (entry.builtinCode, entry.version) == (code, version):
            return index
    entry = schema.OperatorCodeT()
    entry.builtinCode, entry.version = code, version
    # Runtimes from before this field grew to 32 bits read the old one, which has 8.
    entry.deprecatedBuiltinCode = min(code, Op.PLACEHOLDER_FOR_GREATER_OP_CODES)
    model.operatorCodes.append(entry)
    return len(model.operatorCodes) - 1


def with_outputs(content: bytes, names: set[str] | None = None) -> bytes:
    """A file whose outputs are its own and then every computed tensor of these names, or any.

    An interpreter uses the memory of other tensors again, and those between two operators that
    XNNPACK's delegate runs are never written.
    """
    model = read(content)
    graph = model.subgraphs[0]
    computed = [int(i) for op in graph.operators for i in op.outputs]
    # No interpreter hands out resources, such as the handle of a variable.
    computed = [i for i in computed if dtype(graph.tensors[i]) != np.object_]
    found = [i for i in computed if names is None or graph.tensors[i].name.decode() in names]
    extra = [i for i in found if i not in graph.outputs]
    graph.outputs = np.array([*graph.outputs, *extra], np.int32)
    # The signature has no names for the new outputs; without one, tensors go by their own.
    model.signatureDefs = []
    return write(model)


def prune(model: schema.ModelT) -> None:
    """Drops tensors, buffers and operator codes that nothing uses, and the converter's metadata.

    Subgraphs behind the first, such as the body of a loop, keep their tensors.

    Constants of equal bytes become one buffer; those that are on one grid as well, such as the
    kernel of a layer that is called twice, one tensor.
    """
    _merge_constants(model)
    _prune_tensors(model)
    _prune_operator_codes(model)
    # Behind the tensors, since constants that only dropped ones had are dropped with them.
    _prune_buffers(model)
    # Its min_runtime_version is that of the float model, not of the operators that are here now.
    model.metadata = []


def _merge_constants(model: schema.ModelT) -> None:
    """Has operators of the first subgraph read the first of the constants that are equal."""
    graph = model.subgraphs[0]
    first: dict[tuple, int] = {}
    place = {-1: -1}
    for i, tensor in enumerate(graph.tensors):
        place[i] = first.setdefault(_contents(model, tensor) or (i,), i)
    for op in graph.operators:
        op.inputs = renumbered(op.inputs, place)


def _contents(model: schema.ModelT, tensor: schema.TensorT) -> tuple | None:
    """What makes up a constant but for its name; None for a tensor that is computed."""
    data = model.buffers[tensor.buffer].data
    if data is None or not len(data):
        return None
    found = tensor.quantization
    grids = () if found is None or found.scale is None else (found.scale, found.zeroPoint)
    axis = 0 if found is None else found.quantizedDimension
    parts = map(bytes, map(np.ascontiguousarray, (data, tensor.shape, *grids)))
    return (tensor.type, axis, *parts)


def _prune_tensors(model: schema.ModelT) -> None:
    """Drops tensors of the first subgraph that are no end of it or of an operator."""
    graph = model.subgraphs[0]
    used = {*graph.inputs, *graph.outputs}
    for op in graph.operators:
        used.update(op.inputs, op.outputs, intermediates(op))
    kept = sorted(int(i) for i in used if i >= 0)
    # -1 stands for an optional input that is absent, and must stay in its place.
    place = {old: new for new, old in enumerate(kept)} | {-1: -1}
    graph.tensors = [graph.tensors[i] for i in kept]
    for ends in (graph, *graph.operators):
        ends.inputs = renumbered(ends.inputs, place)
        ends.outputs = renumbered(ends.outputs, place)
    # Where there are none the list stays as it is: an empty one has bytes in the file.
    for op in filter(lambda op: len(intermediates(op)), graph.operators):
        op.intermediates = renumbered(intermediates(op), place)
    _renumber_signatures(model, place)


def _renumber_signatures(model: schema.ModelT, place: dict[int, int]) -> None:
    for signature in model.signatureDefs:
        for end in (*signature.inputs, *signature.outputs):
            end.tensorIndex = place[end.tensorIndex]


def intermediates(op: schema.OperatorT) -> Any:
    """The tensors that an operator has for itself, as an LSTM does."""
    return () if op.intermediates is None else op.intermediates


def renumbered(indices: Any, place: dict[int, int]) -> np.ndarray:
    """The new places of tensors."""
    return np.array([place[int(i)] for i in indices], np.int32)


def _prune_operator_codes(model: schema.ModelT) -> None:
    """Drops operator codes that no operator of any subgraph has: the table is the file's."""
    ops = [op for subgraph in model.subgraphs for op in subgraph.operators]
    kept = sorted({op.opcodeIndex for op in ops})
    for op in ops:
        op.opcodeIndex = kept.index(op.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[i] for i in kept]


def _prune_buffers(model: schema.ModelT) -> None:
    """Makes one buffer of constants that are equal, and drops those without a tensor."""
    tensors = [tensor for subgraph in model.subgraphs for tensor in subgraph.tensors]
    first: dict[bytes, int] = {}
    for tensor in tensors:
        data = model.buffers[tensor.buffer].data
        if data is not None and len(data):
            tensor.buffer = first.setdefault(bytes(data), tensor.buffer)
    # The schema keeps buffer 0 for tensors without data, so it stays, and stays empty.
    kept = sorted({0, *(tensor.buffer for tensor in tensors)})
    for tensor in tensors:
        tensor.buffer = kept.index(tensor.buffer)
    model.buffers = [model.buffers[i] for i in kept]
