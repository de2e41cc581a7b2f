"""Packages that not everyone needs."""

import importlib
import importlib.util
from typing import Any


def load(module: str, extra: str) -> Any:
    """Imports a module of a package that comes with `pip install 'kerasq[<extra>]'`.

    Raises:
        ImportError: where it is not installed; the command is in it.
    """
    try:
        return importlib.import_module(module)
    # Any ImportError: a package that is there may lack one of its own dependencies.
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"{package} must be installed, which kerasq does not need otherwise. "
            f"Received: {error}. Run `pip install 'kerasq[{extra}]'`."
        ) from error


def is_installed(module: str) -> bool:
    """Whether a package is there."""
    return importlib.util.find_spec(module) is not None
