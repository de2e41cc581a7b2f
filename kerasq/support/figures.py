"""Plots, for which matplotlib is needed."""

import os
from collections.abc import Callable
from typing import Any

from kerasq.support import optional
from kerasq.support.files import save_figure


def plot(
    draw: Callable[[Any], None], size: tuple[float, float], path: str | os.PathLike | None
) -> Any:
    """A matplotlib figure that `draw(figure)` fills.

    Args:
        draw: gets the empty figure.
        size: width and height in inches.
        path: where to write a PNG, whole or not at all; None not to.

    Raises:
        ImportError: where matplotlib is not installed; the command that does it is in it.
    """
    # Not pyplot: it keeps every figure, and picks a window system for the whole process.
    figures = optional.load("matplotlib.figure", "plot")
    figure = figures.Figure(figsize=size, layout="constrained")
    draw(figure)
    save_figure(figure, path)
    return figure
