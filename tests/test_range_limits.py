import keras
import numpy as np
import pytest

import kerasq
from kerasq import layers, range_limits
from kerasq.kernel_wrapper import KernelWrapper
from tests import networks

L = keras.layers


def narrow(scheme, factor):
    """A quantized model, and a layer of it whose range is `factor` times what it needs."""
    q = networks.quantized(networks.sequential(), scheme=scheme)
    layer = [layer for layer in q.layers if isinstance(layer, KernelWrapper)][1]
    quantizer = layer.output_quantizer
    quantizer.assign_range(*(float(end) * factor for end in quantizer.range()))
    return q, layer


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a16"])
def test_a_range_that_is_too_narrow_is_widened_on_both_sides(scheme, capsys):
    q, layer = narrow(scheme, 1e-5)
    lite = kerasq.export_tflite(q)
    assert f"The output range of layer {layer.name!r} is now" in capsys.readouterr().out
    x = networks.samples(q, 16)
    np.testing.assert_array_equal(lite.predict(x), q.predict_on_batch(x))
    sums = layer.input_grids()[0].scale * layer.integer_weights().grid.scale
    scale, limits = layer.grid().scale, layer.target.limits
    multiplier = float(keras.ops.max(sums) / scale) / limits.multiplier
    largest = float(keras.ops.max(layer.largest_sums(layer.input_grids()[0])) / scale)
    # As far as both limits ask for, and no further.
    found = max(multiplier, largest / limits.sums[layer.bits.code_bits])
    assert 0.999 < found < 1.0


def test_a_dead_layer_stays_dead_in_the_file():
    """A bias far beyond what int32 holds, once it is rescaled to a narrow output."""
    networks.set_seed(1)
    layers = [L.Dense(64, activation="relu"), L.Dense(32, activation="relu"), L.Dense(1)]
    model = keras.Sequential([keras.Input((14,)), *layers])
    for bias in (-1e9, 1e9):
        model.layers[0].bias.assign(np.where(np.arange(64) % 2, bias, -1e9))
        x = networks.data(model, 64)
        q = networks.quantized(model, x)
        lite = kerasq.export_tflite(q, check=False)
        want = networks.run(model, x)
        np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
        np.testing.assert_allclose(lite.predict(x), want, atol=0.02 * np.abs(want).max() + 1e-6)


# Factor of the weights, bias, and size of the inputs.
CONSTANT = {
    "nothing": (0.0, 0.0, 1.0),
    "constant": (0.0, -3.0, 1.0),
    "huge_constant": (0.0, 1e30, 1.0),
    "tiny_weights": (1e-30, 0.0, 1.0),
    "tiny_inputs": (1.0, 0.0, 1e-30),
    "small_values": (1e-3, 0.0, 1e-3),
    "huge_weights": (1e30, 0.0, 1.0),
    "huge_inputs": (1.0, 0.0, 1e30),
}


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w4a8"])
def test_outputs_that_are_constant_tiny_or_huge(scheme):
    networks.set_seed(0)
    inputs, outputs, x = {}, {}, {}
    for name, (weight, bias, size) in CONSTANT.items():
        inputs[name] = keras.Input((4, 4, 2), name=name)
        first = L.Conv2D(3, 2)
        y = L.DepthwiseConv2D(2)(first(inputs[name]))
        first.set_weights([weight * first.kernel.numpy(), np.full(3, bias)])
        outputs[name] = L.Dense(2)(L.Flatten()(y))
        x[name] = size * np.random.default_rng(0).normal(size=(16, 4, 4, 2)).astype("float32")
    model = keras.Model(inputs, outputs)
    q = kerasq.quantize_model(model, scheme)
    kerasq.calibrate(q, [x])
    lite, want = kerasq.export_tflite(q), networks.run(model, x)
    # In a graph, too, whose threads may take the smallest numbers for 0.
    run = keras.Model.predict_on_batch if scheme == "w8a8" else networks.run
    simulated, found = run(q, x), lite.predict(x)
    assert lite.float_ops == []
    for name in CONSTANT:
        np.testing.assert_array_equal(found[name], simulated[name])
        assert np.isfinite(found[name]).all()
        if scheme != "w4a8":
            # What is below a millionth may count as nothing.
            atol = 0.05 * np.abs(want[name]).max() + 1e-6
            np.testing.assert_allclose(found[name], want[name], atol=atol)


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
@pytest.mark.parametrize("factor", [1e-3, 1e-6])
def test_narrow_ranges_of_sums_and_products_are_widened(scheme, factor):
    a, b = keras.Input((3, 4), name="a"), keras.Input((3, 4), name="b")
    kinds = (L.Add, L.Subtract, L.Multiply)
    outputs = {kind.__name__: kind(name=kind.__name__)([a, b]) for kind in kinds}
    q = kerasq.quantize_model(keras.Model([a, b], outputs), scheme)
    x = networks.samples(q, 16)
    kerasq.calibrate(q, [x])
    for name in outputs:
        quantizer = q.get_layer(name).output_quantizer
        quantizer.assign_range(*(float(end) * factor for end in quantizer.range()))
    # One input far wider than the other, too.
    wide = q.get_layer("a_quantize").output_quantizer
    wide.assign_range(*(float(end) * 100 for end in wide.range()))
    lite = kerasq.export_tflite(q)
    found, simulated = lite.predict(x), q.predict_on_batch(x)
    for name in outputs:
        np.testing.assert_array_equal(found[name], simulated[name])


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "w4a8"])
def test_a_relu6_far_below_its_accumulators(scheme):
    """A step of its sums is wider than the range, which ends at 6: values are 0 or 6."""
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((4,)), L.Dense(6, "relu6", name="thin")])
    model.get_layer("thin").kernel.assign(1e7 * np.random.default_rng(0).normal(size=(4, 6)))
    q = networks.quantized(model, scheme=scheme)
    x = networks.samples(q, 64)
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    # But for sums that inputs on a grid have on the other side of 0.
    off = np.abs(lite.predict(x) - networks.run(model, x)) > 0.03
    assert off.mean() < 0.1


def test_a_relu6_that_saw_hardly_anything_is_widened_to_its_limit_at_most(capsys):
    model = keras.Sequential([keras.Input((4,)), L.Dense(6, "relu6", name="thin")])
    q = networks.quantized(model)
    q.get_layer("thin").output_quantizer.assign_range(0.0, 1e-5)
    q.get_layer("thin").kernel.assign(1e7 * np.ones((4, 6)))
    kerasq.export_tflite(q)
    assert "times as wide, [0, 6]: kernels take no multiplier" in capsys.readouterr().out


def test_a_sum_far_wider_than_its_relu6():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = keras.Model([a, b], L.ReLU(6.0)(L.Add(name="both")([a, b])))
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, [[1e6 * x for x in networks.samples(model, 16)]])
    with pytest.raises(
        ValueError, match=r"far wider than .* ReLU. Received: layer 'both'.* 6: ker"
    ):
        kerasq.export_tflite(q)


@pytest.mark.parametrize("scheme", ["w4a8", "w8a8"])
def test_a_bias_far_beyond_the_sums(scheme):
    """Kernels on packed weights multiply the bias by 16."""
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((8,)), L.Dense(5, name="thin")])
    model.get_layer("thin").kernel.assign(60 * np.random.default_rng(1).normal(size=(8, 5)))
    model.get_layer("thin").bias.assign([-1e3, 1.0, 900.0, -300.0, 1e-3])
    q = kerasq.quantize_model(model, scheme)
    x = 1e-6 * np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    kerasq.calibrate(q, x, method="minmax")
    np.testing.assert_array_equal(
        kerasq.export_tflite(q, check=False).predict(x), networks.run(q, x)
    )


def test_sums_beyond_float32_are_those_of_the_layer():
    model = keras.Sequential([keras.Input((4,)), L.Dense(3, name="huge")])
    model.get_layer("huge").kernel.assign(np.full((4, 3), 5e37))
    q = kerasq.quantize_model(model)
    x = np.random.default_rng(0).normal(size=(32, 4)).clip(-1, 1)
    with pytest.raises(ValueError, match=r"within float32, .* Received: layer 'huge', .*down, or"):
        kerasq.calibrate(q, x)


@pytest.mark.parametrize(
    ("unit", "scheme", "target", "least"),
    [
        (1e13, "w8a16", "litert", 45.0),
        (1e-11, "w8a8", "litert", 38.0),
        (1e13, "w8a8", "tflm", 38.0),
        (1e-30, "w8a16", "tflm", 45.0),
    ],
)
def test_values_of_any_unit(unit, scheme, target, least):
    """Hertz, picoamperes: gains and ranges are far from 1, ratios of scales are not."""
    networks.set_seed(0)
    layers = [L.Rescaling(1 / unit), L.Dense(16, "relu"), L.Dense(2)]
    model = keras.Sequential([keras.Input((16,)), *layers])
    x = np.float32(unit) * np.random.default_rng(0).normal(size=(64, 16)).astype("float32")
    q = kerasq.quantize_model(model, scheme, target=target)
    kerasq.calibrate(q, x)
    found, want = networks.run(q, x), networks.run(model, x)
    assert 10 * np.log10(np.mean(want**2) / np.mean((found - want) ** 2)) > least
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_array_equal(lite.predict(x), found)
    tiny = np.finfo(np.float32).tiny
    assert all((t.grid.scale >= tiny).all() for t in lite.tensors if t.grid is not None)


def test_int16_values_far_wider_than_the_grid_that_they_are_put_onto():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    q = kerasq.quantize_model(keras.Model([a, b], L.Minimum(name="least")([a, b])), "w8a16")
    x = [scale * np.random.default_rng(0).normal(size=(64, 4)) for scale in (1e6, 1.0)]
    x = [np.abs(values).astype("float32") for values in x]
    kerasq.calibrate(q, [x])
    q.get_layer("least").output_quantizer.assign_range(0.0, 0.1)
    lite = kerasq.export_tflite(q, check=False)
    for found, want in zip([lite.predict(x)], [networks.run(q, x)], strict=True):
        np.testing.assert_array_equal(found, want)
    q = kerasq.quantize_model(keras.Model(a, L.ReLU(6.0, name="end")(L.Flatten()(a))), "w8a16")
    kerasq.calibrate(q, 1e6 * x[1])
    with pytest.raises(ValueError, match=r"far wider than .* ReLU. Received: layer 'end'"):
        kerasq.export_tflite(q)


def test_what_was_widened_for_the_sums_says_so(capsys):
    """Inputs and weights that could add up to more than int32 holds, in steps of the output."""
    model = keras.Sequential([keras.Input((4000,)), L.Dense(3, use_bias=False, name="thin")])
    q = networks.quantized(model)
    layer = q.get_layer("thin")
    layer.kernel.assign(np.where(np.arange(4000) % 2, 1.0, -1.0)[:, None] * np.ones((1, 3)))
    scale = float(layer.largest_step()) / 200  # below the limit of multipliers
    layer.output_quantizer.assign_range(-128 * scale, 127 * scale)
    kerasq.export_tflite(q)
    assert "kernels take no sums of more than 5.37e+08 steps" in capsys.readouterr().out


def test_ranges_that_kernels_take_stay():
    q, _ = narrow("w8a8", 0.5)
    before = [v.numpy() for v in q.variables]
    assert range_limits.widen(q) == []
    for a, b in zip(before, q.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_untrained_network_exports(capsys):
    """Activations shrink from layer to layer: untrained statistics normalize nothing."""
    networks.set_seed(0)
    model = keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=10)
    x = np.random.default_rng(0).uniform(0, 255, (16, 32, 32, 3)).astype("f")
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, x)
    # Ratios of scales are as kernels take them, but 6 is too many steps.
    assert "times as wide, [0, 7.12e-07]: interpreters count" in capsys.readouterr().out
    lite = kerasq.export_tflite(q)
    assert "is now" not in capsys.readouterr().out  # Calibration has widened them.
    assert lite.float_ops == []
    # Eagerly, as tracing a hundred layers takes longer.
    np.testing.assert_array_equal(lite.predict(x), q(x, training=False))


@pytest.mark.parametrize("kind", [layers.Sum, layers.Mean])
def test_narrow_ranges_of_sums_along_axes_are_widened_on_int16(kind):
    x = keras.Input((900, 2), name="x")
    q = kerasq.quantize_model(keras.Model(x, kind([1], name="all")(x)), "w8a16")
    samples = np.abs(np.random.default_rng(0).normal(size=(8, 900, 2))).astype("f")
    kerasq.calibrate(q, samples)
    quantizer = q.get_layer("all").output_quantizer
    quantizer.assign_range(*(float(end) * 1e-7 for end in quantizer.range()))
    lite = kerasq.export_tflite(q, check=False)
    np.testing.assert_array_equal(lite.predict(samples), networks.run(q, samples))


@pytest.mark.parametrize("other", [1.0, 1e-6], ids=["alike", "dead"])
def test_a_sum_beside_a_dead_branch_is_not_wider_than_its_kernel(other, capsys):
    """LiteRT's own kernel, which runs beside a dead branch, would wrap around at 16 bits."""
    a, b = (keras.Input((32,), name=name) for name in "ab")
    model = keras.Model([a, b], L.Add(name="sum")([a, b]))
    x = [np.abs(networks.data(model, 64)[i]) * size for i, size in enumerate((600.0, other * 600))]
    q = networks.quantized(model, x)
    quantizer = q.get_layer("sum").output_quantizer
    quantizer.assign_range(0.0, float(quantizer.range()[1]) / 200)
    lite = kerasq.export_tflite(q, check=False)
    printed = capsys.readouterr().out
    assert ("of 127 or more" in printed) == (other < 1)
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))


@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize("scheme", ["w8a8", "w8a16"])
def test_products_of_tensors_that_nearly_cancel_in_the_data(scheme, target, capsys):
    """Kernels would wrap around where ordinary values are multiplied."""
    rng = np.random.default_rng(0)
    ends = [keras.Input((3, 64), name=name) for name in "ab"]
    q = kerasq.quantize_model(
        keras.Model(ends, layers.Matmul(transpose=True, name="y")(ends)), scheme, target=target
    )
    a, b = rng.normal(size=(2, 32, 3, 64)).astype("float32")
    # Orthogonal to all rows of `a`, but for a millionth.
    rows = np.linalg.qr(np.swapaxes(a, 1, 2))[0]
    cancelling = b - b @ rows @ np.swapaxes(rows, 1, 2) + 1e-6 * b
    kerasq.calibrate(q, [[a, cancelling.astype("float32")]], method="minmax")
    assert "'y' is now" in capsys.readouterr().out
    lite = kerasq.export_tflite(q)
    np.testing.assert_array_equal(lite.predict([a, b]), networks.run(q, [a, b]))


@pytest.mark.parametrize("target", ["litert", "tflm"])
@pytest.mark.parametrize(
    ("function", "end", "exponent"),
    [
        ("sigmoid", 8.0, -11),
        ("sigmoid", 8.003, -11),
        ("sigmoid", 16.0, -11),
        ("tanh", 8.0, -10),
        ("tanh", 16.0, -10),
        ("tanh", 8.05, None),
    ],
)
def test_scales_at_which_kernels_compute_otherwise(function, end, exponent, target, capsys):
    """LiteRT's int16 kernels shift codes whose scale is within 2^-10 of such a power of two."""
    x = keras.Input((6,), name="x")
    y = L.Reshape((5, 1))(L.Dense(5, name="dense")(x))
    model = keras.Model(x, L.Activation(function, name="curve")(y))
    data = networks.data(model, 64)
    q = networks.quantized(model, data, scheme="w8a16", target=target)
    layer = q.get_layer("dense")
    layer.output_quantizer.assign_range(-end, end)
    before = float(layer.grid().scale)
    lite = kerasq.export_tflite(q, check=False)
    after = float(layer.grid().scale)
    assert abs(np.log2(after) - exponent) < 1e-4 if exponent else after == before
    assert ("'curve' is computed otherwise" in capsys.readouterr().out) == (after != before)
    x = [20.0 * v for v in keras.tree.flatten(data)]
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
