"""`Report`: what `compare` found, and how differences are counted."""

import dataclasses

import numpy as np

from kerasq.support import tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One layer, fed the integer model's own inputs.

    Attributes:
        name: the layer's name.
        op: the operator that computes it.
        dtype: "int8", "int16", "int32" of labels, or "float32" for a layer that stays float.
        max_lsb: the largest difference, in steps of the output's grid, or of labels; None for a
            float layer.
        exact: the share of values that are equal, in [0, 1]; None for a float layer.
        max_error: the largest difference, in real units.
        values: the number of values compared.
    """

    name: str
    op: str
    dtype: str
    max_lsb: int | None
    exact: float | None
    max_error: float
    values: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What `compare` found. Printing it gives a table.

    Attributes:
        layers: each layer on the integer model's own inputs.
        max_lsb: largest difference of the model's outputs, in steps of their grid; None, like the
            two below, where all outputs are float.
        exact: share of output values that are equal.
        within_one_lsb: share of output values that differ by at most one step.
        max_error: largest difference of the model's outputs, in real units.
        argmax_agreement: share of samples (rows along the last axis) with the same argmax.
        samples: how many samples were compared.
        kernels: the kernels that the integer model ran on.
        accuracy: by name of an output, the accuracy of each side, "simulated" and "file"; empty
            without labels of classes.
    """

    layers: tuple[LayerReport, ...]
    max_lsb: int | None
    exact: float | None
    within_one_lsb: float | None
    max_error: float
    argmax_agreement: float
    samples: int
    kernels: str
    accuracy: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        rows = [["layer", "operator", "type", "max LSB", "exact", "max error"]]
        for x in self.layers:
            steps = "-" if x.max_lsb is None else str(x.max_lsb)
            rows.append([x.name, x.op, x.dtype, steps, _percent(x.exact), f"{x.max_error:.3g}"])
        steps = "the outputs are float"
        if self.max_lsb is not None:
            steps = (
                f"max {self.max_lsb} LSB, {_percent(self.exact)} of the outputs exact, "
                f"{_percent(self.within_one_lsb)} within 1 LSB"
            )
        end = (
            f"End to end, {self.samples} samples, {self.kernels} kernels: {steps}, max error "
            f"{self.max_error:.3g}, argmax agreement {_percent(self.argmax_agreement)}."
        )
        lines = [f"\nAccuracy of {name!r}: {_sides(x)}." for name, x in self.accuracy.items()]
        return f"{tables.plain(rows, left=3)}\n\n{end}{''.join(lines)}"


def _sides(shares: dict[str, float]) -> str:
    return ", ".join(f"{side} {100 * share:.2f} %" for side, share in shares.items())


def _percent(share: float | None) -> str:
    """Percent, never rounded up to 100 %."""
    # One code in a million is still a difference, and whoever reads 100 % stops looking.
    return "-" if share is None else f"{np.floor(share * 1e5) / 1e3:.3f} %"


@dataclasses.dataclass
class Tally:
    """Differences counted so far, batch by batch.

    Attributes:
        values: the values compared.
        counted: those of them that lie on a grid.
        equal: those that are equal.
        close: those that differ by at most one step.
        largest: the largest difference in steps.
        error: the largest difference in real units.
    """

    values: int = 0
    counted: int = 0
    equal: int = 0
    close: int = 0
    largest: int = 0
    error: float = 0.0

    def add(self, simulated: np.ndarray, computed: np.ndarray, step: np.ndarray | None) -> None:
        """Counts the differences of two arrays of values.

        Args:
            simulated: values in real units, integers such as labels, or conditions.
            computed: what a file has of them.
            step: of the grid that both lie on, in real units; None where they are float.
        """
        difference = np.subtract(simulated, computed, dtype=np.result_type(simulated, np.int8))
        self.values += difference.size
        self.error = max(self.error, float(np.abs(difference).max(initial=0.0)))
        # Float sums differ in their last bits on any two machines: there are no steps to count.
        if step is None:
            return
        # Both sides multiply codes by the step in float32, so that quotients are not quite whole.
        steps = np.abs(np.rint(difference / step)).astype(np.int64)
        self.counted += steps.size
        self.equal += int((steps == 0).sum())
        self.close += int((steps <= 1).sum())
        self.largest = max(self.largest, int(steps.max(initial=0)))

    @property
    def max_lsb(self) -> int | None:
        """The largest difference in steps; None where all values are float."""
        return self.largest if self.counted else None

    def share(self, count: int) -> float | None:
        """A share of the values that lie on a grid; None where all are float."""
        # A model may have integer and float outputs: the latter count in `error` alone.
        return count / self.counted if self.counted else None
