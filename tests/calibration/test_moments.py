"""Moments of functions of normal values: closed forms and quadrature beside fine sums."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasq.calibration.moments import Clamp, Moments, Normal, clipped, integrated

# Places of a sum over the standard normal density, each in the middle of its interval.
Z = (np.arange(400_000) + 0.5) / 20_000 - 10.0
WEIGHTS = np.exp(-np.square(Z) / 2.0) / np.sqrt(2.0 * np.pi) / 20_000


def summed(function, mean, deviation):
    y = function(mean + deviation * Z)
    first = (WEIGHTS * y).sum()
    return first, (WEIGHTS * np.square(y - first)).sum()


def normal(mean, deviation, reach=6.0):
    return Normal.within(tf.constant([mean]), tf.square(tf.constant([deviation])), reach)


@pytest.mark.parametrize("limits", [(0.0, np.inf), (0.0, 6.0), (-1.0, 1.0), (0.5, 2.0)])
def test_the_clipped_normal(limits):
    cases = [(m, s) for m in (-30.0, -2.0, -0.3, 0.0, 0.7, 5.5, 30.0) for s in (0.01, 1.0, 4.0)]
    mean, deviation = np.transpose(cases)
    found = clipped(tf.constant(mean), tf.constant(deviation**2), *limits)
    wanted = np.transpose([summed(lambda x: np.clip(x, *limits), m, s) for m, s in cases])
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-8, rtol=1e-8)
    np.testing.assert_allclose(found[1], wanted[1], atol=1e-7, rtol=1e-6)


def test_the_standard_normal_behind_a_relu():
    mean, variance = clipped(tf.zeros(1), tf.ones(1), 0.0)
    np.testing.assert_allclose(mean, [1 / np.sqrt(2 * np.pi)], rtol=1e-6)
    np.testing.assert_allclose(variance, [0.5 - 1 / (2 * np.pi)], rtol=1e-6)


def test_constants_are_clipped_as_they_are():
    mean, variance = clipped(tf.constant([-2.0, 0.0, 3.0, 9.0]), tf.zeros(4), 0.0, 6.0)
    np.testing.assert_allclose(mean, [0.0, 0.0, 3.0, 6.0], atol=1e-12)
    np.testing.assert_allclose(variance, np.zeros(4), atol=1e-12)


@pytest.mark.parametrize(
    ("function", "tolerance"),
    [
        (lambda x: 1.0 / (1.0 + np.exp(-x)), 1e-5),
        (lambda x: x / (1.0 + np.exp(-x)), 1e-5),
        (lambda x: 2.0 * x + 1.0, 1e-5),
        (lambda x: np.where(x > 0.0, x, 0.2 * x), 5e-3),
        (lambda x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0), 5e-3),
    ],
)
def test_functions_by_quadrature(function, tolerance):
    cases = [(m, s) for m in (-3.0, -0.3, 0.0, 2.0) for s in (0.1, 1.0, 2.5)]
    mean, deviation = np.transpose(cases).astype("float32")
    found = integrated(tf.constant(mean), tf.constant(deviation**2), lambda x: function(x.numpy()))
    wanted = np.transpose([summed(function, m, s) for m, s in cases])
    np.testing.assert_allclose(found[0], wanted[0], atol=tolerance)
    np.testing.assert_allclose(found[1], wanted[1], atol=10 * tolerance)


def test_ends_of_functions():
    silu = Moments(normal(1.0, 2.0)).then(keras.activations.silu)
    low, high = silu.ends
    assert low == pytest.approx(-0.2785, abs=2e-3) and high == pytest.approx(13.0, abs=1e-3)
    assert Moments(normal(1.0, 2.0)).ends == (-11.0, 13.0)
    assert Moments(normal(1.0, 2.0), Clamp(0.0, 6.0)).ends == (0.0, 6.0)
    assert Moments(normal(1.0, 2.0, reach=2.0), Clamp()).ends == (0.0, 5.0)
    assert Moments(normal(1.0, 2.0).cut(-1.0, 4.0)).ends == (-1.0, 4.0)


def test_functions_of_functions():
    """A clamp behind another function is not the clipped normal of its mean and variance."""
    twice = Moments(normal(0.0, 1.0), Clamp()).then(lambda x: Clamp(0.0, 1.0)(x - 0.5))
    mean, variance = summed(lambda x: np.clip(np.maximum(x, 0.0) - 0.5, 0.0, 1.0), 0.0, 1.0)
    np.testing.assert_allclose(twice.mean, [mean], atol=2e-3)
    np.testing.assert_allclose(twice.variance, [variance], atol=2e-3)


def test_what_is_moved_stays_the_function_it_was():
    """Zeros between values as well: through a ReLU they are zeros still."""
    x = Moments(normal(0.5, 1.0), Clamp(0.0, 6.0))
    moved = x.moved(lambda v: tf.concat([tf.zeros(1), v], 0))
    np.testing.assert_allclose(moved.mean, [0.0, x.mean[0]], atol=1e-12)
    np.testing.assert_allclose(moved.variance, [0.0, x.variance[0]], atol=1e-12)
    own = x.then(lambda v: v * [2.0]).moved(lambda v: tf.concat([v, v], 0))
    np.testing.assert_allclose(own.mean, [2.0 * x.mean[0]] * 2, rtol=5e-3)
    assert own.ends == pytest.approx((0.0, 12.0))
