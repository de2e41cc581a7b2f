"""Flatbuffers of one operator, built with LiteRT's object API, and how to run them."""

import dataclasses
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_litert.tools import flatbuffer_utils

from kerasq.grid import Grid
from kerasq.litert import flatbuffer

Op = schema.BuiltinOperator
RESOLVERS = {"optimized": OpResolverType.AUTO, "reference": OpResolverType.BUILTIN_REF}
_TYPES = {
    "int4": schema.TensorType.INT4,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int16": schema.TensorType.INT16,
    "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64,
    "float32": schema.TensorType.FLOAT32,
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor; one without values is an input of the model, the last of a list its output."""

    shape: tuple[int, ...]
    grid: Grid | None = None
    dtype: str = "int8"
    values: np.ndarray | None = None


def build(code: int, version: int, tensors: list[Tensor], **options: Any) -> bytes:
    """The flatbuffer of `code`; `options` are the fields of its options, `kind` their class."""
    model = schema.ModelT()
    model.version, model.description = 3, b"one operator"
    model.buffers, model.metadata, model.signatureDefs = [schema.BufferT()], [], []
    graph = schema.SubGraphT()
    graph.name = b"main"
    graph.tensors = [_tensor(model, i, tensor) for i, tensor in enumerate(tensors)]
    last = len(tensors) - 1
    graph.inputs = np.array([i for i in range(last) if tensors[i].values is None], np.int32)
    graph.outputs = np.array([last], np.int32)
    graph.operators = [_operator(last, **options)]
    operator_code = schema.OperatorCodeT()
    operator_code.builtinCode = code
    operator_code.deprecatedBuiltinCode = min(code, 127)
    operator_code.version = version
    model.operatorCodes, model.subgraphs = [operator_code], [graph]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def _operator(last: int, kind: str | None = None, **fields: Any) -> schema.OperatorT:
    op = schema.OperatorT()
    op.opcodeIndex = 0
    op.inputs, op.outputs = np.arange(last, dtype=np.int32), np.array([last], np.int32)
    if kind is not None:
        op.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        op.builtinOptions = getattr(schema, f"{kind}T")()
        for name, value in fields.items():
            setattr(op.builtinOptions, name, value)
    return op


def _tensor(model: schema.ModelT, index: int, spec: Tensor) -> schema.TensorT:
    tensor = schema.TensorT()
    tensor.name, tensor.hasRank, tensor.buffer = f"t{index}".encode(), True, 0
    tensor.shape, tensor.type = np.array(spec.shape, np.int32), _TYPES[spec.dtype]
    if spec.grid is not None:
        found = schema.QuantizationParametersT()
        found.scale = np.atleast_1d(np.float32(spec.grid.scale))
        found.zeroPoint = np.broadcast_to(np.int64(spec.grid.zero_point), found.scale.shape).copy()
        found.quantizedDimension, found.details, found.detailsType = spec.grid.axis or 0, None, 0
        tensor.quantization = found
    if spec.values is not None:
        buffer = schema.BufferT()
        packed = spec.dtype == "int4"
        values = flatbuffer.pack(spec.values) if packed else np.asarray(spec.values, spec.dtype)
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        model.buffers.append(buffer)
        tensor.buffer = len(model.buffers) - 1
    return tensor


def run(content: bytes, *inputs: np.ndarray, kernels: str = "optimized") -> np.ndarray:
    """What LiteRT computes, on its "optimized" (default) or its "reference" kernels."""
    interpreter = Interpreter(
        model_content=content,
        num_threads=1,
        experimental_op_resolver_type=RESOLVERS[kernels],
    )
    interpreter.allocate_tensors()
    for details, values in zip(interpreter.get_input_details(), inputs, strict=True):
        interpreter.set_tensor(details["index"], values)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
