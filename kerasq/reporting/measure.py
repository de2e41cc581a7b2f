"""What every layer computes, batch by batch: the integer model beside the float network."""

import dataclasses
from typing import Any

import keras
import numpy as np

from kerasq import graph, wrappers
from kerasq.comparison.compare import Comparison
from kerasq.comparison.probe import Probe
from kerasq.grid import Grid
from kerasq.litert.runtime import TFLiteModel
from kerasq.reporting.counts import CodeCounts, ValueCounts, some
from kerasq.support.data import batch_spec
from kerasq.support.shared import traced_if_often
from kerasq.support.sqnr import Noise


class LayerValues:
    """The values of a layer, counted batch by batch.

    Attributes:
        name: that of the layer's tensor.
        grid: that of its values; None where it is float.
        own: the noise that the layer adds itself: what the file computes beside the float layer on
            the file's own inputs.
        along: the noise of all layers up to here: what the file computes beside the float network.
        float_counts: a histogram of the float layer's values on the file's inputs.
        code_counts: the codes of the file.
        beyond: how many of the values in that histogram lie more than half a step beyond the range.
        counted: how many there are in it.
        low, high: the least and the greatest of them.
    """

    def __init__(self, name: str, grid: Grid | None) -> None:
        self.name, self.grid = name, grid
        self.own, self.along = Noise(), Noise()
        self.float_counts: ValueCounts | None = None
        self.code_counts = None if grid is None else CodeCounts(grid)
        self.beyond = self.counted = 0
        self.low = self.high = 0.0

    def add_codes(self, codes: np.ndarray) -> None:
        """Counts the codes of a batch."""
        if self.code_counts is not None:
            codes = some(codes)
            # Grids are those of signed codes.
            signed = codes.astype(np.int16) - 128 if codes.dtype == np.uint8 else codes
            self.code_counts.add(signed)

    def add_float(self, x: np.ndarray) -> None:
        """Counts the values of a batch, before they are put on the grid."""
        x = some(x).astype(np.float32, copy=False)  # Labels, for one, are integers.
        if self.float_counts is None:
            self.float_counts = ValueCounts.around(x, self.grid)
        self.float_counts.add(x)
        ends = float(x.min(initial=np.inf)), float(x.max(initial=-np.inf))
        is_first = not self.counted
        self.low = ends[0] if is_first else min(self.low, ends[0])
        self.high = ends[1] if is_first else max(self.high, ends[1])
        self.counted += x.size
        if self.grid is not None:
            half = self.grid.scale / 2
            low, high = self.grid.low - half, self.grid.high + half
            if ends[0] < low or ends[1] > high:
                self.beyond += int(np.count_nonzero((x < low) | (x > high)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """The outputs of a batch, a list for each side.

    Attributes:
        reference: of the float network; None where there is none.
        simulated: of the simulation; None where there is none.
        computed: of the file.
    """

    reference: list[np.ndarray] | None
    simulated: list[np.ndarray] | None
    computed: list[np.ndarray]


class Measurement:
    """The layers of a quantized model and its file.

    Args:
        model: the quantized model.
        lite: its export.
        samples: how many there will be; None where that is not known.

    Attributes:
        comparison: of simulation and file.
        layers: the values of each layer; inputs that the file is fed as codes come first.
        chunk: how many samples a batch should have.
        total: how many batches there are; None where that is not known.

    Raises:
        ValueError: as `kerasq.compare`.
    """

    def __init__(self, model: keras.Model, lite: TFLiteModel, samples: int | None) -> None:
        self.comparison = Comparison(model, lite, samples)
        self.chunk, self.total = self.comparison.chunk, self.comparison.total
        probe = self.comparison.probe
        # The file has no operator for an input that it is fed as codes.
        self._inputs = [
            node
            for node in graph.calls(model)
            if isinstance(node.layer, wrappers.Boundary)
            and node.layer.is_input
            and not probe.has(node.name)
        ]
        grids = [node.layer.grid().numpy() for node in self._inputs]
        self._own = [
            LayerValues(node.name, grid) for node, grid in zip(self._inputs, grids, strict=True)
        ]
        self._compared = [
            LayerValues(x.name, _grid(x.output, probe.grid(x.name))) for x in self.comparison.layers
        ]
        self.layers = [*self._own, *self._compared]
        self._floats = self._float_function(model)

    def _float_function(self, model: keras.Model) -> Any:
        """A function of a batch and the file's values: the float network, and its layers."""
        layers = self.comparison.layers
        wanted = [node.outputs[0] for node in self._inputs] + [x.output for x in layers]

        @traced_if_often(batch_spec(model.input), batch_spec([x.inputs for x in layers]))
        def floats(data: Any, fed: list) -> tuple[list, list, list]:
            found: dict[int, Any] = {}

            def call(node: graph.Node, *args: Any, **kwargs: Any) -> Any:
                y = wrappers.infer_float(node, *args, **kwargs)
                found.update(zip(map(id, node.outputs), keras.tree.flatten(y), strict=True))
                return y

            outputs = graph.run(model, data, call)
            own = [x.run(y, wrappers.infer_float) for x, y in zip(layers, fed, strict=True)]
            return outputs, [found[id(y)] for y in wanted], own

        return floats

    def add(self, data: Any) -> Batch:
        """Runs a batch, as `kerasq.support.data.batches` yields it."""
        self.comparison.add(data)
        probe, layers = self.comparison.probe, self.comparison.layers
        outputs, along, own = self._floats(data, [x.fed() for x in layers])
        split = len(self._own)
        for values, x in zip(self._own, along[:split], strict=True):
            _add_input(values, x.numpy())
        for layer, values, x, y in zip(layers, self._compared, along[split:], own, strict=True):
            # Nothing reads other channels, or they are a constant that it reads as part of a bias.
            found = layer.computed(probe.value(layer.output))
            # The float network has one row of what is the same for all samples: a first state.
            wanted, alone = (
                np.broadcast_to(layer.computed(z.numpy()), found.shape) for z in (x, y)
            )
            values.along.add(wanted, found)
            values.own.add(alone, found)
            values.add_float(alone)
            codes = probe.codes(layer.name).reshape(-1, *layer.output.shape[1:])
            values.add_codes(layer.computed(codes))
        return Batch(
            reference=[y.numpy() for y in outputs],
            simulated=self.comparison.outputs,
            computed=probe.outputs(),
        )


def _grid(output: keras.KerasTensor, stored: Grid | None) -> Grid | None:
    """The grid of a layer: that of the model, which knows how many of its codes are in use."""
    wrapper = wrappers.quantized_by(output)
    if wrapper is None or stored is None:
        return stored
    return wrapper.grid().numpy()


def _add_input(values: LayerValues, x: np.ndarray) -> None:
    """Counts an input of the model, which is put on its grid by whoever feeds it."""
    assert values.grid is not None
    codes = values.grid.quantize(x)
    found = values.grid.dequantize(codes)
    values.along.add(x, found)
    values.own.add(x, found)
    values.add_float(x)
    values.add_codes(codes)


class FileMeasurement:
    """The operators of a file alone: the codes that they compute.

    Attributes:
        layers: the values of each tensor.
        chunk: how many samples a batch should have.
    """

    def __init__(self, lite: TFLiteModel) -> None:
        self._lite, self._probe = lite, Probe(None, lite)
        tensors = {x.name: x for x in lite.tensors}
        self._inputs = [LayerValues(x.name, x.grid) for x in lite.inputs if x.grid is not None]
        # In the order in which they are computed; that of the probe begins with the outputs.
        names = dict.fromkeys(name for op in lite.ops for name in op.outputs)
        self._computed = [
            LayerValues(name, tensors[name].grid) for name in names if self._probe.has(name)
        ]
        self.layers = [*self._inputs, *self._computed]
        self.chunk = 16

    def add(self, data: list[np.ndarray]) -> Batch:
        """Runs a batch: an array for each input."""
        self._probe.run(data)
        columns = self._lite.columns(data)
        by_name = {x.name: x for x in self._inputs}
        for column, tensor in zip(columns, self._lite.inputs, strict=True):
            if tensor.grid is not None:
                values = by_name[tensor.name]
                real = column if tensor.preprocessing is None else tensor.preprocessing(column)
                _add_input(values, np.asarray(real, np.float32))
        for values in self._computed:
            values.add_codes(self._probe.codes(values.name))
        return Batch(reference=None, simulated=None, computed=self._probe.outputs())
