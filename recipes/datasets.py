"""The image data sets recipes know by name, as arrays in memory."""

import dataclasses
import functools
import hashlib
import os
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from kerasq.support import archives
from kerasq.support.progress import track

_NPZ_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
_CLASSES = 1_000_000  # that labels may count; each gets a name
_HELD_OUT = 0.1  # share of the training images that epochs are judged by


class Samples(NamedTuple):
    """Images and their labels.

    Attributes:
        x: images (n, height, width, channels); uint8 pixels 0..255 where the source has them, cast
            to float32 batch by batch (`recipes.training`), or float32.
        y: integer labels (n,).
    """

    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dataset:
    """A classification task on images.

    Attributes:
        name: the name it was loaded by.
        train: images to train on, and to hold out.
        test: images that choose nothing.
        class_names: one name for each label, in order.
    """

    name: str
    train: Samples
    test: Samples
    class_names: tuple[str, ...]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = self.train.x.shape[1:]
        return height, width, channels

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @functools.cached_property
    def parts(self) -> tuple[Samples, Samples]:
        """What is trained on, and a tenth of the training images that epochs are judged by.

        The split is always the same.
        """
        order = np.random.default_rng(0).permutation(len(self.train.x))
        count = max(1, round(_HELD_OUT * len(order)))
        held_out, used = np.sort(order[:count]), np.sort(order[count:])
        return (
            Samples(self.train.x[used], self.train.y[used]),
            Samples(self.train.x[held_out], self.train.y[held_out]),
        )


def load(name: str, data_dir: str | os.PathLike | None = None, size: int | None = None) -> Dataset:
    """Loads the data set `name`.

    Args:
        name: a key of `DATASETS`.
        data_dir: the folder of `image_folder`, the file of `npz`; not used by the others.
        size: height and width that images are resized to; None leaves them as they are.

    Raises:
        ValueError: the name is unknown, or what `data_dir` holds is not such a data set.
        FileNotFoundError: `data_dir` does not exist.
        OSError: a data set of keras.datasets could not be downloaded.
    """
    if name not in DATASETS:
        raise ValueError(
            f"`dataset` must be one of {', '.join(DATASETS)}. Received: dataset={name!r}."
        )
    path = _required_path(name, data_dir)
    if name == "image_folder":
        return _image_folder(path, size)  # Photos are of any size, and too large to keep.
    data = DATASETS[name](path)
    if size is None:
        return data
    train, test = (Samples(_resized(x, size), y) for x, y in (data.train, data.test))
    return dataclasses.replace(data, train=train, test=test)


def digest(name: str, data_dir: str | os.PathLike | None) -> str:
    """The first digits of a SHA-256, so that changed data are not mistaken for the old ones.

    Of a .npz file's content; of the names and sizes of a folder's files; "" for other data sets.
    """
    path = _required_path(name, data_dir)
    if name == "npz" and path.is_file():
        return file_digest(path)
    # Not of the content of images, which would all have to be read.
    found = path.glob("*/*/*") if name == "image_folder" else ()
    listed = sorted(f"{file.relative_to(path)} {file.stat().st_size}" for file in found)
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:16] if listed else ""


def file_digest(path: str | os.PathLike) -> str:
    """The first digits of a file's SHA-256."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _required_path(name: str, data_dir: str | os.PathLike | None) -> Path:
    """`data_dir` as a path, checked where the data set is read from it."""
    if name not in _READ_FROM_DATA_DIR:
        return Path()
    what = _READ_FROM_DATA_DIR[name]
    if not data_dir:
        raise ValueError(
            f"dataset={name!r} needs `data_dir`: {what}. Received: data_dir={data_dir!r}."
        )
    path = Path(data_dir)
    if not path.exists():
        raise FileNotFoundError(
            f"`data_dir` must exist: {what}. Received: data_dir={str(path)!r}, which does not "
            "exist. Check the spelling, or unpack the data there first."
        )
    return path


def _digits(_: Path) -> Dataset:
    """The 1,797 8x8 digits embedded in scikit-learn, 0..16 stretched to pixels 0..255."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images * (255 / 16)).astype("uint8").reshape(-1, 8, 8, 1)
    split = train_test_split(pixels, labels, test_size=500, stratify=labels, random_state=0)
    x_train, x_test, y_train, y_test = split
    return _dataset("digits", (x_train, y_train), (x_test, y_test))


def _from_keras(name: str) -> Callable[[Path], Dataset]:
    """A loader for `keras.datasets.<name>`, downloaded once to Keras's own cache."""

    def load_from_keras(_: Path) -> Dataset:
        try:
            train, test = getattr(keras.datasets, name).load_data()
        except Exception as error:  # keras.utils.get_file raises a plain Exception
            raise OSError(
                f"dataset={name!r} must be downloaded by keras.datasets, which failed: {error}. "
                "Without a network use dataset='digits', or a local copy with dataset='npz' or "
                "dataset='image_folder' and its `data_dir`."
            ) from error
        return _dataset(name, train, test)

    return load_from_keras


def _npz(path: Path) -> Dataset:
    """A NumPy archive with the arrays x_train, y_train, x_test and y_test."""
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"`data_dir` of dataset='npz' must be a .npz file. Received: data_dir={str(path)!r}, "
            f"which is {'a folder' if path.is_dir() else 'another, or damaged'}. Write one with "
            "np.savez."
        )
    found = _archived(path)
    missing = [name for name in _NPZ_ARRAYS if name not in found]
    if missing:
        raise ValueError(
            f"A .npz data set must hold {', '.join(_NPZ_ARRAYS)}. Received: {path.name} with "
            f"{', '.join(found)}; missing: {', '.join(missing)}."
        )
    x_train, y_train, x_test, y_test = (found[name] for name in _NPZ_ARRAYS)
    return _dataset("npz", (x_train, y_train), (x_test, y_test))


def _archived(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a NumPy archive, by name."""
    try:
        return archives.read(path)
    except ValueError as error:
        raise ValueError(
            f"A .npz data set must be readable. Received: {path}: {error}. Arrays of Python "
            "objects are not read. Write it again with np.savez."
        ) from error


def _image_folder(path: Path, size: int | None = None) -> Dataset:
    """Images in train/<class>/ and test/<class>/; the classes are train's sub-folders, sorted."""
    train, test = (_files(path / split) for split in ("train", "test"))
    if train.keys() != test.keys():
        raise ValueError(
            "train/ and test/ must have the same class sub-folders. Received: "
            f"{', '.join(train)} and {', '.join(test)} in {path}."
        )
    (x_train, gray), (x_test, gray_too) = (_read_all(found, size) for found in (train, test))
    if gray and gray_too:  # Copies, as views would keep the images in colour in memory.
        x_train, x_test = (np.ascontiguousarray(x[..., :1]) for x in (x_train, x_test))
    y_train, y_test = (
        np.repeat(np.arange(len(found)), [len(files) for files in found.values()])
        for found in (train, test)
    )
    return _dataset("image_folder", (x_train, y_train), (x_test, y_test), tuple(train))


def _files(split: Path) -> dict[str, list[Path]]:
    """The images of each class of a split, by the name of its sub-folder, both sorted."""
    if not split.is_dir():
        raise FileNotFoundError(
            "An image folder must have the sub-folders train/ and test/, each with one folder "
            f"for a class. Received: data_dir={str(split.parent)!r} without {split.name}/."
        )
    found = {x.name: _images_in(x) for x in sorted(split.iterdir()) if x.is_dir()}
    if not found:
        raise ValueError(
            f"{split.name}/ must have one sub-folder for each class. Received: {split} with no "
            "sub-folders. Move the images of a class to a folder named after it."
        )
    return found


def _images_in(folder: Path) -> list[Path]:
    """The images of a class, sorted."""
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES)
    if not found:
        raise ValueError(
            f"A class folder must hold images ({', '.join(_IMAGE_SUFFIXES)}). Received: {folder} "
            "without any. Remove the folder or fill it."
        )
    return found


def _read_all(classes: dict[str, list[Path]], size: int | None) -> tuple[np.ndarray, bool]:
    """Every image in colour, one thread a core reading them, and whether all are gray."""
    files = [file for found in classes.values() for file in found]
    first, gray = _read(files[0], size)
    images = np.empty((len(files), *first.shape), "uint8")
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes without Python's lock.
        pixels = pool.map(functools.partial(_read, size=size), files)
        for i, (image, is_gray) in enumerate(track(pixels, len(files), "image")):
            if image.shape != first.shape:
                raise ValueError(
                    f"All images must have one size. Received: {files[i]} of {image.shape}, "
                    f"{files[0]} of {first.shape}. Give --image_size."
                )
            images[i] = image
            gray &= is_gray
    return images, gray


def _read(file: Path, size: int | None) -> tuple[np.ndarray, bool]:
    """One image as uint8 (height, width, 3), and whether it is a gray one.

    Not by `keras.utils.image_dataset_from_directory`, whose JPEGs (TensorFlow 2.21's fast decoder)
    differ from Pillow's in two thirds of the values, and whose resizing does not smooth.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            is_gray = image.mode == "L"
        target = None if size is None else (size, size)
        pixels = keras.utils.load_img(file, target_size=target, interpolation="bilinear")
        return np.asarray(pixels), is_gray  # Only now Pillow reads what needs no conversion.
    except Exception as error:  # Pillow raises errors of any kind on damaged files.
        raise ValueError(
            f"Every image must be readable. Received: {file}: {error}. Replace or remove it."
        ) from error


def _resized(x: np.ndarray, size: int) -> np.ndarray:
    """Images `size` pixels high and wide; bilinear, smoothed where they shrink."""
    images = np.empty((len(x), size, size, x.shape[-1]), x.dtype)
    for start in range(0, len(x), 1024):  # All at once would take 16 times the memory.
        part = tf.image.resize(x[start : start + 1024], (size, size), antialias=True).numpy()
        images[start : start + 1024] = np.rint(part) if x.dtype == np.uint8 else part
    return images


def _dataset(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    class_names: tuple[str, ...] | None = None,
) -> Dataset:
    """Checks and normalizes the arrays: images of rank 4, labels of rank 1 counted from 0."""
    found = [Samples(_images(name, x), _labels(name, x, y)) for x, y in (train, test)]
    shapes = [samples.x.shape[1:] for samples in found]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Training and test images of dataset={name!r} must have one shape. Received: "
            f"{shapes[0]} and {shapes[1]}."
        )
    if class_names is None:
        highest = max(samples.y.max() for samples in found)
        class_names = tuple(str(label) for label in range(highest + 1))
    return Dataset(name=name, train=found[0], test=found[1], class_names=class_names)


def _images(name: str, x: np.ndarray) -> np.ndarray:
    """Images as (n, height, width, channels), uint8 or float32."""
    x = x[..., np.newaxis] if x.ndim == 3 else x
    if x.ndim != 4 or len(x) == 0:
        raise ValueError(
            f"Images of dataset={name!r} must be a non-empty array (n, height, width[, channels]). "
            f"Received: shape={x.shape}."
        )
    return x if x.dtype == np.uint8 else x.astype("float32")


def _labels(name: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Labels as int32 (n,), one for each image."""
    y = np.squeeze(y, axis=-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if y.shape != (len(x),) or not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
        raise ValueError(
            f"Labels of dataset={name!r} must be integers >= 0, one for each image. Received: "
            f"shape={y.shape}, dtype={y.dtype} for {len(x)} images."
        )
    if y.max() >= _CLASSES:
        raise ValueError(
            f"Labels of dataset={name!r} must be below {_CLASSES:,}. Received: {y.max()}. Count "
            "classes from 0."
        )
    return y.astype("int32")


DATASETS: dict[str, Callable[[Path], Dataset]] = {
    "digits": _digits,
    "mnist": _from_keras("mnist"),
    "fashion_mnist": _from_keras("fashion_mnist"),
    "cifar10": _from_keras("cifar10"),
    "image_folder": _image_folder,
    "npz": _npz,
}

_READ_FROM_DATA_DIR = {
    "image_folder": "a folder with train/<class>/*.jpg (or png, bmp) and test/<class>/*.jpg",
    "npz": "a .npz file with x_train, y_train, x_test and y_test",
}
