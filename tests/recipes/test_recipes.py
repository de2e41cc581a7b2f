"""Every recipe on the digits, as users start it."""

import json
import re
import time
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.flags import FLAGS
from absl.testing import flagsaver
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import kerasq
from recipes import datasets, low_bit, mixed_precision, schemes, stages
from tests import networks
from tests.processes import LIMIT, script, started

MODELS = ("float", "calibrated", "finetuned", "float_finetuned")
ARTIFACTS = [f"{name}.keras" for name in MODELS]
ARTIFACTS += ["model.tflite", "float.tflite", "curves.png", "results.json"]
RECIPES = ("qat", "inq", "low_bit", "mixed_precision", "ptq")


def run(recipe, *arguments):
    return script(f"recipes/{recipe}.py", *arguments)


def finished(recipe, out, *arguments):
    """results.json and the output of a run."""
    done = run(recipe, f"--out={out}", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "results.json").read_text()), done.stdout


@pytest.fixture(scope="module")
def qat(tmp_path_factory):
    """Folder, flags and output of a run."""
    out = tmp_path_factory.mktemp("qat")
    flags = ("--float_epochs=6", "--epochs=1", "--float_finetune")
    _, text = finished("qat", out, *flags)
    return out, flags, text


@pytest.fixture(scope="module")
def network(qat):
    """A float classifier of digits."""
    return qat[0] / "float.keras"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Recipe and flags of each row of docs/results.md."""
    # In a process of its own, as the tool has flags of the same names as the recipes.
    code = tmp_path_factory.mktemp("rows") / "rows.py"
    code.write_text("import json; from tools import results; print(json.dumps(results.ROWS))")
    return list(json.loads(script(code).stdout).values())


@pytest.mark.parametrize("recipe", RECIPES)
def test_help(recipe, rows):
    text = run(recipe, "--help").stdout
    own = text.split("absl.app:")[0]
    assert f"Example: python recipes/{recipe}.py" in own
    known = re.findall(r"--(?:\[no\])?(\w+):", own)
    assert {"dataset", "model", "seed", "out", "resume", "strategy"} <= set(known)
    for flag in [flag for name, *flags in rows if name == recipe for flag in flags]:
        assert flag.removeprefix("--").split("=")[0] in known, flag
    assert max(len(line) for line in own.splitlines()) <= 110


def test_results_and_artifacts(qat):
    out, _, text = qat
    results = json.loads((out / "results.json").read_text())
    assert all((out / name).stat().st_size > 0 for name in ARTIFACTS)
    for name in (*MODELS, "tflite"):
        assert 0.9 < results[f"{name}_accuracy"] <= 1.0, name
    assert 0.98 <= results["agreement"] <= 1.0
    assert results["float_ms"] > 0 and results["tflite_ms"] > 0
    assert set(results["seconds"]) >= {"float", "calibrate", "finetune", "export", "latency"}
    assert "integer .tflite" in text and "== finetune ==" in text
    assert "Epoch 6/6" in text  # Keras prints no such line for a single epoch


def test_sizes_hold_the_weights(qat):
    # 24,282 parameters: 4 bytes each in float, about 1 in int8; less means weights are missing.
    results = json.loads((qat[0] / "results.json").read_text())
    assert 4 * 24_000 < results["float_bytes"] < 4 * 24_282 + 20_000
    assert 24_000 < results["tflite_bytes"] < results["float_bytes"] / 2


def test_a_second_run_only_prints(qat):
    out, flags, _ = qat
    before = (out / "model.tflite").stat().st_mtime_ns
    again = run("qat", f"--out={out}", *flags)
    assert again.returncode == 0 and "Epoch" not in again.stdout
    assert again.stdout.count("finished before") == 6
    assert (out / "model.tflite").stat().st_mtime_ns == before


def test_changed_flags_are_refused(qat):
    out, flags, _ = qat
    done = run("qat", f"--out={out}", *flags, "--momentum=0.25")
    assert done.returncode != 0
    assert re.search(r"momentum=0\.25 \(was 0\.5\).*another --out", done.stderr)


def test_another_recipe_does_not_write_over_a_run(qat, network):
    done = run("ptq", f"--out={qat[0]}", f"--model={network}")
    assert done.returncode != 0 and "recipe='ptq' (was 'qat')" in done.stderr


def test_changed_data_are_refused(tmp_path):
    x, y = np.zeros((20, 8, 8), "uint8"), np.arange(20) % 2
    flags = [f"--data_dir={tmp_path / 'd.npz'}", "--dataset=npz", "--float_epochs=1"]
    flags += ["--float_only", f"--out={tmp_path / 'run'}"]
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    first = run("qat", *flags)
    assert first.returncode == 0 and "no better than always answering" in first.stdout
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y, x_test=x, y_test=1 - y)
    assert "for the stage 'float'" in run("qat", *flags).stderr


def test_inq_epochs_and_portions(network, tmp_path):
    done = run("inq", f"--out={tmp_path}", f"--model={network}", "--epochs=3")
    assert done.returncode != 0
    assert "must be a multiple of the number of portions, 4. Received: epochs=3" in done.stderr
    assert "Take --epochs=4 or 8" in done.stderr and "== float ==" not in done.stdout


def test_low_bit(network, tmp_path):
    flags = (f"--model={network}", "--epochs=1", "--scheme=w2a2")
    results, text = finished("low_bit", tmp_path, *flags)
    assert results["tflite_accuracy"] > 0.9 and results["exact"] == 1.0
    assert results["settings"]["batch_norm"] == "keep" and "w2a2" in text
    model = keras.models.load_model(tmp_path / "finetuned.keras")
    schemes = [layer.scheme for layer in model.layers if hasattr(layer, "weight_quantizer")]
    assert schemes == ["w8a8", "w2a2", "w2a2", "w8a8"]


def test_low_bit_quantizers_are_those_of_their_papers():
    kinds = {}
    for name, (weights, gradient) in low_bit.QUANTIZERS.items():
        scheme = {"twn": "w2a4", "ttq": "w2a4", "binary": "w1a4"}.get(name, "w4a4")
        model = networks.sequential()
        q = kerasq.quantize_model(model, scheme, weights=weights, range_gradient=gradient)
        layer = next(x for x in q.layers if hasattr(x, "weight_quantizer"))
        learned = [v.name for v in layer.weight_quantizer.trainable_variables]
        kinds[name] = (type(layer.weight_quantizer).__name__, learned, gradient)
    assert kinds == {
        "lsq": ("Uniform", ["kernel_range"], "lsq"),
        "pact": ("DoReFa", [], "clip"),
        "dorefa": ("DoReFa", [], "none"),
        "twn": ("Ternary", [], "lsq"),
        "ttq": ("TrainedTernary", ["positive", "negative"], "lsq"),
        "binary": ("Binary", [], "lsq"),
    }


def test_mixed_precision(network, tmp_path):
    flags = ("--budget=bytes=70%", f"--model={network}", "--epochs=1", "--target=litert-x86-64")
    results, text = finished("mixed_precision", tmp_path, *flags)
    assert results["tflite_accuracy"] > 0.93 and results["exact"] == 1.0
    assert set(results["overrides"].values()) == {"w8a8", "w4a8"} and "bytes" in text
    for name in ("sensitivity", "pareto"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert 0 < results["kernel_bytes"] <= 0.75 * 23_824


@pytest.mark.parametrize(
    ("budget", "raised"),
    [
        ("layers=50%", {"conv"}),  # alone at w8a8 it costs the most
        ("sqnr=37", set()),  # 37.3 dB are predicted for w8a8
        ("sqnr=39", {"conv"}),
        ("bit_operations=150%", {"logits"}),  # those of conv alone are 173 %
    ],
)
def test_budgets(tmp_path, budget, raised):
    model = networks.sequential()
    x = networks.data(model, 64)
    job = types.SimpleNamespace(
        calibration_batches=lambda: tf.data.Dataset.from_tensor_slices(x).batch(32),
        path=lambda name: tmp_path / name,
    )
    FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(budget=budget, candidates=["w8a8", "w8a16"]):
        found = mixed_precision.overrides(job, model)
    assert {name for name, scheme in found.items() if scheme == "w8a16"} == raised
    kerasq.quantize_model(model, overrides=found)
    assert (tmp_path / "sensitivity.png").exists()
    assert (tmp_path / "pareto.png").exists() == (not budget.startswith("layers"))


@pytest.mark.parametrize(
    ("recipe", "flags", "text"),
    [
        ("low_bit", ("--quantizer=binary", "--scheme=w4a4"), "'ttq'] for weights of 4 bits"),
        ("low_bit", ("--quantizer=ttq", "--scheme=w8a4"), "must be one of ['lsq']"),
        ("low_bit", ("--quantizer=ttq", "--scheme=w4a4"), "must have a width in [2]"),
        ("qat", ("--epochs=2", "--freeze_ranges_epoch=2"), "one of the epochs, counted from 0"),
        ("qat", ("--replicas=2",), "Add --strategy=mirrored"),
        ("qat", ("--strategy=mirrored", "--replicas=2", "--batch_size=31"), "31, 2 replicas"),
        ("inq", ("--portions=half,1",), "must be numbers, such as"),
        ("inq", ("--portions=0.5,0.4,1", "--epochs=4"), "must grow from above 0.0 to 1.0"),
        ("qat", ("--model=mobilenetv2x",), "Did you mean MobileNetV2?"),
        ("mixed_precision", ("--budget=layers=20%", "--candidates=w8a8,w4a8"), "a wider scheme"),
        ("qat", ("--overrides=dnse=w8a16",), "'dnse'"),
        ("ptq", ("--overrides=dnse=w8a16",), "'dnse'"),
        ("qat", ("--model=autoencoder", "--label_smoothing=0.1"), "which learns no labels"),
        ("qat", ("--model=autoencoder", "--distill_weight=0.5"), "whose outputs are no classes"),
        ("low_bit", ("--widen=2", "--model=nowhere.keras"), "must be 1 where `model` is a file"),
        ("low_bit", ("--widen=2", "--model=MobileNet"), "must be 1 for networks of keras.app"),
        ("qat", ("--epochs=-1",), "not a non-negative integer"),
        ("qat", ("--prune=0.5", "--prune_epochs=4"), "prune_epochs=4, epochs=3"),
        ("inq", ("--epochs=4", "--warmup_epochs=1"), "Leave the first two out"),
        ("qat", ("--model=nowhere.keras",), "nowhere.keras"),
    ],
)
def test_flags_that_cannot_be(tmp_path, recipe, flags, text):
    done = run(recipe, f"--out={tmp_path}", *flags)
    assert done.returncode != 0 and text in done.stderr
    assert not (tmp_path / "float.keras").exists()


def test_ways_that_need_a_batch_normalization(tmp_path):
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
    keras.Sequential(layers).save(tmp_path / "plain.keras")
    flags = (f"--model={tmp_path / 'plain.keras'}", "--way=data_free")
    done = run("ptq", f"--out={tmp_path / 'run'}", *flags)
    assert done.returncode != 0
    assert "--way=data_free needs BatchNormalization. " in done.stderr
    assert not [*(tmp_path / "run").glob("*.tflite")]


def test_values_that_cannot_be():
    with pytest.raises(ValueError, match="Received: budget='megabytes=3'"):
        mixed_precision.parsed("megabytes=3")
    with pytest.raises(ValueError, match=r"must be pattern=scheme.*'dense=w0a8'"):
        schemes.overrides(["dense=w0a8"])


def test_a_model_fits_the_data(tmp_path):
    networks.sequential().save(tmp_path / "m.keras")
    shape, classes = networks.sequential().input_shape[1:], networks.sequential().output_shape[-1]

    def load(name, labels):
        x, y = np.zeros((labels, *shape), "uint8"), np.arange(labels)
        names = tuple(map(str, y))
        samples = datasets.Samples(x, y)
        data = datasets.Dataset(name=name, train=samples, test=samples, class_names=names)
        return stages.load_float_model(str(tmp_path / "m.keras"), data)

    for name, labels in (("digits", classes), ("npz", classes), ("npz", classes - 1)):
        assert load(name, labels).output_shape[-1] == classes
    for name, labels in (("digits", classes - 1), ("npz", classes + 1)):
        with pytest.raises(ValueError, match=rf"to {classes} classes .* in {labels} classes"):
            load(name, labels)


def test_ptq(network, tmp_path):
    # Not all methods of calibration: each is a line of the same table.
    asked = ["mse", "ranges", "rounded", "blocks", "absorbed", "data_free_corrected"]
    flags = [f"--model={network}", "--rounding_iterations=30", *(f"--way={x}" for x in asked)]
    results, text = finished("ptq", tmp_path, *flags)
    ways = results["flavours"]
    statics = [f"static_{way}" for way in asked]
    assert list(ways) == [*statics, "dynamic_range", "float16"]
    for name, way in ways.items():
        assert way["accuracy"] > 0.93 and name in text
        assert (tmp_path / f"{name}.tflite").stat().st_size == way["bytes"]
    assert ways["float16"]["sqnr"] > ways["dynamic_range"]["sqnr"] > 20
    assert all(ways[name]["exact"] == 1.0 for name in statics)
    sizes = [ways[name]["bytes"] for name in ("static_mse", "float16")]
    assert sizes[0] < 0.4 * ways["float16"]["float_bytes"] and sizes[0] < sizes[1]
    model = (tmp_path / "model.tflite").read_bytes()
    assert model == (tmp_path / f"{results['best']}.tflite").read_bytes()
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_an_autoencoder_has_no_classes_to_report(tmp_path):
    flags = ("--model=autoencoder", "--float_epochs=2", "--epochs=1")
    results, text = finished("qat", tmp_path, *flags)
    assert results["exact"] == 1.0 and "agreement" not in results
    assert results["tflite_accuracy"] > results["float_accuracy"] - 0.1
    figures = json.loads((tmp_path / "stages" / "float.json").read_text())["figures"]
    losses = figures["history"]["val_loss"]
    assert losses[figures["best_epoch"] - 1] == min(losses) and "accuracy" not in figures["history"]
    assert "integer .tflite" in text and "commonest class" not in text


def test_all_of_fine_tuning(network, tmp_path):
    flags = ["--batch_norm=keep", "--freeze_ranges_epoch=2", "--label_smoothing=0.1"]
    flags += ["--distill_weight=0.5", "--schedule=step", "--warmup_epochs=1", "--epochs=3"]
    flags += ["--overrides=dense=w8a16", "--strategy=mirrored", "--replicas=2"]
    flags += ["--range_gradient=lsq"]  # Ranges of weights that follow these could not be frozen.
    flags += ["--prune=0.3", "--accumulator_bits=24"]
    results, text = finished("qat", tmp_path, f"--model={network}", *flags)
    assert results["tflite_accuracy"] > 0.95 and results["agreement"] == 1.0
    assert {"seconds", "settings", "best_epoch"} <= set(results)
    for flag in flags[1:6]:
        name, value = flag.removeprefix("--").split("=")
        assert str(results["settings"][name]) == value
    history = json.loads((tmp_path / "stages" / "finetune.json").read_text())["figures"]["history"]
    # The best epoch is that of the integer kernels.
    lite, held_out = kerasq.TFLiteModel(tmp_path / "model.tflite"), datasets.load("digits").parts[1]
    right = lite.predict(held_out.x.astype("float32")).argmax(-1) == held_out.y
    assert max(history["val_accuracy"]) == pytest.approx(right.mean(), abs=1e-6)
    curves = logged(tmp_path / "logs" / "finetune")
    assert any("kernel" in tag for tag in curves["histograms"])
    assert any(tag.startswith("activations/") for tag in curves["histograms"])
    # Of a few images, after each epoch.
    assert [len(x) for tag, x in curves["scalars"].items() if tag.startswith("sqnr/")] == 8 * [3]
    ends = {tag: x for tag, x in curves["scalars"].items() if tag.endswith(("/low", "/high"))}
    assert any(values[0] != values[1] for values in ends.values())
    assert all(values[1] == values[2] for values in ends.values())  # frozen
    assert results["replicas"] == 2 and "--strategy=mirrored: replicas=2" in text
    assert 0.299 < results["zeros"] < 0.4 and "unstructured" in text
    assert results["overflows"] == 0.0 and "accumulators of 24 that wrap around" in text
    assert f"In a zip it takes {results['tflite_zipped_bytes']:,} bytes" in text
    model = keras.models.load_model(tmp_path / "finetuned.keras")
    assert type(model) is type(keras.models.load_model(network))  # the student, not the learner


def logged(folder):
    """Curves and histograms for TensorBoard, by kind and tag."""
    found = {}
    for path in folder.rglob("events*"):
        log = EventAccumulator(str(path), {"tensors": 0}).Reload()
        for tag in log.Tags()["tensors"]:
            kind = log.SummaryMetadata(tag).plugin_data.plugin_name
            values = [tf.make_ndarray(e.tensor_proto) for e in log.Tensors(tag)]
            found.setdefault(kind, {})[tag] = values
    return found


def killed_in_an_epoch(recipe, out, flags, epoch):
    """Starts a run and kills it in the middle of the epoch after so many."""
    backup = out / "backup" / "finetune"
    log = out / "log"
    process = started([f"recipes/{recipe}.py", f"--out={out}", *flags], log, log)
    deadline = time.time() + LIMIT
    while time.time() < deadline and process.is_alive():
        if list(backup.glob(f"epoch-{epoch:05d}*")):
            break
        time.sleep(0.01)
    time.sleep(0.1)
    assert process.is_alive(), log.read_text()[-3000:]
    process.kill()
    process.join()


def test_a_killed_run_ends_where_an_unbroken_one_does(network, tmp_path):
    flags = (f"--model={network}", "--epochs=4", "--bits=3", "--portions=0.5,1.0", "--seed=3")
    flags += ("--distill_weight=0.5", "--freeze_ranges_epoch=2")
    (tmp_path / "cut").mkdir()
    killed_in_an_epoch("inq", tmp_path / "cut", flags, epoch=1)
    assert not (tmp_path / "cut" / "finetuned.keras").exists()
    broken, text = finished("inq", tmp_path / "cut", *flags)
    assert re.search(r"Resuming after epoch [1-3] of 4", text)
    unbroken, _ = finished("inq", tmp_path / "whole", *flags)
    histories = [
        json.loads((tmp_path / name / "stages" / "finetune.json").read_text())["figures"]["history"]
        for name in ("cut", "whole")
    ]
    # Two runs of a seed are the same, to the last bit.
    assert broken["calibrated_sqnr"] == unbroken["calibrated_sqnr"]
    assert histories[0] == histories[1]
    np.testing.assert_allclose(histories[0]["frozen"], [0.5, 0.5, 1.0, 1.0], atol=0.02)
    assert "Of its weights 100.00 % are 0 or a power of two" in text
    assert not list((tmp_path / "cut" / "backup").rglob(".*.h5"))
    assert broken["weights_max_difference"] == 0.0 and broken["powers_of_two"] == 1.0
    assert broken["tflite_accuracy"] > 0.9 and broken["exact"] == 1.0
    assert broken["best_epoch"] > 2  # only then all weights are powers of two
    logs = {path.parent.name for path in (tmp_path / "cut" / "logs").rglob("events*")}
    assert {"finetune", "train", "validation"} <= logs
    assert broken["tflite_accuracy"] == unbroken["tflite_accuracy"]
    a, b = (keras.models.load_model(tmp_path / n / "finetuned.keras") for n in ("cut", "whole"))
    for x, y in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
