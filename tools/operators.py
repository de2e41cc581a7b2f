"""Where the time of an int8 inference goes: networks of keras.applications, by kinds of operators.

    python -m tools.operators --folder=zoo96 --into=docs/performance.md

Each network of the zoo, with random weights (`tools.zoo.prepared`), becomes a file at w8a8 in the
folder, where it is not there yet: that takes minutes. Then each operator is timed alone
(`kerasq.operator_latency`), and the table of the slowest networks is printed as Markdown.
"""

import contextlib
import gc
import io
import pathlib
import statistics
import sys

import keras
from absl import app, flags

import kerasq
from kerasq.analysis.operator_latency import OperatorLatency
from kerasq.support import tables
from kerasq.support.files import make_folder, write_whole
from tools import zoo
from tools.benchmarks.networks import APPLICATIONS

_FOLDER = flags.DEFINE_string("folder", None, "Where files are kept.", required=True)
_NETWORKS = flags.DEFINE_list("networks", [*APPLICATIONS], "Names of keras.applications.")
_SIZE = flags.DEFINE_integer("size", 96, "Of the images, in pixels.", 32)
_RUNS = flags.DEFINE_integer("runs", 5, "How often each is measured, in turns.", 1)
_THREADS = flags.DEFINE_integer("num_threads", 1, "Threads.", 1)
_SLOWEST = flags.DEFINE_integer("slowest", 6, "How many networks are in the table.", 1)
_INTO = flags.DEFINE_string("into", None, "The Markdown page whose table of these is replaced.")

# Samples that ranges are calibrated on.
_SAMPLES = 8
# Kinds of operators that take less of a network are not in its row.
_LEAST = 0.02
HEADER = ["network", "kinds of operators", "alone, ms", "whole file, ms"]


def _file(name: str, folder: pathlib.Path) -> pathlib.Path:
    """The file of a network, exported where it is not there."""
    path = folder / f"{name}_{_SIZE.value}.tflite"
    if path.exists():
        return path
    model, x = zoo.prepared(zoo.Row(make=zoo.application(name, _SIZE.value)), _SAMPLES)
    with contextlib.redirect_stdout(io.StringIO()):
        q = kerasq.quantize_model(model)
        kerasq.calibrate(q, x[0], method="minmax")
        kerasq.export_tflite(q, path)
    # Layers and tensors refer to each other: only the collector frees a network.
    keras.backend.clear_session()
    gc.collect()
    return path


def row(name: str, runs: list[OperatorLatency]) -> list[str]:
    """A network in the table: medians of all runs."""
    whole, alone = (
        statistics.median(getattr(run, x) for run in runs) for x in ("whole_ms", "sum_ms")
    )
    shares: dict[str, list[float]] = {}
    for run in runs:
        for kind in run.kinds:
            outside = "" if kind.runs_on == "XNNPACK" else f" on {kind.runs_on}"
            text = f"{kind.op}{outside} (x{kind.operators})"
            shares.setdefault(text, []).append(run.share(kind.ms))
    medians = {kind: statistics.median(found) for kind, found in shares.items()}
    most = sorted(medians.items(), key=lambda x: -x[1])
    listed = [f"{kind} {100 * share:.0f} %" for kind, share in most if share >= _LEAST]
    return [name, ", ".join(listed), f"{alone:.2f}", f"{whole:.2f}"]


def main(argv: list[str]) -> None:
    """Exports networks, times their operators and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"There are no arguments but flags. Received: {argv[1:]}.")
    folder = make_folder(_FOLDER.value)
    files = {name: kerasq.TFLiteModel(_file(name, folder)) for name in _NETWORKS.value}
    found: dict[str, list[OperatorLatency]] = {name: [] for name in files}
    for _ in range(_RUNS.value):
        for name, lite in files.items():
            with contextlib.redirect_stdout(io.StringIO()):
                found[name].append(kerasq.operator_latency(lite, num_threads=_THREADS.value))
    for name, runs in found.items():
        print(f"{name}\n\n{runs[-1].by_kind()}\n", file=sys.stderr)
    rows = [row(name, runs) for name, runs in found.items()]
    rows.sort(key=lambda cells: -float(cells[-1]))
    table = tables.markdown([HEADER, *rows[: _SLOWEST.value]], left=2)
    print(table)
    if _INTO.value:
        path = pathlib.Path(_INTO.value)
        write_whole(path, zoo.replace_table(path.read_text(), table, HEADER[:2]).encode())


if __name__ == "__main__":
    app.run(main)
