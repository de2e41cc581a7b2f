"""`allocate`: the scheme of each layer under a budget, by an exact integer program."""

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kerasq import targets
from kerasq.analysis import cost
from kerasq.analysis import sensitivity as sensitivities
from kerasq.analysis.bench import SQNR, Bench, metric_label, metric_name
from kerasq.analysis.cost import COSTS
from kerasq.analysis.network import Network
from kerasq.analysis.search import Point, Search
from kerasq.analysis.sensitivity import Sensitivity
from kerasq.calibration.observer import Observer
from kerasq.scales import FREE
from kerasq.support import figures, optional, tables
from kerasq.targets import Target

# The first one is what the model's inputs get.
CANDIDATES = ("w8a8", "w4a8", "w8a16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Allocation:
    """What `allocate` found. Printing it gives the front and the chosen schemes.

    Attributes:
        chosen: the best allocation within the budget.
        front: allocations of which none is both cheaper and better than another, cheapest first.
        unit: what costs are counted in: "bytes" of weights, or "bit_operations".
        sensitivity: the measurements it comes from.
    """

    chosen: Point
    front: tuple[Point, ...]
    unit: str
    sensitivity: Sensitivity

    @property
    def overrides(self) -> dict[Any, str]:
        """The chosen schemes: `quantize_model(model, overrides=allocation.overrides)`."""
        return self.chosen.overrides

    def __str__(self) -> str:
        rows = [
            ["", self.unit, f"predicted {self.sensitivity.metric}", *self.sensitivity.candidates]
        ]
        for point in self.front:
            used = list(point.overrides.values())
            counts = [str(used.count(name)) for name in self.sensitivity.candidates]
            # No two points of the front have one cost.
            mark = ">" if point.cost == self.chosen.cost else ""
            rows.append([mark, f"{point.cost:,}", f"{point.predicted:.4g}", *counts])
        measured = "-" if self.chosen.measured is None else f"{self.chosen.measured:.4g}"
        chosen = [["layer", "scheme"], *([str(k), v] for k, v in self.overrides.items())]
        return (
            f"{tables.plain(rows)}\n\nLayers at each scheme, along the front; > is chosen: "
            f"{self.chosen.cost:,} {self.unit}, {self.sensitivity.metric} predicted "
            f"{self.chosen.predicted:.4g}, measured {measured}.\n\n{tables.plain(chosen, left=2)}"
        )

    def plot(self, path: str | os.PathLike | None = None) -> Any:
        """The Pareto front: predicted metric against cost.

        Args:
            path: where to write a PNG, whole or not at all; None not to.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: where matplotlib is not installed.
        """
        return figures.plot(self._draw, (7, 4.5), path)

    def _draw(self, figure: Any) -> None:
        axes = figure.subplots()
        # Without noise the SQNR is infinite, which has no place on an axis.
        finite = [p for p in self.front if np.isfinite(p.predicted)]
        axes.plot([p.cost for p in finite], [p.predicted for p in finite], "o-", label="front")
        if np.isfinite(self.chosen.predicted):
            axes.plot([self.chosen.cost], [self.chosen.predicted], "*", ms=16, label="chosen")
        axes.set(
            xlabel=self.unit.replace("_", "-"),
            ylabel=f"predicted {metric_label(self.sensitivity.metric)}",
        )
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")


def allocate(
    model: keras.Model,
    data: Any,
    *,
    budget: dict[str, float],
    candidates: Sequence[str] | None = None,
    metric: Any = None,
    overrides: dict | None = None,
    unit: str = "bit_operations",
    sensitivity: Sensitivity | None = None,
    steps: int | None = 8,
    method: str | dict[str, Any] | Observer | None = None,
    target: str | Target | None = None,
    granularity: str | None = None,
    scales: str | None = None,
) -> Allocation:
    """Picks the scheme of each layer under a budget, from the layers' sensitivities.

    With x[l, c] = 1 where layer l gets candidate c, noise and cost being sums over layers::

        minimize sum x * noise  subject to  sum x * cost <= budget,   or
        minimize sum x * cost   subject to  sum x * noise <= what the target metric allows,

    solved exactly by HiGHS (`scipy.optimize.milp`).

    Args:
        model: the float model; it is not changed.
        data: as for `sensitivity`; None, where the measurements are given, not to measure the
            result.
        budget: one entry: {"bytes": most bytes of weights and biases}, {"bit_operations": most
            bit-operations a sample}, or {name of the metric: least value}, such as {"sqnr": 25};
            the metric is that of the whole model on the data, not only the prediction.
        candidates: the schemes to choose from; by default those of `sensitivity`, or "w8a8",
            "w4a8" and "w8a16".
        metric: as for `sensitivity`; by default that of `sensitivity`, or "sqnr".
        overrides: as for `quantize_model`: layers whose scheme is given, "float" or one of the
            candidates. Their costs count.
        unit: what is minimized under a target metric, "bytes" or "bit_operations".
        sensitivity: measurements of these candidates to use instead of making them.
        steps: as for `sensitivity`.
        method: as for `sensitivity`.
        target: as for `sensitivity`; by default that of `sensitivity`, or "litert".
        granularity: as for `sensitivity`; by default that of `sensitivity`, or "per_channel".
        scales: as for `sensitivity`; by default those of `sensitivity`, or "free".

    Returns:
        The allocation. Inputs of the model get the first candidate.

    Raises:
        ImportError: where scipy is not installed.
        ValueError: for an unknown budget, one that no allocation fits (the least is named), a
            model whose sample shape is not known, a layer that no candidate runs, or arguments
            that are not those of `sensitivity`.

    Example:
        >>> model = keras.Sequential([keras.Input((8,), name="x"), keras.layers.Dense(4, name="d")])
        >>> x = np.random.default_rng(0).normal(size=(64, 8))
        >>> kerasq.allocate(model, x, budget={"bytes": 40}, candidates=("w8a8", "w4a8")).overrides
        {'d': 'w4a8', 'x': 'w8a8'}
    """
    _check_table(sensitivity)
    optional.load("scipy.optimize", "allocate")  # Before the measurements, which take time.
    candidates, metric, target, granularity, scales = _settings(
        sensitivity, candidates, metric, target, granularity, scales
    )
    _check_budget(budget, unit, metric)
    cost.require_known_shapes(model)
    # Measurements without data are predictions only; data without them make them.
    bench = None
    if sensitivity is None or data is not None:
        bench = Bench(
            model,
            data,
            candidates=candidates,
            metric=metric,
            overrides=overrides,
            steps=steps,
            method=method,
            target=target,
            granularity=granularity,
            scales=scales,
        )
        sensitivity = sensitivity or sensitivities.table(bench)
    network = bench.network if bench else Network(model, [], overrides, target, granularity, scales)
    ((key, limit),) = budget.items()
    # A budget is in its own unit; that of a metric leaves open what is to be saved.
    search = Search.over(network, sensitivity, key if key in COSTS else unit, bench)
    chosen = search.best(limit) if key == search.unit else search.reaching(limit)
    return Allocation(
        chosen=chosen, front=search.front(chosen), unit=search.unit, sensitivity=sensitivity
    )


def _settings(
    table: Sensitivity | None,
    candidates: Sequence[str] | None,
    metric: Any,
    target: str | Target | None,
    granularity: str | None,
    scales: str | None,
) -> tuple[tuple[str, ...], Any, Target, str, str]:
    """Candidates, metric, target, granularity, scales: those asked for, or of `sensitivity`.

    Raises:
        ValueError: where they contradict each other.
    """
    known: tuple[tuple[str, ...], str, str, str, str]
    known = (CANDIDATES, SQNR, targets.DEFAULT, "per_channel", FREE)
    if table is not None:
        own = (table.granularity, table.scales)
        known = (table.candidates, table.metric, table.target, *own)
    found = (
        tuple(known[0] if candidates is None else candidates),
        known[1] if metric is None else metric,
        targets.find(known[2] if target is None else target),
        known[3] if granularity is None else granularity,
        known[4] if scales is None else scales,
    )
    if table is None:
        return found
    # A metric may be an object, of which a table has the name.
    named = (found[0], metric_name(found[1]), found[2].name, *found[3:])
    rules = (
        "`candidates` must be those",
        "`metric` must be that",
        "`target` must be that",
        "`granularity` must be that",
        "`scales` must be those",
    )
    for rule, value, measured in zip(rules, named, known, strict=True):
        if value != measured:
            raise ValueError(
                f"{rule} of `sensitivity`, or left out. "
                f"Received: {value!r}, sensitivity of {measured!r}."
            )
    return found


def _check_table(found: Any) -> None:
    """Raises a ValueError unless there is a table of sensitivities, or none."""
    if found is not None and not isinstance(found, Sensitivity):
        raise ValueError(
            "`sensitivity` must be what kerasq.sensitivity returned, or None. "
            f"Received: sensitivity={found!r:.80}."
        )


def _check_budget(budget: Any, unit: str, metric: Any) -> None:
    """Raises a ValueError for a budget that is none, or an unknown unit."""
    legal = [*COSTS, metric_name(metric)]
    is_one = isinstance(budget, dict) and len(budget) == 1 and next(iter(budget)) in legal
    value: Any = next(iter(budget.values())) if is_one else None
    # To Python, True is a number.
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(float(value)):
        raise ValueError(
            f"`budget` must be a dict with one of {legal} and a number. "
            f"Received: budget={budget!r}."
        )
    if unit not in COSTS:
        raise ValueError(f"`unit` must be one of {list(COSTS)}. Received: unit={unit!r}.")
