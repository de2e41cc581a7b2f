"""`summary`: what a quantized model costs on the device, layer by layer and in total."""

import dataclasses

import keras

from kerasq import graph, registry
from kerasq.analysis import cost, memory, trouble
from kerasq.analysis.trouble import Trouble
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.rule import Output, Rule
from kerasq.scheme import Scheme, resolve
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
        troubles: what is wrong with weights and ranges, and what `kerasq.CheckTraining` saw last.
    """

    layers: tuple[LayerSummary, ...]
    peak_activation_bytes: int
    troubles: tuple[Trouble, ...] = ()

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
        troubles = [f"Trouble. {found}" for found in self.troubles]
        table = tables.plain(self._rows(), left=4)
        return "\n".join([table, "", self._peak(), *self._remarks(), *troubles])

    def _rows(self) -> list[list[str]]:
        """The table: a header, a row for each layer, the totals."""
        header = ["layer", "operator", "scheme", "output", "activation B", "weight B", "MACs"]
        rows = [[*header, "bit-ops", "acc. bound", "acc. bits"]]
        for x in self.layers:
            shape = " x ".join(map(str, x.shape))
            flag = "!" if x.overflows else ""
            numbers = (x.activation_bytes, x.weight_bytes, x.macs, x.bit_operations)
            widths = (_number(x.accumulator_bound), flag + _number(x.accumulator_bits))
            rows.append([x.name, x.op, x.scheme, shape, *map(_number, numbers), *widths])
        totals = (self.activation_bytes, self.weight_bytes, self.macs, self.bit_operations)
        return [*rows, ["total", "", "", "", *map(_number, totals), "", ""]]

    def _peak(self) -> str:
        peak = f"Peak activation memory: {self.peak_activation_bytes:,} bytes a sample."
        if any(x.scheme == "float" for x in self.layers):
            # The file has DEQUANTIZE operators there, which the Keras model has no layers for.
            peak += " Float layers add to it: dequantized inputs, and tensors within a layer."
        return peak

    def _remarks(self) -> list[str]:
        """What the table cannot show of single layers, where there are such."""
        named = {
            # Copies would only repeat the layers that they read.
            "Activations of fewer than 8 bits are int8 codes of which so many are in use": [
                x.name for x in self.layers if x.scheme and x.output_bits < 8
            ],
            "MACs not counted": [x.name for x in self.layers if x.macs is None],
            "! int32 accumulators can overflow": [x.name for x in self.layers if x.overflows],
        }
        return [f"{text}: {', '.join(names)}." for text, names in named.items() if names]


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def summary(model: keras.Model) -> Summary:
    """What a quantized model costs: memory, operations and accumulator widths of each layer.

    Args:
        model: what `quantize_model` returned; accumulator widths need ranges that have seen data.

    Raises:
        ValueError: for a model that is not quantized, or whose sample shape is not known.

    References:
        Bit-operations: van Baalen et al. 2020 (arXiv 2005.07093), after Baskin et al. 2018 (arXiv
        1804.10969), who count additions too. Accumulator bound: Baskin et al. 2018.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> print(kerasq.summary(kerasq.quantize_model(model)).macs)
        32
    """
    require_quantized(model)
    cost.require_known_shapes(model)
    # All of them: the width of a layer's sums follows from the range of the layer before it.
    is_calibrated = all(quantizer.has_seen_data() for quantizer in ranged(model).values())
    calls = graph.calls(model)
    return Summary(
        layers=tuple(_layer(node, is_calibrated) for node in calls),
        peak_activation_bytes=memory.peak(model, calls),
        troubles=tuple(trouble.find(model)),
    )


def _layer(node: graph.Node, is_calibrated: bool) -> LayerSummary:
    """The costs of one call."""
    layer, source = node.layer, quantized_by(node.outputs[0])
    name = "float" if source is None else source.scheme
    is_copy = registry.passes_through(layer) or registry.gives_indices(layer)
    return LayerSummary(
        name=node.name,
        op=_operator(layer),
        # Values that only move, or are compared, are not computed at a width.
        scheme="" if is_copy else name,
        shape=tuple(node.outputs[0].shape[1:]),
        output_bits=memory.output_bits(node),
        activation_bytes=memory.output_bytes(node),
        weight_bytes=cost.weight_bytes(layer, resolve(name)),
        **_operations(layer, resolve(name)),
        **_accumulators(layer, resolve(name), is_calibrated),
    )


def _rule(layer: keras.Layer) -> Rule | None:
    """The row of a layer; of a wrapper its own, as boundaries stand for no layer of Keras."""
    return layer.rule if isinstance(layer, QuantizeWrapper) else registry.find(layer)


def _operator(layer: keras.Layer) -> str:
    """The operator that computes a layer; the class of one that stays float."""
    rule = _rule(layer)
    # Float layers become what the converter chooses, often several operators.
    is_integer = isinstance(layer, QuantizeWrapper)
    is_integer |= registry.passes_through(layer) or registry.gives_indices(layer)
    return rule.op if rule is not None and is_integer else type(layer).__name__


def _operations(layer: keras.Layer, scheme: Scheme) -> dict[str, int | None]:
    """MACs and bit-operations; None where the rule does not say what a layer multiplies."""
    rule = _rule(layer)
    if rule is None or rule.output in (Output.FLOAT, Output.DECOMPOSED):
        return {"macs": None, "bit_operations": None}
    return {"macs": cost.macs(layer), "bit_operations": cost.bit_operations(layer, scheme)}


def _accumulators(layer: keras.Layer, scheme: Scheme, is_calibrated: bool) -> dict[str, int | None]:
    """Bound, need and limit of the accumulators of a layer with a kernel."""
    if not isinstance(layer, KernelWrapper):
        return dict.fromkeys(("accumulator_bound", "accumulator_bits", "accumulator_limit"))
    return {
        "accumulator_bound": cost.accumulator_bound(layer, scheme),
        "accumulator_bits": cost.accumulator_bits(layer) if is_calibrated else None,
        # To kernels, activations of few bits are int8 codes.
        "accumulator_limit": layer.target.limits.accumulator_bits[scheme.code_bits],
    }
