"""Rewrite of operators with weights: float kernel and bias to codes."""

import dataclasses

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.export.builder import Builder
from kerasq.export.marks import Weighted
from kerasq.export.operators import (
    data_grid,
    integer_inputs,
    name_parameters,
    no_integer_form,
    put,
)
from kerasq.export.substitutes import convolution
from kerasq.grid import Grid
from kerasq.litert import flatbuffer


def compute(builder: Builder, op: schema.OperatorT, mark: Weighted) -> str | None:
    """An operator with weights, on integer tensors; the reason, where it has no such form.

    Its bias is int32 at `s_in * s_w[c]`, or int64 under int16 activations.
    """
    if reason := no_integer_form(builder, op):
        return reason
    kind = builder.op(op)
    known = builder.target.operators[kind]
    if known.channels is None:
        return f"{kind} has no weights, and the layer gives a grid for some"
    inputs = integer_inputs(builder, op)
    values = builder.constant(inputs[1])
    if values is None:
        return "its kernel is computed, where LiteRT wants a constant"
    # The size of a transposed convolution's output, which comes first.
    name_parameters(builder, inputs[:1], mark.name, known.parameter)
    # The layer's kernel has its channels last; the converter has moved them.
    axis = None if mark.kernel.axis is None else known.channels
    kernel = dataclasses.replace(mark.kernel, axis=axis)
    grid = data_grid(builder, op)
    inputs[1] = _kernel(builder, f"{mark.name}/kernel", values, kernel)
    channels = builder.tensor(inputs[known.data]).shape[-1]
    groups = channels // values.shape[-1] if kind == "CONV_2D" else 1
    is_packed = builder.target.packs(
        kind, kernel.bits, grid.bits, inputs=values.shape[-1], groups=groups
    )
    if is_packed:
        flatbuffer.pack_constant(builder.model, builder.tensor(inputs[1]))
    # A layer without bias gets one: folded zero points and gains need it.
    inputs[known.bias :] = [_bias(builder, mark, grid)]
    if is_packed and known.int4_by:
        convolution(builder, op, inputs, mark)
    else:
        put(builder, op, inputs, mark, kernel.bits if is_packed else 8)
    return None


def _kernel(builder: Builder, name: str, values: np.ndarray, grid: Grid) -> int:
    """The codes of a kernel: its values lie on the grid, so that nothing is rounded anew."""
    return builder.add(name, values.shape, grid, grid.quantize(values))


def _bias(builder: Builder, mark: Weighted, grid: Grid) -> int:
    """The codes of a bias, in steps of the accumulators."""
    # In float32, as the kernels compute it: the file's scale must be the same number.
    scale = np.float32(grid.scale) * np.asarray(mark.kernel.scale, np.float32)
    axis = None if mark.kernel.axis is None else 0
    steps = Grid(scale=scale, zero_point=np.zeros(scale.shape, np.int64), axis=axis)
    dtype = np.int64 if grid.bits > 8 else np.int32
    return flatbuffer.new_tensor(
        builder.model, f"{mark.name}/bias", mark.bias.shape, dtype, steps, mark.bias
    )
