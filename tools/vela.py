"""What of a .tflite file Arm's Ethos-U runs, and how fast, by its compiler, Vela.

    python -m tools.vela model.tflite converted.tflite
    python -m tools.vela --zoo=ds_cnn --zoo=mobilenetv2

Prints a row for each file and processor: operators on the NPU and beside it, on the CPU, cycles and
memory as Vela estimates them. With `--zoo`, networks of tools/zoo.py with random weights, exported
for target "ethos-u", beside TFLiteConverter's post-training quantization. Needs `pip install
'kerasq[vela]'`.
"""

import csv
import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import keras
import numpy as np
from absl import app, flags

import kerasq
from kerasq.support import tables
from tools import calibration, zoo

PROCESSORS = ("ethos-u55-128", "ethos-u65-256", "ethos-u85-256")
_PROCESSOR = flags.DEFINE_multi_string("processor", list(PROCESSORS), "As Vela calls it.")
_ZOO = flags.DEFINE_multi_string("zoo", [], "A network of the zoo; 'all' for each CNN.")
_OTHER = ("on_chip_flash", "off_chip_flash", "dram")
# Seconds that compiling a file may take.
_LIMIT = 3600


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """What Vela makes of a file.

    Attributes:
        npu: how many operators run on the NPU, by Vela's count, which splits some.
        cpu: the outputs of those that do not.
        cycles: of the NPU, one inference.
        sram: KiB of activations.
        other: KiB of flash and DRAM: weights, as they are encoded, above all.
        commands: the commands that Vela programs, as text.
        content: the file that it writes.
    """

    npu: int
    cpu: list[str]
    cycles: int
    sram: float
    other: float
    commands: str
    content: bytes


def compiled(path: pathlib.Path, processor: str) -> Placement:
    """Compiles a file.

    Raises:
        RuntimeError: where Vela does not; in its words.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = _vela(path, processor, folder, "--show-cpu-operations")
        if done.returncode:  # Of some files that it compiles, it ends while it lists those.
            done = _vela(path, processor, folder)
        if done.returncode:
            raise RuntimeError(f"Vela does not compile {path.name}: {done.stderr[-500:]}")
        (summary,) = pathlib.Path(folder).glob("*_summary_*.csv")
        with summary.open() as file:
            (row,) = csv.DictReader(file)
        content = (pathlib.Path(folder) / f"{path.stem}_vela.tflite").read_bytes()
    return Placement(
        npu=int(re.findall(r"NPU operators = (\d+)", done.stdout)[0]),
        cpu=_beside(done.stdout),
        cycles=int(row["cycles_npu"]),
        sram=float(row["sram_memory_used"]),
        other=sum(float(row[f"{kind}_memory_used"]) for kind in _OTHER),
        commands=done.stdout,
        content=content,
    )


def _vela(
    path: pathlib.Path, processor: str, folder: str, *options: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            pathlib.Path(sys.executable).with_name("vela"),
            path,
            f"--accelerator-config={processor}",
            f"--output-dir={folder}",
            "--verbose-register-command-stream",
            *options,
        ],
        capture_output=True,
        text=True,
        timeout=_LIMIT,
    )


def _beside(said: str) -> list[str]:
    """The outputs of operators on the CPU, "?" where Vela does not list them."""
    listed = re.findall(r"^ +CPU: .*? = (.*?) \(outputs", said, re.MULTILINE)
    (count,) = re.findall(r"CPU operators = (\d+)", said) or ["0"]
    return listed or ["?"] * int(count)


def rows(path: pathlib.Path, name: str) -> Iterator[list[str]]:
    """A row for each processor; what Vela says where it does not compile the file, beside them."""
    for processor in _PROCESSOR.value:
        try:
            found = compiled(path, processor)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            yield [name, processor, "not compiled", *["-"] * 4]
            continue
        cycles, memory = f"{found.cycles:,}", [f"{x:,.0f}" for x in (found.sram, found.other)]
        yield [name, processor, str(found.npu), str(len(found.cpu)), cycles, *memory]


def exports(name: str, folder: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """A network of the zoo for the NPU, and by the converter."""
    model, x = zoo.prepared(zoo.ROWS[name])
    q = kerasq.quantize_model(model, target="ethos-u")
    kerasq.calibrate(q, [keras.tree.pack_sequence_as(model.input, x)])
    own = folder / f"{name}.tflite"
    kerasq.export_tflite(q, own)
    yield name, own
    if len(x) == 1:  # What the converter is given for several inputs differs.
        images = np.asarray(x[0], "float32")
        other = folder / f"{name}_converter.tflite"
        calibration.converted(model, images, "int8", integer_ends=True).save(other)
        yield f"{name}, converter", other


def main(argv: list[str]) -> None:
    """Compiles files, or networks of the zoo, and prints the table."""
    wanted = [name for name, row in zoo.ROWS.items() if row.cnn] if "all" in _ZOO.value else None
    found = [
        [
            "file",
            "processor",
            "on the NPU",
            "on the CPU",
            "cycles",
            "SRAM KiB",
            "flash and DRAM KiB",
        ]
    ]
    for path in map(pathlib.Path, argv[1:]):
        found += rows(path, path.stem)
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted or _ZOO.value:
            for title, path in exports(name, pathlib.Path(folder)):
                found += rows(path, title)
    if len(found) == 1:
        raise app.UsageError("Takes .tflite files, or --zoo. Received: neither.")
    print(tables.markdown(found, left=2))


if __name__ == "__main__":
    app.run(main)
