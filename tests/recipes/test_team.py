"""A recipe in two processes, each of which dies once."""

import json
import socket
import time

import pytest

from recipes import team
from tests import processes

FLAGS = ("--float_epochs=3", "--epochs=5")


def started(out, log, strategy, *flags, index, ports):
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    env = {
        "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
    }
    argv = ["recipes/qat.py", f"--out={out}", f"--strategy={strategy}", *flags]
    return processes.started(argv, log, log, env)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for found in sockets:
        found.bind(("localhost", 0))
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def both(folder, name):
    """Chief and worker of a run in `folder`, and their logs."""
    ports, logs = free_ports(2), [folder / f"{name}{i}" for i in (0, 1)]
    flags = ("multi_worker", *FLAGS)
    run = [started(folder / "run", logs[i], *flags, index=i, ports=ports) for i in (0, 1)]
    return run, logs


def test_one_of_two_dies_and_both_start_again(tmp_path):
    backup = tmp_path / "run" / "backup" / "finetune"
    for victim, epochs in ((1, 1), (0, 3)):  # a worker, then the chief
        run, logs = both(tmp_path, f"killed{victim}_")
        deadline = time.time() + processes.LIMIT
        while time.time() < deadline:
            if any(int(path.name[6:11]) >= epochs for path in backup.glob("epoch-*.h5")):
                break
            assert run[0].is_alive(), logs[0].read_text()[-3000:]
            time.sleep(0.02)
        run[victim].kill()
        run[victim].join()
        # The other one notices by itself, and says what to do.
        assert processes.ended(run[1 - victim]) != 0
        assert "Another worker has died. Start all workers again" in logs[1 - victim].read_text()

    run, logs = both(tmp_path, "again")
    for worker, log in zip(run, logs, strict=True):
        assert processes.ended(worker) == 0, log.read_text()[-3000:]
    assert "Resuming after epoch" in logs[0].read_text()
    assert "Written to" in logs[0].read_text() and "Written to" not in logs[1].read_text()
    record = json.loads((tmp_path / "run" / "stages" / "finetune.json").read_text())
    assert len(record["figures"]["history"]["loss"]) == 5
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["tflite_accuracy"] > 0.8 and results["exact"] == 1.0
    with pytest.raises(ValueError, match="needs the environment variable TF_CONFIG"):
        team.strategy("multi_worker")
