"""Accuracy of a model of several outputs: in `compare`, in a report and beside another one."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq.comparison.accuracy import by_output
from tests import networks

L = keras.layers
HALVES = slice(15), slice(15, 30)


@pytest.fixture(scope="module")
def model():
    """A network of classes, of two classes and of a number; its quantized copy and the file."""
    networks.set_seed(0)
    x = keras.Input((6,), name="x")
    hidden = L.Dense(8, "relu", name="hidden")(x)
    kind = L.Dense(3, activation="softmax", name="kind")(hidden)
    sign = L.Dense(1, activation="sigmoid", name="sign")(hidden)
    found = keras.Model(x, [kind, sign, L.Dense(1, name="size")(hidden)])
    q = kerasq.quantize_model(found)
    kerasq.calibrate(q, samples())
    return found, q, kerasq.export_tflite(q)


def samples():
    return np.random.default_rng(0).normal(size=(30, 6)).astype("float32")


def labels():
    rng = np.random.default_rng(1)
    return {
        "kind": rng.integers(0, 3, 30),
        "sign": rng.integers(0, 2, 30),
        "size": rng.normal(size=30),
    }


def shares(outputs):
    """By NumPy."""
    kind, sign, _ = outputs
    return {
        "kind": np.mean(kind.argmax(-1) == labels()["kind"]),
        "sign": np.mean((sign[:, 0] > 0.5) == labels()["sign"]),
    }


@pytest.fixture(scope="module")
def reported(model, tmp_path_factory):
    float_model, q, lite = model
    folder = tmp_path_factory.mktemp("several")
    data = (samples(), [*labels().values()])
    return folder, kerasq.report(q, lite, data, folder / "both.html", float_model=float_model)


def test_compare_has_the_accuracy_of_each_output_that_has_classes(model):
    _, q, lite = model
    found = kerasq.compare(q, lite, x=(samples(), labels()))
    sides = {"simulated": q.predict_on_batch(samples())}
    sides["file"] = [lite.predict(samples())[name] for name in lite.output_names]
    assert found.accuracy == {
        output: {side: pytest.approx(shares(y)[output], rel=1e-6) for side, y in sides.items()}
        for output in ("kind", "sign")
    }
    share = 100 * shares(sides["file"])["kind"]
    assert f"\nAccuracy of 'kind': simulated {share:.2f} %, file {share:.2f} %." in str(found)
    halves = [(samples()[rows], [y[rows] for y in labels().values()]) for rows in HALVES]
    assert kerasq.compare(q, lite, x=halves).accuracy == found.accuracy
    plain = kerasq.compare(q, lite, x=samples())
    assert plain.accuracy == {} and "Accuracy" not in str(plain)


def test_a_report_has_it_of_the_float_network_too(model, reported):
    found = reported[1].figures["verdict"]
    assert found["accuracy"] == {} and [*found["accuracy_by_output"]] == ["kind", "sign"]
    wanted = shares(model[0].predict_on_batch(samples()))
    for output, sides in found["accuracy_by_output"].items():
        assert [*sides] == ["float", "simulated", "file"]
        assert sides["float"] == pytest.approx(wanted[output], rel=1e-4)
    table = str(reported[1]).splitlines()
    assert "accuracy of kind    accuracy of sign" in table[0]
    assert f"{100 * wanted['kind']:.2f} %" in table[2]
    # The samples that are shown are those of the first output, with its labels.
    for one in reported[1].figures["shown"]:
        assert one["label"] == labels()["kind"][one["index"]]


def test_a_file_alone_has_it_too(model, tmp_path):
    data = (samples(), labels())
    found = kerasq.report(None, model[2], data, tmp_path / "file.html").figures["verdict"]
    outputs = [model[2].predict(samples())[name] for name in model[2].output_names]
    assert found["accuracy_by_output"] == {
        output: {"file": pytest.approx(share, rel=1e-4)}
        for output, share in shares(outputs).items()
    }
    with pytest.raises(ValueError, match=r"as many labels as samples.*30 samples, labels \[30, 29"):
        wrong = [labels()["kind"], labels()["sign"][1:], labels()["size"]]
        kerasq.report(None, model[2], (samples(), wrong), tmp_path / "file.html")


def test_two_reports_are_compared_by_output(reported):
    path = reported[0] / "both.json"
    found = kerasq.compare_reports(path, path, reported[0] / "difference.html")["verdict"]
    share = reported[1].figures["verdict"]["accuracy_by_output"]["sign"]["file"]
    assert found["accuracy of sign, file"] == [share, share]


def test_labels_go_by_name_or_in_order():
    one, two = np.arange(3), np.ones(3)
    for labels in ({"b": two, "a": one}, [one, two], (one, two)):
        found = by_output(labels, ["a", "b"])
        assert found[0] is one and found[1] is two
    assert by_output({"b": two, "other": one}, ["a", "b"])[0] is None
    assert by_output(None, ["a", "b"]) == by_output(one, ["a", "b"]) == [None, None]
    assert by_output(one, ["a"])[0] is one and by_output([one], ["a"])[0] is one
