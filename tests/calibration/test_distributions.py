"""Observers that take values for samples of a distribution, and "best": beside NumPy's own."""

import re

import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.calibration import aciq
from kerasq.calibration.best import CANDIDATES
from kerasq.calibration.observers import OBSERVERS
from tests.calibration.test_calibrate import squared_error

RNG = np.random.default_rng


def fed(observer, *batches):
    for x in batches:
        observer.update([s.numpy() for s in observer.statistics(tf.constant(x, tf.float32))])
    return observer


def ends(observer, *batches, bits=8):
    return fed(observer, *batches).range(bits=bits, symmetric=bits > 8)


def batches(count=130, seed=0):
    rng = RNG(seed)
    return [rng.normal(i / 50, 1 + i / 30, 200).astype("float32") for i in range(count)]


@pytest.mark.parametrize(
    "name", [name for name in OBSERVERS if name not in ("moving_average", "best")]
)
def test_the_order_of_batches_does_not_matter(name):
    data = batches()
    found, other = (ends(OBSERVERS[name](), *x) for x in (data, data[::-1]))
    np.testing.assert_allclose(found, other, rtol=1e-5)


def test_average_is_the_mean_over_all_batches():
    data = batches()
    wanted = np.mean([[x.min(), x.max()] for x in data], axis=0, dtype=np.float64)
    np.testing.assert_allclose(ends(kerasq.Average(), *data), wanted, rtol=1e-6)


@pytest.mark.parametrize("count", [0.5, 2.0])
def test_standard_deviations(count):
    data = batches()
    x = np.concatenate(data).astype(np.float64)
    wanted = x.mean() - count * x.std(), x.mean() + count * x.std()
    np.testing.assert_allclose(ends(kerasq.StandardDeviations(count), *data), wanted, rtol=1e-5)
    # Within the values that there are.
    assert ends(kerasq.StandardDeviations(99.0), *data) == (x.min(), x.max())


@pytest.mark.parametrize("count", [0.0, -1.0, np.nan, np.inf])
def test_bad_counts(count):
    text = re.escape(f"`count` must be above 0 and finite. Received: count={count}")
    with pytest.raises(ValueError, match=text):
        kerasq.StandardDeviations(count)


# Banner et al. 2019 publish these multiples of s and of b.
NORMAL = {2: 1.71063516, 3: 2.15159277, 4: 2.55913646, 8: 3.92403714}
LAPLACE = {2: 2.83068299, 3: 3.89722946, 4: 5.02864014, 8: 9.89675982}


@pytest.mark.parametrize("bits", NORMAL)
def test_the_multiples_are_those_published(bits):
    np.testing.assert_allclose(aciq.normal(bits), NORMAL[bits], rtol=1e-4)
    np.testing.assert_allclose(aciq.laplace(bits), LAPLACE[bits], rtol=1e-4)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize(("kind", "alphas"), [("normal", NORMAL), ("laplace", LAPLACE)])
def test_aciq_knows_the_distribution(kind, alphas, bits):
    x = getattr(RNG(0), kind)(0.5, 2.0, 400_000).astype("float32")
    reach = 2.0 * alphas[bits]  # s = 2 of one, b = 2 of the other.
    np.testing.assert_allclose(
        ends(kerasq.Aciq(), x, bits=bits), (0.5 - reach, 0.5 + reach), rtol=0.02
    )


@pytest.mark.parametrize(("kind", "alphas"), [("normal", NORMAL), ("laplace", LAPLACE)])
def test_aciq_behind_a_relu_has_a_bit_more(kind, alphas):
    x = np.maximum(getattr(RNG(0), kind)(0.0, 2.0, 400_000), 0.0).astype("float32")
    low, high = ends(kerasq.Aciq(), x, bits=3)
    assert low == 0.0
    np.testing.assert_allclose(high, 2.0 * alphas[4], rtol=0.02)
    # The other way round.
    np.testing.assert_allclose(ends(kerasq.Aciq(), -x, bits=3), (-high, 0.0), rtol=1e-6)


def divergences(x, bits, one_sided):
    """KL(P || Q) by threshold, in loops, from the histogram of |x| over a power of two."""
    bound = 2.0 ** np.ceil(np.log2(np.abs(x).max()))
    counts = np.histogram(np.abs(x), 2048, (0.0, bound))[0].astype(float)
    counts[0] = counts[1]
    codes = 2**bits if one_sided else 2 ** (bits - 1)
    found = {}
    for i in range(128, 2049):
        if counts[i - 1] == 0 or np.count_nonzero(counts[:i]) <= codes:
            continue
        p = counts[:i].copy()
        q = np.zeros(i)
        for code in range(codes):
            group = [k for k in range(i) if k * codes // i == code and p[k] > 0]
            q[group] = p[group].mean() if group else 0.0
        p[-1] += counts[i:].sum()
        p, q = p / p.sum(), q / q.sum()
        full = p > 0
        found[i * bound / 2048] = np.sum(p[full] * np.log(p[full] / q[full]))
    return found


@pytest.mark.parametrize(("bits", "one_sided"), [(3, False), (4, True)])
def test_entropy_is_the_least_divergence(bits, one_sided):
    x = RNG(1).laplace(0.0, 1.0, 60_000).astype("float32")
    x = np.append(np.maximum(x, 0.0) if one_sided else x, np.float32(30.0))
    found = divergences(x, bits, one_sided)
    least = min(found.values())
    threshold = max(k for k, v in found.items() if v == least)
    low, high = ends(kerasq.Entropy(), x, bits=bits)
    np.testing.assert_allclose(high, threshold, rtol=1e-6)
    assert high < 30.0
    np.testing.assert_allclose(low, max(x.min(), -threshold), rtol=1e-6)


def test_entropy_of_as_many_codes_as_bins_is_the_whole_range():
    x = RNG(1).laplace(0.0, 1.0, 9_000).astype("float32")
    assert ends(kerasq.Entropy(), x, bits=16) == (x.min(), x.max())


@pytest.mark.parametrize("name", ["std", "percentile", "mse", "entropy", "aciq", "best"])
def test_outliers_are_cut_where_codes_are_few(name):
    x = RNG(2).normal(0.0, 1.0, 200_000).astype("float32")
    x[0] = 40.0
    error = squared_error(x, *ends(OBSERVERS[name](), x, bits=4), bits=4)
    assert error < squared_error(x, x.min(), x.max(), bits=4) / 2


@pytest.mark.parametrize("bits", [4, 8])
def test_best_has_the_least_error_of_all(bits):
    chosen = set()
    for seed in range(4):
        rng = RNG(seed)
        x = [rng.normal(0, 1, 50_000), rng.laplace(1, 1, 50_000), rng.uniform(-1, 3, 50_000)]
        x = np.append(x[seed % 3], rng.normal(0, 10 * seed, 20)).astype("float32")
        found = [ends(kind(), x, bits=bits) for kind in CANDIDATES]
        errors = [squared_error(x, *each, bits=bits) for each in found]
        best = ends(kerasq.Best(), x, bits=bits)
        assert best in found
        # On a histogram, where it decides, errors are within a few per cent.
        assert squared_error(x, *best, bits=bits) <= 1.03 * min(errors)
        chosen.add(found.index(best))
    assert bits == 8 or len(chosen) > 1


@pytest.mark.parametrize("name", [name for name in OBSERVERS if name != "std"])
def test_the_largest_numbers_that_there_are(name):
    x = np.float32([-1e38, 0.0, 2e38, 3e38])
    low, high = ends(OBSERVERS[name](), x)
    assert -1.01e38 < low <= 0.0 < 1e37 < high < 3.01e38


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", OBSERVERS)
def test_what_is_no_number_is_no_range(name, value):
    found = ends(OBSERVERS[name](), [1.0, value, -2.0])
    assert not np.isfinite(found).all()


def test_values_of_one_bin_keep_their_range():
    tiny = np.array([-1e-30, 0.0, 3e-31])
    assert ends(OBSERVERS["aciq"](), tiny) == (np.float32(-1e-30), np.float32(3e-31))
    low, high = ends(OBSERVERS["best"](), tiny)
    assert -1e-29 < low <= high < 1e-29
