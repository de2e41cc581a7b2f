"""`Search`: allocations under a budget, those that nothing beats, and what they measure."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasq.analysis.bench import SQNR, Bench
from kerasq.analysis.cost import COSTS
from kerasq.analysis.integer_program import IntegerProgram
from kerasq.analysis.network import Network
from kerasq.analysis.sensitivity import Sensitivity
from kerasq.scheme import Scheme, resolve
from kerasq.support.progress import track
from kerasq.support.sqnr import sqnr
from kerasq.wrappers import QuantizeWrapper

# How many budgets, evenly spread, the front is looked for at.
FRONT_POINTS = 25
# How often a target metric is aimed at anew.
ROUNDS = 6


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


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """The integer program over the layers of a model, in terms of its schemes and its metric.

    Attributes:
        program: noise and cost of each layer at each candidate.
        table: the sensitivities, in the order of the program's layers.
        unit: what costs are counted in.
        fixed: what layers cost that stay float.
        floats: the scheme "float", by name of those layers.
        bench: what the whole model is measured on; None not to.
    """

    program: IntegerProgram
    table: Sensitivity
    unit: str
    fixed: int
    floats: dict[str, str]
    bench: Bench | None

    @classmethod
    def over(cls, network: Network, table: Sensitivity, unit: str, bench: Bench | None) -> "Search":
        """The search over the layers of a network.

        Raises:
            ValueError: where the sensitivities are those of another model, or no candidate is
                allowed for a layer.
        """
        if {*table.layers} != {*network.layers}:
            raise ValueError(
                "`sensitivity` must be that of `model`. "
                f"Received: layers {table.layers} for a model with {network.layers}."
            )
        stays_float = [x for x in network.model.layers if not isinstance(x, QuantizeWrapper)]
        memory = _sums(network, table, _output_bits)
        program = IntegerProgram(
            # Where a layer has no kernel there is no measurement, and no permission.
            noise=np.nan_to_num(table.noise, nan=0.0),
            cost=_sums(network, table, COSTS[unit]),
            memory=memory / memory.sum(),
            allowed=_allowed(network, table),
        )
        return cls(
            program=program,
            table=table,
            unit=unit,
            fixed=sum(COSTS[unit](x, resolve("float")) for x in stays_float),
            floats={name: s for name, s in network.overrides.items() if s == "float"},
            bench=bench,
        )

    def best(self, limit: float) -> Point:
        """The least noise within a cost.

        Raises:
            ValueError: where nothing is as cheap.
        """
        found = self.program.least_noise(limit - self.fixed)
        if found is None:
            least = int(self.program.cheapest()) + self.fixed
            raise ValueError(
                f"`budget` must leave room for the narrowest schemes, {least:,} "
                f"{self.unit}. Received: {limit:,}. Raise it, or allow narrower candidates."
            )
        return self._measured(self._point(found))

    def reaching(self, target: float) -> Point:
        """The least cost whose metric, measured on the whole model, reaches the target.

        Raises:
            ValueError: where no candidates reach it.
        """
        goal = target
        for _ in range(ROUNDS):
            found = self._measured(self._cheapest(goal, target))
            if found.measured is None or found.measured >= target:
                return found
            # Noise adds up only roughly: the next prediction has to make up for what is lacking.
            goal = max(found.predicted, goal) + (target - found.measured)
        # What no prediction led to, the best of all may reach.
        return self._measured(self._cheapest(np.inf, target))

    def front(self, chosen: Point) -> tuple[Point, ...]:
        """Allocations that no other one beats, the cheapest first; predictions only.

        Args:
            chosen: an allocation that counts as well, as it is.
        """
        quietest = self.program.least_noise()
        assert quietest is not None  # Each layer has a candidate.
        ends = self.program.cheapest() + self.fixed, self._point(quietest).cost
        limits = np.linspace(*ends, FRONT_POINTS)
        choices = [
            self.program.least_noise(limit - self.fixed)
            for limit in track(limits.tolist(), len(limits), "budget")
        ]
        points = [chosen, *(self._point(x) for x in choices if x is not None)]
        # Of one cost the best comes first, and keeps the others out.
        front: list[Point] = []
        for point in sorted(points, key=lambda p: (p.cost, -p.predicted)):
            if not front or point.predicted > front[-1].predicted:
                front.append(point)
        return tuple(front)

    def _cheapest(self, goal: float, target: float) -> Point:
        """The least cost whose predicted metric reaches `goal`, or the best that there is.

        Raises:
            ValueError: where that does not reach the target.
        """
        found = None if goal == np.inf else self.program.least_cost(self._noise(goal))
        if found is not None:
            return self._point(found)
        best = self._measured(self._point(self.program.quietest()))
        reached = best.predicted if best.measured is None else best.measured
        if reached < target:
            raise ValueError(
                f"`budget` must be a {self.table.metric} that the candidates reach, at most "
                f"{reached:.4g}. Received: {target:.4g}. Lower it, or add wider candidates."
            )
        return best

    def _noise(self, metric: float) -> float:
        """The noise that a metric allows."""
        if self.table.metric == SQNR:
            return 10 ** (-metric / 10)
        return self.table.reference - metric

    def _point(self, choice: np.ndarray) -> Point:
        """A choice of the program as an allocation, with the metric that its noise allows."""
        each = np.arange(len(choice))
        names = {self.table.layers[i]: self.table.candidates[j] for i, j in enumerate(choice)}
        noise = float(self.program.noise[each, choice].sum())
        predicted = self.table.reference - noise
        if self.table.metric == SQNR:
            predicted = sqnr(noise)
        return Point(
            overrides=self.floats | names,
            cost=int(self.program.cost[each, choice].sum()) + self.fixed,
            predicted=predicted,
        )

    def _measured(self, point: Point) -> Point:
        """The point with the metric of the whole model."""
        if self.bench is None:
            return point
        # The bench has the layers in another order, that of the model.
        names = self.bench.candidates
        choice = [names.index(point.overrides[layer]) for layer in self.bench.network.layers]
        return dataclasses.replace(point, measured=self.bench.run(np.array(choice))[0])


def _sums(
    network: Network, table: Sensitivity, function: Callable[[keras.Layer, Scheme], int]
) -> np.ndarray:
    """A function of the parts of each layer at each candidate, `(layers, candidates)`."""
    schemes = [resolve(name) for name in table.candidates]
    # All that became of one layer of the user's has its scheme, such as a Dense and its softmax.
    parts = [network.parts(name) for name in table.layers]
    return np.array([[sum(function(x, s) for x in xs) for s in schemes] for xs in parts], float)


def _output_bits(layer: keras.Layer, scheme: Scheme) -> int:
    return math.prod(layer.output.shape[1:]) * scheme.activation_bits


def _allowed(network: Network, table: Sensitivity) -> np.ndarray:
    """Whether a layer may have a candidate, `(layers, candidates)`.

    Raises:
        ValueError: for a layer that may have none.
    """
    allowed = ~np.isnan(table.alone)
    asked = dict(network.overrides)
    # The type of an input is a matter between the model and who feeds it, not of budgets.
    for x in network.model.inputs:
        asked.setdefault(x.name, table.candidates[0])
    for i, name in enumerate(table.layers):
        scheme = asked.get(name)
        if scheme is not None and scheme not in table.candidates:
            raise ValueError(
                "`overrides` must settle layers to 'float' or to one of the candidates "
                f"{table.candidates}. Received: {{{name!r}: {scheme!r}}}."
            )
        if scheme is not None:
            allowed[i] &= np.array(table.candidates) == scheme
    if stuck := [name for name, can in zip(table.layers, allowed, strict=True) if not can.any()]:
        raise ValueError(
            "`candidates` must have, for every layer, one that the target has a kernel of. "
            f"Received: candidates={table.candidates}, target {table.target!r}, none for the "
            f"layers {stuck}. Add 'w8a8', or settle these layers to 'float' with `overrides`."
        )
    return allowed
