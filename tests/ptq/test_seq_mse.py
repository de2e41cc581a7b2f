"""`seq_mse`: the range of the least error of the output, by hand."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq.ptq.seq_mse import SHARES
from tests import networks

L = keras.layers


def test_the_best_range_is_that_of_the_outputs():
    """A large weight on an input that is always 0 costs nothing: no error of weights says so."""
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((9,)), L.Dense(3, activation="relu", name="d")])
    kernel, bias = rng.uniform(-1, 1, (9, 3)).astype("f"), np.float32([0.5, 0.0, -0.5])
    kernel[0] = [8.0, 4.0, 1.0]
    model.set_weights([kernel, bias])
    x = rng.normal(size=(256, 9)).astype("f")
    x[:, 0] = 0.0
    q = networks.quantized(model, x, scheme="w3a8")
    layer = q.get_layer("d")
    (grid,) = layer.input_grids()
    seen = grid.numpy().dequantize(grid.numpy().quantize(x))
    wanted = np.maximum(x @ kernel + bias, 0)
    largest = np.abs(kernel).max(axis=0)
    errors = []
    own = layer.weight_quantizer.kernel_range.numpy()
    for high in (own, *(largest * share for share in SHARES)):
        step = high / 3
        codes = np.clip(np.rint(kernel / step), -3, 3)
        errors.append(((np.maximum(seen @ (codes * step) + bias, 0) - wanted) ** 2).sum(axis=0))
    errors = np.array(errors)
    report = kerasq.seq_mse(q, x)
    chosen = layer.weight_quantizer.kernel_range.numpy()
    best = errors.argmin(axis=0)
    expected = [own[c] if i == 0 else largest[c] * SHARES[i - 1] for c, i in enumerate(best)]
    np.testing.assert_allclose(chosen, expected, rtol=1e-6)
    power = (wanted**2).sum()
    np.testing.assert_allclose(
        [report.before[0], report.after[0]],
        [-10 * np.log10(errors[0].sum() / power), -10 * np.log10(errors.min(0).sum() / power)],
        atol=0.05,  # Biases are rounded, too.
    )
    assert report.after[0] > report.before[0] + 5.0 and chosen[0] == 8.0 * SHARES[0]


@pytest.mark.parametrize(("name", "batch_norm"), [("residual", "keep"), ("mobile", "fold")])
def test_networks_come_closer_to_float_and_then_round_better(name, batch_norm):
    model = getattr(networks, name)()
    rng = np.random.default_rng(0)
    x, other = rng.normal(0.5, 1.0, (2, 128, *model.input_shape[1:])).astype("f")
    q = networks.quantized(model, x, scheme="w3a8", batch_norm=batch_norm)
    own = networks.sqnr(model, q, other)
    before = {v.path: v.numpy() for v in q.variables}
    report = kerasq.seq_mse(q, x)
    assert networks.sqnr(model, q, other) > own
    changed = {v.path.split("/")[-1] for v in q.variables if np.any(v.numpy() != before[v.path])}
    assert changed == {"kernel_range"}
    assert all(a <= b for a, b in zip(report.before, report.after, strict=True))
    assert str(report).startswith("layer") and report.left == ()
    rounded = kerasq.adaround(q, x, iterations=200, learning_rate=2e-2)
    assert rounded.layers == report.layers and max(rounded.moved) > 0
    lite = kerasq.export_tflite(q)
    assert kerasq.compare(q, lite, x=other[:32]).exact == 1.0


def test_what_has_no_range_is_left():
    model = networks.mlp()
    q, x = networks.quantized(model), networks.data(model)
    before = [v.numpy() for v in q.variables]
    report = kerasq.seq_mse(q, x)
    assert (report.layers, report.left) == ((), ("hidden", "squash_linear", "head"))
    assert "Left as they are: hidden, squash_linear, head." in str(report)
    for old, new in zip(before, q.variables, strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(ValueError, match="must be a quantized model"):
        kerasq.seq_mse(model, x)
    with pytest.raises(ValueError, match="NaN"):
        kerasq.seq_mse(q, np.full_like(x, np.nan))


@pytest.mark.parametrize("batch_norm", ["keep", "fold"])
def test_one_range_for_all_channels(batch_norm):
    """By hand: the best of the ranges for the sums of the last layer, as it reads its inputs."""
    rng = np.random.default_rng(0)
    norm = L.BatchNormalization(name="bn")
    model = keras.Sequential([keras.Input((9,)), L.Dense(3, name="d"), norm])
    x = rng.normal(size=(256, 9)).astype("f")
    gain = np.float32([0.5, 1.0, 2.0])
    norm.set_weights([gain, 0 * gain, 0 * gain, 0 * gain + np.float32(1 - norm.epsilon)])
    options = {"scheme": "w3a8", "batch_norm": batch_norm, "granularity": "per_tensor"}
    q = networks.quantized(model, x, **options)
    layer = q.get_layer("d")
    (grid,) = layer.input_grids()
    seen = grid.numpy().dequantize(grid.numpy().quantize(x))
    folded = model.get_layer("d").kernel.numpy() * gain
    own, largest = float(layer.weight_quantizer.kernel_range[0]), np.abs(folded).max()
    candidates = np.array([own, *(largest * share for share in SHARES)])
    errors = []
    for high in candidates:
        rounded = np.clip(np.rint(folded / (high / 3)), -3, 3) * (high / 3)
        errors.append(np.square(seen @ rounded - x @ folded).sum())
    report = kerasq.seq_mse(q, x)
    (found,) = layer.weight_quantizer.kernel_range.numpy()
    np.testing.assert_allclose(found, candidates[np.argmin(errors)], rtol=1e-6)
    power = np.square(x @ folded).sum()
    wanted = [10 * np.log10(power / error) for error in (errors[0], min(errors))]
    np.testing.assert_allclose([*report.before, *report.after], wanted, atol=0.05)
