import keras
import numpy as np
import pytest

import kerasq
from recipes.datasets import Samples
from tests import networks
from tools.across_runtimes import rows

pytest.importorskip("tflite_micro")
L = keras.layers


def test_each_file_is_exact_on_its_own_runtime():
    model = networks.mobile()
    x = networks.data(model, 64)
    q = networks.quantized(model, x)
    labels = np.argmax(q.predict(x, verbose=0), -1)
    own, micro = rows("mobile", q, Samples(x, labels))
    assert own[:6] == ["mobile", "LiteRT", "100.00", "100.00", "0.00", "100.00"]
    # What the same file loses elsewhere.
    assert float(own[7]) > 0.0 and micro[:2] == ["mobile", "TFLite Micro"]
    assert micro[7] == "0.00" and micro[2] == micro[6]
    assert float(micro[2]) == pytest.approx(
        100 * np.mean(labels == np.argmax(kerasq.retarget(q, "tflm").predict(x, verbose=0), -1)),
        abs=0.01,
    )


def test_what_a_runtime_does_not_run_is_refused():
    x = keras.Input((6,))
    model = keras.Model(x, L.Activation("gelu")(L.Dense(3)(x)))
    data = networks.data(model, 16)
    own, micro = rows("gelu", networks.quantized(model, data), Samples(data, np.zeros(16, int)))
    assert own[6:] == ["refused", "-", "-"] and micro[7] == "0.00"
