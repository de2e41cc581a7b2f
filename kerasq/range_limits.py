"""Ranges that a target's kernels do not take are widened, in the model, so that both agree."""

import math

import keras

from kerasq.kernel_wrapper import KernelWrapper
from kerasq.wrappers import QuantizeWrapper

# Grids are rounded to float32: the limit itself must not be reached by that.
_MARGIN = 1.0 + 2.0**-20


def widen(model: keras.Model) -> list[str]:
    """Widens output ranges so that kernels' multipliers are below the target's limit.

    That is `s_in * s_w / s_out` where there are weights, `s_in / s_out` of sums, and
    `s_a * s_b / s_out` of products. Outputs that are (almost) constant in the data have narrow
    ranges, those of networks that are not trained above all. On a wider range they have fewer
    codes, which such a layer can spare.

    Args:
        model: what `quantize_model` returned, with ranges. Ranges of activations change.

    Returns:
        A remark for each layer whose range was widened.
    """
    remarks = []
    # In order, as the range of an output is the scale of an input.
    for layer in model.layers:
        if not isinstance(layer, QuantizeWrapper) or layer.output_quantizer is None:
            continue
        quantizer, limit = layer.output_quantizer, layer.target.limits.multiplier
        factor = _least_scale(layer) / float(quantizer.grid().scale)
        if factor < 1.0:
            continue
        low, high = (float(end) * factor * _MARGIN for end in quantizer.range())
        quantizer.assign_range(low, high)
        remarks.append(
            f"The output range of layer {layer.name!r} is now {factor:.3g} times as wide, "
            f"[{low:.3g}, {high:.3g}]: kernels take no multiplier (s_in * s_w / s_out, or of sums "
            f"s_in / s_out) of {limit:g} or more. It was (almost) constant in the data seen."
        )
    return remarks


def _least_scale(layer: QuantizeWrapper) -> float:
    """The least output scale that the kernel of a layer takes."""
    limits, grids = layer.target.limits, layer.input_grids()
    scales = [float(grid.scale) for grid in grids]
    if isinstance(layer, KernelWrapper):
        step = scales[0] * float(keras.ops.max(layer.integer_weights().grid.scale))
        sums = float(keras.ops.max(layer.largest_sums(grids[0])))
        return max(step / limits.multiplier, sums / limits.sums[layer.bits.code_bits])
    match layer.rule.operator:
        case "ADD" | "SUB":
            return max(scales) / limits.multiplier
        case "SUM" | "MEAN" if layer.output_bits == 16:
            # Codes of 16 bits, rescaled, have to be int32: the average, or the sum of all.
            return scales[0] * _count(layer) / 2.0**15
        case "MUL":
            return math.prod(scales) / limits.multiplier
    return 0.0


def _count(layer: QuantizeWrapper) -> int:
    """How many values a sum is of; 1 for an average."""
    if layer.rule.operator == "MEAN":
        return 1
    return math.prod(layer.input.shape[i] for i in layer.layer.axis)
