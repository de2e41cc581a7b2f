"""Sensitivities and allocations on a target of one's own."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq import kernels, targets
from kerasq.targets import LITERT
from tests import networks

L = keras.layers


def floored_add(layer, codes, grids, out):
    """ADD that rounds down."""
    del layer
    total = sum(code * grid.scale for code, grid in zip(codes, grids, strict=True))
    return kernels.clip(tf.floor(total / out.scale), out)


@pytest.fixture(scope="module")
def own():
    """LiteRT, but ADD rounds down and has no int16, and biases have few bits."""
    add = dataclasses.replace(LITERT.operators["ADD"], int16=None)
    target = dataclasses.replace(
        LITERT,
        name="floored",
        operators={**LITERT.operators, "ADD": add},
        kernels={**LITERT.kernels, ("ADD", 8): floored_add},
        limits=dataclasses.replace(LITERT.limits, bias=dict.fromkeys(LITERT.limits.bias, 50.0)),
    )
    targets.register(target)
    yield target
    del targets.TARGETS["floored"]


@pytest.fixture(scope="module")
def network():
    networks.set_seed(0)
    x = keras.Input((6,), name="in")
    y = L.Dense(5, name="dense", bias_initializer="ones")(x)
    y = L.Add(name="add")([y, L.Dense(5, name="other")(x)])
    return keras.Model(x, L.Dense(3, name="head")(y))


@pytest.fixture(scope="module")
def data(network):
    return networks.data(network, 64)


@pytest.fixture(scope="module")
def table(network, data, own):
    return kerasq.sensitivity(network, data, candidates=("w8a8", "w4a8", "w8a16"), target=own)


def test_it_measures_what_is_quantized_for_the_target(network, data, table):
    measured = {}
    for name in ("litert", "floored"):
        q = kerasq.quantize_model(network, target=name)
        kerasq.calibrate(q, data)
        measured[name] = networks.sqnr(network, q, data)
    assert measured["floored"] < measured["litert"] - 1.0
    assert table.target == "floored"
    assert table.base == pytest.approx(measured["floored"], abs=0.01)
    plain = kerasq.sensitivity(network, data)
    assert plain.target == "litert"
    assert plain.base == pytest.approx(measured["litert"], abs=0.01)


@pytest.mark.parametrize("target", ["litert-arm64", "tflm", "ethos-u"])
def test_each_target_that_there_is(network, data, target):
    q = kerasq.quantize_model(network, target=target)
    kerasq.calibrate(q, data)
    table = kerasq.sensitivity(network, data, candidates=("w8a8", "w8a16"), target=target)
    assert table.base == pytest.approx(networks.sqnr(network, q, data), abs=0.01)
    assert (table.gain[:, 1] > -0.5).all() and table.target == target


def test_operators_are_those_of_the_target(network, data, table):
    alone = dict(zip(table.layers, table.alone, strict=True))
    assert np.isnan(alone["add"]).tolist() == [False, False, True]
    assert np.isfinite(alone["dense"]).all()
    found = kerasq.allocate(network, data, budget={"sqnr": 0.0}, sensitivity=table)
    assert found.overrides["add"] == "w4a8"  # without weights as good as w8a8, and cheaper
    q = kerasq.quantize_model(network, overrides=found.overrides, target="floored")
    kerasq.calibrate(q, data)
    assert found.chosen.measured == pytest.approx(networks.sqnr(network, q, data), abs=0.01)


def test_an_allocation_measures_on_the_target_itself(network, data, own):
    found = kerasq.allocate(
        network, data, budget={"bytes": 1e9}, candidates=("w8a16", "w8a8"), target="floored"
    )
    assert found.sensitivity.target == "floored"
    assert (found.overrides["add"], found.overrides["other"]) == ("w8a8", "w8a16")
    with pytest.raises(ValueError, match=r"target 'floored', none for the layers \['add'\]"):
        kerasq.allocate(network, data, budget={"bytes": 1e9}, candidates=("w8a16",), target=own)


def test_sensitivities_of_another_target(network, table):
    text = r"`target` must be that of `sensitivity`.*Received: 'litert', sensitivity of 'floored'"
    with pytest.raises(ValueError, match=text):
        kerasq.allocate(network, None, budget={"bytes": 1e9}, sensitivity=table, target="litert")


@pytest.mark.parametrize("run", [kerasq.sensitivity, kerasq.allocate])
def test_an_unknown_target(run, network, data):
    options = {"budget": {"bytes": 1e9}} if run is kerasq.allocate else {}
    with pytest.raises(ValueError, match=r"`target` must be one of .*Received: target='esp32'"):
        run(network, data, target="esp32", **options)
