"""What the finished model looks like from outside: types and names of its ends and tensors."""

import dataclasses

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq import graph
from kerasq.export.builder import Builder
from kerasq.litert import flatbuffer
from kerasq.litert.flatbuffer import Op
from kerasq.litert.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signature:
    """The ends of the finished model.

    Attributes:
        input_dtype: "uint8", "float32", or None for the codes of each input's own grid.
        output_dtype: the same choice.
        float_inputs: which inputs stay float in any case.
        preprocessing: what scales each input in float; left to whoever feeds it integers.
        input_names: names of the inputs in the signature, and of their tensors.
        output_names: names of the outputs in the signature.
        output_layers: the layers that make them, which their tensors are named for.
    """

    input_dtype: str | None
    output_dtype: str | None
    float_inputs: list[bool]
    preprocessing: list[Preprocessing | None]
    input_names: list[str]
    output_names: list[str]
    output_layers: list[str]


def add(model: schema.ModelT) -> None:
    """Adds a signature with the ends of a converted function, in the Keras model's order."""
    signature, main = schema.SignatureDefT(), model.subgraphs[0]
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    signature.inputs = list(map(_end, main.inputs))
    signature.outputs = list(map(_end, main.outputs))
    model.signatureDefs = [signature]


def _end(tensor: int) -> schema.TensorMapT:
    end = schema.TensorMapT()
    end.tensorIndex = int(tensor)
    return end


def set_inputs(builder: Builder, wanted: Signature) -> None:
    """Gives inputs their type: the QUANTIZE behind one goes, or reads unsigned codes."""
    signature = builder.model.signatureDefs[0]
    for end, name, is_float in zip(
        signature.inputs, wanted.input_names, wanted.float_inputs, strict=True
    ):
        end.name = name.encode()
        builder.rename(end.tensorIndex, name)
        # What the converter has found out to be constant may read no input.
        is_read = any(end.tensorIndex in op.inputs for op in builder.ops)
        if wanted.input_dtype != "float32" and not is_float and is_read:
            end.tensorIndex = _integer_input(builder, end.tensorIndex, name, wanted.input_dtype)
    builder.graph.inputs = [end.tensorIndex for end in signature.inputs]


def _integer_input(builder: Builder, real: int, name: str, dtype: str | None) -> int:
    """The tensor that takes the codes of an input instead of its values."""
    op = _boundary(builder, real)
    code = int(op.outputs[0])
    end = _typed(builder, code, name, dtype)
    if end == code:
        builder.ops = [other for other in builder.ops if other is not op]
        builder.rename(code, name)
    else:
        # It read floats, and reads codes from now on, which is another version.
        op.inputs = np.array([end], np.int32)
        version = builder.target.version("QUANTIZE", 8, 8)
        op.opcodeIndex = flatbuffer.code_index(builder.model, Op.QUANTIZE, version)
    return end


def _boundary(builder: Builder, real: int) -> schema.OperatorT:
    """The QUANTIZE behind a float input; operators in front of it, which scale it, go."""
    # These are all that read it: `quantize_model` puts a boundary behind every input on a grid.
    (op,) = (op for op in builder.ops if real in op.inputs)
    if builder.op(op) == "QUANTIZE":
        return op
    builder.ops = [other for other in builder.ops if other is not op]
    return _boundary(builder, int(op.outputs[0]))


def preprocessing(wanted: Signature) -> list[Preprocessing | None]:
    """What whoever feeds the finished model computes of each input."""
    is_float = wanted.input_dtype == "float32"
    return [None if is_float else own for own in wanted.preprocessing]


def set_outputs(builder: Builder, wanted: Signature, tensors: dict[int, int]) -> None:
    """Gives outputs their type, through a QUANTIZE or DEQUANTIZE where it is not their own.

    Args:
        builder: the model.
        wanted: names and types.
        tensors: the tensor that stands for a tensor of the marked graph, where it is another.
    """
    signature = builder.model.signatureDefs[0]
    codes = [tensors.get(end.tensorIndex, end.tensorIndex) for end in signature.outputs]
    _name_outputs(builder, codes, wanted.output_layers)
    ends = zip(signature.outputs, codes, wanted.output_names, wanted.output_layers, strict=True)
    for end, code, name, layer in ends:
        end.name = name.encode()
        dtype = wanted.output_dtype if code in builder.grids else None
        # A float layer that only moves values is none in the file: its output may have 16 bits.
        if dtype == "uint8" and builder.grids[code].bits > 8:
            dtype = "float32"
        end.tensorIndex = _typed(builder, code, f"{layer}_{dtype}", dtype)
        if end.tensorIndex != code:
            kind = "DEQUANTIZE" if dtype == "float32" else "QUANTIZE"
            builder.emit(kind, [code], [end.tensorIndex])
    builder.graph.outputs = [end.tensorIndex for end in signature.outputs]


def _name_outputs(builder: Builder, codes: list[int], makers: list[str]) -> None:
    """Gives outputs the names of the layers that make them."""
    layers = {mark.name for mark in builder.marks.values()}
    # A model may give one tensor as two outputs; the first names it.
    for code, maker in reversed([*zip(codes, makers, strict=True)]):
        # Behind a layer that does nothing, such as a Reshape to the shape that there is, it has the
        # name of the layer before.
        if builder.name(code) not in layers:
            builder.rename(code, maker)


def _typed(builder: Builder, code: int, name: str, dtype: str | None) -> int:
    """`code` itself, or a new tensor of the same shape that is float or has unsigned codes."""
    if dtype is None:
        return code
    shape = builder.tensor(code).shape
    if dtype == "float32":
        return flatbuffer.new_tensor(builder.model, name, shape, np.float32)
    grid = builder.grids[code]
    # int8 codes plus 128: the same steps, counted from 0, so that QUANTIZE rounds nothing.
    unsigned = dataclasses.replace(grid, zero_point=grid.zero_point + 128)
    return flatbuffer.new_tensor(builder.model, name, shape, np.uint8, unsigned)


def distinct_names(builder: Builder) -> None:
    """Numbers names that several tensors have; the last operator's output keeps it as it is."""
    outputs = [int(i) for op in reversed(builder.ops) for i in op.outputs]
    others = [int(i) for op in builder.ops for i in op.inputs if i >= 0]
    # Tools that look at a model find the result of a layer under its plain name.
    taken: set[str] = set()
    for index in dict.fromkeys(outputs + others):
        name = builder.name(index).partition(";PartitionedCall/")[0]  # The same once more.
        distinct = graph.distinct_name(name, taken, first=1, mark="/")
        taken.add(distinct)
        builder.rename(index, distinct)
