"""Where values that are lower by a number a channel go, and what makes up for them."""

import collections

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq import registry
from kerasq.equalization import channels, homogeneous
from kerasq.equalization.links import TRANSPOSED, Link
from kerasq.layers import Constant

L = keras.layers
# What returns values that are lower by c where all that it reads are. Padding adds zeros.
_MOVES = (*homogeneous.POOLINGS, *homogeneous.MOVES)
# Calls, each with by how much lower what they read is.
Lowered = list[tuple[graphs.Node, np.ndarray]]


class Refused(Exception):
    """Says what cannot make up for lower values."""


class Shifts:
    """The readers of a graph's tensors.

    Attributes:
        links: by id of a call, the linear maps of its layer.
        shared: names of layers that are called more than once.
    """

    def __init__(self, graph: graphs.Graph) -> None:
        self._graph = graph
        self.links: dict[int, list[Link]] = {}
        for link in channels.find(graph, {}).links:
            self.links.setdefault(id(link.node), []).append(link)
        calls = collections.Counter(node.source.weights_of for node in graph.nodes)
        self.shared = {x.layer.name for x in graph.nodes if calls[x.source.weights_of] > 1}
        self._makers = {id(x): node for node in graph.nodes for x in node.outputs}

    def is_limited(self, relu: graphs.Node) -> bool:
        """Whether a Minimum and its constant are all that reads a ReLU."""
        readers = [x.layer for x in self._graph.consumers(relu.output)]
        return {type(x) for x in readers} == {Constant, L.Minimum} and len(readers) == 2

    def readers(self, relu: graphs.Node, shift: np.ndarray) -> tuple[Lowered, Lowered]:
        """What makes up for lower values, and what limits them, each with by how much."""
        lower = {id(relu.output): shift}
        takers: Lowered = []
        limiters: Lowered = []
        for node in self._graph.nodes:
            own = [lower[id(x)] for x in node.inputs if id(x) in lower]
            if not own or isinstance(node.layer, Constant):  # Which looks at nothing that it reads.
                continue
            if id(node) in self.links:
                self._check_taker(node)
                takers.append((node, own[0]))
                continue
            if type(node.layer) is L.Minimum:
                limiters.append((self._limiter(node, own[0]), own[0]))
            lower[id(node.outputs[0])] = _passed(node, own)
        if any(id(x) in lower for x in keras.tree.flatten(self._graph.model.outputs)):
            raise Refused("output of the model")
        return takers, limiters

    def _limiter(self, node: graphs.Node, shift: np.ndarray) -> graphs.Node:
        """The constant of a Minimum, all above the shift."""
        makers = [self._makers.get(id(x)) for x in node.inputs]
        constants = [x for x in makers if x is not None and isinstance(x.layer, Constant)]
        if len(constants) != 1 or self._graph.only_consumer(constants[0]) is not node:
            raise Refused(named(node))
        if (constants[0].layer.get_weights()[0] <= shift).any():
            raise Refused(f"the limits of {named(node)}")
        return constants[0]

    def _check_taker(self, node: graphs.Node) -> None:
        """Raises `Refused` where a layer has no bias that makes up for lower values everywhere."""
        layer, norm = node.layer, self.links[id(node)][-1].norm
        if {layer.name, "" if norm is None else norm.name} & self.shared:
            raise Refused(f"{named(node)}, called more than once")
        is_point = {*keras.tree.flatten(getattr(layer, "kernel_size", 1))} == {1}
        is_valid = getattr(layer, "padding", "valid") == "valid" or is_point
        if type(layer) in TRANSPOSED or not is_valid:
            raise Refused(f"{named(node)}, which pads with zeros")


def _passed(node: graphs.Node, shifts: list[np.ndarray]) -> np.ndarray:
    """How much lower a call returns values, of inputs that are; `Refused` where that varies."""
    is_first = getattr(node.layer, "data_format", None) == "channels_first"
    found = None if is_first or len(node.outputs) > 1 else _lowered(node, shifts)
    if found is None:
        raise Refused(named(node))
    return found


def _lowered(node: graphs.Node, shifts: list[np.ndarray]) -> np.ndarray | None:
    kind, shift, size = homogeneous.kind(node.layer), shifts[0], node.output.shape[-1]
    # Values stay in their order, and so do channels, again and again.
    if kind in homogeneous.RESHAPES and size is not None and size % len(shift) == 0:
        return np.tile(shift, size // len(shift))
    if len(shift) != size:
        return None
    if kind in (L.Add, "Add") and len(node.inputs) > 1:
        return np.sum(shifts, axis=0)
    # The other input of a Minimum is a constant, which is lower then as well.
    return shift if kind is L.Minimum or _is_moved(node) else None


def _is_moved(node: graphs.Node) -> bool:
    """Whether a call picks values, or averages them, in each channel alone."""
    kind = homogeneous.kind(node.layer)
    if kind in homogeneous.REDUCTIONS:
        return homogeneous.reduces_places(node)
    is_moved = kind in _MOVES or registry.is_dropped(node.layer)
    return is_moved and len(node.inputs) == 1


def named(node: graphs.Node) -> str:
    """A call in words."""
    return f"{node.layer.name!r} ({type(node.layer).__name__})"
