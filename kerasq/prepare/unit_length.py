"""Long vectors over their lengths, as `tf.math.l2_normalize` spells it, are UnitNormalization.

Written out it is `x * rsqrt(max(sum(x * x), epsilon))`, whose sum has few codes where lengths
differ: at 8 bits 18.5 dB for 512 values whose lengths vary by a factor of 1.6, in place of 27.6.
"""

import math
from typing import Any

import keras
import numpy as np

from kerasq import fits
from kerasq import graph as graphs
from kerasq.prepare.normalization import LONG


def recognize(graph: graphs.Graph, keep: frozenset[str] = frozenset()) -> graphs.Graph:
    """Returns an equal graph in which such products are layers, of `LONG` values and more.

    Args:
        graph: what `kerasq.graph.read` returned; it is not changed.
        keep: names of layers that stay as they are.
    """
    made = {id(y): node for node in graph.nodes for y in node.outputs}
    found = {
        id(node): axes
        for node in graph.nodes
        if node.source.name not in keep and (axes := _axes(node, made))
    }

    def call(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        if id(node) not in found:
            return graphs.copy_call(node.layer, *args, **kwargs)
        layer = keras.layers.UnitNormalization(
            found[id(node)], name=node.layer.name, dtype="float32"
        )
        return layer(args[_place(node, made)])

    return graphs.transform(graph, call) if found else graph


def _axes(node: graphs.Node, made: dict[int, graphs.Node]) -> list[int] | None:
    """Along which axes a product is one of vectors and the inverse of their lengths, if it is."""
    if not _is(node, "Multiply") or len(node.inputs) != 2:
        return None
    total = _total(made.get(id(node.args[1 - _place(node, made)])), made)
    x = node.args[_place(node, made)]
    if total is None or not _squares(made.get(id(total.inputs[0])), x) or None in x.shape[1:]:
        return None
    axes = fits.axes(total.layer.axis, x)
    is_long = 0 not in axes and math.prod(x.shape[i] for i in axes) >= LONG
    return axes if is_long else None


def _place(node: graphs.Node, made: dict[int, graphs.Node]) -> int:
    """Which of the two arguments of a product is the vector, and not the inverse root."""
    return 0 if _is(made.get(id(node.args[1])), "Rsqrt") else 1


def _total(root: graphs.Node | None, made: dict[int, graphs.Node]) -> graphs.Node | None:
    """The sum along axes that a call is the inverse root of, above an epsilon like Keras's."""
    largest = _read(root, "Rsqrt", made)
    total = _read(largest, "Maximum", made)
    if largest is None or total is None or not _is(total, "Sum"):
        return None
    (least,) = (x for x in largest.args if x is not largest.inputs[0])
    is_known = total.layer.keepdims and total.layer.axis is not None
    return total if is_known and np.max(least) <= keras.config.epsilon() else None


def _read(node: graphs.Node | None, name: str, made: dict[int, graphs.Node]) -> graphs.Node | None:
    """What an operation of that name reads, where it reads one tensor."""
    if node is None or not _is(node, name) or len(node.inputs) != 1:
        return None
    return made.get(id(node.inputs[0]))


def _squares(node: graphs.Node | None, x: Any) -> bool:
    """Whether a call is of squares of `x`."""
    is_one = _is(node, "Square") or _is(node, "Multiply")
    return node is not None and is_one and all(y is x for y in node.args)


def _is(node: graphs.Node | None, name: str) -> bool:
    """Whether a call is one of an operation of `keras.ops`."""
    if node is None or isinstance(node.layer, keras.layers.Layer):
        return False
    return type(node.layer).__name__ == name
