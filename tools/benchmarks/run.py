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
import tempfile
from collections.abc import Sequence

import numpy as np
from absl import app, flags

from kerasq.support import files, tables
from tools.benchmarks.comparison import Benchmark, Figures, Row, by_case
from tools.benchmarks.contestants import RECURRENT, STEPS
from tools.benchmarks.networks import APPLICATIONS
from tools.benchmarks.networks import RECURRENT as LOOPS

NETWORKS, BATCHES = ("resnet8", "mobilenet"), (32, 128)
_SECTIONS = (
    *("steps", "memory", "calibration", "files", "import", "tracing", "growth", "recurrence"),
    "zoo",
)
_POLICY_NAMES = ("float32", "mixed_bfloat16", "mixed_float16")


def _list_flag(name: str, default: list | None, legal: Sequence, text: str) -> flags.FlagHolder:
    """A flag of comma-separated values, some of the legal ones."""
    names = [str(value) for value in legal]
    found = flags.DEFINE_list(name, default, text)

    def check(values: list[str] | None) -> bool:
        if values is not None and not (values and {*values} <= {*names}):
            raise flags.ValidationError(
                f"--{name} must be of {', '.join(names)}. Received: {values}."
            )
        return True

    flags.register_validator(name, check)
    return found


_ONLY = _list_flag(
    "only",
    [name for name in _SECTIONS if name != "zoo"],
    _SECTIONS,
    "Sections to run; by default all but zoo, which takes hours.",
)
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Rounds of each comparison.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "File for all figures and ratios.")
_DEVICE = flags.DEFINE_enum("device", "cpu", ["cpu", "gpu"], "Where models are trained.")
_POLICIES = _list_flag(
    "policies",
    None,
    _POLICY_NAMES,
    "Keras dtype policies of the steps. Default: float32, on a GPU also mixed_bfloat16.",
)
_XLA = flags.DEFINE_multi_enum(
    "xla", None, ["false", "true"], "Whether steps are compiled; on a GPU by default both"
)
_NETWORKS = _list_flag("networks", list(NETWORKS), NETWORKS, "Networks of steps and memory.")
_ZOO = _list_flag(
    "zoo", list(APPLICATIONS), APPLICATIONS, "Networks of keras.applications of the section zoo."
)
_BATCHES = _list_flag("batches", list(map(str, BATCHES)), BATCHES, "Batch sizes of the steps.")
# The most that a step of kerasq may take, over one of each peer.
STEP_TARGETS = {"tfmot": 1.0, "Keras 3": 0.9, "Keras 3, no BatchNorm": None, "tf_keras": None}


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
            contestants = {name: ("step", {"contestant": name, **options}) for name in STEPS}
            found = bench.compare(case, contestants, repetitions=8)
            for peer, target in STEP_TARGETS.items():
                ratios = found.ratios("kerasq", peer)
                bench.rows.append(Row(f"step over {peer}", case, ratios, target))
            for peer in ("Keras 3", "tfmot"):
                ratios = found.ratios("kerasq, folded", peer)
                bench.rows.append(Row(f"step, folded, over {peer}", case, ratios))
            over_tfmot.append(found.ratios("kerasq", "tfmot"))
    if len(over_tfmot) < len(NETWORKS) * len(BATCHES):
        return  # The target is for all of them.
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
                    name: ("step_memory", {"contestant": name, **options})
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
                bench.rows.append(
                    Row(f"{what} over Keras 3", case, ratios, None if whole else 1.25)
                )


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
            # Contestants leave their files behind, which are compared below.
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


def tracing(bench: Benchmark) -> None:
    """CPU seconds before a model runs for the first time."""
    for network in _NETWORKS.value:
        _tracing(bench, network)


def _tracing(bench: Benchmark, network: str) -> None:
    both = ("kerasq", "Keras 3")
    options = {name: {"contestant": name, "network": network} for name in both}
    first = {name: ("first_prediction", options[name]) for name in both}
    first["compare"] = ("first_comparison", {"network": network})
    steps = {name: ("first_step", options[name]) for name in both}
    rounds = min(bench.rounds, 3)
    found = bench.compare(f"{network}, first predict", first, fresh=True, rounds=rounds)
    for what, pair, target in (
        ("first predict over Keras 3", both, 3.0),
        ("compare over the first predict", ("compare", "kerasq"), 1.5),
    ):
        bench.rows.append(Row(what, network, found.ratios(*pair), target))
    found = bench.compare(f"{network}, first step of fit", steps, fresh=True, rounds=rounds)
    what = "first step of fit over Keras 3"
    bench.rows.append(Row(what, network, found.ratios(*both), 1.5))


_NO_OPERATOR = ("gru", "kerasq, fused")


def recurrence(bench: Benchmark) -> None:
    """Recurrent layers: steps of training, and files, beside a loop that stays float."""
    with tempfile.TemporaryDirectory() as folder:
        for network in LOOPS:
            loop = "kerasq, float loop"
            fits = [name for name in RECURRENT if name != loop and (network, name) != _NO_OPERATOR]
            steps = {
                name: ("step", {"contestant": name, "network": network, "batch": 32})
                for name in (*fits, "Keras 3")
            }
            found = bench.compare(f"{network}, step of 32 samples", steps, repetitions=8)
            for name in fits:
                ratios = found.ratios(name, "Keras 3")
                bench.rows.append(Row("step over Keras 3", f"{network}: {name}", ratios, 1.5))
            _loops(bench, network, [*fits, loop], pathlib.Path(folder))


def _loops(bench: Benchmark, network: str, ours: list[str], folder: pathlib.Path) -> None:
    """Size and latency of the files of a recurrent network."""
    converter = "converter, int8"
    paths = {name: f"{folder}/{network}-{i}.tflite" for i, name in enumerate((*ours, converter))}
    exports: dict[str, tuple[str, dict]] = {
        name: ("kerasq_export", {"network": network, "path": paths[name], "contestant": name})
        for name in ours
    }
    exports[converter] = ("converter_int8", {"network": network, "path": paths[converter]})
    bench.compare(f"{network}, export", exports, rounds=1)
    made = {name: path for name, path in paths.items() if os.path.exists(path)}
    sizes = {name: [_bytes(path)] for name, path in made.items()}
    bench.figures.append(size := Figures(f"{network}, size", "bytes", sizes, {}))
    calls = {name: ("latency", {"path": path, "threads": 1}) for name, path in made.items()}
    latency = bench.compare(f"{network}, latency", calls, 3)
    *fits, loop = ours
    for peer in (loop, converter):
        for name in fits:
            case = f"{network}: {name}"
            bench.rows.append(Row(f"size over {peer}", case, size.ratios(name, peer)))
            bench.rows.append(Row(f"latency over {peer}", case, latency.ratios(name, peer)))


# The most that the latency of a network may be, over the converter's, where it is not 1.02.
FASTER = dict.fromkeys(("Xception", "InceptionV3", "NASNetMobile"), 0.75)


def zoo(bench: Benchmark) -> None:
    """Networks of keras.applications, from a float model to a file and its latency."""
    with tempfile.TemporaryDirectory() as folder:
        for network in _ZOO.value:
            _road(bench, network, pathlib.Path(folder))
            _tracing(bench, network)
            names = ("kerasq", "Keras 3")
            later = {
                name: ("later_prediction", {"contestant": name, "network": network})
                for name in names
            }
            found = bench.compare(f"{network}, later predict", later, repetitions=3)
            what = "later predict over Keras 3"
            bench.rows.append(Row(what, network, found.ratios(*names), 1.5))
    if len(_ZOO.value) < len(APPLICATIONS):
        return  # The targets are for all of them.
    for what, target in (
        ("road over the converter, int8", 0.5),
        ("latency over the converter, int8, 1 thread", 0.9),
        ("latency over the converter, int8, 2 threads", 0.9),
    ):
        medians = [row.median for row in bench.rows if row.what == what]
        mean = float(np.exp(np.mean(np.log(medians))))
        bench.rows.append(Row(what, f"geometric mean of {len(medians)}", [mean], target))


def _road(bench: Benchmark, network: str, folder: pathlib.Path) -> None:
    """The road of one network, its peak of memory, and the bytes and latency of what comes out."""
    ours, peer = names = ("kerasq", "converter, int8")
    paths = {name: f"{folder}/{network}-{name}.tflite" for name in names}
    contestants = {
        name: (function, {"network": network, "path": paths[name]})
        for name, function in zip(names, ("road", "converter_road"), strict=True)
    }
    rounds = min(bench.rounds, 2)
    found = bench.compare(f"{network}, road", contestants, fresh=True, rounds=rounds)
    rows = [Row(f"road over the {peer}", network, found.ratios(ours, peer), 0.8)]
    if found.failures:
        bench.rows += rows
        return
    for what, suffix, target in (
        ("peak memory of the road", ".peak", 1.0),
        ("size", "", 1.0),
    ):
        sizes = {name: [_bytes(path + suffix)] for name, path in paths.items()}
        bench.figures.append(figures := Figures(f"{network}, {what}", "bytes", sizes, {}))
        rows.append(Row(f"{what} over the {peer}", network, figures.ratios(ours, peer), target))
    for threads in (1, 2):
        what = f"latency over the {peer}, {threads} thread{'s'[: threads - 1]}"
        calls = {n: ("latency", {"path": path, "threads": threads}) for n, path in paths.items()}
        # Cheap, as files are there already; and noisy.
        found = bench.compare(f"{network}, {what}", calls, 3, rounds=max(8, 2 * bench.rounds))
        target = FASTER.get(network, 1.02)
        rows.append(Row(what, network, found.ratios(ours, peer), target))
    bench.rows += rows


def _bytes(path: str) -> float:
    """The peak of memory that a file of that name notes, or its size."""
    file = pathlib.Path(path)
    return float(file.read_text() if file.suffix == ".peak" else file.stat().st_size)


def growth(bench: Benchmark) -> None:
    """How times grow with what they depend on: the exponent, 1 where twice is twice."""
    chains: dict[int, dict] = {depth: {"network": f"chain{depth}"} for depth in (4, 8, 16, 32)}
    ours = {"contestant": "kerasq"}
    grow = [
        (
            "step against batch size",
            "step",
            {n: {**ours, "network": "resnet8", "batch": n} for n in (32, 64, 128, 256)},
        ),
        ("step against layers", "step", {n: {**ours, **c, "batch": 32} for n, c in chains.items()}),
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
    if table := by_case(bench.rows, APPLICATIONS):
        print(f"\nMedians by network\n\n{table}")
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
    if _JSON.value:
        try:
            files.check_writable(_JSON.value)
        except OSError as error:
            raise app.UsageError(f"--json: {error}") from error
    functions = (steps, memory, calibration, deployment, imports, tracing, growth, recurrence, zoo)
    sections = dict(zip(_SECTIONS, functions, strict=True))
    bench = Benchmark(_ROUNDS.value, _environment())
    try:
        for name in _ONLY.value:
            sections[name](bench)
            if _JSON.value:  # After each section, as all of them take half an hour.
                text = json.dumps(_content(bench), indent=1)
                files.write_whole(_JSON.value, text.encode())
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
