import numpy as np
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


def test_clipped_values_are_drawn_layer_by_layer(tmp_path):
    clipped = [{"a": 0.5, "b": None}, {"a": 0.25, "b": 0.0}]
    axes, _ = kerasq.plot_clipped(clipped, tmp_path / "c.png").axes
    (image,) = axes.images
    drawn = image.get_array()
    np.testing.assert_array_equal(drawn[0], [50, 25])
    assert np.ma.is_masked(drawn[1, 0]) or np.isnan(drawn[1, 0])
    assert drawn[1, 1] == 0
    assert [x.get_text() for x in axes.get_yticklabels()] == ["a", "b"]
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="Give CheckTraining data"):
        kerasq.plot_clipped([])
