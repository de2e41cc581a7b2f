"""The operator of a whole LSTM, in place of the product that stands for it."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.export.builder import Builder
from kerasq.export.marks import Recurrent
from kerasq.export.operators import data_grid, data_input, no_integer_form
from kerasq.grid import Grid
from kerasq.litert import flatbuffer

GATES = ("input", "forget", "cell", "output")
_NONE = -1  # An input that is left out.


def compute(builder: Builder, op: schema.OperatorT, mark: Recurrent) -> str | None:
    """UNIDIRECTIONAL_SEQUENCE_LSTM on integers; the reason, where there can be none.

    Its states are variables of the file, which would go on from one call to the next. A QUANTIZE of
    zeros is written to each of them before.
    """
    if reason := no_integer_form(builder, op):
        return reason
    x = builder.codes[data_input(builder, op)]
    shape = builder.tensor(x).shape
    if len(shape) != 3:
        return f"it reads a tensor of shape {[*shape]}, not a sequence"
    weights, name = mark.weights, mark.name
    units = weights.recurrent.shape[0]
    kernels = _kernels(builder, f"{name}/kernel", weights.kernel, weights.kernel_scale)
    recurrent = _kernels(builder, f"{name}/recurrent", weights.recurrent, weights.recurrent_scale)
    biases = _biases(builder, mark, data_grid(builder, op))
    zero = np.int32(0)
    cell = Grid(scale=np.float32(2.0 ** (mark.cell_bits - 15)), zero_point=zero, bits=16)
    states = [
        _state(builder, f"{name}/{kind}_state", (shape[0], units), grid)
        for kind, grid in (("hidden", mark.grid), ("cell", cell))
    ]
    output = builder.add(name, (*shape[:2], units), mark.grid)
    builder.codes[int(op.outputs[0])] = output
    projection, norms, peepholes = [_NONE] * 2, [_NONE] * 4, [_NONE] * 3
    inputs = [x, *kernels, *recurrent, *peepholes, *biases, *projection, *states, *norms]
    options = {"fusedActivationFunction": schema.ActivationFunctionType.TANH}
    builder.emit(
        "UNIDIRECTIONAL_SEQUENCE_LSTM",
        inputs,
        [output],
        options=("UnidirectionalSequenceLSTMOptions", options),
    )
    # The kernel wants five, and reads the grid of the last one: that of the hidden state. TFLite
    # Micro refuses those that have a size.
    grids = [cell] * 4 + [mark.grid]
    builder.ops[-1].intermediates = np.array(
        [builder.add(f"{name}/intermediate_{i}", (0,), grid) for i, grid in enumerate(grids)],
        np.int32,
    )
    return None


def _kernels(builder: Builder, name: str, codes: np.ndarray, scales: np.ndarray) -> list[int]:
    """The kernel of each gate, `(units, inputs)`."""
    found = []
    for gate, part, scale in zip(GATES, np.split(codes.T, 4), scales, strict=True):
        grid = Grid(scale=np.float32(scale), zero_point=np.int32(0), narrow=True)
        found.append(builder.add(f"{name}_{gate}", part.shape, grid, part.astype(np.int8)))
    return found


def _biases(builder: Builder, mark: Recurrent, grid: Grid) -> list[int]:
    found = []
    parts = zip(GATES, np.split(mark.weights.bias, 4), mark.weights.kernel_scale, strict=True)
    for gate, part, scale in parts:
        steps = Grid(scale=np.float32(grid.scale) * np.float32(scale), zero_point=np.int64(0))
        name = f"{mark.name}/bias_{gate}"
        found.append(flatbuffer.new_tensor(builder.model, name, part.shape, np.int32, steps, part))
    return found


def _state(builder: Builder, name: str, shape: tuple[int, ...], grid: Grid) -> int:
    """A variable that holds zeros whenever the operator begins."""
    state = builder.add(name, shape, grid)
    builder.tensor(state).isVariable = True
    zeros = np.full(shape, grid.zero_point, grid.dtype)
    # The reference kernels compute it anew in each call, where a RESHAPE would be done once.
    builder.emit("QUANTIZE", [builder.add(f"{name}_zeros", shape, grid, zeros)], [state])
    return state
