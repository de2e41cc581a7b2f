"""`compare`: the simulation against the integer kernels, layer by layer and end to end."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph as graphs
from kerasq import runtime, wrappers
from kerasq.data import batch_spec, batches, sample_count
from kerasq.export import flatbuffer
from kerasq.grid import Grid
from kerasq.progress import track
from kerasq.runtime import TFLiteModel

CHUNK = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One layer, fed the integer model's own inputs.

    Attributes:
        name: the layer's name.
        op: the operator that computes it.
        max_lsb: the largest difference, in steps of the output's grid.
        exact: the share of values that are equal, in [0, 1].
        values: the number of values compared.
    """

    name: str
    op: str
    max_lsb: int
    exact: float
    values: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What `compare` found. Printing it gives a table.

    Attributes:
        layers: each layer on the integer model's own inputs.
        max_lsb: largest difference of the model's outputs, in steps of their grid.
        exact: share of output values that are equal.
        within_one_lsb: share of output values that differ by at most one step.
        argmax_agreement: share of samples (rows along the last axis) with the same argmax.
        samples: how many samples were compared.
        kernels: the kernels that the integer model ran on.
    """

    layers: tuple[LayerReport, ...]
    max_lsb: int
    exact: float
    within_one_lsb: float
    argmax_agreement: float
    samples: int
    kernels: str

    def __str__(self) -> str:
        width = max([len("layer"), *(len(layer.name) for layer in self.layers)])
        ops = max([len("operator"), *(len(layer.op) for layer in self.layers)])
        lines = [f"{'layer':{width}}  {'operator':{ops}}  max LSB  {'exact':>9}"]
        lines += [
            f"{x.name:{width}}  {x.op:{ops}}  {x.max_lsb:7d}  {_percent(x.exact)}"
            for x in self.layers
        ]
        lines += [
            "",
            f"End to end, {self.samples} samples, {self.kernels} kernels: "
            f"max {self.max_lsb} LSB, {_percent(self.exact).strip()} of the outputs exact, "
            f"{_percent(self.within_one_lsb).strip()} within 1 LSB, "
            f"argmax agreement {_percent(self.argmax_agreement).strip()}.",
        ]
        return "\n".join(lines)


def _percent(share: float) -> str:
    """Percent, never rounded up to 100 %."""
    return f"{np.floor(share * 1e5) / 1e3:7.3f} %"


@dataclasses.dataclass
class _Tally:
    """Differences counted so far."""

    values: int = 0
    equal: int = 0
    close: int = 0
    largest: int = 0

    def add(self, difference: np.ndarray) -> None:
        steps = np.abs(np.rint(difference)).astype(np.int64)
        self.values += steps.size
        self.equal += int((steps == 0).sum())
        self.close += int((steps <= 1).sum())
        self.largest = max(self.largest, int(steps.max(initial=0)))


def compare(model: keras.Model, lite: TFLiteModel, x: Any) -> Report:
    """Compares a quantized Keras model with the .tflite that was exported from it.

    Per layer, the simulation is fed the inputs that the integer model itself computed, so that a
    difference is that layer's own. End to end, each side runs on its own values.

    Args:
        model: the quantized model.
        lite: its export; the kernels are those it was loaded with.
        x: samples: an array, or an iterable of batches `x` or `(x, y)`.

    Returns:
        The report.

    Raises:
        ValueError: where `lite` is not an export of `model`, or `x` is not data for it.
    """
    wrappers.require_quantized(model)
    if not isinstance(lite, TFLiteModel):
        raise ValueError(
            "`lite` must be a TFLiteModel. "
            f"Received: {lite!r:.80}. Load a file with kerasq.TFLiteModel(path)."
        )
    probe = _Probe(lite)
    layers = _layers(model, probe)
    ends, agreements = _Tally(), []
    steps = _output_steps(model)
    samples = sample_count(model, x)
    total = None if samples is None else -(-samples // CHUNK)

    signature = [batch_spec(model.input), batch_spec([layer.inputs for layer in layers])]

    @tf.function(input_signature=signature)
    def simulate(data: Any, fed: list) -> tuple[Any, list]:
        ends = keras.tree.flatten(model(data, training=False))
        return ends, [layer.run(x) for layer, x in zip(layers, fed, strict=True)]

    for data in track(batches(model, x, batch_size=CHUNK), total, "batch"):
        probe.run(data)
        simulated, outputs = simulate(data, [layer.fed() for layer in layers])
        for layer, y in zip(layers, outputs, strict=True):
            layer.check(y.numpy())
        for y, z, step in zip((y.numpy() for y in simulated), probe.outputs(), steps, strict=True):
            ends.add((y - z) / step)
            if y.ndim > 1:
                agreements.append(y.argmax(-1).ravel() == z.argmax(-1).ravel())
    return Report(
        layers=tuple(layer.report() for layer in layers),
        max_lsb=ends.largest,
        exact=ends.equal / ends.values,
        within_one_lsb=ends.close / ends.values,
        argmax_agreement=float(np.mean(np.concatenate(agreements))) if agreements else 1.0,
        samples=probe.samples,
        kernels=lite.kernels,
    )


def _layers(model: keras.Model, probe: "_Probe") -> list["_Layer"]:
    """The layers whose outputs are tensors of the integer model."""
    computed = [x for x in model.layers if not isinstance(x, keras.layers.InputLayer)]
    missing = [
        layer.name
        for layer in computed
        if isinstance(layer, wrappers.KernelWrapper) and not probe.has(layer.name)
    ]
    if missing:
        raise ValueError(
            f"`lite` must be an export of `model` {model.name!r}. Received: a model without "
            f"its layers {missing}; its own tensors are {sorted(probe.index)}."
        )
    stale = [
        layer.name
        for layer in computed
        if isinstance(layer, wrappers.QuantizeWrapper)
        and probe.has(layer.name)
        and not layer.grid().numpy().equals(probe.grid(layer.name))
    ]
    if stale:
        raise ValueError(
            "`lite` must be an export of `model` as it is now. "
            f"Received: other ranges in layers {stale}. Export the model again."
        )
    return [_Layer(layer, probe) for layer in computed if probe.has(layer.name)]


def _output_steps(model: keras.Model) -> list[np.ndarray]:
    return [
        wrappers.quantized_by(y, model.name).grid().numpy().scale
        for y in keras.tree.flatten(model.outputs)
    ]


class _Probe:
    """The integer model with every computed tensor as an output."""

    def __init__(self, lite: TFLiteModel) -> None:
        content = flatbuffer.read(lite.content)
        graph = content.subgraphs[0]
        self._own = len(graph.outputs)
        computed = [int(i) for op in content.subgraphs[0].operators for i in op.outputs]
        extra = [i for i in computed if i not in graph.outputs]
        inputs = [int(i) for i in graph.inputs]
        graph.outputs = np.array([*graph.outputs, *extra], np.int32)
        content.signatureDefs = []
        self._lite = TFLiteModel(flatbuffer.write(content), lite.num_threads, lite.kernels)
        names = [tensor.name for tensor in self._lite.outputs]
        self.index = {name: i for i, name in enumerate(names)}
        self.ops = {op.outputs[0]: op.name for op in lite.ops}
        self._inputs = {graph.tensors[i].name.decode(): n for n, i in enumerate(inputs)}
        self.samples = 0
        self._values: list[np.ndarray] = []
        self._fed: list[np.ndarray] = []

    def has(self, name: str) -> bool:
        """Whether a layer's output is a tensor of the integer model."""
        return name in self.index

    def grid(self, name: str) -> Grid | None:
        """The grid of a layer's output."""
        return self._lite.outputs[self.index[name]].grid

    def run(self, data: Any) -> None:
        """Runs a batch and keeps the real value of every tensor."""
        fed = self._lite.columns(keras.tree.flatten(data))
        calls = [[y.copy() for y in outputs] for outputs in self._lite.calls(fed)]
        count = len(fed[0])
        self._values = [
            runtime.real(np.concatenate(column)[:count], tensor)
            for column, tensor in zip(zip(*calls, strict=True), self._lite.outputs, strict=True)
        ]
        self._fed = [
            tensor.grid.dequantize(tensor.grid.quantize(x)) if tensor.grid is not None else x
            for x, tensor in zip(fed, self._lite.inputs, strict=True)
        ]
        self.samples += count

    def outputs(self) -> list[np.ndarray]:
        """The real values of the model's own outputs."""
        return self._values[: self._own]

    def value(self, tensor: keras.KerasTensor) -> np.ndarray:
        """The real value that the integer model has for a tensor of the Keras model."""
        layer, inputs = graphs.origin(tensor)
        if layer.name in self.index:
            found = self._values[self.index[layer.name]]
        elif isinstance(layer, keras.layers.InputLayer):
            found = self._fed[self._inputs[layer.name]]
        else:  # A layer that the converter dropped, such as Dropout: what it read.
            found = self.value(inputs[0])
        return found.reshape(-1, *tensor.shape[1:])


class _Layer:
    """One layer's comparison."""

    def __init__(self, layer: keras.Layer, probe: _Probe) -> None:
        self.keras = layer
        self.probe = probe
        self.tally = _Tally()
        self.inputs = graphs.origin(layer.output)[1]
        self.step = wrappers.quantized_by(layer.output, layer.name).grid().numpy().scale

    def fed(self) -> list[np.ndarray]:
        """The integer model's values for the layer's inputs."""
        return [self.probe.value(x) for x in self.inputs]

    def run(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """The simulation of the layer."""
        return self.keras(inputs if len(inputs) > 1 else inputs[0])

    def check(self, y: np.ndarray) -> None:
        """Compares what the layer computed with the batch that the probe ran."""
        self.tally.add((y - self.probe.value(self.keras.output)) / self.step)

    def report(self) -> LayerReport:
        """The result so far."""
        return LayerReport(
            name=self.keras.name,
            op=self.probe.ops[self.keras.name],
            max_lsb=self.tally.largest,
            exact=self.tally.equal / self.tally.values,
            values=self.tally.values,
        )
