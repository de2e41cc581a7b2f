"""Limits of ReLU6 and the like, where channels are rescaled: removed, or one for each channel."""

from typing import Any

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq.equalization import homogeneous
from kerasq.equalization.links import value
from kerasq.equalization.rebuilding import Copies, with_policy
from kerasq.layers import Constant
from kerasq.support.data import batches

L = keras.layers
# Values are below so many standard deviations above their mean, where a BatchNormalization says
# both (Nagel et al. 2019, section 4.1.3, has 3 for the lower end, where a miss costs less).
DEVIATIONS = 6.0


def find(graph: graphs.Graph) -> list[graphs.Node]:
    """The calls of a ReLU that has a limit, or of a layer with such an activation."""
    found = [(node, *homogeneous.ceiling(node.layer)) for node in graph.nodes]
    return [node for node, is_relu, limit in found if is_relu and limit is not None]


def reached(
    graph: graphs.Graph,
    nodes: list[graphs.Node],
    data: Any = None,
    steps: int | None = None,
) -> list[graphs.Node]:
    """Those calls whose limit values may reach, by data; by BatchNormalization without any.

    Args:
        graph: the graph.
        nodes: calls that have a limit.
        data: as for `calibrate`, or None.
        steps: the most batches to use, or None for all.
    """
    if data is None or not nodes:
        return [node for node in nodes if not _stays_below(graph, node)]
    model = keras.Model(graph.model.input, [node.output for node in nodes])
    largest = np.full(len(nodes), -np.inf)
    for x in batches(graph.model, data, steps=steps):
        outputs = keras.tree.flatten(model.predict_on_batch(x))
        largest = np.maximum(largest, [np.max(y) for y in outputs])
    return [x for x, top in zip(nodes, largest, strict=True) if top >= limit_of(x)]


def limit_of(node: graphs.Node) -> float:
    """The limit of a call; infinite where there is none."""
    limit = homogeneous.ceiling(node.layer)[1]
    return np.inf if limit is None else limit


def _stays_below(graph: graphs.Graph, node: graphs.Node) -> bool:
    """Whether `beta + 6 |gamma|` of the BatchNormalization in front is below the limit."""
    norm = norm_in_front(graph, node)
    if norm is None:
        return False
    mean, deviation = statistics(norm.layer)
    return bool(np.all(mean + DEVIATIONS * deviation < limit_of(node)))


def norm_in_front(graph: graphs.Graph, node: graphs.Node) -> graphs.Node | None:
    """The BatchNormalization whose output a call reads."""
    return next(
        (
            x
            for x in graph.nodes
            if isinstance(x.layer, L.BatchNormalization) and x.output is node.inputs[0]
        ),
        None,
    )


def statistics(norm: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of what a BatchNormalization returns: beta, and |gamma|."""
    size = norm.moving_mean.shape
    beta = value(norm.beta) if norm.center else np.zeros(size)
    return beta, np.abs(value(norm.gamma)) if norm.scale else np.ones(size)


class Limiter:
    """Calls ReLUs with other limits than they had."""

    def __init__(self, graph: graphs.Graph, copies: Copies) -> None:
        self._graph, self._copies = graph, copies
        self._names: set[str] = set()

    def call(self, node: graphs.Node, limits: np.ndarray | None, *args: Any, **kwargs: Any) -> Any:
        """Calls what a node does with a limit for each channel; None for no limit.

        The limit of one channel is `min(relu(x), limit)`, "<name>_limit", by a constant,
        "<name>_limits". The ReLU keeps its name, and a limit that is the largest of all: values
        above it need no codes.
        """
        top = None if limits is None else float(limits.max())
        if _is_within(node):
            own = {"activation": "relu" if top is None else "linear"}
            x = self._copies.call(node, *args, changes=own, **kwargs)
            y = (
                x
                if top is None
                else self._made(node, L.ReLU(top, name=self._name(node, "relu")), x)
            )
        else:
            y = self._made(node, L.ReLU(top, name=node.layer.name), args[0])
        if limits is None or np.all(limits == limits[0]):
            return y
        shape = (*(1,) * (len(y.shape) - 2), len(limits))
        constant = Constant(shape, constant=True, name=self._name(node, "limits"))
        values = self._made(node, constant, y)
        constant.set_weights([limits.reshape(shape)])
        return self._made(node, L.Minimum(name=self._name(node, "limit")), [y, values])

    def _made(self, node: graphs.Node, layer: keras.Layer, x: Any) -> Any:
        return with_policy(layer, node)(x)

    def _name(self, node: graphs.Node, suffix: str) -> str:
        found = self._graph.free_name(f"{node.name}_{suffix}", self._names)
        self._names.add(found)
        return found


def _is_within(node: graphs.Node) -> bool:
    """Whether an activation is part of a layer that has weights."""
    return bool(getattr(node.layer, "weights", None))
