"""Where the time of a file goes."""

import keras
import pytest
import tensorflow as tf

import kerasq
from kerasq.analysis import operator_latency as module
from kerasq.analysis.operator_latency import KindTime, OperatorLatency, OperatorTime
from tests import networks

L = keras.layers


@pytest.fixture(scope="module")
def lite():
    """Two convolutions that are alike, one that has a thousandth of their work, and a softmax."""
    image = keras.Input((16, 16, 32))
    x = L.Conv2D(32, 5, padding="same", name="one")(image)
    x = L.Conv2D(32, 5, padding="same", name="other")(x)
    x = L.Conv2D(1, 1, strides=4, name="small")(x)
    x = L.Dense(3, activation="softmax", name="head")(L.Flatten(name="flat")(x))
    return kerasq.export_tflite(networks.quantized(keras.Model(image, x)))


def test_each_operator_is_there_once(lite):
    found = kerasq.operator_latency(lite, rounds=9)
    assert [(x.op, x.output) for x in found.operators] == [(x.name, x.outputs[0]) for x in lite.ops]
    assert {x.why_not for x in found.operators} == {""}
    by_name = {x.output: x for x in found.operators}
    # A thousand times the work, so that no load of the machine turns it round.
    assert by_name["one"].ms > 3 * by_name["small"].ms
    assert found.whole_ms > by_name["one"].ms > 0
    # XNNPACK has no softmax of int8.
    assert {x.output for x in found.operators if x.runs_on == "LiteRT"} == {"head"}
    assert by_name["one"].ms == by_name["other"].ms  # They are timed once.


@pytest.mark.parametrize("threads", [1, 2])
def test_on_reference_kernels_nothing_runs_on_xnnpack(lite, threads):
    slow = kerasq.TFLiteModel(lite.content, kernels="reference")
    found = kerasq.operator_latency(slow, num_threads=threads, rounds=1)
    assert {x.runs_on for x in found.operators} == {"LiteRT"}
    assert (found.num_threads, found.rounds) == (threads, 1)
    # Portable loops take several times as long.
    assert found.operators[0].ms > 1.5 * kerasq.operator_latency(lite, rounds=5).operators[0].ms


def test_where_litert_does_not_tell_nothing_is_said(lite, monkeypatch):
    monkeypatch.setattr(module, "partitions", lambda content: None)
    found = kerasq.operator_latency(lite, rounds=1)
    assert {x.runs_on for x in found.operators} == {""}
    assert found.operators[0].ms > 0


def test_what_is_refused_alone_is_named(lite, monkeypatch):
    def loaded(content, kernels, num_threads, own=module.loaded):
        if kernels == module.OWN_KERNELS:
            raise RuntimeError("No.\nMore.")
        return own(content, kernels, num_threads)

    monkeypatch.setattr(module, "loaded", loaded)
    found = kerasq.operator_latency(lite, rounds=1)
    last = found.operators[-1]
    assert (last.op, last.ms, last.why_not) == ("SOFTMAX", None, "is refused by LiteRT: No")
    assert "Not timed alone: SOFTMAX 'head' is refused by LiteRT: No." in str(found)


def test_a_loop_is_one_operator():
    series = keras.Input((3, 4))
    model = keras.Model(series, L.LSTM(5)(series))
    found = kerasq.operator_latency(kerasq.export_float_tflite(model), rounds=3)
    (loop,) = [x for x in found.operators if x.op == "WHILE"]
    assert loop.runs_on == "LiteRT" and loop.ms == max(x.ms for x in found.operators)


def test_what_is_empty_for_zeros_is_named():
    @tf.function(input_signature=[tf.TensorSpec((4,), tf.float32)])
    def positive(x):
        return tf.boolean_mask(x * 2.0, x > 0) * 3.0

    concrete = positive.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], positive)
    found = kerasq.operator_latency(kerasq.TFLiteModel(converter.convert()), rounds=1)
    without = {x.op: x.why_not for x in found.operators if x.ms is None}
    # The places of what is positive; what is gathered has them by its own name, and no elements.
    assert without == {"RESHAPE": "reads a tensor without values"}
    assert {"GREATER", "WHERE", "MUL"} <= {x.op for x in found.operators}


def test_tables_add_up():
    times = [
        OperatorTime(op="CONV_2D", output="a", runs_on="XNNPACK", ms=0.25),
        OperatorTime(op="SOFTMAX", output="b;c", runs_on="LiteRT", ms=0.25),
        OperatorTime(op="CONV_2D", output="d", runs_on="XNNPACK", ms=0.5),
        OperatorTime(op="ADD", output="e", runs_on="XNNPACK", ms=None, why_not="is text"),
        OperatorTime(op="CONV_2D", output="f", runs_on="LiteRT", ms=1.0),
    ]
    found = OperatorLatency(operators=tuple(times), whole_ms=0.75, rounds=7, num_threads=2)
    assert found.sum_ms == 2.0 and found.share(0.5) == 0.25
    assert found.kinds == (
        KindTime("CONV_2D", "LiteRT", 1, 1.0),
        KindTime("CONV_2D", "XNNPACK", 2, 0.75),
        KindTime("SOFTMAX", "LiteRT", 1, 0.25),
        KindTime("ADD", "XNNPACK", 1, 0.0),
    )
    assert str(found).splitlines() == [
        "operator    output    runs on        ms    share",
        "----------  --------  ---------  ------  -------",
        "CONV_2D     a         XNNPACK    0.2500   12.5 %",
        "SOFTMAX     b         LiteRT     0.2500   12.5 %",
        "CONV_2D     d         XNNPACK    0.5000   25.0 %",
        "ADD         e         XNNPACK         -        -",
        "CONV_2D     f         LiteRT     1.0000   50.0 %",
        "",
        "kind     runs on      operators      ms    share",
        "-------  ---------  -----------  ------  -------",
        "CONV_2D  LiteRT               1  1.0000   50.0 %",
        "CONV_2D  XNNPACK              2  0.7500   37.5 %",
        "SOFTMAX  LiteRT               1  0.2500   12.5 %",
        "ADD      XNNPACK              1  0.0000    0.0 %",
        "",
        "Each alone: 2.0000 ms together; the whole file: 0.7500 ms (7 calls each, threads: 2).",
        "Not timed alone: ADD 'e' is text.",
    ]
    nothing = OperatorLatency(operators=(), whole_ms=0.0, rounds=1, num_threads=1)
    assert nothing.share(0.0) == 0.0


def test_what_is_no_file_of_litert_is_refused(lite):
    with pytest.raises(ValueError, match="`rounds` must be an integer of at least 1"):
        kerasq.operator_latency(lite, rounds=0)
    with pytest.raises(ValueError, match="`num_threads` must be an integer of at least 1"):
        kerasq.operator_latency(lite, num_threads=0)
    with pytest.raises(ValueError, match=r"that LiteRT runs. Received: 'model.tflite'. Load the"):
        kerasq.operator_latency("model.tflite")
    with pytest.warns(UserWarning, match="round otherwise"):
        micro = kerasq.TFLiteModel(lite.content, target="tflm")
    with pytest.raises(ValueError, match=r"Received: one of target 'tflm'. Load the file with"):
        kerasq.operator_latency(micro)
