"""Integers that are no indices, such as pixels or labels, as the real values they stand for."""

from typing import Any

import keras

from kerasq import graph as graphs
from kerasq import registry
from kerasq.layers import InputCast
from kerasq.rule import Output


class Integers:
    """The integer tensors of a graph, as float ones where layers compute on them.

    An input of which only such layers read, behind what moves values, lies on a grid as one of
    float values does. What others read as well, or a layer has made, is a CAST in the file.

    Args:
        graph: the user's graph.
        keep: names of the layers that stay float, as they are.
    """

    def __init__(self, graph: graphs.Graph, keep: frozenset[str]) -> None:
        self._graph, self._keep = graph, keep
        inputs = [x for x in graph.model.inputs if _is_integer(x)]
        self._on_grids = {x.name for x in inputs if self._is_computed_on(x)}
        # By id of an integer tensor: its values, and it, so that no other gets its id.
        self._found: dict[int, tuple[keras.KerasTensor, keras.KerasTensor]] = {}

    def _is_computed_on(self, x: keras.KerasTensor) -> bool:
        """Whether all that becomes of a tensor is computed by layers of float values."""
        return not any(x is y for y in self._graph.model.outputs) and all(
            all(map(self._is_computed_on, node.outputs))
            if registry.passes_through(node.layer) and _is_integer(node.outputs[0])
            else self._computes(node)
            for node in self._graph.consumers(x)
        )

    def _computes(self, node: graphs.Node) -> bool:
        if node.layer.name in self._keep:
            return False
        rule = registry.find(node.layer)
        # What has no rule, and is none of those to keep, is an operation that equals a layer.
        return rule is None or rule.output not in (Output.FLOAT, Output.INDEX)

    def as_real(self, arguments: Any, is_moved: bool, takes_conditions: bool) -> Any:
        """Arguments of a call, in the new graph, integer tensors as float ones.

        Args:
            arguments: tensors, or what else a layer takes.
            is_moved: whether the layer only moves values: then integers stay such.
            takes_conditions: whether bool tensors are conditions, and not 0 and 1.
        """

        def one(x: Any) -> Any:
            if not isinstance(x, keras.KerasTensor) or x.dtype in ("float32", "float64"):
                return x
            if x.dtype == "bool" and takes_conditions:
                return x
            name = graphs.origin(x)[0].name
            if name not in self._on_grids and is_moved:
                return x
            if id(x) not in self._found:
                self._found[id(x)] = self._cast(x, name), x
            return self._found[id(x)][0]

        return keras.tree.map_structure(one, arguments)

    def _cast(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        if name not in self._on_grids:
            return keras.ops.cast(x, "float32")
        return InputCast(name=self._graph.free_name(f"{name}_cast"))(x)


def _is_integer(x: keras.KerasTensor) -> bool:
    return "int" in x.dtype
