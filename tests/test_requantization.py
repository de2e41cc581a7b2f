"""Multipliers in fixed point: LiteRT's at 31 bits, others by hand, and as devices run."""

import math

import keras
import numpy as np
import pytest

import kerasq
from kerasq.requantization import fixed, most_steps, relative_errors, split
from tests import networks

L = keras.layers


def quantize_multiplier(real):
    """LiteRT's QuantizeMultiplier, in C++ as in Python."""
    if real == 0.0:
        return 0, 0
    mantissa, shift = math.frexp(real)
    # TfLiteRound: half away from zero, which floor(x + 0.5) is not below 0.
    found = int(math.copysign(math.floor(abs(mantissa) * 2**31 + 0.5), mantissa))
    if abs(found) == 2**31:
        found, shift = found // 2, shift + 1
    return (0, 0) if shift < -31 else (found, shift)


def test_31_bits_are_those_of_litert():
    rng = np.random.default_rng(0)
    real = 2.0 ** rng.uniform(-31, 8, 500)
    edges = [0.0, 1.0, 0.5, 1.0 - 2.0**-40, 2.0 - 2.0**-33, 0.1, -0.3, 2.0**-31, 2.0**-33, 255.9]
    real = np.concatenate([real, edges])
    mantissa, shift = split(real, 31)
    assert [*zip(mantissa.tolist(), shift.tolist(), strict=True)] == [
        *map(quantize_multiplier, real)
    ]


@pytest.mark.parametrize("bits", [31, 15, 8, 2])
def test_mantissas_have_their_width_and_are_the_nearest(bits):
    real = 2.0 ** np.random.default_rng(1).uniform(-20, 7, 300)
    mantissa, shift = split(real, bits)
    assert (2 ** (bits - 1) <= mantissa).all() and (mantissa < 2**bits).all()
    assert relative_errors(real, bits).max() <= 2.0**-bits
    found = np.abs(fixed(mantissa, shift, bits) - real)
    for other in (mantissa - 1, mantissa + 1):
        assert (found <= np.abs(fixed(other, shift, bits) - real)).all()


def test_widths_by_hand():
    # 0.7 = 0.7 * 2^0: 0.7 * 2^8 = 179.2. 0.999 * 2^8 = 255.7 has a bit too many: 128 * 2^(1 - 8).
    mantissa, shift = split(np.array([0.7, 0.999, 0.01]), 8)
    np.testing.assert_array_equal(mantissa, [179, 128, 164])
    np.testing.assert_array_equal(shift, [0, 1, -6])


@pytest.mark.parametrize("bits", [8, 5, 3])
@pytest.mark.parametrize("zero_point", [-128, -3])
def test_no_code_is_farther_off_than_the_bound(bits, zero_point):
    out = kerasq.Grid(scale=np.float32(1.0), zero_point=np.int32(zero_point))
    total = np.arange(-200000, 200001, dtype=np.float64)
    worst, bounds = 0, []
    for real in 2.0 ** np.random.default_rng(2).uniform(-9, -7, 20):
        (narrow,) = fixed(*split(np.array([real]), bits), bits)
        low, high = out.qmin - zero_point, out.qmax - zero_point
        codes = [np.clip(np.floor(total * x + 0.5), low, high) for x in (real, narrow)]
        found, bound = np.abs(codes[0] - codes[1]).max(), most_steps(np.array([real]), bits, out)
        assert found <= bound
        worst, bounds = max(worst, found), [*bounds, bound]
    # The bound is hardly larger than it has to be.
    assert worst >= 0.8 * max(bounds)


def high_product(x, mantissa, shift):
    """gemmlowp's rule, in Python's integers: what TFLite Micro computes."""
    doubled = (x * 2 ** max(shift, 0) * mantissa + 2**30) >> 31
    right = max(-shift, 0)
    rounded = (abs(doubled) + (2**right >> 1)) >> right
    return rounded if doubled >= 0 else -rounded


def test_tflite_micro_computes_by_them():
    pytest.importorskip("tflite_micro")
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((6,)), L.Dense(3, name="head")])
    x = networks.data(model, 32)
    lite = kerasq.export_tflite(networks.quantized(model, x, target="tflm"))
    (row,) = kerasq.multipliers(lite).rows
    (given, grid), out = ((y := lite.inputs[0]), y.grid), lite.outputs[0].grid
    codes = lite.codes(x, given).astype(int) - int(grid.zero_point)
    names = next(op.inputs for op in lite.ops if op.name == row.op)
    weights, bias = (lite.constant(name).astype(int) for name in names[1:])
    sums = codes @ weights.T + bias
    pairs = [*zip(row.multiplier.tolist(), row.shift.tolist(), strict=True)]
    found = [
        [high_product(x, *pair) for x, pair in zip(r, pairs, strict=True)] for r in sums.tolist()
    ]
    found = np.clip(np.array(found) + int(out.zero_point), -128, 127)
    np.testing.assert_array_equal(found, lite.predict(x, dequantize=False))


def test_rows_of_all_kinds():
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(4, 3, padding="same", name="conv")(image)
    x = L.LeakyReLU(negative_slope=0.25, name="leaky")(x)
    y = L.Conv2D(4, 1, name="other")(x)
    z = L.Multiply(name="mul")([L.Add(name="add")([x, y]), y])
    model = keras.Model(image, L.GlobalAveragePooling2D(name="mean")(z))
    lite = kerasq.export_tflite(networks.quantized(model))
    rows = {row.name: row for row in kerasq.multipliers(lite, bits=15).rows}
    scales = {x.name: np.float64(x.grid.scale) for x in lite.tensors if x.grid is not None}
    s = {name: scales[name] for name in rows}
    assert {name: row.op for name, row in rows.items()} == {
        "conv": "CONV_2D",
        "leaky": "LEAKY_RELU",
        "other": "CONV_2D",
        "add": "ADD",
        "mul": "MUL",
        "mean": "MEAN",
    }
    wanted = {
        "conv": scales["image"] * scales["conv/kernel"] / s["conv"],
        "leaky": s["conv"] / s["leaky"] * np.array([1.0, 0.25]),
        "other": s["leaky"] * scales["other/kernel"] / s["other"],
        "add": np.array([s["leaky"], s["other"]]) / s["add"],
        "mul": s["add"] * s["other"] / s["mul"],
        "mean": s["mul"] / s["mean"] / 64,
    }
    for name, row in rows.items():
        np.testing.assert_allclose(row.real, np.atleast_1d(wanted[name]), rtol=1e-14)
        np.testing.assert_allclose(row.fixed, row.real, rtol=2.0**-15)
    along = {row.along for row in rows.values()}
    assert along == {"channels", "inputs", "slopes"} and len(rows["conv"].shift) == 4
    lines = str(kerasq.multipliers(lite, bits=15)).splitlines()
    assert len({len(line) for line in lines[:8]}) == 1
    assert lines[-1] == "real = multiplier * 2^(shift - bits), bits = 15."


def test_bad_arguments():
    model = networks.mlp()
    lite = kerasq.export_tflite(networks.quantized(model))
    for bits in (1, 32, 8.0):
        with pytest.raises(ValueError, match=r"integer width in \[2, 31\]. Received: "):
            kerasq.multipliers(lite, bits)
    with pytest.raises(TypeError, match="`lite` must be a kerasq"):
        kerasq.multipliers(model)
    with pytest.raises(ValueError, match="must have integer operators that rescale"):
        kerasq.multipliers(kerasq.export_float_tflite(model))
