"""What shares a grid and gets few of its codes: features of an input, parts of a concatenation."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from kerasq.grid import Grid
from kerasq.layers import Scale
from kerasq.one_grid import JOINS
from kerasq.prepare.preprocessing import LEAST_CODES
from kerasq.quantizers.activations import NARROWEST, ActivationQuantizer
from kerasq.wrappers import Boundary, QuantizeWrapper, input_boundaries, preprocessing_of

# The least ratio of a feature's variance to that of its rounding error, in dB: a tenth of its
# standard deviation is lost.
LEAST_SQNR = 20.0
_NAMED = 8  # The most that a remark lists.
_LEARNED = 1e-5  # Below usual rates, which Adam moves an end by in a step.
_FAR = 10.0  # From 0, in deviations: at 8 bits a grid from there on is lost at about 90.


def remarks(model: keras.Model, samples: Any) -> list[str]:
    """A remark for each input, and concatenation, parts of which get too few codes, and one more.

    That is on ranges which are too narrow to learn.

    Args:
        model: a quantized model with ranges.
        samples: of its inputs, in the structure of `model.input`.
    """
    boundaries = input_boundaries(model)
    found = [
        _of_input(model, boundaries[id(x)], x, np.asarray(values))
        for x, values in zip(model.inputs, keras.tree.flatten(samples), strict=True)
        if id(x) in boundaries
    ]
    found += [_of_parts(layer) for layer in model.layers if _joins(layer)]
    return [remark for remark in (*found, _of_learned(model)) if remark]


def _of_learned(model: keras.Model) -> str:
    """The remark on ranges that learn, and are less than a step of an optimizer; else ""."""
    found = [
        layer.name
        for layer in model.layers
        if isinstance(layer, QuantizeWrapper)
        and type(quantizer := layer.output_quantizer) is ActivationQuantizer
        and quantizer.range_max.trainable
        and float(quantizer.range()[1] - quantizer.range()[0]) < _LEARNED
    ]
    if not found:
        return ""
    return (
        f"Ranges of {_listed(map(repr, found))} learn, and are narrower than {_LEARNED:g}: steps "
        "of an optimizer would be wider. Before training, have what scales the input in front of "
        "it, by quantize_model(..., preprocessing='float'), or do not learn them: "
        "range_gradient='none'."
    )


def share_inputs(model: keras.Model, samples: Any) -> None:
    """Puts inputs onto the grid of a concatenation that reads them, where that loses less.

    On a grid of its own an input is rounded twice before it is concatenated: with Q the rounding
    onto its grid and C that onto the concatenation's, it takes that grid where

        mean (C(Q(x)) - x)^2 - mean (C(x) - x)^2 > mean (C(x) - x)^2 - mean (Q(x) - x)^2,

    what the concatenation gains and others that read the input lose. Of even errors that is where
    steps of C are less than 1.41 times those of Q; never of pixels, which Q does not round.

    Args:
        model: a quantized model with ranges. Those of its inputs change.
        samples: as for `remarks`.
    """
    boundaries = input_boundaries(model)
    for x, values in zip(model.inputs, keras.tree.flatten(samples), strict=True):
        boundary = boundaries.get(id(x))
        if boundary is None or boundary.output_quantizer is None or boundary.output_bits != 8:
            continue
        own = preprocessing_of(boundary)
        values = own(np.asarray(values)) if own else np.asarray(values)
        for join in filter(_joins, model.layers):
            quantizer = join.output_quantizer
            if quantizer is None or boundary not in join.producers:
                continue
            if _gains(values, boundary.grid(), join.grid()):
                boundary.output_quantizer.assign_range(*map(float, quantizer.range()))
                break


def _joins(layer: keras.Layer) -> bool:
    """Whether a layer puts all that it reads onto one grid."""
    return isinstance(layer, QuantizeWrapper) and layer.rule.operator in JOINS


def _listed(names: Iterable[str]) -> str:
    """The first names of some."""
    found = [*names]
    return ", ".join(found[:_NAMED]) + (", ..." if len(found) > _NAMED else "")


def _gains(values: np.ndarray, own: Grid, joined: Grid) -> bool:
    """Whether values lie better on a concatenation's grid at once."""
    own, joined = own.numpy(), joined.numpy()
    x = values.astype("float64")
    once, first = (grid.dequantize(grid.quantize(x)) for grid in (joined, own))
    twice = joined.dequantize(joined.quantize(first))
    error, error_of_own, error_of_both = (np.mean((y - x) ** 2) for y in (once, first, twice))
    return bool(error_of_both - error > error - error_of_own)


def _of_input(model: keras.Model, boundary: Boundary, x: keras.KerasTensor, values: Any) -> str:
    """The remark on an input whose features, along the last axis, its grid cannot tell apart."""
    grid, own = boundary.grid().numpy(), preprocessing_of(boundary)
    values = own(values) if own else values
    flat = values.reshape(-1, values.shape[-1]).astype("float64")
    errors = flat - grid.dequantize(grid.quantize(flat))
    variances = flat.var(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        sqnr = 10 * np.log10(variances / np.mean(errors**2, 0))
    lost = np.flatnonzero((variances > 0) & (sqnr < LEAST_SQNR))
    if not len(lost):
        return ""
    if len(lost) == np.count_nonzero(variances) and (why := _why_all(flat, grid.scale)):
        return (
            f"Input {x.name!r}: its features lose more than a tenth of their deviation, as {why}. "
            f"Bring them to about 0 and 1 before the model, or {_remedy(model, boundary, x.name)}."
        )
    # All of them for another reason: the range is wrong, or the values are, not what they share.
    if len(lost) == len(variances):
        return ""
    listed = _listed(map(str, lost))
    return (
        f"Input {x.name!r}: {len(lost)} of its {len(variances)} features ({listed}) lose more than "
        f"a tenth of their deviation, as all share one grid, of steps of {grid.scale:.3g}. Scale "
        f"them alike before the model, or {_remedy(model, boundary, x.name)}."
    )


def _why_all(values: np.ndarray, step: float) -> str:
    """Why all features, `(samples, features)`, are lost; "" where it is not their unit."""
    largest, deviations = np.abs(values).max(), values.std(0)
    if largest < NARROWEST:
        return f"no value is above {largest:.3g}, and no range is narrower than {NARROWEST:g}"
    used = deviations > 0
    if (np.abs(values.mean(0)) < _FAR * deviations)[used].any():
        return ""
    return (
        f"they lie far from 0 (at {values.mean():.6g}, by deviations of {deviations.max():.3g} at "
        f"most), which their grid, of steps of {step:.3g}, has to reach"
    )


def _remedy(model: keras.Model, boundary: Boundary, name: str) -> str:
    """What helps an input whose features share a grid: how to scale them in front of it."""
    readers = [
        layer
        for layer in model.layers
        if isinstance(layer, QuantizeWrapper) and boundary in layer.producers
    ]
    scales = [layer.source for layer in readers if isinstance(layer.layer, Scale)]
    if not scales:
        return "begin it with a Normalization, adapted to the data"
    if len(readers) == 1:
        return f"have {scales[0]!r} in front of it: quantize_model(..., preprocessing='float')"
    floats = ", ".join(f'"{name}": "float"' for name in (name, *scales))
    return f"leave that in float: overrides={{{floats}}}"


def _of_parts(layer: QuantizeWrapper) -> str:
    """The remark on a concatenation of what differs by orders of magnitude."""
    step = float(layer.grid().scale)
    grids = {x.source: x.grid() for x in layer.producers if x is not None}
    codes = {name: float((grid.high - grid.low) / step) for name, grid in grids.items()}
    name, least = min(codes.items(), key=lambda item: item[1])
    if least >= LEAST_CODES:
        return ""
    return (
        f"Layer {layer.name!r}: what it takes from {name!r} has {least:.0f} codes in its grid, of "
        f"steps of {step:.3g}, which the widest part asks for. Return them as outputs of their "
        "own, or scale them alike in front of it."
    )
