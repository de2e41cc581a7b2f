"""`report`: measures a quantized model and its file, and writes the page."""

import os
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from kerasq import graph, unsupported
from kerasq.analysis.allocate import Allocation
from kerasq.analysis.sensitivity import Sensitivity
from kerasq.analysis.summary import summary
from kerasq.litert.runtime import TFLiteModel
from kerasq.reporting import layer_figures, page
from kerasq.reporting.advice import advise
from kerasq.reporting.ends import Ends
from kerasq.reporting.measure import Batch, FileMeasurement, Measurement, cut
from kerasq.reporting.shown_samples import ShownSamples
from kerasq.reporting.verdict import Verdict, of_file, rows, sensitivity_figures
from kerasq.support.data import sample_count, with_labels
from kerasq.support.progress import track


def report(
    model: keras.Model | None,
    lite: TFLiteModel,
    data: Any,
    path: str | os.PathLike,
    *,
    float_model: keras.Model | None = None,
    sensitivity: Sensitivity | Allocation | None = None,
) -> Verdict:
    """Writes one page that says where accuracy went, and what to do about it.

    The page is one HTML file that needs no network; a `.json` file beside it has the same figures.
    Each layer is measured on the integer model's values:

    - "own SQNR" is the noise that the layer adds itself, `10 log10(sum y^2 / sum (z - y)^2)` dB,
      with `z` what the file computes and `y` what the float layer makes of the file's own inputs;
    - "SQNR" is that of all layers up to there: `y` is the float network's value.

    The float network is that of the quantized model, its weights before they are put on grids;
    `float_model` stands for it at the outputs. Histograms are of at most 2^18 values of a layer in
    a batch, and only a batch is in memory. Times of single layers are missing: LiteRT's Python
    package has no profiler of operators.

    Args:
        model: the quantized model; None for what a file alone tells.
        lite: its export; any .tflite file where `model` is None.
        data: samples as for `kerasq.compare`, or `(x, y)` or batches `(x, y)` with labels, for an
            accuracy.
        path: of the page, "*.html".
        float_model: the float model before quantization.
        sensitivity: what `kerasq.sensitivity` or `kerasq.allocate` returned, to show as well.

    Returns:
        The verdict, which prints as text; its `figures` are those of the `.json` file.

    Raises:
        ImportError: where Bokeh, which draws, is not installed.
        OSError: where the page cannot be written.
        ValueError: as `kerasq.compare`, and for a path that does not end in ".html".

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> x, q = np.random.default_rng(0).normal(size=(32, 4)), kerasq.quantize_model(model)
        >>> kerasq.calibrate(q, x)
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     verdict = kerasq.report(q, kerasq.export_tflite(q), x, f"{folder}/report.html")
        >>> verdict.figures["verdict"]["agreement"]["simulated file"]
        1
    """
    page.check_path(path)
    if not isinstance(lite, TFLiteModel):
        raise ValueError(
            "`lite` must be a TFLiteModel. "
            f"Received: {lite!r:.80}. Load a file with kerasq.TFLiteModel(path)."
        )
    ends, shown = Ends(), ShownSamples()
    if model is None:
        layers, costs, floats = _measured_file(lite, data, float_model, ends, shown), None, {}
    else:
        measured = Measurement(model, lite, _count(model, data))
        for x, labels, batch in _model_batches(model, measured, data, float_model):
            ends.add(batch, labels)
            shown.add(_first(x), labels, batch)
        costs = summary(model)
        layers = layer_figures.of_model(model, measured, costs, float_model)
        floats = _floats(model, float_model)
    found = ends.figures()
    target = of_file(lite)["target"] or "litert"
    advice = advise(layers, floats, found["sqnr"].get("file"), target)
    name = lite.output_names[0] if model is None else model.name
    from kerasq import __version__  # It is the last thing that kerasq defines.

    figures: dict[str, Any] = {
        "kerasq": __version__,
        "model": name,
        "samples": ends.samples,
        "disagreeing": shown.disagreeing,
        "verdict": {**found, **of_file(lite), "stays_float": floats},
        "advice": [vars(x) for x in advice],
        "layers": rows(layers),
        "shown": shown.figures(),
        "sensitivity": None if sensitivity is None else sensitivity_figures(sensitivity),
    }
    if costs is not None:
        figures["verdict"]["activation_bytes"] = costs.peak_activation_bytes
        figures["verdict"]["troubles"] = [str(x) for x in costs.troubles]
    if float_model is not None:
        figures["verdict"]["float_bytes"] = 4 * float_model.count_params()
    page.write(path, f"kerasq report: {name}", "report", figures)
    return Verdict(figures=page.plain(figures), advice=tuple(advice))


def _count(model: keras.Model, data: Any) -> int | None:
    """How many samples there are, where that is known before."""
    x = data[0] if isinstance(data, tuple) and len(data) == 2 else data
    return sample_count(model, x)


def _model_batches(
    model: keras.Model, measured: Measurement, data: Any, float_model: keras.Model | None
) -> Iterator[tuple[Any, Any, Batch]]:
    """Each batch with its labels, measured."""
    for x, labels in track(with_labels(model, data, measured.chunk), measured.total, "batch"):
        batch = measured.add(x)
        yield x, labels, _referred(batch, float_model, x)


def _referred(batch: Batch, float_model: keras.Model | None, x: Any) -> Batch:
    """A batch whose reference is what the float model predicts, where there is one.

    Raises:
        ValueError: for a model of other outputs.
    """
    if float_model is None:
        return batch
    outputs = [np.asarray(y) for y in keras.tree.flatten(float_model(x, training=False))]
    shapes = [y.shape for y in outputs], [y.shape for y in batch.computed]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "`float_model` must be the model before quantization, with its outputs. "
            f"Received: outputs of shape {shapes[0]} beside those of the file, {shapes[1]}."
        )
    return Batch(reference=outputs, simulated=batch.simulated, computed=batch.computed)


def _measured_file(
    lite: TFLiteModel, data: Any, float_model: keras.Model | None, ends: Ends, shown: ShownSamples
) -> list[layer_figures.LayerFigures]:
    """The figures of a file alone."""
    measured = FileMeasurement(lite)
    for x, labels in _file_batches(lite, data, measured.chunk):
        batch = _referred(measured.add(x), float_model, x if len(x) > 1 else x[0])
        ends.add(batch, labels)
        shown.add(x[0], labels, batch)
    return layer_figures.of_file(lite, measured)


def _file_batches(
    lite: TFLiteModel, data: Any, size: int
) -> Iterator[tuple[list[np.ndarray], np.ndarray | None]]:
    """Batches of arrays, or of a dataset, with their labels."""
    if hasattr(data, "shape") or isinstance(data, (dict, list)):
        yield from ((x, None) for x in cut(lite.columns(data), size))
    elif isinstance(data, tuple) and len(data) == 2 and hasattr(data[0], "shape"):
        columns, labels = lite.columns(data[0]), np.asarray(data[1])
        parts = range(0, len(labels), size)
        for x, start in zip(cut(columns, size), parts, strict=True):
            yield x, labels[start : start + size]
    else:
        for batch in data:
            is_pair = isinstance(batch, tuple)
            x = lite.columns(batch[0] if is_pair else batch)
            yield x, np.asarray(batch[1]) if is_pair and len(batch) > 1 else None


def _first(x: Any) -> np.ndarray:
    return np.asarray(keras.tree.flatten(x)[0])


def _floats(model: keras.Model, float_model: keras.Model | None) -> dict[str, str]:
    """By name of a layer that stays float, why."""
    found = {name: f"{kind}" for name, kind in layer_figures.operator_of(model).items()}
    if not found or float_model is None:
        return found
    graphed = graph.read(float_model, unsupported.is_closed)
    reasons = unsupported.without_kernel(graphed, frozenset())
    return {
        name: reasons.get(name) or f"{kind}, as it was asked for" for name, kind in found.items()
    }
