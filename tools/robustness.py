"""Whether a quantized network trains as the float one does. Prints the tables of docs/results.md.

`--experiment=finetune`: one epoch for each network and optimizer, of the float model, kerasq's
default, kerasq with BatchNormalization folded, and tfmot. `--experiment=scratch`: ResNet8 from
random weights, calibrated before or not, with ranges that learn or follow. What is finished is not
run again, and an interrupted run goes on. Beside the results of each run lies a map of the values
that each layer clips, epoch by epoch.

Example: python -m tools.robustness --data_dir=cifar10 --out=runs/robustness --jobs=2
"""

import dataclasses
import functools
import importlib
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
from absl import app, flags

import kerasq
from kerasq.fake_quant import RANGE_GRADIENTS
from kerasq.support import progress, tables
from kerasq.support.files import write_whole
from kerasq.training.distill import ends_in_softmax
from recipes import datasets, models, training
from tools import processes
from tools.keras2 import in_keras2

_ROOT = pathlib.Path(__file__).resolve().parents[1]

_DATASET = flags.DEFINE_string("dataset", "image_folder", "Images, by name: see recipes.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where they are.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the runs.", required=True)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, one run each.")
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at a time.", 1)
_ONE = flags.DEFINE_string("one", None, "Run this network;contestant;seed only, in this process.")
_FLOAT_EPOCHS = flags.DEFINE_integer("float_epochs", 12, "Epochs of networks trained here.", 1)

# By name, networks of recipes/models.py; fine-tuned resnet8 is docs/resnet8.keras.
NETWORKS = ("resnet8", "mobilenet_v1", "mobilenet_v2", "ds_cnn")
# By name, an optimizer and its arguments.
OPTIMIZERS: dict[str, tuple[str, dict[str, float]]] = {
    "SGD 1e-4": ("SGD", {"learning_rate": 1e-4, "momentum": 0.9}),
    "SGD 1e-3": ("SGD", {"learning_rate": 1e-3, "momentum": 0.9}),
    "SGD 1e-2": ("SGD", {"learning_rate": 1e-2, "momentum": 0.9}),
    "Adam 1e-4": ("Adam", {"learning_rate": 1e-4}),
    "Adam 1e-3": ("Adam", {"learning_rate": 1e-3}),
}
BATCH_SIZE = 64


def _quantized(model: Any, images: np.ndarray, **options: Any) -> Any:
    q = kerasq.quantize_model(model, **options)
    kerasq.calibrate(q, images.astype("float32"))
    return q


def _tfmot(model: Any, images: np.ndarray) -> Any:
    import tensorflow_model_optimization as tfmot

    del images  # Its ranges follow the training data.
    return tfmot.quantization.keras.quantize_model(in_keras2(model))


Contestant = Callable[[Any, np.ndarray], Any]


def _with_ranges(gradient: str, calibrated: bool) -> Contestant:
    """A network quantized with ranges of that gradient, that start from data or not."""

    def make(model: Any, images: np.ndarray) -> Any:
        if calibrated:
            return _quantized(model, images, range_gradient=gradient)
        return kerasq.quantize_model(model, range_gradient=gradient)

    return make


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is trained.

    Attributes:
        networks: of recipes/models.py.
        contestants: by name, what becomes of a float model, for images to calibrate on.
        optimizers: by name, an optimizer and its arguments.
        epochs: passes over the training images; the rate falls to 0 where there are several.
        trained: whether networks are trained in float before.
    """

    networks: tuple[str, ...]
    contestants: dict[str, Contestant]
    optimizers: dict[str, tuple[str, dict[str, float]]]
    epochs: int
    trained: bool


EXPERIMENTS = {
    "finetune": Experiment(
        networks=NETWORKS,
        contestants={
            "float": lambda model, images: model,
            "kerasq": _quantized,
            "kerasq, folded": lambda model, images: _quantized(model, images, batch_norm="fold"),
            "tfmot": _tfmot,
        },
        optimizers=OPTIMIZERS,
        epochs=1,
        trained=True,
    ),
    "scratch": Experiment(
        networks=("resnet8",),
        contestants={
            "float": lambda model, images: model,
            **{
                f"{gradient}{', calibrated' if calibrated else ''}": _with_ranges(
                    gradient, calibrated
                )
                for gradient in RANGE_GRADIENTS
                for calibrated in (False, True)
            },
        },
        optimizers={"SGD 0.1": ("SGD", {"learning_rate": 0.1, "momentum": 0.9})},
        epochs=12,
        trained=False,
    ),
}
_EXPERIMENT = flags.DEFINE_enum("experiment", "finetune", [*EXPERIMENTS], "Which.")
_NETWORK = flags.DEFINE_multi_enum("network", None, NETWORKS, "These only, a flag each.")
_CONTESTANT = flags.DEFINE_multi_enum(
    "contestant",
    None,
    {name for x in EXPERIMENTS.values() for name in x.contestants},
    "These and float only.",
)
_OPTIMIZER = flags.DEFINE_multi_enum(
    "optimizer", None, {name for x in EXPERIMENTS.values() for name in x.optimizers}, "These only."
)


def _experiment() -> Experiment:
    """What the flags ask for."""
    whole = EXPERIMENTS[_EXPERIMENT.value]
    networks = _NETWORK.value or whole.networks
    names = _OPTIMIZER.value or whole.optimizers
    contestants = {"float", *(_CONTESTANT.value or whole.contestants)}
    return dataclasses.replace(
        whole,
        networks=tuple(name for name in whole.networks if name in networks),
        optimizers={name: whole.optimizers[name] for name in whole.optimizers if name in names},
        contestants={k: make for k, make in whole.contestants.items() if k in contestants},
    )


def start(network: str, data: datasets.Dataset) -> keras.Model:
    """The float network that contestants start from; trained here where the run has none yet."""
    experiment = _experiment()
    build = functools.partial(models.build, network, data.image_shape, data.classes)
    if not experiment.trained:
        return build()
    if network == "resnet8":
        return keras.models.load_model(_ROOT / "docs/resnet8.keras")
    path = pathlib.Path(_OUT.value) / f"{network}.keras"
    if not path.exists():
        keras.utils.set_random_seed(0)
        model = build()
        fit = training.FitSettings(
            epochs=_FLOAT_EPOCHS.value, batch_size=BATCH_SIZE, learning_rate=0.05, momentum=0.9
        )
        training.fit(model, data, fit, path.with_suffix(""))
        model.save(path)
    return keras.models.load_model(path)


def one(network: str, contestant: str, seed: int) -> None:
    """All optimizers for one network, contestant and seed; accuracies go to a file, one by one."""
    experiment, path = _experiment(), _path(network, contestant, seed)
    found = _read(path)
    data = datasets.load(_DATASET.value, _DATA_DIR.value)
    fit = training.FitSettings(
        epochs=experiment.epochs, batch_size=BATCH_SIZE, learning_rate=0.0, momentum=0.0, seed=seed
    )
    for name, optimizer in experiment.optimizers.items():
        if name in found:
            continue
        keras.utils.set_random_seed(seed)
        float_model = start(network, data)
        logits = not ends_in_softmax(float_model)
        images = data.train.x[::100]
        model = experiment.contestants[contestant](float_model, images)
        batches, steps = training.training_batches(data.train, fit)
        # Keras 2 has the same names, and takes no objects of Keras 3.
        library = importlib.import_module("tf_keras" if contestant == "tfmot" else "keras")
        model.compile(
            _optimizer(library, *optimizer, steps * experiment.epochs),
            library.losses.SparseCategoricalCrossentropy(from_logits=logits),
        )
        check = kerasq.CheckTraining(images)
        is_checked = contestant not in ("float", "tfmot")
        model.fit(
            batches,
            epochs=experiment.epochs,
            steps_per_epoch=steps,
            verbose=0,
            callbacks=[check] if is_checked else [],
        )
        outputs = model.predict(data.test.x.astype("float32"), batch_size=250, verbose=0)
        found[name] = float(np.mean(outputs.argmax(-1) == data.test.y))
        if is_checked:
            _keep_clipped(path, name, check.clipped)
        write_whole(path, json.dumps(found).encode())
        print(network, contestant, seed, name, found[name], flush=True)
        keras.backend.clear_session()


def _keep_clipped(path: pathlib.Path, optimizer: str, clipped: list[dict[str, Any]]) -> None:
    """Writes which layers clipped how much, as a map and as the greatest share of each epoch."""
    kerasq.plot_clipped(clipped, path.with_suffix(f".{optimizer.replace(' ', '_')}.png"))
    greatest = [max(x for x in epoch.values() if x is not None) for epoch in clipped]
    kept = _clipped_path(path)
    write_whole(kept, json.dumps(_read(kept) | {optimizer: greatest}).encode())


def _clipped_path(path: pathlib.Path) -> pathlib.Path:
    """Where the shares of clipped values of a run are kept."""
    return path.with_suffix(".clipped.json")


def _optimizer(library: Any, name: str, arguments: dict[str, float], steps: int) -> Any:
    """An optimizer, its rate constant over one epoch, else a cosine to 0."""
    if _experiment().epochs > 1:
        rate = library.optimizers.schedules.CosineDecay(arguments["learning_rate"], steps)
        return getattr(library.optimizers, name)(**arguments | {"learning_rate": rate})
    return getattr(library.optimizers, name)(**arguments)


def _read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _path(network: str, contestant: str, seed: int | str) -> pathlib.Path:
    """Where the accuracies of a run are kept."""
    folder = pathlib.Path(_OUT.value) / _EXPERIMENT.value / network / contestant.replace(", ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"seed{seed}.json"


def table() -> list[list[str]]:
    """Accuracies in per cent, the mean and the spread over seeds, of what has been run.

    Below them the mean over seeds of the difference from float.
    """
    experiment = _experiment()
    rows = [["network", "optimizer", *experiment.contestants]]
    for network in experiment.networks:
        for name in experiment.optimizers:
            found = {c: _values(network, c, name) for c in experiment.contestants}
            rows.append([network, name, *map(_cell, found.values())])
            over = [_over(values, found["float"]) for values in found.values()]
            rows.append(["", "over float", *over])
    return rows


def clipped_table() -> list[list[str]]:
    """The greatest share of clipped values of any layer, in per cent, after the first epochs.

    The mean over seeds. A row for each quantized network and optimizer that has been run.
    """
    experiment = _experiment()
    epochs = [i for i in (1, 2, 3, 6, 12) if i <= experiment.epochs]
    rows = [["network", "ranges", "optimizer", *(f"epoch {i}" for i in epochs)]]
    for network, contestant, name in itertools.product(
        experiment.networks, experiment.contestants, experiment.optimizers
    ):
        paths = [_clipped_path(_path(network, contestant, seed)) for seed in _SEEDS.value]
        found = [kept[name] for kept in map(_read, paths) if name in kept]
        if found:
            mean = 100 * np.mean(found, axis=0)
            rows.append([network, contestant, name, *(f"{mean[i - 1]:.2f}" for i in epochs)])
    return rows


def _values(network: str, contestant: str, optimizer: str) -> dict[str, float]:
    """Per cent by seed."""
    results = {seed: _read(_path(network, contestant, seed)) for seed in _SEEDS.value}
    return {seed: 100 * x[optimizer] for seed, x in results.items() if optimizer in x}


def _cell(values: dict[str, float]) -> str:
    if not values:
        return "-"
    numbers = [*values.values()]
    return f"{np.mean(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f})"


def _over(values: dict[str, float], floats: dict[str, float]) -> str:
    """Differences by seed: runs of a seed see the same batches."""
    both = [values[seed] - floats[seed] for seed in values if seed in floats]
    return f"{np.mean(both):+.2f}" if both else "-"


def _call(network: str, contestant: str, seed: str, threads: int) -> None:
    """One run in a process of its own, its output in a log."""
    path = _path(network, contestant, seed)
    if _read(path).keys() >= _experiment().optimizers.keys():
        return
    this = ["-m", "tools.robustness", *sys.argv[1:], f"--one={network};{contestant};{seed}"]
    processes.run(this, path.with_suffix(".log"), threads)


def main(argv: list[str]) -> None:
    """Runs what is missing and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"Takes flags only. Received: {argv[1:]}.")
    if _ONE.value:
        network, contestant, seed = _ONE.value.split(";")
        one(network, contestant, int(seed))
        return
    threads = max(1, (os.cpu_count() or 1) // _JOBS.value)
    # Float first: it trains the networks that all others start from.
    experiment = _experiment()
    whole = itertools.product(_SEEDS.value, experiment.contestants, experiment.networks)
    runs = [(network, contestant, seed) for seed, contestant, network in whole]
    first, rest = runs[: len(experiment.networks)], runs[len(experiment.networks) :]
    with ThreadPoolExecutor(_JOBS.value) as pool:
        for part in (first, rest):
            jobs = [pool.submit(_call, *each, threads) for each in part]
            for job in progress.track(jobs, len(jobs), "run"):
                job.result()
    print(tables.markdown(table(), left=2))
    print("\nThe greatest share of values beyond the range of any layer, in per cent:\n")
    print(tables.markdown(clipped_table(), left=3))


if __name__ == "__main__":
    app.run(main)
