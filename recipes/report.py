"""The report of a run: figures of all stages as one object, a table, and remarks."""

from typing import Any

import numpy as np

from kerasq.support import tables
from recipes import results

_HARM = 0.01  # loss of accuracy by fine-tuning that is spoken of
# What results.json calls the figures: stage, and name there.
_SUMMARY = {
    "float_accuracy": ("float", "accuracy"),
    "majority": ("float", "majority"),
    "calibrated_accuracy": ("calibrate", "accuracy"),
    "calibrated_float_agreement": ("calibrate", "float_agreement"),
    "calibrated_sqnr": ("calibrate", "sqnr"),
    "finetuned_accuracy": ("finetune", "accuracy"),
    "best_epoch": ("finetune", "best_epoch"),
    "float_finetuned_accuracy": ("float_finetune", "accuracy"),
    "tflite_accuracy": ("export", "accuracy"),
    "agreement": ("export", "agreement"),
    "exact": ("export", "exact"),
    "float_bytes": ("latency", "float_bytes"),
    "tflite_bytes": ("export", "bytes"),
    "kernel_bytes": ("export", "kernel_bytes"),
    "optimized_kernels": ("export", "optimized"),
    "reference_kernels": ("export", "reference"),
    "float_ms": ("latency", "float_ms"),
    "tflite_ms": ("latency", "int8_ms"),
}


def summarize(figures: dict[str, results.Figures]) -> dict[str, Any]:
    """The figures of all stages as the flat object that results.json holds."""
    found = {k: figures[x][v] for k, (x, v) in _SUMMARY.items() if v in figures.get(x, {})}
    found["seconds"] = {stage: values["seconds"] for stage, values in figures.items()}
    return found


def remarks(summary: dict[str, Any]) -> list[str]:
    """What a user should not overlook: a float model that guesses, fine-tuning that does harm."""
    found = []
    if summary["float_accuracy"] <= summary.get("majority", -np.inf):
        found.append(
            "The float model is no better than always answering with the commonest class "
            f"({100 * summary['majority']:.2f} %). Are images and labels those it was trained on "
            "(pixels are 0 to 255, classes in the order of their names)? For training from "
            "scratch take more epochs or a smaller --batch_size."
        )
    lost = summary.get("calibrated_accuracy", 0.0) - summary.get("finetuned_accuracy", 1.0)
    if lost > _HARM:
        found.append(
            f"Fine-tuning lost {100 * lost:.2f} points against calibrated.keras: it may have "
            "diverged. Try a lower --learning_rate, or more --epochs."
        )
    return found


def text(summary: dict[str, Any]) -> str:
    """The summary as a table, the agreement and the time of each stage below it."""
    rows = [["", "accuracy", "bytes", "ms/image"]]
    for title, accuracy, prefix in (
        ("float", "float_accuracy", "float"),
        ("calibrated", "calibrated_accuracy", ""),
        ("fine-tuned", "finetuned_accuracy", ""),
        ("float, fine-tuned alike", "float_finetuned_accuracy", ""),
        ("integer .tflite", "tflite_accuracy", "tflite"),
    ):
        if accuracy in summary:
            size, ms = summary.get(f"{prefix}_bytes"), summary.get(f"{prefix}_ms")
            share = f"{100 * summary[accuracy]:.2f} %"
            rows.append([title, share, f"{size:,}" if size else "", f"{ms:.3f}" if ms else ""])
    lines = [tables.plain(rows)]
    if "exact" in summary:
        lines.append(
            f"Of the outputs of the .tflite {100 * summary['exact']:.2f} % are equal to its "
            "simulation's to the last bit."
        )
    if "agreement" in summary:
        reference = summary["reference_kernels"]
        lines.append(
            f"Both find the same class on {100 * summary['agreement']:.2f} % of the test images; "
            f"with LiteRT's reference kernels on "
            f"{100 * reference['argmax_agreement']:.2f} % of {reference['samples']:,} of them."
        )
    lines += _weights(summary)
    lines += remarks(summary)
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in summary["seconds"].items())
    return "\n".join([*lines, f"Seconds: {seconds}."])


def _weights(summary: dict[str, Any]) -> list[str]:
    """What weights became, a line each."""
    lines = []
    if "powers_of_two" in summary:
        lines.append(
            f"Of its weights {100 * summary['powers_of_two']:.2f} % are 0 or a power of two; they "
            f"differ from the trained ones by {summary['weights_max_difference']:g} at most."
        )
    if "zeros" in summary:
        lines.append(
            f"Of its weights {100 * summary['zeros']:.2f} % are 0; a layer has {summary['codes']} "
            f"different ones at most. In a zip it takes {summary['tflite_zipped_bytes']:,} bytes, "
            f"the float file {summary['float_zipped_bytes']:,}."
        )
    if "overflows" in summary:
        lines.append(f"Of the sums of a layer {100 * summary['overflows']:.3f} % at most overflow.")
    return lines
