"""The figures of each layer, from all that was measured: a row of the table."""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kerasq import graph, registry
from kerasq.analysis.operator_latency import OperatorLatency
from kerasq.analysis.summary import LayerSummary, Summary
from kerasq.comparison.report import LayerReport
from kerasq.grid import Grid
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.layers import InputScale
from kerasq.litert import flatbuffer
from kerasq.litert.contents import Op, Tensor
from kerasq.litert.operators import KERNEL_OPS, OPERATORS
from kerasq.litert.removed import KEPT
from kerasq.litert.runtime import TFLiteModel
from kerasq.reporting.counts import CodeCounts
from kerasq.reporting.measure import FileMeasurement, LayerValues, Measurement
from kerasq.reporting.weights import Weights, weights, with_bias
from kerasq.rule import Output
from kerasq.wrappers import QuantizeWrapper, input_boundaries, quantized_by


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerFigures:
    """A layer, in figures; None where one is not known, or means nothing.

    Attributes:
        name: its name; of a file alone, what is short of that of the operator's output.
        tensor: the name of its tensor in the file, where that is another.
        op: the operator.
        kind: the class of the Keras layer.
        scheme: its scheme; "" where it only moves values.
        dtype: the type of its output.
        shape: the shape of its output for one sample.
        removed: how many channels of it the file lacks, as they change nothing.
        inputs: the rows that it reads.
        is_input: whether it is an input of the model, put on its grid.
        shares_range: whether its output lies on the grid of its input.
        range_of: the first of the layers that have one range, as all steps of a recurrent one; ""
            where it has its own.
        low, high: the range of its output.
        value_low, value_high: the least and the greatest value before the grid.
        clipped: the share of these that lie more than half a step beyond the range.
        codes_used: how many codes of the output occur.
        codes: how many there are.
        used: the part of the range that lies between the lowest and highest code that occur.
        own_sqnr: of the file's output beside the float layer on the file's own inputs, in dB.
        sqnr: of the file's output beside the float network's, in dB.
        max_lsb: the largest difference between simulation and file, in steps.
        exact: the share of values that are equal in both.
        macs: multiply-accumulate operations a sample.
        weight_bytes, activation_bytes: of weights, and of the output of a sample.
        accumulator_bits, accumulator_limit: what sums need, and what they have.
        ms: milliseconds of its operators, each timed alone, together.
        weights: of the kernel.
        float_values, code_values: the histograms.
    """

    name: str
    op: str
    kind: str = ""
    tensor: str = ""
    scheme: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()
    removed: int = 0
    inputs: tuple[str, ...] = ()
    is_input: bool = False
    shares_range: bool = False
    range_of: str = ""
    low: float | None = None
    high: float | None = None
    value_low: float | None = None
    value_high: float | None = None
    clipped: float | None = None
    codes_used: int | None = None
    codes: int | None = None
    used: float | None = None
    own_sqnr: float | None = None
    sqnr: float | None = None
    max_lsb: int | None = None
    exact: float | None = None
    macs: int | None = None
    weight_bytes: int = 0
    activation_bytes: int = 0
    accumulator_bits: int | None = None
    accumulator_limit: int | None = None
    ms: float | None = None
    weights: Weights | None = None
    float_values: dict[str, Any] | None = None
    code_values: dict[str, Any] | None = None


def of_model(
    model: keras.Model,
    lite: TFLiteModel,
    measured: Measurement,
    summary: Summary,
    float_model: keras.Model | None,
) -> list[LayerFigures]:
    """The rows of a quantized model beside its file."""
    costs = {x.name: x for x in summary.layers}
    compared = {x.name: x for x in measured.comparison.report().layers}
    nodes = {graph.tensor_name(y): node for node in graph.calls(model) for y in node.outputs}
    shown = {x.name for x in measured.layers}
    inputs, ranges = _input_tensors(model, lite), _shared_ranges(model)
    return [
        LayerFigures(
            name=values.name,
            kind=_kind(nodes[values.name].layer),
            # What the file is fed as codes has no operator of its name.
            tensor="" if values.name in compared else inputs.get(values.name, ""),
            inputs=tuple(_shown_inputs(nodes[values.name].inputs, shown)),
            removed=int(np.sum(lite.removed_channels.get(values.name, KEPT) != KEPT)),
            is_input=getattr(nodes[values.name].layer, "is_input", False),
            shares_range=_shares_range(nodes[values.name].layer),
            range_of=ranges.get(nodes[values.name].name, ""),
            weights=_weights(nodes[values.name].layer, float_model),
            **_cost_figures(costs.get(nodes[values.name].name)),
            **_compared_figures(compared.get(values.name), values),
            **_value_figures(values),
        )
        for values in measured.layers
    ]


def _input_tensors(model: keras.Model, lite: TFLiteModel) -> dict[str, str]:
    """By name of the boundary behind an input, its tensor in the file."""
    boundaries = input_boundaries(model)
    return {
        boundaries[id(x)].name: tensor.name
        for x, tensor in zip(model.inputs, lite.inputs, strict=True)
        if id(x) in boundaries
    }


def _kind(layer: Any) -> str:
    inner = layer.layer if isinstance(layer, QuantizeWrapper) else layer
    return type(inner).__name__


def _shares_range(layer: Any) -> bool:
    return isinstance(layer, QuantizeWrapper) and layer.rule.output == Output.INPUT


def _shared_ranges(model: keras.Model) -> dict[str, str]:
    """By name of a layer on a range of several, the first of them."""
    found: dict[str, str] = {}
    first: dict[int, str] = {}
    for layer in model.layers:
        own = layer.output_quantizer if isinstance(layer, QuantizeWrapper) else None
        if own is not None and own.uses > 1:
            found[layer.name] = first.setdefault(id(own), layer.name)
    return found


def _shown_inputs(tensors: list[keras.KerasTensor], shown: set[str]) -> list[str]:
    """The rows that tensors come from, through calls that have none."""
    found: list[str] = []
    for x in tensors:
        name = graph.tensor_name(x)
        found += [name] if name in shown else _shown_inputs(graph.origin(x)[1], shown)
    return [*dict.fromkeys(found)]


def _cost_figures(cost: LayerSummary | None) -> dict[str, Any]:
    if cost is None:
        return {}
    names = ("scheme", "shape", "macs", "weight_bytes", "activation_bytes")
    return {x: getattr(cost, x) for x in (*names, "accumulator_bits", "accumulator_limit")}


def _compared_figures(compared: LayerReport | None, values: LayerValues) -> dict[str, Any]:
    if compared is None:  # An input, which is fed as codes.
        bits = 0 if values.grid is None else values.grid.bits
        return {"op": "input", "dtype": f"int{bits}"}
    # What moves values has them from the layer before: its own noise is that of no rounding.
    own = {"op": compared.op, "dtype": compared.dtype}
    return own | {"max_lsb": compared.max_lsb, "exact": compared.exact}


def _value_figures(values: LayerValues) -> dict[str, Any]:
    """What the values of a layer say, and its range."""
    found: dict[str, Any] = {"own_sqnr": values.own.sqnr, "sqnr": values.along.sqnr}
    if values.float_counts is not None and values.counted:
        found |= {"value_low": values.low, "value_high": values.high}
        found["float_values"] = values.float_counts.figures()
    if values.grid is None or values.code_counts is None:
        # Floats of one machine differ from another's in their last bits: that is no noise.
        return found | {"own_sqnr": None}
    if values.counted:
        found["clipped"] = values.beyond / values.counted
    return found | _code_figures(values.grid, values.code_counts)


def _code_figures(grid: Grid, counts: CodeCounts) -> dict[str, Any]:
    first, last = counts.ends
    scale, zero = float(grid.scale), int(grid.zero_point)
    return {
        "low": float(grid.low),
        "high": float(grid.high),
        "codes_used": counts.used,
        "codes": grid.qmax - grid.qmin + 1,
        "used": (last - first) / (grid.qmax - grid.qmin),
        "code_values": {"scale": scale, "zero_point": zero, **counts.figures()},
    }


def _weights(layer: Any, float_model: keras.Model | None) -> Weights | None:
    """The figures of a layer's kernel; None where it has none of its own."""
    if not isinstance(layer, KernelWrapper) or layer.leader is not None:
        return None
    integer = layer.integer_weights()
    folded = layer.folded_kernel().numpy()
    trained = _trained(layer, float_model)
    is_changed = trained.shape != folded.shape or not np.allclose(trained, folded, rtol=1e-3)
    grid = integer.grid.numpy()
    found = weights(integer.codes.numpy(), grid, folded, trained if is_changed else None)
    bias = layer.gain_and_bias()[1]
    if bias is None:
        return found
    step = np.float64(layer.input_grids()[0].numpy().scale) * grid.scale
    out_step = float(layer.grid().numpy().scale)
    codes = integer.bias.numpy()
    return with_bias(found, codes, step, layer.most_bias, bias.numpy(), out_step)


def _trained(layer: KernelWrapper, float_model: keras.Model | None) -> np.ndarray:
    """The kernel before BatchNormalization was folded into it, and before equalization.

    That of the float model where it has a layer of this name, else what is trained here.
    """
    own = (layer.flat_kernel() * layer.kernel_gain.value).numpy()
    if float_model is None:
        return own
    source = next((x for x in float_model.layers if x.name == layer.source), None)
    rule = None if source is None else registry.find(source)
    if rule is None or rule.kernel is None:
        return own
    kernel = np.asarray(rule.flatten(getattr(source, rule.kernel).value))
    return kernel if kernel.shape == own.shape else own


def of_file(lite: TFLiteModel, measured: FileMeasurement) -> list[LayerFigures]:
    """The rows of a file that no Keras model is known of: its inputs and operators."""
    content = flatbuffer.read(lite.content)
    tensors = {x.name: x for x in lite.tensors}
    ops = {name: op for op in lite.ops for name in op.outputs}
    names = short_names([x.name for x in measured.layers])
    found = []
    for values in measured.layers:
        op = ops.get(values.name, Op("input", (), ()))
        kernel = op.inputs[1] if op.name in KERNEL_OPS else ""
        row = _file_row(tensors[values.name], op, tensors.get(kernel))
        row["name"] = names[values.name]
        row["inputs"] = tuple(names[x] for x in op.inputs if x in names)
        row["weight_bytes"] = sum(tensors[x].bytes for x in op.inputs)
        row["weights"] = _with_file_bias(_file_weights(content, kernel), content, op, tensors)
        found.append(LayerFigures(**row, **_value_figures(values)))
    return found


def short_names(names: list[str]) -> dict[str, str]:
    """By name of a tensor, a short one, where TensorFlow's converter has joined many by ";".

    The first of them, without the name of the model, which all begin with; or the whole name,
    where two would be called the same.
    """
    first = [x.partition(";")[0] for x in names]
    heads = collections.Counter(x.partition("/")[0] for x in first if "/" in x)
    model, count = heads.most_common(1)[0] if heads else ("", 0)
    if 2 * count > len(names) > 2:
        first = [x.removeprefix(f"{model}/") for x in first]
    uses = collections.Counter(first)
    return {
        name: short if uses[short] == 1 else name for name, short in zip(names, first, strict=True)
    }


def _file_row(tensor: Tensor, op: Op, kernel: Tensor | None) -> dict[str, Any]:
    """What a tensor of a file says of itself."""
    return {
        "tensor": tensor.name,
        "op": op.name,
        "dtype": tensor.type,
        "scheme": _file_scheme(kernel, tensor.type) if op.outputs else "",
        "shape": tensor.shape[1:],
        "is_input": not op.outputs,
        "activation_bytes": math.prod(tensor.shape[1:]) * tensor.dtype.itemsize,
    }


def _file_scheme(kernel: Tensor | None, output: str) -> str:
    """The widths of weights and output, such as "int8 x int8"; that of the output alone."""
    return output if kernel is None or not kernel.constant else f"{kernel.type}, {output}"


def _named(content: Any, name: str) -> Any:
    """The first tensor of a name; None where there is none."""
    tensors = content.subgraphs[0].tensors
    return next((x for x in tensors if name and x.name.decode() == name), None)


def _file_weights(content: Any, name: str) -> Weights | None:
    """The figures of a constant kernel on a grid; None where there is no such."""
    tensor = _named(content, name)
    if tensor is None:
        return None
    codes, grid = flatbuffer.constant(content, tensor), flatbuffer.grid_of(tensor)
    if codes is None or grid is None or codes.ndim < 2 or codes.dtype != np.int8:
        return None
    # LiteRT has output channels first, but those of a depthwise kernel last.
    axis = 0 if grid.axis is None else grid.axis
    codes = np.moveaxis(codes, axis, -1)
    # Codes of fewer bits may be stored as int8, and -128 is none of symmetric weights.
    largest = max(codes.max(), -1 - codes.min(), 1)
    bits, narrow = int(largest).bit_length() + 1, bool(codes.min() >= -largest)
    own = dataclasses.replace(grid, axis=-1, zero_point=0, bits=bits, narrow=narrow)
    return weights(codes, own, None, None)


def _with_file_bias(
    found: Weights | None, content: Any, op: Op, tensors: dict[str, Tensor]
) -> Weights | None:
    """The figures of a kernel with those of its biases, where the file has some."""
    if found is None:
        return None
    known = OPERATORS[op.name]
    source, kernel = tensors[op.inputs[known.data]], tensors[op.inputs[1]]
    names = op.inputs[known.bias :]
    tensor = _named(content, names[0]) if names else None
    codes = None if tensor is None else flatbuffer.constant(content, tensor)
    if codes is None or source.grid is None or kernel.grid is None:
        return found
    step = np.float64(source.grid.scale) * kernel.grid.scale
    return with_bias(found, codes.ravel(), step, -float(np.iinfo(codes.dtype).min))


def timed(
    layers: list[LayerFigures], lite: TFLiteModel, found: OperatorLatency
) -> list[LayerFigures]:
    """The rows, with the times of their operators.

    An operator that no row has the name of, such as a QUANTIZE or a padding in front of it, counts
    for the first that reads its output; what is behind the last row, for none.
    """
    owners = _owners(lite.ops, {x.tensor or x.name: x.name for x in layers})
    sums: dict[str, float] = {}
    for owner, time in zip(owners, found.operators, strict=True):
        if owner is not None and time.ms is not None:
            sums[owner] = sums.get(owner, 0.0) + time.ms
    return [dataclasses.replace(x, ms=sums.get(x.name)) for x in layers]


def _owners(ops: Sequence[Op], rows: dict[str, str]) -> list[str | None]:
    """The row that each operator counts for; `rows` are their names by tensor."""
    # By tensor, the row of what reads it first. Readers are known before what they read.
    readers: dict[str, str | None] = {}
    found = []
    for op in reversed(ops):
        own = [rows[y] for y in op.outputs if y in rows]
        own += [x for y in op.outputs if (x := readers.get(y)) is not None]
        found.append(own[0] if own else None)
        readers |= dict.fromkeys(op.inputs, found[-1])
    return found[::-1]


def operator_of(model: keras.Model) -> dict[str, str]:
    """By name of a layer that computes in float, its class."""
    return {
        node.name: type(node.layer).__name__
        for node in graph.calls(model)
        # Masks are neither float nor on a grid.
        if any(x.dtype.startswith("float") for x in (*node.inputs, *node.outputs))
        and quantized_by(node.outputs[0]) is None
        and not registry.passes_through(node.layer)
        and not registry.gives_indices(node.layer)
        # What scales an input in front of its grid is no operator of the file.
        and not isinstance(node.layer, (keras.layers.InputLayer, InputScale))
    }
