"""A thread that predicts while another trains."""

import threading

import keras
import numpy as np
import pytest

import kerasq
from tests import networks


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_one_thread_predicts_while_another_trains(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = networks.residual()
    finally:
        keras.config.set_dtype_policy("float32")
    x = networks.data(model, 32)
    q, other = networks.quantized(model, x), networks.quantized(networks.mobile())
    want, rounds, found = other.predict(x, verbose=0), 8, []

    def predict():
        for _ in range(rounds):
            found.append(
                (q.predict(x, verbose=0), q(x[:4], training=False), other.predict(x, verbose=0))
            )

    q.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy")
    thread = threading.Thread(target=predict)
    thread.start()
    try:
        while thread.is_alive():
            q.fit(x, np.zeros(32), batch_size=8, epochs=1, verbose=0)
    finally:
        thread.join()
    assert len(found) == rounds
    for own, few, others in found:
        np.testing.assert_allclose(own.sum(-1), 1.0, atol=0.02)
        assert np.isfinite(few).all()
        np.testing.assert_array_equal(others, want)
    np.testing.assert_array_equal(kerasq.export_tflite(q).predict(x), q.predict(x, verbose=0))
