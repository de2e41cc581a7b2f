"""Operators of a .tflite file, each cut out of it as a file of its own."""

import contextlib
import copy
import types
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kerasq.litert import flatbuffer

OWN_KERNELS = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES


class Excerpt(NamedTuple):
    """An operator as a file of its own.

    Attributes:
        content: the file. Its inputs and outputs are those of the operator, with the shapes, types
            and grids that they have in the whole file; constants are constants of its own.
        inputs: the tensors of the whole file that its inputs are, by index; none where the operator
            reads constants alone.
    """

    content: bytes
    inputs: tuple[int, ...]


class Subgraph:
    """A subgraph of a file, and what is known of its tensors.

    Args:
        model: the file, in object form.
        graph: the subgraph.
        fixed: by index, what its operators compute from constants alone; by default that of none.
        values: by index, what tensors hold, as far as the file has run.
    """

    def __init__(
        self,
        model: schema.ModelT,
        graph: schema.SubGraphT,
        fixed: Mapping[int, np.ndarray] = types.MappingProxyType({}),
        values: Mapping[int, np.ndarray] = types.MappingProxyType({}),
    ) -> None:
        self._model, self._graph, self._fixed = model, graph, fixed
        self.values = {**values, **fixed}

    def alone(self, source: schema.OperatorT) -> tuple[schema.ModelT, tuple[int, ...]]:
        """An operator as a model of its own, and the tensors that this one's inputs are."""
        ends = (*source.inputs, *source.outputs, *flatbuffer.intermediates(source))
        used = sorted({int(i) for i in ends if i >= 0})
        # -1 stands for an optional input that is absent.
        place = {old: new for new, old in enumerate(used)} | {-1: -1}
        model, op, fed = _frame(self._model, source), copy.copy(source), self.fed(source)
        op.opcodeIndex = source.opcodeIndex if holds_subgraphs(source) else 0
        op.inputs = flatbuffer.renumbered(source.inputs, place)
        op.outputs = flatbuffer.renumbered(source.outputs, place)
        if len(flatbuffer.intermediates(source)):
            op.intermediates = flatbuffer.renumbered(source.intermediates, place)
        graph = model.subgraphs[0]
        graph.operators, graph.outputs = [op], op.outputs
        graph.inputs = flatbuffer.renumbered(fed, place)
        graph.tensors = [self._tensor(model, i, i in source.outputs) for i in used]
        return model, fed

    def is_constant(self, index: int) -> bool:
        """Whether a tensor is a constant, or computed from constants alone."""
        tensor = self._graph.tensors[index]
        return index in self._fixed or flatbuffer.byte_count(self._model, tensor) > 0

    def fed(self, op: schema.OperatorT) -> tuple[int, ...]:
        """What an operator is fed: no constants, nor variables, which begin as they do."""
        inputs = dict.fromkeys(int(i) for i in op.inputs if i >= 0 and not self.is_constant(i))
        return tuple(i for i in inputs if not self._graph.tensors[i].isVariable)

    def _tensor(self, model: schema.ModelT, index: int, is_output: bool) -> schema.TensorT:
        """A tensor of the file for an excerpt, which gets the values of a constant."""
        tensor = copy.copy(self._graph.tensors[index])
        if index in self.values:
            # What the interpreter found: a file may say less than that.
            tensor.shape = np.array(self.values[index].shape, np.int32)
        tensor.shapeSignature, tensor.buffer = None, 0
        held = None if is_output else self._buffer(index)
        if held is not None:
            model.buffers.append(held)
            tensor.buffer = len(model.buffers) - 1
        # The first values of a variable are written by an operator.
        tensor.isVariable = tensor.isVariable and not is_output
        return tensor

    def _buffer(self, index: int) -> schema.BufferT | None:
        """The values of a constant; None for a tensor that is fed, or a variable."""
        if index in self._fixed:
            made = schema.BufferT()
            made.data = np.frombuffer(self._fixed[index].tobytes(), np.uint8)
            return made
        if not self.is_constant(index):
            return None
        return self._model.buffers[self._graph.tensors[index].buffer]


class Excerpts:
    """Cuts operators out of the first subgraph of a file that has run.

    Args:
        model: the file, in object form.
        values: by index, what the inputs of the file hold, and what its operators compute. What
            these compute from constants alone may be missing, or wrong.
    """

    def __init__(self, model: schema.ModelT, values: Mapping[int, np.ndarray]) -> None:
        self._model, self._graph = model, model.subgraphs[0]
        self._known = Subgraph(model, self._graph, _fixed(model), values)

    def missing(self, index: int) -> str:
        """Why an operator cannot be cut out; "" where it can."""
        op = self._graph.operators[index]
        kinds = [self._graph.tensors[i].type for i in (*op.inputs, *op.outputs) if i >= 0]
        unknown = [x for x in kinds if x not in flatbuffer.NUMPY_TYPES]
        if unknown:
            return f"works on {flatbuffer.type_name(unknown[0])} tensors"
        if not len(op.outputs):
            return "has no output"
        is_known = {*self._known.values}.issuperset(self._known.fed(op))
        return "" if is_known else "reads a tensor without values"

    def holds_subgraphs(self, index: int) -> bool:
        """Whether an operator has others within, as a loop has."""
        return holds_subgraphs(self._graph.operators[index])

    def kind(self, index: int) -> Hashable:
        """What operators have in common that take the same time.

        That is all but the values of weights and the numbers of grids: the operator and its
        options, shapes, types, which tensors lie on one grid, and constants that are no weights,
        such as an axis.
        """
        op = self._graph.operators[index]
        if holds_subgraphs(op):
            return index
        code = self._model.operatorCodes[op.opcodeIndex]
        grids: list[tuple] = []
        ends = [self._end(i, grids) for i in (*op.inputs, *op.outputs)]
        return (code.builtinCode, code.customCode, code.version, _options(op), *ends)

    def _end(self, index: int, grids: list[tuple]) -> tuple:
        """What a tensor adds to `kind`; `grids` are those of the operator so far."""
        if index < 0:
            return ()
        tensor = self._graph.tensors[index]
        held = self._known.is_constant(index)
        grid = flatbuffer.grid_of(tensor)
        parts = () if grid is None else (grid.scale, grid.zero_point)
        own = tuple(np.asarray(x).tobytes() for x in parts)
        if own not in grids:
            grids.append(own)
        shape = () if tensor.shape is None else tuple(map(int, tensor.shape))
        # Sizes, axes and the like are integers without a grid.
        says = held and grid is None and flatbuffer.dtype(tensor).kind == "i"
        content = self._values_of(index).tobytes() if says else b""
        axis = None if grid is None else grid.axis
        return (shape, tensor.type, held, grids.index(own), grid is None, axis, content)

    def _values_of(self, index: int) -> np.ndarray:
        """The values of a constant, or of what is computed from constants alone."""
        found = flatbuffer.constant(self._model, self._graph.tensors[index])
        return self._known.values[index] if found is None else found

    def cut(self, index: int) -> Excerpt:
        """An operator as a file of its own."""
        model, fed = self._known.alone(self._graph.operators[index])
        return Excerpt(flatbuffer.write(model), fed)


def empty() -> bytes:
    """A file without any operator, its output its input: a call of it costs what any call does."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers = 3, [schema.BufferT()]
    model.operatorCodes, model.subgraphs = [], [graph]
    graph.operators, graph.tensors = [], []
    graph.inputs = graph.outputs = [flatbuffer.new_tensor(model, "x", (1,), np.int8)]
    return flatbuffer.write(model)


def computed(interpreter: Interpreter) -> dict[int, np.ndarray]:
    """By index, the outputs of an interpreter that has run."""
    found: dict[int, np.ndarray] = {}
    for detail in interpreter.get_output_details():
        # What has no elements, it does not hand out.
        with contextlib.suppress(ValueError):
            found[detail["index"]] = interpreter.get_tensor(detail["index"])
    return found


def _frame(source: schema.ModelT, op: schema.OperatorT) -> schema.ModelT:
    """A model without operators, with the tables that one of another's counts on."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.signatureDefs, model.metadata = source.version, [], []
    if holds_subgraphs(op):
        # These count on the tables of the file.
        model.subgraphs = [graph, *source.subgraphs[1:]]
        model.operatorCodes, model.buffers = source.operatorCodes, [*source.buffers]
    else:
        # Buffer 0 is that of tensors without data, by the schema's convention.
        model.subgraphs, model.buffers = [graph], [schema.BufferT()]
        model.operatorCodes = [source.operatorCodes[op.opcodeIndex]]
    return model


def _fixed(model: schema.ModelT) -> dict[int, np.ndarray]:
    """What operators compute from constants alone, such as weights of float16 in float32.

    What reads it has kernels for constants. XNNPACK computes it as it takes a file, and writes it
    nowhere, so that LiteRT's own kernels do here.
    """
    ops = _constant_ops(model)
    if not ops:
        return {}
    alone, graph = copy.copy(model), copy.copy(model.subgraphs[0])
    graph.operators, graph.inputs = ops, []
    graph.outputs = [int(i) for op in ops for i in op.outputs]
    alone.subgraphs, alone.signatureDefs = [graph, *model.subgraphs[1:]], []
    interpreter = Interpreter(
        model_content=flatbuffer.write(alone), experimental_op_resolver_type=OWN_KERNELS
    )
    interpreter.allocate_tensors()
    interpreter.invoke()
    return computed(interpreter)


def _constant_ops(model: schema.ModelT) -> list[schema.OperatorT]:
    """The operators that read constants, or what others of them compute, and write no variable."""
    graph = model.subgraphs[0]
    known = {i for i, x in enumerate(graph.tensors) if flatbuffer.byte_count(model, x)} | {-1}
    found = []
    for op in graph.operators:
        # What reads nothing, such as the handle of a variable, is no constant.
        if len(op.inputs) and known.issuperset(op.inputs) and _is_plain(graph, op):
            found.append(op)
            known.update(op.outputs)
    return found


def _is_plain(graph: schema.SubGraphT, op: schema.OperatorT) -> bool:
    """Whether what an operator writes are values, and stay them: no variable."""
    outputs = [graph.tensors[i] for i in op.outputs]
    return not any(x.isVariable or flatbuffer.dtype(x) == np.object_ for x in outputs)


def holds_subgraphs(op: schema.OperatorT) -> bool:
    """Whether an operator has others within, as a loop has."""
    names = [name for x in (op.builtinOptions, op.builtinOptions2) if x for name in vars(x)]
    return any("subgraph" in name.lower() for name in names)


def _options(op: schema.OperatorT) -> str:
    """The options of an operator, as text."""
    found: list[Any] = [x and vars(x) for x in (op.builtinOptions, op.builtinOptions2)]
    custom = None if op.customOptions is None else bytes(bytearray(op.customOptions))
    return repr((*found, custom))
