"""The command line: from a float model and a folder of images to a firmware's sources."""

import json
import os
import re
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest

import kerasq
from kerasq.command_line import COMMANDS, main, script
from tests import networks


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a float model, images of it, and what `quantize` makes of them."""
    folder = tmp_path_factory.mktemp("files")
    networks.set_seed(0)
    layers = [
        keras.layers.Conv2D(3, 3, activation="relu", name="conv"),
        keras.layers.GlobalAveragePooling2D(name="pool"),
        keras.layers.Dense(2, name="head"),
    ]
    model = keras.Sequential([keras.Input((8, 6, 3), batch_size=1, name="image"), *layers])
    model.save(folder / "float.keras")
    (folder / "images" / "one").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 9, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        keras.utils.save_img(folder / f"images/one/{i}.png", image, scale=False)
    code = main(
        [
            "quantize",
            str(folder / "float.keras"),
            f"--data={folder / 'images'}",
            f"--out={folder / 'model.tflite'}",
            f"--keras={folder / 'quantized.keras'}",
            "--target=tflm",
            "--labels=cat,dog",
        ]
    )
    assert code == 0
    return folder


def test_quantize_writes_what_python_does(files):
    q = kerasq.quantize_model(keras.models.load_model(files / "float.keras"), target="tflm")
    paths = sorted((files / "images/one").glob("*.png"))
    images = [keras.utils.load_img(x, target_size=(8, 6), interpolation="bilinear") for x in paths]
    kerasq.calibrate(q, np.stack(images))
    written = kerasq.TFLiteModel(files / "model.tflite", target="tflm")
    assert written.content == kerasq.export_tflite(q, labels=["cat", "dog"]).content
    kept = kerasq.load_model(files / "quantized.keras")
    x = np.stack(images).astype(np.float32)
    np.testing.assert_array_equal(kept.predict_on_batch(x[:1]), written.predict(x[:1]))


def test_inspect_prints_the_report_and_the_arena(files, capsys):
    # On the interpreter that the file was made for, without being told.
    assert main(["inspect", str(files / "model.tflite")]) == 0
    printed = capsys.readouterr().out
    lite = kerasq.TFLiteModel(files / "model.tflite", target="tflm")
    least = re.fullmatch(r"Arena: ([\d,]+) bytes are the least .*", printed.splitlines()[-1])[1]
    assert int(least.replace(",", "")) >= lite.arena_bytes()
    assert printed.startswith(f"{lite}\n")


@pytest.mark.filterwarnings("ignore:The file was made for target 'tflm'")
def test_inspect_times_each_operator_on_litert(files, capsys):
    path = str(files / "model.tflite")
    assert main(["inspect", path, "--target=litert", "--latency", "--num_threads=2"]) == 0
    printed = capsys.readouterr().out
    timed = printed[printed.index("runs on") :].splitlines()
    ops = [(op.name, op.outputs[0]) for op in kerasq.TFLiteModel(path).ops]
    assert [tuple(x.split()[:2]) for x in timed[2 : 2 + len(ops)]] == ops
    assert re.fullmatch(r"Each alone: [\d.]+ ms .* \(50 calls each, threads: 2\)\.", timed[-1])


def test_inspect_lists_all_that_is_refused(tmp_path, capsys):
    image = keras.Input((6, 4), name="image")
    outputs = [keras.layers.Activation(x, name=x)(image) for x in ("gelu", "exponential")]
    q = kerasq.quantize_model(keras.Model(image, outputs))
    kerasq.calibrate(q, np.random.default_rng(0).normal(size=(4, 6, 4)))
    kerasq.export_tflite(q, tmp_path / "model.tflite")
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "model.tflite"), "--target=tflm"]) == 1
    printed = capsys.readouterr()
    listed = printed.out.partition("TFLite Micro refuses:\n")[2].splitlines()
    assert [x.split()[0] for x in listed] == ["GELU", "EXP"]
    assert printed.err.count("\n") == 1 and "Received: 2 that it refuses" in printed.err
    # The NPU has tables of both.
    assert main(["inspect", str(tmp_path / "model.tflite"), "--target=ethos-u"]) == 0
    assert "runs 2 of 2 operators" in capsys.readouterr().out


def test_compare_prints_the_comparison(files, capsys):
    x = np.random.default_rng(1).integers(0, 256, (3, 8, 6, 3)).astype(np.float32)
    np.savez(files / "x.npz", x=x, y=np.zeros(3, int))
    paths = [str(files / "quantized.keras"), str(files / "model.tflite")]
    # The labels are y of the samples' file.
    assert main(["compare", *paths, f"--data={files / 'x.npz'}"]) == 0
    printed = capsys.readouterr().out
    lite = kerasq.TFLiteModel(files / "model.tflite", target="tflm")
    share = 100 * np.mean(lite.predict(x).argmax(-1) == 0)
    assert f"Accuracy of 'head': simulated {share:.2f} %, file {share:.2f} %." in printed
    # On the interpreter that the model simulates.
    assert "conv" in printed and "portable kernels: max 0 LSB" in printed
    paths[0] = str(files / "float.keras")
    assert main(["compare", *paths, f"--data={files / 'x.npz'}"]) == 1
    assert "must be a quantized model" in capsys.readouterr().err


def test_report_writes_a_page_of_both_models(files, capsys):
    x = np.random.default_rng(1).integers(0, 256, (6, 8, 6, 3)).astype(np.float32)
    y = np.arange(6) % 2
    np.savez(files / "data.npz", x=x, y=y)
    paths = [str(files / "quantized.keras"), str(files / "model.tflite")]
    flags = [f"--data={files / 'data.npz'}", f"--labels={files / 'data.npz'}", "--samples=3"]
    flags += [f"--float={files / 'float.keras'}", f"--out={files / 'report.html'}"]
    flags += [f"--model_explorer={files / 'node_data'}"]
    assert main(["report", *paths, *flags]) == 0
    printed = capsys.readouterr().out
    assert "What to try next" in printed and f"Written: {files / 'report.html'}" in printed
    node_data = files / "node_data" / "sqnr_db.json"
    assert f"model-explorer {paths[1]} --node_data_paths={node_data}," in printed
    assert {*json.loads(node_data.read_text())["results"]} == {"image", "conv", "pool", "head"}
    found = json.loads((files / "report.json").read_text())
    lite = kerasq.TFLiteModel(files / "model.tflite", target="tflm")
    model = keras.models.load_model(files / "float.keras")
    accuracy = np.mean(model.predict_on_batch(x[::2])[:3].argmax(-1) == y[::2])
    assert found["verdict"]["accuracy"]["float"] == pytest.approx(accuracy, rel=1e-4)
    assert found["samples"] == 3 and found["verdict"]["bytes"] == len(lite.content)
    # On the interpreter that the model simulates.
    assert found["verdict"]["runs_on"].startswith("tflm, portable kernels")
    assert found["verdict"]["agreement"]["simulated file"] == 1 and found["labels"] == [
        "cat",
        "dog",
    ]


def test_labels_that_are_no_classes_give_no_accuracy(files, capsys):
    x = np.random.default_rng(1).integers(0, 256, (3, 8, 6, 3)).astype(np.float32)
    np.savez(files / "scores.npz", x=x, y=np.zeros((3, 5)))
    paths = [str(files / "quantized.keras"), str(files / "model.tflite")]
    flags = [f"--data={files / 'scores.npz'}", f"--labels={files / 'scores.npz'}"]
    for command in (["compare"], ["report", f"--out={files / 'scores.html'}"]):
        assert main([command[0], *paths, *flags, *command[1:]]) == 0
        assert "No accuracy: the labels are no classes" in capsys.readouterr().out


def test_report_takes_a_file_alone(files, capsys):
    np.save(files / "pixels.npy", np.zeros((2, 8, 6, 3), np.float32))
    flags = [f"--data={files / 'pixels.npy'}", f"--out={files / 'file.html'}"]
    with pytest.warns(UserWarning, match="made for target 'tflm'"):
        assert main(["report", str(files / "model.tflite"), *flags]) == 0
    layers = json.loads((files / "file.json").read_text())["layers"]
    assert [x["op"] for x in layers] == ["input", "CONV_2D", "MEAN", "FULLY_CONNECTED"]
    assert main(["report", *flags]) == 2
    assert "[QUANTIZED.keras] MODEL.tflite" in capsys.readouterr().err


def test_deploy_writes_sources_and_prints_their_names(files, capsys):
    np.save(files / "x.npy", np.zeros((2, 8, 6, 3), np.float32))
    flags = [f"--data={files / 'x.npy'}", f"--out={files / 'firmware'}", "--labels=cat,dog"]
    flags += ["--multiplier_bits=8", "--count=1"]
    assert main(["deploy", str(files / "model.tflite"), *flags]) == 0
    names = capsys.readouterr().out.splitlines()
    assert sorted(names) == sorted(map(str, (files / "firmware").iterdir()))
    assert '"dog"' in (files / "firmware/model.h").read_text()
    sources = "".join(x.read_text() for x in (files / "firmware").glob("*.h"))
    assert "kVectors = 1;" in sources
    assert "kMultiplierBits = 8;" in (files / "firmware/model_multipliers.h").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere.tflite"], "nowhere.tflite"),
        (["compare", "nowhere.keras", "nowhere.tflite", "--data=x.npy"], "nowhere.keras"),
        (["inspect", "{folder}/float.keras"], "must load"),
        (["inspect", "{folder}/model.tflite", "--latency"], "Add --target=litert"),
        (
            ["deploy", "{folder}/model.tflite", "--data=x.npy", "--out=a", "--compiled=b.tflite"],
            "--quantized, the .keras model",
        ),
        (
            ["quantize", "{folder}/float.keras", "--data={folder}/float.keras", "--out={folder}/a"],
            "numpy.save",
        ),
        (
            ["quantize", "{folder}/float.keras", "--data=nowhere.npy", "--out={folder}/a"],
            "must be a file or a folder that exists. Received: 'nowhere.npy'",
        ),
        (
            [
                "quantize",
                "{folder}/float.keras",
                "--data=x.npy",
                "--out={folder}/a",
                "--keras=a.txt",
            ],
            "--keras must name a .keras file",
        ),
        (
            ["quantize", "{folder}/float.keras", "--data=x.npy", "--out={folder}/float.keras"],
            "must be files of their own",
        ),
        (
            [
                "report",
                "{folder}/model.tflite",
                "--data=x.npy",
                "--out={folder}/a.html",
                "--model_explorer={folder}/float.keras",
            ],
            "must name a folder",
        ),
        (
            [
                "report",
                "{folder}/float.keras",
                "{folder}/model.tflite",
                "--data=x.npy",
                "--out={folder}/a.html",
            ],
            "must be a quantized model",
        ),
        (
            ["quantize", "{folder}/float.keras", "--data=x.npy", "--out={folder}/no/a"],
            "directory",
        ),
    ],
)
def test_bad_input_is_one_message(files, capsys, arguments, message):
    arguments = [x.format(folder=files) for x in arguments]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert not printed.out
    assert message in printed.err
    assert printed.err.startswith(f"kerasq {arguments[0]}: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "must be a command"),
        (["quantise"], "'quantise'"),
        (["inspect"], "It takes MODEL.tflite"),
        (["inspect", "a.tflite", "b.tflite"], "a.tflite b.tflite"),
        (["inspect", "a.tflite", "--color=red"], "color"),
        (["inspect", "a.tflite", "--target=tpu"], "tpu"),
        (["quantize", "a.keras"], "--out"),
    ],
)
def test_bad_flags_exit_with_2(capsys, arguments, message):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_arguments_and_flags(capsys, name):
    assert main([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(" ".join(["kerasq", name, *COMMANDS[name].arguments]))
    assert COMMANDS[name].text in printed


def test_samples_of_several_inputs_go_by_name(tmp_path):
    inputs = [keras.Input((2,), name="first"), keras.Input((3,), name="second")]
    outputs = keras.layers.Dense(1)(keras.layers.Concatenate()(inputs))
    keras.Model(inputs, outputs).save(tmp_path / "float.keras")
    flags = [f"--data={tmp_path / 'x.npz'}", f"--out={tmp_path / 'model.tflite'}"]
    arguments = ["quantize", str(tmp_path / "float.keras"), *flags]
    np.savez(tmp_path / "x.npz", first=np.ones((4, 2)))
    assert main(arguments) == 1
    assert not (tmp_path / "model.tflite").exists()
    np.savez(tmp_path / "x.npz", second=np.ones((4, 3)), first=np.ones((4, 2)))
    assert main(arguments) == 0
    assert [x.shape for x in kerasq.TFLiteModel(tmp_path / "model.tflite").inputs] == [
        (1, 2),
        (1, 3),
    ]


def test_files_with_code_are_read_where_they_are_trusted(tmp_path, capsys):
    """By each command that reads model files, and none does so unless it is told."""
    image = keras.Input((4,), name="image")
    # TensorFlow's `cumsum` has no kernel: the quantized model holds the Lambda too.
    sums = keras.layers.Lambda(lambda x: __import__("tensorflow").cumsum(x, 1), (4,), name="sums")
    keras.Model(image, keras.layers.Dense(2, name="head")(sums(image))).save(tmp_path / "f.keras")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(8, 4)))
    lite, page = tmp_path / "q.tflite", tmp_path / "q.html"
    both = [tmp_path / "q.keras", lite]
    commands = [
        ["quantize", tmp_path / "f.keras", f"--out={lite}", f"--keras={both[0]}"],
        ["compare", *both],
        ["report", *both, f"--out={page}"],
        ["report", lite, f"--out={page}", f"--float={tmp_path / 'f.keras'}"],
    ]
    for command in commands:
        arguments = [*map(str, command), f"--data={tmp_path / 'x.npy'}"]
        capsys.readouterr()
        assert main(arguments) == 1
        printed = capsys.readouterr().err
        assert "must hold no code" in printed and "--safe_mode=false" in printed
        assert main([*arguments, "--safe_mode=false"]) == 0


def test_deploy_refuses_a_model_with_code(files, capsys):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda x: 2 * x)])
    model.save(files / "code.keras")
    arguments = ["deploy", str(files / "model.tflite"), f"--data={files / 'images'}"]
    arguments += [f"--out={files / 'kit'}", f"--compiled={files / 'model.tflite'}"]
    arguments += [f"--quantized={files / 'code.keras'}"]
    assert main(arguments) == 1
    assert "--safe_mode=false" in capsys.readouterr().err
    # It is read: what is wrong next is the other file.
    assert main([*arguments, "--safe_mode=false"]) == 1
    assert "must be a file that Vela has written" in capsys.readouterr().err


@pytest.mark.parametrize("buffering", [1, -1])  # It breaks at a line, or at the end.
def test_a_pipe_that_nobody_reads_is_no_message(files, capfd, monkeypatch, buffering):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr("sys.argv", ["kerasq", "inspect", str(files / "model.tflite")])
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # Put back afterwards.
    with open(writer, "w", buffering=buffering) as broken:
        monkeypatch.setattr("sys.stdout", broken)
        with pytest.raises(SystemExit) as found:
            script()
    monkeypatch.undo()
    assert found.value.code == 141 and "pipe" not in capfd.readouterr().err


def in_a_shell(*arguments, stdout=subprocess.PIPE):
    """`python -m kerasq` where TensorFlow's log is as users have it."""
    env = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    command = [sys.executable, "-m", "kerasq", *map(str, arguments)]
    ends = {"stdout": stdout, "stderr": subprocess.PIPE}
    return subprocess.run(command, **ends, text=True, timeout=600, env=env)


def test_python_runs_it_as_a_module_and_an_error_is_one_sentence(files):
    np.save(files / "narrow.npy", np.zeros((2, 4, 4, 3), np.float32))
    # Behind the first call of LiteRT, which has a log of its own.
    done = in_a_shell(
        "report",
        files / "model.tflite",
        f"--data={files / 'narrow.npy'}",
        f"--out={files / 'narrow.html'}",
    )
    assert done.returncode == 1 and not done.stdout
    warning, error = done.stderr.splitlines()
    assert warning.startswith("kerasq: The file was made for target 'tflm'")
    assert error.startswith("kerasq report: `data` must have the shape of model input")


def test_a_reader_may_have_read_enough(files):
    read, write = os.pipe()
    os.close(read)
    done = in_a_shell("inspect", files / "model.tflite", stdout=write)
    os.close(write)
    assert done.returncode == 141 and not done.stderr
