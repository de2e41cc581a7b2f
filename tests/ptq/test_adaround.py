"""`adaround`: where it must help, and by hand."""

import itertools

import keras
import numpy as np
import pytest

import kerasq
from kerasq.ptq import rounding
from tests import networks

L = keras.layers
OPTIONS = {"iterations": 300, "learning_rate": 2e-2}


def data(model, seed, count=256):
    rng = np.random.default_rng(seed)
    return rng.normal(0.5, 1.0, (count, *model.input_shape[1:])).astype("float32")


def test_weights_that_only_count_together():
    """By hand: weights on one and the same input may come out wrong, but not their sum."""
    model = keras.Sequential([keras.Input((8,)), L.Dense(2, use_bias=False, name="d")])
    kernel = np.float32([7.0, 3.41, 3.47, 3.44, 3.48, 3.43, 3.46, 3.45])[:, None].repeat(2, axis=1)
    # The first one is the largest code of 4 bits: steps of 1.
    model.set_weights([kernel])
    x = np.repeat(data(model, 0, 64)[:, :1], 8, axis=1)
    q = networks.quantized(model, x, scheme="w4a8")
    layer = q.get_layer("d")
    layer.weight_quantizer.kernel_range.assign([7.0, 7.0])
    assert (np.asarray(layer.integer_weights().codes)[1:] == 3).all()
    report = kerasq.adaround(q, x, **OPTIONS)
    codes = np.asarray(layer.integer_weights().codes)
    assert set(codes[1:].ravel()) == {3.0, 4.0}
    # They add up to 24.14, by nearest rounding to 21.
    np.testing.assert_allclose(codes[1:].sum(axis=0), 24.14, atol=1.0)
    assert report.learned[0] > report.nearest[0] + 10.0
    assert 0.25 < report.moved[0] <= 0.5


def roundings(seed):
    """The least error of all roundings of a kernel, that of the nearest and of the learned one."""
    rng = np.random.default_rng(seed)
    model = keras.Sequential([keras.Input((8,)), L.Dense(1, use_bias=False, name="d")])
    model.set_weights([rng.normal(size=(8, 1)).astype("float32")])
    # Inputs that go together.
    x = rng.normal(size=(256, 1)) * rng.normal(size=(1, 8)) + 0.2 * rng.normal(size=(256, 8))
    q = networks.quantized(model, x.astype("float32"), scheme="w3a8")
    layer = q.get_layer("d")
    scale = np.asarray(layer.integer_weights().grid.scale)
    low = np.floor(np.asarray(layer.folded_kernel()) / scale)
    (grid,) = layer.input_grids()
    seen = grid.numpy().dequantize(grid.numpy().quantize(x.astype("float32")))
    wanted = x @ model.get_weights()[0]
    ups = (np.float32(up)[:, None] for up in itertools.product([0.0, 1.0], repeat=8))
    errors = [np.mean((seen @ (np.clip(low + up, -3, 3) * scale) - wanted) ** 2) for up in ups]
    report = kerasq.adaround(q, x, iterations=500, learning_rate=2e-2)
    power = np.mean(wanted**2)
    return min(errors), *(power / 10 ** (y[0] / 10) for y in (report.nearest, report.learned))


def test_it_is_nearly_the_best_of_all_roundings():
    least, nearest, learned = np.array([roundings(seed) for seed in range(6)]).T
    assert (learned <= nearest * 1.001).all() and (learned > 0.99 * least).all()
    # Nearest rounding is 4 times the least.
    assert np.median(learned / least) < 2.5 < np.median(nearest / least)


@pytest.mark.parametrize(
    ("name", "scheme", "batch_norm", "gain"),
    [
        ("residual", "w4a8", "keep", 1.5),
        ("mobile", "w4a8", "fold", 4.0),
        ("mobile", "w3a16", "keep", 0.4),
    ],
)
def test_networks_come_closer_to_float(name, scheme, batch_norm, gain):
    model = getattr(networks, name)()
    q = networks.quantized(model, data(model, 0), scheme=scheme, batch_norm=batch_norm)
    other = data(model, 1)
    before, own = {v.path: v.numpy() for v in q.variables}, networks.sqnr(model, q, other)
    report = kerasq.adaround(q, data(model, 0), **OPTIONS)
    assert networks.sqnr(model, q, other) > own + gain
    changed = {v.path.split("/")[-1] for v in q.variables if np.any(v.numpy() != before[v.path])}
    assert changed <= {"kernel", "depthwise_kernel"} and changed
    assert all(a <= b for a, b in zip(report.nearest, report.learned, strict=True))
    assert str(report).startswith("layer") and 0 < max(report.moved) < 0.6
    lite = kerasq.export_tflite(q)
    assert kerasq.compare(q, lite, x=other[:32]).exact == 1.0


def test_ranges_stay_and_codes_are_those_learned(tmp_path):
    """Also at 8 bits, whose ranges follow the weights, and behind a saved file."""
    model = networks.residual()
    x = data(model, 0)
    q = networks.quantized(model, x)
    scales = [w.integer_weights().grid.numpy().scale for w in _wrappers(q)]
    report = kerasq.adaround(q, x, iterations=100)
    for wrapper, scale in zip(_wrappers(q), scales, strict=True):
        np.testing.assert_allclose(wrapper.integer_weights().grid.numpy().scale, scale, rtol=1e-6)
    assert max(report.moved) > 0.0
    q.save(tmp_path / "q.keras")
    again = kerasq.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(networks.run(again, x), networks.run(q, x))


def test_the_largest_weights_of_8_bits_stay():
    """Their range follows them: a smaller one would round all others anew."""
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((16,)), L.Dense(4, name="b")])
    model.set_weights([rng.uniform(-1, -0.1, (16, 4)).astype("f"), np.zeros(4, "f")])
    x = (rng.uniform(0.5, 0.7, (256, 16)) / 15).astype("f")
    x[:16] = np.eye(16)
    q = kerasq.quantize_model(model, "w8a4")
    kerasq.calibrate(q, x, method="minmax")
    layer = q.get_layer("b")
    scale = np.array(layer.integer_weights().grid.scale)
    kerasq.adaround(q, x[16:], iterations=500)
    np.testing.assert_allclose(layer.integer_weights().grid.scale, scale, rtol=1e-6)


def _wrappers(model):
    return [x for x in model.layers if hasattr(x, "weight_quantizer")]


def test_what_is_left_is_named():
    a, b = keras.Input((6,)), keras.Input((6,))
    dense = L.Dense(3, name="shared")
    y = L.Add()([dense(a), dense(b)])
    model = keras.Model([a, b], L.Dense(2, name="head")(y))
    x = [data(keras.Model(a, dense(a)), seed) for seed in (0, 1)]
    q = networks.quantized(model, x, scheme="w4a8")
    report = kerasq.adaround(q, x, iterations=10)
    assert (report.layers, report.left) == (("head",), ("shared",))
    assert "Left as they are: shared." in str(report)
    none = networks.quantized(model, x, scheme="w4a8", weights="dorefa")
    assert kerasq.adaround(none, x, iterations=1).layers == ()


def test_the_float_network_is_there_once():
    model = networks.mlp()
    x = networks.data(model)
    for first, second in itertools.permutations(("adaround", "correct_biases")):
        q = networks.quantized(model, scheme="w4a8")
        options = {"adaround": {"iterations": 2}, "correct_biases": {}}
        getattr(kerasq, first)(q, x, **options[first])
        for again in (first, second):
            with pytest.raises(ValueError, match=f"Received: one that {first} has changed"):
                getattr(kerasq, again)(q, x, **options[again])


def test_bad_input_changes_nothing():
    model = networks.mlp()
    q, x = networks.quantized(model, scheme="w4a8"), networks.data(model)
    before = [v.numpy() for v in q.variables]
    with pytest.raises(ValueError, match=r"of at least 1.* Received: {'iterations': 0}"):
        kerasq.adaround(q, x, iterations=0)
    with pytest.raises(ValueError, match=r"Received: {'batch_size': 0.5, 'learning_rate': nan}"):
        kerasq.adaround(q, x, batch_size=0.5, learning_rate=np.nan)
    with pytest.raises(ValueError, match=r"`drop` must be in \[0, 1\). Received: drop=1.0"):
        kerasq.adaround(q, x, drop=1.0)
    with pytest.raises(ValueError, match=r"`unit` must be one of.* Received: unit='row'"):
        kerasq.adaround(q, x, unit="row")
    with pytest.raises(ValueError, match="must be a quantized model"):
        kerasq.adaround(model, x)
    with pytest.raises(ValueError, match="NaN"):
        kerasq.adaround(q, np.full_like(x, np.nan))
    with pytest.raises(ValueError, match="has seen no data"):
        kerasq.adaround(kerasq.quantize_model(model), x, iterations=1)
    for old, new in zip(before, q.variables, strict=True):
        np.testing.assert_array_equal(old, new)


def test_blocks_are_rounded_together():
    """Values of few bits: what one layer of a block makes up for another."""
    model = networks.mobile()
    x, other = data(model, 0), data(model, 1)
    found = {}
    for unit in ("layer", "block"):
        q = networks.quantized(model, x, scheme="w2a4")
        own = networks.sqnr(model, q, other)
        report = kerasq.adaround(q, x, unit=unit, **OPTIONS)
        found[unit] = networks.sqnr(model, q, other)
        assert found[unit] > own + 1.0
        assert report.layers == ("stem", "expand", "depthwise", "project", "logits")
        lite = kerasq.export_tflite(q)
        assert kerasq.compare(q, lite, x=other[:32]).exact == 1.0
    # One figure for the three of a block.
    assert len(set(report.nearest[1:4])) == 1 < len(set(report.moved[1:4]))
    assert found["block"] > found["layer"] - 1.0


def test_a_run_that_was_killed_goes_on(tmp_path, monkeypatch):
    model = networks.residual()
    x = data(model, 0, 64)
    options = {"iterations": 40, "backup": tmp_path / "rounding.npz"}
    whole = networks.quantized(model, x, scheme="w4a8")
    wanted = kerasq.adaround(whole, x, iterations=40)
    q = networks.quantized(model, x, scheme="w4a8")
    before = [v.numpy() for v in q.variables]
    solve, solved = rounding.Problem.solve, []

    def interrupted(problem, settings):
        if len(solved) == 2:
            raise KeyboardInterrupt
        solved.append(problem.unit.name)
        return solve(problem, settings)

    monkeypatch.setattr(rounding.Problem, "solve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kerasq.adaround(q, x, **options)
    for old, new in zip(before, q.variables, strict=True):
        np.testing.assert_array_equal(old, new)
    rest = []
    monkeypatch.setattr(
        rounding.Problem,
        "solve",
        lambda problem, settings: (rest.append(problem.unit.name), solve(problem, settings))[1],
    )
    report = kerasq.adaround(q, x, **options)
    assert solved + rest == list(wanted.layers) and len(rest) == len(wanted.layers) - 2
    assert report == wanted
    for a, b in zip(whole.weights, q.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_backup_of_something_else_is_refused(tmp_path):
    model = networks.mlp()
    x, path = networks.data(model), tmp_path / "rounding.npz"
    kerasq.adaround(networks.quantized(model, scheme="w4a8"), x, iterations=2, backup=path)
    q = networks.quantized(model, scheme="w4a8")
    with pytest.raises(ValueError, match=r"same model and settings. Received: .*rounding.npz"):
        kerasq.adaround(q, x, iterations=3, backup=path)
    q.get_layer("head").kernel.assign(2.0 * q.get_layer("head").kernel)
    with pytest.raises(ValueError, match=r"which is of others\. Remove it"):
        kerasq.adaround(q, x, iterations=2, backup=path)
    content = path.read_bytes()
    for damaged in (b"PK" + content[:50], content[:200] + b"?" * 20 + content[220:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="which cannot be read"):
            kerasq.adaround(q, x, iterations=2, backup=path)
    with pytest.raises(FileNotFoundError, match="directory of the file must exist"):
        kerasq.adaround(q, x, iterations=2, backup=tmp_path / "no" / "rounding.npz")
