"""`fixed_point`: a quantized model with narrow multipliers and accumulators, layer by layer."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph as graphs
from kerasq import kernels, requantization, wrappers
from kerasq.analysis import cost
from kerasq.comparison.accuracy import Accuracy
from kerasq.grid import Grid
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.kernels.accumulators import double_multiplier
from kerasq.kernels.fixed_point import int64, multiply_rounding_once
from kerasq.kernels.floats import float64
from kerasq.quantizers.a2q import WIDEST_SUMS, check_accumulator_bits
from kerasq.support import tables
from kerasq.support.data import batch_spec, labelled_count, with_labels
from kerasq.support.progress import track
from kerasq.support.shared import traced_if_often

# Samples at once.
CHUNK = 64


def _saturated(total: tf.Tensor, bits: int) -> tf.Tensor:
    half = int64(2 ** (bits - 1))
    return tf.clip_by_value(total, -half, half - 1)


def _wrapped(total: tf.Tensor, bits: int) -> tf.Tensor:
    half = 2 ** (bits - 1)
    return tf.math.floormod(total + half, 2**bits) - half


# What becomes of sums that do not fit.
OVERFLOWS: dict[str, Callable[[tf.Tensor, int], tf.Tensor]] = {
    "saturate": _saturated,
    "wrap": _wrapped,
}


# Where ties go: as `multiply_rounding_once` calls it, and what rounds real numbers so.
ROUNDINGS: dict[str, tuple[str, Callable[[tf.Tensor], tf.Tensor]]] = {
    "half_up": ("up", lambda x: tf.floor(x + 0.5)),
    "half_even": ("even", tf.round),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerFixedPoint:
    """What integers of chosen widths cost one layer with weights.

    Attributes:
        name: the layer's name.
        error: the largest relative error of its multipliers.
        most_steps: what codes differ by at most, by that: `kerasq.multipliers`.
        steps: the largest difference on the data, from the exact multipliers on the same sums, in
            codes.
        changed: the share of codes that differ, in [0, 1].
        needed_bits: the width of accumulators that no input overflows, sign and bias included.
        seen_bits: the width that the sums of the data take.
        overflows: the share of sums beyond the chosen width, in [0, 1], as the layer is fed by the
            layers before it at these widths.
    """

    name: str
    error: float
    most_steps: int
    steps: int
    changed: float
    needed_bits: int
    seen_bits: int
    overflows: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """What integers of chosen widths cost a model. Printing it gives a table.

    Attributes:
        layers: each layer with weights, in order.
        multiplier_bits, accumulator_bits, overflow, rounding: what was simulated.
        samples: how many samples.
        exact: the share of the outputs' values that are what the target computes.
        accuracy: by output that has classes, the share of labels that are right, as the "target"
            computes and at these widths ("fixed_point"); empty without labels.
    """

    layers: tuple[LayerFixedPoint, ...]
    multiplier_bits: int
    accumulator_bits: int
    overflow: str
    rounding: str
    samples: int
    exact: float
    accuracy: dict[str, dict[str, float]]

    @property
    def overflows(self) -> float:
        """The largest of the layers' shares of sums that overflow."""
        return max(layer.overflows for layer in self.layers)

    def __str__(self) -> str:
        header = ["layer", "rel. error", "off at most", "off by", "changed (%)"]
        rows = [[*header, "bits needed", "bits seen", "overflows (%)"]]
        for x in self.layers:
            numbers = (f"{x.error:.1e}", f"{x.most_steps}", f"{x.steps}", _percent(x.changed))
            widths = (f"{x.needed_bits}", f"{x.seen_bits}", _percent(x.overflows))
            rows.append([x.name, *numbers, *widths])
        return "\n".join([tables.plain(rows), "", *self._lines()])

    def _lines(self) -> list[str]:
        """What was simulated, and what it costs the whole."""
        how = {"saturate": "saturate", "wrap": "wrap around"}[self.overflow]
        widths = f"Multipliers of {self.multiplier_bits} bits"
        lines = [
            f"{widths}, accumulators of {self.accumulator_bits} that {how}.",
            f"Ties are rounded {self.rounding.removeprefix('half_')}.",
            f"Outputs: {_percent(self.exact)} % are as on the target, of {self.samples} samples.",
        ]
        for name, sides in self.accuracy.items():
            shares = f"{sides['fixed_point']:.4f}, on the target {sides['target']:.4f}"
            lines.append(f"Accuracy of {name!r}: {shares}.")
        return lines


def _percent(share: float) -> str:
    return f"{100 * share:.3f}"


def fixed_point(
    model: keras.Model,
    x: Any,
    *,
    multiplier_bits: int = requantization.WIDEST_MULTIPLIER,
    accumulator_bits: int = WIDEST_SUMS,
    overflow: str = "saturate",
    rounding: str = "half_up",
) -> FixedPoint:
    """Simulates a quantized model on multipliers and accumulators of chosen widths.

    Layers with weights compute, of codes x, zero point z, weights w and bias b,

        a = overflow(sum of w (x - z) + b),   y = clip(floor(a m 2^(shift - bits) + 1/2))

    with m and shift as `kerasq.multipliers` has them; under "half_even" ties go to the even number
    instead. Where scales are powers of two, `a m` is only shifted, and of 2^k sums one is a tie:
    that is how ESP-DL rescales convolutions and products, half up on ESP32-S3 and in its portable
    kernels, half to even on ESP32-P4. `overflow` cuts sums at -2^(B-1) and
    2^(B-1) - 1, or leaves them modulo 2^B, where B is the width of accumulators. What wraps around
    may do so at any step of the sum: the result is the same. Saturation is that of the whole
    sum; a device that saturates at every step gives other codes where one overflows on the way, in
    an order of its own. Where `needed_bits` fit, none can. Other operators, and a whole LSTM,
    compute as on the model's target. Sums must stay below 2^24, as in all of the simulation of
    int8.

    Args:
        model: what `quantize_model` returned, calibrated or trained.
        x: samples: an array, or an iterable of batches `x` or `(x, y)`; or `(x, y)`. Labels y of
            classes give the accuracy.
        multiplier_bits: width of the multipliers' mantissas, in [2, 31].
        accumulator_bits: width of the accumulators, sign included, in [8, 32].
        overflow: "saturate" or "wrap".
        rounding: "half_up" or "half_even".

    Raises:
        ValueError: for a model that is not quantized or has no layers with weights, for other
            widths, and for data that do not fit.
        UncalibratedError: where a range has seen no data.

    References:
        Multipliers: Jacob et al. 2018 (arXiv 1712.05877), section 2.2. Accumulators that wrap
        around or saturate: Colbert et al. 2023 (arXiv 2308.13504).

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> q, data = kerasq.quantize_model(model), np.eye(8)
        >>> kerasq.calibrate(q, data)
        >>> found = kerasq.fixed_point(q, data, multiplier_bits=8, accumulator_bits=20)
        >>> found.layers[0].steps <= 1, found.overflows
        (True, 0.0)
    """
    wrappers.require_quantized(model)
    requantization.check_bits(multiplier_bits)
    check_accumulator_bits(accumulator_bits)
    for name, value, legal in (
        ("overflow", overflow, OVERFLOWS),
        ("rounding", rounding, ROUNDINGS),
    ):
        if value not in legal:
            raise ValueError(f"`{name}` must be one of {list(legal)}. Received: {name}={value!r}.")
    simulation = _Simulation(model, multiplier_bits, accumulator_bits, overflow, rounding)
    count = labelled_count(model, x)
    total = None if count is None else -(-count // CHUNK)
    step = traced_if_often(batch_spec(model.input))(simulation.step)
    names = [graphs.tensor_name(y) for y in model.outputs]
    accuracy, counts = Accuracy(names), _Counts()
    for data, labels in track(with_labels(model, x, CHUNK), total, "batch"):
        target, found, layers = keras.tree.map_structure(np.asarray, step(data))
        accuracy.add(labels, {"target": target, "fixed_point": found})
        counts.add(target, found, layers)
    return FixedPoint(
        layers=tuple(simulation.layer(node, counts.layers[node.name]) for node in simulation.nodes),
        multiplier_bits=multiplier_bits,
        accumulator_bits=accumulator_bits,
        overflow=overflow,
        rounding=rounding,
        samples=counts.samples,
        exact=counts.equal / counts.values,
        accuracy=accuracy.result(),
    )


class _Counts:
    """What all batches have shown.

    Attributes:
        samples, values, equal: samples, values of outputs, and those that are as on the target.
        layers: of each layer, by name, its counts (`_Simulation.step`).
    """

    def __init__(self) -> None:
        self.samples = self.values = self.equal = 0
        self.layers: dict[str, np.ndarray] = {}

    def add(self, target: list, found: list, layers: dict[str, np.ndarray]) -> None:
        """Adds a batch."""
        self.samples += len(target[0])
        self.values += sum(y.size for y in target)
        self.equal += sum(int((y == z).sum()) for y, z in zip(target, found, strict=True))
        for name, new in layers.items():
            old = self.layers.get(name, np.zeros_like(new))
            largest, sums = np.maximum(old[:3], new[:3]), old[3:] + new[3:]
            self.layers[name] = np.concatenate([largest, sums])


class _Simulation:
    """A model as its target computes it, and at chosen widths.

    Attributes:
        nodes: the calls of layers with weights.
    """

    def __init__(
        self, model: keras.Model, multiplier: int, accumulator: int, how: str, rounding: str
    ) -> None:
        self._model, self._how = model, OVERFLOWS[how]
        self._ties, self._round = ROUNDINGS[rounding]
        self._multiplier, self._accumulator = multiplier, accumulator
        self.nodes = [x for x in graphs.calls(model) if isinstance(x.layer, KernelWrapper)]
        if not self.nodes:
            raise ValueError(
                "`model` must have layers with weights that are quantized. "
                f"Received: model {model.name!r} without any."
            )

    def step(self, data: Any) -> tuple[list, list, dict[str, tf.Tensor]]:
        """Outputs of a batch on the target and at these widths, and the counts of each layer.

        Those are, as int64: the largest difference of codes, the largest sum and the least one with
        the sign turned; then the numbers of codes that differ, of sums that overflow, and of all.
        """
        alone: dict[str, list[tf.Tensor]] = {}
        overflows: dict[str, tf.Tensor] = {}

        def on_target(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
            if isinstance(node.layer, KernelWrapper):
                node.layer.run_by(args[0], self._counting(node.name, alone))
            return wrappers.infer(node, *args, **kwargs)

        def at_widths(node: graphs.Node, *args: Any, **kwargs: Any) -> Any:
            if isinstance(node.layer, KernelWrapper):
                return node.layer.run_by(args[0], self._overflowing(node.name, overflows))
            return wrappers.infer(node, *args, **kwargs)

        target = graphs.run(self._model, data, on_target)
        found = graphs.run(self._model, data, at_widths)
        counts = {}
        for name, (*largest, changed, size) in alone.items():
            counts[name] = tf.stack([*largest, changed, overflows[name], size])
        return target, found, counts

    def _counting(self, name: str, counts: dict[str, list]) -> kernels.AccumulatorKernel:
        """Exact multipliers; counts what those of this width change."""

        def kernel(
            total: tf.Tensor, grid: Grid, weights: kernels.IntegerWeights, out: Grid
        ) -> tf.Tensor:
            real = double_multiplier(grid, weights, out)
            exact = kernels.clip(self._round(float64(total) * real), out)
            off = int64(tf.abs(self._rescaled(int64(total), real, out) - exact))
            ends = [tf.reduce_max(int64(total)), -tf.reduce_min(int64(total))]
            changed = tf.math.count_nonzero(off)
            counts[name] = [tf.reduce_max(off), *ends, changed, tf.size(off, tf.int64)]
            return exact

        return kernel

    def _overflowing(self, name: str, counts: dict[str, Any]) -> kernels.AccumulatorKernel:
        """Accumulators and multipliers of these widths; counts the sums that do not fit."""

        def kernel(
            total: tf.Tensor, grid: Grid, weights: kernels.IntegerWeights, out: Grid
        ) -> tf.Tensor:
            exact = int64(total)
            held = self._how(exact, self._accumulator)
            counts[name] = tf.math.count_nonzero(held - exact)
            return self._rescaled(held, double_multiplier(grid, weights, out), out)

        return kernel

    def _rescaled(self, total: tf.Tensor, real: tf.Tensor, out: Grid) -> tf.Tensor:
        found = multiply_rounding_once(total, real, bits=self._multiplier, ties=self._ties)
        return kernels.clip(found, out)

    def layer(self, node: graphs.Node, counts: np.ndarray) -> LayerFixedPoint:
        """The row of a layer."""
        wrapper = node.layer
        steps, greatest, least, changed, overflows, size = map(int, counts)
        out = wrapper.grid().numpy()
        weights = wrapper.integer_weights()
        real = double_multiplier(wrapper.input_grids()[0], weights, out).numpy().ravel()
        return LayerFixedPoint(
            name=node.name,
            error=float(requantization.relative_errors(real, self._multiplier).max()),
            most_steps=requantization.most_steps(real, self._multiplier, out),
            steps=steps,
            changed=changed / size,
            needed_bits=cost.accumulator_bits(wrapper),
            seen_bits=cost.bits_between(-least, greatest),
            overflows=overflows / size,
        )
