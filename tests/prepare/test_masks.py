"""Masked softmax as integers: masks as arguments, and as users add them to scores by hand."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq.grid import Grid
from kerasq.kernels.int16 import masked_grid
from kerasq.layers import Masked
from tests import networks

L, K = keras.layers, keras.ops
KERAS = tuple(int(x) for x in keras.__version__.split(".")[:2])
STEPS = 6
CAUSAL = np.tri(STEPS, dtype=bool)
BIAS = np.where(CAUSAL, np.float32(0.5), np.float32(-1e9))


def scores(x):
    return K.matmul(L.Dense(8, name="query")(x), K.transpose(L.Dense(8, name="key")(x), (0, 2, 1)))


def heads(x, mask, **options):
    layer = L.MultiHeadAttention(2, 4, name="heads")
    return layer(x, x, attention_mask=mask, return_attention_scores=True, **options)


def grouped(x, mask):
    layer = L.GroupQueryAttention(4, 4, 2, name="grouped")
    return layer(x, x, value_mask=mask, return_attention_scores=True, use_causal_mask=True)


def single(layer):
    def call(x, mask):
        return layer([x, x], mask=[mask, mask], return_attention_scores=True)

    return call


def by_hand(bias):
    """A softmax of what a function makes of scores and a mask, behind what it weighs."""

    def call(x, mask):
        weights = K.softmax(bias(scores(x), mask[:, None]))
        return K.matmul(weights, x), weights

    return call


# By name: output and weights, of a sequence and its mask, whether places behind the query are
# masked, whether the mask counts, and the type of the mask.
CASES = {
    "causal": (lambda x, _: heads(x, None, use_causal_mask=True), True, False, "bool"),
    "constant": (lambda x, _: heads(x, CAUSAL[None]), True, False, "bool"),
    "tensor": (lambda x, mask: heads(x, mask[:, None]), False, True, "bool"),
    "numbers": (lambda x, m: heads(x, m[:, None], use_causal_mask=True), True, True, "float32"),
    "integers": (lambda x, m: heads(x, m[:, None, None]), False, True, "int32"),
    "grouped": (grouped, True, True, "bool"),
    "single": (single(L.Attention(use_scale=True)), False, True, "bool"),
    "additive": (single(L.AdditiveAttention()), False, True, "bool"),
    "added": (by_hand(lambda y, m: y + (1.0 - m) * -1e9), False, True, "float32"),
    "added_cast": (by_hand(lambda y, m: y + K.cast(~m, "float32") * -1e9), False, True, "bool"),
    "added_constant": (by_hand(lambda y, _: y + BIAS), True, False, "bool"),
    "added_choice": (by_hand(lambda y, m: K.where(m, 0.0, -1e9) + y), False, True, "bool"),
    "chosen": (by_hand(lambda y, m: K.where(m, y, -np.inf)), False, True, "bool"),
    "chosen_by_constant": (by_hand(lambda y, _: K.where(CAUSAL, y, -1e9)), True, False, "bool"),
}


def network(name):
    """A case as a model, the samples, and the weights that must be 0."""
    networks.set_seed(0)
    if name in ("grouped", "single", "additive") and KERAS < (3, 11):
        pytest.skip("Keras 3.10 does not compute them.")
    call, is_causal, counts, dtype = CASES[name]
    x, mask = keras.Input((STEPS, 8), name="x"), keras.Input((STEPS,), dtype=dtype, name="mask")
    rng = np.random.default_rng(0)
    held = np.arange(STEPS) < rng.integers(1, STEPS + 1, (32, 1))
    data = [rng.normal(size=(32, STEPS, 8)).astype("float32"), held.astype(dtype)]
    outputs = list(call(x, mask))
    # Keras 3.10 wants all inputs to be read.
    count = 2 if counts else 1
    model, data = keras.Model([x, mask][:count], outputs), data[:count]
    allowed = np.broadcast_to(CAUSAL if is_causal else True, (32, STEPS, STEPS))
    return model, data, ~(allowed & held[:, None] if counts else allowed)


@pytest.mark.parametrize("name", CASES)
def test_masks(name, capsys):
    model, x, masked = network(name)
    q = networks.quantized(model, [x])
    assert "float" not in capsys.readouterr().out
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == [] and "SELECT_V2" in {op.name for op in lite.ops}
    want, simulated = networks.run(model, x), networks.run(q, x)
    for y, got in zip(simulated, lite.predict(x).values(), strict=True):
        np.testing.assert_array_equal(got, y)
    weights = simulated[1] if simulated[1].ndim == 4 else simulated[1][:, None]
    assert not weights[np.broadcast_to(masked[:, None], weights.shape)].any()
    for y, real in zip(simulated, want, strict=True):
        assert 10 * np.log10(np.mean(real**2) / np.mean((y - real) ** 2)) > 28


@pytest.mark.parametrize("name", ["numbers", "grouped", "single", "added", "chosen"])
def test_masks_on_a_microcontroller(name):
    pytest.importorskip("tflite_micro")
    model, x, _ = network(name)
    q = networks.quantized(model, [x], target="tflm")
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == []
    for y, got in zip(networks.run(q, x), lite.predict(x).values(), strict=True):
        np.testing.assert_array_equal(got, y)


def test_weights_of_16_bits_are_0_but_for_two_steps():
    """The least exponential that LiteRT's kernel knows is that of -10: 1.5 steps."""
    model, x, masked = network("causal")
    q = networks.quantized(model, [x], scheme="w8a16")
    kerasq.export_tflite(q)
    weights = networks.run(q, x)[1]
    assert weights[np.broadcast_to(masked[:, None], weights.shape)].max() <= 2.0**-14
    assert np.abs(weights - networks.run(model, x)[1]).max() < 0.01


@pytest.mark.parametrize("axis", [-1, 1, [1, 2]])
@pytest.mark.parametrize("target", ["litert", "tflm"])
def test_softmax_under_a_mask(axis, target):
    if target == "tflm":
        pytest.importorskip("tflite_micro")
    x, mask = keras.Input((4, 5), name="x"), keras.Input((4, 1), dtype="bool", name="mask")
    model = keras.Model([x, mask], L.Softmax(axis, name="softmax")(x, mask=mask))
    rng = np.random.default_rng(0)
    data = [rng.normal(0.0, 2.0, (64, 4, 5)).astype("float32"), rng.random((64, 4, 1)) > 0.4]
    q = networks.quantized(model, [data], target=target)
    lite = kerasq.export_tflite(q, check=False)
    found, want = networks.run(q, data), networks.run(model, data)
    np.testing.assert_array_equal(lite.predict(data), found)
    assert lite.float_ops == []
    # Half a step of the output, and what half a step of the scores makes of it, twice at most.
    step = q.get_layer("x_quantize").grid().numpy().scale
    assert np.abs(found - want).max() < 0.5 / 255 + 0.25 * step + 1e-3
    assert not found[want == 0.0].any()
    np.testing.assert_allclose(found[np.isclose(want, 0.25)], 0.25, atol=1 / 255)


@pytest.mark.parametrize("is_layer", [False, True])
def test_rows_without_any_key_are_those_of_keras(is_layer):
    x, mask = keras.Input((5,), name="x"), keras.Input((5,), dtype="bool", name="mask")
    y = L.Softmax()(x, mask=mask) if is_layer else K.softmax(K.where(mask, x, -np.inf))
    model = keras.Model([x, mask], y)
    data = [np.float32([[1, 2, 3, 4, 5], [-9, 9, 0, 2, 1]]), np.bool_([[0] * 5, [0, 1, 0, 0, 0]])]
    q = networks.quantized(model, [data])
    found = kerasq.export_tflite(q).predict(data)
    # Of a layer 0, since Keras 3.11 or so; by hand an average, where float has NaN of infinities.
    want = np.full(5, 0.2) if not is_layer else networks.run(model, data)[0]
    np.testing.assert_allclose(found[0], want, atol=0.5 / 255)
    np.testing.assert_array_equal(found[1], [0, 1, 0, 0, 0])


@pytest.mark.parametrize(("low", "high", "bits"), [(-3.0, 5.0, 8), (0.0, 90.0, 8), (-7.0, 7.0, 16)])
def test_the_grid_reaches_10_below_all_scores(low, high, bits):
    own = Grid.from_range(low, high, bits=bits)
    found = masked_grid(Masked(), own).numpy()
    lowest = (own.qmin - own.zero_point) * own.scale - 10.0
    assert found.bits == 16 and found.zero_point == 0
    assert -(2**15) * found.scale <= lowest and (2**15 - 1) * found.scale >= high * (1 - 1e-6)
    # A step of the scores is 2^6 of these or more, unless it is of 16 bits itself.
    assert bits == 16 or own.scale >= 64 * found.scale or high < 10


def test_what_no_softmax_reads_is_no_mask():
    x = keras.Input((4,), name="x")
    model = keras.Model(x, L.Dense(2)(x + np.float32([0.0, -2e4, 0.0, 0.0])))
    q = networks.quantized(model)
    assert not any(isinstance(getattr(y, "layer", None), Masked) for y in q.layers)


def test_training_saving_and_loading(tmp_path):
    model, x, _ = network("causal")
    q = networks.quantized(model, [x])
    q.compile("adam", "mse")
    before = [v.numpy() for v in q.trainable_variables if "kernel" in v.path]
    q.fit(x, [np.zeros_like(y) for y in networks.run(model, x)], epochs=1, verbose=0)
    after = [v.numpy() for v in q.trainable_variables if "kernel" in v.path]
    assert len(after) == 4 and all((a != b).any() for a, b in zip(before, after, strict=True))
    q.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    for a, b in zip(networks.run(q, x), networks.run(loaded, x), strict=True):
        np.testing.assert_array_equal(a, b)
