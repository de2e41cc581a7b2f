"""The channels of a finished file's tensors: which are constant, which may go, and taking them out.

Channels are the last axis of a tensor.
"""

import collections
import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.litert import flatbuffer


class Network:
    """The tensors of a file, and what is known of their channels.

    Args:
        model: the file, in object form.
        values: by name of a tensor the real values of its channels, `(channels,)`, NaN where they
            differ from place to place.
        limits: what codes of a bias stay below, by bits of the activations, and of weights as they
            are stored.

    Attributes:
        model, graph, values, limits: what was given, and the file's subgraph.
        constant: by tensor, which channels have one value at all places, whatever the input.
        dropped: by tensor, which channels go; to begin with all but those of inputs and outputs.
        has_changed: whether `keep` has kept any since this was set to False.
    """

    def __init__(
        self,
        model: schema.ModelT,
        values: Mapping[str, np.ndarray],
        limits: Mapping[tuple[int, int], float],
    ) -> None:
        self.model, self.graph = model, model.subgraphs[0]
        self.values, self.limits = values, limits
        read = (int(i) for op in self.graph.operators for i in op.inputs)
        self._readers = collections.Counter(self._buffer(i) for i in read if i >= 0)
        self.constant: dict[int, np.ndarray] = {}
        self.dropped: dict[int, np.ndarray] = {}
        self.has_changed = False
        self._ends = {*map(int, self.graph.inputs), *map(int, self.graph.outputs)}
        self._codes: dict[int, np.ndarray] = {}

    def name(self, tensor: int) -> str:
        """The name of a tensor."""
        return self.graph.tensors[tensor].name.decode()

    def shape(self, tensor: int) -> tuple[int, ...]:
        """The shape of a tensor."""
        found = self.graph.tensors[tensor].shape
        return () if found is None else tuple(map(int, found))

    def count(self, tensor: int) -> int:
        """How many channels a tensor has."""
        return [1, *self.shape(tensor)][-1]

    def data(self, tensor: int) -> np.ndarray | None:
        """The values of a constant tensor, None for others and for one that is left out."""
        return None if tensor < 0 else flatbuffer.constant(self.model, self.graph.tensors[tensor])

    def _buffer(self, tensor: int) -> int:
        return int(self.graph.tensors[tensor].buffer)

    def is_shared(self, tensor: int) -> bool:
        """Whether several operators read a constant's codes, maybe on grids of their own."""
        return self._readers[self._buffer(tensor)] > 1

    def zero_point(self, tensor: int) -> int:
        """The code of 0."""
        grid = flatbuffer.grid_of(self.graph.tensors[tensor])
        return 0 if grid is None else int(grid.zero_point)

    def is_constant(self, tensor: int) -> np.ndarray:
        """Which channels of a tensor are constant."""
        if tensor not in self.constant:
            data, count = self.data(tensor), self.count(tensor)
            rows = None if data is None else data.reshape(-1, count)
            found = np.zeros(count, bool) if rows is None else (rows == rows[:1]).all(axis=0)
            self.constant[tensor] = found
        return self.constant[tensor]

    def codes(self, tensor: int) -> np.ndarray:
        """The codes of a tensor's constant channels, float64; NaN where they are not known."""
        if tensor not in self._codes:
            self._codes[tensor] = self._found_codes(tensor)
        return self._codes[tensor]

    def _found_codes(self, tensor: int) -> np.ndarray:
        data, count = self.data(tensor), self.count(tensor)
        if data is not None:
            return data.reshape(-1, count)[0].astype(np.float64)
        grid = flatbuffer.grid_of(self.graph.tensors[tensor])
        real = self.values.get(self.name(tensor))
        if grid is None or real is None or len(real) != count:
            return np.full(count, np.nan)
        return np.rint(real / np.float64(grid.scale)) + float(grid.zero_point)

    def share_codes(self, source: int, copy: int, channels: np.ndarray) -> None:
        """Notes that a tensor is a copy of another one, whose first channels its first ones are.

        The name of a layer such as Conv1D is that of a RESHAPE behind its operator.

        Args:
            source: that other one.
            copy: the tensor.
            channels: which channel of `source` each of its own is made of.
        """
        known, own = self.codes(source), self.codes(copy)
        self._codes[source] = np.where(np.isnan(known), own[: len(known)], known)
        self._codes[copy] = np.where(np.isnan(own), known[channels], own)

    def drops(self, tensor: int) -> np.ndarray:
        """Which channels of a tensor go."""
        if tensor not in self.dropped:
            is_end = tensor in self._ends or self.graph.tensors[tensor].isVariable
            self.dropped[tensor] = np.full(self.count(tensor), not is_end)
        return self.dropped[tensor]

    def keep(self, tensor: int, channels: np.ndarray) -> None:
        """Keeps channels of a tensor, a mask."""
        dropped = self.drops(tensor)
        self.has_changed |= bool((dropped & channels).any())
        dropped &= ~channels

    def known(self, tensor: int) -> np.ndarray:
        """Which channels are constant, at a code that is known."""
        return self.is_constant(tensor) & ~np.isnan(self.codes(tensor))

    def replaced(self, tensor: int, values: np.ndarray, kept: np.ndarray) -> int:
        """A constant with other values: a new tensor, since others may read this one.

        Args:
            tensor: the constant.
            values: its values from now on.
            kept: which of the channels that it has scales for it still has.
        """
        new, buffer = copy.copy(self.graph.tensors[tensor]), schema.BufferT()
        is_packed = new.type == schema.TensorType.INT4
        content = flatbuffer.pack(values) if is_packed else values.tobytes()
        buffer.data = np.frombuffer(content, np.uint8)
        new.shape, new.buffer = np.array(values.shape, np.int32), len(self.model.buffers)
        new.quantization = _with_scales_of(new.quantization, kept)
        self.model.buffers.append(buffer)
        self.graph.tensors.append(new)
        return len(self.graph.tensors) - 1

    def cut(self, tensor: int) -> None:
        """Takes the channels that go out of a tensor."""
        kept, found = ~self.dropped[tensor], self.graph.tensors[tensor]
        if (data := self.data(tensor)) is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data[..., kept].tobytes(), np.uint8)
            found.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        found.shape = np.array([*self.shape(tensor)[:-1], kept.sum()], np.int32)
        if found.shapeSignature is not None and len(found.shapeSignature):
            found.shapeSignature = np.array([*found.shapeSignature[:-1], kept.sum()], np.int32)


def _with_scales_of(parameters: Any, kept: np.ndarray) -> Any:
    """The grid of a constant with the scales of some channels, where it has one for each."""
    if parameters is None or parameters.scale is None or len(parameters.scale) != len(kept):
        return parameters
    cut = copy.copy(parameters)
    cut.scale = np.asarray(parameters.scale)[kept]
    cut.zeroPoint = np.asarray(parameters.zeroPoint)[kept]
    return cut
