import keras
import pytest

import kerasq


def test_more_work_takes_longer():
    models = []
    for units in (8, 2048):
        layers = [keras.Input((512,)), keras.layers.Dense(units), keras.layers.Dense(units)]
        models.append(kerasq.export_float_tflite(keras.Sequential(layers)))
    few, many = kerasq.latency(models, rounds=30)
    assert 0 < few < many / 5
    assert kerasq.latency([models[1]], rounds=30) == pytest.approx([many], rel=5.0)
