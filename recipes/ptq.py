"""Post-training quantization: no training, the ways of doing it side by side.

  float          train --model on --dataset, or take a .keras file    float.keras
  static         int8 weights and activations, the ranges of the activations found by each
                 calibration method                                   static_<method>.tflite
                 or, behind the default method:
  corrected      biases corrected by the mean errors of sums (kerasq.correct_biases)
  ranges         ranges of weights of fewer than 8 bits by the error of outputs (kerasq.seq_mse)
  rounded        weights rounded up or down so that outputs stay (kerasq.adaround)
  blocks         the same, block by block
  equalized      channels rescaled before quantization (kerasq.equalize)
  absorbed       the same, and high biases moved (kerasq.absorb_biases)
  data_free      ranges from the statistics of BatchNormalization (kerasq.calibrate_without_data)
  data_free_corrected  the same, and biases corrected without data
                                                                      static_<way>.tflite
  dynamic_range  int8 weights, activations quantized on the fly       dynamic_range.tflite
  float16        float16 weights, float arithmetic                    float16.tflite

The static model of the best accuracy on images held out from training becomes model.tflite; of
several, that of the highest SQNR there. Everything is written to --out, with results.json and
accuracy.png.

Example: python recipes/ptq.py --dataset=digits
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Runs from a checkout, as a script and as a module; TensorFlow reads its log level on import.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from absl import flags

import kerasq
from kerasq.calibration.observers import OBSERVERS
from kerasq.support import figures, files, tables
from recipes import evaluation, report, results, run, schemes, stages, training

# Types of the weights, by flavour; activations are float.
FLAVOURS = {"dynamic_range": "int8", "float16": "float16"}
# What images hold.
_PIXELS = (0, 255)
# Ways that need the statistics of BatchNormalization.
_FROM_STATISTICS = ("absorbed", "data_free", "data_free_corrected")

_SCHEME = schemes.flag("scheme", "w8a8", "Bits of weights and activations of the static models.")
_OVERRIDES = schemes.overrides_flag()
_ROUNDING_ITERATIONS = flags.DEFINE_integer(
    "rounding_iterations", 1000, "Steps for each layer where weights are rounded.", 1
)
_OTHERS = ("corrected", "ranges", "rounded", "blocks", "equalized", *_FROM_STATISTICS)
_WAYS = flags.DEFINE_multi_enum(
    "way", [*OBSERVERS, *_OTHERS], [*OBSERVERS, *_OTHERS], "Static models, a flag for each."
)
for module in (run, schemes):
    flags.adopt_module_key_flags(module)


class Ways:
    """The ways to make a static model, beside the methods of calibration.

    Args:
        job: has a float model.
        quantize: makes a quantized model of a float one.
    """

    def __init__(self, job: run.Run, quantize: Callable[[keras.Model], keras.Model]) -> None:
        self._job, self._quantize = job, quantize

    def make(self, way: str) -> keras.Model:
        """The calibrated model, by the name of a method or of another way."""
        return self.calibrated(way) if way in OBSERVERS else getattr(self, way)()

    def calibrated(
        self, method: str | None = None, model: keras.Model | None = None
    ) -> keras.Model:
        """By a method of calibration, None for the default; of another float model."""
        q = self._quantize(model or self._job.load("float.keras"))
        kerasq.calibrate(q, self._job.calibration_batches(), method=method)
        return q

    def _changed(self, change: Callable[..., Any], **options: Any) -> keras.Model:
        q = self.calibrated()
        print(change(q, self._job.calibration_batches(), **options))
        return q

    def corrected(self) -> keras.Model:
        """Biases by the mean errors of sums."""
        return self._changed(kerasq.correct_biases)

    def ranges(self) -> keras.Model:
        """Ranges of weights by the error of outputs."""
        return self._changed(kerasq.seq_mse)

    def rounded(self) -> keras.Model:
        """Weights rounded layer by layer."""
        return self._changed(kerasq.adaround, iterations=_ROUNDING_ITERATIONS.value)

    def blocks(self) -> keras.Model:
        """Weights rounded block by block."""
        return self._changed(kerasq.adaround, unit="block", iterations=_ROUNDING_ITERATIONS.value)

    def equalized(self) -> keras.Model:
        """Channels that span alike."""
        return self.calibrated(model=self._equal().model)

    def absorbed(self) -> keras.Model:
        """Channels that span alike, and high biases in the layers behind."""
        found = kerasq.absorb_biases(self._equal().model)
        print(found)
        return self.calibrated(model=found.model)

    def _equal(self) -> Any:
        found = kerasq.equalize(self._job.load("float.keras"))
        print(found)
        return found

    def data_free(self) -> keras.Model:
        """Ranges from BatchNormalization."""
        q = self._quantize(self._job.load("float.keras"))
        kerasq.calibrate_without_data(q, _PIXELS)
        return q

    def data_free_corrected(self) -> keras.Model:
        """Ranges and biases from BatchNormalization."""
        q = self.data_free()
        print(kerasq.correct_biases(q))
        return q


def static(job: run.Run, ways: Ways, way: str, reference: Callable[[], np.ndarray]) -> None:
    """static_<way>.tflite.

    Args:
        job: has a float model.
        ways: make quantized models of it.
        way: which.
        reference: what float.keras makes of the images held out.
    """
    target = f"static_{way}.tflite"

    def work() -> results.Figures:
        model = ways.make(way)
        lite = kerasq.export_tflite(model, job.path(target))
        held_out = job.data.parts[1]
        outputs = training.predict(model, held_out.x)
        return {
            "held_out_accuracy": evaluation.accuracy(outputs, held_out),
            "held_out_sqnr": evaluation.distance(reference(), outputs)["sqnr"],
            "exact": kerasq.compare(model, lite, x=job.data.test.x[:1000]).exact,
            **_measured(job, lite),
        }

    job.stage(f"static_{way}", (target,), work)


def _possible(ways: Ways) -> list[str]:
    """The ways that were asked for; without those that want statistics where there are none."""
    asked = [*_WAYS.value]
    if not {*asked} & {*_FROM_STATISTICS}:
        return asked
    try:
        ways.data_free()
    except ValueError as error:
        left = [way for way in asked if way not in _FROM_STATISTICS]
        if not left:
            raise ValueError(
                f"--way={', '.join(asked)} needs BatchNormalization. {error}"
            ) from error
        print(f"Nothing by the statistics of BatchNormalization. {error}")
        return left
    return asked


def converted(job: run.Run, flavour: str) -> None:
    """<flavour>.tflite: what TensorFlow's converter makes of the float model."""
    target = f"{flavour}.tflite"

    def work() -> results.Figures:
        model, weights = job.load("float.keras"), FLAVOURS[flavour]
        return _measured(job, kerasq.export_float_tflite(model, job.path(target), weights=weights))

    job.stage(flavour, (target,), work)


def _measured(job: run.Run, lite: kerasq.TFLiteModel) -> results.Figures:
    """Accuracy, size, speed, and distance from the float model."""
    outputs = lite.predict(job.data.test.x)
    # The float model in turn with each: the machine may have slowed down between two stages.
    float_ms, ms = kerasq.latency([job.float_tflite, lite], num_threads=job.num_threads)
    return {
        "accuracy": evaluation.accuracy(outputs, job.data.test),
        "bytes": len(lite.content),
        "ms": ms,
        "float_bytes": len(job.float_tflite.content),
        "float_ms": float_ms,
        **evaluation.distance(job.float_outputs, outputs),
    }


def finish(job: run.Run) -> None:
    """Picks model.tflite; writes results.json and accuracy.png; prints the table."""
    if not job.is_chief:
        return
    ways = {name: found for name, found in job.figures.items() if name != "float"}
    statics = [name for name in ways if name.startswith("static_")]
    best = max(statics, key=lambda x: [ways[x]["held_out_accuracy"], ways[x]["held_out_sqnr"]])
    files.write_whole(job.path("model.tflite"), job.path(f"{best}.tflite").read_bytes())
    summary = {
        "recipe": job.recipe,
        **report.summarize(job.figures),
        "tflite_accuracy": ways[best]["accuracy"],
        "tflite_bytes": ways[best]["bytes"],
        "best": best,
        "flavours": ways,
        "settings": job.settings,
    }
    results.write_json(job.path("results.json"), summary)
    accuracies = {"float": job.figures["float"]["accuracy"]}
    _plot(job, accuracies | {name: found["accuracy"] for name, found in ways.items()})
    lines = [_table(accuracies["float"], ways), *report.remarks(summary)]
    lines.append(f"model.tflite is {best}: the best on the images held out.")
    print("", *lines, f"Written to {job.directory.path}/", sep="\n")


def _table(float_accuracy: float, ways: dict[str, results.Figures]) -> str:
    """A row for the float model and each way of quantizing it."""
    first = next(iter(ways.values()))
    plain = {"accuracy": float_accuracy, "bytes": first["float_bytes"], "ms": first["float_ms"]}
    percent, decimal = (lambda x: f"{100 * x:.2f} %"), "{:.1f}".format
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "accuracy": ("accuracy", percent),
        "same class as float": ("float_agreement", percent),
        "SQNR (dB)": ("sqnr", decimal),
        "bytes": ("bytes", "{:,}".format),
        "ms/image": ("ms", "{:.3f}".format),
        "held out": ("held_out_accuracy", percent),
        "held out, SQNR (dB)": ("held_out_sqnr", decimal),
    }
    rows = [["", *columns]]
    for name, found in {"float": plain, **ways}.items():
        cells = (write(found[key]) if key in found else "" for key, write in columns.values())
        rows.append([name, *cells])
    return tables.plain(rows)


def _plot(job: run.Run, accuracies: dict[str, float]) -> None:
    """Accuracies to accuracy.png, as dots: bars would have to begin at 0."""
    values = [100 * value for value in accuracies.values()]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot(values, list(accuracies), "o")
        for y, value in enumerate(values):
            axes.annotate(
                f"{value:.2f}", (value, y), (8, 0), textcoords="offset points", va="center"
            )
        axes.invert_yaxis()
        margin = max(0.5, 0.3 * (max(values) - min(values)))
        axes.set(xlabel="accuracy on the test images (%)")
        axes.set_xlim(min(values) - 2 * margin, max(values) + 2 * margin)
        axes.grid(axis="x", alpha=0.3)

    figures.plot(draw, (7, 1 + 0.35 * len(accuracies)), job.path("accuracy.png"))


def main() -> None:
    """Float, then each way of quantizing it."""
    job = run.Run.from_flags("ptq")
    options = {
        "scheme": _SCHEME.value,
        "overrides": _OVERRIDES.value,
        "target": schemes.TARGET.value,
        "granularity": schemes.GRANULARITY.value,
        "scales": schemes.SCALES.value,
    }

    def quantize(model: keras.Model) -> keras.Model:
        return kerasq.quantize_model(model, **options)

    @functools.cache
    def reference() -> np.ndarray:
        return training.predict(job.load("float.keras"), job.data.parts[1].x)

    stages.train_float(job, quantize)
    job.settings.update(options, calibration_steps=job.calibration_steps)
    job.settings.update(num_threads=job.num_threads)
    job.settings.update(rounding_iterations=_ROUNDING_ITERATIONS.value)
    ways = Ways(job, quantize)
    for way in _possible(ways):
        static(job, ways, way, reference)
    for flavour in FLAVOURS:
        converted(job, flavour)
    finish(job)


if __name__ == "__main__":
    run.start(main)
