import pytest

import kerasq

LOSSES = {"loss": [2.0, 1.0, 0.5], "val_loss": [2.0, 1.5, 1.2]}


def test_accuracies_are_drawn_and_untrained_histories_left_out(tmp_path):
    history = {"accuracy": [0.1, 0.2, 0.6], "val_accuracy": [0.1, 0.3, 0.99], **LOSSES}
    figure = kerasq.plot_curves({"float": history, "latency": {}}, tmp_path / "c.png")
    (axes,) = figure.axes
    assert (axes.get_title(), axes.get_ylabel()) == ("float", "top-1 (%)")
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn["training"] == pytest.approx([10, 20, 60])
    assert drawn["held out"] == pytest.approx([10, 30, 99])
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3] and axes.get_ylim()[1] <= 100.5
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_losses_are_drawn_where_there_is_no_accuracy():
    (axes, other) = kerasq.plot_curves({"a": LOSSES, "b": {"loss": [3.0]}}).axes
    assert axes.get_ylabel() == "loss" and list(axes.lines[0].get_ydata()) == LOSSES["loss"]
    assert list(other.lines[0].get_ydata()) == [3.0]
