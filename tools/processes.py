"""Runs of other scripts, in processes of their own."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence


def run(arguments: Sequence[str], log: pathlib.Path, threads: int) -> None:
    """Runs Python with these arguments; its output goes behind what is in `log`.

    Args:
        arguments: of the interpreter.
        log: a text file in a folder that exists.
        threads: for TensorFlow.

    Raises:
        SystemExit: where the process fails; the message names the log.
    """
    command = [sys.executable, *arguments]
    limits = {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": str(threads)}
    with log.open("a") as output:
        done = subprocess.run(command, stdout=output, stderr=output, env=os.environ | limits)
    if done.returncode:
        sys.exit(f"Failed: {' '.join(command)}\nSee {log}.")
