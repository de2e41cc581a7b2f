"""Contestants measured in turns, and the ratios of what they took."""

import dataclasses
import sys
from collections.abc import Container, Iterator, Sequence

import numpy as np

from kerasq.support import tables
from kerasq.support.progress import track
from tools.benchmarks.worker import Failed, Worker


@dataclasses.dataclass(frozen=True)
class Row:
    """Ratios of one comparison, a round each, and what their median must be.

    Attributes:
        what: over what the ratios are.
        case: what was compared.
        ratios: round by round; empty where a contestant could not take part.
        target: the most that the median may be.
        at_least: whether the target is the least instead.
    """

    what: str
    case: str
    ratios: list[float]
    target: float | None = None
    at_least: bool = False

    @property
    def median(self) -> float:
        """The median ratio; NaN where a contestant could not take part."""
        return float(np.median(self.ratios)) if self.ratios else float("nan")

    @property
    def verdict(self) -> str:
        """Whether the target is "held" or "missed"; "not measured", or nothing without target."""
        if not self.ratios:
            return "not measured"
        if self.target is None:
            return ""
        held = self.median >= self.target if self.at_least else self.median <= self.target
        return "held" if held else "missed"

    def cells(self) -> list[str]:
        """The row of the table."""
        figures = [min(self.ratios), self.median, max(self.ratios)] if self.ratios else []
        shown = [f"{value:.2f}" for value in figures] or ["-"] * 3
        sign = ">=" if self.at_least else "<="
        target = "" if self.target is None else f"{sign} {self.target:.2f}"
        return [self.what, self.case, *shown, target, str(len(self.ratios)), self.verdict]


def by_case(rows: Sequence[Row], cases: Container[str]) -> str:
    """Medians of these cases as a table: a row each, a column a ratio; "" where there are none."""
    cells = {(row.case, row.what): f"{row.median:.2f}" for row in rows if row.case in cases}
    if not cells:
        return ""
    names, ratios = ([*dict.fromkeys(x)] for x in zip(*cells, strict=True))
    body = [[name, *(cells.get((name, ratio), "-") for ratio in ratios)] for name in names]
    return tables.markdown([["case", *ratios], *body])


@dataclasses.dataclass(frozen=True)
class Figures:
    """What each contestant of a comparison took, a round each; empty where it failed.

    Attributes:
        case: what was compared.
        unit: "seconds" or "bytes".
        figures: by name of the contestant.
        failures: why contestants could not take part, by name.
    """

    case: str
    unit: str
    figures: dict[str, list[float]]
    failures: dict[str, str]

    def ratios(self, ours: str, theirs: str) -> list[float]:
        """Round by round, since a noisy machine slows down both contestants of a round."""
        pairs = zip(self.figures.get(ours, []), self.figures.get(theirs, []), strict=False)
        return [a / b for a, b in pairs]

    def rows(self) -> Iterator[list[str]]:
        """A row of the table for each contestant."""
        factor, unit = {"seconds": (1e3, "ms"), "bytes": (1e-6, "MB")}[self.unit]
        for name, values in self.figures.items():
            if values:
                ends = (min(values), float(np.median(values)), max(values))
                yield [self.case, name, *(f"{value * factor:.3f}" for value in ends), unit]
            else:
                yield [self.case, name, "-", "-", "-", self.failures[name][:80]]


class Benchmark:
    """Runs comparisons and collects their figures.

    Args:
        rounds: of each comparison.
        environment: of the contestants' processes, added to this one's.
    """

    def __init__(self, rounds: int, environment: dict[str, str]) -> None:
        self.rounds = rounds
        self.environment = environment
        self.figures: list[Figures] = []
        self.rows: list[Row] = []

    def compare(
        self,
        case: str,
        contestants: dict[str, tuple[str, dict]],
        repetitions: int = 1,
        unit: str = "seconds",
        fresh: bool = False,
        rounds: int | None = None,
    ) -> Figures:
        """Measures contestants in turns.

        Args:
            case: name of the comparison.
            contestants: by name, a function of `contestants` and its arguments.
            repetitions: how often a contestant repeats its work in a turn.
            unit: of the figures.
            fresh: whether each turn has a process of its own.
            rounds: in place of the benchmark's.
        """
        found = Figures(case, unit, {name: [] for name in contestants}, {})
        workers: dict[str, Worker] = {}
        count = rounds or self.rounds
        print(case, file=sys.stderr)
        try:
            for _ in track(range(count), count, "round") if count > 1 else range(count):
                for name, contestant in contestants.items():
                    # In turns, so that a machine that gets slower hits all of them.
                    if name not in found.failures:
                        self._turn(found, workers, name, contestant, repetitions)
                        # A peak was taken while the process prepared: it would be repeated.
                        if fresh and name in workers:
                            workers.pop(name).close()
        finally:
            for worker in workers.values():
                worker.close()
        self.figures.append(found)
        return found

    def _turn(
        self,
        found: Figures,
        workers: dict[str, Worker],
        name: str,
        contestant: tuple[str, dict],
        repetitions: int,
    ) -> None:
        """Adds a figure of a contestant, or why it takes part no longer."""
        try:
            if name not in workers:
                workers[name] = Worker(*contestant, self.environment)
            found.figures[name].append(workers[name].measure(repetitions))
        except Failed as error:
            found.failures[name] = str(error)
            found.figures[name].clear()  # Ratios of a few rounds would be compared with others'.
