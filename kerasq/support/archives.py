"""Files of NumPy arrays."""

import pathlib

import numpy as np


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; that of an .npy file is named "x".

    Raises:
        OSError: where there is no such file.
        ValueError: for one that is damaged, or holds anything but arrays of numbers or text.
    """
    with path.open("rb") as file:
        try:
            found = np.load(file, allow_pickle=False)
            is_one = isinstance(found, np.ndarray)
            arrays = {"x": found} if is_one else {name: found[name] for name in found.files}
        except Exception as error:  # NumPy and zipfile raise errors of any kind on damaged files.
            raise ValueError(f"it is damaged, or holds Python objects: {error}") from error
    # Of a member that is no array, NumPy returns the bytes.
    if others := [name for name, x in arrays.items() if not isinstance(x, np.ndarray)]:
        raise ValueError(f"{', '.join(others)} are no arrays")
    return arrays
