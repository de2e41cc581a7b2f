"""Operators by others that compute the same, where a target lacks them, or lacks a type."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.export.builder import Builder
from kerasq.export.marks import Computed, Emitted, Weighted
from kerasq.grid import Grid
from kerasq.kernels.ethos_u import products
from kerasq.kernels.int8 import equal_weights, quantize_cuts
from kerasq.litert import flatbuffer

_MUL = ("MulOptions", {"fusedActivationFunction": 0})


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
    found = builder.codes[int(op.inputs[0])]
    for axis, count in enumerate(_constant(builder, op, 1)):
        found = _repeated(builder, found, int(count), axis, f"{mark.name}/axis_{axis}")
    builder.rename(found, mark.name)
    builder.codes[int(op.outputs[0])] = found


def _repeated(builder: Builder, source: int, count: int, axis: int, name: str) -> int:
    """So many of a tensor along an axis."""
    most = builder.target.operators["CONCATENATION"].inputs or count
    if count <= most:
        return _joined(builder, [source] * count, axis, name)
    several = _joined(builder, [source] * most, axis, f"{name}/{most}")
    parts = [_repeated(builder, several, count // most, axis, f"{name}/{count // most}")]
    return _joined(builder, parts + [source] * (count % most), axis, name)


def gathered(builder: Builder, tensors: list[int], axis: int, name: str) -> list[int]:
    """As many tensors as one CONCATENATION takes: neighbours are one where there are more."""
    most, place = builder.target.operators["CONCATENATION"].inputs or len(tensors), 0
    while len(tensors) > most:
        count = min(most, len(tensors) - most + 1)
        # From one group to the next, so that none is copied more often than needed.
        place = place if place + count <= len(tensors) else 0
        part = _joined(builder, tensors[place : place + count], axis, f"{name}/part_{len(tensors)}")
        tensors = [*tensors[:place], part, *tensors[place + count :]]
        place += 1
    return tensors


def _joined(builder: Builder, tensors: list[int], axis: int, name: str) -> int:
    """Tensors side by side along an axis."""
    tensors = gathered(builder, tensors, axis, name)
    if len(tensors) == 1:
        return tensors[0]
    shape = [int(n) for n in builder.tensor(tensors[0]).shape]
    shape[axis] = sum(int(builder.tensor(i).shape[axis]) for i in tensors)
    target = builder.add(name, shape, builder.grids[tensors[0]])
    options = ("ConcatenationOptions", {"axis": axis, "fusedActivationFunction": 0})
    builder.emit("CONCATENATION", tensors, [target], options=options)
    return target


def extreme(builder: Builder, op: schema.OperatorT, mark: Computed) -> None:
    """REDUCE_MAX and REDUCE_MIN, axis by axis, as MAXIMUM or MINIMUM of one half and the other.

    Halves of an odd number overlap, which changes no extreme.
    """
    kind = {"REDUCE_MAX": "MAXIMUM", "REDUCE_MIN": "MINIMUM"}[builder.op(op)]
    found, output = builder.codes[int(op.inputs[0])], int(op.outputs[0])
    axes = _constant(builder, op, 1).ravel()
    for axis in sorted(int(i) % len(builder.tensor(found).shape) for i in axes):
        while (count := int(builder.tensor(found).shape[axis])) > 1:
            half, name = (count + 1) // 2, f"{mark.name}/axis_{axis}_of_{count}"
            ends = [_sliced(builder, found, axis, i, half, name) for i in (0, count - half)]
            found = builder.add(name, builder.tensor(ends[0]).shape, mark.grid)
            builder.emit(kind, ends, [found], options=("MaximumMinimumOptions", {}))
    wanted = tuple(int(n) for n in builder.tensor(output).shape)
    builder.codes[output] = _reshaped(builder, found, wanted, mark.name)


def mirror_pad(builder: Builder, op: schema.OperatorT, mark: Computed) -> None:
    """MIRROR_PAD, axis by axis, as CONCATENATION of the tensor with its ends, reversed."""
    found = builder.codes[int(op.inputs[0])]
    # The outermost values are repeated (SYMMETRIC) or not (REFLECT).
    skipped = 1 if op.builtinOptions.mode == schema.MirrorPadMode.REFLECT else 0
    for axis, (before, after) in enumerate(_constant(builder, op, 1).reshape(-1, 2).tolist()):
        name, count = f"{mark.name}/axis_{axis}", int(builder.tensor(found).shape[axis])
        last = count - after - skipped
        start = _mirrored(builder, found, axis, skipped, before, f"{name}/before")
        end = _mirrored(builder, found, axis, last, after, f"{name}/after")
        found = _joined(builder, [*start, found, *end], axis, name)
    builder.rename(found, mark.name)
    builder.codes[int(op.outputs[0])] = found


def _mirrored(
    builder: Builder, source: int, axis: int, begin: int, size: int, name: str
) -> list[int]:
    """A part of a tensor along an axis, reversed; nothing of size 0."""
    if not size:
        return []
    part = _sliced(builder, source, axis, begin, size, name)
    target = builder.add(f"{name}/reversed", builder.tensor(part).shape, builder.grids[part])
    builder.emit("REVERSE_V2", [part, _parameter(builder, f"{name}/axis", [axis])], [target])
    return [target]


def take(builder: Builder, op: schema.OperatorT, mark: Computed) -> None:
    """GATHER of constant places along an axis, as CONCATENATION of slices.

    Raises:
        ValueError: for places that are computed, or of several axes of the samples.
    """
    source, output = builder.codes[int(op.inputs[0])], int(op.outputs[0])
    axis, places = op.builtinOptions.axis, builder.constant(int(op.inputs[1]))
    if places is None or op.builtinOptions.batchDims:
        raise ValueError(
            "Places that are taken of an int16 tensor must be constant on target "
            f"{builder.target.name!r}. Received: those of {mark.name!r}. Give it int8 activations."
        )
    axis = axis % len(builder.tensor(source).shape)
    parts = [
        _sliced(builder, source, axis, int(i), 1, f"{mark.name}/{int(i)}") for i in places.ravel()
    ]
    joined = _joined(builder, parts, axis, f"{mark.name}/taken")
    wanted = tuple(int(n) for n in builder.tensor(output).shape)
    builder.codes[output] = _reshaped(builder, joined, wanted, mark.name)


def part(builder: Builder, op: schema.OperatorT, mark: Computed) -> None:
    """STRIDED_SLICE as SLICE, which takes more axes, and RESHAPE where it drops some.

    Raises:
        ValueError: for steps of more than one place, or backwards, and for axes that it adds.
    """
    source, output = builder.codes[int(op.inputs[0])], int(op.outputs[0])
    shape, options = [int(n) for n in builder.tensor(source).shape], op.builtinOptions
    begins, ends, steps = (_constant(builder, op, i).ravel().tolist() for i in (1, 2, 3))
    if {*steps} != {1} or options.newAxisMask or options.ellipsisMask:
        raise ValueError(
            f"Slices of {len(shape)} axes must be of places side by side on target "
            f"{builder.target.name!r}. Received: those of {mark.name!r}. Reshape what it reads to "
            "fewer axes."
        )
    where = zip(begins, ends, shape, strict=True)
    first, sizes = zip(*(_place(options, i, *x) for i, x in enumerate(where)), strict=True)
    found = _cut(builder, source, first, sizes, mark.name)
    wanted = tuple(int(n) for n in builder.tensor(output).shape)
    is_less = len(wanted) < len(shape)
    builder.codes[output] = _reshaped(builder, found, wanted, mark.name) if is_less else found


def emit(builder: Builder, source: int, mark: Emitted) -> int:
    """An operator of one tensor; of more axes than it takes, on rows along the last one."""
    shape = [int(n) for n in builder.tensor(source).shape]
    is_rows = len(shape) > (builder.target.operators[mark.op].axes or len(shape))
    if is_rows:
        source = _reshaped(builder, source, (-1, shape[-1]), f"{mark.name}/rows")
    name = f"{mark.name}/of_rows" if is_rows else mark.name
    found = builder.add(name, builder.tensor(source).shape, mark.grid)
    builder.emit(mark.op, [source], [found], options=mark.options)
    return _reshaped(builder, found, (-1, *shape[1:]), mark.name) if is_rows else found


def _place(options: Any, axis: int, begin: int, end: int, count: int) -> tuple[int, int]:
    """Where a part of an axis begins, and its size."""
    from_start, to_end = options.beginMask >> axis & 1, options.endMask >> axis & 1
    places = range(count)[None if from_start else begin : None if to_end else end]
    if options.shrinkAxisMask >> axis & 1:  # Of the last place, counted backwards, the end is 0.
        return begin % count, 1
    return places.start, len(places)


def convolution(
    builder: Builder, op: schema.OperatorT, inputs: Sequence[int], mark: Weighted
) -> None:
    """FULLY_CONNECTED as CONV_2D of one pixel; what is no image becomes one of a single row."""
    (source, kernel, bias), output = inputs, int(op.outputs[0])
    count, features = builder.tensor(kernel).shape
    builder.tensor(kernel).shape = [count, 1, 1, features]
    is_image = len(builder.tensor(source).shape) == 4
    if not is_image:
        columns = int(np.prod(builder.tensor(source).shape[1:-1]))
        source = _reshaped(builder, source, (-1, 1, columns, features), f"{mark.name}/pixels")
    shape = (*builder.tensor(source).shape[:-1], count)
    name = mark.name if is_image else f"{mark.name}/convolution"
    found = builder.codes[output] = builder.add(name, shape, mark.grid)
    version = builder.target.version("FULLY_CONNECTED", mark.kernel.bits, 8)
    relu = op.builtinOptions.fusedActivationFunction
    steps = {"strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
    values = steps | {"padding": schema.Padding.VALID, "fusedActivationFunction": relu}
    parameters = [source, kernel, bias]
    builder.emit("CONV_2D", parameters, [found], version, ("Conv2DOptions", values))
    if not is_image:
        wanted = tuple(int(n) for n in builder.tensor(output).shape)
        builder.codes[output] = _reshaped(builder, found, wanted, mark.name)


def average(builder: Builder, op: schema.OperatorT, mark: Computed) -> bool:
    """AVERAGE_POOL_2D on int8 as DEPTHWISE_CONV_2D, where its windows are not padded."""
    source, output = builder.codes[int(op.inputs[0])], int(op.outputs[0])
    options = op.builtinOptions
    pool = options.filterHeight, options.filterWidth
    padding = "valid" if options.padding == schema.Padding.VALID else "same"
    weights = equal_weights(pool, padding)
    if weights is None or mark.grid.bits > 8:
        return False
    channels = int(builder.tensor(source).shape[-1])
    ones = np.ones((1, *pool, channels), np.int8)
    kernel = builder.add(f"{mark.name}/window", ones.shape, weights, ones)
    steps = Grid(scale=mark.grid.scale * weights.scale, zero_point=np.int32(0))
    zeros = np.zeros(channels, np.int32)
    bias = flatbuffer.new_tensor(
        builder.model, f"{mark.name}/window_bias", zeros.shape, np.int32, steps, zeros
    )
    builder.codes[output] = builder.add(mark.name, builder.tensor(output).shape, mark.grid)
    values = {key: getattr(options, key) for key in ("padding", "strideW", "strideH")}
    values |= {"depthMultiplier": 1, "dilationWFactor": 1, "dilationHFactor": 1}
    settings = ("DepthwiseConv2DOptions", values)
    builder.emit("DEPTHWISE_CONV_2D", [source, kernel, bias], [builder.codes[output]], 0, settings)
    return True


def dot(builder: Builder, op: schema.OperatorT, mark: Computed) -> bool:
    """BATCH_MATMUL on int16 of one row and one column as MUL and SUM."""
    a, b = (builder.codes[int(i)] for i in op.inputs)
    rows = {int(builder.tensor(i).shape[-2]) for i in (a, b)}
    if not op.builtinOptions.adjY or rows != {1} or mark.grid.bits <= 8:
        return False
    output, shape = int(op.outputs[0]), builder.tensor(a).shape
    grid = products(builder.grids[a], builder.grids[b])
    multiplied = builder.add(f"{mark.name}/products", shape, grid)
    builder.emit("MUL", [a, b], [multiplied], options=_MUL)
    found = builder.add(mark.name, (*shape[:-1], 1), mark.grid)
    axis = _parameter(builder, f"{mark.name}/axis", [len(shape) - 1])
    builder.emit("SUM", [multiplied, axis], [found], options=("ReducerOptions", {"keepDims": True}))
    builder.codes[output] = found
    return True


def cut(builder: Builder, op: schema.OperatorT, mark: Computed) -> bool:
    """RELU on int8 as QUANTIZE, where the grid of the output begins at 0."""
    source = builder.codes[int(op.inputs[0])]
    is_full = mark.grid.bits <= 8 and mark.grid.levels is None
    if not is_full or not quantize_cuts(builder.grids[source], mark.grid):
        return False
    builder.codes[int(op.outputs[0])] = builder.requantized(source, mark.name, mark.grid)
    return True


def _sliced(builder: Builder, source: int, axis: int, begin: int, size: int, name: str) -> int:
    """So many places of a tensor along an axis."""
    shape = [int(n) for n in builder.tensor(source).shape]
    begins, sizes = [0] * len(shape), list(shape)
    begins[axis], sizes[axis] = begin, size
    return _cut(builder, source, begins, sizes, f"{name}/from_{begin}", name)


def _cut(
    builder: Builder,
    source: int,
    begins: Sequence[int],
    sizes: Sequence[int],
    name: str,
    constants: str = "",
) -> int:
    """A part of a tensor; its constants may have a name of their own."""
    target = builder.add(name, sizes, builder.grids[source])
    ends = [
        _parameter(builder, f"{constants or name}/begin", begins),
        _parameter(builder, f"{constants or name}/size", sizes),
    ]
    builder.emit("SLICE", [source, *ends], [target], options=("SliceOptions", {}))
    return target


def _constant(builder: Builder, op: schema.OperatorT, place: int) -> np.ndarray:
    """What an operator reads beside its values."""
    found = builder.constant(int(op.inputs[place]))
    assert found is not None
    return found


def _reshaped(builder: Builder, source: int, shape: tuple, name: str) -> int:
    """A tensor in another shape, of as many rows as it takes."""
    count = int(np.prod(builder.tensor(source).shape))
    rows = count // int(np.prod(shape[1:]))
    target = builder.add(name, (rows, *shape[1:]), builder.grids[source])
    wanted = _parameter(builder, f"{name}/shape", shape)
    builder.emit("RESHAPE", [source, wanted], [target], options=("ReshapeOptions", {}))
    return target


def _parameter(builder: Builder, name: str, values: Sequence[int]) -> int:
    array = np.array(values, np.int32)
    return flatbuffer.new_tensor(builder.model, name, array.shape, np.int32, values=array)


Substitute = Callable[[Builder, schema.OperatorT, Computed], None]
SUBSTITUTES: dict[str, Substitute] = {
    "DEPTH_TO_SPACE": exchange,
    "GATHER": take,
    "MIRROR_PAD": mirror_pad,
    "REDUCE_MAX": extreme,
    "REDUCE_MIN": extreme,
    "SPACE_TO_DEPTH": exchange,
    "STRIDED_SLICE": part,
    "TILE": tile,
}
# The same where a target has the operator, and others run faster, or where it does not. What they
# do not fit stays as it is.
FORMS: dict[str, Callable[[Builder, schema.OperatorT, Computed], bool]] = {
    "AVERAGE_POOL_2D": average,
    "BATCH_MATMUL": dot,
    "RELU": cut,
}
