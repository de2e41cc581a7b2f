"""`calibrate` with every observer: one contract, and what NumPy says."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.calibration.calibrate import BATCH_SIZE
from kerasq.calibration.extremes import MOVING_RATE
from kerasq.calibration.observers import OBSERVERS
from kerasq.grid import Grid
from kerasq.quantizers.activations import NARROWEST
from kerasq.wrappers import ranged
from tests import networks


def observed(method, data, bits=8):
    """The observer after batches, by way of the statistics that the traced model takes."""
    observer = OBSERVERS[method]()
    statistics = tf.function(observer.statistics)
    for batch in data:
        observer.update([s.numpy() for s in statistics(tf.constant(batch, tf.float32))])
    observer.range = functools.partial(observer.range, bits=bits, symmetric=bits > 8)
    return observer


def seeded(count=7, size=3000, seed=0):
    """Batches of different width, the widest last but one."""
    rng = np.random.default_rng(seed)
    widths = np.linspace(0.3, 4.0, count)
    widths[[-1, -2]] = widths[[-2, -1]]
    return [(rng.normal(0.2, w, size)).astype("float32") for w in widths]


def squared_error(x, low, high, bits=8):
    """Mean squared rounding error of values on the grid over a range, in float64."""
    scale = (high - low) / (2**bits - 1)
    zero = np.floor(-low / scale + 0.5)
    codes = np.clip(np.rint(np.asarray(x, np.float64) / scale) + zero, 0, 2**bits - 1)
    return np.mean((x - (codes - zero) * scale) ** 2)


@pytest.mark.parametrize("method", OBSERVERS)
class TestEveryObserver:
    """The contract: what any observer gives, whatever its method."""

    def test_the_range_lies_within_the_data(self, method):
        data = seeded()
        everything = np.concatenate(data)
        low, high = observed(method, data).range()
        assert isinstance(low, float) and isinstance(high, float)
        assert everything.min() <= low < -1.0 and 1.0 < high <= everything.max()

    def test_it_follows_the_scale_of_the_data(self, method):
        """Powers of two change no bin and no rounding, so that the range scales with the data."""
        data = seeded()
        low, high = observed(method, data).range()
        for factor in (2.0**-8, 2.0**9):
            scaled = observed(method, [x * factor for x in data]).range()
            np.testing.assert_allclose(scaled, (low * factor, high * factor), rtol=1e-5)

    def test_mirrored_data_give_the_mirrored_range(self, method):
        data = [x - 0.2 for x in seeded()]
        low, high = observed(method, data).range()
        mirrored = observed(method, [-x for x in data]).range()
        np.testing.assert_allclose(mirrored, (-high, -low), rtol=0.02)

    def test_zeros_give_an_empty_range_that_is_finite(self, method):
        low, high = observed(method, [np.zeros((4, 3))] * 3).range()
        assert abs(low) < 1e-5 and abs(high) < 1e-5

    def test_zeros_before_the_data_do_no_harm(self, method):
        rng = np.random.default_rng(0)
        data = [np.zeros(1), *(rng.uniform(-3, 5, 5000) for _ in range(200))]
        low, high = observed(method, data).range()
        np.testing.assert_allclose((low, high), (-3.0, 5.0), rtol=0.05)

    def test_data_of_one_sign(self, method):
        x = np.random.default_rng(0).uniform(2.0, 4.0, 5000)
        _, high = observed(method, [x]).range()
        low, _ = observed(method, [-x]).range()
        np.testing.assert_allclose((low, high), (-4.0, 4.0), rtol=0.03)

    def test_a_single_value(self, method):
        _, high = observed(method, [np.float32([2.5])]).range()
        low, _ = observed(method, [np.float32([-2.5])]).range()
        np.testing.assert_allclose((low, high), (-2.5, 2.5), rtol=1e-3)

    @pytest.mark.parametrize("value", [2.5, 2.501, -2.5, 0.0])
    def test_the_ends_are_in_order(self, method, value):
        """Also where all values lie in one bin, on either side of its centre."""
        low, high = observed(method, [np.float32([value])]).range()
        assert low <= high

    def test_calibrate_sets_ranges_that_make_grids(self, method):
        model = quantized()
        kerasq.calibrate(model, samples(100), method=method)
        for quantizer in ranged(model).values():
            low, high = (float(end) for end in quantizer.range())
            assert low <= 0.0 < NARROWEST < high
            Grid.from_range(low, high)
        assert np.isfinite(networks.run(model, samples(4))).all()


def test_minmax_is_the_least_and_the_greatest():
    data = seeded()
    expected = (np.concatenate(data).min(), np.concatenate(data).max())
    assert observed("minmax", data).range() == expected


def test_moving_average_is_the_mean_of_the_first_hundred_batches():
    data = seeded(100, 50)
    expected = np.mean([[x.min(), x.max()] for x in data], axis=0, dtype=np.float64)
    np.testing.assert_allclose(observed("moving_average", data).range(), expected, rtol=1e-6)


def test_moving_average_is_exponential_from_then_on():
    """Jacob et al. 2018, section 3.1."""
    data = seeded(130, 50)
    low, high = np.mean([[x.min(), x.max()] for x in data[:100]], axis=0, dtype=np.float64)
    for x in data[100:]:
        low += MOVING_RATE * (x.min() - low)
        high += MOVING_RATE * (x.max() - high)
    np.testing.assert_allclose(observed("moving_average", data).range(), (low, high), rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_percentile_is_that_of_numpy_within_a_bin(seed):
    rng = np.random.default_rng(seed)
    data = [rng.standard_t(4, 60_007).astype("float32") * (seed + 0.3) for _ in range(5)]
    observer = observed("percentile", data)
    everything = np.concatenate(data)
    tail = 100 - observer.percent
    expected = np.percentile(everything, [tail, 100 - tail], method="inverted_cdf")
    width = 2 * 2.0**observer.exponent / observer.BINS
    np.testing.assert_allclose(observer.range(), expected, atol=width)
    assert everything.min() < observer.range()[0] and observer.range()[1] < everything.max()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_mse_is_as_good_as_brute_force_on_the_values(seed, bits):
    rng = np.random.default_rng(seed)
    data = [rng.laplace(0.1, 1.0, 20_000).astype("float32") for _ in range(3)]
    everything = np.concatenate(data)
    low, high = observed("mse", data, bits).range()
    factors = np.linspace(1.0, 0.2, 80)
    errors = [
        squared_error(everything, everything.min() * k, everything.max() * k, bits) for k in factors
    ]
    assert squared_error(everything, low, high, bits) <= min(errors) * 1.01
    # It does cut: the whole range is far from the best at few bits.
    assert high < everything.max() and low > everything.min()


@pytest.mark.parametrize("doublings", [1, 5, 11, 12, 13, 40])
def test_the_histogram_widens_without_losing_a_value(doublings):
    """Later batches with larger values: as if the histogram had been that wide from the start."""
    rng = np.random.default_rng(doublings)
    small = rng.uniform(-0.99, 0.99, 5000).astype("float32")
    large = (rng.uniform(-0.99, 0.99, 100) * 2.0**doublings).astype("float32")
    large[0] = 0.99 * 2.0**doublings
    for order in ([small, large], [large, small]):
        observer = observed("percentile", order)
        assert observer.exponent == doublings
        bins = 2048 + np.floor(np.concatenate(order).astype(np.float64) * 2.0 ** (11 - doublings))
        expected = np.bincount(bins.astype(int), minlength=4096)
        np.testing.assert_array_equal(observer.counts, expected)


# The whole function, on a small model whose float outputs NumPy knows.


def float_model():
    layers = [
        keras.Input((4,), name="x"),
        keras.layers.Dense(6, name="hidden"),
        keras.layers.ReLU(name="relu"),
        keras.layers.Dense(3, name="logits"),
        keras.layers.Softmax(name="softmax"),
    ]
    model = keras.Sequential(layers)
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(0, 1, w.shape) for w in model.get_weights()])
    return model


def quantized():
    return kerasq.quantize_model(float_model())


def samples(count, seed=0):
    return np.random.default_rng(seed).normal(0, 1, (count, 4)).astype("float32")


def numpy_outputs(x):
    """What each layer with a range puts out in float."""
    w1, b1, w2, b2 = float_model().get_weights()
    hidden = np.maximum(x @ w1 + b1, 0)
    return {"x_quantize": x, "hidden": hidden, "logits": hidden @ w2 + b2}


def found_ranges(model):
    return {
        name: tuple(float(end) for end in quantizer.range())
        for name, quantizer in ranged(model).items()
    }


def assert_ranges(model, expected):
    found = found_ranges(model)
    assert found.keys() == expected.keys()
    for name, (low, high) in expected.items():
        low = 0.0 if name == "hidden" else low
        np.testing.assert_allclose(found[name], (low, high), rtol=1e-5, atol=1e-6)


def test_ranges_are_those_of_the_float_outputs():
    model, x = quantized(), samples(100)
    kerasq.calibrate(model, x, method="minmax")
    assert_ranges(model, {name: (y.min(), y.max()) for name, y in numpy_outputs(x).items()})


def test_names_that_no_root_scope_may_have():
    x = keras.Input((2,), name="é")
    model = kerasq.quantize_model(keras.Model(x, keras.layers.Dense(3, name="_head")(x)))
    data = np.array([[-1.0, 2.0], [0.5, 0.0]], np.float32)
    kerasq.calibrate(model, data, method="minmax")
    y = data @ model.get_layer("_head").layer.kernel.numpy()
    assert_ranges(model, {"__quantize": (-1.0, 2.0), "_head": (y.min(), y.max())})


def test_the_moving_average_is_the_mean_over_batches_of_32():
    model, x = quantized(), samples(100)
    kerasq.calibrate(model, x, method="moving_average")
    parts = [numpy_outputs(x[i : i + 32]) for i in range(0, 100, 32)]
    assert BATCH_SIZE == 32 and len(parts) == 4
    assert_ranges(
        model,
        {
            name: np.mean([[p[name].min(), p[name].max()] for p in parts], axis=0)
            for name in parts[0]
        },
    )


def test_only_the_ranges_change():
    model = quantized()
    ranges = {id(v) for q in ranged(model).values() for v in q.weights}
    others = [v for v in model.weights if id(v) not in ranges]
    before = [v.numpy() for v in others]
    kerasq.calibrate(model, samples(40))
    assert len(before) > 3
    for old, new in zip(before, others, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_calibrating_again_forgets_the_first_data():
    model, fresh = quantized(), quantized()
    kerasq.calibrate(model, samples(64) * 100, method="minmax")
    kerasq.calibrate(model, samples(64, 1), method="minmax")
    kerasq.calibrate(fresh, samples(64, 1), method="minmax")
    assert found_ranges(model) == found_ranges(fresh)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("as_dataset", [False, True])
def test_steps_limit_the_batches(steps, as_dataset):
    model, x = quantized(), samples(100)
    data = tf.data.Dataset.from_tensor_slices(x).batch(32) if as_dataset else x
    kerasq.calibrate(model, data, method="minmax", steps=steps)
    used = numpy_outputs(x[: 32 * steps])
    assert_ranges(model, {name: (y.min(), y.max()) for name, y in used.items()})


class Dataset(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        x = samples(100)[index * 25 : (index + 1) * 25]
        return x, np.zeros(len(x))


@pytest.mark.parametrize(
    "data",
    [
        lambda: Dataset(),
        lambda: tf.data.Dataset.from_tensor_slices((samples(100), np.zeros(100))).batch(25),
        lambda: (samples(100)[i : i + 30] for i in range(0, 100, 30)),
        lambda: tf.constant(samples(100)),
        lambda: samples(100).astype("float64"),
    ],
    ids=["PyDataset", "tf_xy", "generator", "tensor", "float64"],
)
def test_any_source_of_the_same_samples_gives_the_same_ranges(data):
    model = quantized()
    kerasq.calibrate(model, data(), method="minmax")
    expected = {name: (y.min(), y.max()) for name, y in numpy_outputs(samples(100)).items()}
    assert_ranges(model, expected)


def test_several_inputs():
    inputs = [keras.Input((3,), name="a"), keras.Input((2,), name="b")]
    joined = keras.layers.Concatenate(name="join")(inputs)
    model = kerasq.quantize_model(keras.Model(inputs, joined))
    rng = np.random.default_rng(0)
    a, b = rng.uniform(-1, 2, (50, 3)), rng.uniform(-8, 4, (50, 2))
    kerasq.calibrate(model, [a, b], method="minmax")
    assert_ranges(
        model,
        {
            "a_quantize": (a.min(), a.max()),
            "b_quantize": (b.min(), b.max()),
            "join": (b.min(), b.max()),
        },
    )


def test_convolution_with_batch_norm_counts_as_one_layer():
    layers = [
        keras.Input((6, 6, 2), name="x"),
        keras.layers.Conv2D(3, 1, use_bias=False, name="conv"),
        keras.layers.BatchNormalization(name="norm", epsilon=1e-3),
        keras.layers.ReLU(6.0, name="relu6"),
    ]
    model = keras.Sequential(layers)
    rng = np.random.default_rng(0)
    kernel = rng.normal(0, 2, (1, 1, 2, 3))
    gamma, beta, mean, variance = rng.uniform(0.2, 3, (4, 3)) * [[1], [-1], [1], [1]]
    model.set_weights([kernel, gamma, beta, mean, variance])
    x = rng.normal(0, 8, (20, 6, 6, 2))
    y = (x @ kernel[0, 0] - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    assert y.max() > 6 and y.min() < 0
    for batch_norm in ("fold", "keep"):
        q = kerasq.quantize_model(model, batch_norm=batch_norm)
        kerasq.calibrate(q, x, method="minmax")
        assert found_ranges(q)["conv"] == (0.0, 6.0)
        kerasq.calibrate(q, x / 8, method="minmax")
        small = (x / 8 @ kernel[0, 0] - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        assert small.max() < 6
        np.testing.assert_allclose(found_ranges(q)["conv"], (0.0, small.max()), rtol=1e-4)


def test_an_unknown_method_is_an_error():
    expected = r"`method` must be one of \['minmax', .*'best'\]. Received: method='worst'"
    with pytest.raises(ValueError, match=expected):
        kerasq.calibrate(quantized(), samples(4), method="worst")


def test_a_float_model_is_an_error():
    with pytest.raises(ValueError, match=r"must be a quantized model.*quantize_model first"):
        kerasq.calibrate(float_model(), samples(4))


BAD = [
    (samples(0), {}, "at least one sample"),
    (samples(9), {"steps": 0}, "at least 1, or None"),
    (iter([]), {}, "A generator that was read before is empty"),
    (samples(9)[:, :3], {}, r"\(None, 4\). Received: a batch of shape \(9, 3\)"),
    (samples(9)[0], {}, r"Received: a batch of shape \(4,\)"),
    (iter([[samples(9), samples(9)]]), {}, r"must hold 1 input\(s\) a batch. Received: 2"),
    (np.full((3, 4), np.nan), {}, "must be finite. Received: NaN or infinity in batch 0"),
    (np.full((3, 4), np.inf), {}, "must be finite. Received: NaN or infinity in batch 0"),
]


@pytest.mark.parametrize(("data", "options", "expected"), BAD, ids=range(len(BAD)))
def test_bad_data_is_an_error_and_changes_nothing(data, options, expected):
    model = quantized()
    kerasq.calibrate(model, samples(20), method="minmax")
    before = found_ranges(model)
    with pytest.raises(ValueError, match=expected):
        kerasq.calibrate(model, data, **options)
    assert found_ranges(model) == before


def test_a_bad_value_late_in_the_data_changes_nothing():
    model, x = quantized(), samples(100)
    x[99, 3] = np.nan
    with pytest.raises(ValueError, match="batch 3, input 'x'"):
        kerasq.calibrate(model, x)
    assert all(quantizer.batches_seen.numpy() == 0 for quantizer in ranged(model).values())


def test_a_batch_without_samples_is_an_error():
    with pytest.raises(ValueError, match="at least one sample"):
        kerasq.calibrate(quantized(), iter([samples(0)]))


@pytest.mark.parametrize("method", [None, *OBSERVERS])
def test_constant_zero_data_give_a_model_that_runs(method):
    model = quantized()
    kerasq.calibrate(model, np.zeros((10, 4)), method=method)
    assert found_ranges(model)["x_quantize"] == (0.0, 1.0)
    assert np.isfinite(networks.run(model, samples(3))).all()


def test_without_a_method_few_codes_leave_outliers_out():
    """Up to 8 bits "mse", at 16 "minmax"."""
    x = np.random.default_rng(0).normal(size=(256, 6)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((6,), name="x"),
            keras.layers.Dense(16, "relu", name="wide"),
            keras.layers.Dense(16, "relu", name="narrow"),
            keras.layers.Dense(4, name="head"),
        ]
    )
    found = {}
    for method in (None, "mse", "minmax"):
        q = kerasq.quantize_model(model, "w2a2", overrides={"wide": "w8a16", "head": "w8a8"})
        kerasq.calibrate(q, x, method=method)
        found[method] = {n: tuple(map(float, v.range())) for n, v in ranged(q).items()}
    bits = {name: quantizer.bits for name, quantizer in ranged(q).items()}
    assert set(bits.values()) == {2, 8, 16}
    for name, width in bits.items():
        assert found[None][name] == found["mse" if width <= 8 else "minmax"][name]
    assert found["mse"]["wide"] == found["minmax"]["wide"]  # Nothing is won at 16 bits.
    assert found["mse"] != found["minmax"]


@pytest.mark.parametrize("range_gradient", ["lsq", "clip", "none"])
def test_an_untrained_network_may_be_calibrated_before_training(range_gradient, capsys):
    """In inference mode its BatchNormalization has yet to learn how large values are."""
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 3))])
    for _ in range(3):
        model.add(keras.layers.Conv2D(8, 3, padding="same", kernel_initializer="he_normal"))
        model.add(keras.layers.BatchNormalization())
        model.add(keras.layers.ReLU())
    x = np.random.default_rng(0).uniform(0.0, 255.0, (64, 8, 8, 3)).astype("float32")
    q = kerasq.quantize_model(model, range_gradient=range_gradient)
    kerasq.calibrate(q, x)
    assert "The ranges of 3 layers, from 'conv2d" in capsys.readouterr().out
    kerasq.export_tflite(q)  # Nothing but training forgets them.
    expected, found = (np.array(m(x, training=True)) for m in (model, q))
    error = np.square(found - expected).mean() / np.square(expected).mean()
    assert -10.0 * np.log10(error) > 25.0


@pytest.mark.parametrize("batch_norm", ["keep", "fold"])
def test_ranges_of_a_trained_network_are_not_provisional(batch_norm, capsys):
    model = networks.residual()
    x = networks.data(model, 64)
    # All but the first batch have far larger values, and training changes nothing.
    x[16:] *= 100.0
    q = kerasq.quantize_model(model, batch_norm=batch_norm, range_gradient="lsq")
    kerasq.calibrate(q, x, method="minmax")
    before = found_ranges(q)
    assert "yet to see data" not in capsys.readouterr().out
    q.compile(keras.optimizers.SGD(0.0), "mse")
    q.fit(x[:16], np.zeros((16, *q.output_shape[1:]), "float32"), batch_size=8, verbose=0)
    assert found_ranges(q) == before
