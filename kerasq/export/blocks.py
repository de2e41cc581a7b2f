"""Rewrite of DEPTH_TO_SPACE and SPACE_TO_DEPTH on int16, for which they have no kernel."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.export.builder import Builder
from kerasq.export.marks import Computed
from kerasq.litert import flatbuffer

KINDS = ("DEPTH_TO_SPACE", "SPACE_TO_DEPTH")


def exchange(builder: Builder, op: schema.OperatorT, mark: Computed) -> None:
    """Computes `op` as RESHAPE, TRANSPOSE of two axes, and RESHAPE.

    With blocks of n x n pixels, between images `(rows, columns, n, n * channels)` and
    `(rows, n, columns, n * channels)`, where `rows` are those of all samples.
    """
    source, output = int(op.inputs[0]), int(op.outputs[0])
    shape, size = builder.tensor(output).shape, op.builtinOptions.blockSize
    is_split = builder.op(op) == "DEPTH_TO_SPACE"
    _, _, columns, channels = builder.tensor(source if is_split else output).shape
    inner = (columns, size, channels // size)
    if not is_split:
        inner = (size, columns, channels // size)
    split = _reshaped(builder, builder.codes[source], (-1, *inner), f"{mark.name}/blocks")
    rows = builder.tensor(split).shape[0]
    moved = (rows, inner[1], inner[0], inner[2])
    swapped = builder.add(f"{mark.name}/exchanged", moved, mark.grid)
    order = _parameter(builder, f"{mark.name}/axes", [0, 2, 1, 3])
    builder.emit("TRANSPOSE", [split, order], [swapped], options=("TransposeOptions", {}))
    builder.codes[output] = _reshaped(builder, swapped, (-1, *shape[1:]), mark.name)


def _reshaped(builder: Builder, source: int, shape: tuple, name: str) -> int:
    """A tensor in another shape, of as many rows as it takes."""
    count = int(np.prod(builder.tensor(source).shape))
    rows = count // int(np.prod(shape[1:]))
    target = builder.add(name, (rows, *shape[1:]), builder.grids[source])
    wanted = _parameter(builder, f"{name}/shape", shape)
    builder.emit("RESHAPE", [source, wanted], [target], options=("ReshapeOptions", {}))
    return target


def _parameter(builder: Builder, name: str, values: tuple | list) -> int:
    array = np.array(values, np.int32)
    return flatbuffer.new_tensor(builder.model, name, array.shape, np.int32, values=array)
