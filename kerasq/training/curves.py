"""Plots of training: curves, and which layers clipped how much."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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
        ValueError: for histories that have no titles.
    """
    if not isinstance(histories, Mapping) or not all(
        isinstance(x, Mapping) for x in histories.values()
    ):
        raise ValueError(
            "`histories` must be losses and accuracies by name, for each title. "
            f"Received: {histories!r:.80}. Give {{title: fit(...).history}}."
        )
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


def plot_clipped(
    clipped: Sequence[Mapping[str, float | None]], path: str | os.PathLike | None = None
) -> Any:
    """Draws the share of values beyond the range of each layer, after each epoch, as a map.

    Args:
        clipped: after each epoch, shares in [0, 1] by layer: `CheckTraining.clipped`. None is a
            layer whose values were not looked at.
        path: where to write a PNG, whole or not at all; None not to.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: where matplotlib is not installed.
        ValueError: where there is no epoch.
    """
    if not clipped:
        raise ValueError(
            "`clipped` must have an epoch or more. Received: none. "
            "Give CheckTraining data, and fit the model with it as a callback."
        )
    names = [*clipped[-1]]
    shares = [[epoch.get(name) for epoch in clipped] for name in names]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        epochs = (0.5, len(clipped) + 0.5)
        # None is NaN in floats, which is left white.
        percent = 100 * np.array(shares, np.float64)
        image = axes.imshow(
            percent, aspect="auto", vmin=0, extent=(*epochs, len(names) - 0.5, -0.5), cmap="magma_r"
        )
        axes.set_yticks(range(len(names)), names)
        axes.set(xlabel="epoch", title="values beyond the range")
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(image, label="per cent")

    return plot(draw, (8, 1.5 + 0.25 * len(names)), path)
