"""Operators that only move codes, or pick among them, by others where a target lacks them."""

from collections.abc import Callable

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.export.builder import Builder
from kerasq.export.marks import Computed
from kerasq.litert import flatbuffer

# Tensors that one CONCATENATION takes, on TFLite Micro.
_MOST = 10


def exchange(builder: Builder, op: schema.OperatorT, mark: Computed) -> None:
    """DEPTH_TO_SPACE and SPACE_TO_DEPTH as RESHAPE, TRANSPOSE of two axes, and RESHAPE.

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


def tile(builder: Builder, op: schema.OperatorT, mark: Computed) -> None:
    """TILE as CONCATENATION of the tensor with itself, along one axis after the other."""
    multiples = builder.constant(int(op.inputs[1]))
    assert multiples is not None
    found = builder.codes[int(op.inputs[0])]
    for axis, count in enumerate(multiples):
        found = _repeated(builder, found, int(count), axis, f"{mark.name}/axis_{axis}")
    builder.rename(found, mark.name)
    builder.codes[int(op.outputs[0])] = found


def _repeated(builder: Builder, source: int, count: int, axis: int, name: str) -> int:
    """So many of a tensor along an axis."""
    if count == 1:
        return source
    if count <= _MOST:
        return _joined(builder, [source] * count, axis, name)
    several = _joined(builder, [source] * _MOST, axis, f"{name}/{_MOST}")
    parts = [_repeated(builder, several, count // _MOST, axis, f"{name}/{count // _MOST}")]
    return _joined(builder, parts + [source] * (count % _MOST), axis, name)


def _joined(builder: Builder, tensors: list[int], axis: int, name: str) -> int:
    if len(tensors) == 1:
        return tensors[0]
    shape = [int(n) for n in builder.tensor(tensors[0]).shape]
    shape[axis] = sum(int(builder.tensor(i).shape[axis]) for i in tensors)
    target = builder.add(name, shape, builder.grids[tensors[0]])
    options = ("ConcatenationOptions", {"axis": axis, "fusedActivationFunction": 0})
    builder.emit("CONCATENATION", tensors, [target], options=options)
    return target


def reduce_max(builder: Builder, op: schema.OperatorT, mark: Computed) -> None:
    """REDUCE_MAX along neighbouring axes as MAX_POOL_2D, between two RESHAPE.

    Raises:
        ValueError: where there are others between the axes.
    """
    source, output = builder.codes[int(op.inputs[0])], int(op.outputs[0])
    shape = [int(n) for n in builder.tensor(source).shape]
    given = builder.constant(int(op.inputs[1]))
    assert given is not None
    axes = sorted(int(i) % len(shape) for i in np.ravel(given))
    if axes != [*range(axes[0], axes[-1] + 1)]:
        raise ValueError(
            "A maximum on int16 must be along neighbouring axes on target "
            f"{builder.target.name!r}. Received: {mark.name!r} along {axes}. Give it int8 "
            "activations."
        )
    count, inner = int(np.prod(shape[axes[0] : axes[-1] + 1])), int(np.prod(shape[axes[-1] + 1 :]))
    image = _reshaped(builder, source, (-1, count, 1, inner), f"{mark.name}/image")
    rows = builder.tensor(image).shape[0]
    pooled = builder.add(f"{mark.name}/pooled", (rows, 1, 1, inner), mark.grid)
    window = {"filterHeight": count, "filterWidth": 1, "strideH": 1, "strideW": 1, "padding": 1}
    options = ("Pool2DOptions", {**window, "fusedActivationFunction": 0})
    builder.emit("MAX_POOL_2D", [image], [pooled], options=options)
    wanted = tuple(int(n) for n in builder.tensor(output).shape)
    builder.codes[output] = _reshaped(builder, pooled, wanted, mark.name)


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


Substitute = Callable[[Builder, schema.OperatorT, Computed], None]
SUBSTITUTES: dict[str, Substitute] = {
    "DEPTH_TO_SPACE": exchange,
    "REDUCE_MAX": reduce_max,
    "SPACE_TO_DEPTH": exchange,
    "TILE": tile,
}
