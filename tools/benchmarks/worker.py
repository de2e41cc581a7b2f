"""One contestant in a process of its own, and the handle that the benchmark holds on it.

Arguments of the process: the name of a function of `contestants` and its arguments as JSON. It
answers "ready", then each number of repetitions with a JSON list of their figures.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping

import numpy as np

# Seconds that a contestant may take for one answer.
PATIENCE = 900.0


class Failed(Exception):
    """A contestant that cannot take part, and why."""


class Worker:
    """A running contestant.

    Args:
        name: a function of `contestants`.
        arguments: its arguments.
        environment: of the process, added to this one's.

    Raises:
        Failed: with the last line of the error, where the contestant cannot be prepared.
    """

    def __init__(self, name: str, arguments: dict, environment: Mapping[str, str]) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools.benchmarks.worker", name, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **environment},
            cwd=pathlib.Path(__file__).parents[2],
        )
        self._answer()

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
        self._errors.close()

    def measure(self, repetitions: int) -> float:
        """The median figure of some repetitions in a row."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # No answer then says why.
            self._process.stdin.write(f"{repetitions}\n")
            self._process.stdin.flush()
        return float(np.median(json.loads(self._answer())))

    def _answer(self) -> str:
        assert self._process.stdout is not None
        timer = threading.Timer(PATIENCE, self._process.kill)
        timer.start()
        answer = self._process.stdout.readline()
        timer.cancel()
        if not answer:
            if self._process.wait() < 0:
                raise Failed(f"ended by signal {-self._process.returncode}")
            self._errors.seek(0)
            lines = self._errors.read().strip().splitlines()
            raise Failed(lines[-1] if lines else f"exit {self._process.returncode}")
        return answer


def main() -> None:
    """Prepares the contestant and serves repetitions until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print goes to stderr.
    from tools.benchmarks import contestants

    call = getattr(contestants, sys.argv[1])(**json.loads(sys.argv[2]))
    call()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps([call() for _ in range(int(line))]), file=answers, flush=True)


if __name__ == "__main__":
    main()
