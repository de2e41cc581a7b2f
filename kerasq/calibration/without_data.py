"""`calibrate_without_data`: the first ranges of activations, from BatchNormalization alone."""

from typing import Any

import keras
import numpy as np

from kerasq import range_limits
from kerasq.calibration import provisional
from kerasq.calibration.input_moments import Pairs
from kerasq.calibration.propagation import propagate
from kerasq.support.finite import check_finite
from kerasq.support.restore import restored_on_error
from kerasq.wrappers import range_variables, ranged, require_quantized


def calibrate_without_data(
    model: keras.Model,
    input_range: Pairs,
    *,
    input_moments: Pairs | None = None,
    deviations: float = 6.0,
) -> None:
    """Sets the ranges of all activations from the statistics that BatchNormalization keeps.

    Behind a BatchNormalization a channel is taken as normal, with mean beta and deviation
    `|gamma|`::

        range = [min_c (beta[c] - n |gamma[c]|), max_c (beta[c] + n |gamma[c]|)],

    cut by the ReLU behind it (Nagel et al. 2019, arXiv 1906.04721, section 5: n = 6). Where there
    is none, mean and variance of each value go on through the float network: through kernels and
    sums as of independent values (ranges behind such kernels are twice as wide, since trained
    weights go along with what they read), functions of each value by integrals over the normal
    density (ReLU: the paper's appendix C), averages of n values with their variance / sqrt(n), half
    way between independent values and equal ones, concatenations and moves as they are. Maxima, and
    layers without such a rule (softmax, LSTM, ...), are run on draws with a fixed seed; the latter
    are printed. As behind `calibrate`, printed is also which ranges are widened or hold for
    inference alone.

    Data make better ranges (`calibrate`): what is independent here is not, and 6 deviations hold
    more than a few values that pay, below 8 bits above all; there take a smaller `deviations`.

    Args:
        model: what `quantize_model` returned, of a trained model, with batch_norm="keep". Its
            ranges change, nothing else.
        input_range: the ends of what the model is fed, such as (0, 255), each a number or an array
            with one for each feature; where inputs differ, a dict of such pairs by input name.
        input_moments: means and deviations of it, in the same form; by default those of values
            spread evenly over `input_range`.
        deviations: n, how many deviations from the mean a range reaches.

    Raises:
        ValueError: for a model without ranges, with NaN weights or without a BatchNormalization
            that has seen data, for bad arguments, and where a layer computes with integers.
            After an error the model is as it was.

    Example:
        >>> model = keras.Sequential([
        ...     keras.Input((2,)),
        ...     keras.layers.Dense(2, name="dense"),
        ...     keras.layers.BatchNormalization(name="norm"),
        ... ])
        >>> _ = model.get_layer("norm").moving_mean.assign([0.5, 0.5])
        >>> _ = model.get_layer("norm").beta.assign([1.0, -2.0])
        >>> q = kerasq.quantize_model(model)
        >>> kerasq.calibrate_without_data(q, (0, 255))
        >>> [round(float(end), 2) for end in q.get_layer("dense").output_quantizer.range()]
        [-8.0, 7.0]
    """
    require_quantized(model)
    check_finite(model)
    _check_deviations(deviations)
    found, remarks = propagate(model, input_range, input_moments, deviations)
    with restored_on_error(range_variables(model)):
        for name, quantizer in ranged(model).items():
            quantizer.assign_range(*found[name].ends)
        remarks += [*range_limits.widen(model), *provisional.mark(model)]
    for remark in remarks:
        print(remark)


def _check_deviations(deviations: Any) -> None:
    if not isinstance(deviations, (int, float)) or not 0.0 < deviations < np.inf:
        raise ValueError(
            "`deviations` must be a number above 0, such as 6.0. "
            f"Received: deviations={deviations!r}."
        )
