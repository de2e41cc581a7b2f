"""Quantizers hold the range of a tensor and fake-quantize onto the grid over it."""

import dataclasses
import math
from typing import Any

import keras
import tensorflow as tf

from kerasq import fake_quant, graph
from kerasq.grid import Grid
from kerasq.support.shared import shared

# A range that was never calibrated is the largest of this many training batches, at first.
FIRST_BATCHES = 10
# Ranges are held against the first samples of each batch, at least so many, and as many as have so
# many values: of small tensors all, of large ones an eighth of 64.
SAMPLES, VALUES = 8, 2**16
# An end is too narrow if the largest value is more than this many times as large: where codes are
# few it pays to clip, and some outliers may be clipped on purpose anywhere. By bits below 8, whose
# ends learn, and then go a fifth of the way.
CLIPPED, CLIPPING = 1.5, {7: 1.5, 6: 1.5, 5: 2.0, 4: 2.5, 3: 4.0, 2: 6.0}
WIDENING_RATE = 0.2
# A range is too wide if it is more than this many times what each of so many batches in a row has
# reached, 400 samples. It then loses this share of what is too much, in each batch.
WIDEST, PATIENCE, NARROWING_RATE = 2.0, 50, 0.05
# What `batches_seen` is set to by calibration. Below 1 the range holds for inference as the network
# is now, and training starts without one.
CALIBRATED, PROVISIONAL = FIRST_BATCHES + 1, 0.5
# Ranges never get narrower than this, which only keeps them from being 0: values may be in any
# unit, and steps of 16 bits over it are still normal float32.
NARROWEST = 1e-30


@keras.saving.register_keras_serializable("kerasq")
class AtMostZero(keras.constraints.Constraint):
    """Keeps the lower end of a range at or below 0.0."""

    def __call__(self, value: Any) -> Any:
        """`min(value, 0)`, same shape."""
        return keras.ops.minimum(value, 0.0)


@keras.saving.register_keras_serializable("kerasq")
class UpperEnd(keras.constraints.Constraint):
    """Keeps the upper end of a range above 0.0 and at or below `limit` (6.0 behind ReLU6)."""

    def __init__(self, limit: float | None = None) -> None:
        self.limit = limit

    def __call__(self, value: Any) -> Any:
        """`min(max(value, 1e-30), limit)`, same shape."""
        value = keras.ops.maximum(value, NARROWEST)
        return value if self.limit is None else keras.ops.minimum(value, self.limit)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {"limit": self.limit}


@keras.saving.register_keras_serializable("kerasq")
class ActivationQuantizer(keras.layers.Layer):
    """Fake-quant of an activation: one learnable range per tensor.

    Grids of up to 8 bits are asymmetric: the range is two scalar variables, `range_min` and
    `range_max`. Wider ones are symmetric, with zero point 0: `range_max` is the largest magnitude.
    `batches_seen` counts the first 10 batches (0: the range means nothing yet), and beyond those
    the batches in a row that have left the range too empty.

    Training moves a range like this. The first 10 batches, unless it was calibrated, widen it to
    all that they hold. Later an end that a batch exceeds by half goes where its values are. Ends
    that learn go a fifth of the way, and only to where they clip no more than may pay at their
    width (all beyond 1/1.5 of the largest value at 8 bits, beyond 1/2.5 at 4 bits). A range that
    50 batches in a row have left more than half empty narrows, 5 % of what is too much in each
    batch, until values reach the half. In between it stays, or learns. So those ranges stay that
    calibration has chosen, with the outliers that it cuts, and however rare the largest values are,
    but for provisional ones: behind a BatchNormalization that has yet to see data, training forgets
    them. An input's range is a convention with whoever feeds it: it grows where it was never
    calibrated, and else stays.

    Gradients, with g the incoming one: dL/dx = g inside the range, else 0 (straight-through
    estimator, Bengio et al. 2013); that of an end is the sum of g beyond it ("clip": PACT, Choi et
    al. 2018, equation 3), to which "lsq" adds the rounding error inside (Esser et al. 2020, section
    2.1): `kerasq.fake_quant.fake_quant`. While a range of 8 bits or more follows the data ("none"),
    dL/dx = g but for what a ReLU cuts: `kerasq.fake_quant.fake_quant_following`.

    Args:
        bits: width; below 8 the grid is that many levels of int8 codes.
        relu: whether the tensor is behind a ReLU. An asymmetric range then starts at 0.0 and its
            clamp is the ReLU: there is no `range_min`, and no op for the ReLU.
        limit: what the upper end may not exceed: `max_value` of the ReLU.
        range_gradient: "lsq", "clip", or "none": the range then follows the data while training,
            until `trainable = False`.
        range_penalty: what is added to the loss for each end of a range that learns, times its
            square: dL/dend = 2 range_penalty end (PACT's L2 regularizer of the clipping level, Choi
            et al. 2018, section 3).
        is_input: whether the tensor is an input of the model.
    """

    def __init__(
        self,
        bits: int = 8,
        relu: bool = False,
        limit: float | None = None,
        range_gradient: str = "lsq",
        is_input: bool = False,
        range_penalty: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.bits = bits
        self.relu = relu
        self.limit = limit
        self.range_gradient = range_gradient
        self.is_input = is_input
        self.range_penalty = range_penalty
        # How many layers share the range: steps of a recurrent layer do, and what is concatenated.
        self.uses = 0
        # Whether nothing in training moves the range: `kerasq.FreezeRanges`.
        self.fixed = False
        # What `kerasq.CheckTraining` saw last: the share of values beyond the range, and whether
        # all had one code.
        self.clipped: float | None = None
        self.is_constant = False

    def build(self, input_shape: Any = None) -> None:
        """Creates `range_max`, `range_min` where the range has two ends, and `batches_seen`.

        All are scalars, and 0 until the first batch.
        """
        learned = self._gradient() != "none"
        self.range_min = None
        if not self.relu and not self.symmetric:
            self.range_min = self._scalar("range_min", learned, AtMostZero())
        self.range_max = self._scalar("range_max", learned, UpperEnd(self.limit))
        self.batches_seen = self._scalar("batches_seen", False, None)

    def _scalar(self, name: str, trainable: bool, constraint: Any) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=(),
            initializer="zeros",
            trainable=trainable,
            constraint=constraint,
            regularizer=self._regularizer() if trainable else None,
            # Replicas see other batches: between them the range is their mean.
            aggregation="mean",
            # Under a policy of mixed precision, bfloat16 could not hold it exactly.
            autocast=False,
        )

    def _regularizer(self) -> keras.regularizers.Regularizer | None:
        return keras.regularizers.L2(self.range_penalty) if self.range_penalty else None

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "bits": self.bits,
            "relu": self.relu,
            "limit": self.limit,
            "range_gradient": self.range_gradient,
            "is_input": self.is_input,
            "range_penalty": self.range_penalty,
        }

    def _gradient(self) -> str:
        """How the range learns; that of an input does not."""
        return "none" if self.is_input else self.range_gradient

    def _only_follows(self) -> bool:
        """Whether the range follows the data, and does not learn."""
        return self.range_gradient == "none" and self.trainable and not self.is_input

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is 0, as LiteRT's int16 kernels insist."""
        return self.bits > 8

    def range(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The range's ends, as float32 tensors: it contains 0.0 and is never empty."""
        return graph.once(self, "range", self._range)

    def _range(self) -> tuple[tf.Tensor, tf.Tensor]:
        high = project(self.range_max, UpperEnd(self.limit))
        if self.symmetric:
            return self._symmetric(high)
        if self.range_min is None:
            return tf.zeros(()), high
        return project(self.range_min, AtMostZero()), high

    def _symmetric(self, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The ends of the symmetric range that holds values of such a magnitude."""
        return symmetric(high, self.bits)

    def _high(self) -> tf.Tensor:
        """The upper end, as it is stored."""
        return self.range_max.value

    def _set(self, low: tf.Tensor, high: tf.Tensor) -> None:
        """Stores ends."""
        if self.range_min is not None:
            self.range_min.assign(low)
        self.range_max.assign(high)

    def grid(self) -> Grid:
        """The grid over the range, as tensors."""
        return graph.once(self, "grid", self._grid)

    def _grid(self) -> Grid:
        # The device has no integers of 2 to 7 bits: such codes are some of int8's.
        levels = 2**self.bits if self.bits < 8 else None
        # That of several layers is not what its variables say while a call gathers values.
        if self.uses > 1:
            return fake_quant.grid_from_range(*self.range(), max(8, self.bits), levels=levels)
        low = None if self.range_min is None else self.range_min.value
        grid = Grid(scale=1.0, zero_point=0.0, bits=max(8, self.bits), levels=levels)
        scale, zero_point = _scale_and_zero_point(low, self.range_max.value, self.limit, grid)
        return dataclasses.replace(grid, scale=scale, zero_point=zero_point)

    def assign_range(self, low: float, high: float, seen: float = CALIBRATED) -> None:
        """Sets the range (made to contain 0.0) and `batches_seen`: by default it is calibrated.

        A tensor that was always 0.0 gets [0, 1]: any grid holds it, but not any scale fits the
        kernels.
        """
        low = AtMostZero()(keras.ops.cast(low, "float32"))
        high = UpperEnd()(keras.ops.cast(high, "float32"))
        if self.symmetric:
            high = keras.ops.maximum(-low, high)
        high = keras.ops.where(high - low <= NARROWEST, 1.0, high)
        self._set(low, UpperEnd(self.limit)(high))
        self.batches_seen.assign(seen)
        graph.forget(self)

    def _follow(self, x: tf.Tensor) -> None:
        """Moves the range by what a batch has, by the rule that the class states."""
        if self.uses > 1 and graph.call_memory() is not None:
            self._gather(_first_samples(x))
        else:
            self._move(_first_samples(x))

    def _gather(self, x: tf.Tensor) -> None:
        """As `_move`, once in a call of a model, by what all layers that share the range have."""
        seen = graph.once(self, "values", list)
        seen.append(tf.reshape(x, [-1]))
        if len(seen) == self.uses:
            graph.forget(self)
            self._move(tf.concat(seen, 0))
        elif not self._is_started():
            range_until = self._range_until(x)
            graph.forget(self, "range", "grid")
            graph.once(self, "range", lambda: range_until)

    def _is_started(self) -> bool:
        """Whether the first batches are over: known when a function is traced."""
        is_known = isinstance(self.batches_seen.value, tf.Variable)
        return is_known and self._batches() >= FIRST_BATCHES

    def _range_until(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The range as it stands, in the first batches widened to some values of this one."""
        is_first = self.batches_seen.value < FIRST_BATCHES
        low, high = self.range()
        ends = [high] if self.range_min is None else [-low, high]
        ends = [
            fake_quant.straight_through(
                end, tf.where(is_first, tf.maximum(tf.maximum(end, value), NARROWEST), end)
            )
            for end, value in zip(ends, _values(x, self._rule(), len(ends)), strict=True)
        ]
        if self.symmetric:
            return self._symmetric(ends[-1])
        return (tf.zeros(()) if self.range_min is None else -ends[0]), ends[-1]

    def _rule(self) -> "_Rule":
        return _Rule(
            relu=self.relu,
            limit=self.limit,
            symmetric=self.symmetric,
            learns=self._gradient() != "none",
            grows=self.is_input or not self.trainable,
            enough=self._enough(),
            clipping=self._clipping(),
        )

    def _clipping(self) -> float:
        """How many times as large as an end values must be to move it."""
        return CLIPPING.get(self.bits, CLIPPED)

    def _move(self, x: tf.Tensor) -> None:
        """Moves the range by samples of a batch."""
        low, high, seen = _moved(
            x,
            None if self.range_min is None else self.range_min.value,
            self._high(),
            self.batches_seen.value,
            rule=self._rule(),
        )
        self._set(low, high)
        self.batches_seen.assign(seen)
        graph.forget(self)

    def clamp(self, x: tf.Tensor) -> tf.Tensor:
        """The ReLU that is part of the layer."""
        return _clamped(x, self.relu, self.limit)

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Fake-quantized values; in training, the first batches also set the range."""
        if training and self._follows():
            # In a stateless call assigned values stay tensors: without the stop, gradients of the
            # range would flow on into the batch.
            self._follow(tf.stop_gradient(x))
        return self.fake_quant(x)

    def _follows(self) -> bool:
        """Whether training moves the range: known when a function is traced."""
        if self.fixed or (self.trainable and not self.is_input):
            return not self.fixed
        is_known = isinstance(self.batches_seen.value, tf.Variable)
        return not is_known or self._batches() < self._enough()

    def _enough(self) -> int:
        """The batches after which one that neither learns nor narrows is set."""
        return CALIBRATED if self.is_input and self.trainable else FIRST_BATCHES

    def has_seen_data(self) -> bool:
        """Whether the range means something: known when a function is traced.

        In a stateless call, which holds tensors in place of variables, it is taken for granted.
        """
        is_known = isinstance(self.batches_seen.value, tf.Variable)
        return not is_known or self._batches() > 0

    def _batches(self) -> float:
        """The value of `batches_seen`, also while a function is traced."""
        strategy, variable = tf.distribute.get_strategy(), self.batches_seen.value
        # Outside of the function that is traced, where a variable of all replicas is one of each.
        with tf.init_scope():
            found = strategy.experimental_local_results(variable)[0]
            # A variable of several replicas where their strategy is not in scope is no number.
            return float(tf.convert_to_tensor(found))

    def fake_quant(self, x: tf.Tensor) -> tf.Tensor:
        """Fake-quantized values; the range stays where it is."""
        low, high = self.range()
        if self._only_follows() and not self.fixed and self.bits >= 8:
            return fake_quant.fake_quant_following(
                x,
                low,
                high,
                bits=self.bits,
                relu=self.relu,
                limit=self.limit,
                symmetric=self.symmetric,
            )
        # A range that starts at 0 cuts as the ReLU does; a symmetric one goes below.
        if self.symmetric:
            x = self.clamp(x)
        # LSQ counts the values of a sample, whatever the batch is; sizes may be unknown.
        count = math.prod(x.shape[1:]) if None not in x.shape[1:] else 1
        return fake_quant.fake_quant(
            x, low, high, bits=self.bits, gradient=self._gradient(), count=count
        )


@shared
def _scale_and_zero_point(
    low: tf.Tensor | None, high: tf.Tensor, limit: float | None, like: Grid
) -> tuple[tf.Tensor, tf.Tensor]:
    """Those of a grid over a range of such variables, as their constraints allow them."""
    high = UpperEnd(limit)(high)
    if like.bits > 8:
        low, high = symmetric(high, like.bits)
    else:
        low = tf.zeros(()) if low is None else AtMostZero()(low)
    grid = fake_quant.grid_from_range(low, high, like.bits, levels=like.levels)
    return grid.scale, grid.zero_point


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rule:
    """How a range moves: what `ActivationQuantizer` is.

    Attributes:
        relu, limit: of the ReLU in front of it.
        symmetric: whether its ends are of one magnitude.
        learns: whether it has a gradient.
        grows: whether it neither learns nor narrows.
        enough: the batches after which one that grows is set.
        clipping: how many times as large as an end values must be to move it.
    """

    relu: bool
    limit: float | None
    symmetric: bool
    learns: bool
    grows: bool
    enough: int
    clipping: float


@shared
def _moved(
    x: tf.Tensor, low: tf.Tensor | None, high: tf.Tensor, seen: tf.Tensor, *, rule: _Rule
) -> tuple[tf.Tensor | None, tf.Tensor, tf.Tensor]:
    """The ends of a range (None: it starts at 0), and `batches_seen`, behind samples of a batch."""
    ends = [UpperEnd(rule.limit)(high)]
    ends = ends if low is None else [-AtMostZero()(low), *ends]
    values = _values(x, rule, len(ends))
    moved, seen = (_grown if rule.grows else _followed)(ends, values, seen, rule)
    # A tensor that was always 0 has no range: see `assign_range`.
    high = tf.where(tf.add_n(moved) <= NARROWEST, 1.0, moved[-1])
    return None if low is None else -moved[0], high, seen


def _grown(
    ends: list[tf.Tensor], values: list[tf.Tensor], seen: tf.Tensor, rule: _Rule
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """The magnitudes of ends, and `batches_seen`, of a range that neither learns nor narrows."""
    is_first = seen < FIRST_BATCHES
    # In a step that was traced before the range was set, too.
    is_set = seen >= rule.enough
    moved = [
        tf.where(is_set, end, _widened(end, value, is_first, rule))
        for end, value in zip(ends, values, strict=True)
    ]
    return moved, tf.where(is_set, seen, tf.minimum(seen + 1.0, FIRST_BATCHES))


def _followed(
    ends: list[tf.Tensor], values: list[tf.Tensor], seen: tf.Tensor, rule: _Rule
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """The magnitudes of ends, and `batches_seen`, of a range that widens and narrows."""
    is_first = seen < FIRST_BATCHES
    is_wide = tf.add_n(ends) > WIDEST * tf.add_n(values)
    kept = tf.cast(seen >= 1.0, tf.float32)
    ends = [end * kept for end in ends]
    seen = tf.where(is_first | is_wide, tf.floor(seen) + 1.0, float(FIRST_BATCHES))
    rate = tf.where(seen > FIRST_BATCHES + PATIENCE, NARROWING_RATE, 0.0)
    moved = []
    for end, value in zip(ends, values, strict=True):
        wide = _widened(end, value, is_first, rule)
        moved.append(wide - rate * tf.nn.relu(wide - value))
    return moved, seen


def _widened(end: tf.Tensor, value: tf.Tensor, is_first: tf.Tensor, rule: _Rule) -> tf.Tensor:
    """An end that a value may lie beyond, widened."""
    least = value / rule.clipping
    if not rule.learns:
        return tf.where(is_first | (least > end), tf.maximum(end, value), end)
    later = end + WIDENING_RATE * tf.nn.relu(least - end)
    return tf.where(is_first, tf.maximum(end, value), later)


def _values(x: tf.Tensor, rule: _Rule, count: int) -> list[tf.Tensor]:
    """`_batch_ends`, 0 for NaN and infinite ones."""
    # Which training that diverges has: they move nothing.
    return [tf.where(tf.math.is_finite(v), v, 0.0) for v in _batch_ends(x, rule, count)]


def _batch_ends(x: tf.Tensor, rule: _Rule, count: int) -> list[tf.Tensor]:
    """The magnitudes of the ends of a batch, behind the layer's ReLU: the upper one, or both."""
    if rule.symmetric:
        return [tf.reduce_max(tf.abs(_clamped(x, rule.relu, rule.limit)))]
    high = tf.nn.relu(tf.reduce_max(x))
    high = high if rule.limit is None else tf.minimum(high, rule.limit)
    return [high] if count == 1 else [tf.nn.relu(-tf.reduce_min(x)), high]


def _clamped(x: tf.Tensor, relu: bool, limit: float | None) -> tf.Tensor:
    if not relu:
        return x
    return tf.nn.relu(x) if limit is None else tf.clip_by_value(x, 0.0, limit)


def _first_samples(x: tf.Tensor) -> tf.Tensor:
    """The samples of a batch that ranges are held against."""
    size = math.prod(x.shape[1:]) if None not in x.shape[1:] else VALUES
    return x[: max(SAMPLES, VALUES // max(size, 1))]


def project(variable: keras.Variable, constraint: keras.constraints.Constraint) -> tf.Tensor:
    """A variable's value as its constraint allows it; the gradient is the variable's own."""
    # Keras applies constraints behind steps, not to first values. Beyond a limit the constraint's
    # own gradient is 0: a variable there would never come back.
    value = tf.convert_to_tensor(variable.value)
    exact = constraint(value)
    return fake_quant.straight_through(value, exact) if variable.trainable else exact


def symmetric(high: tf.Tensor, bits: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The ends of the range of all codes with zero point 0: one more lies below 0 than above."""
    largest = 2 ** (bits - 1) - 1
    return -high * ((largest + 1) / largest), high
