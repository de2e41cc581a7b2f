import keras
import numpy as np
import pytest

import kerasq
from kerasq.analysis import trouble
from tests import networks

L = keras.layers


def model(**options):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((8,), name="image"), L.Dense(6, "relu", name="first")]
    q = kerasq.quantize_model(keras.Sequential([*layers, L.Dense(4, name="head")]), **options)
    kerasq.calibrate(q, data()[0])
    return q


def data(count=256):
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 8)).astype("f"), rng.normal(size=(count, 4)).astype("f")


def found(q, x=None):
    """The troubles of a model, layer and text."""
    if x is not None:
        trouble.observer(q)(x)
    return [(one.layer, one.what) for one in trouble.find(q)]


def test_a_sound_model_has_no_trouble():
    q, (x, y) = model(), data()
    check = kerasq.CheckTraining(x)
    q.compile(keras.optimizers.SGD(1e-3), "mse")
    q.fit(x, y, epochs=2, verbose=0, callbacks=[check])
    assert check.troubles == []
    assert [sorted(shares) for shares in check.clipped] == [["first", "head", "image_quantize"]] * 2
    assert "Trouble" not in str(kerasq.summary(q))


def test_values_beyond_a_range_are_told_with_their_share():
    q, (x, _) = model(), data()
    y = q.get_layer("head").float_output(q.get_layer("first").float_output(x)).numpy()
    half = float(np.quantile(np.abs(y), 0.5))
    q.get_layer("head").output_quantizer.assign_range(-half, half)
    ((layer, what),) = found(q, x)
    assert layer == "head"
    assert 45.0 < float(what.split(" %")[0]) < 55.0
    assert "Trouble. head: " in str(kerasq.summary(q))


def test_a_batch_counts_by_its_samples():
    q, (x, _) = model(), data(33)
    x[32] = 50.0
    trouble.observer(q)(x)
    assert q.get_layer("image_quantize").output_quantizer.clipped == pytest.approx(
        np.mean(np.abs(x) > np.abs(data()[0]).max()), abs=0.01
    )


def test_inputs_unlike_those_that_were_calibrated_on_are_told():
    q, (x, _) = model(), data()
    (first, *_) = found(q, 100 * x)
    assert first[0] == "image_quantize" and "% of its values" in first[1]
    assert "preprocessing" in trouble.find(q)[0].advice


def test_clipping_is_part_of_few_bits():
    q, (x, _) = model(scheme="w4a4"), data()
    first = q.get_layer("first")
    assert first.output_quantizer.bits == 4
    y = first.float_output(x).numpy()
    first.output_quantizer.assign_range(0.0, np.quantile(y, 0.85))
    assert found(q, x) == []
    assert 0.1 < first.output_quantizer.clipped < 0.15


def test_dead_layers_are_told():
    q, (x, _) = model(), data()
    q.get_layer("first").bias.assign(np.full(6, -1e3))
    assert ("first", "its output is constant") in found(q, x)


def test_collapsed_ranges_are_told():
    q = model()
    q.get_layer("head").output_quantizer.range_min.assign(0.0)
    q.get_layer("head").output_quantizer.range_max.assign(0.0)
    ((layer, what),) = found(q)
    assert layer == "head" and what.startswith("its range has collapsed")


@pytest.mark.parametrize(("scheme", "share", "told"), [("w8a8", 0.1, True), ("w4a8", 0.1, False)])
def test_weights_beyond_their_range_are_told(scheme, share, told):
    q = model(scheme=scheme, range_gradient="lsq")
    layer = q.get_layer("first")
    edge = np.quantile(np.abs(layer.kernel.numpy()), 1 - share, axis=0)
    layer.weight_quantizer.kernel_range.assign(edge)
    assert bool(found(q)) == told


def test_nan_is_told():
    q = model()
    q.get_layer("first").kernel.assign(np.full((8, 6), np.nan))
    ((layer, what),) = found(q)
    assert (layer, what) == ("first", "NaN or infinite values in kernel")


def test_training_that_diverges_is_told_in_its_first_epoch(capsys):
    q, (x, y) = model(), data(640)
    check = kerasq.CheckTraining()
    q.compile(keras.optimizers.SGD(30.0), "mse")
    q.fit(x, y, batch_size=32, epochs=1, verbose=0, callbacks=[check])
    assert check.troubles[0].layer == ""
    assert "Training diverges" in capsys.readouterr().out


def test_a_trouble_is_told_once(capsys):
    q, (x, y) = model(), data()
    q.get_layer("first").bias.assign(np.full(6, -1e3))
    q.compile(keras.optimizers.SGD(0.0), "mse")
    q.fit(x, y, epochs=3, verbose=0, callbacks=[kerasq.CheckTraining(x)])
    assert capsys.readouterr().out.count("first: its output is constant") == 1


def test_networks_with_shared_layers_and_boundaries_are_looked_at():
    q = networks.quantized(networks.residual(), scheme="w8a8")
    assert found(q, networks.samples(q, 8)) == []


def test_it_wants_a_quantized_model():
    plain = keras.Sequential([keras.Input((8,)), L.Dense(4)])
    plain.compile("sgd", "mse")
    with pytest.raises(ValueError, match="must be a quantized model"):
        plain.fit(*data(), verbose=0, callbacks=[kerasq.CheckTraining()])
