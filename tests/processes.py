"""Processes that tests start: where, in which environment, and for how long."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
ENV = os.environ | {
    "CUDA_VISIBLE_DEVICES": "-1",
    "PYTHONPATH": str(ROOT),
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# Seconds. A machine with other work to do is slow; what hangs is found all the same.
LIMIT = 600


def python(*arguments: object) -> subprocess.CompletedProcess:
    """Runs Python with these arguments in the root of the repository, and waits for it."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
