import zipfile

import keras
import numpy as np
import pytest
from PIL import Image

from recipes import datasets


def write_images(root, split="train", classes=("cat", "dog"), count=3, size=(6, 5), mode="RGB"):
    rng = np.random.default_rng(0)
    for label, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for i in range(count):
            shape = size if mode == "L" else (*size, 3)
            pixels = rng.integers(0, 100, shape, dtype="uint8") + np.uint8(100 * label)
            Image.fromarray(pixels).save(root / split / name / f"{i}.png")


def write_npz(path, **changes):
    arrays = {
        "x_train": np.arange(4 * 6, dtype="uint8").reshape(4, 3, 2),
        "y_train": np.array([[0], [1], [2], [1]]),
        "x_test": np.zeros((2, 3, 2), "uint8"),
        "y_test": np.array([[0], [1]]),
    } | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def test_digits_are_pixels_in_ten_classes_and_split_alike_each_time():
    first, second = datasets.load("digits"), datasets.load("digits")
    assert first.image_shape == (8, 8, 1) and first.classes == 10
    assert len(first.train.x) == 1297 and len(first.test.x) == 500
    assert first.train.x.dtype == np.uint8 and first.train.x.max() == 255
    np.testing.assert_array_equal(first.test.x, second.test.x)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1)])
def test_image_folder_reads_pixels_and_labels_by_folder(tmp_path, mode, channels):
    write_images(tmp_path, "train", mode=mode)
    write_images(tmp_path, "test", count=1, mode=mode)
    data = datasets.load("image_folder", tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.train.x.shape == (6, 6, 5, channels) and data.train.x.dtype == np.uint8
    np.testing.assert_array_equal(data.train.y, [0, 0, 0, 1, 1, 1])
    expected = np.asarray(Image.open(tmp_path / "train/dog/1.png")).reshape(6, 5, channels)
    np.testing.assert_array_equal(data.train.x[4], expected)


def test_one_colour_image_makes_all_of_them_colour(tmp_path):
    write_images(tmp_path, "train", mode="L")
    write_images(tmp_path, "test", count=1, mode="L")
    Image.new("RGB", (5, 6), (200, 30, 10)).save(tmp_path / "test/dog/0.png")
    data = datasets.load("image_folder", tmp_path)
    assert data.train.x.shape == (6, 6, 5, 3)
    np.testing.assert_array_equal(data.train.x[..., 0], data.train.x[..., 2])
    np.testing.assert_array_equal(data.test.x[1], np.full((6, 5, 3), (200, 30, 10)))


def test_npz_adds_the_channel_axis_and_flattens_labels(tmp_path):
    write_npz(tmp_path / "d.npz")
    data = datasets.load("npz", tmp_path / "d.npz")
    assert data.image_shape == (3, 2, 1) and data.classes == 3
    np.testing.assert_array_equal(data.train.y, [0, 1, 2, 1])
    np.testing.assert_array_equal(data.train.x.ravel(), np.arange(24))


def test_unknown_name_lists_the_legal_ones():
    with pytest.raises(ValueError, match=r"must be one of digits, mnist.*dataset='imagenet'"):
        datasets.load("imagenet")


@pytest.mark.parametrize("name", ["image_folder", "npz"])
def test_missing_data_dir(name, tmp_path):
    with pytest.raises(ValueError, match=r"needs `data_dir`.*data_dir=None"):
        datasets.load(name)
    with pytest.raises(FileNotFoundError, match=r"nowhere.*does not exist\. Check the spelling"):
        datasets.load(name, tmp_path / "nowhere")


def test_failed_download_names_the_way_out(monkeypatch):
    def load_data():
        raise Exception("URL fetch failure: no network")

    monkeypatch.setattr(keras.datasets.cifar10, "load_data", load_data)
    with pytest.raises(OSError, match=r"URL fetch failure.*dataset='npz' or dataset='image_f"):
        datasets.load("cifar10")


def test_folder_without_splits_or_classes(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must have the sub-folders.*without train/"):
        datasets.load("image_folder", tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"one sub-folder for each class.*Move the images"):
        datasets.load("image_folder", tmp_path)


def test_splits_with_different_classes(tmp_path):
    write_images(tmp_path, "train")
    write_images(tmp_path, "test", classes=("cat", "cow"))
    with pytest.raises(ValueError, match=r"same class sub-folders.*cat, dog and cat, cow"):
        datasets.load("image_folder", tmp_path)


def test_class_without_images(tmp_path):
    write_images(tmp_path, "train")
    write_images(tmp_path, "test", count=0)
    with pytest.raises(ValueError, match=r"must hold images.*cat without any"):
        datasets.load("image_folder", tmp_path)


def test_images_of_two_sizes(tmp_path):
    write_images(tmp_path, "train")
    write_images(tmp_path, "test")
    Image.new("RGB", (9, 9)).save(tmp_path / "train/dog/0.png")
    with pytest.raises(ValueError, match=r"must have one size.*dog/0\.png.*Give --image"):
        datasets.load("image_folder", tmp_path)
    data = datasets.load("image_folder", tmp_path, size=6)
    assert data.image_shape == (6, 6, 3) and data.train.x.dtype == np.uint8


def test_arrays_are_smoothed_where_they_shrink(tmp_path):
    stripes = np.tile(np.array([0, 255], "uint8"), (5, 8, 4))
    labels = np.zeros(5, int)
    np.savez(tmp_path / "d.npz", x_train=stripes, y_train=labels, x_test=stripes, y_test=labels)
    data = datasets.load("npz", tmp_path / "d.npz", size=2)
    assert data.image_shape == (2, 2, 1)
    np.testing.assert_allclose(data.train.x, 127.5, atol=32)


def test_changed_data_have_another_digest(tmp_path):
    write_images(tmp_path, "train")
    before = datasets.digest("image_folder", tmp_path)
    assert before == datasets.digest("image_folder", tmp_path)
    write_images(tmp_path, "test")
    assert before != datasets.digest("image_folder", tmp_path)
    found = []
    for label in (0, 1):
        np.savez(tmp_path / "d.npz", y_train=np.array([label]))
        found.append(datasets.digest("npz", tmp_path / "d.npz"))
    assert found[0] != found[1] and datasets.digest("digits", None) == ""


@pytest.mark.parametrize("kept", [0, 60])
def test_unreadable_image(tmp_path, kept):
    write_images(tmp_path, "train")
    write_images(tmp_path, "test")
    file = tmp_path / "train/cat/1.png"
    file.write_bytes(file.read_bytes()[:kept] or b"not an image")
    with pytest.raises(ValueError, match=r"must be readable.*cat/1\.png.*Replace or remove"):
        datasets.load("image_folder", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"must hold x_train.*missing: y_test"),
        ({"y_train": np.zeros(3, int)}, r"one for each image.*shape=\(3,\).*for 4 images"),
        ({"y_train": np.zeros(4)}, r"must be integers.*dtype=float64"),
        ({"y_train": np.array([0, 1, 2**40, 1])}, r"must be below 1,000,000.*1099511627776"),
        ({"x_test": np.zeros((2, 9, 9))}, r"must have one shape.*\(3, 2, 1\) and \(9, 9, 1\)"),
        ({"x_train": np.zeros((4, 3))}, r"non-empty array.*shape=\(4, 3\)"),
    ],
)
def test_bad_npz(tmp_path, changes, message):
    write_npz(tmp_path / "d.npz", **changes)
    with pytest.raises(ValueError, match=message):
        datasets.load("npz", tmp_path / "d.npz")


def test_npz_of_objects_or_damaged(tmp_path):
    write_npz(tmp_path / "d.npz", y_test=np.array([{}, {}, {}, {}], object))
    with pytest.raises(ValueError, match=r"must be readable.*d\.npz.*Arrays of Python objects"):
        datasets.load("npz", tmp_path / "d.npz")
    write_npz(tmp_path / "d.npz")
    with zipfile.ZipFile(tmp_path / "d.npz") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "bytes.npz", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, b"x" + data[1:] if name == "y_test.npy" else data)
    with pytest.raises(ValueError, match=r"must be readable.*bytes\.npz: y_test are no arrays"):
        datasets.load("npz", tmp_path / "bytes.npz")
    content = bytearray((tmp_path / "d.npz").read_bytes())
    content[60:100] = bytes(40)
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"must be readable.*d\.npz"):
        datasets.load("npz", tmp_path / "d.npz")


def test_npz_that_is_none(tmp_path):
    np.save(tmp_path / "d.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"must be a \.npz file.*which is another, or damaged"):
        datasets.load("npz", tmp_path / "d.npy")
    with pytest.raises(ValueError, match=r"must be a \.npz file.*which is a folder"):
        datasets.load("npz", tmp_path)
