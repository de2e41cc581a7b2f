"""The samples where float and integer disagree, or differ most, with what each side says."""

import dataclasses
from typing import Any

import numpy as np

from kerasq.reporting.measure import Batch
from kerasq.reporting.png import data_uri, is_image

# So many samples are kept, however many there are.
KEPT = 12
# The most values of an output, and of a sample that is no image.
VALUES = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sample:
    has_classes: bool
    disagrees: bool
    error: float
    index: int
    x: np.ndarray
    label: Any
    outputs: dict[str, np.ndarray]

    @property
    def rank(self) -> tuple[bool, float]:
        return self.disagrees, self.error


class ShownSamples:
    """The samples of the first input and output that differ most."""

    def __init__(self) -> None:
        self._kept: list[_Sample] = []
        self._seen = 0
        self.disagreeing = 0

    def add(self, x: np.ndarray, labels: np.ndarray | None, batch: Batch) -> None:
        """Looks at a batch; of labels None where there are none."""
        if batch.reference is None:
            return
        wanted, found = batch.reference[0], batch.computed[0]
        rows = wanted.reshape(len(wanted), -1), found.reshape(len(found), -1)
        error = np.abs(np.subtract(*rows, dtype=np.float64)).max(1)
        has_classes = wanted.ndim == 2 and wanted.shape[-1] > 1
        differs = rows[0].argmax(1) != rows[1].argmax(1) if has_classes else error < 0
        self.disagreeing += int(differs.sum())
        order = np.lexsort((error, differs))[::-1][:KEPT]
        for i in order:
            one = _Sample(
                has_classes=has_classes,
                disagrees=bool(differs[i]),
                error=float(error[i]),
                index=self._seen + int(i),
                # Copied: a view would keep the whole batch.
                x=np.array(x[i]),
                label=None if labels is None else np.array(labels[i]),
                outputs=_outputs(batch, int(i)),
            )
            self._kept.append(one)
        self._kept = sorted(self._kept, key=lambda one: one.rank, reverse=True)[:KEPT]
        self._seen += len(wanted)

    def figures(self) -> list[dict[str, Any]]:
        """What to show of each, for JSON; none where nothing differs."""
        return [_shown(one) for one in self._kept if one.error > 0]


def _outputs(batch: Batch, i: int) -> dict[str, np.ndarray]:
    sides = {"float": batch.reference, "simulated": batch.simulated, "file": batch.computed}
    return {name: np.array(ys[0][i]) for name, ys in sides.items() if ys is not None}


def _shown(one: _Sample) -> dict[str, Any]:
    found: dict[str, Any] = {
        "index": one.index,
        "has_classes": one.has_classes,
        "disagrees": one.disagrees,
        "error": one.error,
        "outputs": {name: _most(y, one.has_classes) for name, y in one.outputs.items()},
    }
    if one.label is not None:
        label = one.label
        found["label"] = int(label.argmax()) if label.size > 1 else label.item()
    if is_image(one.x.shape):
        found["image"] = data_uri(one.x)
    else:
        found["values"] = one.x.ravel()[: 2 * VALUES].tolist()
    return found


def _most(y: np.ndarray, has_classes: bool) -> list[list[float]]:
    """The greatest values of an output, or the first of one without classes, with their places."""
    y = y.ravel()
    places = (np.argsort(-y, kind="stable") if has_classes else np.arange(y.size))[:VALUES]
    return [[int(i), float(y[i])] for i in places]
