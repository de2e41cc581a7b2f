"""`post_training`: steps are measured, kept where they help, and none of the float model's."""

import itertools

import keras
import numpy as np
import pytest

import kerasq
from kerasq.ptq.post_training import STEPS
from tests import networks

L = keras.layers


def data(model, seed=0, count=100):
    rng = np.random.default_rng(seed)
    return rng.normal(0.5, 1.0, (count, *model.input_shape[1:])).astype("float32")


@pytest.fixture(scope="module")
def narrow():
    """A network at 4 bits, by all steps."""
    model = networks.mobile()
    before = [v.numpy() for v in model.weights]
    names = ("correct", "round", "ranges", "absorb", "equalize")  # In any order.
    found = kerasq.post_training(model, data(model), scheme="w4a8", recipe=names, iterations=200)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    return model, found


def test_steps_run_in_their_order_and_gain(narrow):
    _, found = narrow
    assert found.steps[0].name == "calibrate" and found.steps[0].kept
    names = [x.name for x in found.steps]
    assert names == [name for name in ("calibrate", *STEPS) if name in names]
    assert {"equalize", "ranges", "round"} < {*names}
    # Correction would compare with weights that are rounded already.
    assert ("correct" in names) != next(x.kept for x in found.steps if x.name == "round")
    kept = [x for x in found.steps if x.kept]
    assert all(b.sqnr > a.sqnr for a, b in itertools.pairwise(kept))
    assert all(x.sqnr <= kept[-1].sqnr for x in found.steps)
    assert kept[-1].sqnr > found.steps[0].sqnr + 2.0


def test_the_table_has_what_was_measured(narrow):
    model, found = narrow
    # Every fifth sample, the fifth first.
    held = data(model)[4::5]
    assert found.held_back == len(held) == 20
    wanted = model.predict_on_batch(held)
    outputs = found.model.predict_on_batch(held)
    noise = np.sum((wanted - outputs) ** 2, dtype=np.float64) / np.sum(wanted**2, dtype=np.float64)
    last = [x for x in found.steps if x.kept][-1]
    np.testing.assert_allclose(last.sqnr, -10 * np.log10(noise), atol=1e-3)
    assert last.agreement == np.mean(wanted.argmax(-1) == outputs.argmax(-1))
    lines = str(found).splitlines()
    assert lines[0].split() == [
        "step",
        "SQNR",
        "(dB)",
        "same",
        "class",
        "as",
        "float",
        "(%)",
        "kept",
        "seconds",
    ]
    assert f"{last.sqnr:.2f}" in str(found) and lines[-1] == "Measured on 20 samples, held back."


def test_the_file_is_the_model(narrow):
    model, found = narrow
    lite = kerasq.export_tflite(found.model)
    assert kerasq.compare(found.model, lite, x=data(model, 1, 32)).exact == 1.0


def test_a_step_that_does_not_help_leaves_no_trace():
    """Without a bias there is nothing to correct; of a constant nothing can get better."""
    model = networks.mlp()
    x = data(model)
    found = kerasq.post_training(model, x, recipe=["correct"])
    (first, second) = found.steps
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, x[np.arange(1, 101) % 5 != 0])
    if not second.kept:
        for a, b in zip(found.model.weights, q.weights, strict=True):
            np.testing.assert_array_equal(a, b)
    assert second.kept == (second.sqnr > first.sqnr)
    none = keras.Sequential([keras.Input((3,)), L.Dense(2, use_bias=False)])
    assert [x.name for x in kerasq.post_training(none, data(none)).steps] == ["calibrate"]


def test_equalization_is_kept_where_weights_have_one_scale():
    """Channels that span three orders of magnitude: one scale loses the small ones."""
    rng = np.random.default_rng(0)
    model = keras.Sequential(
        [keras.Input((8,)), L.Dense(8, activation="relu", name="a"), L.Dense(3, name="b")]
    )
    spread = 10.0 ** np.linspace(-2, 1, 8)
    model.set_weights(
        [
            rng.normal(size=(8, 8)) * spread,
            np.zeros(8),
            rng.normal(size=(8, 3)) / spread[:, None],
            np.zeros(3),
        ]
    )
    found = kerasq.post_training(model, data(model), granularity="per_tensor")
    gains = {x.name: x for x in found.steps}
    assert gains["equalize"].kept and gains["equalize"].sqnr > gains["calibrate"].sqnr + 6.0
    grids = [found.model.get_layer(name).integer_weights().grid for name in "ab"]
    assert [np.shape(grid.scale) for grid in grids] == [(), ()]


def test_without_data(capsys):
    model = networks.mobile()
    found = kerasq.post_training(model, input_range=(-3.0, 4.0))
    assert [x.name for x in found.steps] == ["calibrate", "correct_by_statistics"]
    assert all(x.sqnr is None and x.kept for x in found.steps) and found.held_back == 0
    assert "Without data nothing is measured." in capsys.readouterr().out
    x = np.clip(data(model), -3, 4)
    assert networks.sqnr(model, found.model, x) > 15.0
    per_tensor = kerasq.post_training(model, input_range=(-3.0, 4.0), granularity="per_tensor")
    assert "equalize" in [x.name for x in per_tensor.steps]


def test_bad_input():
    model = networks.mlp()
    x = data(model)
    with pytest.raises(ValueError, match=r"\"auto\" or names among .* Received: \['shake'\]"):
        kerasq.post_training(model, x, recipe=["round", "shake"])
    with pytest.raises(ValueError, match=r"`data` must be given for the steps .*\['round'\]"):
        kerasq.post_training(model, recipe="round", input_range=(0, 1))
    with pytest.raises(ValueError, match=r"two samples or more.* Received: 1"):
        kerasq.post_training(model, x[:1])
    with pytest.raises(ValueError, match="NaN"):
        kerasq.post_training(model, np.full_like(x, np.nan))
    with pytest.raises(ValueError, match="has seen data: without data, all follows"):
        kerasq.post_training(model, input_range=(0, 1))
    with pytest.raises(ValueError, match="`input_range` must be given without data"):
        kerasq.post_training(networks.mobile())


def test_at_8_bits_it_is_quick():
    model = networks.residual()
    found = kerasq.post_training(model, data(model))
    assert [x.name for x in found.steps] == ["calibrate", "correct_by_statistics"]


def test_auto_looks_at_the_widths_of_layers():
    """By `scheme` or by `overrides`, of all layers or of one."""
    model = networks.mlp()

    def steps(**options):
        found = kerasq.post_training(model, data(model), iterations=20, **options)
        return [x.name for x in found.steps]

    narrow = steps(scheme="w3a8")
    assert narrow[:3] == ["calibrate", "ranges", "round"]
    assert steps(overrides={"*": "w3a8"}) == narrow
    assert steps(overrides={"hidden": "w3a8"})[:3] == narrow[:3]
    assert steps(scheme="w3a8", overrides={"*": "w8a8"}) == ["calibrate"]


def untrained():
    return keras.Sequential(
        [keras.Input((4,)), L.Dense(3), L.BatchNormalization(), L.ReLU(), L.Dense(2)]
    )


@pytest.mark.parametrize(
    ("make", "scheme", "reason"),
    [
        (networks.mlp, "w8a8", "a BatchNormalization that has seen data"),
        (untrained, "w8a8", "a BatchNormalization that has seen data"),
        (networks.residual, "w8a16", "`input_range` must be given"),
    ],
)
def test_what_statistics_do_not_say_is_printed(make, scheme, reason, capsys):
    model = make()
    found = kerasq.post_training(model, data(model), scheme=scheme)
    assert [x.name for x in found.steps] == ["calibrate"]
    text = capsys.readouterr().out
    assert "Not tried: correct_by_statistics. " in text and reason in text
    # The model is the calibrated one.
    lite = kerasq.export_tflite(found.model)
    assert kerasq.compare(found.model, lite, x=data(model, 1, 16)).exact == 1.0


def test_zeros_that_are_kept():
    model = networks.mlp()
    kernel = model.get_layer("hidden").kernel
    kernel.assign(np.where(np.abs(kernel.numpy()) < 0.2, 0.0, kernel))
    options = {"scheme": "w4a8", "recipe": "round", "iterations": 20, "keep_zeros": True}
    layer = kerasq.post_training(model, data(model), **options).model.get_layer("hidden")
    np.testing.assert_array_equal(layer.mask.numpy() == 0, kernel.numpy() == 0)
    assert (layer.integer_weights().codes.numpy()[kernel.numpy() == 0] == 0).all()
