"""Labels in files, beside the samples that they belong to."""

import numpy as np
import pytest

from kerasq.support.samples import load_labels, load_samples


def test_labels_are_those_of_the_samples_that_are_taken(tmp_path):
    x, y = np.arange(30.0).reshape(10, 3), np.arange(10)
    np.savez(tmp_path / "both.npz", x=x, y=y)
    np.save(tmp_path / "y.npy", y)
    taken = load_samples(tmp_path / "both.npz", {"x": (None, 3)}, 4)
    for name in ("both.npz", "y.npy"):
        np.testing.assert_array_equal(load_labels(tmp_path / name, 4), taken[:, 0] / 3)
    np.savez(tmp_path / "several.npz", one=y, two=-y)
    found = load_labels(tmp_path / "several.npz", 4, ["two", "one", "three"])
    assert [*found] == ["two", "one"]
    np.testing.assert_array_equal(found["two"], -taken[:, 0] / 3)


def test_a_file_must_hold_labels(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(2), b=np.zeros(2))
    with pytest.raises(ValueError, match=r"must hold an array 'y', or one alone.*\['a', 'b'\]"):
        load_labels(tmp_path / "other.npz", 2)
