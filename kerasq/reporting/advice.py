"""What to try next: rules that look at the figures, each with a way out."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable

from kerasq.analysis.trouble import MOST_CLIPPED
from kerasq.reporting.layer_figures import LayerFigures
from kerasq.reporting.weights import OUTLIER

# A range of which values use a smaller part is far larger than the data.
LEAST_USED = 0.25
# Weights of 8 bits suffer from an outlier with less SQNR (dB), each bit being 6 dB. Normal ones
# have 41 to 45, and those of a depthwise 5 x 5 kernel, of which one may be all that counts, 39.
LEAST_WEIGHTS, BIT = 37.0, 6.02
# Layers of fewer codes, where there are 256 of them, and so little SQNR (dB) are starved.
FEW_CODES, STARVED = 16, 20.0
# A layer so far (dB) below the median of all is the weak link.
WEAK = 10.0
# Files that compute as simulated differ by no more steps, in no more values.
MOST_LSB, LEAST_EXACT = 1, 0.99
# A layer of so many dB by itself is good enough, whatever the others have.
QUIET = 30.0
# So are outputs of so many.
GOOD = 25.0
# Why layers stay float that nobody need be told of.
ASKED = "as it was asked for"
# The most layers that a rule names.
NAMED = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
    """What to try, and why.

    Attributes:
        layer: the layer that shows it; "" for the whole model.
        rule: the rule, in a word.
        what: the fault, and the figure that shows it.
        way_out: what to do, with the call of kerasq that does it.
    """

    layer: str
    rule: str
    what: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.layer or 'The model'}: {self.what}. {self.way_out}"


# What says how grave a fault of a layer is, and what to do; None where it has none.
_Rule = Callable[[LayerFigures], tuple[float, Advice] | None]


def advise(
    layers: list[LayerFigures],
    floats: dict[str, str],
    sqnr: float | None,
    target: str | None = "litert",
) -> list[Advice]:
    """What to try next, the gravest first.

    Args:
        layers: the figures.
        floats: by name of a layer that stays float, why.
        sqnr: of the file's outputs beside the float model's, in dB; None where it is not known.
        target: what the model runs on; None where that is not what runs it here.
    """
    found = _named(layers, _of_input)
    for rule in _rules(layers, bool(found)):
        # A layer is named once, for its gravest fault.
        done = {x.layer for x in found}
        found += _named([x for x in layers if x.name not in done], rule)
    if target is not None:
        found += _named(layers, lambda x: _differs(x, target))
    found += _stay_float(floats)[:NAMED]
    # That of a wrong input says nothing of the model.
    if sqnr is not None and sqnr < GOOD and "normalization" not in {x.rule for x in found}:
        found.append(_of_all(sqnr, _own(layers), bool(found)))
    return found


def _rules(layers: list[LayerFigures], wrong_input: bool) -> list[_Rule]:
    """The rules for layers, the gravest first."""
    # Behind an input of other values than it was calibrated on, all ranges are wrong.
    if wrong_input:
        return [_overflow, _outlier]
    weak = _median(x.own_sqnr for x in layers if _computes(x)) - WEAK
    return [
        *(_overflow, _outlier, _clipped),
        *(_of_widest(layers, rule) for rule in (_too_wide, _few_codes)),
        lambda x: _weak(x, weak),
    ]


def _of_widest(layers: list[LayerFigures], rule: _Rule) -> _Rule:
    """A rule for ranges, of layers that use most of theirs: some, as first steps, use little."""
    widest: dict[str, float] = {}
    for x in layers:
        widest[x.range_of] = max(widest.get(x.range_of, 0.0), x.used or 0.0)
    return lambda x: rule(x) if not x.range_of or x.used == widest[x.range_of] else None


def _named(layers: Iterable[LayerFigures], rule: _Rule) -> list[Advice]:
    """What a rule says of the layers that it fits most."""
    fits = [one for x in layers if (one := rule(x)) is not None]
    return [advice for _, advice in sorted(fits, key=lambda one: -one[0])[:NAMED]]


def _median(values: Iterable[float | None]) -> float:
    # Layers without noise say nothing of what is usual.
    known = [x for x in values if x is not None and x != float("inf")]
    return statistics.median(known) if known else float("-inf")


def _computes(x: LayerFigures) -> bool:
    return x.own_sqnr is not None and not x.is_input and x.scheme != ""


def _at(name: str, scheme: str) -> str:
    """The call that gives a layer a scheme."""
    return f'`kerasq.quantize_model(model, overrides={{"{name}": "{scheme}"}})`'


def _range(x: LayerFigures) -> str:
    return f"[{x.low:.3g}, {x.high:.3g}]"


def _of_input(x: LayerFigures) -> tuple[float, Advice] | None:
    """An input that is fed other values than it was calibrated on."""
    if not x.is_input or x.used is None:
        return None
    is_clipped = x.clipped is not None and x.clipped > MOST_CLIPPED[(x.codes or 0) >= 256]
    if not is_clipped and x.used >= LEAST_USED:
        return None
    ends = f"the data reach from {x.value_low:z.3g} to {x.value_high:z.3g}"
    what = f"its range, {_range(x)}, is not that of the data: {ends}"
    if is_clipped:
        what += f", {100 * (x.clipped or 0):.1f} % of them beyond it"
    else:
        what += f", {100 * x.used:.1f} % of it, in {x.codes_used} of {x.codes} codes"
    way_out = (
        "It was calibrated with another normalization: feed the values that it was calibrated on, "
        "or `kerasq.calibrate(q, data)` with data as they will be fed, and export again."
    )
    return 1.0, Advice(layer=x.name, rule="normalization", what=what, way_out=way_out)


def _overflow(x: LayerFigures) -> tuple[float, Advice] | None:
    bits, limit = x.accumulator_bits, x.accumulator_limit
    if bits is None or limit is None or bits <= limit:
        return None
    what = f"some input makes its sums take {bits} bits, more than the {limit} of the accumulators"
    way_out = f"Give it narrower weights: {_at(x.name, 'w4a8')}."
    return bits - limit, Advice(layer=x.name, rule="overflow", what=what, way_out=way_out)


def _outlier(x: LayerFigures) -> tuple[float, Advice] | None:
    """A weight, or channel, that takes the codes from all others."""
    w = x.weights
    if w is None or w.outlier < OUTLIER or w.outlier_sqnr > LEAST_WEIGHTS - BIT * (8 - w.bits):
        return None
    left = max(1, round((w.codes - 1) / w.outlier))
    if w.per_tensor:
        what = (
            f"channel {w.outlier_channel} has weights {w.outlier:.1f} times as large as the median "
            f"channel's, on one scale: most channels are left some {left} of {w.codes} codes"
        )
        way_out = (
            '`kerasq.quantize_model(model, granularity="per_channel")`, or '
            "`kerasq.equalize(model, data)` before quantization."
        )
    else:
        what = (
            f"an outlier in channel {w.outlier_channel} of its weights is {w.outlier:.1f} times as "
            f"large as 99 % of that channel: these are left some {left} of {w.codes} codes"
        )
        way_out = (
            "`kerasq.equalize(model, data)` before quantization; or keep it float: "
            f"{_at(x.name, 'float')}."
        )
    return w.outlier, Advice(layer=x.name, rule="outlier", what=what, way_out=way_out)


def _clipped(x: LayerFigures) -> tuple[float, Advice] | None:
    if x.clipped is None or x.clipped <= MOST_CLIPPED[(x.codes or 0) >= 256]:
        return None
    what = (
        f"{100 * x.clipped:.1f} % of its values lie beyond its range, {_range(x)}: they reach from "
        f"{x.value_low:.3g} to {x.value_high:.3g}"
    )
    way_out = 'Calibrate on such data: `kerasq.calibrate(q, data, method="minmax")`.'
    return x.clipped, Advice(layer=x.name, rule="clipped", what=what, way_out=way_out)


def _too_wide(x: LayerFigures) -> tuple[float, Advice] | None:
    if not _computes(x) or x.used is None or x.used >= LEAST_USED or _is_quiet(x):
        return None
    what = (
        f"its range, {_range(x)}, is far larger than the data: they use {100 * x.used:.1f} % of "
        f"it, {x.codes_used} of {x.codes} codes"
    )
    if x.shares_range:
        what += "; it is that of its input"
        way_out = (
            f"Give it 16 bits: {_at(x.name, 'w8a16')}; or, where it averages whole images, write "
            "it as GlobalAveragePooling2D, which has a range of its own."
        )
    else:
        way_out = "Let its range follow the data: `kerasq.calibrate(q, data)`, and export again."
    return 1 - x.used, Advice(layer=x.name, rule="wide range", what=what, way_out=way_out)


def _is_quiet(x: LayerFigures) -> bool:
    """Whether the layer adds hardly any noise, whatever its range."""
    return x.own_sqnr is not None and x.own_sqnr > QUIET


def _few_codes(x: LayerFigures) -> tuple[float, Advice] | None:
    is_few = x.codes_used is not None and x.codes_used < FEW_CODES and (x.codes or 0) >= 256
    if not is_few or not _computes(x) or (x.own_sqnr or 0.0) >= STARVED:
        return None
    what = f"its values take {x.codes_used} of {x.codes} codes, for {x.own_sqnr:.1f} dB"
    way_out = f"Give it 16 bits: {_at(x.name, 'w8a16')}."
    return -float(x.codes_used or 0), Advice(
        layer=x.name, rule="few codes", what=what, way_out=way_out
    )


def _weak(x: LayerFigures, limit: float) -> tuple[float, Advice] | None:
    """A layer that adds far more noise than the others."""
    if not _computes(x) or x.own_sqnr is None or x.own_sqnr >= min(limit, QUIET):
        return None
    what = f"by itself it has {x.own_sqnr:.1f} dB, {limit + WEAK - x.own_sqnr:.1f} below the median"
    w = x.weights
    if w is not None and w.bits < 8:
        what += f"; its weights have {w.bits} bits"
        way_out = f"{_at(x.name, 'w8a8')}, or `kerasq.adaround(q, data)`."
    else:
        way_out = f"Give its output 16 bits: {_at(x.name, 'w8a16')}."
    return -x.own_sqnr, Advice(layer=x.name, rule="weak layer", what=what, way_out=way_out)


def _differs(x: LayerFigures, target: str) -> tuple[float, Advice] | None:
    """A file that computes otherwise than the simulation."""
    if x.max_lsb is None or x.exact is None:
        return None
    if x.max_lsb <= MOST_LSB and x.exact >= LEAST_EXACT:
        return None
    what = (
        f"the file differs from the simulation by up to {x.max_lsb} steps, in "
        f"{100 * (1 - x.exact):.2f} % of the values"
    )
    way_out = (
        f'See what rounds otherwise here: `kerasq.check_kernels("{target}")`; choose the target '
        "that it runs on: `kerasq.retarget(q, target)`."
    )
    return float(x.max_lsb), Advice(layer=x.name, rule="kernel", what=what, way_out=way_out)


def _stay_float(floats: dict[str, str]) -> list[Advice]:
    way_out = (
        "Where it shall be integer: replace it by layers of docs/layers.md, or give it a rule, "
        "`kerasq.register_layer`."
    )
    return [
        Advice(layer=name, rule="float", what=f"it stays float ({why})", way_out=way_out)
        for name, why in floats.items()
        if ASKED not in why
    ]


def _own(layers: list[LayerFigures]) -> float | None:
    """The least SQNR of what no layer reads, beside the model's own weights in float."""
    read = {name for x in layers for name in x.inputs}
    return min((x.sqnr for x in layers if x.name not in read and x.sqnr is not None), default=None)


def _of_all(sqnr: float, own: float | None, has_faults: bool) -> Advice:
    what = f"its outputs have {sqnr:.1f} dB"
    if own is not None and own >= GOOD:
        return Advice(
            layer="",
            rule="trained",
            what=f"{what} beside the float model, but {own:.1f} dB beside its own weights in float",
            way_out=(
                "Training has changed it, not quantization: judge it by its accuracy. Where "
                "nothing was trained, that is another float model: give the one that it is from."
            ),
        )
    return Advice(
        layer="",
        rule="all layers",
        what=what if has_faults else f"{what}, and no layer stands out",
        way_out=(
            "Try `kerasq.post_training(model, data)`, fine-tune it by `q.fit`, or find where more "
            "bits help: `kerasq.sensitivity(model, data)`, then `kerasq.allocate`."
        ),
    )
