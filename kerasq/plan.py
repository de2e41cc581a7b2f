"""The width rule: what becomes of each call of a decomposed graph, and what it reads and writes.

There is one record a call. Whoever wants to know a width asks for the record, or calls one of the
functions, which hold for a layer at any scheme.
"""

import dataclasses
import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras

from kerasq import graph as graphs
from kerasq import registry
from kerasq.layers import IN_FRONT, Requantize
from kerasq.litert.operators import OPERATORS, multiplies
from kerasq.prepare import fusion
from kerasq.rule import Output
from kerasq.scheme import FLOAT_BITS, Scheme, resolve, widened
from kerasq.targets import Target


def read_bits(op: str, scheme: Scheme, width: Any) -> Any:
    """The width at which an operator at `scheme` reads values of `width` bits.

    Operators that multiply want the width of the scheme's activations; all others want that of its
    codes, 8 or 16. Narrower codes of up to 8 bits are int8 codes as well, and are read as they are.
    Operators that need all inputs on one grid requantize them themselves.

    Args:
        op: a LiteRT operator.
        scheme: the scheme of the layer.
        width: bits of the values; `FLOAT_BITS` for float ones.

    Returns:
        The width. Where it is not `width`, a boundary stands between.
    """
    if scheme.activation_bits == FLOAT_BITS:  # A float layer reads any codes, as real values.
        return width
    is_code = width != FLOAT_BITS
    return width if is_code and reads_as_is(op, scheme, width) else wanted_bits(op, scheme)


def wanted_bits(op: str, scheme: Scheme) -> int:
    """The width that an operator at `scheme` wants its inputs to have."""
    return scheme.activation_bits if multiplies(op) else scheme.code_bits


def reads_as_is(op: str, scheme: Scheme, width: int) -> bool:
    """Whether an operator at `scheme` reads integer codes of `width` bits without a boundary."""
    if op == "QUANTIZE" or (op in OPERATORS and OPERATORS[op].one_grid):
        return True  # A boundary would round once more, before the operator does.
    wanted = wanted_bits(op, scheme)
    if op == "AVERAGE_POOL_2D" and width < 8:
        return False  # It keeps the grid of its input: averages of few levels want more of them.
    return width == wanted or width < wanted <= 8


def written_bits(scheme: Scheme, is_cut: bool, is_read_narrow: bool) -> int:
    """The width of an output that has a range of its own.

    Below 8 bits it is that of the scheme's activations only where a ReLU, or a boundary, cuts the
    range, and where a layer that multiplies reads it at fewer than 8 bits: sums and averages of few
    levels, and what layers of 8 bits read, keep 8 (Esser et al. 2020, Choi et al. 2018: only inputs
    of convolutions have few bits).
    """
    return scheme.activation_bits if is_cut and is_read_narrow else scheme.code_bits


def is_narrow_reader(op: str, scheme: Scheme) -> bool:
    """Whether a layer reads what it multiplies at fewer than 8 bits."""
    return multiplies(op) and scheme.activation_bits < 8


def lacks(target: Target, op: str, scheme: Scheme) -> str | None:
    """What a target has no kernel for: the "operator", "int16", or None."""
    if op not in target.operators:
        return "operator"
    if scheme.activation_bits == 16 and not target.has(op, 16):
        return "int16"
    return None


class Kind(enum.Enum):
    """What becomes of a call."""

    FLOAT = "stays float"
    PASS_THROUGH = "moves or picks values, which keep their grid"
    INDEX = "compares values of any width, and returns integers that lie on no grid"
    FUSED = "is part of the call before it"
    INTEGER = "an integer operator"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """What becomes of one call of a layer.

    Attributes:
        kind: see `Kind`.
        op: the LiteRT operator; "-" where there is none.
        scheme: name of its scheme.
        reads: the width at which it reads each of its tensors; `FLOAT_BITS` for float values.
        writes: the width of what it returns. Of a call that stays float: that of the boundary
            behind it, where all readers are integer and its rows can be picked as integers, and
            where it scales an input.
        batch_norm: the call of a BatchNormalization that becomes part of it.
        relu: the call of a ReLU that becomes part of it.
    """

    kind: Kind
    op: str
    scheme: str
    reads: tuple[int, ...]
    writes: int
    batch_norm: graphs.Node | None = None
    relu: graphs.Node | None = None


class Plan:
    """The records of a decomposed graph.

    Args:
        graph: what `kerasq.prepare.decompose` returned.
        schemes: names of schemes by name of a layer, or input, of the user's model.
        floats: names of the layers of `graph` that stay float, beside those without a rule.
        target: what the model is to run on.
        symmetric: whether grids of 8 bits have their zero point at 0, as those of 16.
    """

    def __init__(
        self,
        graph: graphs.Graph,
        schemes: dict[str, str],
        floats: frozenset[str],
        target: Target,
        symmetric: bool = False,
    ) -> None:
        self.graph = graph
        self.target = target
        self.schemes = schemes
        # Such as an activation that has no kernel, of a layer that has one.
        unknown = {node.layer.name for node in graph.nodes if registry.find(node.layer) is None}
        self.floats = floats | unknown
        self._fusions = fusion.find(graph, schemes, self.floats, symmetric)
        # In order: what a call reads is what those before it write.
        self._widths = {id(x): self._width_of_input(x) for x in graph.model.inputs}
        self._calls: dict[int, Call] = {}
        for node in graph.nodes:
            self._calls[id(node)] = self._call(node)
            # Places of a TopK lie on no grid, whatever its values do.
            widths = {id(y): self[node].writes for y in node.outputs if "float" in y.dtype}
            self._widths.update(dict.fromkeys(map(id, node.outputs), FLOAT_BITS) | widths)

    def __getitem__(self, node: graphs.Node) -> Call:
        return self._calls[id(node)]

    def trains(self, node: graphs.Node) -> bool:
        """Whether what a call becomes trains, the BatchNormalization that is part of it or itself.

        What a frozen layer becomes is frozen, its range as well.
        """
        parts = (node, self[node].batch_norm)
        return any(x.layer.trainable and x.source.trainable for x in parts if x is not None)

    def width(self, tensor: keras.KerasTensor) -> int:
        """The bits of a tensor of the graph; `FLOAT_BITS` where it is float."""
        return self._widths[id(tensor)]

    def input_bits(self, x: keras.KerasTensor) -> int:
        """The width that an input of the model is quantized at; indices stay as they are."""
        if not x.dtype.startswith("float"):
            return FLOAT_BITS
        return resolve(self.schemes[graphs.origin(x)[0].name]).code_bits

    def _width_of_input(self, x: keras.KerasTensor) -> int:
        """The width at which calls read an input: float, where one is in front of its grid."""
        is_real = any(isinstance(y.layer, IN_FRONT) for y in self.graph.consumers(x))
        return FLOAT_BITS if is_real else self.input_bits(x)

    def _asked(self, node: graphs.Node) -> str:
        """The scheme of the user's layer; of a part with wider codes, that with 16 bits."""
        name = self.schemes[node.source.name]
        return widened(name) if node.source.is_wide or self._is_long(node) else name

    def _is_long(self, node: graphs.Node) -> bool:
        """Whether a softmax is over more values than the target's kernel on int8 takes."""
        rule = registry.find(node.layer)
        is_softmax = rule is not None and rule.op == "SOFTMAX"
        return is_softmax and not self.target.limits.takes_softmax(node.inputs[0].shape[-1])

    def _scheme_name(self, node: graphs.Node) -> str:
        """What is asked of a call, at int8 where the operator has no int16 kernel."""
        name, rule = self._asked(node), registry.find(node.layer)
        if rule is None or resolve(name).activation_bits != 16 or not rule.operators:
            return name
        op = rule.operator_at(16, self.target)
        has_none = op in self.target.operators and not self.target.has(op, 16)
        return name.replace("a16", "a8") if has_none else name

    def _scheme(self, node: graphs.Node) -> Scheme:
        return resolve(self._scheme_name(node))

    def _op(self, node: graphs.Node) -> str:
        rule = registry.find(node.layer)
        if rule is None or node.layer.name in self.floats:
            return "-"
        return rule.operator_at(self._scheme(node).code_bits, self.target)

    def _kind(self, node: graphs.Node) -> Kind:
        if id(node) in self._fusions.into:
            return Kind.FUSED
        # Before floats: what only moves values keeps their grid, whatever its scheme.
        if registry.passes_through(node.layer):
            return Kind.PASS_THROUGH
        if registry.gives_indices(node.layer):
            return Kind.INDEX
        if node.layer.name in self.floats:
            return Kind.FLOAT
        return Kind.PASS_THROUGH if self._is_on_grid(node) else Kind.INTEGER

    def _is_on_grid(self, node: graphs.Node) -> bool:
        """Whether a Requantize reads values of the width that it would write."""
        is_end = isinstance(node.layer, Requantize)
        return is_end and self.width(node.inputs[0]) == self._scheme(node).code_bits

    def _call(self, node: graphs.Node) -> Call:
        kind, op = self._kind(node), self._op(node)
        widths = [self._widths[id(x)] for x in node.inputs]
        reads = widths
        if kind is Kind.INTEGER:
            scheme = self._scheme(node)
            pairs = zip(node.inputs, widths, strict=True)
            # A condition is no code, at any width.
            reads = [w if x.dtype == "bool" else read_bits(op, scheme, w) for x, w in pairs]
        return Call(
            kind=kind,
            op=op,
            scheme=self._scheme_name(node),
            reads=tuple(reads),
            writes=self._writes(node, kind, reads),
            batch_norm=self._fusions.norms.get(id(node)),
            relu=self._fusions.relus.get(id(node)),
        )

    def _writes(self, node: graphs.Node, kind: Kind, reads: list[int]) -> int:
        if kind in (Kind.FLOAT, Kind.INDEX):
            return self._width_behind(node)
        return self._written(node, kind, reads)

    def _written(self, node: graphs.Node, kind: Kind, reads: list[int]) -> int:
        """The width of codes that a call returns."""
        scheme, rule = self._scheme(node), registry.find(node.layer)
        if kind is not Kind.INTEGER or (rule is not None and rule.output == Output.INPUT):
            return reads[self._place_of_values(node)]
        if rule is not None and rule.grids:
            return scheme.code_bits  # The kernel insists on all codes, such as 0..1 in 1/256.
        is_cut = id(node) in self._fusions.relus or registry.relu_limit(node.layer)[0]
        # Whoever reads the fused ReLU reads this call: on the device there is one operator.
        end = self._fusions.end(node)
        narrow = any(is_narrow_reader(self._op(x), self._scheme(x)) for x in self._readers(end))
        return written_bits(scheme, is_cut, narrow)

    @staticmethod
    def _place_of_values(node: graphs.Node) -> int:
        """Which of a call's tensors is the first one that is no condition."""
        return next((i for i, x in enumerate(node.inputs) if x.dtype != "bool"), 0)

    def _width_behind(self, node: graphs.Node) -> int:
        """The width of the boundary behind a call that stays float; `FLOAT_BITS` for none."""
        if isinstance(node.layer, IN_FRONT):
            return resolve(self.schemes[graphs.origin(node.inputs[0])[0].name]).code_bits
        return self._scheme(node).activation_bits if self._is_picked(node) else FLOAT_BITS

    def _is_picked(self, node: graphs.Node) -> bool:
        """Whether rows that a call picks from weights, such as Embedding's, are read as integers.

        The rows are then stored as integers: picking quantized rows is quantizing picked ones.
        """
        # The other way, a QUANTIZE behind it, would store the rows in float.
        rule = registry.find(node.layer)
        if rule is None or rule.operators != ("GATHER",):
            return False
        readers = list(self._readers(node))
        return bool(readers) and not {x.layer.name for x in readers} & self.floats

    def _readers(self, node: graphs.Node) -> Iterator[graphs.Node]:
        """The calls that read what a call returns, behind those that only move it."""
        for reader in (x for y in node.outputs for x in self.graph.consumers(y)):
            if registry.passes_through(reader.layer):
                yield from self._readers(reader)
            else:
                yield reader

    def check_kernels(self) -> None:
        """Raises a ValueError where a scheme is asked of a layer that has no such kernel."""
        # After all calls have a record, since the error names neighbours that could take int16.
        for node in self.graph.nodes:
            call, name = self[node], node.source.name
            missing = None
            if call.kind is Kind.INTEGER:
                missing = lacks(self.target, call.op, resolve(call.scheme))
            if missing == "operator":
                raise ValueError(
                    f"A layer must have an operator of the target {self.target.name!r}. Received: "
                    f"layer {name!r}, whose operator {call.op} it does not have. Leave it "
                    'in float, with overrides={"<name>": "float"}.'
                )

    def narrowed(self) -> list[str]:
        """What to print of operators that run at int8 where their scheme says int16."""
        nodes = [x for x in self.graph.nodes if self[x].kind is Kind.INTEGER]
        return [
            f"{x.layer.name!r} ({self[x].op})" for x in nodes if self[x].scheme != self._asked(x)
        ]

    def check_overrides(self, named: Mapping[Any, Iterable[str]]) -> None:
        """Raises a ValueError where a key only fits layers without a scheme of their own.

        Args:
            named: by key, the names of the layers that it fits.
        """
        # Layers that only move values have schemes too, which nothing asks for: a user who sets one
        # expects something to change.
        legal = {x.name for x in self.graph.model.inputs} | self.floats
        legal |= {
            x.source.name
            for x in self.graph.nodes
            if self[x].kind is Kind.INTEGER or isinstance(x.layer, IN_FRONT)
        }
        for key, found in named.items():
            if found and not legal & {*found}:
                raise ValueError(
                    "`overrides` must name layers that have a grid of their own. "
                    f"Received: {key!r}, that is {found}, which only move values or are fused "
                    f"into the layer before them. Legal names: {sorted(legal)}."
                )
