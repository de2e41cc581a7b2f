"""Each operator on each runtime, beside its simulation. Prints the table of docs/parity.md.

LiteRT on this machine, on its reference kernels and on an emulated Arm processor (`tools/arm64`),
and TFLite Micro, each by the probes of `kerasq.check_kernels`.

Example: python -m tools.parity
"""

import collections
import pathlib
import re
import subprocess
import tempfile

from absl import app

from kerasq import targets
from kerasq.litert.micro import MicroInterpreter
from kerasq.litert.runtimes import RUNTIMES
from kerasq.probes import standalone
from kerasq.probes.make import make
from kerasq.probes.standalone import Found
from kerasq.support import tables

_ROOT = pathlib.Path(__file__).resolve().parents[1]
# What became of a probe, by operator and type.
Verdicts = dict[tuple[str, str], str]


def _here(probes: list, load: standalone.Loader) -> Verdicts:
    return _verdicts([standalone.check(probe, load).row() for probe in probes])


def _verdicts(rows: list) -> Verdicts:
    return {(operator, kind): verdict for operator, kind, _, verdict in rows}


def _on_arm(probes: list) -> Verdicts:
    """What the probes give on the emulated processor, read off the table that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "probes.pyz"
        path.write_bytes(standalone.dump(probes))
        done = subprocess.run(
            ["bash", _ROOT / "tools/arm64", path], capture_output=True, text=True, timeout=1800
        )
    rows = [re.split(r"\s{2,}", line) for line in done.stdout.splitlines()]
    found = _verdicts([row for row in rows if len(row) == len(Found("", "").row())][2:])
    if len(found) != len(probes):
        raise RuntimeError(f"The probes did not run on Arm. Received: {done.stderr[-2000:]}")
    return found


def table(columns: dict[str, Verdicts]) -> list[list[str]]:
    """A row for all operators of a type that are alike on every runtime; "-" for none."""
    keys = dict.fromkeys(key for verdicts in columns.values() for key in verdicts)
    alike: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    for operator, kind in keys:
        cells = (verdicts.get((operator, kind), "-") for verdicts in columns.values())
        alike[kind, *cells].append(operator)
    head = ["on", *columns, "operators"]
    return [head, *([*row, ", ".join(sorted(names))] for row, names in sorted(alike.items()))]


def main(argv: list[str]) -> None:
    """Makes the probes, runs them everywhere and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"Takes no arguments. Received: {argv[1:]}.")
    own, micro = make(targets.LITERT), make(targets.TFLM)
    (here, optimized), (_, reference) = (standalone.litert(x) for x in ("optimized", "reference"))
    columns = {
        here.rpartition(" ")[2]: _here(own, optimized),
        "arm64": _on_arm(own),
        "reference kernels": _here(own, reference),
        RUNTIMES["tflm"].title: _here(micro, MicroInterpreter),
    }
    print(f"{RUNTIMES['litert']}, {RUNTIMES['tflm']}\n")
    print(tables.markdown(table(columns), left=2 + len(columns)))


if __name__ == "__main__":
    app.run(main)
