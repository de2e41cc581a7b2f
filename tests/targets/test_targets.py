"""Targets: what they say is what the simulation, the export and the summary do."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq import kernels, registry, targets
from kerasq.registry import Output
from kerasq.targets import LITERT
from tests import networks

L = keras.layers


def floored_add(layer, codes, grids, out):
    """ADD that rounds down."""
    del layer
    total = sum(code * grid.scale for code, grid in zip(codes, grids, strict=True))
    return kernels.clip(tf.floor(total / out.scale), out)


def floored_sums(total, grid, weights, out):
    """Operators with weights that round down."""
    return kernels.clip(tf.floor(total * grid.scale * weights.grid.scale / out.scale), out)


def altered(**changes):
    """LiteRT's target under another name, but for what is said."""
    return dataclasses.replace(LITERT, name="own", **changes)


@pytest.fixture
def register():
    yield targets.register
    targets.TARGETS.pop("own", None)


def network():
    x = keras.Input((6,), name="in")
    y = L.Dense(5, name="dense")(x)
    model = keras.Model(x, L.Add(name="add")([y, L.Dense(5, name="other")(x)]))
    return model, np.random.default_rng(0).normal(size=(40, 6)).astype("f")


def pair(**changes):
    """One model on LiteRT and on a registered target that differs from it, and data."""
    target = altered(**changes)
    targets.register(target)
    model, x = network()
    return *(networks.quantized(model, x, target=name) for name in ("litert", "own")), x


def test_every_computed_rule_has_the_kernels_of_its_operator():
    rules = [*registry.LAYERS.values(), *registry.ACTIVATIONS.values()]
    for rule in rules:
        if rule.output in (Output.LEARNED, Output.INPUT, Output.FIXED):
            widths = [8, 16] if LITERT.has(rule.operator, 16) else [8]
            for bits in widths:
                if rule.kernel is None:
                    assert callable(LITERT.kernel(rule.operator, bits))
                else:
                    found = [LITERT.accumulator_kernel(rule.operator, bits, n) for n in (1, 4, 8)]
                    assert all(map(callable, found))


def test_every_kernel_is_of_a_width_that_its_operator_has():
    widths = [(name, bits) for name, bits, *_ in (*LITERT.kernels, *LITERT.accumulator_kernels)]
    assert {name for name, bits in widths if bits == 16 and not LITERT.has(name, 16)} == set()


@pytest.mark.usefixtures("register")
def test_another_rounding_of_one_operator_is_simulated_and_saved(tmp_path):
    plain, own, x = pair(kernels={**LITERT.kernels, ("ADD", 8): floored_add})
    up, down = plain.predict_on_batch(x), own.predict_on_batch(x)
    # Only ADD differs: it is what it was, or one step less.
    grid = own.get_layer("add").grid()
    steps = np.rint((up - down) / float(grid.scale))
    assert set(np.unique(steps)) == {0, 1}
    first, second = (own.get_layer(name) for name in ("dense", "other"))
    parts = keras.Model(own.input, [first.output, second.output]).predict_on_batch(x)
    codes = np.floor(sum(parts) / float(grid.scale))
    low, high = (float(end - grid.zero_point) for end in (grid.qmin, grid.qmax))
    np.testing.assert_allclose(down, np.clip(codes, low, high) * float(grid.scale), rtol=1e-6)

    own.save(tmp_path / "own.keras")
    loaded = keras.models.load_model(tmp_path / "own.keras")
    assert loaded.get_layer("add").target is targets.find("own")
    np.testing.assert_array_equal(loaded.predict_on_batch(x), down)


@pytest.mark.usefixtures("register")
def test_another_rounding_of_sums():
    key = ("FULLY_CONNECTED", 8, 8)
    plain, own, x = pair(accumulator_kernels={**LITERT.accumulator_kernels, key: floored_sums})
    dense = own.get_layer("dense")
    up, down = (keras.Model(q.input, q.get_layer("dense").output)(x) for q in (plain, own))
    assert set(np.unique(np.rint((up - down) / dense.grid().scale))) == {0, 1}


@pytest.mark.usefixtures("register")
def test_inputs_on_one_grid_are_quantized_by_the_target():
    def zeros(layer, codes, grids, out):
        return tf.zeros_like(codes[0])

    key = ("QUANTIZE", 8)
    targets.register(altered(kernels={**LITERT.kernels, key: zeros}))
    grid = kerasq.Grid(scale=np.float32(0.5), zero_point=np.float32(3))
    codes = [tf.constant([[1.0, 2.0]]), tf.constant([[3.0, 4.0]])]
    found = targets.find("own").run(
        "CONCATENATION", L.Concatenate(), codes, [grid, dataclasses.replace(grid)], grid
    )
    np.testing.assert_array_equal(found, [[1, 2, 0, 0]])


@pytest.mark.usefixtures("register")
def test_limits_are_those_of_the_models_target():
    limits = dataclasses.replace(
        LITERT.limits,
        bias=dict.fromkeys(LITERT.limits.bias, 50.0),
        accumulator_bits={8: 10, 16: 64},
        multiplier=1e-3,
    )
    targets.register(altered(limits=limits))
    model, x = network()
    model.get_layer("dense").bias.assign(5 * np.ones(5))
    plain, own = (networks.quantized(model, x, target=name) for name in ("litert", "own"))
    biases = [np.abs(q.get_layer("dense").integer_weights().bias).max() for q in (plain, own)]
    assert biases[0] > 50 >= biases[1]
    flagged = [[x.name for x in kerasq.summary(q).layers if x.overflows] for q in (plain, own)]
    assert flagged == [[], ["other"]]  # The weights of "dense" have room for its bias.
    kerasq.export_tflite(plain)
    kerasq.export_tflite(own)
    largest = [
        float(dense.input_grids()[0].scale * max(dense.integer_weights().grid.scale))
        / float(dense.grid().scale)
        for dense in (q.get_layer("dense") for q in (plain, own))
    ]
    assert largest[0] > 2e-3 and 0.99e-3 < largest[1] < 1e-3  # Its range was widened.


@pytest.mark.usefixtures("register")
def test_operators_are_those_of_the_models_target(capsys):
    add = LITERT.operators["ADD"]
    narrow = dataclasses.replace(add, int16=None)
    targets.register(altered(operators={**LITERT.operators, "ADD": narrow}))
    model, _ = network()
    kerasq.quantize_model(model, scheme="w8a16")
    assert capsys.readouterr().out == ""
    q = kerasq.quantize_model(model, scheme="w8a16", target="own")
    assert "for want of an int16 kernel: 'add' (ADD)." in capsys.readouterr().out
    assert [q.get_layer(x).output_bits for x in ("dense", "add", "other")] == [16, 8, 16]
    newer = dataclasses.replace(add, int8=add.int8 + 1)
    targets.TARGETS["own"] = altered(operators={**LITERT.operators, "ADD": newer})
    assert targets.find("own").version("ADD", 8, 8) == LITERT.version("ADD", 8, 8) + 1


def test_a_model_saved_before_there_were_targets():
    wrapper = kerasq.quantize_model(network()[0]).get_layer("dense")
    config = wrapper.get_config()
    assert config.pop("target") == "litert"
    assert type(wrapper).from_config(config).target is LITERT


def test_an_unknown_runtime():
    with pytest.raises(ValueError, match=r"one of \['litert', 'tflm'\], or None.*runtime='cmsis'"):
        dataclasses.replace(LITERT, name="own", runtime="cmsis")


def test_unknown_targets(register):
    names = r"\['ethos-u', 'litert', 'litert-arm64', 'litert-x86-64', 'tflm'\]"
    text = rf"one of {names}.*kerasq.targets.register.*Received: target='{{}}'"
    model, _ = network()
    with pytest.raises(ValueError, match=text.format("esp32")):
        kerasq.quantize_model(model, target="esp32")
    with pytest.raises(ValueError, match=text.format("own")):
        kerasq.quantize_model(model, target=altered())
    register(altered())
    with pytest.raises(ValueError, match=r"a name of its own. Received: 'own', beside .*'litert'"):
        register(altered())
    config = kerasq.quantize_model(model, target="own").get_config()
    del targets.TARGETS["own"]
    with pytest.raises(ValueError, match=text.format("own")):
        keras.Model.from_config(config)


def test_a_registered_target_may_be_passed_itself(register):
    register(target := altered())
    q = kerasq.quantize_model(network()[0], target=target)
    wrappers = [layer for layer in q.layers if hasattr(layer, "target")]
    assert len(wrappers) == 4 and {layer.target.name for layer in wrappers} == {"own"}


def test_what_a_target_refuses():
    with pytest.raises(ValueError, match=r"must be those of its operators.*kernels of \['ADD'\]"):
        altered(operators={n: op for n, op in LITERT.operators.items() if n != "ADD"})
    text = r"must have a kernel.*\('ELU', 16\) on target 'litert', which has \[\('ELU', 8\)\]"
    with pytest.raises(ValueError, match=text):
        LITERT.kernel("ELU", 16)
    with pytest.raises(ValueError, match=r"\('TRANSPOSE_CONV', 32, 8\).*which has \[\('TRANSPOSE_"):
        LITERT.accumulator_kernel("TRANSPOSE_CONV", 32, 8)
    with pytest.raises(ValueError, match=r"\('PAD', 8\) on target 'litert', which has none of it"):
        LITERT.kernel("PAD", 8)
