"""What operators of a finished file do to channels: which stay constant, which may go, and how.

An operator that treats channels one by one has an output channel for each that it reads, and loses
both or none. One with weights reads all channels for each of the output's.
"""

import dataclasses
import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.export.channels import Network
from kerasq.litert import flatbuffer
from kerasq.litert.operators import OPERATORS

# Those that compute each channel from the same one of the tensor that they read.
_ALIKE = {
    *("AVERAGE_POOL_2D", "CAST", "DEQUANTIZE", "ELU", "EXP", "GELU", "LEAKY_RELU", "LOGISTIC"),
    *("MAX_POOL_2D", "QUANTIZE", "RELU", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT"),
    "TANH",
}
_ELEMENTWISE = {"ADD", "MAXIMUM", "MINIMUM", "MUL", "SUB"}
_REDUCTIONS = {"MEAN", "REDUCE_MAX", "REDUCE_MIN", "SUM"}
_NONE = np.zeros(0, bool)


class Rule:
    """What an operator does to channels; this one of which nothing is known: all stay.

    Attributes:
        network, op: the file, and the operator.
        kind: its name.
        inputs, outputs: its tensors, by number.
        output: the first of the outputs.
    """

    def __init__(self, network: Network, op: schema.OperatorT) -> None:
        self.network, self.op = network, op
        self.kind = flatbuffer.op_name(flatbuffer.op_code(network.model, op))
        self.inputs, self.outputs = [*map(int, op.inputs)], [*map(int, op.outputs)]
        self.output = self.outputs[0] if self.outputs else -1

    def spread(self) -> None:
        """Notes which channels of the output are constant."""

    def hold(self) -> None:
        """Keeps what must not go, as long as all else does that goes now."""
        for tensor in filter(lambda i: i >= 0, (*self.inputs, *self.outputs)):
            self.network.keep(tensor, np.ones(self.network.count(tensor), bool))

    def settle(self) -> None:
        """As `hold`, of what hangs on how many go: asked where `hold` keeps nothing more."""

    def cut(self) -> None:
        """Takes channels that go out of constants of the operator; tensors lose them later."""

    def _note(self, constant: np.ndarray) -> None:
        """Notes constant channels of the output."""
        network = self.network
        if network.name(self.output) in network.values:
            # What the simulation has computed must agree, such as averages at an image's edges.
            constant = constant & ~np.isnan(network.codes(self.output))
        network.constant[self.output] = constant

    def _at_zero(self, tensor: int) -> np.ndarray:
        """Which channels of a tensor are constantly 0."""
        network = self.network
        is_zero: np.ndarray = network.codes(tensor) == network.zero_point(tensor)
        return network.is_constant(tensor) & is_zero

    def _replace(self, place: int, values: np.ndarray, kept: np.ndarray = _NONE) -> None:
        """Gives the operator another constant; `kept`: the channels that have scales in it."""
        self.op.inputs[place] = self.network.replaced(self.inputs[place], values, kept)

    def _shape_behind(self) -> np.ndarray:
        """The shape of the output without what goes, int32."""
        kept = int((~self.network.drops(self.output)).sum())
        return np.array([*self.network.shape(self.output)[:-1], kept], np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Link:
    """Channels of an input, and those of the output that are made of them, in pairs."""

    tensor: int
    own: np.ndarray
    made: np.ndarray


class Linked(Rule):
    """An operator that treats channels one by one.

    Args:
        network, op: as `Rule` has them.
        links: the channels of each input.
    """

    def __init__(self, network: Network, op: schema.OperatorT, links: list[_Link]) -> None:
        super().__init__(network, op)
        self.links = links

    def spread(self) -> None:
        """Those are constant that are so in all inputs, and some more."""
        constant = np.ones(self.network.count(self.output), bool)
        for link in self.links:
            np.logical_and.at(constant, link.made, self.network.is_constant(link.tensor)[link.own])
        adjust = {"MUL": self._of_product, "PAD": self._of_padded, "RESHAPE": self._of_reshaped}
        self._note(adjust[self.kind](constant) if self.kind in adjust else constant)

    def _of_product(self, constant: np.ndarray) -> np.ndarray:
        """What is multiplied by 0 is constant as well."""
        for link in self.links:
            constant = constant | self._at_zero(link.tensor)
        return constant

    def _of_padded(self, constant: np.ndarray) -> np.ndarray:
        """What stands around an image is 0."""
        return constant & self._at_zero(self.inputs[0])

    def _of_reshaped(self, constant: np.ndarray) -> np.ndarray:
        """Where several channels become one, each may have another value."""
        network, source = self.network, self.inputs[0]
        if network.count(source) > len(constant):
            return np.zeros_like(constant)
        network.share_codes(source, self.output, self.links[0].own)
        return constant

    def hold(self) -> None:
        """Both channels of a link stay where one does."""
        network = self.network
        for link in self.links:
            goes = network.drops(link.tensor)[link.own] & network.drops(self.output)[link.made]
            network.keep(link.tensor, _mask(network.count(link.tensor), link.own[~goes]))
            network.keep(self.output, _mask(network.count(self.output), link.made[~goes]))

    def cut(self) -> None:
        """The shape of a RESHAPE is a constant."""
        if self.kind != "RESHAPE" or not self.network.drops(self.output).any():
            return
        if len(self.inputs) > 1:
            self._replace(1, self._shape_behind())
        if self.op.builtinOptions is not None:
            self.op.builtinOptions.newShape = self._shape_behind()


def _mask(count: int, places: np.ndarray) -> np.ndarray:
    mask = np.zeros(count, bool)
    mask[places] = True
    return mask


class Depthwise(Linked):
    """A depthwise convolution of one output channel for each that it reads."""

    def spread(self) -> None:
        """Those are constant whose weights are 0, or that read a constant."""
        kernel = self.network.data(self.inputs[1])
        assert kernel is not None
        source = self.inputs[0]
        is_padded = _reaches_out(self)
        reads = self._at_zero(source) if is_padded else self.network.is_constant(source)
        self._note(~kernel.any(axis=(0, 1, 2)) | reads)

    def cut(self) -> None:
        """Kernel and bias have the same channels."""
        kept = ~self.network.drops(self.output)
        for place in (1, 2) if not kept.all() else ():
            values = self.network.data(self.inputs[place])
            assert values is not None
            self._replace(place, values[..., kept], kept)


class Weighted(Rule):
    """A convolution or product of all channels that it reads, which it may read without some.

    A channel that is read with weights of 0 alone is not needed. One that is constant is none
    either: `sum(w * (code - zero_point))` becomes part of the bias.

    Args:
        network, op: as `Rule` has them.
        kernel: its weights, `(outputs, places, channels)`.
    """

    def __init__(self, network: Network, op: schema.OperatorT, kernel: np.ndarray) -> None:
        super().__init__(network, op)
        self.source, self.place = self.inputs[OPERATORS[self.kind].data], OPERATORS[self.kind].bias
        self.kernel = kernel
        self._is_read = np.asarray(kernel.any(axis=1))
        # Which channels add one number, at all places.
        self._adds = np.zeros(kernel.shape[-1], bool)

    def _is_padded(self) -> bool:
        """Whether what a constant adds hangs on the place."""
        is_convolution = self.kind == "CONV_2D"
        return self.kind == "TRANSPOSE_CONV" or (is_convolution and _reaches_out(self))

    def spread(self) -> None:
        """Those are constant that read constants alone, or nothing."""
        network, source = self.network, self.source
        adds = self._at_zero(source) if self._is_padded() else network.is_constant(source)
        hangs: np.ndarray = (self._is_read & ~adds).any(axis=1)
        self._note(~hangs)
        # The code of a constant that is no layer's output is not known.
        self._adds = adds & network.known(source)

    def _read(self) -> np.ndarray:
        """Which channels the outputs that stay read."""
        read: np.ndarray = self._is_read[~self.network.drops(self.output)].any(axis=0)
        return read

    def hold(self) -> None:
        """What is read stays, but for constants."""
        self.network.keep(self.source, self._read() & ~self._adds)

    def settle(self) -> None:
        """Packed products go on reading an even or odd number of codes; biases fit the target."""
        network, dropped = self.network, self.network.drops(self.source)
        is_packed = network.graph.tensors[self.inputs[1]].type == schema.TensorType.INT4
        gone = int(dropped.sum()) * self.kernel.shape[1]
        # Two weights are a byte, and rows begin with one: kernels for odd numbers round otherwise.
        if is_packed and self.kind == "FULLY_CONNECTED" and gone % 2:
            network.keep(self.source, np.arange(len(dropped)) == dropped.argmax())
        bits = 8 * flatbuffer.dtype(network.graph.tensors[self.source]).itemsize
        limit = network.limits[bits, 4 if is_packed else 8]
        bias, added = self._bias()
        # Those that nothing is added to may be at the limit: scales of no weights are tiny.
        if np.abs(bias + added)[added != 0].max(initial=0) >= limit:
            network.keep(self.source, self._read())

    def _bias(self) -> tuple[np.ndarray, np.ndarray]:
        """The bias of outputs that stay, and what channels that go add to them."""
        network, dropped = self.network, self.network.drops(self.source)
        bias, made = network.data(self.inputs[self.place]), ~network.drops(self.output)
        assert bias is not None
        offsets = network.codes(self.source) - network.zero_point(self.source)
        # Those that nothing reads add nothing, whatever they are.
        moved = np.where(dropped & network.known(self.source), offsets, 0.0).astype(np.int64)
        return bias[made], (self.kernel.sum(axis=1) @ moved)[made]

    def cut(self) -> None:
        """Kernel, bias, and the size of a transposed convolution's output."""
        kept, made = ~self.network.drops(self.source), ~self.network.drops(self.output)
        if kept.all() and made.all():
            return
        kernel = self.kernel[made][..., kept].astype(np.int8)
        inner = self.network.shape(self.inputs[1])[1:-1]
        inputs = self.kernel.shape[1] * int(kept.sum()) // math.prod(inner)
        bias, added = self._bias()
        self._replace(self.place, (bias + added).astype(bias.dtype), made)
        self._replace(1, kernel.reshape(-1, *inner, inputs), made)
        if self.kind == "TRANSPOSE_CONV":
            self._replace(0, self._shape_behind())


def _reaches_out(rule: Rule) -> bool:
    """Whether windows of a convolution reach beyond the image."""
    options, shape = rule.op.builtinOptions, rule.network.shape
    ends = []
    for axis, step, gap in (
        (1, options.strideH, options.dilationHFactor),
        (2, options.strideW, options.dilationWFactor),
    ):
        reach = (shape(rule.output)[axis] - 1) * step + (shape(rule.inputs[1])[axis] - 1) * gap + 1
        ends.append(reach > shape(rule.inputs[0])[axis])
    return any(ends)


def _same(network: Network, tensor: int, output: int) -> list[_Link]:
    """One channel for each, where there are as many."""
    count = network.count(output)
    if network.count(tensor) != count:
        return []
    return [_Link(tensor=tensor, own=np.arange(count), made=np.arange(count))]


def _of_one(rule: Rule) -> list[_Link]:
    return _same(rule.network, rule.inputs[0], rule.output)


def _of_operands(rule: Rule) -> list[_Link]:
    network = rule.network
    # A constant for all channels has none of its own.
    own = [i for i in rule.inputs if network.count(i) > 1 or network.data(i) is None]
    links = [_same(network, i, rule.output) for i in own]
    return [link for found in links for link in found] if all(links) else []


def _of_reduced(rule: Rule) -> list[_Link]:
    axes, rank = rule.network.data(rule.inputs[1]), len(rule.network.shape(rule.inputs[0]))
    return [] if axes is None or rank - 1 in axes.ravel() % rank else _of_one(rule)


def _of_padded(rule: Rule) -> list[_Link]:
    widths = rule.network.data(rule.inputs[1])
    return [] if widths is None or widths[-1].any() else _of_one(rule)


def _of_looked_up(rule: Rule) -> list[_Link]:
    table = rule.network.data(rule.inputs[0])
    is_table = table is not None and table.ndim == 1
    return _same(rule.network, rule.inputs[1], rule.output) if is_table else []


def _of_parts(rule: Rule) -> list[_Link]:
    network, rank = rule.network, len(rule.network.shape(rule.output))
    if rule.op.builtinOptions.axis % rank != rank - 1:
        return _of_operands(rule)
    counts = [network.count(i) for i in rule.inputs]
    parts = zip(rule.inputs, counts, np.cumsum(counts), strict=True)
    return [_Link(tensor=i, own=np.arange(n), made=np.arange(end - n, end)) for i, n, end in parts]


def _of_reshaped(rule: Rule) -> list[_Link]:
    counts = [rule.network.count(i) for i in (rule.inputs[0], rule.output)]
    every = np.arange(max(counts))
    # Values keep their order: where one number divides the other, channels follow each other.
    if max(counts) % min(counts):
        return []
    return [_Link(tensor=rule.inputs[0], own=every % counts[0], made=every % counts[1])]


_LINKS = {
    **dict.fromkeys(_ALIKE, _of_one),
    **dict.fromkeys(_ELEMENTWISE, _of_operands),
    **dict.fromkeys(_REDUCTIONS, _of_reduced),
    "CONCATENATION": _of_parts,
    "GATHER": _of_looked_up,
    "PAD": _of_padded,
    "RESHAPE": _of_reshaped,
}


def rule_of(network: Network, op: schema.OperatorT) -> Rule:
    """The rule of an operator."""
    rule = Rule(network, op)
    if rule.kind in OPERATORS and OPERATORS[rule.kind].channels is not None:
        return _rule_of_weights(rule)
    links = _LINKS[rule.kind](rule) if rule.kind in _LINKS and len(rule.outputs) == 1 else []
    return Linked(network, op, links) if links else rule


def _rule_of_weights(rule: Rule) -> Rule:
    """The rule of an operator with weights, where it has integers that no other one reads."""
    network, place = rule.network, OPERATORS[rule.kind].data
    kernel = network.data(rule.inputs[1])
    if kernel is None or kernel.dtype != np.int8 or not _has_bias(rule):
        return rule
    if network.is_shared(rule.inputs[1]):
        return rule  # A layer that is called twice would need two kernels.
    count = network.count(rule.inputs[place])
    if rule.kind == "DEPTHWISE_CONV_2D":
        links = _of_one(rule)
        return Depthwise(network, rule.op, links) if links else rule
    # A product may read several places at once, whose channels follow each other; a convolution
    # in groups has fewer than it reads.
    inputs = kernel.shape[-1]
    fits = inputs % count == 0 if rule.kind == "FULLY_CONNECTED" else inputs == count
    codes = kernel.reshape(len(kernel), -1, count).astype(np.int64) if fits else None
    return rule if codes is None else Weighted(network, rule.op, codes)


def _has_bias(rule: Rule) -> bool:
    inputs, place = rule.inputs, OPERATORS[rule.kind].bias
    return len(inputs) > place and rule.network.data(inputs[place]) is not None
