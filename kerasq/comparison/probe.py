"""`Probe`: the integer model, opened up, so that the value of every layer can be read."""

import math
from typing import Any

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq import registry
from kerasq.grid import Grid
from kerasq.litert import flatbuffer, removed, values
from kerasq.litert.removed import KEPT
from kerasq.litert.runtime import TFLiteModel


class Probe:
    """The integer model with every tensor that a layer computes as an output.

    Args:
        model: the quantized Keras model, whose layers are looked for; None for all tensors.
        lite: its export.

    Attributes:
        index: by name of a layer's output, its place among the outputs.
        ops: by name of a tensor, the operator that computes it.
        samples: how many samples have been run.
        kernels: the kernels that it runs on.
    """

    def __init__(self, model: keras.Model | None, lite: TFLiteModel) -> None:
        self._inputs = [graphs.origin(x)[0].name for x in model.inputs] if model else []
        self._own = len(lite.outputs)
        calls = graphs.calls(model) if model else []
        names = {graphs.tensor_name(y) for node in calls for y in node.outputs}
        content = flatbuffer.with_outputs(lite.content, names if model else None)
        self._lite = lite.reloaded(content)
        self.index = {tensor.name: i for i, tensor in enumerate(self._lite.outputs)}
        self.ops = {name: op.name for op in lite.ops for name in op.outputs}
        self.samples, self.kernels = 0, lite.kernels
        self._removed = _lacking(model, lite)
        self._codes: list[np.ndarray] = []
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
        calls = list(self._lite.calls(fed))
        count = len(fed[0])
        # The last call was filled up to the file's batch size.
        columns = [np.concatenate(column)[:count] for column in zip(*calls, strict=True)]
        self._codes = [
            self._filled(codes, tensor.name)
            for codes, tensor in zip(columns, self._lite.outputs, strict=True)
        ]
        self._values = [
            values.real(codes, tensor)
            for codes, tensor in zip(self._codes, self._lite.outputs, strict=True)
        ]
        # Layers that read an input compute on the values of its codes. What is computed in front of
        # its grid is a layer of the model, which reads the input as it is.
        self._fed = [
            x
            if tensor.grid is None or tensor.preprocessing is not None
            else values.real(self._lite.codes(x, tensor), tensor)
            for x, tensor in zip(fed, self._lite.inputs, strict=True)
        ]
        self.samples += count

    def _filled(self, codes: np.ndarray, name: str) -> np.ndarray:
        """The codes of a tensor with those of channels that the file lacks in their places."""
        return removed.filled(codes, self._removed[name]) if name in self._removed else codes

    def kept(self, tensor: keras.KerasTensor) -> np.ndarray | None:
        """Which values of a sample the file computes of a layer's output; None where all."""
        name = graphs.tensor_name(tensor)
        if name not in self._removed:
            return None
        shape, kept = self._lite.outputs[self.index[name]].shape, self._removed[name] == KEPT
        return np.broadcast_to(kept, (*shape[1:-1], len(kept))).reshape(tensor.shape[1:])

    def outputs(self) -> list[np.ndarray]:
        """The real values of the model's own outputs."""
        return self._values[: self._own]

    def codes(self, name: str) -> np.ndarray:
        """The integers, or floats, of a layer's output as they are in the file."""
        return self._codes[self.index[name]]

    def knows(self, tensor: keras.KerasTensor) -> bool:
        """Whether the integer model has a value for a tensor of the Keras model."""
        layer, inputs = graphs.origin(tensor)
        if self.has(graphs.tensor_name(tensor)) or isinstance(layer, keras.layers.InputLayer):
            return True
        # Dropped, it is what it reads; or its reader, which nothing tells.
        return (
            registry.passes_through(layer)
            and None not in (*tensor.shape[1:], *inputs[0].shape[1:])
            and math.prod(tensor.shape[1:]) == math.prod(inputs[0].shape[1:])
            and self.knows(inputs[0])
        )

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


def _lacking(model: keras.Model | None, lite: TFLiteModel) -> dict[str, np.ndarray]:
    """By tensor the channels that a model has and its file lacks; without the model, none."""
    return {} if model is None else lite.removed_channels
