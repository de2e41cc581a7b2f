"""`summary`: what a quantized model costs on the device, layer by layer and in total."""

import dataclasses

import keras

from kerasq import graph, registry
from kerasq.analysis import cost
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.rule import Output
from kerasq.scheme import FLOAT_BITS, resolve
from kerasq.support import tables
from kerasq.wrappers import QuantizeWrapper, quantized_by, ranged, require_quantized


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """The costs of one layer, for one sample.

    Attributes:
        name: the layer's name.
        op: the LiteRT operator; the class of a layer that stays float.
        scheme: its scheme; "" where it only moves values.
        shape: shape of the output of one sample.
        output_bits: bits of the output that are in use; 32 where it is float.
        activation_bytes: bytes of the output.
        weight_bytes: bytes of kernel and bias in the file.
        macs: multiply-accumulate operations; None where they are not counted: float layers of
            classes that `kerasq.registry` does not know.
        bit_operations: MACs times bits of weights times bits of activations.
        accumulator_bound: `n_w + n_a + ceil(log2(c * k * k))`; None without a kernel.
        accumulator_bits: what the worst input needs with these integer weights; None also where
            the ranges have seen no data.
        accumulator_limit: width of the target's accumulators; None without a kernel.
    """

    name: str
    op: str
    scheme: str
    shape: tuple[int, ...]
    output_bits: int
    activation_bytes: int
    weight_bytes: int
    macs: int | None
    bit_operations: int | None
    accumulator_bound: int | None
    accumulator_bits: int | None
    accumulator_limit: int | None

    @property
    def overflows(self) -> bool:
        """Whether some input makes the sums overflow the accumulators."""
        bits, limit = self.accumulator_bits, self.accumulator_limit
        return bits is not None and limit is not None and bits > limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """The costs of a model. Printing it gives a table.

    Attributes:
        layers: each layer, in order.
        peak_activation_bytes: the most bytes of activations that are alive at once, when layers
            run in this order and a tensor lives until its last reader has run.
    """

    layers: tuple[LayerSummary, ...]
    peak_activation_bytes: int

    @property
    def activation_bytes(self) -> int:
        """All activations together."""
        return sum(layer.activation_bytes for layer in self.layers)

    @property
    def weight_bytes(self) -> int:
        """All weights and biases together."""
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def macs(self) -> int:
        """All multiply-accumulate operations that are counted."""
        return sum(layer.macs or 0 for layer in self.layers)

    @property
    def bit_operations(self) -> int:
        """All bit-operations that are counted."""
        return sum(layer.bit_operations or 0 for layer in self.layers)

    def __str__(self) -> str:
        header = ["layer", "operator", "scheme", "output", "activation B", "weight B", "MACs"]
        rows = [[*header, "bit-ops", "acc. bound", "acc. bits"]]
        for x in self.layers:
            shape = " x ".join(map(str, x.shape))
            flag = "!" if x.overflows else ""
            numbers = (x.activation_bytes, x.weight_bytes, x.macs, x.bit_operations)
            widths = (_number(x.accumulator_bound), flag + _number(x.accumulator_bits))
            rows.append([x.name, x.op, x.scheme, shape, *map(_number, numbers), *widths])
        totals = (self.activation_bytes, self.weight_bytes, self.macs, self.bit_operations)
        rows.append(["total", "", "", "", *map(_number, totals), "", ""])
        lines = [
            tables.plain(rows, left=4),
            "",
            f"Peak activation memory: {self.peak_activation_bytes:,} bytes a sample.",
        ]
        if any(x.scheme == "float" for x in self.layers):
            lines[-1] += " Float layers add to it: dequantized inputs, and tensors within a layer."
        few = [x.name for x in self.layers if x.scheme and x.output_bits < 8]
        if few:
            lines.append(
                "Activations of fewer than 8 bits are int8 codes of which so many are in use: "
                f"{', '.join(few)}."
            )
        unknown = [x.name for x in self.layers if x.macs is None]
        if unknown:
            lines.append(f"MACs not counted: {', '.join(unknown)}.")
        flagged = [x.name for x in self.layers if x.overflows]
        if flagged:
            lines.append(f"! int32 accumulators can overflow: {', '.join(flagged)}.")
        return "\n".join(lines)


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def summary(model: keras.Model) -> Summary:
    """What a quantized model costs: memory, operations and accumulator widths of each layer.

    Args:
        model: what `quantize_model` returned; accumulator widths need ranges that have seen data.

    Raises:
        ValueError: for a model that is not quantized, or whose sample shape is not known.

    References:
        Bit-operations: Baskin et al. 2018 (arXiv 1804.10969). Accumulator bound: Nagel et al. 2021
        (arXiv 2106.08295), section 2.1.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> print(kerasq.summary(kerasq.quantize_model(model)).macs)
        32
    """
    require_quantized(model)
    cost.require_known_shapes(model)
    seen = all(float(quantizer.batches_seen) > 0 for quantizer in ranged(model).values())
    calls = graph.calls(model)
    return Summary(
        layers=tuple(_layer(node, seen) for node in calls),
        peak_activation_bytes=_peak(model, calls),
    )


def _layer(node: graph.Node, seen: bool) -> LayerSummary:
    layer, source = node.layer, quantized_by(node.outputs[0])
    name = "float" if source is None else source.scheme
    scheme = resolve(name)
    is_wrapped = isinstance(layer, QuantizeWrapper)
    rule = layer.rule if is_wrapped else registry.find(layer)
    copies = registry.copies(layer)
    kernel = layer if isinstance(layer, KernelWrapper) else None
    known = rule is not None and rule.output not in (Output.FLOAT, Output.DECOMPOSED)
    return LayerSummary(
        name=node.name,
        op=rule.op if rule is not None and (is_wrapped or copies) else type(layer).__name__,
        scheme="" if copies else name,
        shape=tuple(node.outputs[0].shape[1:]),
        output_bits=_width(node),
        activation_bytes=0 if _is_alias(layer) else _bytes(node),
        weight_bytes=cost.weight_bytes(layer, scheme),
        macs=cost.macs(layer) if known else None,
        bit_operations=cost.bit_operations(layer, scheme) if known else None,
        accumulator_bound=kernel and cost.accumulator_bound(kernel, scheme),
        accumulator_bits=cost.accumulator_bits(kernel) if kernel and seen else None,
        accumulator_limit=kernel and kernel.target.limits.accumulator_bits[scheme.code_bits],
    )


def _width(node: graph.Node) -> int:
    """Bits of what a call returns; copies have those of what they read."""
    source = quantized_by(node.outputs[0])
    return FLOAT_BITS if source is None else source.output_bits


def _bytes(node: graph.Node) -> int:
    """Bytes of what a call returns."""
    return sum(cost.activation_bytes(y, _width(node)) for y in node.outputs)


def _is_alias(layer: keras.Layer) -> bool:
    """Whether the output is the input's memory: reshapes, and what is dropped."""
    return registry.copies(layer) and registry.rule(layer).operators in ((), ("RESHAPE",))


def _peak(model: keras.Model, calls: list[graph.Node]) -> int:
    """The most bytes alive at once, in the order of the calls."""

    def memory(tensor: keras.KerasTensor) -> int:
        """The id of the tensor whose memory this one is: the first of a call's outputs."""
        layer, inputs = graph.origin(tensor)
        if inputs and _is_alias(layer):
            return memory(inputs[0])
        return id(graph.call_of(tensor).outputs[0])

    size = {id(node.outputs[0]): _bytes(node) for node in calls if not _is_alias(node.layer)}
    last = {}
    for step, node in enumerate(calls):
        for x in node.inputs:
            last[memory(x)] = step
        last.setdefault(memory(node.outputs[0]), step)
    for y in model.outputs:
        last[memory(y)] = len(calls)
    peak, alive = 0, set()
    for step, node in enumerate(calls):
        alive.add(memory(node.outputs[0]))
        peak = max(peak, sum(size.get(tensor, 0) for tensor in alive))
        alive = {tensor for tensor in alive if last[tensor] > step}
    return peak
