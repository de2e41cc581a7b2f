"""`sensitivity`: what quantizing each layer alone costs, and what raising it alone gains."""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import fake_quant, graph, registry
from kerasq.calibration import calibrate as calibration
from kerasq.calibration.observers import Observer
from kerasq.grid import Grid
from kerasq.litert import operators
from kerasq.litert.runtime import keras_metric
from kerasq.quantize import quantize_model
from kerasq.quantizers import activations
from kerasq.scheme import FLOAT_BITS, Scheme, resolve, settled
from kerasq.support import tables
from kerasq.support.data import batch_spec, batches, labelled_batches
from kerasq.support.files import save_figure
from kerasq.support.progress import track
from kerasq.wrappers import KernelWrapper, QuantizeWrapper, ranged

SQNR = "sqnr"


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
        order = np.argsort(-np.nan_to_num(key, nan=-np.inf), kind="stable")
        return dataclasses.replace(
            self,
            layers=tuple(self.layers[i] for i in order),
            alone=self.alone[order],
            raised=self.raised[order],
            noise=self.noise[order],
        )

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
        unit = " dB" if self.metric == SQNR else ""
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
            f"{self.metric}{unit} on {self.samples} samples: float {_number(self.reference)}, "
            f"all at {self.candidates[0]} "
            f'{_number(self.base)}. "only": the metric when that layer alone is quantized; '
            '"gain": what is gained when it alone leaves the first scheme.'
        )

    def plot(self, path: str | os.PathLike | None = None) -> Any:
        """Bars for each layer: the metric when quantized alone, and the gain when raised.

        Args:
            path: where to write a PNG, whole or not at all; None not to.

        Returns:
            The matplotlib figure.
        """
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        rows = self.sort()
        y = np.arange(len(rows.layers))
        figure = Figure(figsize=(10, 1.5 + 0.28 * len(y)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        quantized = [j for j, name in enumerate(self.candidates) if name != "float"]
        self._bars(left, y, rows.alone, quantized)
        self._bars(right, y, rows.gain, list(range(1, len(self.candidates))))
        colours = [Patch(color=f"C{j}", label=name) for j, name in enumerate(self.candidates)]
        figure.legend(handles=colours, loc="outside upper center", ncols=len(colours))
        unit = " (dB)" if self.metric == SQNR else ""
        left.set(xlabel=f"{self.metric}{unit}, only this layer quantized")
        right.set(xlabel=f"gain of {self.metric}{unit} over all at {self.candidates[0]}")
        left.set_yticks(y, rows.layers)
        left.set_ylim(len(y) - 0.4, -0.6)
        values = rows.alone[:, quantized]
        finite = values[np.isfinite(values)]
        if finite.size and np.ptp(finite) > 0:
            margin = 0.1 * np.ptp(finite)
            left.set_xlim(finite.min() - margin, finite.max() + margin)
        save_figure(figure, path)
        return figure

    def _bars(self, axes: Any, y: np.ndarray, values: np.ndarray, columns: list[int]) -> None:
        """One bar a layer and candidate; "exact" where noise is 0, none where there is no value."""
        height = 0.8 / max(len(columns), 1)
        for k, j in enumerate(columns):
            finite = np.where(np.isfinite(values[:, j]), values[:, j], np.nan)
            at = y + (k - (len(columns) - 1) / 2) * height
            axes.barh(at, finite, height, color=f"C{j}")
            for place in at[np.isposinf(values[:, j])]:
                edge = axes.get_yaxis_transform()
                axes.text(0.01, place, "exact", color=f"C{j}", size=6, va="center", transform=edge)
        axes.grid(axis="x", alpha=0.3)
        axes.locator_params(axis="x", nbins=5)


def _number(value: float, sign: str = "") -> str:
    if np.isnan(value):
        return "-"
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
) -> Sensitivity:
    """Measures each layer alone: the loss when it is quantized, the gain when it is raised.

    Layers run on fake-quantized weights, inputs and outputs (and biases on their grids). One traced
    graph holds all schemes of all layers, so that the cost is that of
    `2 * layers * candidates * steps` batches.

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
    return table(Bench(model, data, candidates, metric, overrides, steps, method))


def table(bench: "Bench") -> Sensitivity:
    """Runs every layer alone at every scheme."""
    network, schemes = bench.network, bench.schemes
    shape = (len(network.layers), len(schemes))
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
        if schemes[j].activation_bits == FLOAT_BITS:
            alone[i, j], noise[i, j] = bench.reference, 0.0
        if network.runs(i, j):
            raised[i, 0] = base
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
    ).sort()


def _runs(network: "Network", schemes: list[Scheme]) -> Iterator[tuple[np.ndarray, Any]]:
    """Every run: the index of each layer's scheme (the last one: float), and what it is for."""
    count, stays_float = len(network.layers), len(schemes)
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


class Network:
    """The model as one traced graph in which each layer's scheme is an input.

    Attributes:
        model: the model quantized at int8, which holds the ranges.
        layers: names of the user's layers that have a scheme.
    """

    def __init__(self, model: keras.Model, schemes: list[Scheme], overrides: dict | None) -> None:
        self.schemes = schemes
        # Ranges of less than 8 bits, by width and name.
        self._narrow: dict[int, dict[str, tuple[float, float]]] = {}
        whole = graph.read(model)
        layers = {x.name: x for x in whole.model.operations}
        self.settled = settled(overrides, layers, whole.parents)
        floats = {name: scheme for name, scheme in self.settled.items() if scheme == "float"}
        self.model = quantize_model(model, overrides=floats)
        # By name of a wrapper, the user's layer that it belongs to. Boundaries behind layers that
        # stay float belong to none: their readers put the values on grids.
        self.owner: dict[str, str] = {}
        self.wrappers = [x for x in self.model.layers if isinstance(x, QuantizeWrapper)]
        for wrapper in self.wrappers:
            if wrapper.is_input:
                self.owner[wrapper.name] = str(graph.origin(wrapper.output)[1][0].name)
            elif wrapper.rule is not registry.QUANTIZE:
                self.owner[wrapper.name] = wrapper.owner
        self.layers = tuple(dict.fromkeys(self.owner.values()))
        # By name of a wrapper, the layers that multiply what it writes.
        self._readers: dict[str, list[int]] = {}
        for wrapper in self.wrappers:
            for source in wrapper.producers if operators.multiplies(wrapper.rule.op) else ():
                if source is not None:
                    index = self.layers.index(self.owner[wrapper.name])
                    self._readers.setdefault(source.name, []).append(index)
        signature = [batch_spec(self.model.input), tf.TensorSpec([len(self.layers)], tf.int32)]
        self.run = tf.function(self._run, input_signature=signature, autograph=False)

    def calibrate(self, samples: list, method: str | dict[str, Any] | Observer | None) -> None:
        """Sets the ranges from batches, before the first run: those at 8 bits, and narrow ones."""
        for bits in {x.activation_bits for x in self.schemes if x.activation_bits < 8}:
            calibration.calibrate_at(bits, self.model, iter(samples), method)
            self._narrow[bits] = {
                name: tuple(end.numpy() for end in quantizer.range())
                for name, quantizer in ranged(self.model).items()
            }
        calibration.calibrate(self.model, iter(samples), method=method)

    def runs(self, layer: int, scheme: int) -> bool:
        """Whether LiteRT has kernels for a layer at a scheme."""
        parts, bits = self.parts(self.layers[layer]), self.schemes[scheme]
        if bits.weight_bits < 8 and any(registry.is_grouped(x.layer) for x in parts):
            return False
        return bits.activation_bits != 16 or all(operators.has_int16(x.rule.op) for x in parts)

    def parts(self, name: str) -> list[QuantizeWrapper]:
        """The wrappers that a user's layer became."""
        return [x for x in self.wrappers if self.owner.get(x.name) == name]

    def _run(self, x: Any, choice: tf.Tensor) -> list[tf.Tensor]:
        def call(node: graph.Node, *args: Any, **kwargs: Any) -> Any:
            layer = node.layer
            if not isinstance(layer, QuantizeWrapper):
                return graph.infer(layer, *args, **kwargs)
            inputs = args[0]
            if layer.name not in self.owner:
                return inputs
            index = self.layers.index(self.owner[layer.name])
            branches: list[Callable] = [
                lambda scheme=scheme: self._at(layer, inputs, scheme, choice)
                for scheme in self.schemes
            ]
            branches.append(lambda: self._at(layer, inputs, resolve("float"), choice))
            return tf.switch_case(choice[index], branches)

        return graph.run(self.model, x, call)

    def _at(
        self, wrapper: QuantizeWrapper, inputs: Any, scheme: Scheme, choice: tf.Tensor
    ) -> tf.Tensor:
        """A layer with inputs, weights, bias and output fake-quantized at `scheme`."""
        if scheme.activation_bits == FLOAT_BITS:
            return _clamp(wrapper, wrapper.run_float(inputs))
        multiplies = operators.multiplies(wrapper.rule.op)
        bits = scheme.activation_bits if multiplies else scheme.code_bits
        flat = [
            x if source is None else self._on_grid(x, source, bits)
            for x, source in zip(keras.tree.flatten(inputs), wrapper.producers, strict=True)
        ]
        inputs = flat if len(flat) > 1 else flat[0]
        if isinstance(wrapper, KernelWrapper):
            source = wrapper.producers[0]
            y = wrapper.run_quantized(inputs, scheme.weight_bits, self._grid(source, bits).scale)
        else:
            y = wrapper.run_float(inputs)
        bits, y = wrapper.output_bits(scheme.activation_bits), _clamp(wrapper, y)
        if bits >= 8:
            return self._on_grid(y, wrapper, bits)
        is_narrow = tf.constant([x.activation_bits < 8 for x in self.schemes] + [False])
        readers = tf.gather(choice, tf.constant(self._readers.get(wrapper.name, []), tf.int32))
        return tf.cond(
            tf.reduce_any(tf.gather(is_narrow, readers)),
            lambda: self._on_grid(y, wrapper, bits),
            lambda: self._on_grid(y, wrapper, 8),
        )

    def _grid(self, wrapper: QuantizeWrapper | None, bits: int) -> Grid:
        """The grid of a wrapper's output at another width."""
        assert wrapper is not None
        if wrapper.rule.grids:
            return wrapper.rule.grids[max(8, bits)]
        if wrapper.output_quantizer is None:
            return self._grid(wrapper.producers[0], bits)
        own = self._narrow.get(bits, {}).get(wrapper.name)
        low, high = own or wrapper.output_quantizer.range()
        if bits > 8:
            low, high = activations.symmetric(tf.maximum(-low, high), bits)
        return fake_quant.grid_from_range(low, high, bits)

    def _on_grid(self, x: tf.Tensor, wrapper: QuantizeWrapper, bits: int) -> tf.Tensor:
        grid = self._grid(wrapper, bits)
        codes = tf.round(x / grid.scale) + tf.cast(grid.zero_point, tf.float32)
        codes = tf.clip_by_value(codes, float(grid.qmin), float(grid.qmax))
        return (codes - tf.cast(grid.zero_point, tf.float32)) * grid.scale


def _clamp(wrapper: QuantizeWrapper, y: tf.Tensor) -> tf.Tensor:
    quantizer = wrapper.output_quantizer
    return y if quantizer is None else quantizer.clamp(y)


def metric_name(metric: Any) -> str:
    """What a metric is called."""
    if isinstance(metric, str):
        return metric
    return str(getattr(metric, "name", None) or getattr(metric, "__name__", "metric"))


def _check_metric(metric: Any) -> None:
    """Raises a ValueError for an unknown metric, or one that falls as the model gets better."""
    is_function = callable(metric) and not isinstance(metric, (keras.Metric, type))
    if is_function or (isinstance(metric, str) and metric in (SQNR, "accuracy", "acc")):
        return
    try:
        found = keras.metrics.get(metric) if metric is not None else None
    except ValueError:
        found = None
    if found is None:
        raise ValueError(
            f"`metric` must be {SQNR!r}, a Keras metric or its name, or a function of labels and "
            f"outputs. Received: metric={metric!r}."
        )
    if getattr(found, "_direction", None) == "down":
        raise ValueError(
            f"`metric` must grow as the model gets better. Received: metric={metric!r}, which "
            "falls. Give a function that returns its negative."
        )


class Bench:
    """A model, data and a metric: measures any choice of schemes.

    Attributes:
        network: the model.
        candidates: names of the schemes.
        schemes: the schemes.
        metric: name of the metric.
        reference: the metric of the float model.
        samples: how many samples there are.
    """

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        candidates: Sequence[str],
        metric: Any,
        overrides: dict | None,
        steps: int | None,
        method: str | dict[str, Any] | Observer | None,
    ) -> None:
        self.candidates = (candidates,) if isinstance(candidates, str) else tuple(candidates)
        self.schemes = [resolve(name) for name in self.candidates]
        if not self.candidates or len({*self.candidates}) < len(self.candidates):
            raise ValueError(
                f"`candidates` must be different schemes. Received: candidates={candidates}."
            )
        if any(scheme.weight_bits == 1 for scheme in self.schemes):
            raise ValueError(
                "`candidates` must have weights of 2 bits or more, which are uniform. "
                f"Received: candidates={candidates}."
            )
        self.network = Network(model, self.schemes, overrides)
        self._metric = metric
        self.metric = metric_name(metric)
        _check_metric(metric)
        if self.metric == SQNR:
            self._samples = list(batches(self.network.model, data, calibration.BATCH_SIZE, steps))
            self._labels: list = []
        else:
            pairs = labelled_batches(self.network.model, data, calibration.BATCH_SIZE, steps)
            columns = [list(column) for column in zip(*pairs, strict=True)] or [[], []]
            self._samples, self._labels = columns
        self.samples = sum(len(keras.tree.flatten(x)[0]) for x in self._samples)
        self.network.calibrate(self._samples, method)
        self._float = self._outputs(np.full(len(self.network.layers), len(self.schemes)))
        self.reference = np.inf if self.metric == SQNR else self._labelled(self._float)

    def _outputs(self, choice: np.ndarray) -> list[list[np.ndarray]]:
        index = tf.constant(choice, tf.int32)
        return [[y.numpy() for y in self.network.run(x, index)] for x in self._samples]

    def run(self, choice: np.ndarray) -> tuple[float, float]:
        """The metric with these schemes, and the noise over the signal of the outputs.

        Args:
            choice: for each layer of the network the index of its scheme; float is the last one.
        """
        outputs = self._outputs(choice)
        signal = noise = 0.0
        for batch, run in zip(self._float, outputs, strict=True):
            for y, z in zip(batch, run, strict=True):
                y = y.astype(np.float64)
                signal += float(np.square(y).sum())
                noise += float(np.square(y - z).sum())
        noise /= max(signal, np.finfo(np.float64).tiny)
        if self.metric == SQNR:
            return float(-10 * np.log10(noise)) if noise > 0 else np.inf, noise
        return self._labelled(outputs), noise

    def _labelled(self, outputs: list[list[np.ndarray]]) -> float:
        predictions: list[Any] = [run[0] if len(run) == 1 else run for run in outputs]
        pairs = list(zip(self._labels, predictions, strict=True))
        if callable(self._metric) and not isinstance(self._metric, (keras.Metric, type)):
            return float(np.mean([np.mean(self._metric(y, z)) for y, z in pairs]))
        metric = keras_metric(self._metric, *pairs[0])
        metric.reset_state()
        for y, z in pairs:
            metric.update_state(y, z)
        return float(metric.result())
