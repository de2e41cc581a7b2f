"""`report`: measures a quantized model and its file, and writes the page."""

import functools
import os
import types
from typing import Any

import keras
import numpy as np

from kerasq import graph, quantize, unsupported
from kerasq.analysis.allocate import Allocation
from kerasq.analysis.operator_latency import OperatorLatency, operator_latency
from kerasq.analysis.sensitivity import Sensitivity
from kerasq.analysis.summary import Summary, summary
from kerasq.comparison.accuracy import by_output
from kerasq.graph import functional
from kerasq.litert.runtime import TFLiteModel, require_lite
from kerasq.reporting import layer_figures, page
from kerasq.reporting.advice import ASKED, Advice, advise
from kerasq.reporting.ends import Ends
from kerasq.reporting.layer_figures import LayerFigures
from kerasq.reporting.logs import curves_over_training
from kerasq.reporting.measure import Batch, FileMeasurement, Measurement
from kerasq.reporting.shown_samples import ShownSamples
from kerasq.reporting.verdict import NOTHING, ROUNDS, Verdict, of_file, rows, sensitivity_figures
from kerasq.support.data import labelled_count, with_labels
from kerasq.support.progress import track
from kerasq.support.shared import few_then


def report(
    model: keras.Model | None,
    lite: TFLiteModel,
    data: Any,
    path: str | os.PathLike,
    *,
    float_model: keras.Model | None = None,
    sensitivity: Sensitivity | Allocation | None = None,
    logs: str | os.PathLike | None = None,
    time_layers: bool = True,
) -> Verdict:
    """Writes one page that says where accuracy went, and what to do about it.

    The page is one HTML file that needs no network; a `.json` file beside it has the same figures.
    Each layer is measured on the integer model's values:

    - "own SQNR" is the noise that the layer adds itself, `10 log10(sum y^2 / sum (z - y)^2)` dB,
      with `z` what the file computes and `y` what the float layer makes of the file's own inputs;
    - "SQNR" is that of all layers up to there: `y` is the float network's value.

    The float network is that of the quantized model, its weights before they are put on grids;
    `float_model` stands for it at the outputs. Histograms are of at most 2^17 values of a layer in
    a batch, and only a batch is in memory. The milliseconds of a layer are those of its operators,
    each timed alone (`kerasq.operator_latency`), together.

    Args:
        model: the quantized model; None for what a file alone tells.
        lite: its export; any .tflite file where `model` is None.
        data: samples as for `kerasq.compare`, or `(x, y)` or batches `(x, y)` with labels, for an
            accuracy. Labels of several outputs are a dict by their names, or a list in their order.
        path: of the page, a name that ends in .html.
        float_model: the float model before quantization.
        sensitivity: what `kerasq.sensitivity` or `kerasq.allocate` returned, to show as well.
        logs: the folder of `kerasq.LogRanges`: ranges, clipped shares and SQNR over training.
        time_layers: whether to time layers, where LiteRT runs the file.

    Returns:
        The verdict, which prints as text; its `figures` are those of the `.json` file.

    Raises:
        ImportError: where Bokeh, which draws, is not installed.
        OSError: where the page cannot be written.
        ValueError: as `kerasq.compare`, for a path that does not end in ".html", and for `logs`
            without ranges.

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
    require_lite(lite)
    _check_sensitivity(sensitivity)
    curves = None if logs is None else curves_over_training(logs)
    found = _Found(model, lite, None if float_model is None else _checked(float_model))
    if model is None:
        found.measure_file(data)
    else:
        found.measure_model(model, data)
    if time_layers and lite.target == "litert":
        found.time_layers()
    figures = found.figures()
    figures["sensitivity"] = None if sensitivity is None else sensitivity_figures(sensitivity)
    figures["logs"] = curves
    page.write(path, f"kerasq report: {figures['model']}", "report", figures)
    return Verdict(figures=page.plain(figures), advice=tuple(found.advice))


def _checked(model: Any) -> keras.Model:
    """The float model; a ValueError for what is none."""
    found = quantize.float_model(model)
    functional.check(found)
    return found


def _check_sensitivity(found: Any) -> None:
    """Raises a ValueError unless there is a table of sensitivities, or none."""
    if found is not None and not isinstance(found, (Sensitivity, Allocation)):
        raise ValueError(
            "`sensitivity` must be what kerasq.sensitivity or kerasq.allocate returned. "
            f"Received: {found!r:.80}."
        )


class _Found:
    """What a report shows, as it is found.

    Args:
        model: the quantized model, or None.
        lite: the file.
        float_model: the float model, or None.

    Attributes:
        advice: what to try next.
    """

    def __init__(
        self, model: keras.Model | None, lite: TFLiteModel, float_model: keras.Model | None
    ) -> None:
        self._lite, self._float_model = lite, float_model
        self._predict = None
        if float_model is not None:
            first = functools.partial(float_model, training=False)
            self._predict = few_then(first, float_model.predict_on_batch)
        self._name = "The file" if model is None else model.name
        self._ends, self._shown = Ends(lite.output_names), ShownSamples()
        self._layers: list[LayerFigures] = []
        self._floats: dict[str, str] = {}
        self._costs: Summary | None = None
        self._times: OperatorLatency | None = None
        self.advice: list[Advice] = []

    def measure_model(self, model: keras.Model, data: Any) -> None:
        """Measures a quantized model and its file."""
        measured = Measurement(model, self._lite, labelled_count(model, data))
        found = with_labels(model, data, measured.chunk)
        for x, labels in track(found, measured.total, "batch"):
            batch = self._referred(measured.add(x), x)
            self._add(x, labels, batch)
        self._costs = summary(model)
        self._layers = layer_figures.of_model(
            model, self._lite, measured, self._costs, self._float_model
        )
        self._floats = _floats(model, self._float_model)

    def measure_file(self, data: Any) -> None:
        """Measures a file alone."""
        measured, ends = FileMeasurement(self._lite), _ends_of(self._lite)
        for x, labels in with_labels(ends, data, measured.chunk):
            batch = self._referred(measured.add(x), x if len(x) > 1 else x[0])
            self._add(x, labels, batch)
        self._layers = layer_figures.of_file(self._lite, measured)

    def time_layers(self) -> None:
        """Times the operators of the file."""
        self._times = operator_latency(self._lite, rounds=ROUNDS)
        self._layers = layer_figures.timed(self._layers, self._lite, self._times)

    def _referred(self, batch: Batch, x: Any) -> Batch:
        """A batch whose reference is what the float model predicts, where there is one.

        Raises:
            ValueError: for a model of other outputs.
        """
        if self._predict is None:
            return batch
        outputs = [np.asarray(y) for y in keras.tree.flatten(self._predict(x))]
        shapes = [y.shape for y in outputs], [y.shape for y in batch.computed]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "`float_model` must be the model before quantization, with its outputs. "
                f"Received: outputs of shape {shapes[0]} beside those of the file, {shapes[1]}."
            )
        return Batch(reference=outputs, simulated=batch.simulated, computed=batch.computed)

    def _add(self, x: Any, labels: Any, batch: Batch) -> None:
        self._ends.add(batch, labels)
        # What is shown are samples of the first input and output.
        first = by_output(labels, self._lite.output_names)[0]
        self._shown.add(np.asarray(keras.tree.flatten(x)[0]), first, batch)

    def _target(self) -> str | None:
        """What the file was made for; None where another interpreter runs it here."""
        made = self._lite.made
        if made is None:
            return self._lite.target
        return made.target if made.runtime == self._lite.target else None

    def _class_names(self) -> list[str]:
        """The file's names for the values of the first output, of which samples are shown."""
        names, first = self._lite.labels, self._lite.outputs[0]
        return [*names] if len(names) == first.shape[-1] else []

    def figures(self) -> dict[str, Any]:
        """All figures, for JSON."""
        from kerasq import __version__  # It is the last thing that kerasq defines.

        ends, file = self._ends.figures(), of_file(self._lite)
        self.advice = advise(self._layers, self._floats, ends["sqnr"].get("file"), self._target())
        verdict = {**ends, **file, "stays_float": self._floats}
        if self._costs is not None:
            verdict["activation_bytes"] = self._costs.peak_activation_bytes
            verdict["troubles"] = [str(x) for x in self._costs.troubles]
        if self._times is not None:
            verdict["operators_ms"] = self._times.sum_ms
        if self._float_model is not None:
            verdict["float_bytes"] = 4 * self._float_model.count_params()
        return {
            "kerasq": __version__,
            "model": self._name,
            "samples": self._ends.samples,
            "nothing": NOTHING[bool(ends["sqnr"])],
            "disagreeing": self._shown.disagreeing,
            "verdict": verdict,
            "advice": [vars(x) for x in self.advice],
            "layers": rows(self._layers),
            "labels": self._class_names(),
            "shown": self._shown.figures(),
        }


def _ends_of(lite: TFLiteModel) -> Any:
    """What samples are read and checked by, as for a Keras model: the inputs of a file."""
    inputs = [
        # Any number of samples is cut, or filled up, to what a call takes.
        keras.KerasTensor((None, *tensor.shape[1:]), "float32", name=name)
        for tensor, name in zip(lite.inputs, lite.input_names, strict=True)
    ]
    return types.SimpleNamespace(inputs=inputs, input=inputs)


def _floats(model: keras.Model, float_model: keras.Model | None) -> dict[str, str]:
    """By name of a layer that stays float, why."""
    found = {name: f"{kind}" for name, kind in layer_figures.operator_of(model).items()}
    if not found or float_model is None:
        return found
    graphed = graph.read(float_model, unsupported.is_closed)
    reasons = unsupported.without_kernel(graphed, frozenset())
    return {
        name: _reason(name, kind, reasons.get(name))
        for name, kind in found.items()
        # Of what has no remark, such as Embedding, integers may come all the same.
        if reasons.get(name) != ""
    }


def _reason(name: str, kind: str, text: str | None) -> str:
    """Why a layer stays float; None where it could be integer."""
    # The text begins with the name, which is told already.
    return f"{kind}, {ASKED}" if text is None else text.removeprefix(f"{name!r} ").strip("()")
