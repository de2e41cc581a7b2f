import re

import keras
import pytest

from kerasq.scheme import FLOAT_BITS, RULE, SCHEMES, Scheme, per_layer, resolve

L = keras.layers


@pytest.fixture(scope="module")
def layers():
    """Layers by name, as `quantize_model` hands them over."""
    named = [
        L.Conv2D(2, 3, name="stem"),
        L.Conv2D(2, 3, name="block1_conv"),
        L.DepthwiseConv2D(3, name="block1_depthwise"),
        L.Conv2D(2, 3, name="block2_conv"),
        L.Dense(2, name="head"),
    ]
    return {layer.name: layer for layer in named}


@pytest.mark.parametrize(
    ("name", "weight_bits", "activation_bits"),
    [
        ("w8a8", 8, 8),
        ("w8a16", 8, 16),
        ("w4a8", 4, 8),
        ("w4a16", 4, 16),
        ("w1a2", 1, 2),
        ("w5a7", 5, 7),
        ("float", 32, 32),
    ],
)
def test_resolve(name, weight_bits, activation_bits):
    assert resolve(name) == Scheme(weight_bits=weight_bits, activation_bits=activation_bits)


def test_float_is_no_width_of_codes():
    widths = {resolve(name).activation_bits for name in SCHEMES if name != "float"}
    assert widths == {8, 16}
    assert resolve("float").activation_bits == FLOAT_BITS == 32


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_of_few_bits_are_stored_as_int8(bits):
    assert resolve(f"w4a{bits}").code_bits == 8
    assert resolve("w4a16").code_bits == 16 and resolve("float").code_bits == 32


BAD = ["w0a8", "w9a8", "w8a1", "w8a9", "w8a12", "w8a160", "W8A8", "w8", "", None, 8, ("w8a8",)]


@pytest.mark.parametrize("name", BAD)
def test_resolve_says_what_there_is(name):
    text = f"{RULE} Received: scheme={name!r}."
    with pytest.raises(ValueError, match=re.escape(text)):
        resolve(name)


@pytest.mark.parametrize("overrides", [None, {}])
@pytest.mark.parametrize("default", list(SCHEMES))
def test_without_overrides_every_layer_has_the_default(layers, default, overrides):
    assert per_layer(default, overrides, layers) == dict.fromkeys(layers, default)


@pytest.mark.parametrize(
    ("key", "fitting"),
    [
        ("head", ["head"]),
        ("block1_*", ["block1_conv", "block1_depthwise"]),
        ("block?_conv", ["block1_conv", "block2_conv"]),
        ("block[2-9]_*", ["block2_conv"]),
        ("BLOCK1_*", None),
        ("*", ["stem", "block1_conv", "block1_depthwise", "block2_conv", "head"]),
        (L.Dense, ["head"]),
        (L.DepthwiseConv2D, ["block1_depthwise"]),
        (L.Conv2D, ["stem", "block1_conv", "block2_conv"]),
        (L.Layer, ["stem", "block1_conv", "block1_depthwise", "block2_conv", "head"]),
    ],
)
def test_what_a_key_fits(layers, key, fitting):
    if fitting is None:
        with pytest.raises(ValueError, match="key of `overrides`"):
            per_layer("w8a8", {key: "w8a16"}, layers)
        return
    found = per_layer("w8a8", {key: "w8a16"}, layers)
    assert list(found) == list(layers)
    assert [name for name, scheme in found.items() if scheme == "w8a16"] == fitting
    assert {found[name] for name in layers if name not in fitting} <= {"w8a8"}


@pytest.mark.parametrize("reverse", [False, True])
def test_names_beat_patterns_beat_classes(layers, reverse):
    overrides = {L.Conv2D: "w4a8", "block*": "w8a16", "block1_conv": "float"}
    if reverse:
        overrides = dict(reversed(overrides.items()))
    assert per_layer("w8a8", overrides, layers) == {
        "stem": "w4a8",
        "block1_conv": "float",
        "block1_depthwise": "w8a16",
        "block2_conv": "w8a16",
        "head": "w8a8",
    }


@pytest.mark.parametrize(
    ("first", "second"), [("block1_*", "*_conv"), (L.Conv2D, L.Layer), (L.Layer, L.Conv2D)]
)
def test_the_last_of_a_kind_counts(layers, first, second):
    one, other = "w4a8", "w8a16"
    assert per_layer("w8a8", {first: one, second: other}, layers)["block1_conv"] == other
    assert per_layer("w8a8", {second: other, first: one}, layers)["block1_conv"] == one


def test_a_name_that_reads_like_a_pattern_is_a_name():
    layers = {name: L.Dense(2) for name in ("a*", "ab")}
    assert per_layer("w8a8", {"a*": "w4a8"}, layers)["a*"] == "w4a8"
    # ... and counts before patterns that come behind it.
    assert per_layer("w8a8", {"a*": "w4a8", "?*": "w8a16"}, layers)["a*"] == "w4a8"


def test_an_override_may_say_the_default(layers):
    found = per_layer("w4a8", {"*": "w8a16", "head": "w4a8"}, layers)
    assert found["head"] == "w4a8" and found["stem"] == "w8a16"


def test_nothing_is_changed(layers):
    overrides = {"head": "float", L.Conv2D: "w4a8"}
    per_layer("w8a8", overrides, layers)
    assert overrides == {"head": "float", L.Conv2D: "w4a8"}


# Errors.


@pytest.mark.parametrize("key", ["haed", "tail_*", "", L.LSTM, 3, None, ("head",), L.Dense(1)])
def test_a_key_that_fits_no_layer(layers, key):
    text = (
        r"A key of `overrides` must be the name, a shell pattern of names, or the class of "
        rf"layers\. Received: overrides=\{{{re.escape(repr(key))}: 'w8a16'\}}\. "
        r"The model's layers: \['stem', 'block1_conv', .*'head'\]"
    )
    with pytest.raises(ValueError, match=text):
        per_layer("w8a8", {"stem": "w4a8", key: "w8a16"}, layers)


@pytest.mark.parametrize("scheme", ["w1a1", None, 8])
@pytest.mark.parametrize("key", ["head", "block*", L.Conv2D])
def test_an_unknown_scheme_of_a_layer(layers, key, scheme):
    text = f"{RULE} Received: overrides={{{key!r}: {scheme!r}}}."
    with pytest.raises(ValueError, match=re.escape(text)):
        per_layer("w8a8", {key: scheme}, layers)


@pytest.mark.parametrize("scheme", ["w1a1", None])
def test_an_unknown_default(layers, scheme):
    with pytest.raises(ValueError, match=rf"A scheme must be .*scheme={scheme!r}\."):
        per_layer(scheme, {"head": "w8a8"}, layers)


@pytest.mark.parametrize("overrides", ["head", ["head"], [("head", "w8a8")], 3, {"head"}, []])
def test_overrides_that_are_no_dict(layers, overrides):
    text = (
        "`overrides` must be a dict of layer name, pattern or class to scheme. "
        f"Received: overrides={overrides!r}."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        per_layer("w8a8", overrides, layers)
