"""Damaged HDF5 files."""

import h5py
import numpy as np
import pytest

from kerasq.support import hdf5


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "weights.h5"
    with h5py.File(found, "w") as file:
        file.attrs["names"] = ["a", "b"]
        file.create_dataset("group/values", data=np.arange(5000.0))
    return found


def test_a_sound_file_is_read_to_its_end(path):
    assert hdf5.check(path) is None


def test_a_damaged_file_is_an_error_in_the_words_of_its_reader(path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"must be sound. Received: OSError: .*truncated file"):
        hdf5.check(path)


@pytest.mark.parametrize(
    ("reader", "fault"),
    [
        ("import time; time.sleep(60)", "one that is not read within 1 s"),
        ("import os; os.abort()", "one that ends its reader with -6"),
    ],
    ids=["hangs", "crashes"],
)
def test_what_does_not_end_is_an_error(path, monkeypatch, reader, fault):
    monkeypatch.setattr(hdf5, "_READ_ALL", reader)
    monkeypatch.setattr(hdf5, "_LEAST", 1.0)
    with pytest.raises(ValueError, match=rf"must be sound. Received: {fault}"):
        hdf5.check(path)
