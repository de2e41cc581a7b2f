import keras
import pytest

import kerasq


def test_more_work_takes_longer():
    models = []
    for units in (8, 2048):
        layers = [keras.Input((512,)), keras.layers.Dense(units), keras.layers.Dense(units)]
        models.append(kerasq.export_float_tflite(keras.Sequential(layers)))
    few, many = kerasq.latency(models, rounds=30)
    # A thousand times the work, so that no load of the machine turns it round.
    assert 0 < few < many


def test_no_rounds():
    with pytest.raises(ValueError, match=r"`rounds` must be at least 1. Received: rounds=0"):
        kerasq.latency([], rounds=0)
