"""`allocate`: the scheme of each layer under a budget, by an exact integer program."""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from kerasq import targets
from kerasq.analysis import cost
from kerasq.analysis import sensitivity as sensitivities
from kerasq.analysis.bench import SQNR, Bench, metric_name
from kerasq.analysis.network import Network
from kerasq.analysis.sensitivity import Sensitivity
from kerasq.calibration.observers import Observer
from kerasq.scheme import Scheme, resolve
from kerasq.support import optional, tables
from kerasq.support.files import save_figure
from kerasq.support.progress import track
from kerasq.wrappers import QuantizeWrapper

COSTS: dict[str, Callable[[keras.Layer, Scheme], int]] = {
    "bytes": cost.weight_bytes,
    "bit_operations": cost.bit_operations,
}
CANDIDATES = ("w8a8", "w4a8", "w8a16")
FRONT_POINTS = 25
# How often a target metric is aimed at anew.
ROUNDS = 6
# Weight of the bits of activations in the objective: among equally good allocations the one with
# the narrowest activations is taken.
_TIE = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One allocation.

    Attributes:
        overrides: scheme by layer name, for every layer: ready for `quantize_model`.
        cost: what it costs, in the unit of `Allocation.unit`.
        predicted: the metric that the sensitivities of the layers add up to: an estimate.
        measured: the metric of the whole model on the data; None where it was not measured.
    """

    overrides: dict[Any, str]
    cost: int
    predicted: float
    measured: float | None = None


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
        figures = optional.load("matplotlib.figure", "plot")
        figure = figures.Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        finite = [p for p in self.front if np.isfinite(p.predicted)]
        axes.plot([p.cost for p in finite], [p.predicted for p in finite], "o-", label="front")
        if np.isfinite(self.chosen.predicted):
            axes.plot([self.chosen.cost], [self.chosen.predicted], "*", ms=16, label="chosen")
        unit = " (dB)" if self.sensitivity.metric == SQNR else ""
        axes.set(
            xlabel=self.unit.replace("_", "-"),
            ylabel=f"predicted {self.sensitivity.metric}{unit}",
        )
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        save_figure(figure, path)
        return figure


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
) -> Allocation:
    """Picks the scheme of each layer under a budget, from the layers' sensitivities.

    With x[l, c] = 1 where layer l gets candidate c, noise and cost being sums over layers:

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
        overrides: as for `quantize_model`: layers whose scheme is settled, to "float" or to one of
            the candidates. Their costs count.
        unit: what is minimized under a target metric, "bytes" or "bit_operations".
        sensitivity: measurements of these candidates to use instead of making them.
        steps: as for `sensitivity`.
        method: as for `sensitivity`.

    Returns:
        The allocation. Inputs of the model get the first candidate.

    Raises:
        ImportError: where scipy is not installed.
        ValueError: for an unknown budget, one that no allocation fits (the least is named), or a
            model whose sample shape is not known.

    Example:
        >>> model = keras.Sequential([keras.Input((8,), name="x"), keras.layers.Dense(4, name="d")])
        >>> x = np.random.default_rng(0).normal(size=(64, 8))
        >>> kerasq.allocate(model, x, budget={"bytes": 40}, candidates=("w8a8", "w4a8")).overrides
        {'d': 'w4a8', 'x': 'w8a8'}
    """
    optional.load("scipy.optimize", "allocate")  # Before the measurements, which take time.
    known = sensitivity.candidates if sensitivity else CANDIDATES
    candidates = tuple(known if candidates is None else candidates)
    if sensitivity is not None and candidates != sensitivity.candidates:
        raise ValueError(
            "`candidates` must be those of `sensitivity`, or left out. "
            f"Received: candidates={candidates}, sensitivity of {sensitivity.candidates}."
        )
    if metric is None:
        metric = sensitivity.metric if sensitivity else SQNR
    _check_budget(budget, unit, metric, sensitivity)
    cost.require_known_shapes(model)
    if sensitivity is None or data is not None:
        bench = Bench(
            model,
            data,
            candidates=candidates,
            metric=metric,
            overrides=overrides,
            steps=steps,
            method=method,
            target=targets.DEFAULT,
        )
        sensitivity = sensitivity or sensitivities.table(bench)
    else:
        bench = None
    ((key, limit),) = budget.items()
    program = _Program(model, sensitivity, overrides, key if key in COSTS else unit, bench)
    chosen = program.best(limit) if key == program.unit else program.reaching(limit)
    return Allocation(
        chosen=chosen, front=program.front(chosen), unit=program.unit, sensitivity=sensitivity
    )


def _check_budget(budget: Any, unit: str, metric: Any, table: Sensitivity | None) -> None:
    named = metric_name(metric)
    if table is not None and named != table.metric:
        raise ValueError(
            "`metric` must be that of `sensitivity`, or left out. "
            f"Received: metric={metric!r}, sensitivity of {table.metric!r}."
        )
    legal = [*COSTS, named]
    is_one = isinstance(budget, dict) and len(budget) == 1 and next(iter(budget)) in legal
    value: Any = next(iter(budget.values())) if is_one else None
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(float(value)):
        raise ValueError(
            f"`budget` must be a dict with one of {legal} and a number. "
            f"Received: budget={budget!r}."
        )
    if unit not in COSTS:
        raise ValueError(f"`unit` must be one of {list(COSTS)}. Received: unit={unit!r}.")


class _Program:
    """The integer program over layers and candidates."""

    def __init__(
        self,
        model: keras.Model,
        table: Sensitivity,
        overrides: dict | None,
        unit: str,
        bench: Bench | None,
    ) -> None:
        self.bench = bench
        network = bench.network if bench else Network(model, [], overrides, targets.DEFAULT)
        self.table, self.unit = table, unit
        self.floats = {n: s for n, s in network.settled.items() if s == "float"}
        schemes = [resolve(name) for name in table.candidates]
        parts = {name: network.parts(name) for name in table.layers}
        if set(table.layers) != set(network.layers):
            raise ValueError(
                "`sensitivity` must be that of `model`. "
                f"Received: layers {table.layers} for a model with {network.layers}."
            )
        self.cost = np.array(
            [
                [sum(COSTS[unit](x, s) for x in parts[name]) for s in schemes]
                for name in table.layers
            ],
            float,
        )
        # What layers cost that stay float.
        stays_float = [x for x in network.model.layers if not isinstance(x, QuantizeWrapper)]
        self.fixed = sum(COSTS[unit](x, resolve("float")) for x in stays_float)
        self.noise = np.nan_to_num(table.noise, nan=0.0)
        self.allowed = ~np.isnan(table.alone)
        inputs = {x.name for x in model.inputs}
        for i, name in enumerate(table.layers):
            if name in network.settled:
                self.allowed[i] &= self._settled(name, network.settled[name])
            elif name in inputs:
                self.allowed[i] = np.arange(len(schemes)) == 0
        can_run = zip(table.layers, self.allowed.any(1), strict=True)
        if stuck := [name for name, can in can_run if not can]:
            raise ValueError(
                "`candidates` must have, for every layer, one that LiteRT has a kernel of. "
                f"Received: candidates={table.candidates}, none for the layers "
                f"{stuck}. Add 'w8a8', or settle these layers to 'float' with `overrides`."
            )
        bits = np.array([s.activation_bits for s in schemes], float)
        size = np.array([sum(np.prod(x.output.shape[1:]) for x in parts[n]) for n in table.layers])
        memory = size[:, None] * bits
        self.memory = memory / memory.sum()

    def _settled(self, name: str, scheme: str) -> np.ndarray:
        """Which candidate a settled layer has."""
        if scheme not in self.table.candidates:
            raise ValueError(
                "`overrides` must settle layers to 'float' or to one of the candidates "
                f"{self.table.candidates}. Received: {{{name!r}: {scheme!r}}}."
            )
        return np.array(self.table.candidates) == scheme

    def _solve(self, objective: np.ndarray, rows: np.ndarray, limit: float) -> Point | None:
        """The allocation with the least objective under `sum x * rows <= limit`."""
        optimize = optional.load("scipy.optimize", "allocate")
        layers, candidates = self.noise.shape
        one_each = np.kron(np.eye(layers), np.ones(candidates))
        scale = max(float(np.abs(objective).max()), 1e-300)
        tie = _TIE * self.memory.ravel()
        result = optimize.milp(
            objective.ravel() / scale + tie,
            constraints=[
                optimize.LinearConstraint(one_each, 1, 1),
                optimize.LinearConstraint(rows.ravel()[None], -np.inf, limit),
            ],
            integrality=np.ones(layers * candidates),
            bounds=optimize.Bounds(0, self.allowed.ravel().astype(float)),
        )
        if result.x is None:
            return None
        choice = result.x.reshape(layers, candidates).argmax(1)
        return self._point(choice)

    def _point(self, choice: np.ndarray) -> Point:
        each = np.arange(len(choice))
        names = {self.table.layers[i]: self.table.candidates[j] for i, j in enumerate(choice)}
        noise = float(self.noise[each, choice].sum())
        if self.table.metric == SQNR:
            predicted = float(-10 * np.log10(noise)) if noise > 0 else np.inf
        else:
            predicted = self.table.reference - noise
        return Point(
            overrides=self.floats | names,
            cost=int(self.cost[each, choice].sum()) + self.fixed,
            predicted=predicted,
        )

    def _extremes(self) -> tuple[int, int]:
        """The least cost, and the cost of the least noise."""
        least = np.where(self.allowed, self.cost, np.inf).min(1).sum()
        best = self._solve(self.noise, self.cost, np.inf)
        assert best is not None
        return int(least) + self.fixed, best.cost

    def _within(self, limit: float) -> Point | None:
        """The least noise within a cost, if there is one."""
        return self._solve(self.noise, self.cost, limit - self.fixed)

    def best(self, limit: float) -> Point:
        """The least noise within a cost."""
        found = self._within(limit)
        if found is None:
            raise ValueError(
                f"`budget` must leave room for the narrowest schemes, {self._extremes()[0]:,} "
                f"{self.unit}. Received: {limit:,}. Raise it, or allow narrower candidates."
            )
        return self._measured(found)

    def reaching(self, target: float) -> Point:
        """The least cost whose metric, measured on the whole model, reaches the target.

        Noise adds up only roughly: where the model falls short, the prediction has to make up for
        as much.
        """
        goal = target
        for _ in range(ROUNDS):
            found = self._measured(self._cheapest(goal, target))
            if found.measured is None or found.measured >= target:
                return found
            goal = max(found.predicted, goal) + (target - found.measured)
        return self._measured(self._cheapest(np.inf, target))

    def _cheapest(self, goal: float, target: float) -> Point:
        """The least cost whose predicted metric reaches `goal`, or the best that there is."""
        is_sqnr = self.table.metric == SQNR
        noise = 10 ** (-goal / 10) if is_sqnr else self.table.reference - goal
        found = self._solve(self.cost, self.noise, noise)
        if found is not None:
            return found
        # Of equal noise, such as none, the widest: layers may lose more together than alone.
        choice = [
            max(np.flatnonzero(can), key=lambda j: (-noise[j], cost[j], memory[j]))
            for can, noise, cost, memory in zip(
                self.allowed, self.noise, self.cost, self.memory, strict=True
            )
        ]
        best = self._measured(self._point(np.array(choice)))
        reached = best.predicted if best.measured is None else best.measured
        if reached < target:
            raise ValueError(
                f"`budget` must be a {self.table.metric} that the candidates reach, at most "
                f"{reached:.4g}. Received: {target:.4g}. Lower it, or add wider candidates."
            )
        return best

    def _measured(self, point: Point | None) -> Point:
        """The point with the metric of the whole model."""
        assert point is not None
        if self.bench is None:
            return point
        names = self.bench.candidates
        choice = [names.index(point.overrides[layer]) for layer in self.bench.network.layers]
        return dataclasses.replace(point, measured=self.bench.run(np.array(choice))[0])

    def front(self, chosen: Point) -> tuple[Point, ...]:
        """Allocations that no other one beats, the cheapest first."""
        limits = np.linspace(*self._extremes(), FRONT_POINTS)
        points = [self._within(limit) for limit in track(limits.tolist(), len(limits), "budget")]
        points.append(chosen)
        front: list[Point] = []
        for point in sorted((p for p in points if p), key=lambda p: (p.cost, -p.predicted)):
            if not front or point.predicted > front[-1].predicted:
                front.append(point)
        return tuple(front)
