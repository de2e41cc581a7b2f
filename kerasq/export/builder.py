"""The model under construction: tensors with their grids, operators in order."""

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.grid import Grid
from kerasq.litert import flatbuffer
from kerasq.litert.flatbuffer import Op
from kerasq.targets import Target


class Builder:
    """Appends integer tensors and operators to a flatbuffer.

    Attributes:
        target: what the model is to run on.
        model: the flatbuffer in object form.
        graph: its one subgraph.
        grids: by index, the grid of each integer tensor that was added.
        ops: the operators of the finished model, in order.
    """

    def __init__(self, model: schema.ModelT, target: Target) -> None:
        self.target = target
        self.model = model
        self.graph = model.subgraphs[0]
        self.grids: dict[int, Grid] = {}
        self.ops: list[schema.OperatorT] = []

    def tensor(self, index: int) -> schema.TensorT:
        """A tensor of the graph."""
        return self.graph.tensors[index]

    def name(self, index: int) -> str:
        """The name of a tensor."""
        return self.tensor(index).name.decode()

    def rename(self, index: int, name: str) -> None:
        """Gives a tensor a name."""
        self.tensor(index).name = name.encode()

    def constant(self, index: int) -> np.ndarray | None:
        """The values of a constant tensor, or None where it is computed."""
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
        version = version or self.target.version(kind, 8, grid.bits if grid else 8)
        code = getattr(Op, kind)
        self.ops.append(flatbuffer.new_op(self.model, code, inputs, outputs, version, options))

    def requantized(self, tensor: int, name: str, grid: Grid) -> int:
        """The tensor on another grid: itself, or behind a QUANTIZE."""
        if self.grids[tensor].equals(grid):
            return tensor
        output = self.add(name, self.tensor(tensor).shape, grid)
        self.emit("QUANTIZE", [tensor], [output])
        return output
