"""The table of zeros and clusters, from tiny runs."""

import json

import keras
import numpy as np

import kerasq
from tests import networks, processes

L = keras.layers


def network():
    networks.set_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    x = L.Conv2D(16, 3, use_bias=False, name="conv")(image)
    x = L.ReLU(name="relu")(L.BatchNormalization(name="norm")(x))
    x = L.GlobalAveragePooling2D(name="gap")(x)
    return keras.Model(image, L.Dense(4, activation="softmax", name="head")(x))


def test_the_table(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(96) % 4
    x = (rng.integers(0, 100, (96, 8, 8, 3)) + 50 * y[:, None, None, None]).astype("uint8")
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:30], y_test=y[:30])
    network().save(tmp_path / "float.keras")
    out = tmp_path / "out"
    flags = ["--dataset=npz", f"--data_dir={tmp_path / 'data.npz'}", f"--out={out}"]
    flags += [f"--model={tmp_path / 'float.keras'}", "--seeds=0", "--epochs=2"]
    flags += ["--row=75 % sparse, 16 clusters", "--row=tfmot, 75 % sparse"]
    done = processes.script("tools/compression.py", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = [x for x in done.stdout.splitlines() if x.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed[2:]]
    assert [row[0] for row in rows] == ["75 % sparse, 16 clusters", "tfmot, 75 % sparse"]
    # Both have the zeros of the row that was run for them.
    q = keras.models.load_model(out / "75___sparse/0/finetuned.keras")
    zeros = {name: q.get_layer(name).kernel.numpy() == 0 for name in ("conv", "head_linear")}
    model = keras.models.load_model(next(out.glob("start_75___sparse_16/*.keras")))
    for name, mask in zeros.items():
        assert np.mean(mask) == 0.75
        kernel = model.get_layer(name.removesuffix("_linear")).kernel.numpy()
        np.testing.assert_array_equal(kernel == 0, mask)
        assert len(np.unique(kernel)) <= 16
    norms = model.get_layer("norm"), q.get_layer("conv").batch_norm
    for a, b in zip(*(norm.get_weights() for norm in norms), strict=True):
        np.testing.assert_array_equal(a, b)
    for row, folder in zip(rows, ("75___sparse__16_clusters", "tfmot__75___sparse"), strict=True):
        result = json.loads((out / folder / "0/results.json").read_text())
        assert row[1] == row[2] == row[3] == f"{100 * result['tflite_accuracy']:.2f}"
        lite = kerasq.TFLiteModel(out / folder / "0/model.tflite")
        assert row[7] == f"{len(lite.content):,}"
        kernels = [x for x in lite.tensors if x.constant and x.dtype == "int8" and len(x.shape) > 1]
        codes = np.concatenate([lite.constant(x.name).ravel() for x in kernels])
        assert row[5] == f"{100 * np.mean(codes == 0):.1f}"
        # Dead channels are not in the file, nor their zeros.
        assert np.mean(codes == 0) >= 0.75 or lite.removed_channels
    assert int(rows[0][6]) <= 2 * 16
    # What is finished is not run again.
    log = out / "tfmot__75___sparse/0.log"
    written = log.stat().st_mtime_ns
    again = processes.script("tools/compression.py", *flags)
    assert again.stdout.splitlines()[-len(printed) :] == done.stdout.splitlines()[-len(printed) :]
    assert log.stat().st_mtime_ns == written


def test_k_means_by_hand(tmp_path):
    # The tool has flags that others have too, so it is imported in a process of its own.
    script = """
import numpy as np
from tools.compression import k_means
found = k_means(np.float32([0.0, 1.0, 1.2, 5.0, 5.4, -3.0]), 4)
np.testing.assert_allclose(found, [0.0, 1.1, 1.1, 5.2, 5.2, -3.0], rtol=1e-6)
found = k_means(np.float32([[1.0, 2.0], [9.0, 10.0]]), 2)
np.testing.assert_allclose(found, [[1.5, 1.5], [9.5, 9.5]])
"""
    (tmp_path / "means.py").write_text(script)
    done = processes.script(tmp_path / "means.py")
    assert done.returncode == 0, done.stderr[-3000:]


def test_dead_channels(tmp_path):
    network().save(tmp_path / "float.keras")
    flags = ["--dead_channels=0.3", f"--model={tmp_path / 'float.keras'}"]
    done = processes.script("tools/compression.py", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Channels removed, which change nothing: conv (5 of 16)." in done.stdout
    rows = [x.split("|")[1:-1] for x in done.stdout.splitlines() if x.startswith("|")][2:]
    before, after = ([int(x.replace(",", "")) for x in row[1:3]] for row in rows)
    # Kernels of 3 x 3 x 3 and 4 outputs.
    assert before[0] - after[0] == 5 * (27 + 4) and after[1] < before[1]
