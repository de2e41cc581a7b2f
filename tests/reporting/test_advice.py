"""Each rule fires on its figure, and is silent beside it."""

import dataclasses

import pytest

from kerasq.reporting.advice import ASKED, advise
from kerasq.reporting.layer_figures import LayerFigures
from kerasq.reporting.weights import Weights

GOOD = LayerFigures(
    name="conv",
    op="CONV_2D",
    kind="Conv2D",
    scheme="w8a8",
    low=-1.0,
    high=1.0,
    value_low=-1.0,
    value_high=1.0,
    clipped=0.0,
    codes_used=250,
    codes=256,
    used=1.0,
    own_sqnr=40.0,
    sqnr=35.0,
    max_lsb=0,
    exact=1.0,
    accumulator_bits=20,
    accumulator_limit=32,
)
WEIGHTS = Weights(
    bits=8,
    codes_used=255,
    codes=255,
    sqnr=45.0,
    outlier=2.0,
    outlier_channel=7,
    outlier_sqnr=45.0,
    per_tensor=False,
    drawn={},
)


def changed(**figures):
    return dataclasses.replace(GOOD, **figures)


def rules(layer, *others):
    return [x.rule for x in advise([layer, *others], {}, None) if x.layer == layer.name]


@pytest.mark.parametrize(
    ("rule", "figures", "beside"),
    [
        ("normalization", {"is_input": True, "clipped": 0.04}, {"clipped": 0.02}),
        ("normalization", {"is_input": True, "used": 0.1, "codes_used": 26}, {"used": 0.3}),
        ("overflow", {"accumulator_bits": 33}, {"accumulator_bits": 32}),
        ("clipped", {"clipped": 0.04}, {"clipped": 0.02}),
        # Few codes want clipping.
        ("clipped", {"codes": 4, "codes_used": 4, "clipped": 0.3}, {"clipped": 0.2}),
        ("wide range", {"used": 0.1, "own_sqnr": 25.0}, {"own_sqnr": 35.0}),
        ("few codes", {"codes_used": 9, "own_sqnr": 15.0}, {"codes_used": 20, "own_sqnr": 40.0}),
        ("weak layer", {"own_sqnr": 25.0}, {"own_sqnr": 32.0}),
        ("kernel", {"max_lsb": 2}, {"max_lsb": 1}),
        ("kernel", {"exact": 0.98, "max_lsb": 1}, {"exact": 0.995}),
    ],
)
def test_a_rule_looks_at_its_figure(rule, figures, beside):
    others = [changed(name=f"other{i}") for i in range(4)]
    assert rules(changed(**figures), *others) == [rule]
    assert rules(changed(**figures | beside), *others) == []


def test_an_outlier_counts_where_it_does_harm():
    harm = dataclasses.replace(WEIGHTS, outlier=10.0, outlier_sqnr=36.0)
    (found,) = advise([changed(weights=harm)], {}, None)
    assert "channel 7" in found.what and "25 of 255 codes" in found.what
    harmless = dataclasses.replace(harm, outlier_sqnr=38.0)
    assert rules(changed(weights=harmless)) == rules(changed(weights=WEIGHTS)) == []
    # At 4 bits all weights have 24 dB less.
    assert rules(changed(weights=dataclasses.replace(harm, bits=4, outlier_sqnr=14.0))) == []
    # Of one scale for all, a scale a channel is the way out.
    (found,) = advise([changed(weights=dataclasses.replace(harm, per_tensor=True))], {}, None)
    assert 'granularity="per_channel"' in found.way_out


def test_a_layer_whose_range_is_its_inputs_needs_another_way_out():
    (found,) = advise([changed(used=0.1, own_sqnr=25.0, shares_range=True)], {}, None)
    assert "calibrate" not in found.way_out and '{"conv": "w8a16"}' in found.way_out


def test_narrow_weights_of_a_weak_layer_are_widened():
    few = dataclasses.replace(WEIGHTS, bits=4)
    others = [changed(name=f"other{i}") for i in range(4)]
    (found,) = advise([changed(own_sqnr=20.0, weights=few), *others], {}, None)
    assert '{"conv": "w8a8"}' in found.way_out and "adaround" in found.way_out


def test_only_the_worst_layers_are_named_and_once():
    layers = [changed(name=f"layer{i}", clipped=0.1 * i) for i in range(6)]
    assert [x.layer for x in advise(layers, {}, None)] == ["layer5", "layer4", "layer3"]
    both = changed(clipped=0.5, own_sqnr=5.0)
    assert rules(both, *(changed(name=f"other{i}") for i in range(4))) == ["clipped"]


def test_what_follows_from_a_wrong_input_is_not_named():
    wrong = changed(name="image", is_input=True, used=0.004)
    assert [x.layer for x in advise([wrong, changed(clipped=0.5)], {}, None)] == ["image"]


def test_what_training_has_changed_is_no_fault_of_quantization():
    # What no layer reads, beside the weights as they were trained.
    layers = [changed(name="before", sqnr=20.0), changed(name="head", inputs=("before",))]
    (found,) = advise(layers, {}, 15.0)
    assert found.rule == "trained" and "15.0 dB beside the float model, but 35.0" in found.what
    (found,) = advise([layers[0], changed(name="head", inputs=("before",), sqnr=24.0)], {}, 15.0)
    assert found.rule == "all layers"


def test_files_that_run_on_another_interpreter_differ():
    (found,) = advise([changed(max_lsb=2)], {}, None, "tflm")
    assert 'check_kernels("tflm")' in found.way_out
    assert advise([changed(max_lsb=2)], {}, None, None) == []


def test_what_stays_float_is_named_unless_it_was_asked_for():
    found = advise([GOOD], {"a": "Conv3D: no kernel", "b": f"Conv2D, {ASKED}"}, None)
    assert [(x.layer, x.rule) for x in found] == [("a", "float")]


def test_noise_that_is_everywhere_has_a_way_out_too():
    noisy = changed(sqnr=15.0)
    (found,) = advise([noisy], {}, 15.0)
    assert found.layer == "" and "no layer stands out" in found.what
    assert "kerasq.sensitivity" in str(found) and advise([noisy], {}, 30.0) == []
    one, other = advise([changed(clipped=0.5, sqnr=15.0)], {}, 15.0)
    assert one.rule == "clipped" and other.what == "its outputs have 15.0 dB"
    wrong = changed(is_input=True, used=0.004)
    assert [x.rule for x in advise([wrong], {}, 15.0)] == ["normalization"]


def test_a_range_of_several_layers_is_that_of_the_widest():
    first = changed(used=0.01, own_sqnr=25.0, range_of="conv")
    later = changed(name="later", used=0.9, range_of="conv")
    assert rules(first, later) == []
    assert rules(first, dataclasses.replace(later, used=0.005, own_sqnr=25.0)) == ["wide range"]
    assert rules(first, dataclasses.replace(later, range_of="")) == ["wide range"]
