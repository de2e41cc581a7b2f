"""Random small models down the whole road, and damaged files: what must not happen is counted.

    python -m tools.fuzz --examples=10000 --seed=0 --log=runs/fuzz.jsonl

A random model is quantized, calibrated or trained a step, exported, and its file compared with its
simulation. Damaged files of each format are given to what reads them. The smallest example of each
failure is printed; of models, as Python. Examples run in processes of their own, which may crash.
Each adds a line to the log: a run that was stopped goes on from there when it is started again.
"""

import collections
import dataclasses
import gc
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app, flags

from kerasq.support import progress, tables
from kerasq.support.files import write_whole
from tools.fuzzing import checks, files, graphs

_EXAMPLES = flags.DEFINE_integer("examples", 1000, "Random models.", lower_bound=0)
_MUTATIONS = flags.DEFINE_integer("mutations", 1000, "Damaged files a format.", lower_bound=0)
_PARTS = ("graphs", *files.FORMATS)
_PART = flags.DEFINE_multi_enum("part", None, _PARTS, "These only, a flag each.")
_SEED = flags.DEFINE_integer("seed", 0, "Of all that is random.", lower_bound=0)
_LOG = flags.DEFINE_string("log", "runs/fuzz.jsonl", "A line a process; where to go on.")
_ONE = flags.DEFINE_string("one", None, "What a process runs: '<part>;<first>;<count>'.")
# Examples a process, which grows with each model, to 850 MB after 120.
SIZES = {"graphs": 120} | dict.fromkeys(files.FORMATS, 250)
# Bytes of addresses that a process may have, of which TensorFlow alone takes a third.
MEMORY = 2**34
# Seconds that one example may take.
LIMIT = 300


def one(part: str, first: int, count: int) -> None:
    """Examples from a number on."""
    tally = checks.Tally()
    # Each `clear_session` collects garbage: not among the million objects of TensorFlow's modules.
    gc.freeze()
    # What a damaged file asks for must not take the memory of the machine.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))

    def before(example: str) -> None:
        tally.running = example
        write_whole(_running(), json.dumps(dataclasses.asdict(tally)).encode())

    known = {name for line in _lines() for name in line["failures"]}
    if part == "graphs":
        graphs.run(count, _SEED.value * 10**7 + first, known, tally, before)
    else:
        with tempfile.TemporaryDirectory() as folder:
            reader = files.Reader(part, pathlib.Path(folder))
            for number in range(first, first + count):
                before(str(number))
                verdict = reader.read(_SEED.value, number)
                tally.count(verdict)
                if verdict.kind in checks.FAILURES:
                    tally.fail(str(number), verdict)
    before("")


def _log() -> pathlib.Path:
    path = pathlib.Path(_LOG.value)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _running() -> pathlib.Path:
    """Where a process writes what it has found, and what runs, before each example."""
    return _log().with_suffix(".running")


def _lines() -> list[dict[str, Any]]:
    """What the log has of this seed."""
    lines = _log().read_text().splitlines() if _log().exists() else []
    return [x for x in map(json.loads, lines) if x["seed"] == _SEED.value]


def _done(part: str) -> int:
    return sum(sum(x["counts"].values()) for x in _lines() if x["part"] == part)


def _run(part: str, first: int, count: int) -> None:
    """Examples in a process of their own, and a line of the log for it."""
    _running().unlink(missing_ok=True)
    command = [sys.executable, "-m", "tools.fuzz", *sys.argv[1:], f"--one={part};{first};{count}"]
    with _log().with_suffix(".output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            is_hung = _wait(process)
        finally:
            process.kill()
            process.wait()
    if not _running().exists():
        sys.exit(f"Failed: {' '.join(command)}\nSee {_log().with_suffix('.output')}.")
    tally = checks.Tally(**json.loads(_running().read_text()))
    if is_hung or process.returncode:
        kind = "hang" if is_hung else "crash"
        end = checks.Verdict(kind, f"in {part}: ended with {process.returncode}")
        tally.count(end)
        tally.fail(tally.running, end)
    line = {"part": part, "seed": _SEED.value, "first": first, **dataclasses.asdict(tally)}
    with _log().open("a") as log:
        log.write(json.dumps(line) + "\n")
    for name, (example, detail) in tally.failures.items():
        print(f"\n{part}: {name}\n{detail}\n{example}\n", flush=True)


def _wait(process: subprocess.Popen) -> bool:
    """Waits for a process; True where one example takes too long."""
    while process.poll() is None:
        time.sleep(0.2)
        # Until it is there, the process imports, which takes as long as the machine is busy.
        if _running().exists() and time.time() - _running().stat().st_mtime > LIMIT:
            return True
    return False


def table() -> list[list[str]]:
    """How many examples of each part ended in what."""
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for line in _lines():
        counts[line["part"]].update(line["counts"])
    kinds = ["exported", "accepted", "refused", "none", *checks.FAILURES]
    rows = [["", "examples", *kinds]]
    for part, found in counts.items():
        rows.append([part, str(found.total()), *(str(found[kind]) for kind in kinds)])
    return rows


def main(argv: list[str]) -> None:
    """Runs what is missing and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"Takes flags only. Received: {argv[1:]}.")
    if _ONE.value:
        part, first, count = _ONE.value.split(";")
        one(part, int(first), int(count))
        return
    for part in _PART.value or _PARTS:
        total = _EXAMPLES.value if part == "graphs" else _MUTATIONS.value
        starts = range(_done(part), total, SIZES[part])
        for start in progress.track(starts, len(starts), part):
            while (first := _done(part)) < min(start + SIZES[part], total):
                _run(part, first, min(start + SIZES[part], total) - first)
    print(tables.markdown(table(), left=1))


if __name__ == "__main__":
    # XNNPACK and TensorFlow tell what they do on the standard error, once a model.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    app.run(main)
