"""Observers as identifiers, those of users, and the grid that "mse" scores."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.calibration.observers import OBSERVERS
from kerasq.wrappers import ranged

BUILT_IN = [
    kerasq.MinMax(),
    kerasq.MovingAverage(rate=0.5),
    kerasq.Percentile(90.0),
    kerasq.MeanSquaredError(steps=7),
]


@keras.saving.register_keras_serializable("tests")
class Sigmas(kerasq.Observer):
    """So many root mean squares."""

    def __init__(self, count=2.0):
        self.count, self.squares, self.values, self.grids = count, 0.0, 0, []

    def statistics(self, x):
        return tf.reduce_sum(x * x), tf.size(x)

    def update(self, statistics):
        self.squares += float(statistics[0])
        self.values += int(statistics[1])

    def range(self, *, bits, symmetric):
        self.grids.append((bits, symmetric))
        high = self.count * np.sqrt(self.squares / self.values)
        return -high, high

    def get_config(self):
        return {"count": self.count}


def quantized(scheme="w8a8"):
    model = keras.Sequential(
        [
            keras.Input((4,), name="x"),
            keras.layers.Dense(6, "relu", name="hidden"),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(0, 1, w.shape) for w in model.get_weights()])
    return kerasq.quantize_model(model, scheme)


def samples(count=200):
    return np.random.default_rng(0).normal(0, 1, (count, 4)).astype("float32")


def ranges(method, scheme="w8a8"):
    q = quantized(scheme)
    kerasq.calibrate(q, samples(), method=method)
    return {name: tuple(map(float, x.range())) for name, x in ranged(q).items()}


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_name_is_the_instance_without_arguments(name):
    assert ranges(name) == ranges(OBSERVERS[name]())


@pytest.mark.parametrize("observer", [*BUILT_IN, Sigmas(1.5)], ids=lambda x: type(x).__name__)
def test_a_configuration_is_its_instance(observer):
    config = keras.saving.serialize_keras_object(observer)
    assert keras.saving.deserialize_keras_object(config).get_config() == observer.get_config()
    assert ranges(config) == ranges(observer)


@pytest.mark.parametrize("percent", [75.3, 98.7])
def test_the_percentile_can_be_set(percent):
    """Of the standard normal values that the input has."""
    low, high = ranges(kerasq.Percentile(percent))["x_quantize"]
    x = samples().ravel()
    expected = np.percentile(x, [100 - percent, percent], method="inverted_cdf")
    np.testing.assert_allclose((low, high), expected, atol=2 * 4.0 / 4096)


def test_the_rate_can_be_set():
    """At 1.0 only the last batch counts."""
    last = samples()[192:]
    low, high = ranges(kerasq.MovingAverage(rate=1.0))["x_quantize"]
    np.testing.assert_allclose((low, high), (last.min(), last.max()), rtol=1e-6)


def test_the_steps_can_be_set():
    """One step: the whole range."""
    assert ranges(kerasq.MeanSquaredError(steps=1), "w8a2") == ranges("minmax", "w8a2")
    assert ranges(kerasq.MeanSquaredError(steps=80), "w8a2") == ranges("mse", "w8a2")


def test_each_tensor_gets_a_copy_of_a_users_observer():
    prototype = Sigmas(2.0)
    found = ranges(prototype)
    assert prototype.values == 0 and prototype.grids == []
    x = samples()
    _, high = found["x_quantize"]
    np.testing.assert_allclose(high, 2.0 * np.sqrt(np.mean(x**2)), rtol=1e-5)
    assert found["logits"][1] > 1.5 * high  # its own values


@pytest.mark.parametrize(
    ("scheme", "grid"), [("w8a8", (8, False)), ("w8a16", (16, True)), ("w8a3", (3, False))]
)
def test_observers_are_told_the_grid(scheme, grid):
    told = []

    class Told(Sigmas):
        def range(self, *, bits, symmetric):
            told.append((bits, symmetric))
            return super().range(bits=bits, symmetric=symmetric)

    q = quantized(scheme)
    kerasq.calibrate(q, samples(), method=Told())
    assert grid in told
    assert told == [(x.bits, x.symmetric) for x in ranged(q).values()]


def test_mse_scores_the_symmetric_grid_at_16_bits():
    """Of values from 0 to 4, the int16 grid has steps twice as wide as one from 0 on would have.

    In 45 million of them, cutting the one outlier off then pays, which it would not otherwise.
    """
    batch = np.random.default_rng(0).uniform(0.0, 3.9, 30_000).astype("float32")
    batches = 1500
    observer = kerasq.MeanSquaredError()
    observer.update([s.numpy() for s in observer.statistics(tf.constant(batch))])
    observer.counts *= batches
    observer.update([s.numpy() for s in observer.statistics(tf.constant([4.0]))])
    counts, edges = np.histogram(batch, 4096, (-4.0, 4.0))
    counts = counts * batches
    counts[-1] += 1
    centres = (edges[1:] + edges[:-1]) / 2

    def best(codes_above_zero):
        """The share k of 4.0 with the least error, by NumPy in float64."""
        errors = {}
        for k in np.linspace(1.0, 0.2, 80):
            step = 4.0 * k / codes_above_zero
            rounded = np.clip(np.rint(centres / step), 0, codes_above_zero) * step
            errors[k] = np.sum(counts * (centres - rounded) ** 2)
        return min(errors, key=errors.get)

    assert best(2**16 - 1) == 1.0 and best(2**15 - 1) < 1.0
    _, high = observer.range(bits=16, symmetric=True)
    np.testing.assert_allclose(high, 4.0 * best(2**15 - 1), rtol=1e-6)
    assert observer.range(bits=16, symmetric=False)[1] == 4.0


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: kerasq.Percentile(50.0), "above 50 and at most 100. Received: percent=50.0"),
        (lambda: kerasq.Percentile(100.1), "Received: percent=100.1"),
        (lambda: kerasq.MovingAverage(rate=0.0), "above 0 and at most 1. Received: rate=0.0"),
        (lambda: kerasq.MeanSquaredError(steps=0), "at least 1. Received: steps=0"),
    ],
)
def test_bad_arguments(make, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        make()


@pytest.mark.parametrize("method", ["worst", 3, kerasq.MinMax, kerasq.DoReFa(), {"percent": 99}])
def test_what_is_no_observer(method):
    with pytest.raises(ValueError, match=r"`method` must be one of .* pass a kerasq\.Observer"):
        kerasq.calibrate(quantized(), samples(), method=method)


class Broken(kerasq.Observer):
    """Gives the layer of 6 units, "hidden", other ends than the rest."""

    def __init__(self, ends):
        self.ends, self.units = ends, 0

    def statistics(self, x):
        return (tf.shape(x)[-1],)

    def update(self, statistics):
        self.units = int(statistics[0])

    def range(self, *, bits, symmetric):
        return self.ends if self.units == 6 else (-1.0, 1.0)


@pytest.mark.parametrize(
    "ends",
    [
        (np.nan, 1.0),
        (-1.0, np.nan),
        (-np.inf, 1.0),
        (-1.0, np.inf),
        (-1.0, 1e39),  # infinite in float32
        (1.0, -1.0),
        (1.0,),
        None,
    ],
    ids=str,
)
def test_what_is_no_range_is_refused_and_changes_nothing(ends):
    q = quantized()
    kerasq.calibrate(q, samples(), method="minmax")
    before = [x.numpy() for x in q.weights]
    text = (
        "must be two finite numbers, the lower one first. "
        f"Received: {ends} from Broken for layer 'hidden' at 8 bits. Mend its `range`, or take "
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        kerasq.calibrate(q, samples(), method=Broken(ends))
    for old, new in zip(before, q.weights, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_a_range_of_one_value_is_one():
    """Zeros have it: the tensor then gets [0, 1]."""
    q = quantized()
    kerasq.calibrate(q, samples(), method=Broken((0.0, 0.0)))
    assert tuple(map(float, ranged(q)["hidden"].range())) == (0.0, 1.0)


@pytest.mark.parametrize("method", ["minmax", "moving_average", "percentile", "mse"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused_by_every_observer(method, value):
    inner = keras.Input((4,), name="x")
    y = keras.layers.Dense(4, name="front")(inner)
    # Finite weights, and one value in a hundred that is none.
    broken = keras.layers.Lambda(
        lambda x: keras.ops.where(x > 1.5, value, x), output_shape=(4,), name="broken"
    )
    q = kerasq.quantize_model(keras.Model(inner, keras.layers.Dense(2, name="head")(broken(y))))
    with pytest.raises(ValueError, match="must be two finite numbers"):
        kerasq.calibrate(q, np.random.default_rng(0).normal(size=(96, 4)), method=method)


def test_a_layer_that_computes_infinite_values_is_named():
    q = quantized()
    q.get_layer("logits").kernel.assign(np.full((6, 3), 3e38))
    text = (
        r"Received: .*(nan|inf).* from MeanSquaredError for layer 'logits'.*computes infinite"
        r".*clip what it reads"
    )
    with pytest.raises(ValueError, match=text):
        kerasq.calibrate(q, samples())
