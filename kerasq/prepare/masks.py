"""Masks of a softmax, by SELECT_V2 in front of it, as arguments or as users write them by hand.

Values as low as -1e9 on the grid of the scores would leave these no code. Masked scores are the
lowest code of a grid of 16 bits instead, of which a softmax makes 0.
"""

import functools
from typing import Any

import keras
import numpy as np

from kerasq import fits, registry
from kerasq.graph import Graph, Node, origin, symbolic
from kerasq.layers import MASKED, Compare, Constant, Masked, Max, Min, Scale, Select
from kerasq.prepare import products
from kerasq.prepare.parts import Parts

L = keras.layers
# What is added to a score, or stands in its place, from here on downwards is a mask.
_LOW = -1e4


def masked(
    parts: Parts,
    name: str,
    scores: Any,
    masks: list[Any],
    *,
    causal: bool = False,
    value: float = MASKED,
) -> Any:
    """Masked, "<name>_masked", under all of some masks; for a value of 0, "<name>_zeroed".

    Args:
        parts: of the layer `name`.
        name: of the layer.
        scores: what is masked.
        masks: tensors of conditions, or constants, which broadcast to the scores.
        causal: whether places behind that of the query are masked too.
        value: what masked ones become.
    """
    tensors, fixed = symbolic(masks), [np.asarray(x, bool) for x in masks if not symbolic(x)]
    constant = functools.reduce(np.logical_and, fixed).astype(int).tolist() if fixed else None
    own = parts.name(name, "masked" if value else "zeroed")
    layer = Masked(value, constant, causal, name=own, dtype="float32")
    held = functools.reduce(keras.ops.logical_and, tensors) if tensors else None
    x = scores if held is None else [held, scores]
    if not value:
        return parts.call(layer, x)
    with parts.wide():
        return parts.call(layer, x)


@functools.cache
def is_zeroed() -> bool:
    """Whether Keras's Softmax gives 0 where all is masked; versions before gave averages."""
    return not np.any(L.Softmax()(np.zeros((1, 2), np.float32), mask=np.zeros((1, 2), bool)))


def condition(parts: Parts, name: str, mask: Any, above: float | None = None) -> Any:
    """A mask as conditions: whether values are above a number; for None, whether they are not 0."""
    if not symbolic(mask):
        values = products.value(mask)
        return values != 0.0 if above is None else values > above
    if mask.dtype == "bool":
        return _by_extremes(parts, name, mask)
    own = {"name": parts.name(name, "mask"), "dtype": "float32"}
    if above is None:
        return parts.call(Compare("not_equal", 0.0, **own), mask)
    return parts.call(Compare("greater", above, **own), mask)


def masking(parts: Parts, layer: keras.layers.Masking, name: str, x: Any) -> Any:
    """The identity: it writes 0 where values are 0."""
    del layer
    return parts.call(L.Identity(name=name, dtype="float32"), x)


def _by_extremes(parts: Parts, name: str, mask: Any) -> Any:
    """A mask; that of Masking by the largest and the least value of each vector."""
    # TFLite Micro has no REDUCE_ANY.
    operation, read = origin(mask)
    if type(operation).__name__ != "Any":
        return mask
    compare, values = origin(read[0])
    if not isinstance(compare, Compare) or compare.function != "not_equal":
        return mask
    ends, along = [], fits.axes(operation.axis, values[0])
    for kind, suffix in ((Max, "largest"), (Min, "least")):
        own = parts.name(name, suffix)
        end = parts.call(kind(along, operation.keepdims, name=own, dtype="float32"), values[0])
        differs = Compare("not_equal", compare.value, name=parts.name(own, "differs"))
        ends.append(parts.call(differs, end))
    return keras.ops.logical_or(*ends)


def feeds_softmax(graph: Graph, node: Node) -> bool:
    """Whether nothing but softmax reads what a call returns, behind what only moves it."""
    readers = [x for y in node.outputs for x in graph.consumers(y)]
    return bool(readers) and all(
        feeds_softmax(graph, x) if registry.passes_through(x.layer) else _is_softmax(x.layer)
        for x in readers
    )


def _is_softmax(layer: keras.Layer) -> bool:
    is_activation = isinstance(layer, L.Activation)
    kind = registry.activation_name(layer) if is_activation else type(layer).__name__
    return kind.lower() == "softmax"


def is_masked(scores: Any) -> bool:
    """Whether scores come from Masked, behind what only moves them."""
    layer, read = origin(scores)
    if isinstance(layer, Masked):
        return True
    return registry.passes_through(layer) and is_masked(read[0])


def added(parts: Parts, name: str, x: list) -> Any:
    """A sum in front of a softmax of scores and what is 0 or as low as -1e9; None for any other."""
    for scores, bias in (x, x[::-1]):
        constant = _constant(bias)
        if constant is not None and constant.min() <= _LOW:
            return _masked_by(parts, name, scores, constant)
        if constant is None and _is_low(bias):
            return masked(parts, name, scores, [condition(parts, name, bias, above=_LOW)])
    return None


def _masked_by(parts: Parts, name: str, scores: Any, bias: np.ndarray) -> Any:
    """Scores, masked where a constant is low, behind the sum with the rest of the constant."""
    rest = np.where(bias > _LOW, bias, 0.0)
    if rest.any():
        constant = Constant(rest.shape, True, name=parts.name(name, "bias"), dtype="float32")
        both = [scores, parts.call(constant, scores, [rest])]
        scores = parts.call(L.Add(name=parts.name(name, "biased"), dtype="float32"), both)
    return masked(parts, name, scores, [bias[None] > _LOW])


def select(parts: Parts, layer: Select, name: str, x: list) -> Any:
    """Scores where a condition holds and values as low as -1e9 elsewhere, in front of a softmax."""
    del layer
    held, first, second = x
    if not parts.feeds_softmax:
        return None
    fixed = _fixed(held)
    if _is_constant_low(second):
        return masked(parts, name, first, [held if fixed is None else fixed])
    if _is_constant_low(first):
        own = keras.ops.logical_not(held) if fixed is None else ~fixed
        return masked(parts, name, second, [own])
    return None


def _fixed(held: Any) -> np.ndarray | None:
    """The values of a condition that is constant, of one sample."""
    layer, read = origin(held)
    values = _constant(read[0]) if isinstance(layer, Compare) else None
    return None if values is None else values[None] > layer.value


def _constant(x: Any) -> np.ndarray | None:
    """The values of a tensor that is constant, without an axis of the samples."""
    layer, _ = origin(x)
    return np.asarray(layer.value) if isinstance(layer, Constant) else None


def _is_constant_low(x: Any) -> bool:
    values = _constant(x)
    return values is not None and bool(values.max() <= _LOW)


def _is_low(x: Any) -> bool:
    """Whether a tensor is as low in places: by a constant that it is scaled by, or picked from."""
    layer, read = origin(x)
    if isinstance(layer, Constant):
        return bool(np.asarray(layer.value).min() <= _LOW)
    if isinstance(layer, Scale):
        return any(np.abs(v).max() >= -_LOW for v in layer.get_weights()) or _is_low(read[0])
    if isinstance(layer, Select):
        return any(map(_is_low, read[1:]))
    return registry.passes_through(layer) and bool(read) and _is_low(read[0])
