"""`remove`: channels of a finished file that change nothing are taken out of it.

Where all weights of a channel are 0, it has one value, whatever the input: that of its bias. Where
all that read a channel have weights of 0 for it, its value does not count. Either way the layer
that makes it, operators that treat channels one by one, and the layers that read it can do without.
What a constant adds to a sum goes into its bias: all codes of the outputs stay as they are.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq import graph as graphs
from kerasq.calibration.samples import samples_of
from kerasq.export.channel_rules import Rule, rule_of
from kerasq.export.channels import Network
from kerasq.litert import flatbuffer
from kerasq.litert.operators import KERNEL_OPS
from kerasq.litert.removed import KEPT
from kerasq.targets import Target
from kerasq.wrappers import infer

# By name of a tensor, the real values of its channels; see `Network`.
Values = dict[str, np.ndarray]


def values_of(model: keras.Model) -> Values:
    """By name of a layer's output what its channels are at all places of a sample, float32.

    NaN where they differ from place to place. Of one that is constant it is the constant: no
    kernel is asked, as the simulation computes the target's, to the last code.
    """
    found: Values = {}

    def call(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
        outputs = infer(node, *args, **kwargs)
        for symbol, y in zip(node.outputs, keras.tree.flatten(outputs), strict=True):
            rows = np.asarray(y).reshape(-1, [1, *y.shape][-1])
            is_same = (rows == rows[:1]).all(axis=0)
            if np.issubdtype(rows.dtype, np.floating):
                found[graphs.tensor_name(symbol)] = np.where(is_same, rows[0], np.nan)
        return outputs

    x = keras.tree.map_structure(lambda values: values[:1], samples_of(model))
    graphs.run(model, x, call)
    return found


def remove(
    model: schema.ModelT, target: Target, values: Callable[[], Values]
) -> dict[str, np.ndarray]:
    """Takes channels that change nothing out of a file.

    Args:
        model: the file, in object form, pruned.
        target: what it is for.
        values: gives what `values_of` returns; asked only where a channel may go.

    Returns:
        By name of a tensor what it lacks, as `kerasq.litert.removed.write` takes it.
    """
    if not any(_has_zeros(model, op) for op in model.subgraphs[0].operators):
        return {}
    network = Network(model, values(), target.limits.bias)
    rules = [rule_of(network, op) for op in network.graph.operators]
    for rule in rules:
        rule.spread()
    _hold(network, rules)
    return _cut(network, rules)


def _cut(network: Network, rules: list[Rule]) -> dict[str, np.ndarray]:
    """Takes out what goes; returns what `remove` does."""
    cut = [i for i, dropped in network.dropped.items() if dropped.any()]
    found = {network.name(i): _lacking(network, i) for i in cut if _is_told(network, rules, i)}
    # Rules look at shapes as they were.
    for rule in rules:
        rule.cut()
    for i in cut:
        network.cut(i)
    if cut:
        flatbuffer.prune(network.model)
    return found


def _has_zeros(model: schema.ModelT, op: schema.OperatorT) -> bool:
    """Whether a channel that an operator makes or reads has weights of 0 alone."""
    kind = flatbuffer.op_name(flatbuffer.op_code(model, op))
    if kind not in KERNEL_OPS:
        return False
    kernel = flatbuffer.constant(model, model.subgraphs[0].tensors[op.inputs[1]])
    if kernel is None:
        return False
    # Channels of the output are first, but last in a depthwise kernel; the inputs are last.
    is_made = kernel.reshape(len(kernel), -1).any(axis=1)
    is_read = kernel.reshape(-1, kernel.shape[-1]).any(axis=0)
    return not (is_made.all() and is_read.all())


def _hold(network: Network, rules: list[Rule]) -> None:
    """Keeps what must not go, until nothing more has to stay."""
    while True:
        network.has_changed = False
        # Against the flow: what an operator needs hangs on what is needed of it.
        for rule in reversed(rules):
            rule.hold()
        if network.has_changed:
            continue
        for rule in rules:
            rule.settle()
        for tensor, dropped in network.dropped.items():
            if dropped.all():  # No kernel takes a tensor of no channels.
                network.keep(tensor, np.arange(len(dropped)) == 0)
        if not network.has_changed:
            return


def _is_told(network: Network, rules: list[Rule], tensor: int) -> bool:
    """Whether a tensor is the output of a layer, or of an operator with weights."""
    made = {rule.output for rule in rules if rule.kind in KERNEL_OPS}
    return tensor in made or network.name(tensor) in network.values


def _lacking(network: Network, tensor: int) -> np.ndarray:
    """The codes of channels that go, `KEPT` for the others."""
    codes = np.where(network.known(tensor), network.codes(tensor), network.zero_point(tensor))
    return np.where(network.dropped[tensor], codes, KEPT).astype(np.int32)
