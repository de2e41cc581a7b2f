"""`scales="power_of_two"`: exact powers in the file, and the same codes at ties on every target."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq import scales
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.litert.micro import MicroInterpreter
from kerasq.quantizers.threshold import ThresholdWeights
from kerasq.targets import LITERT, TFLM
from tests import networks
from tests.single_op import Op, Tensor, build, run
from tests.test_kernels import CODES, grid, simulate

L = keras.layers


def numbers():
    powers = 2.0 ** np.arange(-60, 61).astype("float32")
    beside = [np.nextafter(powers, np.float32(to)) for to in (0, np.inf)]
    return np.concatenate([powers, *beside, 1.5 * powers]).astype("float32")


def test_powers_and_logarithms_are_exact():
    x = numbers()
    mantissa, exponent = np.frexp(x.astype(np.float64))  # x = mantissa * 2^exponent, from 1/2 on.
    floor = exponent - 1
    ceil = np.where(mantissa == 0.5, floor, exponent)
    np.testing.assert_array_equal(scales.floor_log2(x), floor)
    np.testing.assert_array_equal(scales.ceil_log2(x), ceil)
    np.testing.assert_array_equal(scales.up(x), np.exp2(ceil))
    np.testing.assert_array_equal(scales.down(x), np.exp2(floor))
    np.testing.assert_allclose(scales.log2(x), np.log2(x), rtol=1e-6, atol=1e-6)
    is_power = mantissa == 0.5
    np.testing.assert_array_equal(scales.log2(x)[is_power], floor[is_power])
    assert [scales.is_power_of_two(v) for v in (0.25, 1.0, 6.0, 0.3)] == [True, True, False, False]


# Networks.


def everything():
    """All kinds of operators, of one image: sums, products, moves, averages and fixed grids."""
    networks.set_seed(0)
    image = keras.Input((6, 6, 3), name="image")
    x = L.Conv2D(8, 3, padding="same", use_bias=False, name="conv")(image)
    x = L.BatchNormalization(name="norm")(x)
    x = L.ReLU(6.0, name="six")(x)
    y = L.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    total = L.ReLU(6.0, name="total_six")(L.Add(name="total")([x, y]))
    parts = [
        L.Concatenate(name="both")([total, L.Subtract(name="difference")([x, y])]),
        L.AveragePooling2D(2, strides=1, padding="same", name="average")(y),
        L.Multiply(name="product")([x, total]),
        L.Conv2DTranspose(4, 3, padding="same", name="transposed")(total),
        L.LeakyReLU(0.25, name="leaky")(L.Conv2D(4, 1, name="below")(y)),
    ]
    x = L.ReLU(name="positive")(L.GlobalAveragePooling2D(name="gap")(L.Concatenate()(parts)))
    outputs = [
        L.Dense(5, activation="softmax", name="probs")(x),
        L.Dense(3, activation="sigmoid", name="gates")(x),
        L.Dense(3, activation="tanh", name="signs")(x),
        L.Dense(3, name="logits")(x),
        L.Maximum(name="larger")([y, total]),
    ]
    return networks.shake_norms(keras.Model(image, outputs))


def on_ties(q, x):
    """Inputs half-way between codes, and others whose sums are half-way between codes."""
    first = next(layer for layer in q.layers if isinstance(layer, KernelWrapper))
    for variable in (first.batch_norm.beta, first.batch_norm.moving_mean):
        variable.assign(tf.zeros_like(variable.value))  # No bias that moves sums off the ties.
    weights, step = first.integer_weights(), float(first.input_grids()[0].scale)
    scale = np.asarray(weights.grid.scale)
    codes = np.trunc(np.asarray(weights.codes) / 4) * 4
    kernel = codes * scale / np.asarray(first.gain_and_bias()[0])
    first.kernel.assign(first.rule.unflatten(kernel, first.kernel.shape))
    # Codes so far apart that sums are multiples of half a step of the output, in one channel.
    apart = max(1.0, np.min(float(first.grid().scale) / (step * scale)) / 8)
    even = (np.rint(x / step / apart) * apart * step).astype("float32")
    assert share_of_ties(first, networks.run(first.producers[0], even)) > 0.01
    return np.concatenate([even, ((np.floor(x / step) + 0.5) * step).astype("float32")])


def fixed(q):
    """Names of the layers whose grids their kernels fix, with a zero point."""
    return {x.name for x in q.layers if getattr(x, "rule", None) and x.rule.grids}


def assert_powers(lite, but=()):
    """All scales of a file are powers of two, and all zero points 0; in `but`, the former alone."""
    grids = [(x.name, x.grid) for x in lite.tensors if x.grid is not None]
    assert len(grids) > 3
    for name, found in grids:
        assert all(map(scales.is_power_of_two, np.ravel(found.scale).tolist())), name
        assert name in but or not np.any(found.zero_point), name


def assert_exact(q, x):
    lite = kerasq.export_tflite(q, check=False)
    found = lite.predict(x)
    found = [*found.values()] if isinstance(found, dict) else [found]
    for a, b in zip(keras.tree.flatten(networks.run(q, x)), found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert_powers(lite, fixed(q))
    return lite


@pytest.mark.parametrize(
    ("make", "scheme", "target"),
    [
        (everything, "w8a8", "litert"),
        (everything, "w8a8", "tflm"),
        (everything, "w4a16", "litert"),
        (networks.mobile, "w8a16", "tflm"),
    ],
)
def test_every_operator_on_ties(make, scheme, target):
    model = make()
    x = networks.data(model, 8)
    q = networks.quantized(model, x, scheme=scheme, scales="power_of_two", target=target)
    lite = assert_exact(q, on_ties(q, x))
    # MEAN has none of its own.
    assert ("RELU" in {op.name for op in lite.ops}) == (make is everything)


def share_of_ties(layer, x):
    """The share of a layer's sums that lie half-way between two codes of its output."""
    source, weights = layer.input_grids()[0], layer.integer_weights()
    sums = np.asarray(layer.sums(x, source, weights), np.float64)
    steps = sums * np.float64(source.scale) * np.float64(weights.grid.scale) / layer.grid().scale
    return np.mean(steps - np.floor(steps) == 0.5)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("target", [LITERT, TFLM], ids=lambda x: x.name)
def test_shifts_of_values_and_sums(target, bits):
    """All codes, by all ratios of powers of two: every other value, or one in 128, is a tie."""
    one = CODES[None] if bits == 8 else np.arange(-(2**15), 2**15, 3).astype("int16")[None]
    rng = np.random.default_rng(0)
    pair = [rng.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (1, 4096)) for _ in range(2)]
    pair = [x.astype(one.dtype) for x in pair]
    out = grid(2.0**-6, bits=bits)

    def check(operator, codes, exponents, **options):
        grids = [grid(2.0 ** (n - 6), bits=bits) for n in exponents]
        found = simulate(operator, L.ReLU(), codes, grids, out, target)
        ends = [Tensor(x.shape, g, f"int{bits}") for x, g in zip(codes, grids, strict=True)]
        ends.append(Tensor(found.shape, out, f"int{bits}"))
        content = build(getattr(Op, operator), 2, ends, **options)
        np.testing.assert_array_equal(_run(target, content, *codes), found, str(exponents))

    for n in range(-8, 8, 3):
        check("QUANTIZE", [one], [n], kind="QuantizeOptions")
        check("RELU", [one], [n])
        for m in (-7, -2, 1):
            check("MUL", pair, [n - m, m + 6 - bits], kind="MulOptions")
            # LiteRT's on int16 has inputs of one scale.
            first = m if bits == 16 and target is LITERT else min(n, 6)
            check("ADD", pair, [first, m], kind="AddOptions", potScaleInt16=False)
            check("SUB", pair, [m, min(n, 6)], kind="SubOptions", potScaleInt16=False)


def _run(target, content, *codes):
    if target is LITERT:
        return run(content, *codes)
    interpreter = MicroInterpreter(content)
    for i, values in enumerate(codes):
        interpreter.set_tensor(i, values)
    interpreter.invoke()
    return interpreter.get_tensor(0)


def test_weights_or_activations_alone():
    model = networks.sequential()
    x = networks.data(model, 8)
    for name, of_weights in (("power_of_two_weights", True), ("power_of_two_activations", False)):
        q = networks.quantized(model, x, scales=name)
        lite = kerasq.export_tflite(q, check=False)
        np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
        for layer in q.layers:
            if not isinstance(layer, KernelWrapper):
                continue
            kernel = np.asarray(layer.integer_weights().grid.scale)
            assert all(map(scales.is_power_of_two, kernel.tolist())) == of_weights
            out = layer.grid().numpy()
            assert (scales.is_power_of_two(float(out.scale)) and out.zero_point == 0) != of_weights


@pytest.mark.parametrize(
    ("granularity", "batch_norm"), [("per_channel", "keep"), ("per_tensor", "fold")]
)
def test_the_scale_is_that_of_the_folded_kernel(granularity, batch_norm):
    model = networks.mobile()
    options = {"granularity": granularity, "batch_norm": batch_norm}
    q = networks.quantized(model, scales="power_of_two", **options)
    for layer in (x for x in q.layers if isinstance(x, KernelWrapper)):
        weights = layer.integer_weights()
        folded = np.asarray(layer.folded_kernel(), np.float64)
        codes = np.clip(np.rint(folded / np.asarray(weights.grid.scale)), -127, 127)
        np.testing.assert_array_equal(weights.codes, codes)
        assert np.size(weights.grid.scale) == (1 if granularity == "per_tensor" else len(codes.T))


def test_a_network_that_trains_and_is_saved(tmp_path):
    model = networks.sequential()
    x = networks.images(model, 64)
    y = networks.run(networks.sequential(1), x)
    q = kerasq.quantize_model(model, scales="power_of_two")
    kerasq.calibrate(q, x)
    q.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse", jit_compile=False)
    losses = q.fit(x, y, batch_size=16, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < 0.3 * losses[0]
    thresholds = [v for v in q.trainable_variables if v.name == "log2_threshold"]
    assert len(thresholds) == 4  # Of two kernels and two outputs; that of the input stays.
    moved = [np.abs(v.numpy() % 1.0 - 0.5).max() for v in thresholds]
    assert min(moved) > 0.0
    lite = assert_exact(q, x)
    q.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(networks.run(loaded, x), networks.run(q, x))
    assert kerasq.export_tflite(loaded).content == lite.content
    micro = kerasq.retarget(loaded, "tflm")
    assert assert_exact(micro, x).target == "tflm"


def test_a_relu_is_cut_at_six_by_its_operator():
    networks.set_seed(0)
    inputs = keras.Input((4,), name="x")
    six = L.Dense(8, "relu6", name="six")(inputs)
    four = L.ReLU(4.0, name="four")(L.ReLU(name="any")(inputs))
    q = networks.quantized(keras.Model(inputs, [six, four]), scales="power_of_two")
    x = 10.0 * networks.data(q, 64)
    found = networks.run(q, x)
    # 6 is the code 96 of steps of 1/16, whose grid ends at 7.9; 4 lies just beyond a grid's end.
    assert found[0].max() == 6.0 and q.get_layer("six").grid().high == 127 / 16
    assert found[1].max() == 127 / 32
    assert_exact(q, x)


def test_limits_of_kernels_leave_powers_of_two():
    """Outputs that are (almost) constant, and a bias far beyond what int32 holds."""
    networks.set_seed(0)
    model = keras.Sequential([keras.Input((4,)), L.Dense(6, "relu6"), L.Dense(3)])
    kernel = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    for scheme, factor, bias in (("w8a8", 1e7, 0.0), ("w8a16", 1e-7, 1e-9), ("w8a8", 1.0, 1e7)):
        model.layers[0].set_weights([factor * kernel, np.full(6, bias)])
        x = networks.data(model, 16)
        assert_exact(networks.quantized(model, x, scheme=scheme, scales="power_of_two"), x)


def test_sensitivity_is_that_of_the_model():
    model = networks.mlp()
    x = networks.data(model, 32)
    options = {"scales": "power_of_two"}
    table = kerasq.sensitivity(model, x, candidates=("w8a8", "w4a8"), **options)
    q = kerasq.quantize_model(model, batch_norm="fold", **options)
    kerasq.calibrate(q, x)
    assert table.scales == "power_of_two"
    np.testing.assert_allclose(table.base, networks.sqnr(model, q, x), atol=1e-4)
    with pytest.raises(ValueError, match=r"`scales` must be those of `sensitivity`.*'free'"):
        kerasq.allocate(model, x, budget={"sqnr": 20}, sensitivity=table, scales="free")


def test_post_training_keeps_them(capsys):
    model = networks.sequential()
    x = networks.images(model, 40)
    options = {"iterations": 5, "recipe": ["ranges", "round"]}
    found = kerasq.post_training(model, x, scheme="w4a8", scales="power_of_two", **options)
    assert "ranges" in capsys.readouterr().out
    assert_exact(found.model, x)


def test_encodings(tmp_path):
    model = networks.sequential()
    q = networks.quantized(model, scales="power_of_two")
    written = kerasq.save_encodings(q, tmp_path / "q.json")
    assert all(x["is_sym"] for x in written["activation_encodings"])
    other = networks.quantized(model, 5.0 * networks.data(model), scales="power_of_two")
    kerasq.load_encodings(other, tmp_path / "q.json")
    x = networks.data(model)
    np.testing.assert_array_equal(networks.run(other, x), networks.run(q, x))
    free = networks.quantized(model, scales="power_of_two_activations")
    kerasq.save_encodings(free, tmp_path / "free.json")
    with pytest.raises(ValueError, match=r"must have the scales .* or powers of two"):
        kerasq.load_encodings(q, tmp_path / "free.json")


# What cannot be.


def dense(activation="relu"):
    return keras.Sequential([keras.Input((4,)), L.Dense(3, activation, name="d"), L.Dense(2)])


def clustered():
    model = keras.Sequential([keras.Input((8,)), L.Dense(8, name="d")])
    model.layers[0].kernel.assign(np.random.default_rng(0).choice([0.5, 1.0, -2.0], (8, 8)))
    return model


def six_alone():
    inputs = keras.Input((4,), name="x")
    return keras.Model(inputs, L.ReLU(6.0, name="six")(L.Maximum()([inputs, -inputs])))


@pytest.mark.parametrize(
    ("make", "options", "match"),
    [
        (dense, {"scales": "two"}, r"`scales` must be one of \['free', .*Received: scales='two'"),
        (dense, {"range_gradient": "lsq"}, r"must learn as TQT .*range_gradient='lsq'"),
        (dense, {"scheme": "w4a4"}, r"must have 8 or 16 bits\. Received: 4 bits"),
        (dense, {"scheme": "w2a8", "weights": "ternary"}, r"must be uniform.*'Ternary'"),
        (dense, {"scheme": "w1a8"}, r"must be uniform, of 2 bits or more.*'Binary'"),
        (clustered, {"keep_clusters": True}, r"no clusters\. Received: 'Uniform' with 3 clusters"),
        (lambda: dense(L.ReLU(5.0)), {}, r"or 6 right behind.*limit 5 at layer 'd'"),
        (six_alone, {}, r"or 6 right behind.*limit 6 at layer 'six', which is RELU"),
    ],
)
def test_errors(make, options, match):
    with pytest.raises(ValueError, match=match):
        kerasq.quantize_model(make(), **{"scales": "power_of_two", **options})


def test_what_has_other_scales_is_printed(capsys):
    inputs = keras.Input((4, 3), name="x")
    outputs = [L.LSTM(2, name="memory")(inputs), L.LayerNormalization(name="norm")(inputs)]
    model = keras.Model(inputs, outputs)
    q = kerasq.quantize_model(model, scales="power_of_two", recurrence="fused")
    (line,) = (x for x in capsys.readouterr().out.splitlines() if "no powers of two" in x)
    roots = [x.name for x in q.layers if getattr(x, "rule", None) and x.rule.op == "RSQRT"]
    assert roots and all(name in line for name in (*roots, "memory"))
    kerasq.quantize_model(networks.mlp(), scales="power_of_two")
    assert "no powers of two" not in capsys.readouterr().out


def test_a_quantizer_has_thresholds_where_scales_are_powers_of_two():
    q = kerasq.quantize_model(networks.mlp(), scales="power_of_two_weights")
    kinds = {type(x.weight_quantizer) for x in q.layers if isinstance(x, KernelWrapper)}
    assert kinds == {ThresholdWeights}
    assert tf.is_tensor(q.get_layer("head").weight_quantizer.threshold.value())
