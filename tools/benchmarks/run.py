"""kerasq and its peers side by side: `tools/benchmark`. See docs/performance.md.

Every contestant runs in a process of its own; within a round they take turns, so that a noisy
machine hits all of them. A ratio is taken within a round; least, median and greatest ratio over
the rounds are printed, and the median is held against the target.
"""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from absl import app, flags

from kerasq.support import files, tables
from kerasq.support.progress import track
from tools.benchmarks.worker import Failed, Worker

_SECTIONS = ("steps", "memory", "calibration", "files", "import", "growth")
_KNOWN_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
_ONLY = flags.DEFINE_list(
    "only", None, f"Sections to run, of {', '.join(_SECTIONS)}; all if unset."
)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Rounds of each comparison.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "File for all figures and ratios.")
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Where models are trained.")
_POLICIES = flags.DEFINE_list(
    "policies", None, "Keras dtype policies of the steps; on a GPU also mixed_bfloat16."
)
_XLA = flags.DEFINE_multi_enum(
    "xla", None, ["false", "true"], "Whether steps are compiled; on a GPU by default both"
)
NETWORKS, BATCHES = ("resnet8", "mobilenet"), (32, 128)
_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), "Networks of the steps and their memory.")
_BATCHES = flags.DEFINE_list("batches", [str(n) for n in BATCHES], "Batch sizes of the steps.")
STEPS = {
    "kerasq": "kerasq_step",
    "kerasq, BatchNorm kept": "kerasq_keep_step",
    "Keras 3": "keras_step",
    "Keras 3, no BatchNorm": "plain_step",
    "tf_keras": "tf_keras_step",
    "tfmot": "tfmot_step",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """Ratios of one comparison, a round each, and what their median must be."""

    what: str
    case: str
    ratios: list[float]
    target: float | None = None
    at_least: bool = False

    @property
    def median(self) -> float:
        """The median ratio; NaN where a contestant could not take part."""
        return float(np.median(self.ratios)) if self.ratios else float("nan")

    @property
    def verdict(self) -> str:
        """Whether the target is "held" or "missed"; "not measured", or nothing without target."""
        if not self.ratios:
            return "not measured"
        if self.target is None:
            return ""
        held = self.median >= self.target if self.at_least else self.median <= self.target
        return "held" if held else "missed"

    def cells(self) -> list[str]:
        """The row of the table."""
        figures = [min(self.ratios), self.median, max(self.ratios)] if self.ratios else []
        shown = [f"{value:.2f}" for value in figures] or ["-"] * 3
        sign = ">=" if self.at_least else "<="
        target = "" if self.target is None else f"{sign} {self.target:.2f}"
        return [self.what, self.case, *shown, target, str(len(self.ratios)), self.verdict]


@dataclasses.dataclass(frozen=True)
class Figures:
    """What each contestant of a comparison took, a round each; empty where it failed."""

    case: str
    unit: str
    figures: dict[str, list[float]]
    failures: dict[str, str]

    def ratios(self, ours: str, theirs: str) -> list[float]:
        """Round by round."""
        pairs = zip(self.figures.get(ours, []), self.figures.get(theirs, []), strict=False)
        return [a / b for a, b in pairs]

    def rows(self) -> Iterator[list[str]]:
        """A row of the table for each contestant."""
        factor, unit = {"seconds": (1e3, "ms"), "bytes": (1e-6, "MB")}[self.unit]
        for name, values in self.figures.items():
            if values:
                ends = (min(values), float(np.median(values)), max(values))
                yield [self.case, name, *(f"{value * factor:.3f}" for value in ends), unit]
            else:
                yield [self.case, name, "-", "-", "-", self.failures[name][:80]]


class Benchmark:
    """Runs comparisons and collects their figures."""

    def __init__(self, rounds: int, environment: dict[str, str]) -> None:
        self.rounds = rounds
        self.environment = environment
        self.figures: list[Figures] = []
        self.rows: list[Row] = []

    def compare(
        self,
        case: str,
        contestants: dict[str, tuple[str, dict]],
        repetitions: int = 1,
        unit: str = "seconds",
        fresh: bool = False,
        rounds: int | None = None,
    ) -> Figures:
        """Measures contestants in turns.

        Args:
            case: name of the comparison.
            contestants: by name, a function of `contestants` and its arguments.
            repetitions: how often a contestant repeats its work in a turn.
            unit: of the figures.
            fresh: whether each turn has a process of its own.
            rounds: in place of the benchmark's.
        """
        found = Figures(case, unit, {name: [] for name in contestants}, {})
        workers: dict[str, Worker] = {}
        try:
            print(case, file=sys.stderr)
            count = rounds or self.rounds
            for _ in track(range(count), count, "round") if count > 1 else range(count):
                for name, (function, arguments) in contestants.items():
                    if name in found.failures:
                        continue
                    try:
                        if fresh or name not in workers:
                            workers[name] = Worker(function, arguments, self.environment)
                        found.figures[name].append(workers[name].measure(repetitions))
                        if fresh:
                            workers.pop(name).close()
                    except Failed as error:
                        found.failures[name] = str(error)
                        found.figures[name].clear()
        finally:
            for worker in workers.values():
                worker.close()
        self.figures.append(found)
        return found


def steps(bench: Benchmark) -> None:
    """Seconds of a fine-tuning step, at each policy, with and without XLA."""
    for policy, xla in _settings():
        _steps(bench, policy, xla)


def _steps(bench: Benchmark, policy: str, xla: bool) -> None:
    setting = ("" if policy == "float32" else f", {policy}") + (", XLA" if xla else "")
    over_tfmot = []
    for network in _NETWORKS.value:
        for batch in map(int, _BATCHES.value):
            case = f"{network}, batch {batch}{setting}"
            options = {"network": network, "batch": batch, "policy": policy, "xla": xla}
            contestants = {name: (function, options) for name, function in STEPS.items()}
            found = bench.compare(case, contestants, repetitions=8)
            targets = {
                "tfmot": 0.9,
                "Keras 3": 0.85,
                "Keras 3, no BatchNorm": 1.3,
                "tf_keras": None,
            }
            for peer, target in targets.items():
                ratios = found.ratios("kerasq", peer)
                bench.rows.append(Row(f"step over {peer}", case, ratios, target))
            for peer in ("Keras 3", "tfmot"):
                ratios = found.ratios("kerasq, BatchNorm kept", peer)
                bench.rows.append(Row(f"step, BatchNorm kept, over {peer}", case, ratios))
            over_tfmot.append(found.ratios("kerasq", "tfmot"))
    if len(over_tfmot) < len(NETWORKS) * len(BATCHES):
        return
    means = [float(np.exp(np.mean(np.log(r)))) for r in zip(*over_tfmot, strict=False)]
    bench.rows.append(Row("step over tfmot", f"geometric mean of the four{setting}", means, 0.7))


def memory(bench: Benchmark) -> None:
    """Peak memory of fine-tuning."""
    for whole in (False, True):
        what = "peak memory of " + ("the whole job" if whole else "steps")
        for network in _NETWORKS.value:
            for batch in map(int, _BATCHES.value):
                options = {"network": network, "batch": batch, "whole": whole}
                contestants = {
                    name: ("step_memory", {"contestant": STEPS[name], **options})
                    for name in ("kerasq", "Keras 3")
                }
                case = f"{network}, batch {batch}"
                found = bench.compare(
                    f"{case}, {what}",
                    contestants,
                    unit="bytes",
                    fresh=True,
                    rounds=min(bench.rounds, 2),
                )
                ratios = found.ratios("kerasq", "Keras 3")
                bench.rows.append(Row(f"{what} over Keras 3", case, ratios, None if whole else 1.3))


def calibration(bench: Benchmark) -> None:
    """Throughput of calibration."""
    for network in NETWORKS:
        options = {"network": network, "samples": 4096}
        case = f"{network}, {options['samples']} samples"
        contestants = {
            "kerasq.calibrate": ("calibration", options),
            "model.predict": ("prediction", options),
        }
        found = bench.compare(case, contestants)
        ratios = found.ratios("model.predict", "kerasq.calibrate")
        bench.rows.append(
            Row("calibration throughput over predict", case, ratios, 0.8, at_least=True)
        )


def deployment(bench: Benchmark) -> None:
    """Export, and what comes of it: size and latency."""
    exports = {
        "kerasq": "kerasq_export",
        "bare converter": "bare_converter",
        "converter, int8": "converter_int8",
        "ai-edge-quantizer, int8": "ai_edge_int8",
    }
    with tempfile.TemporaryDirectory() as folder:
        for network in ("mobilenet_v2", *NETWORKS):
            paths = {
                name: f"{folder}/{network}-{function}.tflite" for name, function in exports.items()
            }
            contestants = {
                name: (function, {"network": network, "path": paths[name]})
                for name, function in exports.items()
            }
            found = bench.compare(f"{network}, export", contestants, rounds=min(bench.rounds, 3))
            target = 1.25 if network == "mobilenet_v2" else None
            ratios = found.ratios("kerasq", "bare converter")
            bench.rows.append(Row("export over the bare converter", network, ratios, target))
            _files(bench, network, {n: p for n, p in paths.items() if os.path.exists(p)})


def _files(bench: Benchmark, network: str, paths: dict[str, str]) -> None:
    sizes = {name: [float(os.path.getsize(path))] for name, path in paths.items()}
    found = Figures(f"{network}, size", "bytes", sizes, {})
    bench.figures.append(found)
    peer = "converter, int8"
    bench.rows.append(Row(f"size over the {peer}", network, found.ratios("kerasq", peer), 1.02))
    for threads in (1, 2):
        case = f"{network}, {threads} thread{'s'[: threads - 1]}"
        contestants = {
            name: ("latency", {"path": path, "threads": threads}) for name, path in paths.items()
        }
        found = bench.compare(f"{case}, latency", contestants, 5, rounds=2 * bench.rounds)
        bench.rows.append(Row(f"latency over the {peer}", case, found.ratios("kerasq", peer), 1.02))
        others = ("bare converter", "ai-edge-quantizer, int8")
        for other in (name for name in others if name in paths):
            bench.rows.append(Row(f"latency over {other}", case, found.ratios("kerasq", other)))


def imports(bench: Benchmark) -> None:
    """Seconds of `import kerasq`."""
    contestants = {
        "kerasq": ("imports", {"modules": "kerasq"}),
        "tensorflow, keras": ("imports", {"modules": "tensorflow, keras"}),
    }
    found = bench.compare("import", contestants)
    ratios = found.ratios("kerasq", "tensorflow, keras")
    bench.rows.append(Row("import over tensorflow, keras", "", ratios, 1.1))


def growth(bench: Benchmark) -> None:
    """How times grow with what they depend on: the exponent, 1 where twice is twice."""
    depths = (4, 8, 16, 32)
    chains: dict[int, dict] = {depth: {"network": f"chain{depth}"} for depth in depths}
    grow = [
        (
            "step against batch size",
            "kerasq_step",
            {n: {"network": "resnet8", "batch": n} for n in (32, 64, 128, 256)},
        ),
        ("step against layers", "kerasq_step", {n: {**c, "batch": 32} for n, c in chains.items()}),
        (
            "calibrate against samples",
            "calibration",
            {n: {"network": "resnet8", "samples": n} for n in (1024, 2048, 4096, 8192)},
        ),
        (
            "calibrate against layers",
            "calibration",
            {n: {**c, "samples": 512} for n, c in chains.items()},
        ),
        ("quantize_model against layers", "quantization", chains),
        (
            "export_tflite against layers",
            "kerasq_export",
            {n: {**c, "path": None} for n, c in chains.items()},
        ),
        ("compare against layers", "comparison", chains),
        ("sensitivity against layers", "sensitivity", chains),
    ]
    for what, function, sizes in grow:
        contestants = {str(size): (function, options) for size, options in sizes.items()}
        found = bench.compare(what, contestants, rounds=min(bench.rounds, 2))
        _, first, _, last = sorted(sizes)  # The smallest is mostly constant cost.
        factors = found.ratios(str(last), str(first))
        exponents = [float(np.log(f) / np.log(last / first)) for f in factors]
        bench.rows.append(Row(f"exponent, {what}", f"{first} to {last}", exponents, 1.1))


def _versions() -> dict[str, str]:
    names = ("tensorflow", "keras", "ai-edge-litert", "tf-keras", "numpy", "ai-edge-quantizer")
    found = {}
    for name in (*names, "tensorflow-model-optimization"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _print(bench: Benchmark) -> None:
    header = ["ratio", "case", "least", "median", "greatest", "target", "rounds", "verdict"]
    print("\nRatios\n\n" + tables.markdown([header, *(row.cells() for row in bench.rows)], left=2))
    figures = [row for figures in bench.figures for row in figures.rows()]
    header = ["case", "contestant", "least", "median", "greatest", "unit"]
    print("\nFigures\n\n" + tables.markdown([header, *figures], left=2))
    counts = {word: sum(row.verdict == word for row in bench.rows) for word in ("held", "missed")}
    print(f"\n{counts['held']} targets held, {counts['missed']} missed.")


def _settings() -> list[tuple[str, bool]]:
    """Policies and compilation of the steps."""
    gpu = _DEVICE.value == "gpu"
    policies = _POLICIES.value or ["float32", *(["mixed_bfloat16"] if gpu else [])]
    compiled = _XLA.value or (["false", "true"] if gpu else ["false"])
    return [(policy, xla == "true") for policy in policies for xla in compiled]


def _environment() -> dict[str, str]:
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_USE_LEGACY_KERAS": "0"}
    environment["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"  # Contestants share the device.
    if _DEVICE.value == "cpu":
        return {**environment, "CUDA_VISIBLE_DEVICES": "-1"}
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        raise app.UsageError(
            "--device=gpu needs a GPU that TensorFlow sees. Received: none. Install "
            "tensorflow[and-cuda], or try the same settings on the CPU: --device=cpu "
            "--policies=float32,mixed_bfloat16 --xla=false --xla=true"
        )
    return environment


def main(argv: list[str]) -> None:
    """Runs the sections and prints their tables."""
    if len(argv) > 1:
        raise app.UsageError(f"Takes flags only. Received: {argv[1:]}.")
    sections: dict[str, Callable[[Benchmark], None]] = {
        "steps": steps,
        "memory": memory,
        "calibration": calibration,
        "files": deployment,
        "import": imports,
        "growth": growth,
    }
    chosen = list(_SECTIONS) if _ONLY.value is None else _ONLY.value
    for name, found, legal in (
        ("only", chosen, _SECTIONS),
        ("policies", _POLICIES.value, _KNOWN_POLICIES),
        ("networks", _NETWORKS.value, NETWORKS),
        ("batches", _BATCHES.value, [str(n) for n in BATCHES]),
    ):
        if found is not None and not (found and {*found} <= {*legal}):
            raise app.UsageError(f"--{name} must be of {', '.join(legal)}. Received: {found}.")
    if _JSON.value:
        try:
            files.check_writable(_JSON.value)
        except OSError as error:
            raise app.UsageError(f"--json: {error}") from error
    bench = Benchmark(_ROUNDS.value, _environment())
    try:
        for name in chosen:
            sections[name](bench)
            if _JSON.value:
                files.write_whole(
                    pathlib.Path(_JSON.value), json.dumps(_content(bench), indent=1).encode()
                )
    finally:  # An interrupted run shows what it has measured.
        _print(bench)


def _content(bench: Benchmark) -> dict:
    return {
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
        "versions": _versions(),
        "rows": [{**dataclasses.asdict(r), "verdict": r.verdict} for r in bench.rows],
        "figures": [dataclasses.asdict(figures) for figures in bench.figures],
    }


if __name__ == "__main__":
    app.run(main)
