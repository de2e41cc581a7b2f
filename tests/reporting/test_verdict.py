"""What is shown of sensitivities, and where layers are drawn."""

import numpy as np
import pytest

import kerasq
from kerasq.analysis import beside_float
from kerasq.reporting.layer_figures import short_names
from kerasq.reporting.layout import places
from kerasq.reporting.logs import _thinned, curves_over_training
from kerasq.reporting.page import plain
from kerasq.reporting.verdict import sensitivity_figures
from tests import networks


def table():
    alone = np.array([[30.0, np.inf], [20.0, 25.0]])
    return kerasq.Sensitivity(
        layers=("one", "two"),
        candidates=("w4a8", "w8a8"),
        metric="sqnr",
        reference=np.inf,
        base=18.0,
        alone=alone,
        raised=alone - 5,
        noise=10 ** (-alone / 10),
        samples=4,
        target="litert",
    )


def test_sensitivities_come_from_the_most_sensitive_on():
    found = plain(sensitivity_figures(table()))
    assert found["layers"] == ["two", "one"] and "front" not in found
    assert found["alone"] == [[20, 25], [30, "inf"]] and found["base"] == 18


def test_a_front_is_shown_with_the_chosen_point():
    points = [kerasq.Point(overrides={}, cost=i, predicted=20.0 + i) for i in range(3)]
    points.append(kerasq.Point(overrides={}, cost=9, predicted=np.inf))
    found = sensitivity_figures(
        kerasq.Allocation(chosen=points[1], front=tuple(points), unit="bytes", sensitivity=table())
    )
    assert found["front"] == [(0, 20.0), (1, 21.0), (2, 22.0)] and found["chosen"] == (1, 21.0)


def test_curves_over_training_are_those_that_were_logged(tmp_path):
    q = kerasq.quantize_model(networks.mlp())
    q.compile("sgd", "mse")
    x = networks.data(q, 8)
    for first in (0, 1):  # The second run goes on behind the first epoch.
        logger = kerasq.LogRanges(tmp_path, x)
        q.fit(x, np.zeros((8, 3)), initial_epoch=first, epochs=2, callbacks=[logger], verbose=0)
    found = curves_over_training(tmp_path)
    assert [epoch for epoch, _ in found["head"]["high"]] == [0, 1]
    low, high = (float(x) for x in q.get_layer("head").output_quantizer.range())
    assert [found["head"][x][-1][1] for x in ("low", "high")] == [low, high]
    assert [epoch for epoch, _ in found["head"]["sqnr"]] == [0, 1]
    wanted = beside_float.observer(q)(x)["head"].sqnr
    assert found["head"]["sqnr"][-1][1] == pytest.approx(wanted, rel=1e-5)
    assert {"low", "high", "weights", "clipped", "sqnr"} == {*found["head"]}
    # A run that was killed while it wrote has left a part of a record.
    newest = max(tmp_path.glob("*tfevents*"), key=lambda x: x.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-5])
    assert [*curves_over_training(tmp_path)] == [*found]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"`logs` must be the folder .*empty', without ranges"):
        curves_over_training(tmp_path / "empty")


def test_of_many_epochs_some_are_drawn_and_the_last():
    found = _thinned({epoch: 2.0 * epoch for epoch in reversed(range(1000))})
    assert found[:2] == [[0, 0.0], [5, 10.0]] and found[-1] == [999, 1998.0] and len(found) == 201
    assert _thinned({1: 3.0, 0: 2.0}) == [[0, 2.0], [1, 3.0]]


def test_names_of_other_converters_are_shortened():
    names = ["in", "net/a/Relu;net/a_norm/mul;net/a/conv", "net/b/Relu;net/c", "net/b/Relu;net/d"]
    assert [*short_names(names).values()] == ["in", "a/Relu", *names[2:]]
    assert [*short_names(["a/b", "c"]).values()] == ["a/b", "c"]


def test_figures_are_what_json_has():
    values = {"a": np.float32(1.23456789), "b": np.inf, "c": np.nan, 4: np.arange(2), "e": (2.0,)}
    assert plain(values) == {"a": 1.2346, "b": "inf", "c": None, "4": [0, 1], "e": [2]}
    assert plain(123456789) == 123456789 and plain(True) is True


def test_branches_are_drawn_beside_each_other():
    # A chain, from whose second node a branch goes round the third one.
    assert places([[], [0], [1], [1], [2, 3], [4]]) == [
        *((0, 0), (1, 0), (2, 0), (2, 1), (3, 0), (4, 0))
    ]
    assert places([[], []]) == [(0, 0), (0, 1)]
