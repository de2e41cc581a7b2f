"""All that an interpreter refuses of a file, by operators of one file each."""

import re

import keras
import numpy as np
import pytest

import kerasq
from kerasq.litert import flatbuffer
from kerasq.litert.refusals import beside_npu, refusals
from kerasq.support import optional

ops = keras.ops


def exported(function, scheme="w8a8", shape=(6, 6, 4), **kwargs):
    """The file of a function of one input."""
    x = keras.Input(shape, name="x")
    q = kerasq.quantize_model(keras.Model(x, function(x)), scheme, **kwargs)
    kerasq.calibrate(q, np.random.default_rng(0).normal(size=(4, *shape)))
    return kerasq.export_tflite(q).content


@pytest.fixture(scope="module")
def odd():
    """A file for LiteRT of which TFLite Micro lacks two operators and refuses two at run time."""

    def function(x):
        conv = keras.layers.Conv2D(4, 3, name="conv")(x)
        return [
            keras.layers.Activation("gelu", name="gelu")(conv),
            keras.layers.Activation("exponential", name="exp")(conv),
            ops.tile(conv, (1, 2, 1, 1)),
        ]

    return exported(function)


@pytest.mark.skipif(not optional.is_installed("tflite_micro"), reason="It is Linux's alone.")
def test_all_that_tflite_micro_refuses_is_named(odd):
    found = refusals(odd, "tflm")
    # Keras numbers the names of operations.
    assert [(x.operator, x.place, re.sub(r"_\d+$", "", x.output)) for x in found] == [
        ("GELU", "operator 1", "gelu"),
        ("EXP", "operator 2", "exp"),
        ("TILE", "operator 3", "tile"),
    ]
    assert found[0].reason == "Didn't find op for builtin opcode 'GELU'"
    assert "INT8 != FLOAT32" in found[1].reason
    assert str(found[2]).startswith(f"TILE (operator 3, {found[2].output!r}): Didn't find op")


@pytest.mark.skipif(not optional.is_installed("tflite_micro"), reason="It is Linux's alone.")
def test_what_kernels_refuse_when_they_run_is_named():
    content = exported(lambda x: [ops.max(x, 1), ops.take(x, [0, 2], 1), x + x], "w8a16")
    found = refusals(content, "tflm")
    assert [x.operator for x in found] == ["REDUCE_MAX", "GATHER"]


@pytest.mark.skipif(not optional.is_installed("tflite_micro"), reason="It is Linux's alone.")
def test_what_might_end_the_process_is_named_and_not_run():
    (found,) = refusals(exported(keras.layers.Softmax(), shape=(512,)), "tflm")
    assert found.operator == "SOFTMAX" and "over more than 511 values" in found.reason
    assert refusals(exported(keras.layers.Softmax(), shape=(511,)), "tflm") == []


@pytest.mark.skipif(not optional.is_installed("tflite_micro"), reason="It is Linux's alone.")
def test_nothing_is_refused_of_what_was_made_for_it():
    def function(x):
        y = keras.layers.SimpleRNN(3)(keras.layers.Reshape((36, 4))(x)[:, :2])
        z = keras.layers.Conv2DTranspose(3, 2, activation="relu")(x)
        return [y, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(z))]

    content = exported(function, target="tflm")
    assert refusals(content, "tflm") == [] and refusals(content, "litert") == []


def test_litert_refuses_operators_of_others(odd):
    model = flatbuffer.read(odd)
    for place in (1, 3):
        code = model.operatorCodes[model.subgraphs[0].operators[place].opcodeIndex]
        # LiteRT takes the larger of both.
        code.builtinCode = code.deprecatedBuiltinCode = flatbuffer.Op.CUSTOM
        code.customCode = f"Own{place}".encode()
    found = refusals(flatbuffer.write(model), "litert")
    assert [x.operator for x in found] == ["CUSTOM 'Own1'", "CUSTOM 'Own3'"]
    assert all("unresolved custom op" in x.reason for x in found)


def test_damaged_files_are_an_error(odd):
    with pytest.raises(ValueError, match="must be a whole model"):
        refusals(odd[:300], "litert")


def test_vela_says_what_the_npu_leaves_to_the_processor(odd):
    pytest.importorskip("ethosu.vela")
    content = exported(lambda x: [ops.top_k(x, 2)[0], x + x])
    (found,) = beside_npu(content)
    assert (found.operator, found.place) == ("TOPK_V2", "operator 0")
    assert "Unsupported" in found.reason
