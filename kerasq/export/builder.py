"""The model under construction: tensors with their grids, operators in order."""

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.export.convert import Converted
from kerasq.export.marks import OfOperator
from kerasq.grid import Grid
from kerasq.litert import flatbuffer
from kerasq.litert.flatbuffer import Op


class Builder:
    """Appends integer tensors and operators to a marked float flatbuffer.

    Tensors are meant by their index. The marked graph's own stay where they are, so that an
    operator may still be asked for what it reads; `flatbuffer.prune` drops those that end unread.

    Attributes:
        target: what the model is to run on.
        model: the flatbuffer in object form.
        graph: its one subgraph.
        marks: what is known of a tensor of the marked graph that an operator computes.
        grids: the grid of each integer tensor that was added.
        codes: the integer tensor that stands for a tensor of the marked graph.
        reals: the float one that stands for it, where it is another.
        ops: the operators of the finished model, in order.
    """

    def __init__(self, model: schema.ModelT, converted: Converted) -> None:
        self.target = converted.target
        self.model = model
        self.graph = model.subgraphs[0]
        self.marks: dict[int, OfOperator] = {}
        self.grids: dict[int, Grid] = {}
        self.codes: dict[int, int] = {}
        self.reals: dict[int, int] = {}
        self.ops: list[schema.OperatorT] = []
        self._layer_of = converted.layer_of
        self._dequantized: dict[int, int] = {}

    def tensor(self, index: int) -> schema.TensorT:
        """A tensor of the graph."""
        return self.graph.tensors[index]

    def name(self, index: int) -> str:
        """The name of a tensor."""
        return self.tensor(index).name.decode()

    def rename(self, index: int, name: str) -> None:
        """Gives a tensor a name."""
        self.tensor(index).name = name.encode()

    def layer(self, index: int) -> str:
        """The layer that computes a tensor of the marked graph, or the tensor's own name."""
        return self._layer_of(self.name(index)) or self.name(index)

    def constant(self, index: int) -> np.ndarray | None:
        """The values of a constant tensor, or None where it is computed."""
        # Packed INT4 comes out as int8, one value a byte.
        return flatbuffer.constant(self.model, self.tensor(index))

    def op(self, op: schema.OperatorT) -> str:
        """The name of an operator's kind, such as "CONV_2D"."""
        return flatbuffer.op_name(flatbuffer.op_code(self.model, op))

    def add(self, name: str, shape: Any, grid: Grid, values: np.ndarray | None = None) -> int:
        """A new tensor on a grid."""
        index = flatbuffer.new_tensor(self.model, name, shape, grid.dtype, grid, values)
        self.grids[index] = grid
        return index

    def emit(
        self,
        kind: str,
        inputs: list[int],
        outputs: list[int],
        version: int = 0,
        options: tuple[str, dict] | None = None,
    ) -> None:
        """A new operator; by default of the least version for its input, and without options."""
        grid = self.grids.get(inputs[0])
        # Of the operators that the lowering adds, none has weights, so their bits do not count.
        version = version or self.target.version(kind, 8, grid.bits if grid else 8)
        code = getattr(Op, kind)
        self.ops.append(flatbuffer.new_op(self.model, code, inputs, outputs, version, options))

    def requantized(self, tensor: int, name: str, grid: Grid) -> int:
        """The integer tensor on another grid: itself, or behind a QUANTIZE."""
        # Equal to the last bit of the scale: the simulation has a QUANTIZE wherever it is not.
        if self.grids[tensor].equals(grid):
            return tensor
        output = self.add(name, self.tensor(tensor).shape, grid)
        self.emit("QUANTIZE", [tensor], [output])
        return output

    def real(self, index: int) -> int:
        """The float tensor that has the values of a tensor of the marked graph."""
        if index not in self.codes:
            return self.reals.get(index, index)
        code = self.codes[index]
        # One DEQUANTIZE serves all float operators that read the tensor.
        if code not in self._dequantized:
            name, shape = f"{self.name(code)}_float", self.tensor(code).shape
            real = flatbuffer.new_tensor(self.model, name, shape, np.float32)
            self.emit("DEQUANTIZE", [code], [real])
            self._dequantized[code] = real
        return self._dequantized[code]
