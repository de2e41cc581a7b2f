"""The outputs of each side: accuracy where there are labels, agreement and SQNR."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasq.comparison.accuracy import Accuracy
from kerasq.reporting.measure import Batch
from kerasq.support.sqnr import Noise

PAIRS = (("float", "simulated"), ("float", "file"), ("simulated", "file"))


class Ends:
    """The outputs of the float network, the simulation and the file, counted batch by batch.

    Args:
        outputs: their names, in order.
    """

    def __init__(self, outputs: Sequence[str]) -> None:
        self._several = len(outputs) > 1
        self._accuracy = Accuracy(outputs)
        self._same = {pair: [0, 0] for pair in PAIRS}
        self._noise: dict[str, list[Noise]] = {}
        self.samples = 0

    def add(self, batch: Batch, labels: Any) -> None:
        """Counts a batch; its labels as `accuracy.by_output` takes them."""
        sides = {"float": batch.reference, "simulated": batch.simulated, "file": batch.computed}
        known = {name: ys for name, ys in sides.items() if ys is not None}
        self.samples += len(batch.computed[0])
        for pair in PAIRS:
            if known.keys() >= {*pair}:
                self._agree(pair, known[pair[0]], known[pair[1]])
        if "float" in known:
            self._add_noise(known)
        self._accuracy.add(labels, known)

    def _add_noise(self, known: dict[str, list[np.ndarray]]) -> None:
        for name in [x for x in known if x != "float"]:
            noises = self._noise.setdefault(name, [Noise() for _ in known[name]])
            for noise, wanted, found in zip(noises, known["float"], known[name], strict=True):
                # Labels are equal or not.
                if np.issubdtype(wanted.dtype, np.floating):
                    noise.add(wanted, found)

    def _agree(self, pair: tuple[str, str], one: list[np.ndarray], other: list[np.ndarray]) -> None:
        for y, z in zip(one, other, strict=True):
            if np.issubdtype(y.dtype, np.floating) and y.ndim > 1 and y.shape[-1] > 1:
                y, z = y.argmax(-1), z.argmax(-1)
            elif np.issubdtype(y.dtype, np.floating):
                continue  # One value a sample has no argmax.
            self._same[pair][0] += int(np.count_nonzero(y == z))
            self._same[pair][1] += y.size

    def figures(self) -> dict[str, Any]:
        """Accuracy by side, agreement by pair and SQNR by side; {} of what is not known.

        Of several outputs there is no one accuracy, but that of each.
        """
        found = self._accuracy.result()
        return {
            "accuracy": {} if self._several else next(iter(found.values()), {}),
            "accuracy_by_output": found if self._several else {},
            "agreement": {
                f"{one} {other}": same / total
                for (one, other), (same, total) in self._same.items()
                if total
            },
            # Of several outputs the least.
            "sqnr": {
                name: min(known)
                for name, noises in self._noise.items()
                if (known := [x.sqnr for x in noises if x.sqnr is not None])
            },
        }
