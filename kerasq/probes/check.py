"""`check_kernels`: whether the kernels of this machine are those that the simulation follows."""

import dataclasses
import os

from kerasq import targets
from kerasq.litert.micro import MicroInterpreter
from kerasq.litert.runtimes import RUNTIMES
from kerasq.probes import standalone
from kerasq.probes.make import make
from kerasq.probes.standalone import Found
from kerasq.support.files import check_writable, write_whole
from kerasq.targets import Target


@dataclasses.dataclass(frozen=True)
class KernelReport:
    """What `check_kernels` returns; printed, it is a table.

    Attributes:
        runtime: the interpreter, its kernels and the processor, in words.
        rows: what was found for each operator and type.
    """

    runtime: str
    rows: list[Found]

    @property
    def exact(self) -> bool:
        """Whether every value of every operator is that of the simulation."""
        return bool(self.rows) and all(row.holds for row in self.rows)

    def __str__(self) -> str:
        return f"{self.runtime}\n\n{standalone.table(self.rows)}"


def check_kernels(
    target: str | Target = targets.DEFAULT,
    *,
    kernels: str = "optimized",
    path: str | os.PathLike | None = None,
) -> KernelReport:
    """Runs each operator, alone, on the interpreter of this machine, beside its simulation.

    An operator is an export of a small network of one to four inputs of different ranges,
    calibrated on random values; it counts as exact where all codes are equal. Where some are not,
    files predict something else on this machine than the model they were exported from: a LiteRT
    whose kernels have changed, or another processor.

    Args:
        target: whose rules are checked; "tflm" runs in TFLite Micro's interpreter.
        kernels: of LiteRT, "optimized" or "reference".
        path: where to write the probes too, as one file that runs where TensorFlow does not, such
            as on a phone: `python probes.pyz` needs only NumPy and LiteRT there, and prints the
            same table.

    Returns:
        What differs, by operator and type of codes.

    Raises:
        ValueError: for an unknown target, one without an interpreter, or unknown kernels; and for
            `kernels` or `path` with TFLite Micro.
        OSError: where `path` cannot be written.
    """
    found = targets.find(target)
    if found.runtime is None:
        raise ValueError(
            "A target must have an interpreter to be checked here. "
            f"Received: target {found.name!r}, which has none."
        )
    if kernels not in standalone.KERNELS:
        raise ValueError(
            f"`kernels` must be {' or '.join(map(repr, standalone.KERNELS))}. "
            f"Received: kernels={kernels!r}."
        )
    if found.runtime == "tflm" and (kernels != "optimized" or path is not None):
        raise ValueError(
            f"`kernels` and `path` are for LiteRT. Received: kernels={kernels!r}, path={path!r} "
            f"for target {found.name!r}. Leave them out."
        )
    if path is not None:
        check_writable(path)
    probes = make(found)
    if path is not None:
        write_whole(path, standalone.dump(probes))
    load: standalone.Loader = MicroInterpreter
    title = f"{RUNTIMES['tflm']}, portable kernels"
    if found.runtime != "tflm":
        title, load = standalone.litert(kernels)
    return KernelReport(title, [standalone.check(probe, load) for probe in probes])
