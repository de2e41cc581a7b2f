"""What is done of a method that goes through a model layer by layer, in a file: it can go on."""

import hashlib
import io
import json
import os
import pathlib
from typing import Any

import keras
import numpy as np

from kerasq.support import archives, files

_HEADER = "header"


class Backup:
    """Kernels and figures by unit, in one `.npz` that is written anew after each.

    Args:
        path: the file, or None for none.
        model: the model at the start.
        settings: all that the outcome depends on, beside the data.

    Raises:
        ValueError: where the file is of other settings or another model, or no such file.
        OSError: where it cannot be written.
    """

    def __init__(self, path: str | os.PathLike | None, model: keras.Model, settings: Any) -> None:
        self.path = None if path is None else files.path_of(path, "backup")
        self.done: dict[str, Any] = {}
        self._kernels: dict[str, np.ndarray] = {}
        if self.path is None:
            return
        files.check_writable(self.path)
        # Before a kernel is changed: afterwards the model is another one.
        self._print = _fingerprint(model, settings)
        if self.path.exists():
            self._read(self.path)

    def kernel(self, name: str) -> np.ndarray:
        """The kernel of a layer that is done."""
        return self._kernels[name]

    def add(self, unit: str, figures: Any, kernels: dict[str, np.ndarray]) -> None:
        """Notes that a unit is done.

        Args:
            unit: its name.
            figures: what JSON can hold.
            kernels: by layer.
        """
        if self.path is None:
            return
        self.done[unit] = figures
        self._kernels |= kernels
        header = json.dumps({"model": self._print, "done": self.done})
        content = io.BytesIO()
        arrays: dict[str, Any] = {_HEADER: np.array(header), **self._kernels}
        np.savez(content, **arrays)
        files.write_whole(self.path, content.getvalue())

    def _read(self, path: pathlib.Path) -> None:
        try:
            kernels = archives.read(path)
            header = json.loads(str(kernels.pop(_HEADER)))
            same = header["model"] == self._print
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                "`backup` must name a file of an earlier run, or a new one. Received: "
                f"{str(path)!r}, which cannot be read ({error}). Remove it, or name another one."
            ) from error
        if not same:
            raise ValueError(
                "`backup` must be of the same model and settings. Received: "
                f"{str(path)!r}, which is of others. Remove it, or name another one."
            )
        self.done, self._kernels = header["done"], kernels


def _fingerprint(model: keras.Model, settings: Any) -> str:
    """A number that tells a model's weights and settings from others."""
    found = hashlib.sha256(repr(settings).encode())
    # Without the states of random numbers, which no two processes have in common.
    for variable in model.weights:
        found.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return found.hexdigest()
