"""Quantization-aware fine-tuning: a float Keras model to an integer .tflite that agrees with it.

  float       train --model on --dataset, or take --float_model   float.keras, float_accuracy
  calibrate   quantize and calibrate, no training                  calibrated.keras
  finetune    a few epochs at a reduced rate                       finetuned.keras
  export      integer .tflite, run on the test set                 model.tflite
  latency     against the float .tflite, one sample at a time      float.tflite

Everything is written to --out, with results.json and curves.png. A run that was killed continues
from its last finished epoch when it is started again with the same flags.

Example: python recipes/qat.py --dataset=digits --epochs=3
"""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

# Runs from a checkout, as a script and as a module; TensorFlow reads its log level on import.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from absl import app, flags, logging

import kerasq
from kerasq.scheme import SCHEMES
from recipes import evaluation, float_stage, models, results, training
from recipes.float_stage import FloatStage

_EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs of fine-tuning; 0 exports as calibrated.", 0)
_LEARNING_RATE = flags.DEFINE_float(
    "learning_rate",
    None,
    "First learning rate of fine-tuning (cosine to 0). Default: --float_learning_rate / 100.",
    0.0,
)
_MOMENTUM = flags.DEFINE_float(
    "momentum",
    None,
    "Momentum of fine-tuning. Default: --float_momentum * 5/9, which is 0.5 for 0.9.",
    0.0,
    1.0,
)
_INTEGERS = [name for name in SCHEMES if name != "float"]
_SCHEME = flags.DEFINE_enum("scheme", "w8a8", _INTEGERS, "Bit widths of weights and activations.")
_OVERRIDES = flags.DEFINE_list(
    "overrides", [], "Layers at another scheme: name=scheme or pattern=scheme, by commas."
)
_RAISE_SHARE = flags.DEFINE_float(
    "raise_share",
    0.0,
    "Share of the layers, the most sensitive ones, that get --raise_to (0.2: a fifth).",
    0.0,
    1.0,
)
_RAISE_TO = flags.DEFINE_enum(
    "raise_to", "w8a16", list(SCHEMES), "The scheme of the most sensitive layers."
)
_BATCH_NORM = flags.DEFINE_enum(
    "batch_norm",
    "fold",
    ["fold", "keep"],
    "BatchNormalization: folded before fine-tuning, or kept and trained.",
)
_RANGE_GRADIENT = flags.DEFINE_enum(
    "range_gradient", "lsq", ["lsq", "clip", "none"], "How the ranges learn."
)
_CALIBRATION_METHOD = flags.DEFINE_enum(
    "calibration_method",
    "moving_average",
    ["minmax", "moving_average", "percentile", "mse"],
    "How the first ranges come from the data.",
)
_CALIBRATION_STEPS = flags.DEFINE_integer(
    "calibration_steps", 20, "Training batches (not augmented) to calibrate on.", 1
)
_RANDOMIZE_BATCH_NORM = flags.DEFINE_bool(
    "randomize_batch_norm",
    False,
    "Spread the BatchNormalization statistics (the function stays the same) before quantizing.",
)
_FLOAT_FINETUNE = flags.DEFINE_bool(
    "float_finetune", False, "Fine-tune the float model for the same epochs too, to compare with."
)
_FLOAT_ONLY = flags.DEFINE_bool("float_only", False, "Stop after the float stage.")
_NUM_THREADS = flags.DEFINE_integer("num_threads", 1, "Threads latency is measured with.", 1)

flags.adopt_module_key_flags(float_stage)


def finetune_fit(stage: FloatStage) -> training.FitSettings:
    """How the quantized model is trained: as the float model was, with less rate and momentum."""
    rate, momentum = _LEARNING_RATE.value, _MOMENTUM.value
    return dataclasses.replace(
        stage.fit,
        epochs=_EPOCHS.value,
        learning_rate=stage.fit.learning_rate / 100 if rate is None else rate,
        momentum=stage.fit.momentum * 5 / 9 if momentum is None else momentum,
        weight_decay=0.0,
    )


def calibrate_settings(stage: FloatStage) -> dict[str, Any]:
    """What the calibrated model depends on, by flag name."""
    return stage.settings() | {
        "batch_size": stage.fit.batch_size,
        "seed": stage.fit.seed,
        "scheme": _SCHEME.value,
        "overrides": _OVERRIDES.value,
        "raise_share": _RAISE_SHARE.value,
        "raise_to": _RAISE_TO.value,
        "batch_norm": _BATCH_NORM.value,
        "range_gradient": _RANGE_GRADIENT.value,
        "calibration_method": _CALIBRATION_METHOD.value,
        "calibration_steps": _CALIBRATION_STEPS.value,
        "randomize_batch_norm": _RANDOMIZE_BATCH_NORM.value,
    }


def _override(item: str) -> tuple[str, str]:
    """Pattern and scheme of one item of --overrides."""
    pattern, equals, scheme = item.rpartition("=")
    if not equals or scheme not in SCHEMES:
        raise ValueError(
            "`overrides` must be pattern=scheme, such as conv2d_*=w8a16, with a scheme of "
            f"{list(SCHEMES)}. Received: {item!r}."
        )
    return pattern, scheme


def fit_settings(fit: training.FitSettings) -> dict[str, Any]:
    """What fine-tuning depends on, by flag name."""
    return {
        "epochs": fit.epochs,
        "learning_rate": fit.learning_rate,
        "momentum": fit.momentum,
        "batch_size": fit.batch_size,
        "seed": fit.seed,
    }


def calibrate(stage: FloatStage, directory: results.RunDirectory) -> results.Figures:
    """Quantizes float.keras and calibrates it: calibrated.keras, the post-training baseline."""

    def work() -> results.Figures:
        keras.utils.set_random_seed(stage.fit.seed)
        model = keras.models.load_model(directory.path / "float.keras")
        if _RANDOMIZE_BATCH_NORM.value:
            models.randomize_batch_norm(model, stage.fit.seed)
        plain = dataclasses.replace(stage.fit, augment=False)
        batches, _ = training.training_batches(stage.data.x_train, stage.data.y_train, plain)
        steps = _CALIBRATION_STEPS.value
        batches = batches.take(steps)
        overrides = dict(_override(item) for item in _OVERRIDES.value)
        raised: list[str] = []
        if _RAISE_SHARE.value:
            candidates = (_SCHEME.value, _RAISE_TO.value)
            table = kerasq.sensitivity(
                model, batches, candidates, method=_CALIBRATION_METHOD.value, steps=steps
            )
            print(table)
            table.plot(directory.path / "sensitivity.png")
            inputs = {x.name for x in model.inputs}
            layers = [name for name in table.layers if name not in inputs]
            raised = layers[: max(1, round(_RAISE_SHARE.value * len(layers)))]
            print(f"Raised to {_RAISE_TO.value}: {', '.join(raised)}.")
            overrides |= dict.fromkeys(raised, _RAISE_TO.value)
        quantized = kerasq.quantize_model(
            model,
            _SCHEME.value,
            overrides,
            batch_norm=_BATCH_NORM.value,
            range_gradient=_RANGE_GRADIENT.value,
        )
        kerasq.calibrate(quantized, batches, _CALIBRATION_METHOD.value, steps=steps)
        print(kerasq.summary(quantized))
        outputs = training.predict(quantized, stage.data.x_test)
        floats = training.predict(model, stage.data.x_test)
        results.save_model(quantized, directory.path / "calibrated.keras")
        return {
            "accuracy": training.accuracy(outputs, stage.data.y_test),
            "float_agreement": training.accuracy(outputs, floats.argmax(-1)),
            "sqnr": evaluation.sqnr(floats, outputs),
            "raised": raised,
        }

    return directory.stage("calibrate", calibrate_settings(stage), ("calibrated.keras",), work)


def finetune(
    stage: FloatStage,
    directory: results.RunDirectory,
    name: str,
    settings: dict[str, Any],
    source: str,
    target: str,
) -> results.Figures:
    """Fine-tunes the model file `source` and saves it as `target`; accuracy and history."""
    fit = finetune_fit(stage)

    def work() -> results.Figures:
        keras.utils.set_random_seed(fit.seed)
        model = keras.models.load_model(directory.path / source)
        history = training.fit(model, stage.data, fit, directory.backup_dir(name))
        outputs = training.predict(model, stage.data.x_test)
        results.save_model(model, directory.path / target)
        return {"accuracy": training.accuracy(outputs, stage.data.y_test), "history": history}

    return directory.stage(name, settings | fit_settings(fit), (target,), work)


def run(stage: FloatStage, directory: results.RunDirectory) -> dict[str, results.Figures]:
    """All stages in order; the figures of each."""
    figures = {"float": float_stage.run(stage, directory)}
    if _FLOAT_ONLY.value:
        return figures
    figures["calibrate"] = calibrate(stage, directory)
    settings = calibrate_settings(stage)
    figures["finetune"] = finetune(
        stage, directory, "finetune", settings, "calibrated.keras", "finetuned.keras"
    )
    if _FLOAT_FINETUNE.value:
        figures["float_finetune"] = finetune(
            stage,
            directory,
            "float_finetune",
            stage.settings(),
            "float.keras",
            "float_finetuned.keras",
        )
    settings |= fit_settings(finetune_fit(stage))
    figures["export"] = evaluation.export(stage, directory, settings, "finetuned.keras")
    figures["latency"] = evaluation.measure_latency(stage, directory, settings, _NUM_THREADS.value)
    return figures


def summarize(figures: dict[str, results.Figures]) -> dict[str, Any]:
    """The figures of all stages as the flat object results.json holds."""
    names = {
        "float_accuracy": ("float", "accuracy"),
        "calibrated_accuracy": ("calibrate", "accuracy"),
        "calibrated_float_agreement": ("calibrate", "float_agreement"),
        "calibrated_sqnr": ("calibrate", "sqnr"),
        "raised": ("calibrate", "raised"),
        "finetuned_accuracy": ("finetune", "accuracy"),
        "float_finetuned_accuracy": ("float_finetune", "accuracy"),
        "tflite_accuracy": ("export", "accuracy"),
        "agreement": ("export", "agreement"),
        "float_bytes": ("latency", "float_bytes"),
        "tflite_bytes": ("export", "bytes"),
        "kernel_bytes": ("export", "kernel_bytes"),
        "optimized_kernels": ("export", "optimized"),
        "reference_kernels": ("export", "reference"),
        "float_ms": ("latency", "float_ms"),
        "tflite_ms": ("latency", "int8_ms"),
    }
    summary = {k: figures[stage][v] for k, (stage, v) in names.items() if stage in figures}
    summary["seconds"] = {stage: values["seconds"] for stage, values in figures.items()}
    return summary


def report(summary: dict[str, Any]) -> str:
    """The summary as a table, the agreement and the time of each stage below it."""
    rows = []
    for title, accuracy, prefix in (
        ("float", "float_accuracy", "float"),
        ("calibrated", "calibrated_accuracy", ""),
        ("fine-tuned", "finetuned_accuracy", ""),
        ("float, fine-tuned alike", "float_finetuned_accuracy", ""),
        ("integer .tflite", "tflite_accuracy", "tflite"),
    ):
        if accuracy in summary:
            size, ms = summary.get(f"{prefix}_bytes"), summary.get(f"{prefix}_ms")
            rows.append(
                (
                    title,
                    f"{100 * summary[accuracy]:.2f} %",
                    f"{size:,}" if size else "",
                    f"{ms:.3f}" if ms else "",
                )
            )
    lines = [results.table(("", "   top-1", "     bytes", "   ms/image"), rows)]
    if "agreement" in summary:
        lines.append(
            f"The .tflite and its simulation agree on {100 * summary['agreement']:.2f} % of the "
            "test images."
        )
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in summary["seconds"].items())
    return "\n".join([*lines, f"Seconds: {seconds}."])


def main(_: list[str]) -> None:
    """Runs the recipe; what the user can mend is said without a traceback."""
    try:
        run_recipe()
    except (ValueError, OSError) as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command goes on from the last finished epoch.")


def run_recipe() -> None:
    """Runs the stages, then writes and prints what they found."""
    for item in _OVERRIDES.value:
        _override(item)
    if _RAISE_SHARE.value and _RAISE_TO.value == _SCHEME.value:
        raise ValueError(
            "`raise_to` must differ from `scheme`. "
            f"Received: raise_to={_RAISE_TO.value!r}, scheme={_SCHEME.value!r}."
        )
    logging.set_verbosity(logging.ERROR)  # TensorFlow's remarks on its own tracing and saving
    stage = FloatStage.from_flags()
    directory = results.RunDirectory(stage.out)
    figures = run(stage, directory)
    summary = summarize(figures)
    results.write_json(directory.path / "results.json", summary)
    curves = {name: values.get("history", {}) for name, values in figures.items()}
    results.plot_curves(directory.path / "curves.png", curves)
    print(f"\n{report(summary)}\nWritten to {directory.path}/")


if __name__ == "__main__":
    app.run(main)
