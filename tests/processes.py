"""Processes that tests start: where, in which environment, and for how long."""

import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
from typing import Any

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


# Forks of a process that has imported what takes longest, which is most of a short run.
_FORKS = multiprocessing.get_context("forkserver")
# No recipe: it would define the flags that tools define.
_FORKS.set_forkserver_preload(["tensorflow", "keras", "kerasq"])


def script(*arguments: object) -> subprocess.CompletedProcess:
    """As `python`, of a script, where TensorFlow has been imported already."""
    argv = [*map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        out, err = (pathlib.Path(folder, name) for name in ("out", "err"))
        code = ended(started(argv, out, err))
        return subprocess.CompletedProcess(argv, code, out.read_text(), err.read_text())


def started(
    argv: list[str], out: pathlib.Path, err: pathlib.Path, env: dict[str, str] | None = None
) -> Any:
    """The process of a script that has been started, its output in files."""
    process = _FORKS.Process(target=_run, args=(argv, out, err, env or {}))
    process.start()
    return process


def ended(process: Any) -> int:
    """The exit code of a process, once it has ended by itself."""
    process.join(LIMIT)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(str(process), LIMIT)
    return process.exitcode


def _run(argv: list[str], out: pathlib.Path, err: pathlib.Path, env: dict[str, str]) -> None:
    """Runs a script in this process, which is for it alone."""
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    os.chdir(ROOT)
    os.environ.update(ENV | env)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
