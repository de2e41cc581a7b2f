"""Moments of all tensors of a model's float network, without data: from BatchNormalization on."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph, registry
from kerasq.calibration.input_moments import Inputs, Pairs
from kerasq.calibration.moments import Clamp, Moments, Normal
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.layers import Constant, InputCast, Scale
from kerasq.one_grid import JOINS
from kerasq.prepare.batch_norm import has_statistics
from kerasq.rule import Output
from kerasq.wrappers import Boundary, QuantizeWrapper

# Trained weights go along with what they read: behind a layer without statistics values lie further
# out than those of independent inputs would. A logit that is cut may cost the class, where a range
# that is too wide costs one bit.
_DEPENDENT = 2.0
# Draws where nothing better is known: as many as have so many values, within these bounds.
_DRAWN, _FEWEST, _MOST = 2**23, 32, 4096

# By operator. What computes each value from the one in its place.
_OF_EACH = ("RELU", "LEAKY_RELU", "ELU", "GELU", "EXP", "LOGISTIC", "TANH", "GATHER")
# From the ones in its place of two or more tensors.
_OF_SEVERAL = ("ADD", "SUB", "MUL", "MAXIMUM", "MINIMUM")
_AVERAGES = ("MEAN", "SUM", "AVERAGE_POOL_2D", "RESIZE_BILINEAR")
# One of those that it is computed from.
_PICKS = ("MAX_POOL_2D", "REDUCE_MAX", "REDUCE_MIN", "MAXIMUM", "MINIMUM")
# What computes a value from several, of activations.
_OF_VECTORS = ("softmax", "log_softmax", "glu")


def propagate(
    model: keras.Model,
    input_range: Pairs | None = None,
    input_moments: Pairs | None = None,
    deviations: float = 6.0,
) -> tuple[dict[str, Moments], list[str]]:
    """Mean, variance and ends of the tensors of a quantized model's float network.

    - Behind a BatchNormalization that has seen data, channels are normal with mean beta and
      variance gamma^2 v / (v + epsilon), v being the moving variance: gamma^2 but in dead channels.
    - Layers with a kernel: means through the layer, its padding included; variances through the
      squared kernel, inputs taken as independent, and ends twice as far out, as they are not. Sums
      and products of tensors as of independent ones.
    - Functions of each value: closed forms for ReLU, else by numerical integration, over the normal
      values that they are functions of, which products such as x * sigmoid(x) share.
    - Averages of n values: variance / sqrt(n), half way (of logarithms) between that of independent
      values, variance / n, and that of values that move together, as neighbours do. Sums alike.
    - Maxima, and whatever else: by draws of independent values, with a fixed seed.

    Args:
        model: what `quantize_model` returned.
        input_range: the ends of the values of inputs; None for what the grids of inputs reach.
        input_moments: their means and deviations; None for those of uniform values.
        deviations: how many of them a value lies from its mean at most.

    Returns:
        By name of a tensor (`graph.tensor_name`) that something reads, or that has a range, its
        moments, with an axis for one sample; and a remark on what was drawn, or none.

    Raises:
        ValueError: where no BatchNormalization has statistics, for bad arguments, for integers
            that layers compute with, and for moments that are not finite.
    """
    _require_statistics(model)
    inputs = Inputs(model, input_range, input_moments).moments()
    walk = _Walk(model, deviations)
    graph.run(model, inputs, walk.call)
    return walk.found, walk.remarks()


def _require_statistics(model: keras.Model) -> None:
    if not any(has_statistics(_norm_of(layer)) for layer in model.layers):
        raise ValueError(
            "`model` must hold a BatchNormalization that has seen data: without data, all follows "
            f"from its statistics. Received: model {model.name!r}, without one (what is folded, or "
            "stands alone, is a constant by now). Quantize a trained model with "
            "batch_norm='keep', or give data."
        )


def _norm_of(layer: keras.layers.Layer) -> keras.layers.BatchNormalization | None:
    """The BatchNormalization that a layer ends with, or is."""
    if isinstance(layer, KernelWrapper):
        return layer.batch_norm
    return layer if isinstance(layer, keras.layers.BatchNormalization) else None


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class _Call:
    """A call of a layer on moments.

    Attributes:
        node: the call.
        arguments: its arguments, with moments in the place of tensors.
    """

    node: graph.Node
    arguments: tuple[Any, Any]

    @functools.cached_property
    def read(self) -> list[Moments]:
        """The moments among the arguments."""
        return [x for x in keras.tree.flatten(self.arguments) if isinstance(x, Moments)]

    @property
    def layer(self) -> keras.layers.Layer:
        """What is called; the wrapper, where it is one."""
        return self.node.layer

    @property
    def inner(self) -> keras.layers.Layer:
        """The float layer."""
        return self.layer.layer if isinstance(self.layer, QuantizeWrapper) else self.layer

    @functools.cached_property
    def operator(self) -> str:
        """The one operator that it stands for; "" where it is none."""
        rule = registry.find(self.inner)
        none = (Output.DECOMPOSED, Output.FUSED, Output.FLOAT)
        return "" if rule is None or rule.output in none else rule.operator

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the output, as that of the input is known by now."""
        return tuple(self.layer.compute_output_shape(tuple(self.read[0].mean.shape)))

    def run(self, values: list[tf.Tensor]) -> Any:
        """What the float layer returns where these are what it reads; in front of its ReLU."""
        rest = iter(values)
        args, kwargs = keras.tree.map_structure(
            lambda x: next(rest) if isinstance(x, Moments) else x, self.arguments
        )
        if isinstance(self.layer, QuantizeWrapper):
            return self.layer.run_float(*args)
        return graph.infer(self.layer, *args, **kwargs)

    def move(self, x: tf.Tensor) -> Any:
        """`run` on one tensor."""
        return self.run([x])

    def is_of_each(self) -> bool:
        """Whether it is a function of each value alone."""
        if isinstance(self.inner, (Scale, InputCast)):
            return True
        if type(self.inner) is keras.layers.Activation:
            name = registry.activation_name(self.inner)
            return name in registry.ACTIVATIONS and name not in _OF_VECTORS
        return self.operator in _OF_EACH

    def is_of_one(self) -> bool:
        """Whether each of its values follows from one normal value."""
        if self.operator in _OF_SEVERAL:
            first, *others = self.read
            return all(x.normal is first.normal for x in others)
        return self.is_of_each()


class _Walk:
    """The moments of a model's tensors, call by call.

    Args:
        model: the quantized model.
        deviations: see `propagate`.
    """

    def __init__(self, model: keras.Model, deviations: float) -> None:
        self.deviations = deviations
        self.found: dict[str, Moments] = {}
        self.drawn: list[str] = []
        self.seed = 0
        self.wanted = {id(x) for node in graph.calls(model) for x in node.inputs}

    def remarks(self) -> list[str]:
        """What was drawn, in words; none where nothing was."""
        if not self.drawn:
            return []
        return [
            f"Layers {self.drawn} have no moments in closed form: theirs are those of draws of "
            "independent normal values. Give data where these layers matter."
        ]

    def call(self, node: graph.Node, *args: Any, **kwargs: Any) -> Any:
        """The moments of what a call returns; None for what nobody asks for."""
        has_range = getattr(node.layer, "output_quantizer", None) is not None
        if not has_range and not any(id(y) in self.wanted for y in node.outputs):
            return [None for _ in node.outputs]
        call = _Call(node=node, arguments=(args, kwargs))
        _require_floats(call)
        moments = self._way(call)(call)
        names = [*map(graph.tensor_name, node.outputs)]
        for name, x in zip(names, moments, strict=True):
            _check_finite(name, x)
        self.found.update(zip(names, moments, strict=True))
        return moments

    def _way(self, call: _Call) -> Callable[[_Call], list[Moments]]:
        """How the moments of a call are found."""
        if has_statistics(_norm_of(call.layer)):
            return self._normalized
        if isinstance(call.inner, keras.layers.Embedding):
            return self._looked_up
        if registry.is_dropped(call.inner) and len(call.read) == 1:
            return self._same
        if call.is_of_one():
            return self._computed
        if isinstance(call.layer, KernelWrapper):
            return self._weighted
        if call.operator in _PICKS:
            return self._picked
        if registry.passes_through(call.inner) and len(call.read) == 1:
            return self._moved
        ways = {"ADD": self._added, "SUB": self._added, "MUL": self._multiplied}
        ways |= dict.fromkeys(_AVERAGES, self._averaged) | dict.fromkeys(JOINS, self._joined)
        return ways.get(call.operator, self._other)

    def _behind(self, call: _Call, normal: Normal) -> list[Moments]:
        """Normal values behind the ReLU that is part of a layer."""
        is_cut = getattr(call.layer, "relu", False) is True
        return [Moments(normal, _clamp(call.layer.limit) if is_cut else None)]

    def _within(self, mean: tf.Tensor, variance: tf.Tensor) -> Normal:
        return Normal.within(mean, variance, self.deviations)

    def _normalized(self, call: _Call) -> list[Moments]:
        """By the statistics of a BatchNormalization."""
        norm = _norm_of(call.layer)
        assert norm is not None
        variance = norm.moving_variance / (norm.moving_variance + norm.epsilon)
        if norm.scale:
            variance = variance * tf.square(norm.gamma.value)
        mean = norm.beta.value if norm.center else tf.zeros_like(variance)
        shape = call.shape
        axis = len(shape) - 1 if isinstance(call.layer, KernelWrapper) else norm.axis
        place = [1] * len(shape)
        place[axis] = -1
        spread = (tf.broadcast_to(tf.reshape(v, place), shape) for v in (mean, variance))
        return self._behind(call, self._within(*spread))

    def _looked_up(self, call: _Call) -> list[Moments]:
        """Rows of a table, each as likely as another, of those within the input's range."""
        low, high = call.read[0].ends
        rows = np.asarray(call.inner.embeddings, np.float32)
        rows = rows[max(0, math.ceil(low)) : math.floor(high) + 1]
        if not len(rows):
            raise ValueError(
                f"`input_range` must reach rows of the Embedding {call.layer.name!r}. "
                f"Received: [{low:g}, {high:g}]."
            )
        found = rows.mean(axis=0), rows.var(axis=0), rows.min(axis=0), rows.max(axis=0)
        shape = (*call.read[0].mean.shape, rows.shape[-1])
        mean, variance, low, high = (tf.broadcast_to(v, shape) for v in found)
        return [Moments(Normal(mean=mean, variance=variance, low=low, high=high))]

    def _same(self, call: _Call) -> list[Moments]:
        return call.read

    def _computed(self, call: _Call) -> list[Moments]:
        """A function of each normal value alone, by way of one tensor or several."""
        x = call.read[0]
        is_relu, limit = registry.relu_limit(call.inner)
        if is_relu:
            return [x.then(_clamp(limit))]
        if isinstance(call.layer, Boundary):
            return [x]

        def function(values: tf.Tensor) -> tf.Tensor:
            y = call.run([one.values(values) for one in call.read])
            is_cut = getattr(call.layer, "relu", False) is True
            return _clamp(call.layer.limit)(y) if is_cut else y

        return [Moments(x.normal, function)]

    def _weighted(self, call: _Call) -> list[Moments]:
        """A layer with a kernel, of independent values."""
        (x,), layer = call.read, call.layer
        kernel, (_, bias) = layer.folded_kernel(), layer.gain_and_bias()
        mean = layer.run_on(x.mean, kernel, bias)
        variance = layer.run_on(x.variance, tf.square(kernel), None)
        normal = Normal.within(mean, variance, _DEPENDENT * self.deviations)
        return self._behind(call, normal)

    def _moved(self, call: _Call) -> list[Moments]:
        """Layers that only move values, into one tensor or several."""
        (x,) = call.read

        def moved(i: int) -> Moments:
            return x.moved(lambda values: keras.tree.flatten(call.move(values))[i])

        return [moved(i) for i in range(len(call.node.outputs))]

    def _joined(self, call: _Call) -> list[Moments]:
        """Tensors beside each other."""
        own = [x.as_normal for x in call.read]
        joined = {
            field.name: call.run([getattr(x, field.name) for x in own])
            for field in dataclasses.fields(Normal)
        }
        return self._behind(call, Normal(**joined))

    def _averaged(self, call: _Call) -> list[Moments]:
        """Averages and sums along axes, of values that partly move together."""
        (x,) = call.read
        mean = call.move(x.mean)
        together = tf.square(call.move(tf.sqrt(x.variance)))
        # None where images are made larger: what is between two pixels is near to both.
        count = max(1.0, int(tf.size(x.mean)) / int(tf.size(mean)))
        normal = self._within(mean, together / math.sqrt(count))
        return self._behind(call, normal if call.operator == "SUM" else normal.cut(*x.ends))

    def _added(self, call: _Call) -> list[Moments]:
        """Sums and differences of independent tensors."""
        variance = functools.reduce(tf.add, [x.variance for x in call.read])
        normal = self._within(call.run([x.mean for x in call.read]), variance)
        (low, high), *others = (x.ends for x in call.read)
        for first, last in others:
            first, last = (-last, -first) if call.operator == "SUB" else (first, last)
            low, high = low + first, high + last
        return self._behind(call, normal.cut(low, high))

    def _multiplied(self, call: _Call) -> list[Moments]:
        """Products of independent tensors."""
        first, *others = call.read
        mean, variance, ends = first.mean, first.variance, first.ends
        for x in others:
            variance = variance * (x.variance + x.mean**2) + mean**2 * x.variance
            mean = mean * x.mean
            products = [a * b for a in ends for b in x.ends]
            ends = min(products), max(products)
        return self._behind(call, self._within(mean, variance).cut(*ends))

    def _picked(self, call: _Call) -> list[Moments]:
        """One of several values: drawn, and within the ends of what it is picked from."""
        ends = [x.ends for x in call.read]
        low, high = min(low for low, _ in ends), max(high for _, high in ends)
        (normal,) = self._drawn(call)
        mean = normal.mean
        whole = dataclasses.replace(
            normal, low=tf.fill(mean.shape, low), high=tf.fill(mean.shape, high)
        )
        return self._behind(call, whole)

    def _other(self, call: _Call) -> list[Moments]:
        """What nothing is known of."""
        if not isinstance(call.inner, Constant):
            self.drawn.append(call.node.name)
        return [x for normal in self._drawn(call) for x in self._behind(call, normal)]

    def _drawn(self, call: _Call) -> list[Normal]:
        """Mean and variance of what the float layer makes of draws."""
        size = sum(int(tf.size(x.mean)) for x in call.read)
        count = min(max(_DRAWN // size, _FEWEST), _MOST)
        draws: dict[int, tf.Tensor] = {}  # By id of normal values, which tensors may share.
        for x in call.read:
            if id(x.normal) not in draws:
                self.seed += 1
                draws[id(x.normal)] = _draw(x.normal, count, self.seed)
        outputs = call.run([x.values(draws[id(x.normal)]) for x in call.read])
        return [
            self._within(tf.reduce_mean(y, 0, True), tf.math.reduce_variance(y, 0, True))
            for y in keras.tree.flatten(outputs)
        ]


def _draw(normal: Normal, count: int, seed: int) -> tf.Tensor:
    shape = (count, *normal.mean.shape[1:])
    z = tf.random.stateless_normal(shape, (seed, 0))
    values = normal.mean + tf.sqrt(normal.variance) * z
    return tf.clip_by_value(values, normal.low, normal.high)


def _clamp(limit: float | None) -> Clamp:
    """A ReLU with that limit."""
    return Clamp(0.0, math.inf if limit is None else limit)


def _require_floats(call: _Call) -> None:
    """Raises a ValueError for integers that a layer computes, or computes with."""
    layer = call.inner
    reads = isinstance(layer, (keras.layers.Embedding, InputCast)) or isinstance(
        call.layer, Boundary
    )
    tensors = [*([] if reads else call.node.inputs), *call.node.outputs]
    strange = [x for x in tensors if "float" not in keras.backend.standardize_dtype(x.dtype)]
    if strange:
        raise ValueError(
            "Without data, layers must compute with float values: of integers and conditions "
            f"moments say too little. Received: layer {call.layer.name!r} with values of type "
            f"{strange[0].dtype}. Give data."
        )


def _check_finite(name: str, x: Moments) -> None:
    """Raises a ValueError for moments that mean nothing."""
    values = (*x.ends, float(tf.reduce_sum(x.mean)), float(tf.reduce_sum(x.variance)))
    if not np.isfinite(values).all():
        raise ValueError(
            f"Moments must be finite. Received: {values} (ends, and sums of means and variances) "
            f"behind layer {name!r}, which is not defined for all values that it may read. "
            "Give data."
        )
