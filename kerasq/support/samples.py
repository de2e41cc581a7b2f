"""Samples in files: arrays, and folders of images."""

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kerasq.support import archives

_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")


def load_samples(
    path: str | os.PathLike, inputs: Mapping[str, Sequence[int | None]], count: int
) -> Any:
    """The samples of a .npy or .npz file, or the images below a folder: `(samples, ...)`.

    Of an .npz file it is the array `x`, or the only one; for several inputs one array each, by
    name, in a dictionary. Images become pixels of 0..255, of the size and channels that the input
    has. Of more than `count` some at equal distances are taken, as files are often sorted by class.

    Args:
        path: the file or folder.
        inputs: what a model reads: shapes by name, the batch first.
        count: the most samples.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it holds no samples.
    """
    path, shape = pathlib.Path(path), next(iter(inputs.values()))
    if not path.exists():
        raise FileNotFoundError(
            f"Samples must be a file or a folder that exists. Received: {str(path)!r}."
        )
    if len(inputs) > 1:
        return {name: spread(x, count) for name, x in _by_name(path, inputs).items()}
    if path.is_dir():
        found = sorted(x for x in path.rglob("*") if x.suffix.lower() in _IMAGES)
        if not found:
            raise ValueError(f"A folder of samples must hold images, {_IMAGES}. Received: {path}.")
        return np.stack([_image(x, shape) for x in spread(found, count)])
    return spread(_array(path), count)


def load_labels(path: str | os.PathLike, count: int, outputs: Sequence[str] = ()) -> Any:
    """The labels of samples that `load_samples` took, from a file that has one for each of all.

    Args:
        path: a .npy file, or an .npz file with an array `y`, or one alone; for a model of several
            outputs, with arrays by their names, which are returned so.
        count: as for `load_samples`.
        outputs: the names of the outputs.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it holds no labels.
    """
    arrays = _arrays(pathlib.Path(path))
    known = {n: spread(_real(path, arrays[n]), count) for n in outputs if n in arrays}
    if len(outputs) > 1 and known:
        return known
    if "y" not in arrays and len(arrays) != 1:
        raise ValueError(
            "A file of labels must hold an array 'y', or one alone. "
            f"Received: {os.fspath(path)} with {[*arrays]}."
        )
    y = arrays["y"] if "y" in arrays else next(iter(arrays.values()))
    return spread(_real(path, y), count)


def has_labels(path: str | os.PathLike, inputs: Iterable[str]) -> bool:
    """Whether a file of samples has their labels as well: an array `y` that is no input."""
    path = pathlib.Path(path)
    return path.suffix == ".npz" and "y" not in inputs and "y" in _arrays(path)


def _array(path: pathlib.Path) -> np.ndarray:
    """The one array of samples in a file."""
    arrays = _arrays(path)
    if "x" not in arrays and len(arrays) != 1:
        raise ValueError(
            "A file of samples must hold an array 'x', or one alone. "
            f"Received: {path} with {[*arrays]}."
        )
    x = arrays["x"] if "x" in arrays else next(iter(arrays.values()))
    if not x.ndim or not len(x):
        raise ValueError(f"A file must hold samples. Received: {path} of shape {x.shape}.")
    return _real(path, x)


def _by_name(path: pathlib.Path, inputs: Iterable[str]) -> dict[str, np.ndarray]:
    """An array for each input."""
    arrays = _arrays(path)
    if missing := [name for name in inputs if name not in arrays]:
        raise ValueError(
            "Samples of a model of several inputs must be an .npz file of arrays by their names. "
            f"Received: {path} with {[*arrays]}, without {missing}."
        )
    return {name: _real(path, arrays[name]) for name in inputs}


def spread(items: Any, count: int) -> Any:
    """At most `count` of the items, at equal distances."""
    return items[:: max(1, -(-len(items) // count))]


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name."""
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(
            "Samples must be a .npy or .npz file, or a folder of images. "
            f"Received: {str(path)!r}. Write arrays by numpy.save."
        )
    try:
        return archives.read(path)
    except ValueError as error:
        raise ValueError(
            f"A file must hold arrays as numpy.save writes them. Received: {path}: {error}."
        ) from error


def _real(path: str | os.PathLike, x: np.ndarray) -> np.ndarray:
    """An array, checked to be of real numbers."""
    if x.dtype.kind not in "biuf":
        raise ValueError(
            f"A file must hold real numbers. Received: {os.fspath(path)} with {x.dtype.name}."
        )
    return x


def _image(path: pathlib.Path, shape: Sequence[int | None]) -> np.ndarray:
    """The pixels of a file, 0..255."""
    if len(shape) != 4 or shape[-1] not in (1, 3) or None in shape[1:3]:
        raise ValueError(
            "A model must read images of known size, of 1 or 3 channels, to be fed from a folder. "
            f"Received: an input of shape {tuple(shape)}. Write the samples by numpy.save."
        )
    mode = "grayscale" if shape[-1] == 1 else "rgb"
    size = (shape[1], shape[2])
    try:
        image = keras.utils.load_img(
            path, color_mode=mode, target_size=size, interpolation="bilinear"
        )
    except OSError as error:
        # Its own error names a buffer, or no file at all.
        raise ValueError(f"An image must be one that Pillow reads. Received: {path}.") from error
    return keras.utils.img_to_array(image)
