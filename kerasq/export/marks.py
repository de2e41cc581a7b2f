"""Marks: what the first half of the export says to the second of the tensors behind its markers.

A marker is an operator that TFLite does not have, with the number of a mark as its second operand.
The lowering matches on the classes here; there is nothing else between the halves.
"""

import dataclasses

import numpy as np

from kerasq.grid import Grid
from kerasq.kernels.lstm import LstmWeights


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Separator:
    """Keeps operators apart that the converter would merge or rewrite; nothing else."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Named:
    """The output of a layer that is float, or whose values keep the grid of what they come from.

    Attributes:
        name: the layer.
    """

    name: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Computed:
    """The output of a layer that one operator of the converter computes.

    Attributes:
        name: the layer.
        grid: the grid of the output.
    """

    name: str
    grid: Grid


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Weighted:
    """The output of an operator with a kernel, which the converter has as floats.

    Attributes:
        name: the layer.
        grid: the grid of the output.
        kernel: the grid of the kernel: per channel along the last axis, or one.
        bias: the codes of the bias, int64, `(channels,)`.
    """

    name: str
    grid: Grid
    kernel: Grid
    bias: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recurrent:
    """The output of a whole LSTM, for which the converter has a product of the right shape.

    Attributes:
        name: the layer.
        grid: the grid of the hidden state.
        weights: codes and scales, in NumPy.
        cell_bits: integer bits of the cell state.
    """

    name: str
    grid: Grid
    weights: LstmWeights
    cell_bits: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """Values that are put onto a grid: QUANTIZE, from floats or from another grid.

    Attributes:
        name: the boundary.
        grid: the grid.
        reads_float: whether the simulation rounds floats: where an operator of a float layer could
            move codes, as a maximum does, these are real values again before they are rounded.
    """

    name: str
    grid: Grid
    reads_float: bool


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Constant:
    """Values that do not depend on the tensor before the marker: a tensor of the file.

    Attributes:
        name: the layer.
        grid: their grid.
        codes: their codes.
    """

    name: str
    grid: Grid
    codes: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LookedUp:
    """A function of each value alone: GATHER from a table, by the code of the input.

    Attributes:
        name: the layer.
        grid: the grid of the output.
        table: the codes of the output, up to that of the highest input code; from that of the
            lowest one on, or of 0 where there are no negative ones.
    """

    name: str
    grid: Grid
    table: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Emitted:
    """The output of an operator that the converter does not make, but the lowering.

    Attributes:
        name: the layer.
        grid: the grid of the output.
        op: the operator.
        options: the class of its options in the flatbuffer schema, and their values, if any.
    """

    name: str
    grid: Grid
    op: str
    options: tuple[str, dict] | None


# What an operator before the marker computes.
OfOperator = Named | Computed | Weighted | Recurrent
# What the lowering makes from the tensor before the marker.
Made = Quantized | Constant | LookedUp | Emitted
Mark = Separator | OfOperator | Made
