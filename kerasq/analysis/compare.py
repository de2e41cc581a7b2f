"""`compare`: the simulation against the integer kernels, layer by layer and end to end."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph as graphs
from kerasq import registry, wrappers
from kerasq.grid import Grid
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.litert import flatbuffer, values
from kerasq.litert.runtime import TFLiteModel
from kerasq.support import tables
from kerasq.support.data import batch_spec, batches, sample_count
from kerasq.support.progress import track

CHUNK = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerReport:
    """One layer, fed the integer model's own inputs.

    Attributes:
        name: the layer's name.
        op: the operator that computes it.
        dtype: "int8", "int16", or "float32" for a layer that stays float.
        max_lsb: the largest difference, in steps of the output's grid; None for a float layer.
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
    """

    layers: tuple[LayerReport, ...]
    max_lsb: int | None
    exact: float | None
    within_one_lsb: float | None
    max_error: float
    argmax_agreement: float
    samples: int
    kernels: str

    def __str__(self) -> str:
        rows = [["layer", "operator", "type", "max LSB", "exact", "max error"]]
        rows += [
            [x.name, x.op, x.dtype, _count(x.max_lsb), _percent(x.exact), f"{x.max_error:.3g}"]
            for x in self.layers
        ]
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
        return f"{tables.plain(rows, left=3)}\n\n{end}"


def _count(steps: int | None) -> str:
    return "-" if steps is None else str(steps)


def _percent(share: float | None) -> str:
    """Percent, never rounded up to 100 %."""
    return "-" if share is None else f"{np.floor(share * 1e5) / 1e3:.3f} %"


@dataclasses.dataclass
class _Tally:
    """Differences counted so far."""

    values: int = 0
    counted: int = 0
    equal: int = 0
    close: int = 0
    largest: int = 0
    error: float = 0.0

    def add(self, difference: np.ndarray, step: np.ndarray | None) -> None:
        """Counts differences in real units of values on a grid, or of float values."""
        self.values += difference.size
        self.error = max(self.error, float(np.abs(difference).max(initial=0.0)))
        if step is None:
            return
        steps = np.abs(np.rint(difference / step)).astype(np.int64)
        self.counted += steps.size
        self.equal += int((steps == 0).sum())
        self.close += int((steps <= 1).sum())
        self.largest = max(self.largest, int(steps.max(initial=0)))

    @property
    def max_lsb(self) -> int | None:
        """The largest difference in steps."""
        return self.largest if self.counted else None

    def share(self, count: int) -> float | None:
        """A share of the values that lie on a grid."""
        return count / self.counted if self.counted else None


def compare(model: keras.Model, lite: TFLiteModel, *, x: Any) -> Report:
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
    probe = _Probe(model, lite)
    layers = _layers(model, probe)
    ends, agreements = _Tally(), []
    steps = [_step(y) for y in keras.tree.flatten(model.outputs)]
    samples = sample_count(model, x)
    total = None if samples is None else -(-samples // CHUNK)

    signature = [batch_spec(model.input), batch_spec([layer.inputs for layer in layers])]

    @tf.function(input_signature=signature, autograph=False)
    def simulate(data: Any, fed: list) -> tuple[Any, list]:
        ends = keras.tree.flatten(model(data, training=False))
        return ends, [layer.run(x) for layer, x in zip(layers, fed, strict=True)]

    for data in track(batches(model, x, batch_size=CHUNK), total, "batch"):
        probe.run(data)
        simulated, outputs = simulate(data, [layer.fed() for layer in layers])
        for layer, y in zip(layers, outputs, strict=True):
            layer.check(y.numpy())
        for y, z, step in zip((y.numpy() for y in simulated), probe.outputs(), steps, strict=True):
            ends.add(y - z, step)
            if y.ndim > 1:
                agreements.append(y.argmax(-1).ravel() == z.argmax(-1).ravel())
    return Report(
        layers=tuple(layer.report() for layer in layers),
        max_lsb=ends.max_lsb,
        exact=ends.share(ends.equal),
        within_one_lsb=ends.share(ends.close),
        max_error=ends.error,
        argmax_agreement=float(np.mean(np.concatenate(agreements))) if agreements else 1.0,
        samples=probe.samples,
        kernels=lite.kernels,
    )


def _layers(model: keras.Model, probe: "_Probe") -> list["_Layer"]:
    """The layers whose outputs are tensors of the integer model."""
    computed = graphs.calls(model)
    missing = [
        node.name
        for node in computed
        if isinstance(node.layer, KernelWrapper) and not probe.has(node.name)
    ]
    if missing:
        raise ValueError(
            f"`lite` must be an export of `model` {model.name!r}. Received: a model without "
            f"its layers {missing}; its own tensors are {sorted(probe.index)}."
        )
    stale = [
        node.name
        for node in computed
        if isinstance(node.layer, wrappers.QuantizeWrapper)
        and probe.has(node.name)
        and not _stored(node.layer.grid()).equals(probe.grid(node.name))
    ]
    if stale:
        raise ValueError(
            "`lite` must be an export of `model` as it is now. "
            f"Received: other ranges in layers {stale}. Export the model again."
        )
    return [
        _Layer(node, y, probe)
        for node in computed
        for y in node.outputs
        if probe.has(graphs.tensor_name(y))
    ]


def _stored(grid: Grid) -> Grid:
    """What the file says of a grid: not how many of its codes are in use."""
    return dataclasses.replace(grid.numpy(), levels=None)


def _step(tensor: keras.KerasTensor) -> np.ndarray | None:
    """The step of the grid that a tensor lies on; None where it is float."""
    wrapper = wrappers.quantized_by(tensor)
    return None if wrapper is None else wrapper.grid().numpy().scale


class _Probe:
    """The integer model with every computed tensor as an output."""

    def __init__(self, model: keras.Model, lite: TFLiteModel) -> None:
        self._inputs = [graphs.origin(x)[0].name for x in model.inputs]
        content = flatbuffer.read(lite.content)
        graph = content.subgraphs[0]
        self._own = len(graph.outputs)
        known = {graphs.tensor_name(y) for node in graphs.calls(model) for y in node.outputs}
        computed = [int(i) for op in graph.operators for i in op.outputs]
        computed = [i for i in computed if graph.tensors[i].name.decode() in known]
        extra = [i for i in computed if i not in graph.outputs]
        graph.outputs = np.array([*graph.outputs, *extra], np.int32)
        content.signatureDefs = []
        self._lite = TFLiteModel(flatbuffer.write(content), lite.num_threads, kernels=lite.kernels)
        names = [tensor.name for tensor in self._lite.outputs]
        self.index = {name: i for i, name in enumerate(names)}
        self.ops = {name: op.name for op in lite.ops for name in op.outputs}
        self.samples = 0
        self._values: list[np.ndarray] = []
        self._fed: list[np.ndarray] = []

    def has(self, name: str) -> bool:
        """Whether a layer's output is a tensor of the integer model."""
        return name in self.index

    def grid(self, name: str) -> Grid | None:
        """The grid of a layer's output."""
        return self._lite.outputs[self.index[name]].grid

    def dtype(self, name: str) -> str:
        """The type of a layer's output."""
        return self._lite.outputs[self.index[name]].dtype.name

    def run(self, data: Any) -> None:
        """Runs a batch and keeps the real value of every tensor."""
        fed = self._lite.columns(keras.tree.flatten(data))
        calls = [[y.copy() for y in outputs] for outputs in self._lite.calls(fed)]
        count = len(fed[0])
        self._values = [
            values.real(np.concatenate(column)[:count], tensor)
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

    def knows(self, tensor: keras.KerasTensor) -> bool:
        """Whether the integer model has a value for a tensor of the Keras model."""
        layer, inputs = graphs.origin(tensor)
        if self.has(graphs.tensor_name(tensor)) or isinstance(layer, keras.layers.InputLayer):
            return True
        return registry.copies(layer) and self.knows(inputs[0])

    def value(self, tensor: keras.KerasTensor) -> np.ndarray:
        """The real value that the integer model has for a tensor of the Keras model."""
        layer, inputs = graphs.origin(tensor)
        name = graphs.tensor_name(tensor)
        if self.has(name):
            found = self._values[self.index[name]]
        elif isinstance(layer, keras.layers.InputLayer):
            found = self._fed[self._inputs.index(layer.name)]
        else:  # A layer that the converter dropped, such as Dropout: what it read.
            found = self.value(inputs[0])
        return found.reshape(-1, *tensor.shape[1:])


class _Layer:
    """The comparison of one output of a call."""

    def __init__(self, node: graphs.Node, output: keras.KerasTensor, probe: _Probe) -> None:
        self.node = node
        self.output = output
        self.name = graphs.tensor_name(output)
        self.probe = probe
        self.tally = _Tally()
        self.inputs = self._known(node.inputs)
        self.step = _step(output)

    def _known(self, tensors: list[keras.KerasTensor]) -> list[keras.KerasTensor]:
        """The tensors, or what those that the converter fused away are computed from."""
        found: list[keras.KerasTensor] = []
        for x in tensors:
            found += [x] if self.probe.knows(x) else self._known(graphs.origin(x)[1])
        return list({id(x): x for x in found}.values())

    def fed(self) -> list[np.ndarray]:
        """The integer model's values for the layer's inputs."""
        return [self.probe.value(x) for x in self.inputs]

    def run(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """The simulation of the layer, and of those that were fused into it."""
        values = {id(x): y for x, y in zip(self.inputs, inputs, strict=True)}

        def run(node: graphs.Node) -> None:
            for x in node.inputs:
                if id(x) not in values:
                    run(graphs.call_of(x))
            graphs.compute(
                node,
                values,
                lambda node, *args, **kwargs: graphs.infer(node.layer, *args, **kwargs),
            )

        run(self.node)
        return values[id(self.output)]

    def check(self, y: np.ndarray) -> None:
        """Compares what the layer computed with the batch that the probe ran."""
        self.tally.add(y - self.probe.value(self.output), self.step)

    def report(self) -> LayerReport:
        """The result so far."""
        return LayerReport(
            name=self.name,
            op=self.probe.ops[self.name],
            dtype=self.probe.dtype(self.name),
            max_lsb=self.tally.max_lsb,
            exact=self.tally.share(self.tally.equal),
            max_error=self.tally.error,
            values=self.tally.values,
        )
