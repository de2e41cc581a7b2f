"""The outputs of each side: accuracy where there are labels, agreement and SQNR."""

from typing import Any

import numpy as np

from kerasq.litert.evaluation import keras_metric
from kerasq.reporting.measure import Batch
from kerasq.support.sqnr import Noise

PAIRS = (("float", "simulated"), ("float", "file"), ("simulated", "file"))


class Ends:
    """The outputs of the float network, the simulation and the file, counted batch by batch."""

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}
        self._same = {pair: [0, 0] for pair in PAIRS}
        self._noise: dict[str, list[Noise]] = {}
        self.samples = 0

    def add(self, batch: Batch, labels: Any) -> None:
        """Counts a batch; `labels` is None where there are none."""
        sides = {"float": batch.reference, "simulated": batch.simulated, "file": batch.computed}
        known = {name: ys for name, ys in sides.items() if ys is not None}
        self.samples += len(batch.computed[0])
        for pair in PAIRS:
            if known.keys() >= {*pair}:
                self._agree(pair, known[pair[0]], known[pair[1]])
        if "float" in known:
            self._add_noise(known)
        if labels is not None and len(batch.computed) == 1:
            self._score(known, np.asarray(labels))

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

    def _score(self, known: dict[str, list[np.ndarray]], labels: np.ndarray) -> None:
        for name, ys in known.items():
            if not _are_classes(labels, ys[0]):
                continue
            if name not in self._metrics:
                self._metrics[name] = keras_metric("accuracy", labels, ys[0])
            self._metrics[name].update_state(labels, ys[0])

    def figures(self) -> dict[str, Any]:
        """Accuracy by side, agreement by pair and SQNR by side; {} of what is not known."""
        return {
            "accuracy": {name: float(x.result()) for name, x in self._metrics.items()},
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


def _are_classes(labels: np.ndarray, outputs: np.ndarray) -> bool:
    """Whether labels are classes, of which there is an accuracy."""
    if np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool:
        return labels.size == outputs[..., :1].size or labels.shape == outputs.shape
    # One hot.
    return labels.shape == outputs.shape and bool(np.isin(labels, (0.0, 1.0)).all())
