"""Units: the parts of a quantized model whose weights are rounded together."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from kerasq import graph
from kerasq.kernel_wrapper import KernelWrapper


@dataclasses.dataclass(frozen=True, eq=False)
class Unit:
    """Calls of a model that follow each other.

    Attributes:
        nodes: the calls, in order.
        inputs: the tensors that they read from before.
        outputs: the tensors that others read, or the model returns.
        before: the tensors that it and all units behind it are computed from.
    """

    nodes: list[graph.Node]
    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]
    before: list[keras.KerasTensor]

    @property
    def name(self) -> str:
        """That of its last layer with a kernel."""
        return self.wrappers[-1].name

    @property
    def wrappers(self) -> list[KernelWrapper]:
        """Its layers with kernels."""
        return [node.layer for node in self.nodes if isinstance(node.layer, KernelWrapper)]

    def run(self, values: list[Any], call: Callable[..., Any]) -> list[Any]:
        """Its outputs for values of its inputs, every call computed by `call(node, ...)`."""
        known = {id(x): value for x, value in zip(self.inputs, values, strict=True)}
        for node in self.nodes:
            graph.compute(node, known, call)
        return [known[id(x)] for x in self.outputs]


def calls_of_kernels(model: keras.Model) -> dict[str, list[KernelWrapper]]:
    """By the name of its first call, the calls of each layer with a kernel, in order."""
    found: dict[str, list[KernelWrapper]] = {}
    for node in graph.calls(model):
        layer = node.layer
        # Constants, such as of a Rescaling, have no bias that training would find.
        if isinstance(layer, KernelWrapper) and not getattr(layer.layer, "constant", False):
            found.setdefault((layer.leader or layer).name, []).append(layer)
    return found


def by_layer(model: keras.Model) -> list[Unit]:
    """Each layer with a kernel alone."""
    nodes = graph.calls(model)
    return _units(model, nodes, [[node] for node in nodes])


def by_block(model: keras.Model) -> list[Unit]:
    """What lies between tensors that everything goes through: residual blocks, single layers.

    So Li et al. 2021 (BRECQ, arXiv 2102.05426, section 3.2) cut networks. Outputs of the model do
    not count: what has several heads is not one block from the first of them on.
    """
    # A branch that ends in a head ends before the next one begins.
    nodes = graph.branch_by_branch(model)
    last = {id(x): i for i, node in enumerate(nodes) for x in node.inputs}
    groups: list[list[graph.Node]] = [[]]
    alive = {id(x) for x in model.inputs}
    for i, node in enumerate(nodes):
        groups[-1].append(node)
        alive |= {id(x) for x in node.outputs}
        alive = {x for x in alive if last.get(x, -1) > i}
        if len(alive) == 1:
            groups.append([])
    return _units(model, nodes, groups)


def _units(
    model: keras.Model, nodes: list[graph.Node], groups: list[list[graph.Node]]
) -> list[Unit]:
    """The groups of calls that have kernels, with their ends."""
    whole = graph.Graph(model, nodes)
    rests = [[node for group in groups[i:] for node in group] for i in range(len(groups))]
    units = [
        Unit(group, _read(group), _returned(whole, group), _read(rest))
        for group, rest in zip(groups, rests, strict=True)
    ]
    return [unit for unit in units if unit.wrappers]


def _read(group: list[graph.Node]) -> list[keras.KerasTensor]:
    """The tensors that calls read from others."""
    own = {id(x) for node in group for x in node.outputs}
    read = {id(x): x for node in group for x in node.inputs}
    return [x for key, x in read.items() if key not in own]


def _returned(whole: graph.Graph, group: list[graph.Node]) -> list[keras.KerasTensor]:
    """The tensors of calls that others read, or the model returns."""
    returned, inside = {*map(id, whole.model.outputs)}, {node.name for node in group}
    made = [x for node in group for x in node.outputs]
    read = {id(x) for x in made if {y.name for y in whole.consumers(x)} - inside}
    return [x for x in made if id(x) in returned | read]
