"""`post_training`: all that can be done for a model without training it, step by step, measured."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from kerasq import graph, targets
from kerasq.calibration.calibrate import BATCH_SIZE, calibrate
from kerasq.calibration.without_data import calibrate_without_data
from kerasq.equalization.absorb import absorb_biases
from kerasq.equalization.equalize import equalize
from kerasq.ptq import reference
from kerasq.ptq.adaround import adaround
from kerasq.ptq.bias_correction import correct_biases
from kerasq.ptq.seq_mse import seq_mse
from kerasq.ptq.units import calls_of_kernels
from kerasq.quantize import quantize_model
from kerasq.scales import FREE
from kerasq.support import tables
from kerasq.support.data import batches
from kerasq.support.sqnr import sqnr
from kerasq.wrappers import infer, infer_float

# Of five samples one is held back, to measure what a step has gained.
HELD_BACK = 5
# In the order in which they are done; those of the float model come first.
STEPS = ("equalize", "absorb", "ranges", "round", "correct", "correct_by_statistics")
NEEDS_DATA = ("ranges", "round", "correct")
_FLOAT_STEPS = ("equalize", "absorb")
# What a model must have the statistics of BatchNormalization for.
_BY_STATISTICS = ("absorb", "correct_by_statistics")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PostTrainingStep:
    """What a step of `post_training` gained.

    Attributes:
        name: the step; "calibrate" is what all start from.
        sqnr: of the outputs for the samples held back, in dB, beside the float model's; of several
            outputs the least. None where nothing is measured, for want of data.
        agreement: the share of them that get the class that the float model gives them; None where
            outputs are no classes.
        kept: whether the step is part of the model.
        seconds: what it took, its measurement included.
    """

    name: str
    sqnr: float | None
    agreement: float | None
    kept: bool
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PostTraining:
    """What `post_training` did. Printing it gives a table.

    Attributes:
        model: the quantized model, for `kerasq.export_tflite`.
        steps: what was tried, in order.
        held_back: how many samples that was measured on.
    """

    model: keras.Model
    steps: tuple[PostTrainingStep, ...]
    held_back: int

    def __str__(self) -> str:
        rows = [["step", "SQNR (dB)", "same class as float (%)", "kept", "seconds"]]
        for x in self.steps:
            figures = ["" if x.sqnr is None else f"{x.sqnr:.2f}"]
            figures.append("" if x.agreement is None else f"{100 * x.agreement:.1f}")
            rows.append([x.name, *figures, "yes" if x.kept else "no", f"{x.seconds:.1f}"])
        text = f"Measured on {self.held_back} samples, held back." if self.held_back else ""
        return f"{tables.plain(rows)}\n\n{text or 'Without data nothing is measured.'}"


def post_training(
    model: keras.Model,
    data: Any = None,
    *,
    scheme: str = "w8a8",
    recipe: str | Sequence[str] = "auto",
    overrides: dict[str, str] | None = None,
    granularity: str = "per_channel",
    keep_zeros: bool = False,
    target: str | targets.Target = targets.DEFAULT,
    input_range: Any = None,
    iterations: int = 1000,
    steps: int | None = None,
    seed: int = 0,
    scales: str = FREE,
) -> PostTraining:
    """Quantizes a float model as well as it goes without training; prints what each step gained.

    The model is quantized and calibrated, its BatchNormalization folded. Then each step of the
    recipe is tried, in the order of this table, and kept where it raises the SQNR of the outputs
    for samples held back, every fifth one:

    - "equalize": `kerasq.equalize`,
    - "absorb": `kerasq.absorb_biases`,
    - "ranges": `kerasq.seq_mse`, of weights of fewer than 8 bits,
    - "round": `kerasq.adaround`,
    - "correct": `kerasq.correct_biases` with the data, unless weights were rounded,
    - "correct_by_statistics": the same without data, in seconds, unless biases were corrected or
      weights rounded.

    Where the statistics of BatchNormalization do not say enough for a step, that is printed.
    Without data it is `kerasq.calibrate_without_data` and what needs none, unmeasured: "equalize",
    "absorb" and "correct_by_statistics".

    Args:
        model: as for `quantize_model`. It is not changed.
        data: as for `calibrate`, two samples or more; all are kept in memory. None for none.
        scheme: as for `quantize_model`.
        recipe: names of steps; or "auto": "ranges" and "round" where weights of a layer have fewer
            than 8 bits, by `scheme` or `overrides`, "equalize" and "absorb" where weights have one
            scale a tensor, "correct" in both cases, and "correct_by_statistics": at 8 bits it takes
            little longer than to calibrate.
        overrides: as for `quantize_model`.
        granularity: as for `quantize_model`.
        keep_zeros: as for `quantize_model`: whether "round" must leave weights of 0 at 0.
        target: as for `quantize_model`.
        input_range: as for `calibrate_without_data`; without data only.
        iterations: of `adaround`, for each layer.
        steps: the most batches of `data` to use (32 samples each where it is an array).
        seed: of the draws.
        scales: as for `quantize_model`.

    Returns:
        The quantized model, `.model`, and the steps.

    Raises:
        ValueError: as `quantize_model`, `calibrate` or `calibrate_without_data`; for an unknown
            step, one that needs data without any, and fewer than two samples.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> x = np.random.default_rng(0).normal(size=(64, 4))
        >>> found = kerasq.post_training(model, x, recipe="correct")  # doctest: +ELLIPSIS
        step ...
        >>> lite = kerasq.export_tflite(found.model)
    """
    options: dict[str, Any] = {
        "scheme": scheme,
        "overrides": overrides,
        "granularity": granularity,
        "keep_zeros": keep_zeros,
        "target": target,
        "scales": scales,
    }
    names = _named(recipe, data is not None)
    if data is None and input_range is None:
        raise ValueError(
            "`input_range` must be given without data: the ends of what the model is fed, such as "
            "(0, 255). Received: neither."
        )
    quantized = quantize_model(model, **options)
    if recipe == "auto":
        names = _automatic(quantized, granularity, data is not None)
    parts = None if data is None else _parts(quantized, data, steps)
    run = _Run(options, parts, input_range, {"iterations": iterations, "seed": seed})
    run.start(model, quantized)
    for name in STEPS:
        if name in names:
            run.step(name)
    found = PostTraining(model=run.model, steps=tuple(run.steps), held_back=run.held_back)
    print(found)
    return found


def _automatic(quantized: keras.Model, granularity: str, has_data: bool) -> set[str]:
    """The steps of "auto", by what the layers of a quantized model have."""
    names = {"correct_by_statistics"}
    layers = [call for calls in calls_of_kernels(quantized).values() for call in calls]
    if any(layer.bits.weight_bits < 8 for layer in layers):
        names |= {"ranges", "round", "correct"}
    if granularity == "per_tensor":
        names |= {*_FLOAT_STEPS, "correct"}
    return names if has_data else names - {*NEEDS_DATA}


def _named(recipe: str | Sequence[str], has_data: bool) -> set[str]:
    """The steps that a recipe names; none of "auto".

    Raises:
        ValueError: for unknown ones, and those that need data without any.
    """
    if recipe == "auto":
        return set()
    names = {recipe} if isinstance(recipe, str) else {*recipe}
    if unknown := sorted(names - {*STEPS}):
        raise ValueError(f'`recipe` must be "auto" or names among {[*STEPS]}. Received: {unknown}.')
    if not has_data and (lacking := sorted(names & {*NEEDS_DATA})):
        raise ValueError(
            f"`data` must be given for the steps {[*NEEDS_DATA]}. Received: none, and {lacking} in "
            "`recipe`."
        )
    return names


def _parts(model: keras.Model, data: Any, steps: int | None) -> tuple[Any, Any]:
    """The samples to work with, and those held back to measure on.

    Raises:
        ValueError: where there are fewer than two.
    """
    found = [*batches(model, data, BATCH_SIZE, steps)]
    whole = keras.tree.map_structure(lambda *x: np.concatenate(x), *found)
    count = len(keras.tree.flatten(whole)[0])
    if count < 2:
        raise ValueError(
            "`data` must hold two samples or more, one to work with and one to measure on. "
            f"Received: {count}. Some hundred are better."
        )
    # The last of each five: of two the second.
    held = np.arange(1, count + 1) % HELD_BACK == 0
    held[-1] |= count < HELD_BACK
    return tuple(
        keras.tree.map_structure(lambda x, own=own: x[own], whole) for own in (~held, held)
    )


class _Run:
    """The work on one model.

    Args:
        options: of `quantize_model`.
        parts: the samples to work with, and those held back; None without data.
        input_range: without data, what the model is fed.
        rounding: options of `adaround`.

    Attributes:
        model: the quantized model, with all steps that were kept.
        steps: what was tried.
        held_back: how many samples that was measured on.
    """

    def __init__(
        self,
        options: dict[str, Any],
        parts: tuple[Any, Any] | None,
        input_range: Any,
        rounding: dict[str, Any],
    ) -> None:
        self._options, self._input_range, self._rounding = options, input_range, rounding
        self._data: Any
        self._held: Any
        self._data, self._held = parts or (None, None)
        self.held_back = 0 if parts is None else len(keras.tree.flatten(self._held)[0])
        self.steps: list[PostTrainingStep] = []

    def start(self, source: keras.Model, quantized: keras.Model) -> None:
        """Calibrates: what all steps start from."""
        started = time.monotonic()
        self._source, self.model = source, self._calibrated(quantized)
        # What float layers compute is the same in all that follows.
        self._wanted = self._outputs(quantized, infer_float)
        self._note("calibrate", self._measured(quantized), True, started)

    def step(self, name: str) -> None:
        """Tries a step, and keeps it where it helps; where nothing is measured, always."""
        started = time.monotonic()
        before = [(v, v.numpy()) for v in self.model.weights]
        try:
            found = self._tried(name)
        except ValueError as error:
            if name not in _BY_STATISTICS:
                raise
            print(f"Not tried: {name}. {error}")
            return
        if found is None:
            return
        source, model = found
        figures = self._measured(model)
        kept = figures[0] is None or figures[0] > self._best()
        if kept:
            self._source, self.model = source, model
        elif model is self.model:
            for variable, value in before:
                variable.assign(value)
            reference.unmark(model)
        self._note(name, figures, kept, started)

    def _tried(self, name: str) -> tuple[keras.Model, keras.Model] | None:
        """The float and the quantized model behind a step; None where it has nothing to do."""
        if name in _FLOAT_STEPS:
            source = self._changed_float(name)
            if source is None:
                return None
            return source, self._calibrated(quantize_model(source, **self._options))
        if name.startswith("correct") and reference.changed_by(self.model):
            return None
        ways: dict[str, Callable[[], Any]] = {
            "ranges": lambda: seq_mse(self.model, self._data, seed=self._rounding["seed"]),
            "round": lambda: adaround(self.model, self._data, **self._rounding),
            "correct": lambda: correct_biases(self.model, self._data),
            "correct_by_statistics": lambda: correct_biases(
                self.model, input_range=self._input_range
            ),
        }
        return (self._source, self.model) if ways[name]().layers else None

    def _changed_float(self, name: str) -> keras.Model | None:
        if name == "equalize":
            equalized = equalize(self._source, self._data)
            return equalized.model if equalized.layers else None
        absorbed = absorb_biases(self._source)
        return absorbed.model if absorbed.layers else None

    def _calibrated(self, model: keras.Model) -> keras.Model:
        if self._data is None:
            calibrate_without_data(model, self._input_range)
        else:
            calibrate(model, self._data)
        return model

    def _best(self) -> float:
        """The SQNR of the model as it is."""
        return max(x.sqnr for x in self.steps if x.kept and x.sqnr is not None)

    def _outputs(self, model: keras.Model, call: Callable[..., Any]) -> list[np.ndarray]:
        """The outputs for the samples held back; none without."""
        if self._held is None:
            return []
        found = [
            # Not traced: that takes longer than to run it on a few batches.
            [keras.ops.convert_to_numpy(y) for y in graph.run(model, x, call)]
            for x in batches(model, self._held, BATCH_SIZE)
        ]
        return [np.concatenate(y) for y in zip(*found, strict=True)]

    def _measured(self, model: keras.Model) -> tuple[float | None, float | None]:
        """SQNR and agreement of a quantized model; None for what cannot be measured."""
        outputs = self._outputs(model, infer)
        if not outputs:
            return None, None
        pairs = [*zip(self._wanted, outputs, strict=True)]
        ratio = min(sqnr(_power(y - z) / (_power(y) or 1.0)) for y, z in pairs)
        classes = [(y, z) for y, z in pairs if y.ndim == 2 and y.shape[-1] > 1]
        same = [y.argmax(-1) == z.argmax(-1) for y, z in classes]
        return ratio, float(np.mean(same)) if same else None

    def _note(
        self, name: str, figures: tuple[float | None, float | None], kept: bool, started: float
    ) -> None:
        seconds = time.monotonic() - started
        own = PostTrainingStep(
            name=name, sqnr=figures[0], agreement=figures[1], kept=kept, seconds=seconds
        )
        self.steps.append(own)


def _power(x: np.ndarray) -> float:
    return float(np.sum(np.square(x, dtype=np.float64)))
