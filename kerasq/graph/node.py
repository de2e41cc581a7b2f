"""Calls of layers, and the graph that they make up."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import Any

import keras

from kerasq.graph import internals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What a call keeps of the user's layer that it stands for, whatever passes make of it.

    Attributes:
        name: that of the user's layer, of which this is a call, or a part of one.
        weights_of: name of the layer whose weights it has: its own, or the one that stands for the
            first call of the same user's layer.
        range_of: name of the layer whose range its output shares, as steps of a recurrent layer do;
            "" where the range is its own.
        models: the nested models that the user's layer is in, from the outermost.
        training_dtype: what the user's layer computes in: "float32", or what its policy of mixed
            precision says.
        reads_mask: whether it reads a mask, which Keras passes beside the tensors.
        refusal: why the user's layer could not be opened; "" where it could, or is to stay closed.
        trainable: whether the user's layer trains, as it says itself.
        gain: the units that its kernel is trained in, one a channel; none unless a
            BatchNormalization was folded into it (`kerasq.prepare.batch_norm`).
        is_wide: whether its values are codes of 16 bits at any quantized scheme of the user's
            layer, as inside of a unit for whose sums and squares 8 bits are too few.
    """

    name: str
    weights_of: str
    range_of: str = ""
    models: tuple[keras.Layer, ...] = ()
    training_dtype: str = "float32"
    reads_mask: bool = False
    refusal: str = ""
    trainable: bool = True
    gain: tuple[float, ...] = ()
    is_wide: bool = False


# Two calls are equal only if they are one: their arguments are dicts and tensors, without a hash.
@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of a layer, or of an operation of `keras.ops`.

    Attributes:
        layer: the layer.
        args: positional arguments of the call, tensors among them.
        kwargs: keyword arguments of the call.
        output: what the call returned.
        source: what it stands for in the user's model; in a graph that no pass has been over,
            such as that of a quantized model, its own layer.
    """

    layer: keras.Layer
    args: tuple
    kwargs: dict
    output: Any
    source: Source

    @property
    def name(self) -> str:
        """That of the layer; of its second call, "<name>_2"."""
        return tensor_name(self.outputs[0])

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        """The tensors among the arguments."""
        return symbolic((self.args, self.kwargs))

    @property
    def outputs(self) -> list[keras.KerasTensor]:
        """The tensors of the output."""
        return keras.tree.flatten(self.output)


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """A copy of a model's layers, weights included, with every call in topological order.

    Attributes:
        model: the copy.
        nodes: the calls, each of a layer of its own.
        unread: paths of the user's trainable weights that no call reads.
        masked: names of the outputs of the user's model that have masks. Of both, none where a pass
            has been over it.
    """

    model: keras.Model
    nodes: list[Node]
    unread: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()

    @functools.cached_property
    def _readers(self) -> dict[int, list[Node]]:
        """By id of a tensor, the calls that read it."""
        # A table, since every pass asks for the readers of every call.
        found: dict[int, list[Node]] = {}
        for node in self.nodes:
            for tensor in {id(x) for x in node.inputs}:  # `x * x` reads it once.
                found.setdefault(tensor, []).append(node)
        return found

    def consumers(self, tensor: keras.KerasTensor) -> list[Node]:
        """The calls that read `tensor`."""
        return self._readers.get(id(tensor), [])

    def only_consumer(self, node: Node) -> Node | None:
        """The one call that reads what `node` returns, if there is no other use of it."""
        # What the model returns has a use outside, and must stay what it is.
        is_output = any(x is node.output for x in keras.tree.flatten(self.model.outputs))
        consumers = self.consumers(node.output)
        return consumers[0] if len(consumers) == 1 and not is_output else None

    def free_name(self, name: str, taken: Iterable[str] = ()) -> str:
        """`name`, with a number behind it if need be: no layer has it, nor is it `taken`."""
        return distinct_name(name, {*taken, *(layer.name for layer in self.model.operations)})


def distinct_name(name: str, taken: set[str], first: int = 2, mark: str = "_") -> str:
    """`name`, or the first of "<name>_2", "<name>_3", ... that is not taken."""
    candidates = itertools.chain([name], (f"{name}{mark}{i}" for i in itertools.count(first)))
    return next(candidate for candidate in candidates if candidate not in taken)


def symbolic(arguments: Any) -> list[keras.KerasTensor]:
    """The tensors of a graph among the arguments of a call."""
    return [x for x in keras.tree.flatten(arguments) if internals.is_made(x)]


def origin(tensor: keras.KerasTensor) -> tuple[keras.Layer, list[keras.KerasTensor]]:
    """The layer that made `tensor`, and the inputs of that call."""
    operation, call, _ = internals.history(tensor)
    return operation, list(internals.record(operation, call).input_tensors)


def between(inputs: Any, outputs: Any) -> list[Node]:
    """The calls that lead from the tensors `inputs` to `outputs`, in topological order.

    A branch ends before the next one begins, so that few tensors are alive at a time.
    """
    known = {id(x) for x in symbolic(inputs)}
    found: list[Node] = []
    # Not by recursion: models may be deeper than Python's stack.
    wanted = symbolic(outputs)[::-1]
    while wanted:
        node = None if id(wanted[-1]) in known else call_of(wanted[-1])
        missing = [] if node is None else [x for x in node.inputs if id(x) not in known]
        if missing:
            wanted += reversed(missing)
            continue
        wanted.pop()
        if node is not None:
            known.update(map(id, node.outputs))
            found.append(node)
    return found


def tensor_name(tensor: keras.KerasTensor) -> str:
    """The name of the layer that makes `tensor`.

    With the number of the call behind it, "<name>_2", from the second on, and that of the output,
    "<name>:1", from the second on.
    """
    operation, call, output = internals.history(tensor)
    name = operation.name if call == 0 else f"{operation.name}_{call + 1}"
    return f"{name}:{output}" if output else name


def calls(model: keras.Model) -> list[Node]:
    """The calls of layers and operations in a Functional model, in topological order."""
    # Calls at one distance from the outputs have an order of Keras's own, which is not that of
    # `model.layers`; tables and comparisons go by the latter.
    place = {id(operation): i for i, operation in enumerate(model.operations)}
    return [
        call_of(record.outputs[0])
        for level in internals.levels(model)
        for record in sorted(level, key=lambda record: place[id(record.operation)])
    ]


def branch_by_branch(model: keras.Model) -> list[Node]:
    """The calls in a Functional model, in the order of `between`."""
    return between(model.inputs, model.outputs)


def places(model: keras.Model) -> dict[int, int]:
    """By id of the first tensor that a call returns, when Keras runs the call.

    Calls that do not read each other may have one place; those that no output needs have none.
    """
    levels = enumerate(internals.levels(model))
    return {id(record.outputs[0]): i for i, level in levels for record in level}


def call_of(tensor: keras.KerasTensor) -> Node:
    """The call that makes `tensor`."""
    operation, call, _ = internals.history(tensor)
    record = internals.record(operation, call)
    # Keras keeps a list even of a single output.
    output = record.outputs[0] if len(record.outputs) == 1 else list(record.outputs)
    args, kwargs = record.arguments.args, record.arguments.kwargs
    source = Source(name=operation.name, weights_of=operation.name)
    return Node(operation, tuple(args), dict(kwargs), output, source)
