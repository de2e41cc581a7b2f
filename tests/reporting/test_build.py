"""What a report finds, beside NumPy; and that it names faults, and the way out of them."""

import json
import types

import keras
import numpy as np
import pytest

import kerasq
from kerasq import graph
from kerasq.analysis.operator_latency import OperatorLatency, OperatorTime
from kerasq.comparison.probe import Probe
from kerasq.litert.contents import Op
from kerasq.reporting import page
from kerasq.reporting.counts import BINS
from kerasq.reporting.layer_figures import LayerFigures, operator_of, timed
from kerasq.support.sqnr import Noise
from tests import networks


def rows(verdict):
    return {x["name"]: x for x in verdict.figures["layers"]}


def ratio(wanted, found):
    noise = np.square(wanted - found, dtype=np.float64).sum()
    return 10 * np.log10(np.square(wanted, dtype=np.float64).sum() / noise)


def test_the_verdict_is_that_of_both_models(made, tiny, samples, labels):
    model, q, lite = tiny
    found = made[1].figures["verdict"]
    wanted, computed = networks.run(model, samples), lite.predict(samples)
    assert found["accuracy"] == {
        side: pytest.approx(np.mean(y.argmax(-1) == labels), rel=1e-4)
        for side, y in [("float", wanted), ("simulated", computed), ("file", computed)]
    }
    same = np.mean(wanted.argmax(-1) == computed.argmax(-1))
    assert found["agreement"]["float file"] == pytest.approx(same, rel=1e-4)
    assert found["agreement"]["simulated file"] == 1
    assert found["sqnr"]["file"] == pytest.approx(ratio(wanted, computed), rel=1e-3)
    assert found["bytes"] == len(lite.content) and found["latency_ms"] > 0
    assert found["operators"] == {"CONV_2D": 2, "ADD": 1, "MEAN": 1, "FULLY_CONNECTED": 1}
    assert found["target"] == "litert" and found["stays_float"] == {}
    assert found["activation_bytes"] == kerasq.summary(q).peak_activation_bytes


def test_layers_have_the_figures_of_summary_and_compare(made, tiny, samples):
    _, q, lite = tiny
    found = rows(made[1])
    assert [*found] == ["image_quantize", "first", "second", "sum", "pool", "head"]
    for layer in kerasq.compare(q, lite, x=samples).layers:
        row = found[layer.name]
        assert (row["op"], row["max_lsb"], row["exact"]) == (layer.op, layer.max_lsb, layer.exact)
    for layer in kerasq.summary(q).layers:
        keys = ("scheme", "macs", "weight_bytes", "activation_bytes", "accumulator_bits")
        assert {x: found[layer.name][x] for x in keys} == {x: getattr(layer, x) for x in keys}
    assert found["sum"]["inputs"] == ["first", "second"]


def test_layers_have_the_times_of_their_operators(made, tiny):
    found, verdict = rows(made[1]), made[1].figures["verdict"]
    # Each has an operator of its name; what the file is fed has none.
    times = {name: x["ms"] for name, x in found.items()}
    assert times.pop("image_quantize") is None
    assert sum(times.values()) == pytest.approx(verdict["operators_ms"], rel=1e-3)
    assert times["second"] > 0


def test_operators_without_a_layer_count_for_the_one_that_they_feed():
    names = ["padded", "conv", "onto_0", "onto_1", "cat", "out"]
    reads = [["in"], ["padded"], ["conv"], ["in"], ["onto_0", "onto_1"], ["cat"]]
    ops = [Op("A", tuple(x), (name,)) for x, name in zip(reads, names, strict=True)]
    times = [
        OperatorTime(op="A", output=name, runs_on="", ms=ms)
        for name, ms in zip(names, [1.0, 2.0, 4.0, 8.0, None, 32.0], strict=True)
    ]
    layers = [
        LayerFigures(name="in", op="input"),
        LayerFigures(name="layer", op="A", tensor="conv"),
    ]
    layers += [LayerFigures(name="cat", op="A"), LayerFigures(name="gone", op="A")]
    latency = OperatorLatency(operators=tuple(times), whole_ms=1.0, rounds=1, num_threads=1)
    found = timed(layers, types.SimpleNamespace(ops=ops), latency)
    # The padding, the convolution; both QUANTIZE of the concatenation, which itself is not known.
    assert [x.ms for x in found] == [None, 3.0, 12.0, None]


def test_values_are_those_of_numpy(made, tiny, samples):
    model, q, lite = tiny
    found = rows(made[1])
    # Of the input all is known; of the head what the file returns.
    grid = q.get_layer("image_quantize").grid().numpy()
    codes = grid.quantize(samples)
    own = found["image_quantize"]
    assert own["codes_used"] == len(np.unique(codes))
    assert own["code_values"]["counts"] == np.bincount(codes.ravel().astype(int) + 128).tolist()
    counted, high = own["float_values"], max(samples.max(), float(grid.high))
    expected, _ = np.histogram(samples, BINS, (0, high))
    np.testing.assert_array_equal(counted["counts"], expected)
    assert counted["low"] == 0 and counted["high"] == pytest.approx(high, rel=1e-4)
    assert own["sqnr"] == pytest.approx(ratio(samples, grid.dequantize(codes)), rel=1e-3)
    head, z = found["head"], lite.predict(samples)
    assert head["codes_used"] == len(np.unique(lite.predict(samples, dequantize=False)))
    assert head["sqnr"] == pytest.approx(ratio(networks.run(model, samples), z), rel=1e-3)
    # By itself: the float layer on what the file has before it.
    probe = Probe(q, lite)
    probe.run(samples)
    kernel, bias = (x.numpy() for x in model.get_layer("head").weights)
    own = probe.value(q.get_layer("head").input) @ kernel + bias
    assert head["own_sqnr"] == pytest.approx(ratio(own, z), rel=1e-3)
    assert head["own_sqnr"] > head["sqnr"]


def test_a_first_state_that_is_one_row_is_compared_with_all_samples(tmp_path):
    # The float network has one row of it, the file one a sample.
    model = keras.Sequential([keras.Input((2, 3)), keras.layers.GRU(1, name="cell")])
    model.weights[-1].assign(np.linspace(-1, 1, 6).reshape(2, 3))
    q = kerasq.quantize_model(model)
    x = np.random.default_rng(0).normal(size=(6, 2, 3)).astype("float32")
    kerasq.calibrate(q, x)
    made = kerasq.report(q, kerasq.export_tflite(q), x, tmp_path / "r.html", time_layers=False)
    for row in made.figures["layers"]:
        assert sum(row["float_values"]["counts"]) == sum(row["code_values"]["counts"]), row["name"]
    assert 20 < rows(made)["cell"]["sqnr"] < 80
    assert "cell_recurrent" in rows(made)
    # Of one value there are no classes.
    assert str(made).split("\n")[0].split() == ["SQNR", "(dB)"]


def test_masks_do_not_stay_float():
    x = keras.Input((3,), name="x")
    mask = keras.layers.Dense(2)(x) > 0.5
    y = keras.ops.where(mask | (keras.layers.Dense(2)(x) > 0.0), x[:, :2], 0.0)
    q = kerasq.quantize_model(keras.Model(x, y))
    assert any(not z.dtype.startswith("float") for n in graph.calls(q) for z in n.outputs)
    assert operator_of(q) == {}


def test_channels_that_the_file_lacks_are_told(tmp_path):
    layers = [keras.layers.Conv2D(5, 3, name="conv"), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((4, 4, 2)), *layers, keras.layers.Dense(2, name="head")])
    conv = model.get_layer("conv")
    conv.kernel.assign(conv.kernel * [0, 1, 0, 0, 1])
    q = kerasq.quantize_model(model)
    x = np.random.default_rng(0).normal(size=(4, 4, 4, 2)).astype("float32")
    kerasq.calibrate(q, x)
    found = rows(kerasq.report(q, kerasq.export_tflite(q), x, tmp_path / "r.html"))
    assert found["conv"]["removed"] == 3 and found["head"]["removed"] == 0


def test_a_kernel_is_shown_before_and_after_folding(made, tiny):
    model, q, _ = tiny
    channels = rows(made[1])["first"]["weights"]["drawn"]["channels"]
    kernel = model.get_layer("first").kernel.numpy().reshape(27, 8)
    np.testing.assert_allclose([x[0] for x in channels["before"]], kernel.min(0), rtol=1e-4)
    folded = q.get_layer("first").folded_kernel().numpy().reshape(27, 8)
    np.testing.assert_allclose([x[4] for x in channels["after"]], folded.max(0), rtol=1e-4)
    assert "before" not in rows(made[1])["second"]["weights"]["drawn"]["channels"]


def test_biases_are_measured_against_their_grid(made, tiny):
    _, q, _ = tiny
    found, layer = rows(made[1])["first"]["weights"], q.get_layer("first")
    integer = layer.integer_weights()
    codes = integer.bias.numpy()
    assert found["bias_bits"] == int(np.abs(codes).max()).bit_length() + 1
    step = np.float64(layer.input_grids()[0].numpy().scale) * integer.grid.numpy().scale
    wanted = layer.gain_and_bias()[1].numpy()
    assert found["bias_sqnr"] == pytest.approx(ratio(wanted, codes * step), rel=0.01)
    assert found["bias_sqnr"] > 40
    error = (codes * step - wanted) / layer.grid().numpy().scale
    assert (
        found["bias_error"] == pytest.approx(np.abs(error).max(), rel=1e-3)
        and found["bias_full"] == 0
    )
    drawn = found["drawn"]["biases"]
    # The figures of a report have five digits.
    np.testing.assert_allclose(drawn["codes"], codes, rtol=1e-4)
    np.testing.assert_allclose(drawn["error"], error, rtol=1e-3)
    np.testing.assert_allclose(drawn["float"], wanted / step, rtol=1e-4)


@pytest.mark.parametrize("layer", [keras.layers.Conv2DTranspose(2, 2), keras.layers.Dense(2)])
def test_biases_of_a_file_alone_are_its_codes(layer, tmp_path):
    q = kerasq.quantize_model(keras.Sequential([keras.Input((4, 4, 3)), layer]))
    q.layers[-1].bias.assign([0.25, -1])
    x = np.random.default_rng(0).normal(size=(4, 4, 4, 3))
    kerasq.calibrate(q, x)
    found = kerasq.report(None, kerasq.export_tflite(q), x, tmp_path / "file.html").figures
    biases = found["layers"][-1]["weights"]["drawn"]["biases"]
    wanted = q.layers[-1].integer_weights().bias.numpy()
    np.testing.assert_allclose(biases["codes"], wanted, rtol=1e-4)
    assert {*biases} == {"channel", "limit", "codes"} and biases["limit"] == pytest.approx(
        2**31, rel=1e-4
    )


def test_samples_are_shown_as_images(made):
    shown = made[1].figures["shown"]
    assert 0 < len(shown) <= 12
    assert [x["disagrees"] for x in shown] == sorted((x["disagrees"] for x in shown), reverse=True)
    assert all(x["image"].startswith("data:image/png;base64,") for x in shown)
    assert {*shown[0]["outputs"]} == {"float", "simulated", "file"}


def test_the_twin_has_the_same_figures(made):
    folder, verdict = made
    assert json.loads((folder / "report.json").read_text()) == verdict.figures
    assert (folder / "report.html").stat().st_size < 2e6


def test_a_good_model_needs_no_advice(made):
    assert made[1].advice == () and "nothing to mend" in str(made[1])


def test_two_faults_are_named_and_the_ways_out_help(broken, samples, tmp_path):
    model, _, verdict = broken
    first, second = verdict.advice
    assert (first.layer, first.rule) == ("image_quantize", "normalization")
    assert "2 of 256 codes" in first.what and "kerasq.calibrate" in first.way_out
    assert (second.layer, second.rule) == ("second", "outlier")
    assert "channel 3" in second.what and "kerasq.equalize" in second.way_out
    assert f"- {first}" in str(verdict)
    # What it says, done.
    q = kerasq.quantize_model(model, overrides={"second": "float"})
    kerasq.calibrate(q, samples)
    lite = kerasq.export_tflite(q)
    after = kerasq.report(q, lite, samples, tmp_path / "after.html", float_model=model)
    assert after.advice == ()
    assert after.figures["verdict"]["stays_float"] == {"second": "Conv2D, as it was asked for"}
    before, now = (x.figures["verdict"]["sqnr"]["file"] for x in (verdict, after))
    assert before < 5 and now > 35
    # And what changed.
    pair = (broken[1] / "broken.json", tmp_path / "after.json")
    found = kerasq.compare_reports(*pair, broken[1] / "difference.html")
    assert [x["rule"] for x in found["advice"]["gone"]] == ["normalization", "outlier"]
    assert found["advice"]["new"] == found["advice"]["left"] == []
    assert found["verdict"]["SQNR (dB), file"] == [before, now]
    assert found["layers"]["second"]["scheme"] == ["w8a8", "float"]
    assert "scheme" not in found["layers"]["first"] and found["layers"]["second_int8"] is None


def test_a_file_alone_shows_what_it_holds(tiny, samples, labels, tmp_path):
    _, q, lite = tiny
    verdict = kerasq.report(None, lite, (samples, labels), tmp_path / "file.html")
    found = rows(verdict)
    assert [x["op"] for x in found.values()] == [
        *("input", "CONV_2D", "CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED")
    ]
    (head,) = [x for x in found.values() if x["op"] == "FULLY_CONNECTED"]
    codes = lite.predict(samples, dequantize=False)
    assert head["codes_used"] == len(np.unique(codes)) and head["sqnr"] is None
    integer = q.get_layer("head").integer_weights().codes.numpy()
    assert head["weights"]["codes_used"] == len(np.unique(integer))
    assert head["scheme"] == "int8, int8" and head["tensor"] == "head"
    assert (head["weights"]["bits"], head["weights"]["codes"]) == (8, 255)
    accuracy = np.mean(codes.argmax(-1) == labels)
    assert verdict.figures["verdict"]["accuracy"] == {"file": pytest.approx(accuracy, rel=1e-4)}
    # Beside its float model, the outputs can be compared.
    model = tiny[0]
    assert head["ms"] >= 0
    named = kerasq.report(
        None, lite, samples, tmp_path / "file.html", float_model=model, time_layers=False
    )
    assert {x["ms"] for x in rows(named).values()} == {None}
    assert "operators_ms" not in named.figures["verdict"]
    wanted = ratio(networks.run(model, samples), lite.predict(samples))
    assert named.figures["verdict"]["sqnr"]["file"] == pytest.approx(wanted, rel=1e-3)


def test_a_file_alone_takes_data_as_a_model_does(tiny, samples, labels, tmp_path):
    _, _, lite = tiny
    path = tmp_path / "file.html"
    wanted = kerasq.report(None, lite, (samples, labels), path).figures
    halves = [(samples[rows], labels[rows]) for rows in (slice(24), slice(24, 48))]
    for data in (halves, lambda: iter(halves)):
        found = kerasq.report(None, lite, data, path).figures
        assert found["verdict"]["accuracy"] == wanted["verdict"]["accuracy"]
        assert found["samples"] == 48
    assert kerasq.report(None, lite, {"image": samples[:3]}, path).figures["samples"] == 3
    assert kerasq.report(None, lite, [samples[:2], samples[2:3]], path).figures["samples"] == 3
    for data, match in [
        (None, "must be an array or an iterable of batches. Received: data=None"),
        ("x.npy", "Load the file first"),
        (samples[:0], "at least one sample"),
        (iter([]), "at least one sample"),
        (5, "must be an array, an iterable of batches"),
        (samples[:, :4], r"shape of model input 'image', \(None, 8, 8, 3\)"),
        (np.where(samples > 0.99, np.nan, samples), "must be finite"),
    ]:
        with pytest.raises(ValueError, match=match):
            kerasq.report(None, lite, data, path)


def test_a_file_alone_takes_batches_of_several_inputs(tmp_path):
    inputs = [keras.Input((2,), name="b"), keras.Input((3,), name="a")]
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Concatenate()(inputs)))
    q, rng = kerasq.quantize_model(model), np.random.default_rng(0)
    x = {"a": rng.normal(size=(6, 3)), "b": rng.normal(size=(6, 2))}
    kerasq.calibrate(q, x)
    lite = kerasq.export_tflite(q)
    # As many batches as inputs: being dicts, they are no inputs.
    halves = [{name: y[rows] for name, y in x.items()} for rows in (slice(3), slice(3, 6))]
    found = [kerasq.report(None, lite, data, tmp_path / "f.html").figures for data in (x, halves)]
    for one, other in zip(*(y["layers"] for y in found), strict=True):
        assert one["codes_used"] == other["codes_used"], one["name"]


def test_what_reads_constants_alone_is_the_same_for_all_samples(tmp_path):
    gru = keras.layers.GRU(2, bias_initializer="ones", name="gru")
    q = networks.quantized(keras.Sequential([keras.Input((2, 3)), gru]))
    lite = kerasq.export_tflite(q, check=False)
    verdict = kerasq.report(q, lite, networks.data(q, 4), tmp_path / "r.html", time_layers=False)
    # The first step's state is 0: what is left is the bias, of one sample and of four.
    assert rows(verdict)["gru_recurrent"]["sqnr"] == pytest.approx(
        rows(verdict)["gru_recurrent"]["own_sqnr"]
    )


def test_labels_must_be_classes_that_there_are(tiny, samples, labels, tmp_path):
    _, q, lite = tiny
    path = tmp_path / "report.html"
    for data, match in [((samples, labels + 1), "from 1 to 4"), ((samples, labels - 1), "-1 to 2")]:
        with pytest.raises(ValueError, match=f"'head' must be classes from 0 to 3.*{match}"):
            kerasq.report(q, lite, data, path)
        with pytest.raises(ValueError, match=f"'head' must be classes from 0 to 3.*{match}"):
            kerasq.compare(q, lite, x=data)


def test_noise_that_overflows_is_not_none():
    noise = Noise()
    noise.add(np.float32([1e30, 2e30]), np.float32([0, 0]))
    assert noise.sqnr == pytest.approx(0)
    for wanted in ([np.nan, 1.0], [np.inf, 1.0]):
        strange = Noise()
        strange.add(np.float32(wanted), np.float32([1, 1]))
        assert strange.sqnr is None
    lost = Noise()
    lost.add(np.float32([1, 1]), np.float32([np.nan, 1]))
    assert np.isnan(lost.sqnr) and page.plain(lost.sqnr) is None


def test_names_of_classes_are_those_of_the_file(tiny, samples, tmp_path):
    _, q, lite = tiny
    named = kerasq.export_tflite(q, labels=["a", "b", "c", "d"])
    found = kerasq.report(q, named, samples[:2], tmp_path / "named.html").figures
    assert found["labels"] == ["a", "b", "c", "d"]
    plain = kerasq.report(q, lite, samples[:2], tmp_path / "plain.html").figures
    assert plain["labels"] == []


def test_bad_input_is_refused_before_any_work(tiny, samples, tmp_path):
    _, q, lite = tiny
    with pytest.raises(ValueError, match=r"must be an .html file.*Received: 'report.txt'"):
        kerasq.report(q, lite, samples, "report.txt")
    with pytest.raises(FileNotFoundError, match="directory of the file must exist"):
        kerasq.report(q, lite, samples, tmp_path / "none/report.html")
    with pytest.raises(ValueError, match="`lite` must be a TFLiteModel"):
        kerasq.report(q, lite.content, samples, tmp_path / "report.html")
    other = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="`float_model` must be the model before quantization"):
        kerasq.report(q, lite, samples[:2], tmp_path / "report.html", float_model=other)
    with pytest.raises(ValueError, match=r"must be a float model.*quantized already"):
        kerasq.report(q, lite, samples[:2], tmp_path / "report.html", float_model=q)
    with pytest.raises(ValueError, match=r"as many labels as samples.*48 samples, labels \[3\]"):
        kerasq.report(None, lite, (samples, np.zeros(3, int)), tmp_path / "report.html")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"must be the .json file that `kerasq.report` wrote"):
        kerasq.compare_reports(*[tmp_path / "other.json"] * 2, tmp_path / "difference.html")
    with pytest.raises(ValueError, match="must not be the page of a report that is compared"):
        kerasq.compare_reports(*[tmp_path / "other.json"] * 2, tmp_path / "other.html")
    assert (tmp_path / "other.json").read_text() == "[]"
