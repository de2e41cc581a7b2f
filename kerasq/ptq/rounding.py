"""Learned rounding of the weights of one unit: up or down, so that its outputs stay."""

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph
from kerasq.calibration.calibrate import BATCH_SIZE
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.ptq.samples import Samples
from kerasq.ptq.units import Unit
from kerasq.quantizers.threshold import ThresholdWeights
from kerasq.quantizers.uniform import Uniform
from kerasq.support.numbers import check_number
from kerasq.support.sqnr import sqnr
from kerasq.wrappers import QuantizeWrapper

# Nagel et al. 2020: the rectified sigmoid's ends, the weight of the regularizer, the exponents that
# it goes through, and the share of the iterations before it sets in.
ZETA, GAMMA = 1.1, -0.1
REGULARIZER, EXPONENTS, WARM_START = 0.01, (20.0, 2.0), 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How rounding is learned: the arguments of `kerasq.adaround`."""

    iterations: int
    batch_size: int
    learning_rate: float
    drop: float
    seed: int

    def __post_init__(self) -> None:
        counts: dict[str, float] = {"iterations": self.iterations, "batch_size": self.batch_size}
        bad = {k: v for k, v in counts.items() if not isinstance(v, int) or v < 1}
        check_number("learning_rate", self.learning_rate)
        check_number("drop", self.drop)
        if not 0.0 < self.learning_rate < np.inf:
            bad["learning_rate"] = self.learning_rate
        if bad:
            raise ValueError(
                "`iterations` and `batch_size` must be integers of at least 1, and "
                f"`learning_rate` above 0 and finite. Received: {bad}."
            )
        if not 0.0 <= self.drop < 1.0:
            raise ValueError(f"`drop` must be in [0, 1). Received: drop={self.drop}.")


@dataclasses.dataclass(frozen=True)
class Figures:
    """What became of a unit.

    Attributes:
        nearest, learned: the SQNR of its outputs in dB, before and after.
        moved: by layer, the share of its weights that are not rounded to the nearest code.
    """

    nearest: float
    learned: float
    moved: list[float]


def is_legal(wrapper: KernelWrapper) -> bool:
    """Whether a layer's weights may be rounded either way."""
    quantizer = wrapper.weight_quantizer
    # Below 8 bits a range that follows the weights is searched for, and would move; so would a
    # power of two.
    is_searched = quantizer.bits < 8 or isinstance(quantizer, ThresholdWeights)
    is_fixed = not is_searched or quantizer.range_gradient != "none"
    # Clusters are rounded as a whole.
    return isinstance(quantizer, Uniform) and is_fixed and not wrapper.clusters


class Kernel:
    """The rounding of one layer's kernel.

    Attributes:
        v: what is learned: `round(w / s)` is `floor(w / s) + h(v)`.
    """

    def __init__(self, wrapper: KernelWrapper) -> None:
        self.wrapper = wrapper
        weights = wrapper.integer_weights()
        self.scale = tf.cast(weights.grid.scale, tf.float32)
        self.largest = float(2 ** (weights.grid.bits - 1) - 1)
        self.nearest = tf.cast(weights.codes, tf.float32)
        exact = wrapper.folded_kernel() / self.scale
        self.low = tf.floor(exact)
        # The bias that inference adds, whole numbers of steps on the device.
        _, self.bias = weights.real(wrapper.input_grids()[0].scale)
        # Of a range that follows the weights the largest ones are the ends.
        follows = wrapper.weight_quantizer.range_gradient == "none"
        self.is_held = (tf.abs(self.nearest) >= self.largest) & follows
        if wrapper.keep_zeros:
            self.is_held |= wrapper.mask.value == 0.0
        share = tf.clip_by_value(exact - self.low, 0.01, 0.99)
        inverse = (share - GAMMA) / (ZETA - GAMMA)
        self.v = tf.Variable(tf.math.log(inverse / (1.0 - inverse)))

    def share(self) -> tf.Tensor:
        """How far each weight is rounded up, `h(v)`, in [0, 1]."""
        return tf.clip_by_value(tf.sigmoid(self.v) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)

    def codes(self, share: tf.Tensor) -> tf.Tensor:
        """Codes within the grid; those that are held as they are."""
        inside = tf.clip_by_value(self.low + share, -self.largest, self.largest)
        return tf.where(self.is_held, self.nearest, inside)

    def learned(self) -> tf.Tensor:
        """Whole codes."""
        return self.codes(tf.cast(self.share() >= 0.5, tf.float32))

    def assign(self, codes: tf.Tensor) -> tf.Tensor:
        """Puts the kernel on codes, from where nearest rounding leads to them; returns those."""
        wrapper = self.wrapper
        gain, _ = wrapper.gain_and_bias()
        # Of a channel that is switched off nothing can be told, nor need be.
        kernel = tf.math.divide_no_nan(codes * self.scale, gain)
        kernel = tf.where(codes == self.nearest, wrapper.flat_kernel(), kernel)
        wrapper.kernel.assign(wrapper.rule.unflatten(kernel, wrapper.kernel.shape))
        # As the device has them, whatever was wanted.
        return tf.cast(wrapper.integer_weights().codes, tf.float32)


class Problem:
    """The rounding of a unit.

    Args:
        unit: its calls.
        legal: its layers whose kernels are rounded.
        samples: what it reads, and is to return.
    """

    def __init__(self, unit: Unit, legal: list[KernelWrapper], samples: Samples) -> None:
        self.unit, self.samples = unit, samples
        self.kernels = {wrapper.name: Kernel(wrapper) for wrapper in legal}
        self.random: tf.random.Generator | None = None
        self.powers = [float(np.mean(np.square(y, dtype=np.float64))) or 1.0 for y in samples.y]

    def outputs(self, x: list[tf.Tensor], codes: dict[str, tf.Tensor], drop: float) -> list:
        """What the unit returns on codes that may lie between whole numbers.

        In front of the grids of its outputs; inside, values are fake-quantized, each but with the
        probability `drop` (Wei et al. 2022, QDrop).
        """
        ends = {id(tensor) for tensor in self.unit.outputs}

        def call(node: graph.Node, *args: Any, **kwargs: Any) -> Any:
            layer = node.layer
            if not isinstance(layer, QuantizeWrapper):
                return graph.infer(layer, *args, **kwargs)
            if layer.name in codes:
                kernel = self.kernels[layer.name]
                weights = codes[layer.name] * kernel.scale
                y = kernel.wrapper.run_on(args[0], weights, kernel.bias, self.samples.layer)
            else:
                y = layer.run_fake_quant(args[0], False)
            exact = layer.clamp(y)
            if {id(tensor) for tensor in node.outputs} & ends:
                return exact
            rounded = layer.on_grid(y, False)
            return self._mixed(exact, rounded, drop)

        return self.unit.run(x, call)

    def error(self, codes: dict[str, tf.Tensor]) -> float:
        """The noise of the outputs over their power, on all samples."""
        total = 0.0
        for i in range(0, len(self.samples), BATCH_SIZE):
            x, _, y = self.samples[i : i + BATCH_SIZE]
            found = self.outputs(x, codes, 0.0)
            total += sum(
                float(tf.reduce_sum(tf.square(a - b))) / b[0].size / power
                for a, b, power in zip(found, y, self.powers, strict=True)
            )
        return total / len(self.samples) / len(self.powers)

    def solve(self, settings: Settings) -> Figures:
        """Rounds the kernels; where that is no gain they stay."""
        kernels = self.kernels
        self._learn(settings)
        before = {name: kernel.wrapper.kernel.numpy() for name, kernel in kernels.items()}
        nearest = {name: kernel.nearest for name, kernel in kernels.items()}
        learned = {name: kernel.assign(kernel.learned()) for name, kernel in kernels.items()}
        errors = self.error(nearest), self.error(learned)
        if errors[1] >= errors[0]:
            for name, kernel in kernels.items():
                kernel.wrapper.kernel.assign(before[name])
            learned, errors = nearest, (errors[0], errors[0])
        moved = [_share_apart(learned[name], nearest[name]) for name in kernels]
        return Figures(sqnr(errors[0]), sqnr(errors[1]), moved)

    def _learn(self, settings: Settings) -> None:
        """Moves what is learned, by Adam, on batches drawn anew."""
        variables = [kernel.v for kernel in self.kernels.values()]
        adam = keras.optimizers.Adam(settings.learning_rate)
        adam.build(variables)
        self.random = tf.random.Generator.from_seed(settings.seed)

        def step(x: list, real: list, y: list, beta: tf.Tensor, weight: tf.Tensor) -> None:
            with tf.GradientTape() as tape:
                mixed = [self._mixed(a, b, settings.drop) for a, b in zip(real, x, strict=True)]
                loss = self._loss(mixed, y, beta, weight, settings.drop)
            adam.apply(tape.gradient(loss, variables), variables)

        # Its signature, since TensorFlow warns where functions are made in a loop.
        number = tf.TensorSpec((), tf.float32)
        parts = (self.samples.x, self.samples.real, self.samples.y)
        own = [[tf.TensorSpec((None, *v.shape[1:]), v.dtype) for v in part] for part in parts]
        run = tf.function(step, autograph=False).get_concrete_function(*own, number, number)
        rng = np.random.default_rng(settings.seed)
        size = min(settings.batch_size, len(self.samples))
        for i in range(settings.iterations):
            batch = self.samples[rng.integers(0, len(self.samples), size)]
            numbers = _schedule(i / settings.iterations)
            run(*tf.nest.map_structure(tf.constant, (*batch, *numbers)))

    def _mixed(self, exact: tf.Tensor, rounded: tf.Tensor, drop: float) -> tf.Tensor:
        """Rounded values, each exact with the probability `drop`."""
        if drop == 0.0 or self.random is None:
            return rounded
        return tf.where(self.random.uniform(tf.shape(exact)) < drop, exact, rounded)

    def _loss(self, x: list, y: list, beta: tf.Tensor, weight: tf.Tensor, drop: float) -> tf.Tensor:
        """The error of the outputs and, below 1, how many weights lie between codes."""
        shares = {name: kernel.share() for name, kernel in self.kernels.items()}
        codes = {name: self.kernels[name].codes(h) for name, h in shares.items()}
        found = self.outputs(x, codes, drop)
        errors = [
            tf.reduce_mean(tf.square(a - b)) / power
            for a, b, power in zip(found, y, self.powers, strict=True)
        ]
        # At 1/2 the power of 0 has no gradient.
        apart = [tf.maximum(tf.abs(2.0 * h - 1.0), 1e-6) for h in shares.values()]
        between = [tf.reduce_mean(1.0 - a**beta) for a in apart]
        return tf.add_n(errors) / len(errors) + weight * tf.add_n(between) / len(between)


def _schedule(progress: float) -> tuple[float, float]:
    """The exponent and the weight of the regularizer."""
    if progress < WARM_START:
        return EXPONENTS[0], 0.0
    done = (progress - WARM_START) / (1.0 - WARM_START)
    first, last = EXPONENTS
    return float(last + (first - last) * (1.0 + np.cos(np.pi * done)) / 2.0), REGULARIZER


def _share_apart(codes: tf.Tensor, others: tf.Tensor) -> float:
    return float(tf.reduce_mean(tf.cast(codes != others, tf.float32)))
