"""Which tensors of a float model share channels, and which channels can be rescaled."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq import registry
from kerasq.equalization import homogeneous
from kerasq.equalization.links import KERNELS, SEPARABLE, Link, kernel_links, norm_link
from kerasq.prepare import batch_norm

L = keras.layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Channels:
    """The channels of a graph, numbered; what always has one factor has one number.

    Attributes:
        links: the linear maps between them; of a layer that is called more than once, one.
        of: by id of a tensor, the number of each feature of its last axis.
        fixed: by number of a channel that cannot be rescaled, why.
        count: numbers are below it.
    """

    links: list[Link]
    of: dict[int, np.ndarray]
    fixed: dict[int, str]
    count: int


def find(graph: graphs.Graph, keep: Mapping[int, str]) -> Channels:
    """The channels of a graph that was read, not decomposed.

    Args:
        graph: the graph.
        keep: by id of a call whose output is not to be rescaled, why.
    """
    return _Walk(graph, keep).channels()


class _Walk:
    """Numbers for the features of one tensor after another."""

    def __init__(self, graph: graphs.Graph, keep: Mapping[int, str]) -> None:
        self._graph, self._keep = graph, keep
        self._count = 0
        self._links: list[Link] = []
        self._of: dict[int, np.ndarray] = {}
        self._equal: list[tuple[np.ndarray, np.ndarray]] = []
        self._fixed: list[tuple[np.ndarray, str]] = []
        # By layer that has weights, the channels at its ends, which are those of all its calls.
        self._ends: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        folded = batch_norm.foldable(graph)
        self._norms = {key: node.layer for key, node in folded.items()}
        self._folded = {id(node) for node in folded.values()}

    def channels(self) -> Channels:
        """The channels of the whole graph."""
        for x in self._graph.model.inputs:
            self._fix([x], f"input {x.name!r}")
        for node in self._graph.nodes:
            self._visit(node)
        self._fix(self._graph.model.outputs, "output of the model")
        number = _roots(self._count, self._equal)
        fixed: dict[int, str] = {}
        for ids, reason in self._fixed:
            for i in np.unique(number[ids]):
                fixed.setdefault(int(i), reason)
        for link in self._links:
            link.sources, link.targets = number[link.sources], number[link.targets]
        numbers = {key: number[ids] for key, ids in self._of.items()}
        return Channels(links=self._links, of=numbers, fixed=fixed, count=self._count)

    def _visit(self, node: graphs.Node) -> None:
        make = self._handler(node)
        is_known = make is not None and all(map(_is_plain, (*node.inputs, *node.outputs)))
        ids = make(self, node) if make and is_known else None
        is_bent = hasattr(node.layer, "activation") and not homogeneous.ceiling(node.layer)[0]
        name = registry.activation_name(node.layer) if is_bent else type(node.layer).__name__
        reason = self._keep.get(id(node), f"of {node.layer.name!r} ({name})")
        if ids is None:
            self._fix((*node.inputs, *node.outputs), reason)
            return
        self._of[id(node.output)] = ids
        if is_bent or id(node) in self._keep:
            self._fix([node.output], reason)

    def _handler(self, node: graphs.Node) -> Callable[..., Any] | None:
        layer = node.layer
        if getattr(layer, "data_format", None) == "channels_first":
            return None
        found = _HANDLERS.get(homogeneous.kind(layer))
        # Such as Dropout, which leaves no operator behind.
        if found is None and registry.is_dropped(layer):
            found = _Walk._same
        return found

    def _fix(self, tensors: Iterable[keras.KerasTensor], reason: str) -> None:
        """Notes that the channels of tensors cannot be rescaled."""
        for x in tensors:
            if _is_plain(x):
                self._fixed.append((self._numbers(x), reason))

    def _numbers(self, x: keras.KerasTensor) -> np.ndarray:
        """The numbers of a tensor's features, new ones where it has none."""
        if id(x) not in self._of:
            self._of[id(x)] = self._new(x.shape[-1])
        return self._of[id(x)]

    def _new(self, count: int) -> np.ndarray:
        self._count += count
        return np.arange(self._count - count, self._count)

    def _kernel(self, node: graphs.Node) -> np.ndarray | None:
        """A layer with a kernel reads channels and makes others."""
        layer, x = node.layer, self._numbers(node.inputs[0])
        kernel = registry.rule(layer).kernel
        # It is computed from others under LoRA, and where a subclass of Keras's has it so.
        if not isinstance(getattr(layer, str(kernel)), keras.Variable) or len(node.inputs) > 1:
            return None
        ends = self._known(node, x)
        if ends is not None:
            return ends
        y = self._new(node.output.shape[-1])
        between = y
        if type(layer) in SEPARABLE:
            between = self._new(len(x) * layer.depth_multiplier)
        self._links += kernel_links(node, self._norms.get(id(node)), x, between, y)
        self._ends[node.source.weights_of] = x, y
        return y

    def _known(self, node: graphs.Node, x: np.ndarray) -> np.ndarray | None:
        """The channels that a layer made when it was called before, in whose place `x` is."""
        ends = self._ends.get(node.source.weights_of)
        if ends is None:
            return None
        self._equal.append((x, ends[0]))
        return ends[1]

    def _norm(self, node: graphs.Node) -> np.ndarray | None:
        """A BatchNormalization: part of the kernel before it, or a layer of its own."""
        layer, x = node.layer, self._numbers(node.inputs[0])
        if layer.axis not in (-1, len(node.output.shape) - 1):
            return None
        if not layer.scale:
            self._fixed.append((x, f"no gamma in {layer.name!r}"))
        if id(node) in self._folded:
            # What is in front of it is rescaled by it alone: the numbers are those behind it.
            ends = self._known(node, x)
            self._ends.setdefault(node.source.weights_of, (x, x))
            return x if ends is None else ends
        ends = self._known(node, x)
        if ends is not None:
            return ends
        y = self._new(len(x))
        if layer.scale:
            self._links.append(norm_link(node, x, y))
        else:
            self._fixed.append((y, f"no gamma in {layer.name!r}"))
        self._ends[node.source.weights_of] = x, y
        return y

    def _same(self, node: graphs.Node) -> np.ndarray | None:
        """What treats channels alike and apart: pooling, padding with zeros, a ReLU."""
        is_single = len(node.inputs) == 1 and node.inputs[0].shape[-1] == node.output.shape[-1]
        return self._numbers(node.inputs[0]) if is_single else None

    def _activation(self, node: graphs.Node) -> np.ndarray | None:
        return self._same(node) if homogeneous.ceiling(node.layer)[0] else None

    def _all(self, node: graphs.Node) -> np.ndarray | None:
        """What adds tensors, or picks the largest of them: all have one factor a channel."""
        arrays = [self._numbers(x) for x in node.inputs]
        sizes = {node.output.shape[-1], *map(len, arrays)}
        if len(arrays) < 2 or len(sizes) > 1:
            return None
        self._equal += [(arrays[0], x) for x in arrays[1:]]
        return arrays[0]

    def _concatenate(self, node: graphs.Node) -> np.ndarray | None:
        rank = len(node.output.shape)
        if node.layer.axis % rank != rank - 1:
            return self._all(node)
        return np.concatenate([self._numbers(x) for x in node.inputs])

    def _reshape(self, node: graphs.Node) -> np.ndarray | None:
        """Values stay in their order, so that feature j of the last axis is one of j modulo C."""
        x = self._numbers(node.inputs[0])
        size = node.output.shape[-1]
        if size % len(x) == 0:
            return np.tile(x, size // len(x))
        if len(x) % size:
            return None
        parts = x.reshape(-1, size)
        self._equal += [(parts[0], part) for part in parts[1:]]
        return parts[0]

    def _permute(self, node: graphs.Node) -> np.ndarray | None:
        layer, rank = node.layer, len(node.output.shape)
        axes = layer.dims if isinstance(layer, keras.Layer) else layer.axes
        is_last = bool(axes) and axes[-1] % rank == rank - 1
        return self._same(node) if is_last else None

    def _reduce(self, node: graphs.Node) -> np.ndarray | None:
        return self._same(node) if homogeneous.reduces_places(node) else None


def _is_plain(x: keras.KerasTensor) -> bool:
    """Whether a tensor has floats, and a known number of features behind the samples."""
    return len(x.shape) > 1 and x.shape[-1] is not None and "float" in x.dtype


def _roots(count: int, equal: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """For each number the smallest of those that are equal to it."""
    root = np.arange(count)
    while True:
        before = root.copy()
        for first, second in equal:
            least = np.minimum(root[first], root[second])
            # By all that was found to be equal so far, not only by the numbers themselves.
            for ids in (first, second, before[first], before[second]):
                np.minimum.at(root, ids, least)
        root = root[root]
        if (root == before).all():
            return root


# By kind of what is called.
_HANDLERS: dict[Any, Callable[[_Walk, graphs.Node], np.ndarray | None]] = {
    **dict.fromkeys(KERNELS, _Walk._kernel),
    L.BatchNormalization: _Walk._norm,
    **dict.fromkeys(
        (
            *homogeneous.POOLINGS,
            *homogeneous.PADDINGS,
            *homogeneous.MOVES,
            L.Resizing,
            L.CenterCrop,
        ),
        _Walk._same,
    ),
    **dict.fromkeys(homogeneous.ACTIVATIONS, _Walk._activation),
    **dict.fromkeys((L.Add, L.Subtract, L.Average, L.Maximum, L.Minimum), _Walk._all),
    **dict.fromkeys(("Add", "Subtract", "Maximum", "Minimum"), _Walk._all),
    **dict.fromkeys((L.Concatenate, "Concatenate"), _Walk._concatenate),
    **dict.fromkeys(homogeneous.RESHAPES, _Walk._reshape),
    **dict.fromkeys((L.Permute, "Transpose"), _Walk._permute),
    **dict.fromkeys((*homogeneous.REDUCTIONS, "Sum"), _Walk._reduce),
}
