"""Runs probes. It also goes into a file for other machines, so it imports nothing of kerasq.

Such a file, `python probes.pyz`, needs Python 3.10 or newer, NumPy, and LiteRT (ai-edge-litert, or
tflite-runtime).
"""

import dataclasses
import io
import platform
import sys
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

ARCHIVE = "probes.npz"
KERNELS = ("optimized", "reference")
# Makes an interpreter, as LiteRT's is, of a file.
Loader = Callable[[bytes], Any]


@dataclasses.dataclass(frozen=True)
class Probe:
    """A file of one operator, what it is fed, and the codes that it must give.

    Attributes:
        operator: its name, such as "CONV_2D".
        type: what it computes on, such as "int8" or "int4 on int8".
        content: the .tflite file.
        inputs, outputs: arrays, in the file's order.
    """

    operator: str
    type: str
    content: bytes
    inputs: Sequence[np.ndarray]
    outputs: Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Found:
    """What an interpreter made of a probe.

    Attributes:
        operator, type: those of the probe.
        values: how many values it gave.
        off: how many of them are others than the simulation's.
        most: by how many steps at most; of floats, which have none, 1.
        refused: why it does not run the file; "" where it does.
    """

    operator: str
    type: str
    values: int = 0
    off: int = 0
    most: int = 0
    refused: str = ""

    @property
    def holds(self) -> bool:
        """Whether all values are equal."""
        return not self.refused and not self.off

    def row(self) -> tuple[str, ...]:
        """A row of the table."""
        share = f"{100 * self.off / self.values:.3g} %" if self.off else "0"
        verdict = "refused" if self.refused else "exact" if self.holds else f"{share}, {self.most}"
        return self.operator, self.type, f"{self.values:,}", verdict


def check(probe: Probe, load: Loader) -> Found:
    """Runs a probe in the interpreter that `load` makes of a file."""
    try:
        interpreter = load(probe.content)
        interpreter.allocate_tensors()
        for details, values in zip(interpreter.get_input_details(), probe.inputs, strict=True):
            interpreter.set_tensor(details["index"], values)
        interpreter.invoke()
        ends = [details["index"] for details in interpreter.get_output_details()]
        found = [np.array(interpreter.get_tensor(index)) for index in ends]
        apart = [_steps(x, y) for x, y in zip(probe.outputs, found, strict=True)]
    except (RuntimeError, ValueError) as error:
        return Found(probe.operator, probe.type, refused=str(error) or type(error).__name__)
    return Found(
        probe.operator,
        probe.type,
        values=sum(x.size for x in apart),
        off=sum(int(np.count_nonzero(x)) for x in apart),
        most=max(int(x.max()) for x in apart),
    )


def _steps(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """How far apart codes are; of floats whether they are."""
    if (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
        raise ValueError(
            f"an output of {found.dtype} {found.shape} where the file has {wanted.dtype} "
            f"{wanted.shape}"
        )
    if wanted.dtype.kind == "f":
        return (found != wanted).astype(np.int64)
    return np.abs(found.astype(np.int64) - wanted.astype(np.int64))


def table(found: Sequence[Found]) -> str:
    """Lines that line up: operator, type, values, and the share that differs."""
    head = ("operator", "type", "values", "differ, by at most (steps)")
    rows = [head, *(each.row() for each in found)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    rows.insert(1, tuple("-" * width for width in widths))
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    holds = sum(each.holds for each in found)
    return "\n".join([*lines, "", f"{holds} of {len(found)} probes are exact."])


def dump(probes: Sequence[Probe]) -> bytes:
    """The content of a file that other machines run: this module, and the probes."""
    arrays: dict[str, np.ndarray] = {}
    for i, probe in enumerate(probes):
        arrays[f"{i}/name"] = np.array([probe.operator, probe.type])
        arrays[f"{i}/content"] = np.frombuffer(probe.content, np.uint8)
        for kind, values in (("inputs", probe.inputs), ("outputs", probe.outputs)):
            arrays.update({f"{i}/{kind}/{k}": x for k, x in enumerate(values)})
    inner, outer = io.BytesIO(), io.BytesIO()
    np.savez_compressed(inner, **arrays)  # type: ignore[arg-type]
    with zipfile.ZipFile(outer, "w") as archive:
        archive.write(__file__, "__main__.py")
        archive.writestr(ARCHIVE, inner.getvalue())
    return outer.getvalue()


def load(path: str) -> list[Probe]:
    """What `dump` wrote."""
    with zipfile.ZipFile(path) as archive:
        arrays = np.load(io.BytesIO(archive.read(ARCHIVE)))
    probes: list[Probe] = []
    while f"{len(probes)}/name" in arrays:
        i = len(probes)
        operator, kind = arrays[f"{i}/name"]
        ends = {
            end: [arrays[key] for key in arrays.files if key.startswith(f"{i}/{end}/")]
            for end in ("inputs", "outputs")
        }
        content = arrays[f"{i}/content"].tobytes()
        probes.append(Probe(str(operator), str(kind), content, **ends))
    return probes


def litert(kernels: str = "optimized") -> tuple[str, Loader]:
    """LiteRT, in words, and what makes an interpreter of a file."""
    try:
        from ai_edge_litert import interpreter as module
    except ImportError:
        from tflite_runtime import interpreter as module  # type: ignore[import-not-found]
    package = sys.modules[module.__name__.partition(".")[0]]
    resolver = module.OpResolverType
    chosen = resolver.AUTO if kernels == "optimized" else resolver.BUILTIN_REF

    def make(content: bytes) -> Any:
        return module.Interpreter(model_content=content, experimental_op_resolver_type=chosen)

    version = getattr(package, "__version__", "")
    name = f"LiteRT {version}".strip()
    return f"{name}, {kernels} kernels, on {platform.machine()}", make


def main() -> None:
    """Runs the probes of this file; the argument is "reference" for those kernels of LiteRT."""
    kernels = sys.argv[1] if len(sys.argv) > 1 else "optimized"
    if kernels not in KERNELS:
        sys.exit(f"The kernels must be {' or '.join(KERNELS)}. Received: {kernels}.")
    title, make = litert(kernels)
    found = [check(probe, make) for probe in load(sys.argv[0])]
    print(f"{title}\n\n{table(found)}")
    sys.exit(0 if all(each.holds for each in found) else 1)


if __name__ == "__main__":
    main()
