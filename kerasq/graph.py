"""Reading and rewriting Keras functional graphs: the only module that knows how Keras holds one."""

import contextlib
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of a layer, or of an operation of `keras.ops`.

    Attributes:
        layer: the layer.
        args: positional arguments of the call, tensors among them.
        kwargs: keyword arguments of the call.
        output: what the call returned.
    """

    layer: keras.Layer
    args: tuple
    kwargs: dict
    output: Any

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
        nodes: the calls.
        owners: by name of a layer, that of the user's layer which it is a part or a call of.
        leaders: by name of a layer, that of the first one it shares its weights with: itself,
            unless it stands for a further call.
        parents: by name of a layer, the models that it was in, from the outermost.
        mixed: by name of a layer of mixed precision, the type that it computed in.
        refused: by name of a layer that could not be opened, the reason.
        masked: names of layers that read a mask, which Keras passes beside the tensors.
        gains: by name of a layer into whose kernel a BatchNormalization was folded, the unit that
            the kernel is trained in.
    """

    model: keras.Model
    nodes: list[Node]
    owners: dict[str, str]
    leaders: dict[str, str]
    parents: dict[str, tuple[keras.Layer, ...]]
    mixed: dict[str, str]
    refused: dict[str, str]
    masked: set[str]
    gains: dict[str, float] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def _readers(self) -> dict[int, list[Node]]:
        """By id of a tensor, the calls that read it."""
        found: dict[int, list[Node]] = {}
        for node in self.nodes:
            for tensor in {id(x) for x in node.inputs}:
                found.setdefault(tensor, []).append(node)
        return found

    def consumers(self, tensor: keras.KerasTensor) -> list[Node]:
        """The calls that read `tensor`."""
        return self._readers.get(id(tensor), [])

    def only_consumer(self, node: Node) -> Node | None:
        """The one call that reads what `node` returns, if there is no other use of it."""
        is_output = any(x is node.output for x in keras.tree.flatten(self.model.outputs))
        consumers = self.consumers(node.output)
        return consumers[0] if len(consumers) == 1 and not is_output else None

    def free_name(self, name: str, taken: Iterable[str] = ()) -> str:
        """`name`, with a number behind it if need be: no layer has it, nor is it `taken`."""
        return _free_name(name, {*taken, *(layer.name for layer in self.model.operations)})


def _free_name(name: str, taken: set[str]) -> str:
    candidates = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2)))
    return next(candidate for candidate in candidates if candidate not in taken)


def read(model: keras.Model, closed: Callable[[keras.Layer], bool] | None = None) -> Graph:
    """Copies `model`, which is left untouched, and lists the calls of the copy.

    Nested models are opened: their layers become the graph's own. Where layers have one name, that
    of an inner one gets the name of its model in front. Each call of a layer that is called more
    than once has a copy of its own, the second "<name>_2", led by the first. Layers of mixed
    precision compute in float32 in the copy.

    Args:
        model: a built Sequential or Functional model, or a subclassed one whose `call` runs on
            symbolic tensors.
        closed: which layers stay one layer; the others are opened, where they run on symbolic
            tensors. By default all but models.

    Raises:
        ValueError: where `model` is no Keras 3 model, is not built or cannot be traced.
    """
    _check(model)
    reading = _Reading(closed or (lambda layer: not isinstance(layer, keras.Model)))
    with _functional(model) as functional:
        reading.reserve(functional)
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name),
            functional.input,
        )
        outputs = reading.inline(functional, inputs)
    mixed = {x.layer.name: x.layer.compute_dtype for x in reading.nodes if _is_mixed(x.layer)}
    for node in reading.nodes:
        if node.layer.name in mixed:
            node.layer.dtype_policy = "float32"
    copy = keras.Model(inputs, outputs, name=model.name)
    return Graph(
        model=copy,
        nodes=reading.nodes,
        owners=reading.owners,
        leaders=reading.owners,
        parents=reading.parents,
        mixed=mixed,
        refused=reading.refused,
        masked=reading.masked,
    )


class _Reading:
    """Copies of layers and their calls, while nested models are opened."""

    def __init__(self, closed: Callable[[keras.Layer], bool]) -> None:
        self.nodes: list[Node] = []
        self.owners: dict[str, str] = {}
        self.parents: dict[str, tuple[keras.Layer, ...]] = {}
        self._closed = closed
        self._open: list[keras.Layer] = []
        self._first: dict[int, str] = {}  # by id of a layer, the name of its first copy
        self.refused: dict[str, str] = {}
        self.masked: set[str] = set()
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
                    functional = stack.enter_context(_functional(operation, args, kwargs))
                except ValueError as error:
                    if isinstance(operation, keras.Model):
                        raise
                    refusal = str(error.__cause__ or error)
                else:
                    self._open.append(operation)
                    inputs = _tensors(args, kwargs)
                    output = self.inline(functional, inputs, kwargs.get("training"))
                    self._open.pop()
                    return output
        name = self._name(operation)
        if refusal:
            self.refused[name] = refusal
        layer = copy_layer(operation, name=name)
        args, kwargs = _positional(operation, args, kwargs)
        if any(getattr(x, "_keras_mask", None) is not None for x in symbolic((args, kwargs))):
            self.masked.add(name)
        output = layer(*args, **kwargs)
        _set_weights(layer, operation)
        self.nodes.append(Node(layer, args, kwargs, output))
        self.parents[name] = tuple(self._open)
        return output

    def _name(self, operation: Any) -> str:
        name, first = operation.name, self._first.get(id(operation))
        if first is not None:
            name = _free_name(first, self._names)
        elif id(operation) not in self._reserved:
            if name in self._names:
                name = f"{self._open[-1].name}_{name}"
            name = _free_name(name, self._names)
        self.owners[name] = self._first.setdefault(id(operation), name)
        self._names.add(name)
        return name


def _positional(layer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments of a call, all tensors by place as far as that goes."""
    for name in list(inspect.signature(layer.call).parameters)[len(args) :]:
        if "mask" in name or not symbolic(kwargs.get(name)):
            break
        args, kwargs = (*args, kwargs[name]), {k: v for k, v in kwargs.items() if k != name}
    return args, kwargs


def _set_weights(layer: Any, source: Any) -> None:
    """Gives a built layer, or operation, the weights of another."""
    if isinstance(layer, keras.Layer):
        layer.set_weights(source.get_weights())
        if hasattr(layer, "finalize_state"):  # Normalization computes on what it derives.
            layer.finalize_state()


def _tensors(args: tuple, kwargs: dict) -> Any:
    """What a Functional model is called on where a layer is called on `args` and `kwargs`."""
    return args[0] if len(args) == 1 and not symbolic(kwargs) else symbolic((args, kwargs))


def _is_mixed(layer: Any) -> bool:
    """Whether a layer computes in 16 bits on float32 variables."""
    return isinstance(layer, keras.Layer) and layer.dtype_policy.name.startswith("mixed_")


def _check(model: Any) -> None:
    if not isinstance(model, keras.Model):
        hint = ""
        if type(model).__module__.startswith("tensorflow.python.keras"):
            hint = " This is a model of TensorFlow's own Keras 2: build it with `tf_keras`."
        raise ValueError(
            "`model` must be a Keras 3 model (`keras.Model`). "
            f"Received: {type(model).__module__}.{type(model).__name__}.{hint}"
        )
    if not model.built:
        raise ValueError(
            "`model` must be built, so that its weights and shapes are known. "
            f"Received: {type(model).__name__} {model.name!r} without an input shape. "
            "Start it with `keras.Input(shape)`, call `model.build(input_shape)`, or call it on "
            "data."
        )


@contextlib.contextmanager
def _functional(layer: keras.Layer, args: tuple = (), kwargs: dict | None = None) -> Iterator[Any]:
    """A Functional model of the layers themselves that computes what a call of `layer` does.

    Subclassed models and layers are traced: called on symbolic inputs. What Keras notes of that in
    the layers that they hold is removed in the end.

    Args:
        layer: a model, or a layer that holds others.
        args: positional arguments of the call; none for the call it was built for.
        kwargs: keyword arguments of the call.
    """
    own_call = not type(layer).call.__module__.startswith("keras.src.models")
    if isinstance(layer, keras.Sequential) and not own_call:
        yield keras.Model(layer.inputs[0], layer.outputs[0], name=layer.name)
    elif hasattr(layer, "operations") and not own_call:
        yield layer
    else:
        inner = [x for x in layer._flatten_layers() if x is not layer]
        noted = [(x, len(x._inbound_nodes), len(x._outbound_nodes)) for x in inner]
        try:
            own = (layer.input,) if hasattr(layer, "operations") else None
            yield _trace(layer, args or own or _built_for(layer), kwargs or {})
        finally:
            for x, inbound, outbound in noted:
                del x._inbound_nodes[inbound:], x._outbound_nodes[outbound:]


def _trace(layer: keras.Layer, args: tuple, kwargs: dict) -> keras.Model:
    """The Functional model of what `layer.call` does with its layers."""
    args, kwargs = keras.tree.map_structure(
        lambda x: (
            keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)
            if isinstance(x, keras.KerasTensor)
            else x
        ),
        (args, kwargs),
    )
    try:
        outputs = layer.call(*args, **kwargs)
        return keras.Model(_tensors(args, kwargs), outputs, name=layer.name)
    except Exception as error:
        raise ValueError(
            "A subclassed model must run on symbolic inputs, such as `keras.Input` makes. "
            f"Received: {type(layer).__name__} {layer.name!r}, whose `call` raises "
            f"{type(error).__name__}: {error!s:.300}\nUse layers and `keras.ops` in it, or build "
            "the same layers with `keras.Model(inputs, outputs)`."
        ) from error


def _built_for(model: keras.Model) -> tuple:
    """Symbolic arguments of the shapes that a subclassed model was built for."""
    config = model.get_build_config() or {}
    shapes = config.get("shapes_dict") or {"inputs": config.get("input_shape")}
    if None in shapes.values():
        raise ValueError(
            "A subclassed model must know its input shapes. "
            f"Received: {type(model).__name__} {model.name!r}. Call it on data once."
        )
    arguments = []
    for name, shape in zip(inspect.signature(model.call).parameters, shapes.values(), strict=False):
        tensors = keras.tree.map_shape_structure(
            lambda shape: keras.KerasTensor((None, *shape[1:])), _plain(shape)
        )
        flat = keras.tree.flatten(tensors)
        names = [name] if len(flat) == 1 else [f"{name}_{i}" for i in range(len(flat))]
        if isinstance(tensors, dict) and len(flat) == len(tensors):
            names = sorted(tensors)
        inner = {x.name for x in model._flatten_layers()}
        for tensor, own in zip(flat, names, strict=True):
            tensor.name = _free_name(own, inner)
        arguments.append(tensors)
    return tuple(arguments)


def _plain(shape: Any) -> Any:
    """A structure of shapes without the dict class that Keras tracks attributes in."""
    return {key: _plain(x) for key, x in shape.items()} if isinstance(shape, dict) else shape


def rewrite(graph: Graph, call: Callable[..., Any]) -> keras.Model:
    """Builds a model by replaying `graph`, calling `call(node, *args, **kwargs)` for each node.

    `args` and `kwargs` are the node's own, with tensors of the new model in place of the old.
    The inputs are new and keep their names, shapes and types.
    """
    mapped: dict[int, Any] = {}

    def move(x: Any) -> Any:
        return mapped[id(x)] if isinstance(x, keras.KerasTensor) else x

    for x in keras.tree.flatten(graph.model.inputs):
        mapped[id(x)] = keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name)
    inputs = keras.tree.map_structure(move, graph.model.input)
    for node in graph.nodes:
        compute(node, mapped, call)
    outputs = keras.tree.map_structure(move, graph.model.output)
    return keras.Model(inputs, outputs, name=graph.model.name)


def copy_layer(layer: keras.Layer, **changes: Any) -> keras.Layer:
    """A new, unbuilt layer, or operation, with the same configuration, `changes` applied."""
    if not isinstance(layer, keras.Layer):  # Not all operations have a configuration.
        operation = object.__new__(type(layer))
        nodes: dict[str, list] = {"_inbound_nodes": [], "_outbound_nodes": []}
        operation.__dict__.update({**layer.__dict__, **nodes, **changes})
        return operation
    config = {**layer.get_config(), **changes}
    if isinstance(layer, keras.layers.Lambda):  # Its configuration loses what it closes over.
        plain = {key: config[key] for key in ("name", "trainable", "dtype")}
        options = {"output_shape": layer._output_shape, "arguments": layer.arguments}
        return keras.layers.Lambda(layer.function, **options, **plain)
    if inspect.isfunction(getattr(layer, "activation", None)) and "activation" not in changes:
        config["activation"] = layer.activation  # A user's has no name to find it by.
    try:
        return type(layer).from_config(config)
    except TypeError as error:
        raise ValueError(
            "A layer must be restorable from its configuration: its constructor must take what "
            "`get_config` returns, and pass `**kwargs` on. "
            f"Received: {layer.name!r} ({type(layer).__name__}): {error!s:.200}"
        ) from error


def copy_built(layer: keras.Layer, **changes: Any) -> keras.Layer:
    """A copy of a layer, weights included, `changes` applied, that belongs to no graph.

    A layer that was called leads to all tensors, layers and weights of the graph it was called in.
    """
    new = copy_layer(layer, **changes)
    if layer.weights:
        new.build_from_config(layer.get_build_config())
        _set_weights(new, layer)
    return new


def symbolic(arguments: Any) -> list[keras.KerasTensor]:
    """The tensors of a graph among the arguments of a call."""
    flat = keras.tree.flatten(arguments)
    return [x for x in flat if isinstance(x, keras.KerasTensor) and hasattr(x, "_keras_history")]


def origin(tensor: keras.KerasTensor) -> tuple[keras.Layer, list[keras.KerasTensor]]:
    """The layer that made `tensor`, and the inputs of that call."""
    operation, call, _ = tensor._keras_history
    return operation, list(operation._inbound_nodes[call].input_tensors)


def between(inputs: set[int], outputs: Any) -> list[keras.Layer]:
    """The layers that lead from tensors, given by id, to `outputs`."""
    found = []
    for tensor in symbolic(outputs):
        if id(tensor) not in inputs:
            layer, sources = origin(tensor)
            found += [layer, *between(inputs, sources)]
    return found


def copy_call(layer: keras.Layer, *args: Any, changes: dict | None = None, **kwargs: Any) -> Any:
    """Calls a copy of `layer`, configuration changed by `changes`, that has the same weights."""
    new = copy_layer(layer, **(changes or {}))
    output = new(*args, **kwargs)
    _set_weights(new, layer)
    return output


def tensor_name(tensor: keras.KerasTensor) -> str:
    """The name of the layer that makes `tensor`.

    With the number of the call behind it, "<name>_2", from the second on, and that of the output,
    "<name>:1", from the second on.
    """
    operation, call, output = tensor._keras_history
    name = operation.name if call == 0 else f"{operation.name}_{call + 1}"
    return f"{name}:{output}" if output else name


def calls(model: keras.Model) -> list[Node]:
    """The calls of layers and operations in a Functional model, in topological order."""
    place = {id(operation): i for i, operation in enumerate(model.operations)}
    found = []
    for _, nodes in sorted(model._nodes_by_depth.items(), reverse=True):
        for node in sorted(nodes, key=lambda node: place[id(node.operation)]):
            if node.input_tensors:
                found.append(call_of(node.outputs[0]))
    return found


def call_of(tensor: keras.KerasTensor) -> Node:
    """The call that makes `tensor`."""
    operation, call, _ = tensor._keras_history
    node = operation._inbound_nodes[call]
    output = node.outputs[0] if len(node.outputs) == 1 else list(node.outputs)
    return Node(operation, tuple(node.arguments.args), dict(node.arguments.kwargs), output)


def is_symbolic() -> bool:
    """Whether Keras only finds out what shapes a call returns: it computes nothing then."""
    # The one sign of it is the name of the graph that Keras 3 (3.10 to 3.15) traces the call in.
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    return getattr(graph, "name", "").startswith("scratch_graph")


def infer(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
    """What a layer computes in inference; some, such as RandomFlip, train by default."""
    if getattr(layer, "_call_has_training_arg", False):
        kwargs = {**kwargs, "training": False}
    return layer(*args, **kwargs)


def run(model: keras.Model, inputs: Any, call: Callable[..., Any]) -> list[Any]:
    """Runs a quantized model on `inputs`, computing every call by `call(node, *args, **kwargs)`.

    Args:
        model: a Functional model, as `quantize_model` makes it.
        inputs: a structure of tensors like `model.input`.
        call: gets the call, and its arguments with values in place of symbolic tensors.

    Returns:
        The outputs, in the order of `model.outputs`.
    """
    symbols = keras.tree.flatten(model.inputs)
    values = {id(x): y for x, y in zip(symbols, keras.tree.flatten(inputs), strict=True)}
    for node in calls(model):
        compute(node, values, call)
    return [values[id(y)] for y in keras.tree.flatten(model.outputs)]


def compute(node: Node, values: dict[int, Any], call: Callable[..., Any]) -> None:
    """Adds what `call(node, *args, **kwargs)` returns to `values`, which holds tensors by id."""
    args, kwargs = keras.tree.map_structure(
        lambda x: values[id(x)] if isinstance(x, keras.KerasTensor) else x,
        (node.args, node.kwargs),
    )
    outputs = keras.tree.flatten(call(node, *args, **kwargs))
    values.update({id(x): y for x, y in zip(node.outputs, outputs, strict=True)})
