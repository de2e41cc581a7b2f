"""What a unit reads and returns, for as many samples as memory is meant to hold."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from kerasq import graph as graphs
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.ptq.data import Data
from kerasq.ptq.frontier import Frontier
from kerasq.ptq.units import Unit

# Bytes that the inputs and outputs of a unit may take, whatever the number of samples.
MEMORY = 2**29
# Of images, convolutions are fitted to windows of so many outputs a side: neighbours say the same.
WINDOW = 16

L = keras.layers
_CONVOLUTIONS = (L.Conv1D, L.Conv2D, L.DepthwiseConv1D, L.DepthwiseConv2D)


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a unit reads and returns.

    Attributes:
        x: by input, `(samples, ...)`, in the quantized network.
        real: by input, in the float network.
        y: by output, in the float network.
        layer: what computes windows, where they are such: the convolution without padding.
    """

    x: list[np.ndarray]
    real: list[np.ndarray]
    y: list[np.ndarray]
    layer: keras.Layer | None = None

    def __len__(self) -> int:
        return len(self.y[0])

    def __getitem__(self, chosen: Any) -> tuple[list[np.ndarray], ...]:
        return tuple([v[chosen] for v in part] for part in (self.x, self.real, self.y))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """Parts of what a convolution reads and returns, on which it needs no padding.

    Attributes:
        layer: the convolution without padding; its weights are set from outside.
        before, after: by axis, the zeros that the convolution pads with.
        stride: by axis.
        size: by axis, the outputs of a window.
        read: by axis, what a window of the inputs has.
    """

    layer: keras.Layer
    before: tuple[int, ...]
    after: tuple[int, ...]
    stride: tuple[int, ...]
    size: tuple[int, ...]
    read: tuple[int, ...]

    def share(self, y: np.ndarray) -> list[float]:
        """By axis, how many windows the outputs are long."""
        return [whole / n for whole, n in zip(y.shape[1:-1], self.size, strict=True)]

    def padded(self, x: np.ndarray) -> np.ndarray:
        """Inputs with the zeros that the convolution pads with."""
        return np.pad(x, [(0, 0), *zip(self.before, self.after, strict=True), (0, 0)])

    def cut(
        self, x: np.ndarray, real: np.ndarray, y: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A window of each sample of two padded inputs and the output, at a random place."""
        found = []
        for one, two, other in zip(x, real, y, strict=True):
            sides = zip(other.shape[:-1], self.size, strict=True)
            starts = [rng.integers(0, whole - size + 1) for whole, size in sides]
            reads = zip(starts, self.stride, self.read, strict=True)
            place = tuple(slice(a * s, a * s + n) for a, s, n in reads)
            outputs = zip(starts, self.size, strict=True)
            found.append(
                (one[place], two[place], other[tuple(slice(a, a + n) for a, n in outputs)])
            )
        x, real, y = (np.stack(part) for part in zip(*found, strict=True))
        return x, real, y


def windows(unit: Unit) -> Windows | None:
    """The windows of a unit that is one convolution on images larger than them; else None."""
    layer = unit.wrappers[0].layer
    sizes = [x.shape[1:-1] for x in (*unit.inputs, *unit.outputs)]
    is_alone = len(unit.nodes) == 1 and type(layer) in _CONVOLUTIONS
    if not is_alone or None in sum(sizes, ()) or max(sizes[1]) <= WINDOW:
        return None
    size = tuple(min(n, WINDOW) for n in sizes[1])
    before, after = _padding(layer, *sizes)
    return Windows(
        layer=_unpadded(unit.wrappers[0], unit.inputs[0].shape),
        before=before,
        after=after,
        stride=tuple(layer.strides),
        size=size,
        read=_reads(layer, size),
    )


def _padding(
    layer: keras.Layer, inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """By axis, the zeros in front of the inputs, and behind them."""
    whole = zip(_reads(layer, outputs), inputs, strict=True)
    lacking = tuple(max(n - own, 0) for n, own in whole)
    # More behind than in front, where they are odd.
    before = lacking if layer.padding == "causal" else tuple(n // 2 for n in lacking)
    return before, tuple(n - b for n, b in zip(lacking, before, strict=True))


def _reads(layer: keras.Layer, outputs: tuple[int, ...]) -> tuple[int, ...]:
    """By axis, the inputs that so many outputs are computed from."""
    sides = zip(outputs, layer.strides, layer.kernel_size, layer.dilation_rate, strict=True)
    return tuple((n - 1) * s + (k - 1) * d + 1 for n, s, k, d in sides)


def _unpadded(wrapper: KernelWrapper, shape: tuple) -> keras.Layer:
    layer = graphs.copy_layer(wrapper.layer, padding="valid")
    layer.build(shape)
    return layer


def collect(
    networks: tuple[Frontier, Frontier],
    units: tuple[Unit, Unit],
    data: Data,
    cuts: Windows | None,
    rng: np.random.Generator,
    memory: int | None = None,
) -> Samples:
    """Runs two networks as far as a unit goes, one batch at a time.

    Args:
        networks: the quantized one, on its integer kernels, and one like it, whose float layers
            give the outputs; from where they have got to.
        units: the unit in either.
        data: what they run on.
        cuts: the windows to keep in the place of whole samples.
        rng: draws them, and the samples where not all fit into memory.
        memory: the bytes that they may take; by default `MEMORY`.
    """

    def values(batch: tuple[list, list]) -> tuple[list[np.ndarray], ...]:
        read = networks[0].values(batch[0], units[0].inputs)
        both = [*units[1].inputs, *units[1].outputs]
        wanted = networks[1].values(batch[1], both)
        real, y = wanted[: len(read)], wanted[len(read) :]
        if cuts is not None:  # Once, for all windows.
            read, real = ([cuts.padded(x) for x in values] for values in (read, real))
        return read, real, y

    def cut(parts: tuple[list[np.ndarray], ...]) -> tuple[list[np.ndarray], ...]:
        if cuts is None:
            return parts
        (x,), (real,), (y,) = parts
        return tuple([v] for v in cuts.cut(x, real, y, rng))

    def some(batch: tuple[list, list], own: Any) -> tuple[list, list]:
        one, two = ([v[own] for v in values] for values in batch)
        return one, two

    def batches() -> Iterator[tuple[list, list]]:
        return zip(*networks, strict=True)

    first = values(some(next(batches()), slice(1)))
    fitting = max(1, (memory or MEMORY) // sum(v.nbytes for v in itertools.chain(*cut(first))))
    # Until most places are in some window.
    wanted = 1 if cuts is None else 2 * math.prod(map(math.ceil, cuts.share(first[-1][0])))
    times = max(1, min(wanted, fitting // data.count))
    chosen = rng.permutation(data.count) < fitting
    found, start = [], 0
    for batch in batches():
        own = chosen[start : start + len(batch[0][0])]
        start += len(own)
        if own.any():
            parts = values(some(batch, own))
            found += [cut(parts) for _ in range(times)]
    x, real, y = (
        [np.concatenate(v) for v in zip(*part, strict=True)] for part in zip(*found, strict=True)
    )
    return Samples(x, real, y, layer=None if cuts is None else cuts.layer)
