"""Labels in files, beside the samples that they belong to."""

import numpy as np
import pytest

from kerasq.support.samples import has_labels, load_labels, load_samples


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


def test_labels_beside_samples_are_found(tmp_path):
    np.savez(tmp_path / "both.npz", x=np.zeros(2), y=np.zeros(2))
    np.savez(tmp_path / "x.npz", np.zeros(2))
    np.save(tmp_path / "x.npy", np.zeros(2))
    found = [has_labels(tmp_path / name, ["x"]) for name in ("both.npz", "x.npz", "x.npy", "")]
    assert found == [True, False, False, False]
    # Of a model that reads it, y is an input.
    assert not has_labels(tmp_path / "both.npz", ["x", "y"])


def test_what_is_not_read_is_named(tmp_path):
    inputs = {"x": (None, 2, 2, 3)}
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "garbage.npz").write_bytes(b"garbage")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez_compressed(tmp_path / "broken.npz", x=np.arange(999) ** 2)
    content = bytearray((tmp_path / "broken.npz").read_bytes())
    content[400:420] = b"\xff" * 20
    (tmp_path / "broken.npz").write_bytes(content)
    for name in ("objects.npy", "garbage.npz", "empty.npy", "broken.npz"):
        with pytest.raises(ValueError, match=f"as numpy.save writes them. Received: .*{name}"):
            load_samples(tmp_path / name, inputs, 2)
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "complex.npy", np.ones((1, 2, 2, 3), np.complex64))
    for name in ("text", "complex"):
        for load in (load_samples, lambda path, _, count: load_labels(path, count)):
            with pytest.raises(ValueError, match=f"must hold real numbers.*{name}.npy with"):
                load(tmp_path / f"{name}.npy", inputs, 2)
    # What is not asked for may be of any kind.
    np.savez(tmp_path / "named.npz", x=np.ones((1, 2)), names=np.array(["a"]))
    assert load_samples(tmp_path / "named.npz", {"x": (None, 2)}, 2).shape == (1, 2)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"garbage")
    with pytest.raises(ValueError, match=r"that Pillow reads. Received: .*a\.png"):
        load_samples(tmp_path / "images", inputs, 2)
    with pytest.raises(
        FileNotFoundError, match=r"must be a file or a folder that exists. Received: .*nowhere"
    ):
        load_samples(tmp_path / "nowhere", inputs, 2)


def test_a_file_must_hold_labels(tmp_path):
    np.savez(tmp_path / "other.npz", a=np.zeros(2), b=np.zeros(2))
    with pytest.raises(ValueError, match=r"must hold an array 'y', or one alone.*\['a', 'b'\]"):
        load_labels(tmp_path / "other.npz", 2)
