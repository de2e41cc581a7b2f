"""Fusion: which calls of BatchNormalization and ReLU become part of the operator before them."""

import dataclasses

from kerasq import graph as graphs
from kerasq import registry
from kerasq.litert.operators import fuses_relu
from kerasq.prepare import batch_norm as batch_norms
from kerasq.rule import Output
from kerasq.scheme import FLOAT_BITS, resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fusions:
    """What becomes part of what.

    Attributes:
        norms: by id of a call with a kernel, the BatchNormalization behind it.
        relus: by id of a call whose output has a range, the ReLU behind it (and behind its norm).
        into: by id of a call that is fused, the name of the layer that it becomes part of.
    """

    norms: dict[int, graphs.Node]
    relus: dict[int, graphs.Node]
    into: dict[int, str]

    def end(self, node: graphs.Node) -> graphs.Node:
        """The call that returns the output of what `node` is fused with."""
        return self.relus.get(id(node), self.norms.get(id(node), node))


def find(
    graph: graphs.Graph,
    schemes: dict[str, str],
    floats: frozenset[str] = frozenset(),
    symmetric: bool = False,
) -> Fusions:
    """The fusions in a graph.

    Args:
        graph: a graph, decomposed or not.
        schemes: names of schemes by name of a layer of the user's model.
        floats: names of layers that stay float: nothing is fused with them.
        symmetric: whether grids of 8 bits have their zero point at 0 as well.
    """
    norms = batch_norms.foldable(graph, floats)
    # A ReLU behind a BatchNormalization that is folded is behind the kernel, too.
    relus = {
        id(node): relu
        for node in graph.nodes
        if (relu := _relu_behind(graph, node, norms.get(id(node), node), schemes, symmetric))
        is not None
        and relu.layer.name not in floats
    }
    into = {
        id(found[id(node)]): node.layer.name
        for node in graph.nodes
        for found in (norms, relus)
        if id(node) in found
    }
    return Fusions(norms=norms, relus=relus, into=into)


def _moved(graph: graphs.Graph, node: graphs.Node) -> graphs.Node:
    """The last of the parts of the same layer behind `node` that only move what it returns."""
    reader = graph.only_consumer(node)
    if reader is None or not registry.passes_through(reader.layer):
        return node
    return _moved(graph, reader) if reader.source.name == node.source.name else node


def _clamps(node: graphs.Node, schemes: dict[str, str], symmetric: bool) -> bool:
    """Whether 0 is the lowest code behind a ReLU, where an operator clamps that fuses none.

    Not so on symmetric grids, such as all of 16 bits, and below 8 bits, where codes are the topmost
    ones of int8 (`Grid.levels`).
    """
    bits = 16 if node.source.is_wide else resolve(schemes[node.source.name]).activation_bits
    return bits == FLOAT_BITS or (bits == 8 and not symmetric)


def _relu_behind(
    graph: graphs.Graph,
    node: graphs.Node,
    end: graphs.Node,
    schemes: dict[str, str],
    symmetric: bool,
) -> graphs.Node | None:
    """The ReLU that alone reads what a call and its BatchNormalization, `end`, return."""
    rule, relu = registry.find(node.layer), graph.only_consumer(_moved(graph, end))
    if relu is None or not registry.relu_limit(relu.layer)[0]:
        return None
    if rule is None or rule.output != Output.LEARNED or registry.relu_limit(node.layer)[0]:
        return None
    has_clamp = _clamps(node, schemes, symmetric)
    # In a user's graph activations are still part of their layers: one that has a fixed grid, such
    # as a sigmoid, is what the ReLU reads.
    is_plain = registry.activation_name(node.layer) in ("linear", "elu")
    return relu if is_plain and (fuses_relu(rule.operator) or has_clamp) else None
