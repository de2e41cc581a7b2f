"""What programs of `tools.fuzzing.programs` call, and what their outcome is called."""

import contextlib
import dataclasses
import io
import random
import re
import traceback
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

import kerasq
from kerasq import graph
from kerasq.support.data import batch_spec

# Inputs of this name are integers below this.
INDICES = 7
# How values lie.
KINDS = (
    *("normal", "ties", "wide", "constant", "zeros", "tiny", "huge", "spike", "positive"),
    "dead",  # Channels of 0 alone, which files go without.
)


class DifferentError(Exception):
    """The file computes something else than its model."""


class NoModelError(Exception):
    """The float model does not run."""


class Verdict(NamedTuple):
    """How a program ended.

    Attributes:
        kind: "exported", "refused" (by a rule), "none" (the float model does not run), or one of
            `FAILURES`.
        detail: the error; "" where there was none.
    """

    kind: str
    detail: str

    @property
    def signature(self) -> str:
        """The kind and what is the same in all errors of one cause."""
        text = re.sub(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]", "_", self.detail)
        return f"{self.kind}: {re.sub(r'[-+]?[0-9][0-9.e+-]*', '#', text)[:160]}"


# What must not be: "unlowered" is a layer that was quantized, and found to have no integer form
# only at export; "raw" an error that is none of kerasq's.
FAILURES = ("difference", "unloadable", "unlowered", "raw", "crash", "hang")


@dataclasses.dataclass
class Tally:
    """What examples did.

    Attributes:
        counts: how many ended in what, by `Verdict.kind`.
        refusals: how often each rule refused one.
        failures: by signature, the smallest example that fails so, and its error.
        running: the example that runs.
    """

    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    refusals: dict[str, int] = dataclasses.field(default_factory=dict)
    failures: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    running: str = ""

    @property
    def done(self) -> int:
        """How many ended."""
        return sum(self.counts.values())

    def count(self, verdict: Verdict) -> None:
        """Counts an example."""
        self.counts[verdict.kind] = self.counts.get(verdict.kind, 0) + 1
        if verdict.kind == "refused":
            name = verdict.signature
            self.refusals[name] = self.refusals.get(name, 0) + 1

    def fail(self, example: str, verdict: Verdict) -> None:
        """Keeps an example that fails, if it is the smallest one of its kind."""
        smallest = self.failures.get(verdict.signature)
        if smallest is None or len(example) < len(smallest[0]):
            self.failures[verdict.signature] = example, verdict.detail


def _values(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    normal = rng.normal(0.0, 1.0, shape)
    found = {
        "ties": np.round(normal * 2) / 2,
        "wide": normal * np.logspace(-3, 3, shape[-1] if shape else 1),
        "constant": np.full(shape, 0.7),
        "zeros": np.zeros(shape),
        "tiny": normal * 1e-10,
        "huge": normal * 1e6,
        "spike": np.where(rng.uniform(size=shape) < 0.05, 100.0, normal),
        "positive": np.abs(normal) + 0.1,
        "dead": normal * _channels(rng, shape),
    }
    return np.asarray(found.get(kind, normal), "float32")


def _channels(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """1, or 0 for some channels, in the last axes: those that a kernel reads, and makes."""
    parts = [rng.uniform(size=(size, *[1] * i)) < 0.6 for i, size in enumerate(shape[:-3:-1])]
    return np.prod(np.broadcast_arrays(np.ones(shape), *parts), axis=0)


def fill(model: keras.Model, kind: str, seed: int) -> None:
    """Gives a model weights of a kind, variances that are positive."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "float" in weight.dtype:
            values = _values(rng, kind, tuple(weight.shape))
            values = np.abs(values) if "variance" in weight.path else values
            weight.assign(values.reshape(weight.shape))


def samples(model: keras.Model, kind: str, count: int, seed: int) -> list[np.ndarray]:
    """Samples of a kind for each input of a model."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, INDICES, (count, *x.shape[1:])).astype("float32")
        if x.name == "indices"
        else _values(rng, kind, (count, *x.shape[1:]))
        for x in model.inputs
    ]


def run(model: keras.Model, x: list[np.ndarray]) -> None:
    """Runs a float model.

    Raises:
        NoModelError: where it cannot.
    """
    try:
        outputs = model(x, training=False)
        # Some run for few samples alone, which broadcast, as files of others would not.
        model([np.repeat(values[:1], 3, 0) for values in x], training=False)
        # Some models run, but not traced for any number of samples, or in TensorFlow's graphs.
        tf.function(model, [batch_spec(model.input)], autograph=False)(x)
    except Exception as error:
        raise NoModelError(str(error)) from error
    if any(np.isnan(y).any() for y in map(np.asarray, keras.tree.flatten(outputs))):
        raise NoModelError("NaN")


def layer_of(tensor: keras.KerasTensor) -> Any:
    """The layer that made a tensor."""
    return graph.origin(tensor)[0]


def train(model: keras.Model, x: list[np.ndarray]) -> None:
    """One step towards zeros.

    Raises:
        NoModelError: where no output has a gradient, as of labels.
    """
    model.compile(keras.optimizers.SGD(1e-3), "mse", run_eagerly=True)
    # Outputs may have other rows than inputs, behind a reshape. Before training there is no range.
    outputs = keras.tree.flatten(model(x, training=True))
    zeros = [np.zeros(y.shape, "float32") for y in outputs]
    try:
        model.train_on_batch(x, zeros)
    except ValueError as error:
        if "No gradients" in str(error):
            raise NoModelError(str(error)) from error
        raise


def compare(model: keras.Model, lite: kerasq.TFLiteModel, x: list[np.ndarray]) -> None:
    """Compares a model with its file, also on values beyond its ranges.

    Raises:
        DifferentError: where integer outputs, or an integer layer between float ones, differ.
    """
    for data in (x, _beyond(model, x)):
        if lite.float_ops:
            _compare_layers(model, lite, data)
            continue
        found = lite.predict(data)
        computed = [found] if len(lite.outputs) == 1 else [found[n] for n in lite.output_names]
        simulated = keras.tree.flatten(model(data, training=False))
        for a, b in zip(map(np.asarray, simulated), computed, strict=True):
            if not np.array_equal(a, b, equal_nan=True):
                share = 100 * np.mean(a != b)
                raise DifferentError(f"outputs differ in {share:.3g} % of their values")


def _beyond(model: keras.Model, x: list[np.ndarray]) -> list[np.ndarray]:
    """Samples that ranges clip."""
    factors = [1 if tensor.name == "indices" else 3 for tensor in model.inputs]
    return [factor * values for factor, values in zip(factors, x, strict=True)]


def _compare_layers(model: keras.Model, lite: kerasq.TFLiteModel, x: list[np.ndarray]) -> None:
    report = kerasq.compare(model, lite, x=[x])
    for layer in report.layers:
        known = _known(layer.dtype, lite.target) if layer.op == "QUANTIZE" else (0,)
        if layer.max_lsb not in (*known, None):
            raise DifferentError(f"{layer.op} {layer.name!r} is {layer.max_lsb} steps off")


def _known(dtype: str, target: str) -> tuple[int, ...]:
    """Steps that the QUANTIZE of an island's values may be off."""
    # Of what is 2^31 steps beyond its range each processor makes another int32, and the one end or
    # the other of the range. XNNPACK's on int8 does not pass through int32.
    if dtype == "int16":
        # Of the last values of a tensor, which eight do not divide, LiteRT rounds the quotient by
        # a scale, not the product with its inverse.
        return (0, 1, 2**16 - 1)
    return (0, 2**8 - 1) if target == "tflm" else (0,)


def outcome(program: str) -> Verdict:
    """Runs a program."""
    random.seed(0)  # Of weights and dropout.
    try:
        with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            exec(compile(program, "<program>", "exec"), {})
    except Exception as error:
        return _judged(error)
    return Verdict("exported", "")


def _judged(error: Exception) -> Verdict:
    text = " ".join(str(error).split())
    if isinstance(error, NoModelError):
        return Verdict("none", text)
    if isinstance(error, DifferentError) or "this is a fault of kerasq's" in text:
        return Verdict("difference", text)
    if "must load in the LiteRT interpreter" in text:
        return Verdict("unloadable", text)
    if "Every operator must have an integer form" in text:
        return Verdict("unlowered", text)
    if is_by_rule(error):
        return Verdict("refused", text)
    frames = [x for x in traceback.extract_tb(error.__traceback__) if "/kerasq/" in x.filename]
    place = f" in {frames[-1].filename.rpartition('/')[2]}, {frames[-1].name}" if frames else ""
    return Verdict("raw", f"{type(error).__name__}{place}: {text}")


def is_by_rule(error: Exception) -> bool:
    """Whether an error is one of kerasq's or the recipes' own that says what it received."""
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    is_own = re.search(r"/(kerasq|recipes)/[a-z_0-9/]+\.py$", place) is not None
    return is_own and isinstance(error, (ValueError, OSError)) and "Received:" in str(error)
