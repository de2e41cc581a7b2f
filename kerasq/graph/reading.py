"""Reading a Keras model: a copy of it, with nested models opened, as a list of calls."""

import contextlib
import inspect
import itertools
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasq.graph import internals
from kerasq.graph.copies import configuration, copy_layer, set_weights
from kerasq.graph.functional import (
    check,
    is_traced,
    opened,
    opened_activation,
    own_activation,
    tensors_of,
)
from kerasq.graph.node import (
    Graph,
    Node,
    Source,
    call_of,
    calls,
    distinct_name,
    places,
    symbolic,
    tensor_name,
)
from kerasq.graph.running import compute
from kerasq.layers import ActivityRegularizer


def read(model: keras.Model, closed: Callable[[keras.Layer], bool] | None = None) -> Graph:
    """Copies `model`, which is left untouched, and lists the calls of the copy.

    Nested models are opened: their layers become the graph's own. Where layers have one name, that
    of an inner one gets the name of its model in front. Each call of a layer that is called more
    than once has a copy of its own, the second "<name>_2". Layers of mixed precision, and of 16
    bits, compute in float32 in the copy. What else the copies do not show is in `Node.source`.

    Args:
        model: a built Sequential or Functional model, or a subclassed one whose `call` runs on
            symbolic tensors.
        closed: which layers stay one layer; the others are opened, where they run on symbolic
            tensors. By default all but models. A layer of Keras that is opened is made into itself
            without its activation, and what that does.

    Raises:
        ValueError: where `model` is no Keras 3 model, is not built or cannot be traced.
    """
    check(model)
    reading = _Reading(closed or (lambda layer: not isinstance(layer, keras.Model)))
    with opened(model) as functional:
        reading.begin(functional, is_traced(model))
        inputs = keras.tree.map_structure(
            lambda x: keras.Input(batch_shape=x.shape, dtype=_whole(x.dtype), name=x.name),
            functional.input,
        )
        outputs = reading.inline(functional, inputs)
        masked = [tensor_name(y) for y in functional.outputs if internals.has_mask(y)]
    copy = keras.Model(inputs, outputs, name=model.name)
    # A call that no output needs would count as a reader of what it reads.
    needed = places(copy)
    unread = [x.path for x in model.trainable_variables if id(x) not in reading.read]
    nodes = [node for node in reading.nodes if id(node.outputs[0]) in needed]
    return Graph(copy, nodes, tuple(unread), tuple(masked))


class _Reading:
    """Copies of layers and their calls, while nested models are opened."""

    def __init__(self, closed: Callable[[keras.Layer], bool]) -> None:
        self.nodes: list[Node] = []
        self.read: set[int] = set()  # ids of the user's variables
        self._closed = closed
        self._open: list[keras.Layer] = []  # the models that the call at hand is in
        self._traced = [False]  # whether they are, from the whole model inwards
        # By id of a user's layer: what its first copy is called, what of it has weights, and what
        # the copy for a call that is to come will be called.
        self._first: dict[int, str] = {}
        self._weights: dict[int, str] = {}
        self._given: dict[int, str] = {}
        self._names: set[str] = set()
        self._reserved: set[int] = set()  # ids of the outermost layers
        self._owner: tuple[str, bool] | None = None  # whose activation it is, and does that train

    def begin(self, functional: keras.Model, traced: bool) -> None:
        """Keeps the names of the outermost layers for them."""
        self._traced = [traced]
        # An inner layer of that name may be called earlier, and would get it otherwise.
        outermost = [
            x
            for x in functional.operations
            if (not self._opens(x) or own_activation(x) is not None) and not self._is_counted(x)
        ]
        self._reserved = {id(x) for x in outermost}
        self._names = {x.name for x in outermost}

    def inline(self, functional: keras.Model, inputs: Any, training: bool | None = None) -> Any:
        """Calls copies of the layers of a Functional model; returns its outputs."""

        def call(node: Node, *args: Any, **kwargs: Any) -> Any:
            # Keras passes the `training` of a model's call on to its layers, in a context that is
            # gone once the layers stand in one graph.
            is_open = kwargs.get("training") is None and internals.takes_training(node.layer)
            if training is not None and is_open:
                kwargs = {**kwargs, "training": training}
            return self._call(node.layer, *args, **kwargs)

        # Keras takes a dict by the names of the inputs for any structure of them.
        if isinstance(inputs, dict) and not isinstance(functional.input, dict):
            inputs = [inputs[x.name] for x in functional.inputs]
        flat = internals.at_rank(functional, keras.tree.flatten(inputs))
        values = {id(x): y for x, y in zip(functional.inputs, flat, strict=True)}
        for record in itertools.chain(*internals.levels(functional)):
            compute(call_of(record.outputs[0]), values, call)
        return keras.tree.map_structure(lambda x: values[id(x)], functional.output)

    def _opens(self, operation: Any) -> bool:
        return isinstance(operation, keras.Layer) and not self._closed(operation)

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        refusal = ""
        if self._opens(operation):
            kwargs = _without_default(operation, kwargs)
            is_split = own_activation(operation) is not None
            with contextlib.ExitStack() as stack:
                # Only opening may be refused: what fails later is a layer inside that has its say.
                try:
                    open_it = opened_activation if is_split else opened
                    functional = stack.enter_context(open_it(operation, args, kwargs))
                except ValueError as error:
                    if isinstance(operation, keras.Model):
                        raise
                    refusal = str(error.__cause__ or error)
                else:
                    inside = self._split if is_split else self._inside
                    return inside(operation, functional, args, kwargs)
        return self._copy(operation, args, kwargs, self._name(operation), refusal)

    def _inside(self, layer: Any, functional: keras.Model, args: tuple, kwargs: dict) -> Any:
        """Calls copies of the layers inside a layer."""
        self._open.append(layer)
        self._traced.append(is_traced(layer))
        output = self.inline(functional, tensors_of(args, kwargs), kwargs.get("training"))
        self._traced.pop()
        self._open.pop()
        return self._regularized(layer, output)

    def _split(self, layer: Any, activation: keras.Model, args: tuple, kwargs: dict) -> Any:
        """Calls a copy of a layer without its activation, "<name>_linear", and what that does.

        The last operation of that has the name. A ReLU is fused again: the name is the layer's.
        """
        name = self._name(layer)
        owner = (self._first.setdefault(id(layer), name), layer.trainable)
        made = [node.layer for node in calls(activation)]
        is_relu = len(made) == 1 and type(made[0]).__name__ in ("ReLU", "Relu", "Relu6")
        x = args[0]
        if type(layer) is not keras.layers.Activation or not made:
            linear = self._free(f"{name}_linear") if made and not is_relu else name
            x = self._copy(layer, args, kwargs, linear, activation="linear")
            name = self._free(f"{name}_relu") if is_relu else name
        self._given.update({id(last): name for last in made[-1:]})
        self._owner, before = self._owner or owner, self._owner
        output = self.inline(activation, x)
        self._owner = before
        return self._regularized(layer, output)

    def _copy(
        self,
        operation: Any,
        args: tuple,
        kwargs: dict,
        name: str,
        refusal: str = "",
        **changes: Any,
    ) -> Any:
        """Calls a copy of a layer, or operation, configuration changed by `changes`."""
        _check_channels(operation, args)
        _check_merged(operation)
        given = keras.tree.flatten((args, kwargs))
        self.read |= {id(x) for x in (*getattr(operation, "variables", ()), *given)}
        changes = self._without_dropout(operation, kwargs) | changes
        if (axes := _squeezed(operation, *args)) is not None:
            changes["axis"] = axes
        layer = copy_layer(operation, name=name, **changes | _known_sizes(operation, args))
        if axes == ():
            layer = keras.layers.Identity(name=name)
        first = self._first.setdefault(id(operation), name)
        owner, owner_trains = self._owner or (first, True)
        args, kwargs = _positional(operation, args, kwargs)
        source = Source(
            name=owner,
            weights_of=self._weights.setdefault(id(operation), name),
            models=tuple(self._open),
            training_dtype=layer.compute_dtype if _is_mixed(layer) else "float32",
            reads_mask=any(map(internals.has_mask, symbolic((args, kwargs)))),
            refusal=refusal,
            trainable=getattr(operation, "trainable", True) and owner_trains,
        )
        _prepare(layer)
        output = layer(*args, **kwargs)
        set_weights(layer, operation)
        self.nodes.append(Node(layer, args, kwargs, output, source))
        is_split = "activation" in changes  # The activation is yet to come.
        return output if is_split else self._regularized(operation, output)

    def _without_dropout(self, operation: Any, kwargs: dict) -> dict[str, Any]:
        """Changes of a layer that another one calls for inference: it drops nothing, ever."""
        is_inner = self._traced[-1] and isinstance(operation, keras.layers.Layer)
        if not is_inner or kwargs.get("training") is not False:
            return {}
        config = configuration(operation)
        return {key: 0.0 for key in ("rate", "dropout", "recurrent_dropout") if config.get(key)}

    def _regularized(self, operation: Any, output: Any) -> Any:
        """What a layer returned, behind its `activity_regularizer`, which no wrapper sees."""
        regularizer = _regularizer_of(operation)
        if regularizer is None:
            return output

        def behind(x: Any) -> Any:
            name = self._free(f"{operation.name}_activity")
            layer = ActivityRegularizer(regularizer, name=name, dtype="float32")
            y = layer(x)
            self.nodes.append(Node(layer, (x,), {}, y, Source(name=name, weights_of=name)))
            return y

        return keras.tree.map_structure(behind, output)

    def _name(self, operation: Any) -> str:
        """The name of the copy for a call."""
        if id(operation) in self._given:
            return self._given.pop(id(operation))
        name, first = operation.name, self._first.get(id(operation))
        if first is not None:
            return self._free(first)
        if self._owner is not None:
            return self._free(f"{self._owner[0]}_{type(operation).__name__.lower()}")
        if self._is_counted(operation):
            own = re.sub(r"_\d+$", "", name)
            return self._free(f"{self._open[-1].name}_{own}" if self._open else own)
        if id(operation) in self._reserved:
            return name
        if name in self._names:  # As in two models of one class, side by side.
            name = f"{self._open[-1].name}_{name}" if self._open else name
        return self._free(name)

    def _is_counted(self, operation: Any) -> bool:
        """Whether Keras has numbered an operation as it traced the call at hand."""
        return self._traced[-1] and not isinstance(operation, keras.Layer)

    def _free(self, name: str) -> str:
        """`name`, or with a number behind it where that is taken; it is taken then."""
        name = distinct_name(name, self._names)
        self._names.add(name)
        return name


def _prepare(layer: Any) -> None:
    """Makes a copy what the graph wants, before a call builds it."""
    if isinstance(layer, keras.Layer) and layer.compute_dtype in _HALVES:
        layer.dtype_policy = "float32"  # Layers inside it take their policy from it.
    if _regularizer_of(layer) is not None:
        layer.activity_regularizer = None  # `_regularized` has it.


def _regularizer_of(operation: Any) -> Any:
    """The regularizer of what a layer returns; of layers that are there for it alone, None."""
    is_own = isinstance(operation, (keras.layers.ActivityRegularization, ActivityRegularizer))
    return None if is_own else getattr(operation, "activity_regularizer", None)


def _check_merged(operation: Any) -> None:
    """Raises a ValueError for a layer that is fine-tuned beside its kernel, which it adds to."""
    if getattr(operation, "lora_enabled", False):
        raise ValueError(
            "Weights of LoRA must be merged before a layer is quantized. Received: "
            f"{operation.name!r} with enable_lora. Set `layer.kernel`, which is the sum, as the "
            "kernel of a layer without."
        )


def _check_channels(operation: Any, args: tuple) -> None:
    """Raises a ValueError where a layer has weights for other channels than it is called on.

    Those of a Normalization, or a PReLU, broadcast: the call returns more channels than it reads.
    """
    if not isinstance(operation, _BROADCASTING) or not operation.weights:
        return
    whole, axes = operation.get_build_config()["input_shape"], getattr(operation, "axis", -1)
    for axis in (axes,) if isinstance(axes, int) else axes:
        built, size = whole[axis], args[0].shape[axis]
        # One slope of a PReLU is one for any number of channels.
        is_one = isinstance(operation, keras.layers.PReLU) and (
            built == 1 or operation.weights[0].shape[-1] == 1
        )
        if not is_one and size not in (built, None):
            raise ValueError(
                "A layer must be called on as many channels as it has weights for. Received: layer "
                f"{operation.name!r} of {built} called on {size}. Repeat the channels before it "
                "(`keras.ops.repeat`)."
            )


def _known_sizes(operation: Any, args: tuple) -> dict[str, Any]:
    """The shape of a `keras.ops.reshape` in which None stands for the number of samples."""
    sizes, free = getattr(operation, "newshape", ()), (None, -1)
    if not isinstance(sizes, tuple) or sizes[:1] != (None,) or None in args[0].shape[1:]:
        return {}
    # Such as of `ops.shape(x)[0]`. Of the others one at most follows from what is known.
    known = [n for n in sizes[1:] if n not in free]
    if len(known) < len(sizes) - 2:
        return {}
    rest = int(np.prod(args[0].shape[1:])) // int(np.prod(known))
    return {"newshape": (-1, *(rest if n in free else n for n in sizes[1:]))}


def _without_default(layer: Any, kwargs: dict) -> dict:
    """The arguments of a call, but for a `training` that Keras has filled in."""
    # Such as False: in training Keras passes True in its place.
    argument = inspect.signature(layer.call).parameters.get("training")
    if argument is None or kwargs.get("training") is not argument.default:
        return kwargs
    return {key: value for key, value in kwargs.items() if key != "training"}


def _positional(layer: Any, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """The arguments of a call, all tensors by place as far as that goes."""
    # Wrappers and rules take tensors by place, but a user may have called `layer(x=tensor)`.
    for name in list(inspect.signature(layer.call).parameters)[len(args) :]:
        if "mask" in name or not symbolic(kwargs.get(name)):
            break
        args, kwargs = (*args, kwargs[name]), {k: v for k, v in kwargs.items() if k != name}
    return args, kwargs


def _squeezed(operation: Any, x: Any = None, *_: Any) -> tuple[int, ...] | None:
    """The axes that `keras.ops.squeeze` without any takes away; None of other operations.

    Of a single sample it would take the first one as well.
    """
    is_open = type(operation).__name__ == "Squeeze" and operation.axis is None
    if not is_open or x.shape[0] is not None or None in x.shape[1:]:
        return None
    return tuple(i for i, size in enumerate(x.shape) if size == 1)


_BROADCASTING = (keras.layers.Normalization, keras.layers.RMSNormalization, keras.layers.PReLU)
# Types of 16 bits, which layers of the copy do not compute in.
_HALVES = ("float16", "bfloat16")


def _whole(dtype: str) -> str:
    """float32 in place of a float type of 16 bits."""
    return "float32" if dtype in _HALVES else dtype


def _is_mixed(layer: Any) -> bool:
    """Whether a layer computes in 16 bits on float32 variables."""
    return isinstance(layer, keras.Layer) and layer.dtype_policy.name.startswith("mixed_")
