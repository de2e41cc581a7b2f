"""`calibrate_without_data`: ranges by hand, beside those from data, and what is refused."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq.wrappers import ranged
from tests import networks

L = keras.layers
PIXELS = (0, 255)


def ends(q, name):
    return [float(end) for end in ranged(q)[name].range()]


@pytest.fixture(scope="module")
def digits():
    """A small CNN on scikit-learn's digits, with images that it has not seen."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    networks.set_seed(0)
    x = (data.images[..., None] * (255 / 16)).astype("float32")
    image = keras.Input((8, 8, 1), name="image")
    y = L.Rescaling(1 / 255, name="scale")(image)
    y = L.Conv2D(16, 3, padding="same", use_bias=False, name="first")(y)
    y = L.ReLU(name="first_relu")(L.BatchNormalization(momentum=0.8, name="first_norm")(y))
    z = L.DepthwiseConv2D(3, padding="same", use_bias=False, name="second")(y)
    z = L.ReLU(6.0, name="second_relu")(L.BatchNormalization(momentum=0.8, name="second_norm")(z))
    z = L.Conv2D(16, 1, name="third")(z)
    z = L.BatchNormalization(momentum=0.8, name="third_norm")(z)
    z = L.MaxPooling2D(2, name="pool")(L.Add(name="sum")([y, z]))
    model = keras.Model(image, L.Dense(10, name="logits")(L.Flatten(name="flat")(z)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(x[:1280], data.target[:1280], batch_size=64, epochs=4, verbose=0)
    return model, x[:256], x[1280:]


def test_ranges_by_hand():
    model = networks.mobile()
    q = kerasq.quantize_model(model)
    kerasq.calibrate_without_data(q, PIXELS, deviations=4.0)
    assert ends(q, "image_quantize") == [0.0, 255.0]
    for name, is_cut in (("stem", True), ("expand", True), ("depthwise", True), ("project", False)):
        norm = model.get_layer(f"{name}_norm")
        beta, gamma = norm.beta.numpy(), np.abs(norm.gamma.numpy())
        low, high = (beta - 4.0 * gamma).min(), (beta + 4.0 * gamma).max()
        wanted = (0.0, min(high, 6.0)) if is_cut else (low, high)
        np.testing.assert_allclose(ends(q, name), wanted, rtol=5e-3, err_msg=name)
    low, high = zip(ends(q, "stem"), ends(q, "project"), strict=True)
    assert sum(low) <= ends(q, "sum")[0] < ends(q, "sum")[1] <= sum(high)


def test_it_is_nearly_as_good_as_data(digits):
    model, few, x = digits
    free, calibrated = kerasq.quantize_model(model), kerasq.quantize_model(model)
    kerasq.calibrate(calibrated, few, method="minmax")
    kerasq.calibrate_without_data(free, PIXELS)
    for name in ("first", "second", "third"):
        widths = np.ptp(ends(free, name)), np.ptp(ends(calibrated, name))
        assert 0.6 < widths[0] / widths[1] < 2.0, name
    own = networks.sqnr(model, free, x)
    assert own > 20.0 and own > networks.sqnr(model, calibrated, x) - 6.0
    same = free.predict_on_batch(x).argmax(-1) == model.predict_on_batch(x).argmax(-1)
    assert same.mean() > 0.98
    lite = kerasq.export_tflite(free)
    assert kerasq.compare(free, lite, x=x[:64]).exact == 1.0


def test_both_methods_without_data(digits):
    model, _, x = digits
    q = kerasq.quantize_model(model, "w4a8")
    kerasq.calibrate_without_data(q, PIXELS)
    own = networks.sqnr(model, q, x)
    assert kerasq.correct_biases(q).method == "analytic"
    assert networks.sqnr(model, q, x) > own + 1.0
    lite = kerasq.export_tflite(q)
    assert kerasq.compare(q, lite, x=x[:64]).exact == 1.0


def test_ranges_at_other_widths(digits):
    model, _, x = digits
    q = kerasq.quantize_model(model, "w8a16")
    kerasq.calibrate_without_data(q, PIXELS)
    low, high = ends(q, "image_quantize")
    assert high == 255.0 and low == pytest.approx(-255.0, rel=1e-3)
    assert networks.sqnr(model, q, x) > 35.0


def test_each_feature_has_its_range():
    """A Normalization in front of the grid: of features that differ by orders of magnitude."""
    table = keras.Input((2,), name="table")
    y = L.Normalization(mean=[1.0, 5000.0], variance=[1.0, 1e6], name="alike")(table)
    y = L.BatchNormalization(name="norm")(L.Dense(4, name="dense")(y))
    model = networks.shake_norms(keras.Model(table, y))
    q = kerasq.quantize_model(model, preprocessing="float")
    kerasq.calibrate_without_data(q, ([0.0, 3000.0], [4.0, 10000.0]))
    assert ends(q, "table_quantize") == pytest.approx([-2.0, 5.0], rel=1e-4)
    kerasq.correct_biases(q)  # By way of the grid, whose ends are those of both features.
    kerasq.calibrate_without_data(q, {"table": (0.0, [2.0, 4000.0])})
    assert ends(q, "table_quantize") == pytest.approx([-5.0, 1.0], rel=1e-4)


def test_remarks(capsys):
    """What holds for inference alone, and what was drawn."""
    x = keras.Input((4, 4, 3), name="image")
    y = L.BatchNormalization(name="norm")(L.Conv2D(3, 1, name="known")(x))
    model = networks.shake_norms(keras.Model(x, y))
    y = L.BatchNormalization(name="fresh")(L.Conv2D(3, 1, name="unknown")(model.output))
    model = keras.Model(x, L.Dense(2, name="head")(L.Softmax(name="shares")(y)))
    q = kerasq.quantize_model(model)
    kerasq.calibrate_without_data(q, PIXELS)
    printed = capsys.readouterr().out
    assert "Layers ['shares'] have no moments in closed form" in printed
    assert "from 'unknown' on, are those of a BatchNormalization that has yet to see" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_range": (255, 0)}, r"the lower one first. Received: \(255, 0\) for input 'image'"),
        ({"input_range": (0, np.inf)}, r"two finite numbers, .* Received: \(0, inf\)"),
        ({"input_range": 255}, r"two finite numbers, .* Received: 255 for input"),
        ({"input_range": ([0, 0], [1, 1])}, r"one for each feature. Received: .* shape \(None, 12"),
        (
            {"input_range": {"picture": PIXELS}},
            r"one for each input, \['image'\]. Received: \['pic",
        ),
        ({"input_moments": (0.0, -1.0)}, r"not below 0. Received: \(0.0, -1.0\) for input 'image'"),
        ({"input_moments": (np.nan, 1.0)}, r"`input_moments` must be two finite numbers"),
        ({"deviations": 0}, r"above 0, such as 6.0. Received: deviations=0"),
        ({"deviations": "6"}, r"Received: deviations='6'"),
    ],
)
def test_bad_arguments_change_nothing(shared, options, message):
    before = [v.numpy() for v in shared.variables]
    with pytest.raises(ValueError, match=message):
        kerasq.calibrate_without_data(shared, **{"input_range": PIXELS, **options})
    for old, new in zip(before, shared.variables, strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.fixture(scope="module")
def shared():
    return kerasq.quantize_model(networks.residual())


def test_models_without_statistics():
    message = r"must hold a BatchNormalization that has seen data.*Received: model '{}'"
    with pytest.raises(ValueError, match=message.format("mlp")):
        kerasq.calibrate_without_data(kerasq.quantize_model(networks.mlp()), (-1, 1))
    folded = kerasq.quantize_model(networks.residual(), batch_norm="fold")
    with pytest.raises(ValueError, match=message.format("residual")):
        kerasq.calibrate_without_data(folded, PIXELS)
    x = keras.Input((3,))
    new = keras.Model(x, L.BatchNormalization()(L.Dense(2)(x)), name="new")
    with pytest.raises(ValueError, match=message.format("new")):
        kerasq.calibrate_without_data(kerasq.quantize_model(new), PIXELS)
    with pytest.raises(ValueError, match="must be a quantized model"):
        kerasq.calibrate_without_data(networks.residual(), PIXELS)


def test_what_computes_with_integers_is_named(shared):
    x = keras.Input((4,), name="x")
    y = L.BatchNormalization(name="norm")(L.Dense(3, name="dense")(x))
    z = keras.ops.where(y > 0.5, y, -y)
    model = networks.shake_norms(keras.Model(x, L.Dense(2, name="head")(z)))
    q = kerasq.quantize_model(model)
    with pytest.raises(ValueError, match=r"of integers and conditions.*values of type bool"):
        kerasq.calibrate_without_data(q, (0, 1))
    assert all(float(quantizer.batches_seen) == 0.0 for quantizer in ranged(q).values())


def test_values_that_are_not_finite_are_named():
    x = keras.Input((4,), name="x")
    y = L.BatchNormalization(name="norm")(L.Dense(3, name="dense")(x))
    model = networks.shake_norms(keras.Model(x, keras.ops.log(y)))
    q = kerasq.quantize_model(model)
    with pytest.raises(ValueError, match=r"Moments must be finite.*behind layer 'log"):
        kerasq.calibrate_without_data(q, (0, 1))
