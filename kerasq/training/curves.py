"""Training curves, as a plot."""

import os
from collections.abc import Mapping
from typing import Any

from kerasq.support.figures import plot


def plot_curves(
    histories: Mapping[str, Mapping[str, list[float]]], path: str | os.PathLike | None = None
) -> Any:
    """Draws accuracy, or the loss where there is none, after each epoch: a panel for each history.

    Args:
        histories: losses and accuracies by name, for each title; such as `History.history` of
            Keras, or `EpochBackup.history`. Histories without a loss are left out.
        path: where to write a PNG, whole or not at all; None not to.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: where matplotlib is not installed.
    """
    trained = {title: history for title, history in histories.items() if history.get("loss")}
    columns = max(1, len(trained))

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, columns, squeeze=False)[0]
        for axes, (title, history) in zip(panels, trained.items(), strict=False):
            _panel(axes, history)
            axes.set(title=title, xlabel="epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)  # There are no half epochs.
            axes.grid(alpha=0.3)
            axes.legend()

    return plot(draw, (5 * columns, 4), path)


def _panel(axes: Any, history: Mapping[str, list[float]]) -> None:
    """The curves of training and validation."""
    name, unit = ("accuracy", 100) if "accuracy" in history else ("loss", 1)
    for label, prefix in (("training", ""), ("held out", "val_")):
        values = [unit * value for value in history.get(prefix + name, [])]
        axes.plot(range(1, len(values) + 1), values, marker="o", markersize=3, label=label)
    axes.set(ylabel="top-1 (%)" if unit == 100 else name)
    if unit == 100:  # No axis beyond what an accuracy can be.
        axes.set_ylim(top=min(100.5, axes.get_ylim()[1]))
