"""A recipe in two processes, one of which dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.team import Team

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
FLAGS = ("--float_epochs=3", "--epochs=6")


def started(out, log, strategy, *flags, index=0, ports=()):
    env = dict(ENV)
    if ports:
        cluster = {"worker": [f"localhost:{port}" for port in ports]}
        task = {"type": "worker", "index": index}
        env["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    command = [sys.executable, "recipes/qat.py", f"--out={out}", f"--strategy={strategy}", *flags]
    with open(log, "w") as file:
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=file, stderr=file)


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for found in sockets:
        found.bind(("localhost", 0))
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def test_a_worker_dies_and_all_start_again(tmp_path):
    backup = tmp_path / "run" / "backup" / "finetune"
    logs = [tmp_path / f"log{i}" for i in range(4)]
    ports = free_ports(2)
    chief, other = (
        started(tmp_path / "run", logs[i], "multi_worker", *FLAGS, index=i, ports=ports)
        for i in (0, 1)
    )
    deadline = time.time() + 180
    while time.time() < deadline and not list(backup.glob("epoch-0000[2-9]*")):
        assert chief.poll() is None, logs[0].read_text()[-3000:]
        time.sleep(0.02)
    other.send_signal(signal.SIGKILL)
    other.wait()
    # The chief notices by itself, and says what to do.
    assert chief.wait(timeout=120) != 0
    assert "Another worker has died. Start all workers again" in logs[0].read_text()

    ports = free_ports(2)
    workers = [
        started(tmp_path / "run", logs[2 + i], "multi_worker", *FLAGS, index=i, ports=ports)
        for i in (0, 1)
    ]
    for worker, log in zip(workers, logs[2:], strict=True):
        assert worker.wait(timeout=240) == 0, log.read_text()[-3000:]
    assert "Resuming after epoch" in logs[2].read_text()
    assert "Written to" in logs[2].read_text() and "Written to" not in logs[3].read_text()
    record = json.loads((tmp_path / "run" / "stages" / "finetune.json").read_text())
    assert len(record["figures"]["history"]["loss"]) == 6
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["tflite_accuracy"] > 0.8 and results["exact"] == 1.0
    with pytest.raises(ValueError, match="needs the environment variable TF_CONFIG"):
        Team("multi_worker")
