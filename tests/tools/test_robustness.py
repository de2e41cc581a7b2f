"""The table of rates and optimizers, from tiny runs."""

import json

import numpy as np

from tests import processes


def test_networks_of_keras_2_compute_the_same(tmp_path):
    # The tool has flags that others have too, so it is imported in a process of its own.
    script = """
import numpy as np
from recipes import models
from tools import robustness
for network in robustness.NETWORKS:
    model = models.build(network, (32, 32, 3), 10)
    # Small values: a softmax of random logits in the tens would enlarge errors of rounding.
    x = np.random.default_rng(0).uniform(0, 1, (4, 32, 32, 3)).astype("f")
    np.testing.assert_allclose(robustness.in_keras2(model)(x), model(x), atol=1e-5)
    print("same", network)
"""
    (tmp_path / "same.py").write_text(script)
    done = processes.script(tmp_path / "same.py")
    assert done.stdout.count("same") == 4, done.stderr[-3000:]


def test_the_table(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(96) % 3
    x = (rng.integers(0, 100, (96, 32, 32, 3)) + 50 * y[:, None, None, None]).astype("uint8")
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:30], y_test=y[:30])
    flags = ["--dataset=npz", f"--data_dir={tmp_path / 'data.npz'}", f"--out={tmp_path / 'out'}"]
    flags += ["--float_epochs=1", "--network=ds_cnn", "--optimizer=SGD 1e-3"]
    # Once, and two of them with a second seed, which has been run before.
    some = ["--contestant=kerasq", "--contestant=tfmot"]
    done = processes.script("tools/robustness.py", *flags, *some, "--seeds=0")
    assert done.returncode == 0, done.stderr[-3000:]
    header = next(x for x in done.stdout.splitlines() if x.startswith("|"))
    names = [cell.strip() for cell in header.split("|")[3:-1]]
    assert names == ["float", "kerasq", "tfmot"]
    runs = tmp_path / "out/finetune/ds_cnn"
    for name in ("float", "kerasq", "tfmot"):
        assert "SGD 1e-3" in json.loads((runs / name / "seed0.json").read_text())
    logs = {path: path.stat().st_mtime_ns for path in runs.rglob("*.log")}
    assert len(logs) == 3
    for name, top1 in (("float", 0.5), ("kerasq", 0.25)):
        (runs / name / "seed1.json").write_text(json.dumps({"SGD 1e-3": top1}))
    (runs / "kerasq/seed1.clipped.json").write_text(json.dumps({"SGD 1e-3": [0.125]}))
    flags += ["--seeds=0,1", "--contestant=kerasq"]
    done = processes.script("tools/robustness.py", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = [x for x in done.stdout.splitlines() if x.startswith("|")]
    header, _, accuracies, over = printed[:4]
    names = [cell.strip() for cell in header.split("|")[3:-1]]
    assert names == ["float", "kerasq"]
    found = {
        name: [
            100 * json.loads(path.read_text())["SGD 1e-3"]
            for path in sorted((tmp_path / "out/finetune/ds_cnn" / name).glob("seed?.json"))
        ]
        for name in names
    }
    assert all(len(values) == 2 for values in found.values())
    for cell, values in zip(accuracies.split("|")[3:-1], found.values(), strict=True):
        assert cell.strip() == f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"
    differences = np.subtract(found["kerasq"], found["float"])
    assert over.split("|")[4].strip() == f"{differences.mean():+.2f}"
    # And what layers clip.
    clipped = [
        json.loads((runs / f"kerasq/seed{seed}.clipped.json").read_text())["SGD 1e-3"]
        for seed in (0, 1)
    ]
    assert np.shape(clipped) == (2, 1)
    assert printed[4].split("|")[4].strip() == "epoch 1"
    cells = [cell.strip() for cell in printed[6].split("|")[1:-1]]
    assert cells == ["ds_cnn", "kerasq", "SGD 1e-3", f"{100 * np.mean(clipped):.2f}"]
    assert (runs / "kerasq/seed0.SGD_1e-3.png").read_bytes().startswith(b"\x89PNG")
    # What was finished was not run again.
    assert logs == {path: path.stat().st_mtime_ns for path in runs.rglob("*.log")}
