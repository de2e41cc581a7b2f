import keras
import pytest

import kerasq
from tests import networks


def test_more_work_takes_longer():
    models = []
    for units in (8, 2048):
        layers = [keras.Input((512,)), keras.layers.Dense(units), keras.layers.Dense(units)]
        models.append(kerasq.export_float_tflite(keras.Sequential(layers)))
    few, many = kerasq.latency(models, rounds=30)
    # A thousand times the work, so that no load of the machine turns it round.
    assert 0 < few < many


def test_no_rounds():
    with pytest.raises(
        ValueError, match=r"`rounds` must be an integer of at least 1. Received: rounds=0"
    ):
        kerasq.latency([], rounds=0)


def test_another_interpreter_has_no_clock():
    pytest.importorskip("tflite_micro")
    q = kerasq.quantize_model(networks.mlp(), target="tflm")
    kerasq.calibrate(q, networks.data(q))
    with pytest.raises(ValueError, match=r"LiteRT runs\. Received: one that runs on 'tflm'"):
        kerasq.latency([kerasq.export_tflite(q)])


def test_inputs_that_are_indices_are_in_bounds():
    # What happens to be in the memory of an input need not be.
    indices = keras.Input((5,), batch_size=64, dtype="int32")
    model = keras.Model(indices, keras.layers.Embedding(2, 3)(indices))
    (ms,) = kerasq.latency([kerasq.export_float_tflite(model)], rounds=1)
    assert ms > 0
