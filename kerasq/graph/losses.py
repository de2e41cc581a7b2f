"""Losses that a layer adds in its call, in the graph of what the call does."""

import itertools
from typing import Any

import keras

from kerasq.graph.copies import copy_layer
from kerasq.graph.node import Node, between, symbolic
from kerasq.graph.running import compute
from kerasq.layers import AddLoss


def keep_losses(name: str, inputs: Any, outputs: Any, losses: list[Any]) -> Any:
    """The outputs of a call, the first of them behind a layer that adds the losses.

    What only losses need becomes a model inside that layer: no operator of the device computes it.

    Args:
        name: of what was called.
        inputs: the tensors of the call.
        outputs: the tensors that it returned.
        losses: what it called `add_loss` on.

    Raises:
        ValueError: for losses of variables alone, or by layers with weights.
    """
    losses = keras.tree.flatten(losses)
    if not losses:
        return outputs
    if len(symbolic(losses)) < len(losses):
        raise ValueError("`add_loss` must be called on what depends on the inputs of the call")
    known = [*symbolic(inputs), *symbolic(outputs)]
    known += [y for node in between(inputs, outputs) for y in node.outputs]
    model, read = _model(known, losses)
    first, *others = keras.tree.flatten(outputs)
    added = AddLoss(model, name=f"{name}_loss")(first, *read)
    return keras.tree.pack_sequence_as(outputs, [added, *others])


def _model(known: list[Any], losses: list[Any]) -> tuple[keras.Model, list[Any]]:
    """A model that computes losses, and those of the tensors `known` that it reads."""
    nodes = between(known, losses)
    if any(map(_reads_variables, nodes)):
        raise ValueError("`add_loss` must be called on what tensors make, without variables")
    ends = {id(x) for x in itertools.chain(losses, *(node.inputs for node in nodes))}
    read = list({id(x): x for x in known if id(x) in ends}.values())
    own = [keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in read]
    values = {id(x): y for x, y in zip(read, own, strict=True)}
    for node in nodes:
        compute(node, values, lambda node, *args, **kwargs: copy_layer(node.layer)(*args, **kwargs))
    return keras.Model(own, [values[id(x)] for x in losses]), read


def _reads_variables(node: Node) -> bool:
    """Whether a call computes with variables, of its layer or among its arguments."""
    arguments = keras.tree.flatten((node.args, node.kwargs))
    is_own = any(isinstance(x, keras.Variable) for x in arguments)
    return is_own or bool(getattr(node.layer, "weights", None))
