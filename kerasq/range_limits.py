"""Ranges that a target's kernels do not take are widened, in the model, so that both agree."""

import math

import keras
import numpy as np

from kerasq.kernel_wrapper import KernelWrapper
from kerasq.layers import InverseRoot
from kerasq.quantizers.activations import ActivationQuantizer
from kerasq.wrappers import QuantizeWrapper

# Grids are rounded to float32: the limit itself must not be reached by that.
_MARGIN = 1.0 + 2.0**-20
# Kernels take scales for powers of two whose logarithms are that near.
_NEAR = 2.0**-9


def widen(model: keras.Model) -> list[str]:
    """Widens output ranges so that kernels' multipliers and sums are below the target's limits.

    Multipliers are `s_in * s_w / s_out` where there are weights, `s_in / s_out` of sums, and
    `s_a * s_b / s_out` of products. Outputs that are (almost) constant in the data have narrow
    ranges, those of networks that are not trained above all. On a wider range they have fewer
    codes, which such a layer can spare; and so can inputs of 16 bits of a sigmoid, beyond scales
    that kernels compute otherwise at (`Limits.fixed_point`). No range is widened beyond the limit
    of its ReLU: weights make up for it (`KernelWrapper.integer_weights`), sums and products cannot
    (`check`).

    Args:
        model: what `quantize_model` returned, with ranges. Ranges of activations change.

    Returns:
        A remark for each layer whose range was widened.

    Raises:
        ValueError: where a range would have to be wider than float32 is.
    """
    remarks, read, avoided = [], _read_by_others(model), _read_in_fixed_point(model)
    # In order, as the range of an output is the scale of an input.
    for layer, quantizer in _ranged(model):
        low, high = map(float, quantizer.range())
        others = read.get(id(quantizer), (0.0, "")), _least_below_limit(quantizer)
        scale, reason = max(_least_scale(layer), *others)
        now = float(quantizer.grid().scale)
        factor = _MARGIN * scale / now
        for near, why in avoided.get(id(quantizer), ()):
            if abs(math.log2(max(factor, 1.0) * now / near)) < _NEAR:
                factor, reason = 2.0 * near / now, why
        if quantizer.limit is not None:
            factor = min(factor, quantizer.limit / high)
        if not max(abs(low), high) * factor <= float(np.finfo(np.float32).max):
            raise ValueError(
                "Sums of products must be within float32, 3.4e38. Received: layer "
                f"{layer.name!r}, whose inputs times weights could add up to more. Scale its "
                "weights or inputs down, or leave it in float with `overrides`."
            )
        # Scales that are powers of two may be at a limit exactly.
        if factor < _MARGIN:
            continue
        quantizer.assign_range(low * factor, high * factor, float(quantizer.batches_seen))
        low, wide = map(float, quantizer.range())
        remarks.append(
            f"The output range of layer {layer.name!r} is now {wide / high:.3g} times as wide, "
            f"[{low:.3g}, {wide:.3g}]: {reason}."
        )
    return remarks


def check(model: keras.Model) -> None:
    """Raises a ValueError where a ReLU's limit keeps a range from being as wide as kernels ask."""
    for layer, quantizer in _ranged(model):
        if isinstance(layer, KernelWrapper):
            continue
        scale, reason = _least_scale(layer)
        if scale >= float(quantizer.grid().scale):
            raise ValueError(
                "The inputs of a layer must not be far wider than the upper limit of its ReLU. "
                f"Received: layer {layer.name!r}, whose range ends at {layer.limit:g}: {reason}. "
                "Take a ReLU without a limit, scale what it reads, or leave the layer in float "
                "with `overrides`."
            )


def _ranged(model: keras.Model) -> list[tuple[QuantizeWrapper, ActivationQuantizer]]:
    """The layers that have an output range of their own, in order, and what has it."""
    return [
        (layer, layer.output_quantizer)
        for layer in model.layers
        if isinstance(layer, QuantizeWrapper) and layer.output_quantizer is not None
    ]


def _read_by_others(model: keras.Model) -> dict[int, tuple[float, str]]:
    """By id of what quantizes an output: the least scale that its readers take, and why."""
    found: dict[int, tuple[float, str]] = {}
    for layer in model.layers:
        if not isinstance(layer, QuantizeWrapper):
            continue
        least, what = _least_read(layer)
        if least and (source := layer.producers[0]) is not None:
            reason = f"the {what} of {layer.name!r} takes no steps below {least:.3g}"
            key = id(source.quantizer)
            found[key] = max(found.get(key, (0.0, "")), (least, reason))
    return found


def _least_read(layer: QuantizeWrapper) -> tuple[float, str]:
    """The least scale of what a softmax on int8, or an inverse root, reads; 0 for others."""
    limits = layer.target.limits
    if layer.rule.operator in ("SOFTMAX", "LOG_SOFTMAX") and layer.bits.code_bits <= 8:
        return limits.softmax_scale, "softmax"
    if isinstance(layer.layer, InverseRoot):
        # Its own steps are more than half of `largest` over 2^15.
        return (2.0**16 / (limits.root * layer.layer.largest)) ** 2, "inverse root"
    return 0.0, ""


def _least_below_limit(quantizer: ActivationQuantizer) -> tuple[float, str]:
    """The least output scale that a ReLU with a limit takes, and why."""
    reason = "interpreters count the limit of its ReLU in steps of it, which must be int32"
    return (quantizer.limit or 0.0) / 2.0**31, reason


def _read_in_fixed_point(model: keras.Model) -> dict[int, list[tuple[float, str]]]:
    """By id of what quantizes an output, scales that readers cannot have, and why; in order."""
    found: dict[int, list[tuple[float, str]]] = {}
    for layer in model.layers:
        if not isinstance(layer, QuantizeWrapper) or layer.bits.code_bits != 16:
            continue
        for scale in layer.target.limits.fixed_point.get(layer.rule.operator, ()):
            (source,) = layer.producers
            reason = f"{layer.name!r} is computed otherwise near steps of {scale:g}"
            if source is not None:
                found.setdefault(id(source.quantizer), []).append((scale, reason))
    return {key: sorted(scales) for key, scales in found.items()}


def _least_scale(layer: QuantizeWrapper) -> tuple[float, str]:
    """The least output scale that the kernel of a layer takes, and what asks for it, in words."""
    limits, grids = layer.target.limits, layer.input_grids()
    scales = [float(grid.scale) for grid in grids]
    if isinstance(layer, KernelWrapper):
        sums = float(keras.ops.max(layer.largest_sums(grids[0])))
        return _least_of_products(layer, sums, float(layer.largest_step()), "s_in * s_w / s_out")
    match layer.rule.operator:
        case "BATCH_MATMUL":
            step = math.prod(scales)
            sums = step * layer.input[0].shape[-1] * math.prod(float(x.farthest) for x in grids)
            return _least_of_products(layer, sums, step, "s_a * s_b / s_out")
        case "ADD" | "SUB":
            most, step, name = _most_added(layer, scales), max(scales), "s_in / s_out"
        case "SUM" | "MEAN" if layer.output_bits == 16:
            return scales[0] * _count(layer) / 2.0**15, (
                "rescaled sums of int16 codes must be int32, and those of its inputs would not be"
            )
        case "MUL":
            most, step, name = limits.multiplier, math.prod(scales), "s_a * s_b / s_out"
        case "RELU" | "MAXIMUM" | "MINIMUM" | "CONCATENATION" | "PACK" | "SELECT_V2":
            most = limits.requantized[layer.bits.code_bits]
            return max(scales) / most, (
                f"kernels put no codes onto a grid of steps that are {most:.3g} times as fine"
            )
        case _:
            return 0.0, ""
    return _least_of_multiplier(step, most, name)


def _least_of_multiplier(step: float, most: float, name: str) -> tuple[float, str]:
    """As `_least_scale`, of values of that step, by a multiplier that stays below `most`."""
    return step / most, (
        f"kernels take no multiplier ({name}) of {most:g} or more. It was (almost) constant in the "
        "data, or its inputs have too few codes for it"
    )


def _least_of_products(
    layer: QuantizeWrapper, sums: float, step: float, name: str
) -> tuple[float, str]:
    """As `_least_scale`, of products that are added up.

    Args:
        layer: the layer.
        sums: what they add up to at most, in real units.
        step: the least product that is not 0.
        name: that of the multiplier.
    """
    limits = layer.target.limits
    most = limits.sums[layer.bits.code_bits]
    if sums / most > step / limits.multiplier:
        return sums / most, (
            f"kernels take no sums of more than {most:.3g} steps of it, which what it multiplies "
            "could add up to"
        )
    return _least_of_multiplier(step, limits.multiplier, name)


def _most_added(layer: QuantizeWrapper, scales: list[float]) -> float:
    """What the multiplier of a sum or difference stays below."""
    limits = layer.target.limits
    beside_tiny = limits.added[layer.bits.code_bits]
    is_tiny = min(scales) < 2.0**-10 * max(scales) / beside_tiny
    return beside_tiny if is_tiny and layer.rule.operator == "ADD" else limits.multiplier


def _count(layer: QuantizeWrapper) -> int:
    """How many values a sum is of; 1 for an average."""
    if layer.rule.operator == "MEAN":
        return 1
    return math.prod(layer.input.shape[i] for i in layer.layer.axis)
