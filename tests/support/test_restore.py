"""What errors and interrupts leave of a model, at any moment of a calibration or an export."""

import contextlib
import inspect
import sys

import keras
import numpy as np
import pytest

import kerasq
from kerasq.calibration.samples import samples_of
from kerasq.support.restore import restored_on_error
from kerasq.wrappers import ranged
from tests import networks


@contextlib.contextmanager
def interrupted_at(number):
    """Raises what Ctrl-C does when the n-th call of a function of kerasq's begins; counts them."""
    calls = [0]

    def profile(frame, event, _):
        # Python drops what is raised in a generator while it closes it.
        is_generator = frame.f_code.co_flags & inspect.CO_GENERATOR
        if event == "call" and not is_generator and "/kerasq/" in frame.f_code.co_filename:
            calls[0] += 1
            if calls[0] == number:
                raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def moments(run, count):
    """Numbers of calls, spread over those of a run, the last one among them."""
    run()  # The first run has more calls, as what is cached is not there yet.
    with interrupted_at(None) as calls:
        run()
    assert calls[0] > count
    return np.linspace(1, calls[0], count).astype(int)


def state(model):
    """All that calibration and export may change."""
    return [v.numpy() for v in model.variables] + keras.tree.flatten(samples_of(model))


def assert_is(model, before):
    for a, b in zip(state(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


def made():
    """A quantized network with a layer that is all but dead, whose range an export widens."""
    q = networks.quantized(networks.mlp())
    ranged(q)["hidden"].assign_range(0.0, 1e-4)
    return q, networks.data(q, 8)


def test_an_interrupted_calibration_leaves_the_model_as_it_was():
    q, x = made()
    before = state(q)
    other, _ = made()
    # The last call ends what restores.
    for number in moments(lambda: kerasq.calibrate(other, 3 * x), 15)[:-1]:
        with pytest.raises(KeyboardInterrupt), interrupted_at(number):
            kerasq.calibrate(q, 3 * x)
        assert_is(q, before)
    kerasq.calibrate(q, 3 * x)
    np.testing.assert_array_equal(samples_of(q), 3 * x)


def test_an_interrupted_export_leaves_the_model_as_it_was(tmp_path):
    (q, _), (other, _), path = made(), made(), tmp_path / "model.tflite"
    before = state(q)
    path.write_bytes(b"there before")
    for number in moments(lambda: kerasq.export_tflite(other, tmp_path / "other"), 40):
        with pytest.raises(KeyboardInterrupt), interrupted_at(number):
            kerasq.export_tflite(q, path)
        if path.read_bytes() != b"there before":
            break  # The last calls print remarks, behind the file.
        assert_is(q, before)
    assert number > 1000
    assert {x.name for x in tmp_path.iterdir()} == {"model.tflite", "other"}
    lite = kerasq.export_tflite(q, path)
    assert lite.content == path.read_bytes() == (tmp_path / "other").read_bytes()
    assert ranged(q)["hidden"].range()[1] > 1e-4


def test_values_come_back_after_an_error():
    variable = keras.Variable([1.0, 2.0])
    with pytest.raises(ValueError, match="oops"), restored_on_error([variable]):
        variable.assign([3.0, 4.0])
        raise ValueError("oops")
    np.testing.assert_array_equal(variable, [1.0, 2.0])
    with restored_on_error([variable]):
        variable.assign([3.0, 4.0])
    np.testing.assert_array_equal(variable, [3.0, 4.0])
