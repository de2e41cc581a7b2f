"""A quantized network beside its float one, unit by unit: how methods go that change weights."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from kerasq.kernel_wrapper import KernelWrapper
from kerasq.ptq import reference, samples
from kerasq.ptq.data import Data
from kerasq.ptq.frontier import Frontier
from kerasq.ptq.units import Unit, calls_of_kernels
from kerasq.retargeting import retarget
from kerasq.support.progress import track
from kerasq.wrappers import infer, infer_float, target_of


class Walk:
    """Goes through a model from its inputs to its outputs.

    Args:
        model: what `quantize_model` returned, calibrated; its weights change on the way.
        data: as for `kerasq.calibrate`.
        steps: the most batches, or None for all.
        find: the units.
        is_legal: whether a method can do something about a layer.
        shared: whether it can about one that is called more than once.
        memory: the bytes that what a unit reads and returns may take; by default
            `kerasq.ptq.samples.MEMORY`.

    Attributes:
        legal: by name, the layers that it can do something about, by their first call.
        left: the names of the others that have kernels.
        calls: by name of such a layer, the units of all its calls, where each has a unit.
        samples: how many there are.

    Raises:
        ValueError: for a model without a float network to compare with, and data that `calibrate`
            refuses.
    """

    def __init__(
        self,
        model: keras.Model,
        data: Any,
        steps: int | None,
        find: Callable[[keras.Model], list[Unit]],
        is_legal: Callable[[KernelWrapper], bool],
        *,
        shared: bool = False,
        memory: int | None = None,
    ) -> None:
        reference.check(model)
        self._data, self._memory = Data(model, data, steps), memory
        calls = calls_of_kernels(model)
        self.legal = {
            name: own[0]
            for name, own in calls.items()
            if (shared or len(own) == 1) and is_legal(own[0])
        }
        self.left = tuple(name for name in calls if name not in self.legal)
        # Weights change on the way, those of the float network do not.
        plain = retarget(model, target_of(model))
        quantized = Frontier(model, self._data, infer)
        self._frontiers = quantized, Frontier(plain, self._data, infer_float)
        pairs = [*zip(find(model), find(plain), strict=True)]
        self._pairs = [pair for pair in pairs if self.layers(pair[0])]
        self.calls = _by_leader(pairs)
        self.samples = self._data.count

    def layers(self, unit: Unit) -> list[KernelWrapper]:
        """The layers of a unit that are legal."""
        return [layer for layer in unit.wrappers if layer.name in self.legal]

    def __iter__(self) -> Iterator[tuple[Unit, Unit]]:
        """The units that have such layers, in either network, under a progress bar."""
        return track(self._pairs, len(self._pairs), "unit")

    def seen(self, pair: tuple[Unit, Unit], seed: int) -> samples.Samples:
        """What a unit reads, and is to return. All units in front of it are done."""
        for frontier, unit in zip(self._frontiers, pair, strict=True):
            frontier.advance(unit.before)
        return self.foreseen(pair, seed)

    def foreseen(self, pair: tuple[Unit, Unit], seed: int) -> samples.Samples:
        """The same of a unit in front of which others are yet to be done."""
        cuts, rng = samples.windows(pair[0]), np.random.default_rng(seed)
        return samples.collect(self._frontiers, pair, self._data, cuts, rng, self._memory)


def _by_leader(pairs: list[tuple[Unit, Unit]]) -> dict[str, list[tuple[Unit, Unit]]]:
    """The units by the first call of their last layer."""
    found: dict[str, list[tuple[Unit, Unit]]] = {}
    for pair in pairs:
        last = pair[0].wrappers[-1]
        found.setdefault((last.leader or last).name, []).append(pair)
    return found
