import numpy as np
import pytest

import kerasq


def rates(steps, **options):
    found = kerasq.schedule(1.0, steps, **options)
    return np.array([float(found(i)) for i in range(steps)])


def test_cosine_with_warmup():
    found = rates(50, warmup_steps=10)
    np.testing.assert_allclose(found[:10], np.arange(10) / 10, atol=1e-6)
    t = np.arange(40) / 40
    np.testing.assert_allclose(found[10:], 0.5 * (1 + np.cos(np.pi * t)), atol=1e-6)


def test_steps_with_warmup():
    found = rates(80, warmup_steps=10, kind="step")
    assert 0 < found[0] < 0.1 and (np.diff(found[:11]) >= 0).all() and found[9] < 1.0
    np.testing.assert_allclose(found[11:41], 1.0)
    np.testing.assert_allclose(found[41:61], 0.1)
    np.testing.assert_allclose(found[61:], 0.01, rtol=1e-5)


def test_steps_from_the_first_rate_on():
    found = rates(80, kind="step")
    np.testing.assert_allclose(found[:41], 1.0)
    np.testing.assert_allclose(found[41:61], 0.1)


def test_restarts_go_through_the_cosine_again():
    found = rates(40, restarts=2)
    np.testing.assert_allclose(found[:20], found[20:], atol=1e-6)
    assert found[0] == 1.0 and found[19] < 0.01


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"restarts": 2, "warmup_steps": 1}, "must be a cosine without warm-up"),
        ({"restarts": 2, "kind": "step"}, "must be a cosine without warm-up"),
        ({"kind": "step", "warmup_steps": 16}, "warm-up must end before the rate falls"),
        ({"warmup_steps": 31}, r"Received: warmup_steps=31, steps=30, kind='cosine'"),
        ({"kind": "linear"}, r"one of \['cosine', 'step'\]. Received: kind='linear'"),
    ],
)
def test_schedules_that_cannot_be(options, text):
    with pytest.raises(ValueError, match=text):
        kerasq.schedule(0.1, 30, **options)
