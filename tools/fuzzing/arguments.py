"""What arguments of layers and operations may be, by the names of their parameters.

A parameter without a row keeps its default; a layer or operation that needs such a one is left out.
"""

import inspect
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from kerasq.layer_rules import ACTIVATIONS, FUNCTIONS
from kerasq.prepare import operations

# A shape, with None for the axis of the samples.
Shape = tuple[int | None, ...]
Row = Callable[[Shape], st.SearchStrategy]


class Code(str):
    """The text of an argument that is no constant, such as a layer."""

    __repr__ = str.__str__


NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 0.1, -0.3, 3.0, 6.0, 1e-8, 1e5])
_FRACTIONS = st.sampled_from([0.1, 0.3, 0.5])
_FLAGS = st.booleans()
# By the rank of the input, equations of an EinsumDense and how many axes behind the samples it has.
_EQUATIONS = {
    3: [("abc,cd->abd", 2), ("abc,cde->abde", 3), ("abc,bd->adc", 2), ("abc,bcd->ad", 1)],
    4: [("abcd,de->abce", 3), ("abcd,cde->abe", 2)],
}


def _always(strategy: st.SearchStrategy) -> Row:
    return lambda shape: strategy


def _sizes(low: int, high: int) -> Row:
    """A number for all axes between samples and channels, or one for each."""

    def draw(shape: Shape) -> st.SearchStrategy:
        one = st.integers(low, high)
        return one | st.tuples(*[one] * max(1, len(shape) - 2))

    return draw


def _ends(shape: Shape) -> st.SearchStrategy:
    """What is added or cut at both ends of each axis."""
    one, axes = st.integers(0, 2), len(shape) - 2
    pairs = st.tuples(*[st.tuples(one, one)] * axes)
    return one | (pairs if axes > 1 else st.tuples(one, one))


def _axis(shape: Shape) -> st.SearchStrategy:
    return st.integers(-len(shape), len(shape) - 1)


def _axes(shape: Shape) -> st.SearchStrategy:
    several = st.lists(st.integers(1, max(1, len(shape) - 1)), min_size=1, unique=True)
    return st.none() | _axis(shape) | several.map(tuple)


def _inner_axes(shape: Shape) -> st.SearchStrategy:
    return st.permutations(range(1, len(shape))).map(tuple)


def _shape(shape: Shape) -> st.SearchStrategy:
    """Shapes of as many values, without the axis of the samples."""
    sizes = [n for n in shape[1:] if n is not None]
    count = 1
    for size in sizes:
        count *= size
    found: list[tuple] = [(count,), (-1, 1), (1, *sizes), (1, 1, count), (*sizes, 1)]
    found += [(n, count // n) for n in (2, 3) if count % n == 0]
    return st.sampled_from(found)


def _batch_shape(shape: Shape) -> st.SearchStrategy:
    return _shape(shape).map(lambda found: (-1, *(abs(n) for n in found)))


def _per_channel(low: float, high: float) -> Row:
    one = st.sampled_from([low, (low + high) / 2, high])

    def draw(shape: Shape) -> st.SearchStrategy:
        channels = shape[-1] or 1
        return one | st.lists(one, min_size=channels, max_size=channels)

    return draw


def _equation(shape: Shape) -> st.SearchStrategy:
    return st.sampled_from([text for text, _ in _EQUATIONS.get(len(shape), [("ab,bc->ac", 1)])])


def _output_shape(shape: Shape) -> st.SearchStrategy:
    found = [count for _, count in _EQUATIONS.get(len(shape), [("", 1)])]
    size = st.none() | st.integers(1, 3)
    return st.sampled_from(found).flatmap(lambda n: st.tuples(*[size] * n))


def _widths(shape: Shape) -> st.SearchStrategy:
    """Numbers of channels: often as many as there are, so that branches can be joined."""
    return st.sampled_from([shape[-1] or 1, 1, 2, 3, 5])


_INNER = st.sampled_from(
    ["L.Dense(2)", "L.Dense(3, activation='relu')", "L.LSTM(2)", "L.GRU(2, return_sequences=True)"]
)
# Not glu, which halves the channels: layers say that they return twice as many as they do.
_ACTIVATION = st.sampled_from([None, *(name for name in ACTIVATIONS if name != "glu")])
_COUNT = _always(st.integers(1, 3))
_FACTOR = _always(_FRACTIONS)

ARGUMENTS: dict[str, Row] = {
    "activation": _always(_ACTIVATION),
    "alpha": _always(NUMBERS),
    "approximate": _always(_FLAGS),
    "axes": lambda shape: st.permutations(range(len(shape))).map(tuple) | _axes(shape),
    "axis": _axes,
    "axis1": _axis,
    "axis2": _axis,
    "bias_axes": _always(st.sampled_from(["c", "d", "e", "de"])),
    "cell": _always(st.just(Code("L.LSTMCell(2)"))),
    "center": _always(_FLAGS),
    "constant": _always(_FLAGS),
    "cropping": _ends,
    "data_format": _always(st.sampled_from(["channels_last", "channels_first"])),
    "default_value": _always(NUMBERS),
    "depth_multiplier": _COUNT,
    "destination": _axis,
    "dilation_rate": _sizes(1, 3),
    "dims": _inner_axes,
    "dtype": _always(st.sampled_from(["float32", "float16", "int32", "bool"])),
    "epsilon": _always(st.sampled_from([1e-3, 1e-7, 1.0])),
    "factor": _FACTOR,
    "filters": _widths,
    "function": _always(st.sampled_from(sorted({*operations.FUNCTIONS.values(), *FUNCTIONS}))),
    "groups": _COUNT,
    "head_dim": _COUNT,
    "height": _COUNT,
    "height_factor": _FACTOR,
    "indices_or_sections": _COUNT,
    "interpolation": _always(st.sampled_from(["nearest", "bilinear", "bicubic"])),
    "invert": _always(_FLAGS),
    "keepdims": _always(_FLAGS),
    "kernel_size": _sizes(1, 3),
    "key_dim": _COUNT,
    "layer": _always(_INNER.map(Code)),
    "max_value": _always(NUMBERS),
    "mean": _per_channel(-1.0, 2.0),
    "merge_mode": _always(st.sampled_from(["sum", "mul", "concat", "ave"])),
    "n": _COUNT,
    "negative_slope": _always(NUMBERS),
    "newshape": _batch_shape,
    "normalize": _always(_FLAGS),
    "num_heads": _COUNT,
    "num_key_value_heads": _COUNT,
    "num_query_heads": _COUNT,
    "offset": _per_channel(-1.0, 1.0),
    "output_shape": _output_shape,
    "padding": _always(st.sampled_from(["valid", "same", "causal"])),
    "pad_width": _always(st.sampled_from([((0, 0), (1, 2)), ((0, 0), (1, 0), (0, 2)), 1])),
    "pool_size": _sizes(1, 3),
    "rate": _FACTOR,
    "repeats": lambda shape: st.integers(1, 2) | st.just((1,) * (len(shape) - 1) + (2,)),
    "reset_after": _always(_FLAGS),
    "return_sequences": _always(_FLAGS),
    "scale": _per_channel(-0.5, 2.0),
    "score_mode": _always(st.sampled_from(["dot", "concat"])),
    "shape": lambda shape: st.just((1, *(n or 1 for n in shape[1:]))) | _batch_shape(shape),
    "shared_axes": lambda shape: st.lists(st.integers(1, max(1, len(shape) - 1)), unique=True),
    "shift": _always(st.integers(-2, 2)),
    "size": _sizes(1, 3),
    "source": _axis,
    "start_indices": lambda shape: st.just((0,) * len(shape)),
    "stddev": _FACTOR,
    "strides": _sizes(1, 3),
    "target_shape": _shape,
    "threshold": _always(NUMBERS),
    "transpose": _always(_FLAGS),
    "units": _widths,
    "unroll": _always(_FLAGS),
    "use_bias": _always(_FLAGS),
    "use_scale": _always(_FLAGS),
    "variance": _per_channel(0.0, 4.0),
    "width": _COUNT,
    "width_factor": _FACTOR,
    "x_max": _always(NUMBERS),
    "x_min": _always(NUMBERS),
}
# Names that mean something else in some classes.
_OWN: dict[tuple[str, str], Row] = {
    **{(f"ZeroPadding{n}D", "padding"): _ends for n in (1, 2, 3)},
    ("Rescaling", "scale"): _per_channel(-0.5, 2.0),
    ("BatchNormalization", "scale"): _always(_FLAGS),
    ("LayerNormalization", "scale"): _always(_FLAGS),
    ("GroupNormalization", "scale"): _always(_FLAGS),
    ("BatchNormalization", "axis"): _always(st.sampled_from([-1, 1])),
    ("Concatenate", "axis"): _axis,
    ("Softmax", "axis"): _axis,
    ("Constant", "shape"): lambda shape: st.just(tuple(n or 1 for n in shape[1:])),
    ("Dot", "axes"): _always(st.sampled_from([1, 2, -1, (1, 2), (2, 1), (2, 2)])),
}


def rows(function: Callable, kind: str, given: int) -> dict[str, tuple[Row, bool]] | None:
    """By name, what arguments of a function are drawn from, and whether they are needed.

    Args:
        function: a class or function.
        kind: its name.
        given: how many of its first parameters are not drawn.

    Returns:
        None where one is needed that has no row.
    """
    found = {}
    for name, parameter in [*inspect.signature(function).parameters.items()][given:]:
        row = _OWN.get((kind, name)) or ARGUMENTS.get(name)
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_KEYWORD,
            parameter.VAR_POSITIONAL,
        )
        if row is not None:
            found[name] = (row, needed)
        elif needed:
            return None
    return found


def text(draw: Callable[[st.SearchStrategy], Any], found: dict, shape: Shape) -> str:
    """Arguments for a tensor of a shape, as they stand between parentheses."""
    # A few of those that have a default: more, and most combinations are none.
    chosen = [name for name, (_, needed) in found.items() if needed]
    optional = sorted(found.keys() - {*chosen})
    if optional:
        chosen += draw(st.lists(st.sampled_from(optional), max_size=3, unique=True))
    return "".join(f", {name}={draw(found[name][0](shape))!r}" for name in chosen)
