"""Which samples are shown, however many there are."""

import numpy as np

from kerasq.reporting.measure import Batch
from kerasq.reporting.shown_samples import KEPT, ShownSamples


def batch(wanted, found):
    return Batch(reference=[wanted], simulated=[found], computed=[found])


def test_those_that_disagree_come_first_and_no_batch_is_kept():
    rng = np.random.default_rng(0)
    shown, error, differs = ShownSamples(), [], []
    for _ in range(5):
        wanted = rng.normal(size=(20, 3)).astype(np.float32)
        found = wanted + rng.normal(scale=0.2, size=(20, 3)).astype(np.float32)
        shown.add(rng.normal(size=(20, 4)), np.arange(20), batch(wanted, found))
        error += np.abs(wanted - found).max(1).tolist()
        differs += (wanted.argmax(1) != found.argmax(1)).tolist()
    figures = shown.figures()
    order = sorted(range(100), key=lambda i: (differs[i], error[i]), reverse=True)
    assert [x["index"] for x in figures] == order[:KEPT]
    assert [x["label"] for x in figures] == [i % 20 for i in order[:KEPT]]
    assert shown.disagreeing == sum(differs) > 0 and figures[0]["has_classes"]
    kept = [x for x in vars(shown).values() if isinstance(x, list)]
    assert len(kept) == 1 and len(kept[0]) == KEPT
    assert all(one.x.base is None and one.outputs["file"].base is None for one in kept[0])


def test_equal_samples_are_not_shown():
    shown, y = ShownSamples(), np.eye(3, dtype=np.float32)
    shown.add(np.zeros((3, 2)), None, batch(y, y))
    assert shown.figures() == [] and shown.disagreeing == 0


def test_outputs_that_are_no_classes_do_not_disagree():
    shown = ShownSamples()
    shown.add(np.zeros((2, 2)), None, batch(np.zeros((2, 1)), np.ones((2, 1))))
    first, _ = shown.figures()
    assert not first["has_classes"]
    assert not first["disagrees"] and first["error"] == 1 and "label" not in first
    assert first["values"] == [0, 0] and first["outputs"]["file"] == [[0, 1.0]]
