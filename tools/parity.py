"""Operators and networks on each runtime, beside their simulation. Prints docs/parity.md's tables.

LiteRT on this machine, on its reference kernels and on an emulated Arm processor (`tools/arm64`),
and TFLite Micro: the probes of `kerasq.check_kernels`, and networks of tools/zoo.py. Probes of
target "ethos-u" run on the TOSA reference model, and Vela says where each operator would.

Example: python -m tools.parity
"""

import collections
import itertools
import pathlib
import re
import subprocess
import tempfile

from absl import app

from kerasq import targets
from kerasq.litert.micro import MicroInterpreter
from kerasq.litert.runtimes import RUNTIMES
from kerasq.probes import standalone
from kerasq.probes.make import make, of_network
from kerasq.probes.standalone import Found, Probe
from kerasq.support import tables
from tools import tosa, vela, zoo

NETWORKS = ("ds_cnn", "autoencoder", "unet", "tcn", "squeeze_excite", "two_by_two")
SCHEMES = ("w8a8", "w8a16", "w4a8", "w4a16", "w2a2")
# Samples of a network.
COUNT = 32
_ROOT = pathlib.Path(__file__).resolve().parents[1]
# What became of a probe, by operator and type.
Verdicts = dict[tuple[str, str], str]


def _here(probes: list[Probe], load: standalone.Loader) -> Verdicts:
    return _verdicts([standalone.check(probe, load).row() for probe in probes])


def _verdicts(rows: list) -> Verdicts:
    return {(operator, kind): verdict for operator, kind, _, verdict in rows}


def _on_arm(probes: list[Probe]) -> Verdicts:
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


def _placed(probes: list[Probe], processor: str) -> Verdicts:
    """Where Vela puts the operators of each probe."""
    found: Verdicts = {}
    with tempfile.TemporaryDirectory() as folder:
        for probe in probes:
            path = pathlib.Path(folder) / "probe.tflite"
            path.write_bytes(probe.content)
            try:
                made = vela.compiled(path, processor)
            except RuntimeError:
                found[probe.operator, probe.type] = "not compiled"
                continue
            place = "both" if made.npu and made.cpu else "NPU" if made.npu else "CPU"
            found[probe.operator, probe.type] = place
    return found


def networks(target: targets.Target) -> list[Probe]:
    """Networks of the zoo with random weights, each at several schemes."""
    found = []
    for name, scheme in itertools.product(NETWORKS, SCHEMES):
        model, samples = zoo.prepared(zoo.ROWS[name], COUNT)
        found.append(of_network(model, name, scheme, target, samples))
    return found


def table(columns: dict[str, Verdicts]) -> list[list[str]]:
    """A row for all operators of a type that are alike on every runtime; "-" for none."""
    keys = dict.fromkeys(key for verdicts in columns.values() for key in verdicts)
    alike: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
    for operator, kind in keys:
        cells = (verdicts.get((operator, kind), "-") for verdicts in columns.values())
        alike[kind, *cells].append(operator)
    head = ["on", *columns, "which"]
    return [head, *([*row, ", ".join(sorted(names))] for row, names in sorted(alike.items()))]


def main(argv: list[str]) -> None:
    """Makes the probes, runs them everywhere and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"Takes no arguments. Received: {argv[1:]}.")
    print(f"{RUNTIMES['litert']}, {RUNTIMES['tflm']}")
    for probes in (make, networks):
        columns = _columns(probes(targets.LITERT), probes(targets.TFLM))
        print(f"\n{tables.markdown(table(columns), left=2 + len(columns))}")
    npu = {tosa.TITLE: _here(make(targets.ETHOS_U), tosa.TosaInterpreter)}
    # A device takes one sample at a time, and some operators leave the NPU for several.
    single = make(targets.ETHOS_U, 1)
    npu |= {name: _placed(single, name) for name in vela.PROCESSORS}
    print(f"\n{tables.markdown(table(npu), left=2 + len(npu))}")


def _columns(own: list[Probe], micro: list[Probe]) -> dict[str, Verdicts]:
    """What each runtime makes of the probes of its target."""
    (here, optimized), (_, reference) = (standalone.litert(x) for x in ("optimized", "reference"))
    return {
        here.rpartition(" ")[2]: _here(own, optimized),
        "arm64": _on_arm(own),
        "reference kernels": _here(own, reference),
        RUNTIMES["tflm"].title: _here(micro, MicroInterpreter),
    }


if __name__ == "__main__":
    app.run(main)
