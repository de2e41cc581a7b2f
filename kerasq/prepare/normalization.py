"""Normalization of rows by their mean and variance, or mean square, in parts of 16 bits.

A variance of a hundredth of the largest deviation is a ten thousandth of the largest variance,
which no linear grid of 16 bits holds to a percent. So vectors are divided by their length twice.
With `d` the differences from the mean, n of them, and `e` the layer's epsilon:

    r = 1 / sqrt(d . d)               roughly: of few codes where the length is small
    u = d * r                         about 1 long, whatever the first grids made of `d . d`
    s = 1 / sqrt(u . u + n * e * r^2)
    y = (u * s) * sqrt(n) * gamma + beta

The second square makes up for any error of `r`, which cancels out, and is about 1 itself. Each dot
product is one BATCH_MATMUL, whose sums are rounded once. The factor sqrt(n) goes into gamma.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasq import fits
from kerasq.graph import Node, symbolic
from kerasq.layers import GridMean, InverseRoot, Matmul, Requantize, Scale, UnitAdd, UnitMatmul
from kerasq.prepare import activations, products
from kerasq.prepare.parts import Called, Parts, reshaped

L = keras.layers
_TYPE: dict[str, Any] = {"dtype": "float32"}
# Of an epsilon of 0, for which Keras divides by 0 where all values are equal.
_LEAST_EPSILON = 1e-12
# From so many values on a vector of unit length has few of the 256 codes of L2_NORMALIZATION, whose
# steps are 1/128: 8 dB fewer here than steps of its own, 16 dB at 512.
LONG = 64
# Of `s`: that of a vector which the first step has made a thirtysecond as long as it should.
_LARGEST = 32.0


def layer_norm(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """LayerNormalization: see the module; with `rms_scaling`, of values instead of differences."""
    along = fits.axes(layer.axis, x)
    rows = _as_rows(parts, name, x, along)
    with parts.wide():
        difference, own = _centred(parts, name, rows), None
        if layer.rms_scaling:
            own = rows
        y = _normalized(parts, name, difference, layer.epsilon, own)
        y = _scaled(parts, name, y, layer)
        y = _from_rows(parts, name, y, x.shape, along)
    return parts.call(Requantize(name=name, **_TYPE), y)


def rms_norm(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """RMSNormalization: see the module, without means and beta."""
    along = fits.axes(layer.axis, x)
    rows = _as_rows(parts, name, x, along)
    with parts.wide():
        y = _normalized(parts, name, rows, layer.epsilon)
        y = _scaled(parts, name, y, layer)
        y = _from_rows(parts, name, y, x.shape, along)
    return parts.call(Requantize(name=name, **_TYPE), y)


def unit_norm(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """UnitNormalization: of long vectors see the module, without factors; else L2_NORMALIZATION."""
    along = fits.axes(layer.axis, x)
    sizes = [x.shape[i] for i in along]
    if None in x.shape[1:] or math.prod(sizes) < LONG:
        return activations.unit_norm(parts, layer, name, x)
    rows = _as_rows(parts, name, x, along)
    with parts.wide():
        y = _normalized(parts, name, rows, 0.0)
        y = _from_rows(parts, name, y, x.shape, along)
    return parts.call(Requantize(name=name, **_TYPE), y)


def group_norm(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """GroupNormalization: rows are groups of channels, which are moved to the front."""
    axis, rank = layer.axis % len(x.shape), len(x.shape)
    others = [i for i in range(1, rank) if i != axis]
    size = math.prod(x.shape[1:]) // layer.groups
    first = _permuted(parts, name, x, [axis, *others])
    rows = reshaped(parts, name, first, (layer.groups, 1, size), "rows")
    with parts.wide():
        y = _normalized(parts, name, _centred(parts, name, rows), layer.epsilon)
        y = reshaped(parts, name, y, first.shape[1:], "channels")
        y = _permuted(parts, name, y, [*range(2, rank), 1])
        y = _scaled(parts, name, y, layer, size)
        order = [*others, axis]
        y = _permuted(parts, name, y, [1 + order.index(i) for i in range(1, rank)])
    return parts.call(Requantize(name=name, **_TYPE), y)


def layer_operation(node: Node, args: tuple, options: dict) -> Called:
    """`keras.ops.layer_normalization`, of constant gamma and beta, or variables."""
    x, gamma, beta = _arguments(node, args, "gamma", "beta")
    own = {"center": beta is not None, "scale": gamma is not None}
    own["rms_scaling"] = node.layer.rms_scaling
    # It takes no beta then, and always has a gamma.
    weights = [gamma] if own["rms_scaling"] else [gamma, beta]
    return _operation(L.LayerNormalization, node, x, weights, own | options)


def rms_operation(node: Node, args: tuple, options: dict) -> Called:
    """`keras.ops.rms_normalization`, of a constant scale, or a variable."""
    x, scale = _arguments(node, args, "scale")
    return _operation(L.RMSNormalization, node, x, [scale], options)


def _arguments(node: Node, args: tuple, *names: str) -> list[Any]:
    """A tensor, and those behind it that have a name, by which Keras may pass them, or None."""
    found = dict(zip(names, args[1:], strict=False)) | node.kwargs
    # Keras 3.10 keeps them in the operation.
    return [args[0], *(found.get(name, getattr(node.layer, name, None)) for name in names)]


def _operation(make: type, node: Node, x: Any, weights: list, options: dict) -> Called:
    """The layer of an operation, where its weights have the shapes of the layer's."""
    operation = node.layer
    epsilon = keras.config.epsilon() if operation.epsilon is None else operation.epsilon
    layer = make(axis=operation.axis, epsilon=epsilon, **options)
    shape = tuple(x.shape[i] for i in fits.axes(operation.axis, x))
    given = None if symbolic(weights) else _arrays(weights, shape)
    if given is None or not symbolic(x) or not fits.normalization_fits(layer, x):
        return None
    # Without weights it stays unbuilt: `_scaled` takes 1 for those that a layer always has.
    return products.weighted(layer, x, *given) if given else (layer, x)


def _arrays(weights: list, shape: tuple) -> list | None:
    """The weights that there are as arrays, of lists and numbers too; None for other shapes."""
    given = [v for v in weights if v is not None]
    # A number is one for all.
    given = [np.full(shape, v, np.float32) if isinstance(v, (int, float)) else v for v in given]
    given = [np.asarray(v, np.float32) if isinstance(v, (list, tuple)) else v for v in given]
    return given if all(tuple(v.shape) == shape for v in given) else None


def _as_rows(parts: Parts, name: str, x: Any, along: list[int]) -> Any:
    """What is normalized together, in rows `(samples, rows, 1, n)`."""
    others = [i for i in range(1, len(x.shape)) if i not in along]
    moved = _permuted(parts, name, x, others + along)
    size = math.prod(x.shape[i] for i in along)
    return reshaped(parts, name, moved, (math.prod(x.shape[1:]) // size, 1, size), "rows")


def _from_rows(parts: Parts, name: str, y: Any, shape: tuple, along: list[int]) -> Any:
    """A tensor of the shape that `_as_rows` had."""
    order = [i for i in range(1, len(shape)) if i not in along] + along
    y = reshaped(parts, name, y, tuple(shape[i] for i in order), "parted")
    return _permuted(parts, name, y, [1 + order.index(i) for i in range(1, len(shape))])


def _permuted(parts: Parts, name: str, x: Any, order: list[int]) -> Any:
    """Axes in another order, counted from 1."""
    if order == sorted(order):
        return x
    return parts.call(L.Permute(order, name=parts.name(name, "moved"), **_TYPE), x)


def _centred(parts: Parts, name: str, rows: Any) -> Any:
    """Differences from the mean of each row."""
    # On a grid of its own the mean of equal values would differ from them, by what may be more than
    # the root of epsilon.
    mean = parts.call(GridMean([3], keepdims=True, name=parts.name(name, "mean"), **_TYPE), rows)
    return parts.call(L.Subtract(name=parts.name(name, "difference"), **_TYPE), [rows, mean])


def _normalized(
    parts: Parts, name: str, rows: Any, epsilon: float, values: Any | None = None
) -> Any:
    """Rows over `sqrt(n)` times the root of their mean square and `epsilon`.

    Args:
        parts: of the layer `name`.
        name: of the layer.
        rows: `(samples, rows, 1, n)`.
        epsilon: what is added to the mean square.
        values: what is divided by it in place of `rows`.
    """
    least = rows.shape[-1] * max(epsilon, _LEAST_EPSILON)
    call = functools.partial(_call, parts, name)
    root = InverseRoot(least**-0.5, True, name=parts.name(name, "first_root"), **_TYPE)
    first = parts.call(root, call(_dot, "first_square", [rows, rows]))
    unit = call(L.Multiply, "unit", [rows, first])
    square = call(L.Multiply, "factor_square", [first, first])
    floor = parts.scale(parts.name(name, "epsilon"), square, least, 0.0)
    power = call(UnitAdd, "power", [call(_unit_dot, "second_square", [unit, unit]), floor])
    root = InverseRoot(_LARGEST, name=parts.name(name, "second_root"), **_TYPE)
    second = parts.call(root, power)
    if values is not None:
        unit = call(L.Multiply, "scaled_values", [values, first])
    return call(L.Multiply, "normalized", [unit, second])


def _call(parts: Parts, name: str, make: Callable[..., Any], suffix: str, x: list) -> Any:
    return parts.call(make(name=parts.name(name, suffix), **_TYPE), x)


_dot = functools.partial(Matmul, True)
_unit_dot = functools.partial(UnitMatmul, True)


def _scaled(parts: Parts, name: str, x: Any, layer: keras.Layer, size: int = 0) -> Any:
    """`x * sqrt(n) * gamma + beta` along the last axis, n = `size`, or that of the axis.

    Gains train in units of sqrt(n): steps are those of gamma, which calls on other sizes share.
    """
    # One without weights has none of them before it is built; RMSNormalization's gamma is `scale`.
    gains = [getattr(layer, key, None) for key in ("gamma", "scale")]
    gamma = next((v for v in gains if isinstance(v, keras.Variable)), None)
    beta = getattr(layer, "beta", None)
    channels, root = x.shape[-1], math.sqrt(size or x.shape[-1])
    gain = np.ones(channels) if gamma is None else np.ravel(gamma)
    own = Scale(
        use_bias=beta is not None,
        constant=gamma is None and beta is None,
        constant_gain=gamma is None,
        trainable=layer.trainable,
        name=parts.name(name, "scaled"),
        **_TYPE,
    )
    weights = [gain * root] + ([] if beta is None else [np.ravel(beta)])
    return parts.call(own, x, weights, units=root)
