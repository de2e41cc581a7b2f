"""The table of post-training methods, of a tiny classifier and random images."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

import kerasq
from tests import networks, processes

L = keras.layers
SIZE = 8
# All that kerasq does, but for `seq_mse`, is in the second and the third.
ROWS = {
    "float": "float",
    "w8a8, per tensor, equalized, absorbed, corrected": (
        "w8a8_per_tensor_equalized_absorbed_corrected"
    ),
    "w4a4, adaround in blocks": "w4a4_adaround_in_blocks",
    "w8a8, post_training": "w8a8_post_training",
    "converter w8a8": "converter_w8a8",
    "converter w8a8, per tensor": "converter_w8a8_per_tensor",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A network and its images, with labels in both layouts."""
    path = tmp_path_factory.mktemp("post_training")
    rng = np.random.default_rng(0)
    files = [f"calibration/any/{i}.png" for i in range(8)]
    files += [f"test/{i}.png" for i in range(3)] + ["test/0002/more.png", "test/0010/last.png"]
    for name in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), "uint8")).save(path / name)
    layers = [L.Rescaling(1 / 255)]
    for strides in (2, 1):
        layers += [L.Conv2D(4, 1, strides=strides), L.BatchNormalization(), L.ReLU(6.0)]
    layers += [L.Conv2D(4, 1, activation="relu"), L.GlobalAveragePooling2D(), L.Dense(11)]
    networks.set_seed(0)
    keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers]).save(path / "network.keras")
    return path


def most_scales(file):
    """Of a weight of four dimensions, the most scales."""
    tensors = kerasq.TFLiteModel(file).tensors
    return max(np.size(x.grid.scale) for x in tensors if x.constant and len(x.shape) == 4)


def run(folder, *flags):
    flags = [f"--model={folder / 'network.keras'}", f"--data_dir={folder}", *flags]
    return processes.script("tools/post_training.py", *flags)


def test_the_table(folder):
    flags = [f"--out={folder / 'out'}", "--iterations=3", *(f"--row={name}" for name in ROWS)]
    done = run(folder, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    cells = {x[0]: x[1:] for x in ([y.strip() for y in z.split("|")[1:-1]] for z in table[2:])}
    assert cells.keys() == ROWS.keys()

    # By hand, in the order of names: 0.png, 0002/, 0010/, 1.png, 2.png.
    paths = ["0.png", "0002/more.png", "0010/last.png", "1.png", "2.png"]
    labels = [0, 2, 10, 1, 2]
    x = np.stack([np.asarray(Image.open(folder / "test" / path)) for path in paths]).astype("f")
    wanted = keras.models.load_model(folder / "network.keras").predict(x, verbose=0)
    top1 = 100 * np.mean(wanted.argmax(-1) == labels)
    assert cells["float"] == [f"{top1:.1f}", "", "", "", ""]
    for name, file in ROWS.items():
        found = json.loads((folder / "out" / f"{file}.json").read_text())
        if name == "float":
            continue
        outputs = kerasq.TFLiteModel(folder / "out" / f"{file}.tflite").predict(x)
        top1 = 100 * np.mean(outputs.argmax(-1) == labels)
        same = 100 * np.mean(outputs.argmax(-1) == wanted.argmax(-1))
        sqnr = 10 * np.log10(np.mean(wanted**2) / np.mean((wanted - outputs) ** 2))
        assert cells[name][:2] == [f"{top1:.1f}", f"{same:.1f}"]
        assert float(cells[name][2]) == pytest.approx(sqnr, abs=0.1)
        assert sqnr > (0 if "w4a4" in name else 10)
        for i, key in ((3, "seconds"), (4, "cpu_seconds")):
            assert cells[name][i] == f"{sum(found[key].values()):,.0f}"
        assert most_scales(folder / "out" / f"{file}.tflite") == (1 if "per tensor" in name else 4)

    # What is finished is read; what had other settings is not.
    kept = {path: path.stat().st_mtime_ns for path in (folder / "out").iterdir()}
    done = run(folder, *flags, "--iterations=2")
    assert done.returncode == 0, done.stderr[-3000:]
    again = [line for line in done.stdout.splitlines() if line.startswith("|")]
    both = [(a, b) for a, b in zip(table, again, strict=True) if "adaround" not in a]
    assert len(both) == len(table) - 1 and all(a == b for a, b in both)
    changed = {x.name for x, time in kept.items() if x.stat().st_mtime_ns != time}
    rounded = ROWS["w4a4, adaround in blocks"]
    assert changed == {f"{rounded}.json", f"{rounded}.tflite", f"{rounded}.txt"}


def test_names_that_are_no_classes(folder, tmp_path):
    for name in ("calibration", "test"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "test" / "cat.png")
    flags = [f"--data_dir={tmp_path}", f"--out={tmp_path / 'out'}", "--row=float"]
    done = run(folder, *flags)
    assert done.returncode != 0
    assert "must be named by the index of their class" in done.stderr
