"""Ranges that a target's kernels do not take are widened, in the model, so that both agree."""

import keras

from kerasq.kernel_wrapper import KernelWrapper

# Grids are rounded to float32: the limit itself must not be reached by that.
_MARGIN = 1.0 + 2.0**-20


def widen(model: keras.Model) -> list[str]:
    """Widens output ranges so that `s_in * s_w / s_out` is below the target's limit.

    Outputs that are (almost) constant in the data have narrow ranges, those of networks that are
    not trained above all. On a wider range they have fewer codes, which such a layer can spare.

    Args:
        model: what `quantize_model` returned, with ranges. Ranges of activations change.

    Returns:
        A remark for each layer whose range was widened.
    """
    remarks = []
    # In order, as the range of an output is the scale of an input.
    for layer in model.layers:
        if not isinstance(layer, KernelWrapper) or layer.output_quantizer is None:
            continue
        quantizer = layer.output_quantizer
        sums = float(layer.input_grids()[0].scale) * layer.integer_weights().grid.scale
        limit = layer.target.limits.multiplier
        factor = float(keras.ops.max(sums)) / (limit * float(quantizer.grid().scale))
        if factor < 1.0:
            continue
        low, high = (float(end) * factor * _MARGIN for end in quantizer.range())
        quantizer.assign_range(low, high)
        remarks.append(
            f"The output range of layer {layer.name!r} is now {factor:.3g} times as wide, "
            f"[{low:.3g}, {high:.3g}]: kernels take no s_in * s_w / s_out of {limit:g} or more. "
            "The output was (almost) constant in the data seen."
        )
    return remarks
