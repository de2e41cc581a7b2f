import keras
import numpy as np
import pytest

import kerasq
from tests import networks

L = keras.layers


@pytest.fixture(scope="module")
def table(model, x):
    return kerasq.sensitivity(model, x, candidates=("w8a8", "w4a8", "w8a16", "float"))


def test_layers_are_those_that_overrides_may_name(model, table):
    assert sorted(table.layers) == ["features", "head", "hidden", "squash"]
    for name in table.layers:
        kerasq.quantize_model(model, overrides={name: "w8a16"})


@pytest.mark.parametrize("name", ["head", "hidden", "squash"])
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a16"])
def test_alone_is_what_a_model_with_that_layer_alone_has(model, x, table, name, scheme):
    """Against the integer simulation of a model that is float but for one layer."""
    q = kerasq.quantize_model(model, "float", overrides={name: scheme})
    kerasq.calibrate(q, x)
    measured = networks.sqnr(model, q, x)
    i, j = table.layers.index(name), table.candidates.index(scheme)
    assert table.alone[i, j] == pytest.approx(measured, abs=0.01)


def test_base_is_what_the_whole_model_has(model, x, table):
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, x)
    measured = networks.sqnr(model, q, x)
    assert table.base == pytest.approx(measured, abs=0.01)
    assert np.isinf(table.reference)


def test_gain_of_a_raised_layer(model, x, table):
    q = kerasq.quantize_model(model, overrides={"head": "float"})
    kerasq.calibrate(q, x)
    measured = networks.sqnr(model, q, x)
    i, j = table.layers.index("head"), table.candidates.index("float")
    assert table.raised[i, j] == pytest.approx(measured, abs=0.01)
    np.testing.assert_allclose(table.gain[:, 0], 0.0)
    np.testing.assert_allclose(table.gain, table.raised - table.base)


def test_sorting(table):
    assert (np.diff(table.noise[:, 0]) <= 0).all()
    by_gain = table.sort("float")
    assert (np.diff(by_gain.gain[:, 3]) <= 0).all()
    with pytest.raises(ValueError, match=r"`by` must be one of .*Received: by='w2a2'"):
        table.sort("w2a2")


def test_array_and_print(table):
    rows = np.asarray(table)
    assert len(rows) == 16 and rows.dtype.names[:2] == ("layer", "candidate")
    assert rows["alone"][0] == table.alone[0, 0]
    lines = str(table).splitlines()
    assert lines[0].split()[:3] == ["layer", "only", "w8a8"]
    assert lines[2].split()[0] == table.layers[0]


def test_plot(table, tmp_path):
    figure = table.plot(tmp_path / "sensitivity.png")
    assert (tmp_path / "sensitivity.png").read_bytes()[:4] == b"\x89PNG"
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == list(table.layers)


def test_metric_with_labels(model, x):
    labels = networks.run(model, x).argmax(-1)
    table = kerasq.sensitivity(model, (x, labels), candidates=("w8a8", "w4a8"), metric="accuracy")
    assert table.metric == "accuracy" and table.reference == 1.0
    np.testing.assert_allclose(table.noise, 1.0 - table.alone)
    assert table.alone[:, 1].min() < 1.0  # four bits change some class

    def same(y_true, y_pred):
        return y_true == y_pred.argmax(-1)

    batches = [(x[:32], labels[:32]), (x[32:64], labels[32:64]), (x[64:], labels[64:])]
    again = kerasq.sensitivity(model, batches, candidates=("w8a8", "w4a8"), metric=same)
    assert again.metric == "same"
    np.testing.assert_allclose(again.sort().alone, table.alone, atol=1e-6)


def test_a_layer_without_int16_kernel_is_left_out():
    model = keras.Sequential(
        [keras.Input((6,), name="x"), L.Dense(4, name="d"), L.UnitNormalization(name="unit")]
    )
    table = kerasq.sensitivity(model, networks.data(model, 64))
    i = table.layers.index("unit")
    assert np.isnan(table.alone[i, 1]) and np.isfinite(table.alone[i, 0])
    assert "-" in next(line for line in str(table).splitlines() if line.startswith("unit")).split()


def test_fewer_bits_save_no_bytes_where_weights_are_not_packed():
    """On int8 codes, LiteRT's are not in groups."""
    conv = L.Conv2D(4, 3, groups=2, name="groups")
    model = keras.Sequential([keras.Input((6, 6, 4)), conv, L.Flatten(), L.Dense(3, name="d")])
    table = kerasq.sensitivity(model, networks.data(model, 32), candidates=("w8a8", "w4a8"))
    found = kerasq.allocate(model, None, budget={"bytes": 250}, sensitivity=table).overrides
    assert (found["groups"], found["d"]) == ("w8a8", "w4a8")
    kerasq.quantize_model(model, overrides=found)


def test_layers_that_stay_float_are_no_rows():
    image = keras.Input((6,), name="x")
    y = L.LayerNormalization(name="norm")(L.Dense(4, name="d")(image))
    model = keras.Model(image, L.Dense(2, name="head")(y))
    data = networks.data(model, 64)
    table = kerasq.sensitivity(model, data, overrides={"norm": "float"})
    assert sorted(table.layers) == ["d", "head", "x"]
    q = kerasq.quantize_model(model, overrides={"norm": "float"})
    kerasq.calibrate(q, data)
    measured = networks.sqnr(model, q, data)
    assert table.base == pytest.approx(measured, abs=0.01)


def test_several_inputs_and_outputs():
    model = networks.two_by_two()
    table = kerasq.sensitivity(model, networks.data(model, 64), candidates=("w8a8", "w8a16"))
    assert {"left", "right", "score", "both"} <= {*table.layers}
    assert np.isfinite(table.alone).all()


def test_bad_arguments(model, x):
    with pytest.raises(ValueError, match="must be different schemes"):
        kerasq.sensitivity(model, x, candidates=("w8a8", "w8a8"))
    with pytest.raises(ValueError, match="A scheme must be "):
        kerasq.sensitivity(model, x, candidates=("w1a1",))
    with pytest.raises(ValueError, match="must hold labels"):
        kerasq.sensitivity(model, [x], metric="accuracy")
    for metric in ("accurracy", None, 3):
        with pytest.raises(ValueError, match="`metric` must be 'sqnr', a Keras metric"):
            kerasq.sensitivity(model, x, metric=metric)
    with pytest.raises(ValueError, match="`metric` must grow as the model gets better"):
        kerasq.sensitivity(model, (x, x[:, 0]), metric="sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match="as many labels as samples"):
        kerasq.sensitivity(model, (x, x[:5, 0]), metric="accuracy")
    with pytest.raises(ValueError, match="at least one sample"):
        kerasq.sensitivity(model, x[:0])


def test_few_bits_are_measured_as_they_are_quantized():
    model = networks.residual()
    x = networks.images(model, 128)
    # Of the last model no layer reads few bits but the last one.
    for scheme, others in (("w8a4", {}), ("w4a2", {}), ("w4a2", {"branch": "w8a8"})):
        own = {"*": scheme} | others
        found = kerasq.allocate(
            model, x, budget={"bytes": 1e9}, candidates=(scheme, "w8a8"), overrides=own
        )
        q = kerasq.quantize_model(model, overrides=found.overrides)
        kerasq.calibrate(q, x)
        measured = networks.sqnr(model, q, x)
        assert found.chosen.measured == pytest.approx(measured, abs=1e-3), (scheme, others)
        if not others:
            assert found.sensitivity.base == pytest.approx(measured, abs=1e-3), scheme


def test_binary_candidates():
    with pytest.raises(ValueError, match=r"weights of 2 bits or more.*'w1a8'"):
        kerasq.sensitivity(
            networks.residual(), np.zeros((4, 12, 12, 3)), candidates=("w1a8", "float")
        )
