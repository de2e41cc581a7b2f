"""Activations that LiteRT has no kernel for as they are, in parts."""

import math
from typing import Any

import keras
import numpy as np

from kerasq import fits, registry
from kerasq.layer_rules import FUNCTIONS
from kerasq.layers import Constant, Function, Requantize
from kerasq.prepare import masks
from kerasq.prepare.parts import Parts, between_permutes

L = keras.layers


def prelu(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """`relu(x) + alpha * (x - relu(x))`: "<name>_relu", "<name>_rest", "<name>_slope" and Add."""
    # LiteRT's PRELU has no int16 kernel, and one scale for the slopes of all channels.
    own = {part: parts.name(name, part) for part in ("relu", "rest", "slope")}
    above = parts.call(L.ReLU(name=own["relu"], dtype="float32"), x)
    below = parts.call(L.Subtract(name=own["rest"], dtype="float32"), [x, above])
    (alpha,) = layer.get_weights()
    if alpha.size == alpha.shape[-1]:
        below = parts.scale(own["slope"], below, np.ravel(alpha), 0.0, "gain", layer.trainable)
    else:  # A slope for each place: by a tensor of slopes.
        options = {"trainable": layer.trainable, "dtype": "float32"}
        constant = Constant(alpha.shape, name=parts.name(name, "alpha"), **options)
        slopes = parts.call(constant, x, [alpha])
        below = parts.call(L.Multiply(name=own["slope"], dtype="float32"), [below, slopes])
    return parts.call(L.Add(name=name, dtype="float32"), [above, below])


def sloped(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """ReLU with a slope: LeakyReLU; with a threshold, or a slope and a limit: Function.

    Up to 0 it is 0 everywhere, which no grid of its own holds: Scale.
    """
    arguments = {key: getattr(layer, key) for key in ("negative_slope", "max_value", "threshold")}
    if layer.threshold or (layer.negative_slope and layer.max_value is not None):
        return parts.call(Function("relu", arguments, name=name, dtype="float32"), x)
    if layer.max_value == 0.0:
        return parts.scale(name, x, 0.0, 0.0)
    if layer.negative_slope == 0.0:
        return None
    return parts.call(L.LeakyReLU(layer.negative_slope, name=name, dtype="float32"), x)


def softmax(
    parts: Parts, layer: keras.Layer, name: str, x: Any, mask: Any = None, **options: Any
) -> Any:
    """Softmax over other axes than the last, which LiteRT's kernel sums over.

    "<name>_probabilities" is between two Permute and, of several axes, two Reshape. Of masked
    scores on 16 bits, behind Masked where the mask is an argument.
    """
    del options  # `training`.
    held = [] if mask is None else [masks.condition(parts, name, mask, above=0.5)]
    if held:
        x = masks.masked(parts, name, x, held)
    along = fits.axes(layer.axis, x)
    if parts.is_wide or not masks.is_masked(x):
        return _over_last(parts, L.Softmax, "probabilities", along, name, x)
    with parts.wide():
        own = parts.name(name, "softmax")
        y = parts.call(L.Softmax(layer.axis, name=own, dtype="float32"), x)
        if held and masks.is_zeroed():
            y = masks.masked(parts, name, y, held, value=0.0)
    return parts.call(Requantize(name=name, dtype="float32"), y)


def unit_norm(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """UnitNormalization over another axis than the last: as `softmax`."""
    return _over_last(parts, L.UnitNormalization, "unit", fits.axes(layer.axis, x), name, x)


def _over_last(
    parts: Parts, layer: type[keras.Layer], suffix: str, axes: list[int], name: str, x: Any
) -> Any:
    """A layer over the last axis, "<name>_<suffix>", where it was over others; None for the last.

    It is between two Permute and, of several axes, two Reshape.
    """

    def merged(y: Any) -> Any:
        made, shape = layer(name=parts.name(name, suffix), dtype="float32"), y.shape[1:]
        if len(axes) == 1:
            return parts.call(made, y)
        flat = (*shape[: -len(axes)], math.prod(shape[-len(axes) :]))
        y = parts.call(L.Reshape(flat, name=parts.name(name, "merged"), dtype="float32"), y)
        back = L.Reshape(shape, name=parts.name(name, "parted"), dtype="float32")
        return parts.call(back, parts.call(made, y))

    return between_permutes(parts, axes, name, x, merged, moved="last")


def elu(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """ELU of another alpha than 1, which LiteRT's kernel has: Function."""
    if layer.alpha == 1.0:
        return None
    return parts.call(Function("elu", {"alpha": layer.alpha}, name=name, dtype="float32"), x)


def activation(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """silu, hard_silu: the sigmoid, "<name>_sigmoid", and Multiply. hard_sigmoid: Scale and ReLU.

    glu: the first half by the sigmoid of the second. Other functions of each value alone: Function,
    a lookup table.
    """
    kind = registry.activation_name(layer)
    # LiteRT has HARD_SWISH, but XNNPACK leaves that to the interpreter: MobileNetV3 takes 2.8 times
    # as long with it.
    if kind in ("silu", "hard_silu"):
        own, gate = parts.name(name, "sigmoid"), kind.replace("silu", "sigmoid")
        gate = parts.call(L.Activation(gate, name=own, dtype="float32"), x)
        return parts.call(L.Multiply(name=name, dtype="float32"), [x, gate])
    if kind == "glu":
        x, gate = keras.ops.split(x, 2, axis=-1)
        gate = L.Activation("sigmoid", name=parts.name(name, "sigmoid"), dtype="float32")(gate)
        return parts.call(L.Multiply(name=name, dtype="float32"), [x, gate])
    if kind == "hard_sigmoid":  # relu6(x + 3) / 6 = min(relu(x / 6 + 1 / 2), 1)
        y = parts.scale(parts.name(name, "linear"), x, 1.0 / 6.0, 0.5)
        return parts.call(L.ReLU(1.0, name=name, dtype="float32"), y)
    if kind == "softmax":
        return softmax(parts, L.Softmax(), name, x)
    if kind in FUNCTIONS:
        return parts.call(Function(kind, name=name, dtype="float32"), x)
    return None
