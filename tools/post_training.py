"""Post-training methods side by side on a trained classifier. Prints the table of docs/results.md.

TFLiteConverter's own quantization, and kerasq's at 8 and 4 bits with what makes it better without
training: each makes a .tflite, which is what is measured, on LiteRT's default kernels. Rows below 8
bits keep the first and the last layer at w8a8, as published comparisons do (MQBench: Li et al.
2021, arXiv 2111.03759), unless --nokeep_ends is given.

--data_dir has calibration/, images in any depth, and test/, whose entries are named by the index
of their class: images (test/0497.jpg) or folders of images (test/0497/cat.jpg). All have the size
that the model takes, as pixels of 0..255. Figures and files lie in --out: what is finished is not
run again, and rounding that was interrupted goes on.

Example: python -m tools.post_training --model=network.keras --data_dir=imagenet --out=runs/table
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from absl import app, flags

import kerasq
from kerasq.support import tables
from kerasq.support.files import write_whole
from recipes import datasets, evaluation
from tools import calibration

Array = np.ndarray

_MODEL = flags.DEFINE_string("model", None, "A .keras file: a classifier.", required=True)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of calibration/, test/.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the figures and files.", required=True)
_CALIBRATION = flags.DEFINE_integer("calibration", None, "The most images to calibrate on.", 1)
_ITERATIONS = flags.DEFINE_integer("iterations", 2000, "Of adaround, for each layer or block.", 1)
_KEEP_ENDS = flags.DEFINE_boolean("keep_ends", True, "First and last layer stay at w8a8.")

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


class Stopwatch:
    """Time by stage, and what the stages found.

    Attributes:
        seconds: wall time, by name of a stage.
        cpu_seconds: those of the CPU, which other processes do not change.
        reports: what the stages say that they did.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self.reports: list[str] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures a block."""
        start, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.cpu_seconds[name] = time.process_time() - cpu

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """The result of a function, measured under its name."""
        with self.stage(function.__name__):
            found = function(*args, **options)
        if dataclasses.is_dataclass(found):
            self.reports.append(f"{function.__name__}\n\n{found}\n")
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A way of making a .tflite by kerasq.

    Attributes:
        scheme: bits of weights and activations.
        granularity: what of a kernel shares a scale.
        equalized, absorbed: whether the float model is, by `equalize` and `absorb_biases`.
        searched: whether ranges of weights are chosen by `seq_mse`.
        corrected: whether biases are, by `correct_biases`.
        rounded: the unit of `adaround`; None for nearest rounding.
    """

    scheme: str = "w8a8"
    granularity: str = "per_channel"
    equalized: bool = False
    absorbed: bool = False
    searched: bool = False
    corrected: bool = False
    rounded: str | None = None

    def make(self, model: keras.Model, x: Array, backup: pathlib.Path, watch: Stopwatch) -> Any:
        """The file, for images to calibrate on."""
        if self.equalized:
            model = watch.call(kerasq.equalize, model, x).model
        if self.absorbed:
            model = watch.call(kerasq.absorb_biases, model).model
        ends = kerasq.first_and_last(model) if self.keeps_ends else ()
        q = watch.call(
            kerasq.quantize_model,
            model,
            self.scheme,
            overrides=dict.fromkeys(ends, "w8a8"),
            granularity=self.granularity,
        )
        watch.call(kerasq.calibrate, q, x)
        if self.searched:
            watch.call(kerasq.seq_mse, q, x)
        if self.rounded:
            options = {"unit": self.rounded, "iterations": _ITERATIONS.value, "backup": backup}
            watch.call(kerasq.adaround, q, x, **options)
        if self.corrected:
            watch.call(kerasq.correct_biases, q, x)
        return watch.call(kerasq.export_tflite, q)

    @property
    def keeps_ends(self) -> bool:
        """Whether the first and the last layer have more bits than the others."""
        return self.scheme != "w8a8" and _KEEP_ENDS.value

    def settings(self) -> dict[str, Any]:
        """What the figures depend on beside model, images and name."""
        iterations = _ITERATIONS.value if self.rounded else None
        return {"keep_ends": self.keeps_ends, "iterations": iterations}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """`kerasq.post_training`, which tries steps and measures what they gain.

    Attributes:
        scheme: bits of weights and activations.
    """

    scheme: str = "w8a8"

    def make(self, model: keras.Model, x: Array, backup: pathlib.Path, watch: Stopwatch) -> Any:
        """The file, for images to calibrate on."""
        del backup
        found = watch.call(kerasq.post_training, model, x, scheme=self.scheme)
        return watch.call(kerasq.export_tflite, found.model)

    def settings(self) -> dict[str, Any]:
        """Nothing."""
        return {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converter:
    """TFLiteConverter's way.

    Attributes:
        per_channel: whether each channel of a kernel has its own scale.
    """

    per_channel: bool = True

    def make(self, model: keras.Model, x: Array, backup: pathlib.Path, watch: Stopwatch) -> Any:
        """The file, for images to calibrate on."""
        del backup  # It has nothing to go on from.
        return watch.call(calibration.converted, model, x, "int8", per_channel=self.per_channel)

    def settings(self) -> dict[str, Any]:
        """Nothing."""
        return {}


_per_tensor = functools.partial(Row, granularity="per_tensor")
_w4a8 = functools.partial(Row, scheme="w4a8")
_w4a4 = functools.partial(Row, scheme="w4a4")
_FLOAT = "float"
ROWS: dict[str, Row | Recipe | Converter | None] = {
    _FLOAT: None,
    "converter w8a8": Converter(),
    "w8a8": Row(),
    "w8a8, post_training": Recipe(),
    "w8a8, corrected": Row(corrected=True),
    "converter w8a8, per tensor": Converter(per_channel=False),
    "w8a8, per tensor": _per_tensor(),
    "w8a8, per tensor, equalized": _per_tensor(equalized=True),
    "w8a8, per tensor, equalized, absorbed": _per_tensor(equalized=True, absorbed=True),
    "w8a8, per tensor, corrected": _per_tensor(corrected=True),
    "w8a8, per tensor, equalized, corrected": _per_tensor(equalized=True, corrected=True),
    "w8a8, per tensor, equalized, absorbed, corrected": _per_tensor(
        equalized=True, absorbed=True, corrected=True
    ),
    "w4a8": _w4a8(),
    "w4a8, seq_mse": _w4a8(searched=True),
    "w4a8, corrected": _w4a8(corrected=True),
    "w4a8, adaround": _w4a8(rounded="layer"),
    "w4a8, seq_mse, adaround": _w4a8(searched=True, rounded="layer"),
    "w4a4": _w4a4(),
    "w4a4, adaround": _w4a4(rounded="layer"),
    "w4a4, adaround in blocks": _w4a4(rounded="block"),
}
_ROWS = flags.DEFINE_multi_enum("row", [*ROWS], [*ROWS], "Rows, a flag for each.")


def _images(files: list[pathlib.Path]) -> Array:
    """As float32 (n, height, width, 3).

    Raises:
        ValueError: where there are none, or they are of several sizes.
    """
    found = [np.asarray(keras.utils.load_img(file)) for file in files]
    shapes = {image.shape for image in found}
    if len(shapes) != 1:
        raise ValueError(
            "calibration/ and test/ must hold images of one size. "
            f"Received: {len(files)} images of the sizes {sorted(shapes)} in {_DATA_DIR.value}."
        )
    return np.stack(found).astype("float32")


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    """An image, or all images below a folder, sorted."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in found if file.suffix.lower() in _IMAGE_SUFFIXES]


def _label(path: pathlib.Path) -> int:
    """The class that an image or a folder is named by."""
    if not path.stem.isdecimal():
        raise ValueError(
            "Entries of test/ must be named by the index of their class, such as 0497.jpg or "
            f"0497/. Received: {path}."
        )
    return int(path.stem)


@functools.cache
def _calibration_images() -> Array:
    return _images(_files(pathlib.Path(_DATA_DIR.value, "calibration"))[: _CALIBRATION.value])


@functools.cache
def _test() -> datasets.Samples:
    entries = [(x, _files(x)) for x in sorted(pathlib.Path(_DATA_DIR.value, "test").iterdir())]
    labels = [_label(entry) for entry, files in entries for _ in files]
    return datasets.Samples(_images([f for _, files in entries for f in files]), np.array(labels))


@functools.cache
def _float_outputs() -> Array:
    model = keras.models.load_model(_MODEL.value)
    return model.predict(_test().x, batch_size=32, verbose=0)


def _path(name: str, suffix: str) -> pathlib.Path:
    """A file of a row."""
    plain = "_".join("".join(c if c.isalnum() else " " for c in name).split())
    return pathlib.Path(_OUT.value) / f"{plain}{suffix}"


@functools.cache
def _model_digest() -> str:
    return datasets.file_digest(_MODEL.value)


def _settings(name: str) -> dict[str, Any]:
    """What the figures of a row are of: those of others are not taken for them."""
    row = ROWS[name]
    own = row.settings() if row else {}
    return {"model": _model_digest(), "calibration": _CALIBRATION.value, **own}


def figures(name: str) -> dict[str, Any]:
    """Accuracy, distance from float and seconds of a row, measured here or read."""
    path, settings = _path(name, ".json"), _settings(name)
    if path.exists():
        found = json.loads(path.read_text())
        if found["settings"] == settings:
            return found
    found = {"settings": settings, **_measured(name)}
    write_whole(path, json.dumps(found, indent=1).encode())
    print(f"{name}: {found}", flush=True)
    keras.backend.clear_session()
    return found


def _measured(name: str) -> dict[str, Any]:
    """A row's file, made, kept, run and compared."""
    row, test = ROWS[name], _test()
    if row is None:
        return {"accuracy": evaluation.accuracy(_float_outputs(), test)}
    backup = _path(name, f"_{_ITERATIONS.value}.npz")
    resumed, watch = backup.exists(), Stopwatch()
    model = keras.models.load_model(_MODEL.value)
    lite = row.make(model, _calibration_images(), backup, watch)
    lite.save(_path(name, ".tflite"))
    write_whole(_path(name, ".txt"), "\n".join(watch.reports).encode())
    outputs = lite.predict(test.x)
    return {
        "accuracy": evaluation.accuracy(outputs, test),
        **evaluation.distance(_float_outputs(), outputs),
        "bytes": len(lite.content),
        "seconds": watch.seconds,
        "cpu_seconds": watch.cpu_seconds,
        "resumed": resumed,
    }


def _cells(name: str, found: dict[str, Any]) -> list[str]:
    if ROWS[name] is None:
        return [name, f"{100 * found['accuracy']:.1f}", "", "", "", ""]
    # Of a run that went on from another, only the rest was measured.
    more = "> " if found["resumed"] else ""
    seconds = [
        f"{more}{sum(found[key].values()):,.0f}" if key in found else ""
        for key in ("seconds", "cpu_seconds")
    ]
    percent = [f"{100 * found[key]:.1f}" for key in ("accuracy", "float_agreement")]
    return [name, *percent, f"{found['sqnr']:.1f}", *seconds]


def main(argv: list[str]) -> None:
    """Runs what is missing, row by row, and prints the table."""
    if len(argv) > 1:
        raise app.UsageError(f"Takes flags only. Received: {argv[1:]}.")
    pathlib.Path(_OUT.value).mkdir(parents=True, exist_ok=True)
    header = ["", "top-1 (%)", "same class as float (%)", "SQNR (dB)", "seconds", "of CPU"]
    names = [name for name in ROWS if name in _ROWS.value]
    print(tables.markdown([header, *(_cells(name, figures(name)) for name in names)]))


if __name__ == "__main__":
    app.run(main)
