"""Stages of post-training quantization: static models by calibration method, and float ones."""

from collections.abc import Callable

import keras
import tensorflow as tf

import kerasq
from kerasq.calibration.observers import OBSERVERS
from kerasq.support import tables
from kerasq.support.files import save_figure, write_whole
from recipes import evaluation, results, training
from recipes.run import Run

METHODS = tuple(OBSERVERS)
# Types of the weights, by flavour; activations are float.
FLAVOURS = {"dynamic_range": None, "float16": tf.float16}


def static(run: Run, quantize: Callable[[keras.Model], keras.Model], method: str) -> None:
    """static_<method>.tflite: calibrated by that method."""
    target = f"static_{method}.tflite"

    def work() -> results.Figures:
        model = quantize(run.load("float.keras"))
        kerasq.calibrate(model, run.calibration_batches(), method=method)
        lite = kerasq.export_tflite(model, run.path(target))
        held_out = run.data.parts[1]
        outputs = training.predict(model, held_out.x)
        return {
            "held_out_accuracy": training.accuracy(outputs, held_out.x, held_out.y),
            "held_out_sqnr": evaluation.distance(run.float_held_out, outputs)["sqnr"],
            "exact": kerasq.compare(model, lite, x=run.data.x_test[:1000]).exact,
            **_measured(run, lite),
        }

    run.stage(f"static_{method}", (target,), work)


def converted(run: Run, flavour: str) -> None:
    """<flavour>.tflite: what TensorFlow's converter makes of the float model."""
    target = f"{flavour}.tflite"

    def work() -> results.Figures:
        content = evaluation.convert_float(run.load("float.keras"), True, FLAVOURS[flavour])
        write_whole(run.path(target), content)
        return _measured(run, kerasq.TFLiteModel(content))

    run.stage(flavour, (target,), work)


def _measured(run: Run, lite: kerasq.TFLiteModel) -> results.Figures:
    """Accuracy, size, speed, and distance from the float model."""
    x, y = run.data.x_test, run.data.y_test
    outputs = lite.predict(x.astype("float32"))
    files = [run.float_tflite, lite.content]
    float_ms, ms = evaluation.alternating_latency(files, run.num_threads)
    return {
        "accuracy": training.accuracy(outputs, x, y),
        "bytes": len(lite.content),
        "ms": ms,
        "float_bytes": len(run.float_tflite),
        "float_ms": float_ms,
        **evaluation.distance(run.float_outputs, outputs),
    }


def finish(run: Run) -> None:
    """Picks model.tflite; writes results.json and accuracy.png; prints the table."""
    if not run.team.is_chief:
        return
    names = [name for name in run.figures if name != "float"]
    statics = [name for name in names if name.startswith("static_")]
    judged = {x: [run.figures[x][f"held_out_{y}"] for y in ("accuracy", "sqnr")] for x in statics}
    best = max(statics, key=judged.__getitem__)
    write_whole(run.path("model.tflite"), run.path(f"{best}.tflite").read_bytes())
    floats = run.figures["float"]["accuracy"]
    first = run.figures[names[0]]
    header = ["", "accuracy", "same class as float", "SQNR (dB)", "bytes", "ms/image"]
    rows = [[*header, "held out", "SQNR (dB)"]]
    size, ms = f"{first['float_bytes']:,}", f"{first['float_ms']:.3f}"
    rows.append(["float", f"{100 * floats:.2f} %", "", "", size, ms, "", ""])
    for name in names:
        x = run.figures[name]
        keys = ("accuracy", "float_agreement", "held_out_accuracy")
        shares = [f"{100 * x[key]:.2f} %" if key in x else "" for key in keys]
        noise = [f"{x[key]:.1f}" if key in x else "" for key in ("sqnr", "held_out_sqnr")]
        sizes = [f"{x['bytes']:,}", f"{x['ms']:.3f}"]
        rows.append([name, *shares[:2], noise[0], *sizes, shares[2], noise[1]])
    summary = {
        "recipe": run.recipe,
        **evaluation.summarize(run.figures),
        "tflite_accuracy": run.figures[best]["accuracy"],
        "tflite_bytes": run.figures[best]["bytes"],
        "best": best,
        "flavours": {name: run.figures[name] for name in names},
        "settings": run.settings,
    }
    results.write_json(run.path("results.json"), summary)
    _plot(run, {"float": floats} | {name: run.figures[name]["accuracy"] for name in names})
    lines = [tables.plain(rows), *evaluation.remarks(summary)]
    lines.append(f"model.tflite is {best}: the best on the images held out.")
    print("", *lines, f"Written to {run.directory.path}/", sep="\n")


def _plot(run: Run, accuracies: dict[str, float]) -> None:
    """Accuracies to accuracy.png, as dots: bars would have to begin at 0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1 + 0.35 * len(accuracies)), layout="constrained")
    axes = figure.subplots()
    values = [100 * value for value in accuracies.values()]
    axes.plot(values, list(accuracies), "o")
    for y, value in enumerate(values):
        axes.annotate(f"{value:.2f}", (value, y), (8, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    margin = max(0.5, 0.3 * (max(values) - min(values)))
    axes.set(xlabel="accuracy on the test images (%)")
    axes.set_xlim(min(values) - 2 * margin, max(values) + 2 * margin)
    axes.grid(axis="x", alpha=0.3)
    save_figure(figure, run.path("accuracy.png"))
