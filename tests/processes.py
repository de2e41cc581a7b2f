"""Processes that tests start: where, in which environment, and for how long."""

import multiprocessing
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile

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
_FORKS.set_forkserver_preload(["tensorflow", "keras", "kerasq", "recipes.finetune"])


def script(path: str, *arguments: object) -> subprocess.CompletedProcess:
    """As `python`, of a script below the root, where TensorFlow has been imported already."""
    argv = [path, *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        logs = [pathlib.Path(folder, name) for name in ("out", "err")]
        process = _FORKS.Process(target=_run, args=(argv, *logs))
        process.start()
        process.join(LIMIT)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(argv, LIMIT)
        return subprocess.CompletedProcess(argv, process.exitcode, *(x.read_text() for x in logs))


def _run(argv: list[str], out: pathlib.Path, err: pathlib.Path) -> None:
    """Runs a script in this process, which is for it alone."""
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), stream)
    os.chdir(ROOT)
    os.environ.update(ENV)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
