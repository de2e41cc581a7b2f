import dataclasses
import itertools

import keras
import numpy as np
import pytest

import kerasq
from kerasq.analysis import cost
from kerasq.scheme import resolve
from tests import networks

CANDIDATES = ("w8a8", "w4a8", "w8a16")


@pytest.fixture(scope="module")
def table(model, x):
    return kerasq.sensitivity(model, x, candidates=CANDIDATES)


def every_allocation(model, table, unit):
    """Noise and cost of each choice there is, the input at the first candidate."""
    q = kerasq.quantize_model(model)
    parts = {"squash": ["squash_linear", "squash"]}
    function = {"bytes": cost.weight_bytes, "bit_operations": cost.bit_operations}[unit]
    costs = [
        [
            sum(function(q.get_layer(part), resolve(s)) for part in parts.get(name, [name]))
            for s in CANDIDATES
        ]
        if name != "features"
        else [0, 0, 0]
        for name in table.layers
    ]
    choices = itertools.product(*([0] if name == "features" else range(3) for name in table.layers))
    rows = range(len(table.layers))
    for choice in choices:
        noise = sum(table.noise[i, j] for i, j in zip(rows, choice, strict=True))
        yield noise, sum(costs[i][j] for i, j in zip(rows, choice, strict=True))


@pytest.mark.parametrize("unit", ["bytes", "bit_operations"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_it_is_the_best_of_all_allocations(model, table, unit, share):
    everything = list(every_allocation(model, table, unit))
    costs = [c for _, c in everything]
    limit = min(costs) + share * (max(costs) - min(costs))
    best = min(noise for noise, c in everything if c <= limit)
    found = kerasq.allocate(model, None, budget={unit: limit}, sensitivity=table)
    assert found.chosen.cost <= limit
    assert found.chosen.predicted == pytest.approx(-10 * np.log10(best), abs=1e-3)


@pytest.mark.parametrize("target", [15.0, 20.0, 25.0])
def test_it_is_the_cheapest_that_is_predicted_to_reach_a_metric(model, table, target):
    everything = every_allocation(model, table, "bit_operations")
    cheapest = min(c for noise, c in everything if -10 * np.log10(noise) >= target)
    found = kerasq.allocate(model, None, budget={"sqnr": target}, sensitivity=table)
    assert found.chosen.predicted >= target and found.chosen.measured is None
    assert found.chosen.cost == cheapest


def test_with_data_the_whole_model_reaches_the_metric(model, x, table):
    found = kerasq.allocate(model, x, budget={"sqnr": 24.0}, sensitivity=table)
    assert found.chosen.measured >= 24.0
    q = kerasq.quantize_model(model, overrides=found.overrides)
    kerasq.calibrate(q, x)
    assert networks.sqnr(model, q, x) == pytest.approx(found.chosen.measured, abs=0.01)


def test_tiny_noise_is_noise_as_well():
    """Beside a large signal, below the tolerance of the solver."""
    x = keras.Input((16,), name="x")
    names = [f"d{i}" for i in range(4)]
    heads = [keras.layers.Dense(16, use_bias=False, name=name)(x) for name in names]
    model = keras.Model(x, keras.layers.Add(name="sum")([x, *heads]))
    rng = np.random.default_rng(0)
    for name in names:
        model.get_layer(name).kernel.assign(1.1e-3 * rng.normal(size=(16, 16)))
    data = rng.normal(size=(64, 16)).astype("float32")
    options = {"target": "litert-x86-64", "candidates": ("w8a16", "w4a16")}
    table = kerasq.sensitivity(model, data, **options)
    options = {"target": "litert-x86-64", "sensitivity": table, "unit": "bytes"}
    found = kerasq.allocate(model, data, budget={"sqnr": 66}, **options)
    assert found.chosen.measured >= 66
    assert kerasq.allocate(model, None, budget={"sqnr": 66}, **options).chosen.predicted >= 65.99


def test_a_function_is_averaged_over_samples(model, x):
    """Of which the last batch has one."""
    x = np.concatenate([x, x])[:33]
    y = model.predict_on_batch(x).argmax(-1)
    y[32] = (y[32] + 1) % 3
    functions = {"accuracy": "accuracy", "own": lambda y, z: y == z.argmax(-1)}
    found = [
        kerasq.sensitivity(model, (x, y), metric=metric, candidates=("w8a8",)).reference
        for metric in functions.values()
    ]
    assert found == pytest.approx([32 / 33] * 2)


def test_costs_are_those_of_the_summary(model, table):
    for unit in ("bytes", "bit_operations"):
        found = kerasq.allocate(model, None, budget={"sqnr": 25.0}, unit=unit, sensitivity=table)
        summary = kerasq.summary(kerasq.quantize_model(model, overrides=found.overrides))
        total = summary.weight_bytes if unit == "bytes" else summary.bit_operations
        assert found.unit == unit and found.chosen.cost == total


def test_the_front_holds_nothing_that_is_beaten(model, table):
    front = kerasq.allocate(model, None, budget={"bytes": 200}, sensitivity=table).front
    assert len(front) > 2
    costs = [point.cost for point in front]
    assert costs == sorted({*costs})
    assert (np.diff([point.predicted for point in front]) > 0).all()


def test_print_and_plot(model, table, tmp_path):
    found = kerasq.allocate(model, None, budget={"bytes": 200}, sensitivity=table)
    assert f"{found.chosen.cost:,} bytes" in str(found)
    found.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes()[:4] == b"\x89PNG"


def test_metric_with_labels_and_settled_layers(model, x):
    labels = networks.run(model, x).argmax(-1)
    found = kerasq.allocate(
        model,
        (x, labels),
        budget={"accuracy": 0.9},
        candidates=("w8a8", "w4a8"),
        metric="accuracy",
        overrides={"head": "float"},
    )
    assert found.chosen.measured >= 0.9
    assert found.overrides["head"] == "float"
    kerasq.quantize_model(model, overrides=found.overrides)


def test_a_target_that_layers_alone_do_not_tell_of(model, x):
    # As on few samples: no layer alone changes a class, together they do.
    labels = networks.run(model, x).argmax(-1)
    table = kerasq.sensitivity(model, (x, labels), candidates=("w8a8", "w2a2"), metric="accuracy")
    alone = np.where(np.isnan(table.alone), np.nan, table.reference)
    table = dataclasses.replace(table, alone=alone, noise=np.where(np.isnan(alone), np.nan, 0.0))
    found = kerasq.allocate(model, (x, labels), budget={"accuracy": 0.9}, sensitivity=table)
    assert found.chosen.measured >= 0.9 and set(found.overrides.values()) == {"w8a8"}


def test_an_operator_without_int16_kernel_gets_none():
    model = keras.Sequential(
        [
            keras.Input((6,), name="x"),
            keras.layers.Dense(4, name="d"),
            keras.layers.UnitNormalization(name="unit"),
        ]
    )
    found = kerasq.allocate(
        model,
        networks.data(model, 64),
        budget={"bit_operations": 1e9},
        candidates=("w8a8", "w8a16"),
    )
    assert found.overrides == {"x": "w8a8", "d": "w8a16", "unit": "w8a8"}


def test_a_layer_that_no_candidate_runs():
    unit = keras.Sequential(
        [keras.Input((6,), name="x"), keras.layers.UnitNormalization(name="unit")]
    )
    with pytest.raises(ValueError, match=r"none for the layers \['unit'\]. Add 'w8a8'"):
        kerasq.allocate(unit, networks.data(unit, 64), budget={"bytes": 1e9}, candidates=("w8a16",))


def test_bad_budgets(model, table):
    def allocate(budget, **options):
        kerasq.allocate(model, None, budget=budget, sensitivity=table, **options)

    for budget in ({}, {"watts": 3}, 5, {"bytes": 1, "sqnr": 2}, {"bytes": float("nan")}):
        with pytest.raises(ValueError, match="`budget` must be a dict with one of"):
            allocate(budget)
    with pytest.raises(ValueError, match="must leave room for the narrowest schemes"):
        allocate({"bytes": 10})
    with pytest.raises(ValueError, match="must be a sqnr that the candidates reach"):
        allocate({"sqnr": 200.0})
    with pytest.raises(ValueError, match="`unit` must be one of"):
        allocate({"sqnr": 20.0}, unit="joules")
    image = keras.Input((None, None, 3), name="image")
    any_size = keras.Model(image, keras.layers.Conv2D(2, 3)(image))
    with pytest.raises(ValueError, match=r"shape of a sample must be known.*'image'"):
        kerasq.allocate(any_size, np.ones((4, 8, 8, 3)), budget={"bytes": 1e6})
    with pytest.raises(ValueError, match="must be that of `model`"):
        kerasq.allocate(networks.sequential(), None, budget={"bytes": 1e6}, sensitivity=table)


def test_settled_layers_keep_their_scheme_and_their_cost(model, x):
    settled = {"head": "float", keras.layers.Dense: "w8a8", "squash": "w4a8"}
    found = kerasq.allocate(
        model, x, budget={"bytes": 10_000}, candidates=("w8a8", "w4a8"), overrides=settled
    )
    schemes = {"head": "float", "hidden": "w8a8", "squash": "w4a8"}
    assert schemes.items() <= found.overrides.items()
    summary = kerasq.summary(kerasq.quantize_model(model, overrides=found.overrides))
    assert found.chosen.cost == summary.weight_bytes
    with pytest.raises(ValueError, match="must settle layers to 'float' or to one of"):
        kerasq.allocate(
            model, x, budget={"bytes": 1e4}, candidates=("w8a8",), overrides={"head": "w4a16"}
        )


def test_arguments_that_contradict_the_measurements(model, x, table):
    with pytest.raises(ValueError, match="`candidates` must be those of `sensitivity`"):
        kerasq.allocate(model, x, budget={"bytes": 1e4}, candidates=("w8a8",), sensitivity=table)
    with pytest.raises(ValueError, match="`metric` must be that of `sensitivity`"):
        kerasq.allocate(model, x, budget={"accuracy": 0.9}, metric="accuracy", sensitivity=table)
    labels = networks.run(model, x).argmax(-1)
    accuracy = kerasq.sensitivity(
        model, (x, labels), candidates=("w8a8", "w4a8"), metric="accuracy"
    )
    found = kerasq.allocate(model, (x, labels), budget={"accuracy": 0.9}, sensitivity=accuracy)
    assert 0.9 <= found.chosen.measured <= 1.0 and found.chosen.predicted <= 1.0
