"""Reading a Keras model: a copy of it, with nested models opened, as a list of calls."""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import keras

from kerasq.graph.copies import copy_layer, set_weights
from kerasq.graph.functional import check, opened, tensors_of
from kerasq.graph.node import Graph, Node, Source, distinct_name, symbolic


def read(model: keras.Model, closed: Callable[[keras.Layer], bool] | None = None) -> Graph:
    """Copies `model`, which is left untouched, and lists the calls of the copy.

    Nested models are opened: their layers become the graph's own. Where layers have one name, that
    of an inner one gets the name of its model in front. Each call of a layer that is called more
    than once has a copy of its own, the second "<name>_2". Layers of mixed precision compute in
    float32 in the copy. What else the copies do not show is in `Node.source`.

    Args:
        model: a built Sequential or Functional model, or a subclassed one whose `call` runs on
            symbolic tensors.
        closed: which layers stay one layer; the others are opened, where they run on symbolic
            tensors. By default all but models.

    Raises:
        ValueError: where `model` is no Keras 3 model, is not built or cannot be traced.
    """
    check(model)
    reading = _Reading(closed or (lambda layer: not isinstance(layer, keras.Model)))
    with opened(model) as functional:
        reading.reserve(functional)
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name),
            functional.input,
        )
        outputs = reading.inline(functional, inputs)
    return Graph(keras.Model(inputs, outputs, name=model.name), reading.nodes)


class _Reading:
    """Copies of layers and their calls, while nested models are opened."""

    def __init__(self, closed: Callable[[keras.Layer], bool]) -> None:
        self.nodes: list[Node] = []
        self._closed = closed
        self._open: list[keras.Layer] = []
        self._first: dict[int, str] = {}  # by id of a layer, the name of its first copy
        self._names: set[str] = set()
        self._reserved: set[int] = set()

    def reserve(self, functional: keras.Model) -> None:
        """Keeps the names of the outermost layers for them."""
        outermost = [x for x in functional.operations if not self._opens(x)]
        self._reserved = {id(x) for x in outermost}
        self._names = {x.name for x in outermost}

    def inline(self, functional: keras.Model, inputs: Any, training: bool | None = None) -> Any:
        """Calls copies of the layers of a Functional model; returns its outputs."""

        def call(operation: Any, *args: Any, **kwargs: Any) -> Any:
            if training is not None and getattr(operation, "_call_has_training_arg", False):
                kwargs = {"training": training, **kwargs}
            return self._call(operation, *args, **kwargs)

        if isinstance(inputs, dict) and not isinstance(functional.input, dict):
            inputs = [inputs[x.name] for x in functional.inputs]
        flat = functional._adjust_input_rank(keras.tree.flatten(inputs))
        # Keras 3.12 and older have no default for `operation_fn`.
        return functional._run_through_graph(flat, operation_fn=lambda x: x, call_fn=call)

    def _opens(self, operation: Any) -> bool:
        return isinstance(operation, keras.Layer) and not self._closed(operation)

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        refusal = ""
        if self._opens(operation):
            with contextlib.ExitStack() as stack:
                try:
                    functional = stack.enter_context(opened(operation, args, kwargs))
                except ValueError as error:
                    if isinstance(operation, keras.Model):
                        raise
                    refusal = str(error.__cause__ or error)
                else:
                    self._open.append(operation)
                    inputs = tensors_of(args, kwargs)
                    output = self.inline(functional, inputs, kwargs.get("training"))
                    self._open.pop()
                    return output
        layer = copy_layer(operation, name=self._name(operation))
        first = self._first.setdefault(id(operation), layer.name)
        args, kwargs = _positional(operation, args, kwargs)
        masks = [getattr(x, "_keras_mask", None) for x in symbolic((args, kwargs))]
        source = Source(
            name=first,
            weights_of=first,
            models=tuple(self._open),
            training_dtype=layer.compute_dtype if _is_mixed(layer) else "float32",
            reads_mask=any(mask is not None for mask in masks),
            refusal=refusal,
        )
        if _is_mixed(layer):
            layer.dtype_policy = "float32"
        output = layer(*args, **kwargs)
        set_weights(layer, operation)
        self.nodes.append(Node(layer, args, kwargs, output, source))
        return output

    def _name(self, operation: Any) -> str:
        name, first = operation.name, self._first.get(id(operation))
        if first is not None:
            name = distinct_name(first, self._names)
        elif id(operation) not in self._reserved:
            if name in self._names:
                name = f"{self._open[-1].name}_{name}"
            name = distinct_name(name, self._names)
        self._names.add(name)
        return name


def _positional(layer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments of a call, all tensors by place as far as that goes."""
    for name in list(inspect.signature(layer.call).parameters)[len(args) :]:
        if "mask" in name or not symbolic(kwargs.get(name)):
            break
        args, kwargs = (*args, kwargs[name]), {k: v for k, v in kwargs.items() if k != name}
    return args, kwargs


def _is_mixed(layer: Any) -> bool:
    """Whether a layer computes in 16 bits on float32 variables."""
    return isinstance(layer, keras.Layer) and layer.dtype_policy.name.startswith("mixed_")
