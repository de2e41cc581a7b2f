"""Memory of activations: what each call writes, and the most that is alive at once."""

import keras

from kerasq import graph, registry
from kerasq.analysis import cost
from kerasq.scheme import FLOAT_BITS
from kerasq.wrappers import quantized_by


def output_bits(node: graph.Node) -> int:
    """Bits of what a call returns; what only moves values has those of what it reads."""
    source = quantized_by(node.outputs[0])
    return FLOAT_BITS if source is None else source.output_bits


def output_bytes(node: graph.Node) -> int:
    """Bytes that one sample of what a call returns takes; 0 where it is the input's memory."""
    if _is_alias(node.layer):
        return 0
    return sum(cost.activation_bytes(y, output_bits(node)) for y in node.outputs)


def _is_alias(layer: keras.Layer) -> bool:
    """Whether the output is the input's memory: reshapes, and what is dropped."""
    return registry.passes_through(layer) and registry.rule(layer).operators in ((), ("RESHAPE",))


def peak(model: keras.Model, calls: list[graph.Node]) -> int:
    """The most bytes alive at once for one sample, when calls run in this order.

    A tensor lives from the call that writes it to the last one that reads it; those of one call
    live together.
    """
    # Inputs count as what their boundaries return: the codes that the device is fed.
    size = {id(node.outputs[0]): output_bytes(node) for node in calls}
    last = _last_uses(model, calls)
    most, alive = 0, set()
    for step, node in enumerate(calls):
        # An operator cannot write where it still reads: its inputs and its output count at once.
        alive.add(_memory(node.outputs[0]))
        most = max(most, sum(size.get(tensor, 0) for tensor in alive))
        alive = {tensor for tensor in alive if last[tensor] > step}
    return most


def _last_uses(model: keras.Model, calls: list[graph.Node]) -> dict[int, int]:
    """By memory, the index of the last call that needs it."""
    last: dict[int, int] = {}
    for step, node in enumerate(calls):
        for x in node.inputs:
            last[_memory(x)] = step
        # It is written even where nothing reads it.
        last.setdefault(_memory(node.outputs[0]), step)
    for y in model.outputs:  # These stay until the caller has read them.
        last[_memory(y)] = len(calls)
    return last


def _memory(tensor: keras.KerasTensor) -> int:
    """The id of the tensor whose memory this one is: the first of a call's outputs."""
    layer, inputs = graph.origin(tensor)
    if inputs and _is_alias(layer):
        return _memory(inputs[0])
    return id(graph.call_of(tensor).outputs[0])
