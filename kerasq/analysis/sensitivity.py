"""`sensitivity`: what quantizing each layer alone costs, and what raising it alone gains."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from kerasq import targets
from kerasq.analysis.bench import SQNR, Bench, metric_label
from kerasq.analysis.network import Network
from kerasq.calibration.observer import Observer
from kerasq.scales import FREE
from kerasq.scheme import FLOAT_BITS, Scheme
from kerasq.support import figures, tables
from kerasq.support.progress import track
from kerasq.targets import Target


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What `sensitivity` measured. Printing it gives a table, the most sensitive layer first.

    `np.asarray(table)` is a structured array with a row for each layer and candidate.

    Attributes:
        layers: names of the model's layers, and inputs, that have a scheme.
        candidates: the schemes.
        metric: name of the metric; higher is better; "sqnr" is in dB.
        reference: the metric of the float model; infinite for "sqnr".
        base: the metric with all layers at the first candidate.
        alone: the metric when only that layer is quantized, shape `(layers, candidates)`; NaN
            where the layer's operator has no kernel of that width.
        raised: the metric when all layers are at the first candidate but this one.
        noise: what quantizing the layer alone costs, for sums over layers: the noise over the
            signal of the outputs for "sqnr", else `reference - alone`, at least 0.
        samples: how many samples it was measured on.
        target: name of the target whose kernels it was measured on.
        granularity: what of a kernel shares a scale, "per_channel" or "per_tensor".
        scales: which scales are powers of two, as for `quantize_model`.
    """

    layers: tuple[str, ...]
    candidates: tuple[str, ...]
    metric: str
    reference: float
    base: float
    alone: np.ndarray
    raised: np.ndarray
    noise: np.ndarray
    samples: int
    target: str
    granularity: str = "per_channel"
    scales: str = FREE

    @property
    def gain(self) -> np.ndarray:
        """What raising a layer alone from the first candidate gains, same shape."""
        return self.raised - self.base

    def sort(self, by: str | None = None) -> "Sensitivity":
        """The same rows, the most sensitive layers first.

        Args:
            by: the candidate whose gain counts: where raising helps most. By default, the noise of
                the first candidate counts.

        Raises:
            ValueError: for a name that is no candidate.
        """
        if by is not None and by not in self.candidates:
            raise ValueError(
                f"`by` must be one of {list(self.candidates)}, or None. Received: by={by!r}."
            )
        key = self.noise[:, 0] if by is None else self.gain[:, self.candidates.index(by)]
        # Layers without a kernel of that width come last, equal ones in the order of the model.
        order = np.argsort(-np.nan_to_num(key, nan=-np.inf), kind="stable")
        return dataclasses.replace(
            self,
            layers=tuple(self.layers[i] for i in order),
            alone=self.alone[order],
            raised=self.raised[order],
            noise=self.noise[order],
        )

    # NumPy 2 passes both arguments, and warns of a method that does not take them.
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        fields = [("layer", object), ("candidate", object)]
        fields += [(name, float) for name in ("alone", "raised", "gain", "noise")]
        rows = [
            (
                layer,
                candidate,
                self.alone[i, j],
                self.raised[i, j],
                self.gain[i, j],
                self.noise[i, j],
            )
            for i, layer in enumerate(self.layers)
            for j, candidate in enumerate(self.candidates)
        ]
        return np.array(rows, fields)

    def __str__(self) -> str:
        order = self.sort()
        header = ["layer"]
        header += [f"only {name}" for name in self.candidates if name != "float"]
        header += [f"gain at {name}" for name in self.candidates[1:]]
        rows = [header]
        for i, layer in enumerate(order.layers):
            values = [
                _number(order.alone[i, j])
                for j, name in enumerate(self.candidates)
                if name != "float"
            ]
            values += [_number(order.gain[i, j], "+") for j in range(1, len(self.candidates))]
            rows.append([layer, *values])
        return (
            f"{tables.plain(rows)}\n\n"
            f"{metric_label(self.metric)} on {self.samples} samples: "
            f"float {_number(self.reference)}, all at {self.candidates[0]} "
            f'{_number(self.base)}. "only": the metric when that layer alone is quantized; '
            '"gain": what is gained when it alone leaves the first scheme.'
        )

    def plot(self, path: str | os.PathLike | None = None) -> Any:
        """Bars for each layer: the metric when quantized alone, and the gain when raised.

        Args:
            path: where to write a PNG, whole or not at all; None not to.

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: where matplotlib is not installed.
        """
        size = (10, 1.5 + 0.28 * len(self.layers))
        return figures.plot(self.sort()._draw, size, path)

    def _draw(self, figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        quantized = [j for j, name in enumerate(self.candidates) if name != "float"]
        self._bars(left, self.alone, quantized)
        self._bars(right, self.gain, list(range(1, len(self.candidates))))
        _zoom(left, self.alone[:, quantized])
        # The first candidate has no gain, and float no noise: either side lacks one.
        handles = {
            label: bars
            for axes in (left, right)
            for bars, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles)
        )
        label = metric_label(self.metric)
        left.set(xlabel=f"{label}, only this layer quantized")
        right.set(xlabel=f"gain of {label} over all at {self.candidates[0]}")
        left.set_yticks(range(len(self.layers)), self.layers)
        left.set_ylim(len(self.layers) - 0.4, -0.6)

    def _bars(self, axes: Any, values: np.ndarray, columns: list[int]) -> None:
        """One bar a layer and candidate; "exact" where noise is 0, none where there is no value."""
        height = 0.8 / max(len(columns), 1)
        for k, j in enumerate(columns):
            finite = np.where(np.isfinite(values[:, j]), values[:, j], np.nan)
            at = np.arange(len(values)) + (k - (len(columns) - 1) / 2) * height
            axes.barh(at, finite, height, color=f"C{j}", label=self.candidates[j])
            for place in at[np.isposinf(values[:, j])]:
                edge = axes.get_yaxis_transform()
                axes.text(0.01, place, "exact", color=f"C{j}", size=6, va="center", transform=edge)
        axes.grid(axis="x", alpha=0.3)
        axes.locator_params(axis="x", nbins=5)


def _zoom(axes: Any, values: np.ndarray) -> None:
    """Lets the horizontal axis show where values differ, not from 0 on."""
    finite = values[np.isfinite(values)]
    # Of equal values the range is empty, which matplotlib warns of.
    if finite.size and np.ptp(finite) > 0:
        margin = 0.1 * np.ptp(finite)
        axes.set_xlim(finite.min() - margin, finite.max() + margin)


def _number(value: float, sign: str = "") -> str:
    """A figure for the table; "-" where there is none."""
    if np.isnan(value):
        return "-"
    # Below 1 there are accuracies, whose hundredths are too coarse; above, dB.
    return f"{value:{sign}.4g}" if abs(value) < 1 else f"{value:{sign}.2f}"


def sensitivity(
    model: keras.Model,
    data: Any,
    *,
    candidates: Sequence[str] = ("w8a8", "w8a16", "float"),
    metric: Any = SQNR,
    overrides: dict | None = None,
    steps: int | None = 8,
    method: str | dict[str, Any] | Observer | None = None,
    target: str | Target = targets.DEFAULT,
    granularity: str = "per_channel",
    scales: str = FREE,
) -> Sensitivity:
    """Measures each layer alone: the loss when it is quantized, the gain when it is raised.

    Layers run as integer kernels or in float, so that each figure is that of the model that
    `quantize_model` and `calibrate` make with these schemes. One traced graph holds all schemes of
    all layers: the cost is that of `2 * layers * candidates * steps` batches.

    Args:
        model: the float model; it is not changed.
        data: an array of samples, or an iterable of batches; for a metric with labels a tuple
            `(x, y)` of arrays, or an iterable of batches `(x, y)`. Also calibrates.
        candidates: schemes to measure; the first is that from which layers are raised.
        metric: "sqnr", the ratio of the outputs' power to that of their error in dB; or a Keras
            metric or its name, or a function `f(y_true, y_pred)` of a batch's NumPy arrays whose
            mean counts. Higher is better.
        overrides: as for `quantize_model`; only layers that stay "float" matter here, and are left
            out of the table.
        steps: the most batches to use (32 samples each where `data` is an array); None for all.
        method: the observer that calibrates; see `calibrate`.
        target: as for `quantize_model`: whose kernels the layers run on.
        granularity: as for `quantize_model`.
        scales: as for `quantize_model`.

    Returns:
        The table.

    Raises:
        ValueError: for a model that cannot be quantized, unknown schemes, or bad data.

    Example:
        >>> model = keras.Sequential([keras.Input((8,), name="x"), keras.layers.Dense(4, name="d")])
        >>> table = kerasq.sensitivity(model, np.random.default_rng(0).normal(size=(64, 8)))
        >>> table.layers, table.candidates
        (('d', 'x'), ('w8a8', 'w8a16', 'float'))
    """
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
    return table(bench)


def table(bench: Bench) -> Sensitivity:
    """Runs every layer alone at every scheme, and raised alone to it."""
    network, schemes = bench.network, bench.schemes
    shape = (len(network.layers), len(schemes))
    # What is not run, for want of a kernel, stays NaN.
    alone, raised, noise = (np.full(shape, np.nan) for _ in range(3))
    work = list(_runs(network, schemes))
    base = np.nan
    for choice, (kind, i, j) in track(work, len(work), "run"):
        value, cost = bench.run(choice)
        if kind == "base":
            base = value
        elif kind == "alone":
            alone[i, j], noise[i, j] = value, cost
        else:
            raised[i, j] = value
    for i, j in np.ndindex(*shape):
        # Known without a run: one layer alone in float is the float model, and one that stays at
        # the first candidate leaves the base as it is.
        if schemes[j].activation_bits == FLOAT_BITS:
            alone[i, j], noise[i, j] = bench.reference, 0.0
        if network.runs(i, j):
            raised[i, 0] = base
    # A metric may rise by chance: negative noise would pay for that of other layers.
    if bench.metric != SQNR:
        noise = np.maximum(bench.reference - alone, 0.0)
    return Sensitivity(
        layers=network.layers,
        candidates=bench.candidates,
        metric=bench.metric,
        reference=bench.reference,
        base=base,
        alone=alone,
        raised=raised,
        noise=noise,
        samples=bench.samples,
        target=bench.target.name,
        granularity=bench.granularity,
        scales=bench.scales,
    ).sort()


def _runs(network: Network, schemes: list[Scheme]) -> Iterator[tuple[np.ndarray, Any]]:
    """Every run: the index of each layer's scheme (the last one: float), and what it is for."""
    count, stays_float = len(network.layers), len(schemes)
    # A layer without a kernel at the first candidate is float in all runs but its own.
    base = [0 if network.runs(i, 0) else stays_float for i in range(count)]
    yield np.array(base), ("base", 0, 0)
    for i in range(count):
        for j, scheme in enumerate(schemes):
            if not network.runs(i, j):
                continue
            if scheme.activation_bits != FLOAT_BITS:
                choice = np.full(count, stays_float)
                choice[i] = j
                yield choice, ("alone", i, j)
            if j > 0:
                choice = np.array(base)
                choice[i] = j
                yield choice, ("raised", i, j)
