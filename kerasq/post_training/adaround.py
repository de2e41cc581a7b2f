"""`adaround`: weights rounded up or down so that each layer's output stays, not to the nearest."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph
from kerasq.calibration.calibrate import BATCH_SIZE
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.post_training import reference
from kerasq.post_training.bias_correction import calls_of_kernels
from kerasq.quantizers.uniform import Uniform
from kerasq.retargeting import retarget
from kerasq.support import tables
from kerasq.support.data import batch_spec, batches
from kerasq.support.progress import track
from kerasq.support.restore import restored_on_error
from kerasq.support.sqnr import sqnr
from kerasq.wrappers import infer, infer_float, target_of

# Nagel et al. 2020: the rectified sigmoid's ends, the weight of the regularizer, the exponents that
# it goes through, and the share of the iterations before it sets in.
ZETA, GAMMA = 1.1, -0.1
REGULARIZER, EXPONENTS, WARM_START = 0.01, (20.0, 2.0), 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rounding:
    """What `adaround` did. Printing it gives a table.

    Attributes:
        layers: the layers that were rounded, in the order of the model.
        nearest, learned: by layer, the SQNR of its output in dB, by nearest rounding and as it is
            now, each on inputs from the quantized layers before.
        moved: by layer, the share of its weights that are not rounded to the nearest code.
        left: layers that are called more than once, or whose weights are not uniform, or have
            fewer than 8 bits and a range that follows them.
    """

    layers: tuple[str, ...]
    nearest: tuple[float, ...]
    learned: tuple[float, ...]
    moved: tuple[float, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        rows = [["layer", "nearest (dB)", "learned (dB)", "moved (%)"]]
        columns = zip(self.layers, self.nearest, self.learned, self.moved, strict=True)
        rows += [[name, f"{a:.1f}", f"{b:.1f}", f"{100 * c:.1f}"] for name, a, b, c in columns]
        left = f"\n\nLeft as they are: {', '.join(self.left)}." if self.left else ""
        return tables.plain(rows) + left


def adaround(
    model: keras.Model,
    data: Any,
    *,
    iterations: int = 2000,
    batch_size: int = 32,
    learning_rate: float = 1e-2,
    steps: int | None = None,
    seed: int = 0,
) -> Rounding:
    """Rounds the weights of a calibrated model up or down, layer by layer, to keep their outputs.

    Minimizes, over V of the shape of the kernel (Nagel et al. 2020, arXiv 2004.10568, section 3),

        mean (a(x_q * w_V) - a(x * w))^2 / mean a(x * w)^2 + 0.01 sum (1 - |2 h(V) - 1|^beta) / n,
        w_V = s clip(floor(w / s) + h(V), -2^(b-1) + 1, 2^(b-1) - 1),
        h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)

    by Adam, where x_q comes from the layers before as they are quantized by then, x and w are those
    of the float network, a is the activation, n the number of weights, and batches are drawn anew
    each time. beta falls from 20 to 2 by a cosine; the regularizer sets in after a fifth of the
    iterations. Unlike in the paper both terms are relative, so that neither the scale of values
    nor the size of a layer changes their balance. A layer that would come out worse stays.

    Kernels then lie on their codes, from where fine-tuning may start. Calibrate before. It takes
    the place of `correct_biases`: the mean of an output is part of what it keeps.

    Args:
        model: what `quantize_model` returned, calibrated. Its kernels change, nothing else.
        data: as for `calibrate`; some hundred samples.
        iterations: steps of Adam for each layer.
        batch_size: samples of a step.
        learning_rate: of Adam.
        steps: the most batches to use (32 samples each where `data` is an array); None for all.
        seed: of the draws.

    Raises:
        ValueError: for a model that is not quantized, has NaN weights or was changed by such a
            method already, for data that `calibrate` refuses, and for settings that are not above
            0.
        UncalibratedError: where ranges have seen no data.
            After an error, or an interrupt, the model is as it was.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="head")])
        >>> x = np.array([[-1.0, 2.0], [0.5, 0.0]])
        >>> q = kerasq.quantize_model(model, "w4a8")
        >>> kerasq.calibrate(q, x)
        >>> kerasq.adaround(q, x, iterations=10).layers
        ('head',)
    """
    reference.check(model)
    _check(iterations, batch_size, learning_rate)
    samples = list(batches(model, data, BATCH_SIZE, steps))
    # Kernels change on the way, those of the float network do not.
    plain = retarget(model, target_of(model))
    calls = calls_of_kernels(model)
    legal = {name: own[0] for name, own in calls.items() if _is_legal(own)}
    found = []
    with restored_on_error([wrapper.kernel for wrapper in legal.values()]):
        for wrapper in track(legal.values(), len(legal), "layer"):
            x = np.concatenate(_inputs(model, wrapper.name, samples))
            y = np.concatenate(_targets(plain, wrapper.name, samples))
            problem = _Layer(wrapper, x, y)
            found.append(problem.solve(iterations, batch_size, learning_rate, seed))
    reference.mark(model, "adaround")
    nearest, learned, moved = zip(*found, strict=True) if found else ((), (), ())
    return Rounding(
        layers=tuple(legal),
        nearest=nearest,
        learned=learned,
        moved=moved,
        left=tuple(name for name in calls if name not in legal),
    )


def _check(iterations: int, batch_size: int, learning_rate: float) -> None:
    counts: dict[str, float] = {"iterations": iterations, "batch_size": batch_size}
    bad = {k: v for k, v in counts.items() if not isinstance(v, int) or v < 1}
    if not 0.0 < learning_rate < np.inf:
        bad["learning_rate"] = learning_rate
    if bad:
        raise ValueError(
            "`iterations` and `batch_size` must be integers of at least 1, and `learning_rate` "
            f"above 0 and finite. Received: {bad}."
        )


def _is_legal(own: list[KernelWrapper]) -> bool:
    quantizer = own[0].weight_quantizer
    # Below 8 bits a range that follows the weights is searched for, and would move.
    is_fixed = quantizer.bits >= 8 or quantizer.range_gradient != "none"
    return len(own) == 1 and isinstance(quantizer, Uniform) and is_fixed


class _Found(Exception):
    """Ends a run of the graph at the layer that is looked for."""

    def __init__(self, values: tf.Tensor) -> None:
        super().__init__()
        self.values = values


def _inputs(model: keras.Model, name: str, samples: list) -> list[np.ndarray]:
    """What a layer reads in the quantized network."""

    def call(node: graph.Node, *args: Any, **kwargs: Any) -> Any:
        if node.layer.name == name:
            raise _Found(args[0])
        return infer(node, *args, **kwargs)

    return _run(model, call, samples)


def _targets(model: keras.Model, name: str, samples: list) -> list[np.ndarray]:
    """What a layer returns in the float network, behind its activation."""

    def call(node: graph.Node, *args: Any, **kwargs: Any) -> Any:
        y = infer_float(node, *args, **kwargs)
        if node.layer.name == name:
            raise _Found(y)
        return y

    return _run(model, call, samples)


def _run(model: keras.Model, call: Any, samples: list) -> list[np.ndarray]:
    @tf.function(input_signature=[batch_spec(model.input)], autograph=False)
    def values(x: Any) -> tf.Tensor:
        try:
            graph.run(model, x, call)
        except _Found as found:
            return found.values
        raise AssertionError("The layer is not in the model.")

    return [values(x).numpy() for x in samples]


class _Layer:
    """The rounding of one layer's kernel.

    Args:
        wrapper: the layer.
        x: its inputs from the quantized network.
        y: its outputs in the float network.
    """

    def __init__(self, wrapper: KernelWrapper, x: np.ndarray, y: np.ndarray) -> None:
        self.wrapper, self.x, self.y = wrapper, x, y
        weights = wrapper.integer_weights()
        self.scale = tf.cast(weights.grid.scale, tf.float32)
        self.largest = float(2 ** (weights.grid.bits - 1) - 1)
        self.nearest = tf.cast(weights.codes, tf.float32)
        self.exact = wrapper.folded_kernel() / self.scale
        # The bias that inference adds, whole numbers of steps on the device.
        self.bias = tf.cast(weights.bias, tf.float32) * (
            wrapper.input_grids()[0].scale * self.scale
        )
        # Of a range that follows the weights the largest ones are the ends.
        follows = wrapper.weight_quantizer.range_gradient == "none"
        self.is_held = (tf.abs(self.nearest) >= self.largest) & follows
        self.power = float(np.mean(np.square(y, dtype=np.float64))) or 1.0

    def output(self, x: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
        """The layer, and its activation, on codes that may lie between whole numbers."""
        y = self.wrapper.run_on(x, codes * self.scale, self.bias)
        quantizer = self.wrapper.output_quantizer
        return y if quantizer is None else quantizer.clamp(y)

    def error(self, codes: tf.Tensor) -> float:
        """The noise of the output over its power, on all samples."""
        total = 0.0
        for i in range(0, len(self.x), BATCH_SIZE):
            x, y = (values[i : i + BATCH_SIZE] for values in (self.x, self.y))
            total += float(tf.reduce_sum(tf.square(self.output(x, codes) - y)))
        return total / self.y.size / self.power

    def solve(
        self, iterations: int, batch_size: int, learning_rate: float, seed: int
    ) -> tuple[float, float, float]:
        """Rounds the kernel: SQNR by nearest and by learned rounding, and the share that moved."""
        low = tf.floor(self.exact)
        share = tf.clip_by_value(self.exact - low, 0.01, 0.99)
        inverse = (share - GAMMA) / (ZETA - GAMMA)
        v = tf.Variable(tf.math.log(inverse / (1.0 - inverse)))
        adam = keras.optimizers.Adam(learning_rate)
        adam.build([v])

        @tf.function(autograph=False)
        def step(x: tf.Tensor, y: tf.Tensor, beta: tf.Tensor, weight: tf.Tensor) -> None:
            with tf.GradientTape() as tape:
                h = _rectified(v)
                codes = self.codes(low + h)
                error = tf.reduce_mean(tf.square(self.output(x, codes) - y)) / self.power
                # At 1/2 the power of 0 has no gradient.
                apart = tf.maximum(tf.abs(2.0 * h - 1.0), 1e-6)
                loss = error + weight * tf.reduce_mean(1.0 - apart**beta)
            adam.apply([tape.gradient(loss, v)], [v])

        rng = np.random.default_rng(seed)
        for i in range(iterations):
            chosen = rng.integers(0, len(self.x), min(batch_size, len(self.x)))
            beta, weight = _schedule(i / iterations)
            step(self.x[chosen], self.y[chosen], tf.constant(beta), tf.constant(weight))
        kernel = tf.identity(self.wrapper.kernel.value)
        self._assign(self.codes(low + tf.cast(_rectified(v) >= 0.5, tf.float32)))
        # As the device has them, whatever was wanted.
        learned = tf.cast(self.wrapper.integer_weights().codes, tf.float32)
        before, after = self.error(self.nearest), self.error(learned)
        if after >= before:
            self.wrapper.kernel.assign(kernel)
            learned, after = self.nearest, before
        moved = float(tf.reduce_mean(tf.cast(learned != self.nearest, tf.float32)))
        return sqnr(before), sqnr(after), moved

    def codes(self, rounded: tf.Tensor) -> tf.Tensor:
        """Codes within the grid; those that are held as they are."""
        inside = tf.clip_by_value(rounded, -self.largest, self.largest)
        return tf.where(self.is_held, self.nearest, inside)

    def _assign(self, codes: tf.Tensor) -> None:
        """Puts the kernel on its codes, from where nearest rounding leads to them."""
        wrapper = self.wrapper
        gain, _ = wrapper.gain_and_bias()
        # Of a channel that is switched off nothing can be told, nor need be.
        kernel = tf.math.divide_no_nan(codes * self.scale, gain)
        kernel = tf.where(codes == self.nearest, wrapper.flat_kernel(), kernel)
        wrapper.kernel.assign(wrapper.rule.unflatten(kernel, wrapper.kernel.shape))


def _rectified(v: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(tf.sigmoid(v) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def _schedule(progress: float) -> tuple[float, float]:
    """The exponent and the weight of the regularizer."""
    if progress < WARM_START:
        return EXPONENTS[0], 0.0
    done = (progress - WARM_START) / (1.0 - WARM_START)
    first, last = EXPONENTS
    return float(last + (first - last) * (1.0 + np.cos(np.pi * done)) / 2.0), REGULARIZER
