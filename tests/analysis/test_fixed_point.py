"""Narrow multipliers and accumulators: a NumPy twin, worst inputs, and the whole network."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq.analysis import fixed_point as module
from tests import networks

L = keras.layers


@pytest.fixture(scope="module")
def dense():
    """One Dense layer, whose sums need 17 bits or more, and its inputs."""
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((40,), name="x"), L.Dense(3, name="head")])
    model.layers[0].bias.assign([3.0, -1.0, 0.5])
    x = networks.data(model, 300)
    return networks.quantized(model, x), x


def integers(q, x):
    """Sums, the multipliers and the output's grid, of the file."""
    lite = kerasq.export_tflite(q)
    (row,) = kerasq.multipliers(lite).rows
    given, out = lite.inputs[0], lite.outputs[0].grid
    names = next(op.inputs for op in lite.ops if op.name == row.op)
    weights, bias = (lite.constant(name).astype(np.int64) for name in names[1:])
    centred = lite.codes(x, given).astype(np.int64) - int(given.grid.zero_point)
    return centred @ weights.T + bias, row.real, out


def overflowed(total, bits, how):
    if how == "saturate":
        return np.clip(total, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    # As two's complement drops the upper bits.
    low = total & (2**bits - 1)
    return np.where(low >= 2 ** (bits - 1), low - 2**bits, low)


@pytest.mark.parametrize("how", ["saturate", "wrap"])
@pytest.mark.parametrize(("bits", "multiplier_bits"), [(16, 31), (16, 8), (32, 3)])
def test_numpy_computes_the_same(dense, how, bits, multiplier_bits):
    q, x = dense
    total, real, out = integers(q, x)
    held = overflowed(total, bits, how)
    shift = multiplier_bits - np.frexp(real)[1].astype(np.int64)
    mantissa = np.floor(real * 2.0**shift + 0.5).astype(np.int64)

    def codes(sums):
        found = (sums * mantissa + (np.int64(1) << (shift - 1))) >> shift
        zero = int(out.zero_point)
        return np.clip(found, -128 - zero, 127 - zero) + zero

    target = np.clip(np.rint(total * real) + int(out.zero_point), -128, 127)
    off = np.abs(codes(total) - target)
    found = kerasq.fixed_point(
        q, x, multiplier_bits=multiplier_bits, accumulator_bits=bits, overflow=how
    )
    (layer,) = found.layers
    assert layer.overflows == np.mean(held != total) and (layer.overflows > 0) == (bits < 32)
    assert layer.seen_bits == 1 + max(int(total.max()), -1 - int(total.min())).bit_length()
    assert (layer.steps, layer.changed) == (off.max(), np.mean(off > 0))
    assert layer.steps <= layer.most_steps and (layer.steps > 1) == (multiplier_bits == 3)
    assert found.exact == np.mean(codes(held) == target)
    assert (found.samples, found.overflows) == (300, layer.overflows)


def test_the_worst_input_needs_the_bits_that_are_told(dense):
    q, x = dense
    _, _, out = integers(q, x)
    weights = q.get_layer("head").integer_weights()
    signs, bias = np.sign(weights.codes.numpy().T), weights.bias.numpy()
    # Each input at the end that adds most, for each channel, upwards and downwards.
    worst = np.concatenate([signs, -signs]).astype("float32") * np.abs(x).max() * 2.0
    (layer,) = kerasq.fixed_point(q, worst).layers
    (row,) = (row for row in kerasq.summary(q).layers if row.name == "head")
    assert layer.needed_bits == row.accumulator_bits == layer.seen_bits > 16
    assert bias.any() and out is not None
    bits = layer.needed_bits
    assert kerasq.fixed_point(q, worst, accumulator_bits=bits).overflows == 0.0
    assert kerasq.fixed_point(q, worst, accumulator_bits=bits - 1).overflows > 0.0


def test_wide_integers_are_the_device(monkeypatch):
    model = networks.sequential()
    x, y = networks.data(model, 24), np.arange(24) % 3
    q = networks.quantized(model, x)
    found = kerasq.fixed_point(q, (x, y))
    # XNNPACK rounds a float32 product: what lies next to ties may differ.
    assert found.exact > 0.98 and found.overflows == 0.0
    right = np.mean(networks.run(q, x).argmax(-1) == y)
    (accuracy,) = found.accuracy.values()
    assert accuracy["target"] == pytest.approx(right)
    assert [layer.name for layer in found.layers] == ["conv", "logits"]
    # In small batches, of which there are too many to be computed eagerly.
    monkeypatch.setattr(module, "CHUNK", 4)
    assert kerasq.fixed_point(q, (x, y)) == found


@pytest.mark.parametrize(("rounding", "scheme"), [("half_up", "w8a8"), ("half_even", "w8a16")])
def test_shifts_at_ties_by_hand(rounding, scheme):
    model = keras.Sequential([keras.Input((8,), name="x"), L.Dense(16, name="head")])
    q = kerasq.quantize_model(model, scheme, scales="power_of_two")
    x = networks.data(model, 300)
    kerasq.calibrate(q, x)
    total, real, out = integers(q, x)
    assert int(out.zero_point) == 0 and (np.frexp(real)[0] == 0.5).all()
    shift = (1 - np.frexp(real)[1]).astype(np.int64)
    floor, rest = total >> shift, total % (1 << shift)
    half = 1 << (shift - 1)
    is_up = (rest > half) | ((rest == half) & ((rounding == "half_up") | (floor % 2 == 1)))
    assert ((rest == half) & (floor % 2 == 0)).any()
    expected = np.clip(floor + is_up, out.qmin, out.qmax)
    target = np.asarray(q.predict_on_batch(x)) / out.scale
    (layer,) = (found := kerasq.fixed_point(q, x, rounding=rounding)).layers
    assert found.exact == np.mean(expected == target) and layer.changed == 0.0
    other = "half_even" if rounding == "half_up" else "half_up"
    assert kerasq.fixed_point(q, x, rounding=other).exact != found.exact
    assert f"\nTies are rounded {rounding[5:]}." in str(found)


def test_table(dense):
    q, x = dense
    found = kerasq.fixed_point(
        q, (x, np.arange(300) % 3), multiplier_bits=8, accumulator_bits=16, overflow="wrap"
    )
    text = str(found).splitlines()
    assert len({len(line) for line in text[:3]}) == 1
    assert text[2].split()[:3] == ["head", f"{found.layers[0].error:.1e}", "1"]
    assert text[4] == "Multipliers of 8 bits, accumulators of 16 that wrap around."
    assert text[-1].startswith("Accuracy of 'head': 0.")


def test_bad_arguments(dense):
    q, x = dense
    for bits in (7, 33, 16.0):
        with pytest.raises(ValueError, match=r"`accumulator_bits` must be an integer in \[8, 32"):
            kerasq.fixed_point(q, x, accumulator_bits=bits)
    with pytest.raises(ValueError, match=r"width in \[2, 31\]. Received: 40 bits"):
        kerasq.fixed_point(q, x, multiplier_bits=40)
    with pytest.raises(ValueError, match=r"one of \['saturate', 'wrap'\]. Received: overflow='no"):
        kerasq.fixed_point(q, x, overflow="no")
    with pytest.raises(ValueError, match=r"`rounding` .* \['half_up', 'half_even'\]. Received: r"):
        kerasq.fixed_point(q, x, rounding="even")
    with pytest.raises(ValueError, match="`model` must be a quantized model"):
        kerasq.fixed_point(networks.mlp(), x)
    plain = networks.quantized(keras.Sequential([keras.Input((4,)), L.ReLU()]))
    with pytest.raises(ValueError, match="must have layers with weights that are quantized"):
        kerasq.fixed_point(plain, x[:, :4])
