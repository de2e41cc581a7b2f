"""`compare`: the simulation against the integer kernels, layer by layer and end to end."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph as graphs
from kerasq import wrappers
from kerasq.comparison.accuracy import Accuracy
from kerasq.comparison.probe import Probe
from kerasq.comparison.report import LayerReport, Report, Tally
from kerasq.grid import Grid
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.litert.runtime import TFLiteModel, require_lite
from kerasq.support.data import batch_spec, labelled_count, with_labels
from kerasq.support.progress import track
from kerasq.support.shared import traced_if_often

# Samples that are simulated at once; the interpreter takes as many as its file says.
CHUNK = 64
# All layers' values of a chunk are in memory: of large images fewer samples are taken.
MOST_VALUES = 2**26


def compare(model: keras.Model, lite: TFLiteModel, *, x: Any) -> Report:
    """Compares a quantized Keras model with the .tflite that was exported from it.

    Per layer, the simulation is fed the inputs that the integer model itself computed, so that a
    difference is that layer's own. End to end, each side runs on its own values.

    Args:
        model: the quantized model.
        lite: its export; the kernels are those it was loaded with.
        x: samples: an array, or an iterable of batches `x` or `(x, y)`; or `(x, y)`. Where there
            are labels y of classes (of several outputs a dict by their names, or a list in their
            order), the report has the accuracy of both sides.

    Returns:
        The report.

    Raises:
        ValueError: where `lite` is not an export of `model`, or `x` is not data for it.
    """
    comparison = Comparison(model, lite, labelled_count(model, x))
    accuracy = Accuracy(lite.output_names)
    found = with_labels(model, x, comparison.chunk)
    for data, labels in track(found, comparison.total, "batch"):
        comparison.add(data)
        sides = {"simulated": comparison.outputs, "file": comparison.probe.outputs()}
        accuracy.add(labels, sides)
    return dataclasses.replace(comparison.report(), accuracy=accuracy.result())


class Comparison:
    """The simulation beside the integer kernels, batch by batch: what `compare` does.

    Args:
        model: the quantized model.
        lite: its export.
        samples: how many there will be; None where that is not known.

    Attributes:
        probe: the integer model, with the values of the last batch.
        layers: the layers whose outputs are tensors of the integer model.
        outputs: what the simulation makes of the last batch, end to end.
        chunk: how many samples a batch of arrays should have.
        total: how many batches that makes; None where it is not known.

    Raises:
        ValueError: where `lite` is not an export of `model`.
    """

    def __init__(self, model: keras.Model, lite: TFLiteModel, samples: int | None) -> None:
        wrappers.require_quantized(model)
        require_lite(lite)
        self.probe = Probe(model, lite)
        _check_export(model, self.probe)
        self.layers = _layers(model, self.probe)
        self.outputs: list[np.ndarray] = []
        values = sum(math.prod(n or 1 for n in layer.output.shape[1:]) for layer in self.layers)
        self.chunk = max(1, min(CHUNK, MOST_VALUES // max(1, values)))
        self.total = None if samples is None else -(-samples // self.chunk)
        self._ends = _Ends(model)
        self._simulate = _simulation(model, self.layers)
        self._memory: dict[Any, Any] = {}

    def add(self, data: Any) -> None:
        """Compares the sides on a batch, as `batches` yields it."""
        self.probe.run(data)
        # Weights of a layer are the same for all batches.
        with graphs.remembering(self._memory):
            outputs, values = self._simulate(data, [layer.fed() for layer in self.layers])
        self.outputs = [y.numpy() for y in outputs]
        for layer, y in zip(self.layers, values, strict=True):
            layer.check(y.numpy())
        self._ends.check(self.outputs, self.probe.outputs())

    def report(self) -> Report:
        """What was found so far."""
        tally = self._ends.tally
        return Report(
            layers=tuple(layer.report() for layer in self.layers),
            max_lsb=tally.max_lsb,
            exact=tally.share(tally.equal),
            within_one_lsb=tally.share(tally.close),
            max_error=tally.error,
            argmax_agreement=self._ends.argmax_agreement,
            samples=self.probe.samples,
            kernels=self.probe.kernels,
        )


def _check_export(model: keras.Model, probe: Probe) -> None:
    """Raises a ValueError where a file is not the export of a model as it is now."""
    calls = graphs.calls(model)
    # Others may have no tensor of their name: the converter drops what does nothing.
    kernels = [node.name for node in calls if isinstance(node.layer, KernelWrapper)]
    if missing := {*kernels} - {*probe.index}:
        raise ValueError(
            f"`lite` must be an export of `model` {model.name!r}. Received: a model without "
            f"its layers {sorted(missing)}; its own tensors are {sorted(probe.index)}."
        )
    # Other weights show as differences; other ranges would make all steps meaningless.
    if stale := [node.name for node in calls if _has_other_range(node, probe)]:
        raise ValueError(
            "`lite` must be an export of `model` as it is now. "
            f"Received: other ranges in layers {stale}. Export the model again."
        )


def _has_other_range(node: graphs.Node, probe: Probe) -> bool:
    """Whether the file has the output of a call on another grid than the model."""
    if not isinstance(node.layer, wrappers.QuantizeWrapper) or not probe.has(node.name):
        return False
    # A file does not say how many of its codes are in use.
    grid: Grid = dataclasses.replace(node.layer.grid().numpy(), levels=None)
    return not grid.equals(probe.grid(node.name))


def _layers(model: keras.Model, probe: Probe) -> list["ComparedLayer"]:
    """The layers whose outputs are tensors of the integer model."""
    return [
        ComparedLayer(node, y, probe)
        for node in graphs.calls(model)
        for y in node.outputs
        if probe.has(graphs.tensor_name(y))
    ]


def _simulation(model: keras.Model, layers: list["ComparedLayer"]) -> Callable[[Any, list], tuple]:
    """A function: the model's outputs on a batch, and those of each layer on its inputs."""

    # One function rather than one a layer, of which each would be traced and called by itself.
    @traced_if_often(batch_spec(model.input), batch_spec([layer.inputs for layer in layers]))
    def simulate(data: Any, fed: list) -> tuple[list, list]:
        outputs = graphs.run(model, data, wrappers.infer)
        return outputs, [layer.run(x) for layer, x in zip(layers, fed, strict=True)]

    return simulate


def step_of(tensor: keras.KerasTensor) -> np.ndarray | None:
    """The step of the grid that a tensor lies on, in real units; None where it is float."""
    if not tensor.dtype.startswith("float"):
        return np.asarray(1.0, np.float32)  # Labels, for one.
    wrapper = wrappers.quantized_by(tensor)
    return None if wrapper is None else wrapper.grid().numpy().scale


class _Ends:
    """The comparison of the model's outputs, each side on its own values."""

    def __init__(self, model: keras.Model) -> None:
        self.tally = Tally()
        self._steps = [step_of(y) for y in keras.tree.flatten(model.outputs)]
        self._agreements: list[np.ndarray] = []

    def check(self, simulated: list[np.ndarray], computed: list[np.ndarray]) -> None:
        """Compares the outputs of a batch."""
        for y, z, step in zip(simulated, computed, self._steps, strict=True):
            self.tally.add(y, z, step)
            if not np.issubdtype(y.dtype, np.floating):  # Labels, which an argmax gave.
                self._agreements.append((y == z).ravel())
            elif y.ndim > 1:  # One value a sample has no argmax.
                self._agreements.append(y.argmax(-1).ravel() == z.argmax(-1).ravel())

    @property
    def argmax_agreement(self) -> float:
        """Share of labels that are equal, and of rows along the last axis with the same argmax.

        1 where there are none.
        """
        return float(np.mean(np.concatenate(self._agreements))) if self._agreements else 1.0


class ComparedLayer:
    """The comparison of one output of a call.

    Attributes:
        node: the call.
        output: its output.
        name: that of the output's tensor.
        tally: the differences so far.
        inputs: the tensors that it is fed.
        step: that of the output's grid; None where it is float.
    """

    def __init__(self, node: graphs.Node, output: keras.KerasTensor, probe: Probe) -> None:
        self.node = node
        self.output = output
        self.name = graphs.tensor_name(output)
        self.probe = probe
        self.tally = Tally()
        self.inputs = self._known(node.inputs)
        self.step = step_of(output)

    def _known(self, tensors: list[keras.KerasTensor]) -> list[keras.KerasTensor]:
        """The tensors, or what those that the converter fused away are computed from."""
        found: list[keras.KerasTensor] = []
        for x in tensors:
            found += [x] if self.probe.knows(x) else self._known(graphs.origin(x)[1])
        return list({id(x): x for x in found}.values())

    def fed(self) -> list[np.ndarray]:
        """The integer model's values for the layer's inputs."""
        return [self.probe.value(x) for x in self.inputs]

    def run(self, inputs: list[tf.Tensor], call: Callable[..., Any] = wrappers.infer) -> tf.Tensor:
        """The simulation of the layer, and of those that were fused into it; or another `call`."""
        values = {id(x): y for x, y in zip(self.inputs, inputs, strict=True)}
        self._compute(self.node, values, call)
        return values[id(self.output)]

    def _compute(self, node: graphs.Node, values: dict[int, Any], call: Callable[..., Any]) -> None:
        """Adds what a call returns to `values`, and what it reads of calls without a value."""
        for x in node.inputs:
            if id(x) not in values:
                self._compute(graphs.call_of(x), values, call)
        graphs.compute(node, values, call)

    def check(self, y: np.ndarray) -> None:
        """Compares what the layer computed with the batch that the probe ran."""
        found = self.computed(self.probe.value(self.output))
        self.tally.add(self.computed(y), found, self.step)

    def computed(self, values: np.ndarray) -> np.ndarray:
        """The values, or those of them that the file computes, where it lacks channels."""
        kept = self.probe.kept(self.output)
        return values if kept is None else values[:, kept]

    def report(self) -> LayerReport:
        """The result so far."""
        return LayerReport(
            name=self.name,
            # An input that is an output as well, no operator computes.
            op=self.probe.ops.get(self.name, "-"),
            dtype=self.probe.dtype(self.name),
            max_lsb=self.tally.max_lsb,
            exact=self.tally.share(self.tally.equal),
            max_error=self.tally.error,
            values=self.tally.values,
        )
