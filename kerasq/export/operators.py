"""Rewrites of operators that the converter wrote: on integers, moved along, or kept in float.

A rewrite takes an operator of the marked graph and appends what stands for it. Where it does not
apply, it changes nothing and returns the reason.
"""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.export.builder import Builder
from kerasq.export.marks import Computed, Weighted
from kerasq.export.substitutes import FORMS, SUBSTITUTES, gathered
from kerasq.grid import Grid
from kerasq.litert import flatbuffer
from kerasq.litert.micro import axes_beyond
from kerasq.litert.operators import OPERATORS as ALL
from kerasq.litert.operators import Operator


def compute(builder: Builder, op: schema.OperatorT, mark: Computed) -> str | None:
    """An operator without weights, on integer tensors."""
    _set_options(builder, op)
    if reason := no_integer_form(builder, op):
        return reason
    kind = builder.op(op)
    known = builder.target.operators[kind]
    _check_curve(builder, op, mark)
    _check_softmax(builder, op, mark)
    if known.channels is not None:
        return f"{kind} has weights, and the layer gives no grid for them"
    if known.by_others and FORMS[kind](builder, op, mark):
        return None
    inputs = integer_inputs(builder, op)
    if known.one_grid:
        inputs = [_constant_code(builder, i, mark) for i in inputs]
        if floats := _floats(builder, inputs):
            return f"it reads {floats}, which are not on a grid"
    inputs = _requantized(builder, inputs, mark, known)
    if known.inputs is not None:
        inputs = gathered(builder, inputs, op.builtinOptions.axis, mark.name)
    name_parameters(builder, inputs, mark.name, known.parameter)
    put(builder, op, inputs, mark, 8)
    return None


def _floats(builder: Builder, inputs: list[int]) -> list[str]:
    """Names of the floats among what an operator reads; of SELECT_V2 the condition is bool."""
    is_float = schema.TensorType.FLOAT32
    return [_float_name(builder, i) for i in inputs if builder.tensor(i).type == is_float]


def _check_curve(builder: Builder, op: schema.OperatorT, mark: Computed) -> None:
    """Raises a ValueError where an int16 sigmoid, tanh or softmax would wrap around."""
    grid, limit = data_grid(builder, op), builder.target.limits.curve_scale
    if (
        builder.op(op) in ("LOGISTIC", "TANH", "SOFTMAX")
        and grid.bits == 16
        and grid.scale >= limit
    ):
        raise ValueError(
            f"The int16 input of layer {mark.name!r} must have a range below {2**15 * limit:,.0f}, "
            f"where kernels wrap around. Received: one of scale {grid.scale:.3g}. Scale the data, "
            "or give the layer 8 bits or 'float' with `overrides`."
        )


def _check_softmax(builder: Builder, op: schema.OperatorT, mark: Computed) -> None:
    """Raises a ValueError where an int8 softmax is over more values than the target takes.

    Of models that were quantized before there was a limit, or put together by hand.
    """
    if builder.op(op) != "SOFTMAX" or data_grid(builder, op).bits > 8:
        return
    values, target = int(builder.tensor(data_input(builder, op)).shape[-1]), builder.target
    if not target.limits.takes_softmax(values):
        raise ValueError(
            f"An int8 softmax on target {target.name!r} must be over "
            f"{target.limits.softmax_values} values or fewer. Received: layer {mark.name!r}, over "
            f"{values}. Quantize the float model again, which gives it 16 bits."
        )


def _set_options(builder: Builder, op: schema.OperatorT) -> None:
    """Changes what the converter writes for floats, and integer kernels do not take."""
    kind = builder.op(op)
    if kind in ("ADD", "SUB"):
        op.builtinOptions.potScaleInt16 = False  # Scales are any real numbers.
    elif kind == "SELECT":
        # It broadcasts nothing, and the converter takes a constant for as large as the tensor
        # before its marker.
        op.opcodeIndex = flatbuffer.code_index(builder.model, flatbuffer.Op.SELECT_V2, 1)
        op.builtinOptionsType = schema.BuiltinOptions.SelectV2Options
        op.builtinOptions = schema.SelectV2OptionsT()


def _constant_code(builder: Builder, tensor: int, mark: Computed) -> int:
    """A tensor; of a float constant, such as that of Masked, its codes on the output's grid."""
    values = builder.constant(tensor)
    if values is None or values.dtype != np.float32:
        return tensor
    codes = mark.grid.quantize(values, builder.target.away)
    return builder.add(f"{mark.name}/constant", values.shape, mark.grid, codes)


def _requantized(builder: Builder, inputs: list[int], mark: Computed, known: Operator) -> list[int]:
    """The inputs that lie on grids, on one where the operator needs it."""
    grids = {i: builder.grids[i] for i in inputs if i in builder.grids}
    if known.one_grid:
        # The kernels compare and copy codes, so a scale apart they would mix up values.
        one = mark.grid
    elif known.one_scale and mark.grid.bits > 8:
        one = max(grids.values(), key=lambda grid: grid.scale)
    else:
        return inputs
    return [
        builder.requantized(tensor, f"{mark.name}/input_{i}", one) if tensor in grids else tensor
        for i, tensor in enumerate(inputs)
    ]


def move(builder: Builder, op: schema.OperatorT) -> str | None:
    """An operator that only moves codes, or picks among them: its output has its input's grid."""
    kind = builder.op(op)
    if reason := _not_to_move(builder, op):
        return reason
    read = _values(builder, op)[0]
    grid, axes = builder.grids[builder.codes[read]], len(builder.tensor(read).shape)
    mark = Computed(name=_moved_name(builder, op), grid=grid)
    lacking = _missing(builder.target.operators.get(kind), grid.bits, axes)
    if lacking and kind in SUBSTITUTES:
        SUBSTITUTES[kind](builder, op, mark)
        return None
    if lacking in ("int8", "int16"):
        raise ValueError(_lacking(builder, op, f"{kind} of {lacking}"))
    return compute(builder, op, mark)  # Of axes too many `check_axes` tells.


def _missing(known: Operator | None, bits: int, axes: int) -> str:
    """What a target has no kernel of an operator for; "" where it has one."""
    if known is None:
        return "int8"
    if bits > 8 and known.int16 is None:
        return "int16"
    return f"{axes} axes" if known.axes is not None and axes > known.axes else ""


def _not_to_move(builder: Builder, op: schema.OperatorT) -> str | None:
    """Why an operator does not only move codes."""
    kind = builder.op(op)
    known = builder.target.operators.get(kind, ALL.get(kind))
    if known is None or not (known.pass_through or known.one_grid):
        return f"{kind} is not known to keep a grid"
    return _not_on_one_grid(builder, op)


def _lacking(builder: Builder, op: schema.OperatorT, operator: str) -> str:
    layer = builder.layer(int(op.outputs[0]))
    return (
        f"Every operator must be one that target {builder.target.name!r} has. Received: layer "
        f"{layer!r}, which becomes {operator}. Replace the layer, or give it and its neighbours "
        "int8 activations if it is int16 that is lacking."
    )


def _not_on_one_grid(builder: Builder, op: schema.OperatorT) -> str | None:
    """Why what an operator moves does not lie on one grid; None if it does."""
    read, kind = _values(builder, op), builder.op(op)
    if not all(i in builder.codes for i in read):
        return f"{kind} reads floats"
    # Without a mark there is no range for an output of its own.
    grids = [builder.grids[builder.codes[i]] for i in read]
    if not all(grid.equals(grids[0]) for grid in grids):
        return f"{kind} reads several grids, and none is given for its output"
    return None


def compare(builder: Builder, op: schema.OperatorT) -> str | None:
    """An operator whose output is no code, but hangs on which codes are larger: ARG_MAX."""
    if reason := _not_to_compare(builder, op):
        return reason
    known = builder.target.operators[builder.op(op)]
    inputs, name = integer_inputs(builder, op), builder.layer(int(op.outputs[0]))
    (place,) = _on_grids(builder, op)
    grid, is_index = builder.grids[inputs[place]], known.parameter == "axis"
    if not is_index:
        values = builder.constant(inputs[1 - place])
        assert values is not None
        limit = threshold(builder.op(op), values, grid, is_first=place == 0)
        inputs[1 - place] = flatbuffer.new_tensor(
            builder.model, f"{name}/{known.parameter}", limit.shape, np.int32, values=limit
        )
    if grid.bits > 8 or not is_index:
        inputs[place] = widened(builder, inputs[place], f"{name}/code")
    name_parameters(builder, inputs, name, known.parameter)
    set_version(builder, op, builder.target.version(builder.op(op), 8, grid.bits))
    op.inputs = np.array(inputs, np.int32)
    builder.rename(int(op.outputs[0]), f"{name}/{builder.op(op).lower()}")
    builder.ops.append(op)
    return None


def _not_to_compare(builder: Builder, op: schema.OperatorT) -> str | None:
    """Why an operator does not compare codes; None if it does."""
    known = builder.target.operators.get(builder.op(op))
    if known is None or not known.compares:
        return f"{builder.op(op)} computes more than the order of values"
    places, inputs = _on_grids(builder, op), integer_inputs(builder, op)
    if len(places) != 1 or builder.constant(inputs[1 - places[0]]) is None:
        return "it reads floats, or several grids"
    if builder.grids[inputs[places[0]]].bits > 8 and known.int16 is None:
        return f"target {builder.target.name!r} has it on int8 only"
    return None


def _on_grids(builder: Builder, op: schema.OperatorT) -> list[int]:
    """Which of an operator's inputs are codes."""
    return [i for i, tensor in enumerate(integer_inputs(builder, op)) if tensor in builder.grids]


def threshold(kind: str, values: np.ndarray, grid: Grid, is_first: bool) -> np.ndarray:
    """The codes, int32, that compare with those of a grid as `values` do with its real values.

    Args:
        kind: the operator.
        values: what real values are compared with.
        grid: their grid.
        is_first: whether the codes are the operator's first operand.
    """
    codes = np.arange(grid.qmin, grid.qmax + 1)
    real = grid.dequantize(codes.astype(grid.dtype))
    if kind in ("EQUAL", "NOT_EQUAL"):
        place = np.minimum(np.searchsorted(real, values), len(codes) - 1)
        # One beyond all codes where no code has the value.
        found = np.where(real[place] == values, codes[place], grid.qmax + 1)
        return found.astype(np.int32)
    # Greater: than the last code whose value is not; not less: than the first one that is not.
    is_last = (kind in ("GREATER", "LESS_EQUAL")) == is_first
    count = np.searchsorted(real, values, side="right" if is_last else "left")
    return (grid.qmin + count - is_last).astype(np.int32)


def widened(builder: Builder, source: int, name: str) -> int:
    """A new int32 tensor that has the codes of an integer one, by CAST."""
    code = flatbuffer.new_tensor(builder.model, name, builder.tensor(source).shape, np.int32)
    types = {
        "inDataType": builder.tensor(source).type,
        "outDataType": schema.TensorType.INT32,
    }
    builder.emit("CAST", [source], [code], options=("CastOptions", types))
    return code


def _values(builder: Builder, op: schema.OperatorT) -> list[int]:
    """The tensors of the marked graph that must lie on the grid of an operator's output."""
    known = builder.target.operators.get(builder.op(op))
    is_one_grid = known is not None and known.one_grid
    return [int(i) for i in op.inputs] if is_one_grid else [data_input(builder, op)]


def _moved_name(builder: Builder, op: schema.OperatorT) -> str:
    """What the output of an operator that moves codes is called: its layer, if it ends one."""
    output = int(op.outputs[0])
    if len(op.outputs) == 1 and output in builder.marks:
        return builder.marks[output].name
    return f"{builder.layer(output)}/{builder.op(op).lower()}"


def keep(builder: Builder, op: schema.OperatorT) -> str | None:
    """A float operator, as the converter wrote it; what it reads in codes is dequantized."""
    kind = builder.op(op)
    if kind == "CUSTOM":
        custom = builder.model.operatorCodes[op.opcodeIndex].customCode.decode()
        return f"TensorFlow's {custom} is no operator of LiteRT"
    op.inputs = np.array([builder.real(int(i)) for i in op.inputs], np.int32)
    # The converter's names hold the scopes of layers, and tell users nothing.
    for i in map(int, op.outputs):
        # Further outputs go by the first one, which by then has its new name.
        builder.rename(i, f"{builder.layer(int(op.outputs[0]))}/{kind.lower()}")
    builder.ops.append(op)
    return None


def data_input(builder: Builder, op: schema.OperatorT) -> int:
    """The tensor of the marked graph whose values an operator takes."""
    known = builder.target.operators.get(builder.op(op))
    return int(op.inputs[known.data if known else 0])


def data_grid(builder: Builder, op: schema.OperatorT) -> Grid:
    """The grid of the values that an operator takes."""
    return builder.grids[builder.codes[data_input(builder, op)]]


def check_axes(builder: Builder) -> None:
    """Raises a ValueError where an operator has more axes than its target takes."""
    for op in builder.ops:
        kind = builder.op(op)
        known = builder.target.operators.get(kind)
        if known is None:  # It stays float.
            continue
        if found := axes_beyond(builder.graph, op, known.axes, known.broadcast_axes):
            shape, most = found
            # Of what stands for a layer, names begin with its own.
            layer = builder.layer(int(op.outputs[0])).partition("/")[0]
            raise ValueError(
                f"What {kind} reads must have {most} axes or fewer on target "
                f"{builder.target.name!r}. Received: layer {layer!r}, where it reads shape "
                f"{shape}. Reshape that to fewer axes."
            )


def no_integer_form(builder: Builder, op: schema.OperatorT) -> str | None:
    """Why an operator cannot compute on integers; None if it can."""
    kind = builder.op(op)
    if kind not in builder.target.operators:
        return f"target {builder.target.name!r} has no {kind} on integers"
    data = data_input(builder, op)
    if data not in builder.codes:
        return f"it reads {_float_name(builder, data)!r}, which is not on a grid"
    return None


def _float_name(builder: Builder, index: int) -> str:
    """The name of the float tensor that stands for one of the marked graph."""
    return builder.name(builder.reals.get(index, index))


def integer_inputs(builder: Builder, op: schema.OperatorT) -> list[int]:
    """What an operator reads, codes where there are any; the rest are parameters."""
    return [builder.codes.get(int(i), int(i)) for i in op.inputs]


def name_parameters(builder: Builder, inputs: list[int], name: str, parameter: str) -> None:
    """Names the constants that an operator reads beside its values, such as axes."""
    for i, tensor in enumerate(inputs):
        # -1 is an optional input that is left out.
        if tensor >= 0 and tensor not in builder.grids and builder.constant(tensor) is not None:
            builder.rename(tensor, f"{name}/{parameter or f'input_{i}'}")


def put(
    builder: Builder,
    op: schema.OperatorT,
    inputs: list[int],
    mark: Computed | Weighted,
    weight_bits: int,
) -> None:
    """Appends an operator of the marked graph, on integer tensors, in the version they need."""
    bits = data_grid(builder, op).bits
    set_version(builder, op, builder.target.version(builder.op(op), weight_bits, bits))
    op.inputs = np.array(inputs, np.int32)
    op.outputs = np.array(_outputs(builder, op, mark), np.int32)
    builder.ops.append(op)


def set_version(builder: Builder, op: schema.OperatorT, least: int) -> None:
    """Gives an operator that the converter wrote at least a version."""
    written = builder.model.operatorCodes[op.opcodeIndex]
    # The converter raises versions for options, such as dilation, that widths do not tell of.
    version = max(least, written.version)
    op.opcodeIndex = flatbuffer.code_index(builder.model, written.builtinCode, version)


def _outputs(builder: Builder, op: schema.OperatorT, mark: Computed | Weighted) -> list[int]:
    """Integer tensors for the outputs of an operator, each named for its own layer."""
    outputs = []
    for i, old in enumerate(map(int, op.outputs)):
        if builder.tensor(old).type != schema.TensorType.FLOAT32:  # Places of TOPK_V2.
            builder.rename(old, f"{builder.layer(old)}:{i}")
            outputs.append(old)
            continue
        own = builder.marks.get(old, mark).name if len(op.outputs) > 1 else mark.name
        name = own if i == 0 or old in builder.marks else f"{own}:{i}"
        outputs.append(builder.add(name, builder.tensor(old).shape, mark.grid))
        builder.codes[old] = outputs[-1]
    return outputs
