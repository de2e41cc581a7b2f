"""Wrapping a layer with a kernel: symmetric weights, a scale a channel or one, integer biases."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import fake_quant, fused_batch_norm, graph, kernels, scales
from kerasq.grid import Grid
from kerasq.prepare import batch_norm as batch_norms
from kerasq.quantizers import weights as weight_quantizers
from kerasq.quantizers.a2q import A2Q
from kerasq.quantizers.power_of_two import PowerOfTwo
from kerasq.quantizers.structure import MOST_CLUSTERS, Clustered, Structure
from kerasq.quantizers.threshold import ThresholdWeights
from kerasq.quantizers.uniform import Uniform
from kerasq.scheme import Scheme
from kerasq.support.shared import shared
from kerasq.wrappers import QuantizeWrapper, Wrappers, current_config, shared_config, with_quantizer

# Held while a layer of mixed precision runs, since its dtype policy is another one in training: a
# thread that predicts must not see that of one that trains.
_POLICY_LOCK = threading.RLock()
# Of sums, `s_in * s_w`: biases have it as their scale, and runtimes take no denormal ones.
_LEAST_STEP = 2.0 * float(np.finfo(np.float32).tiny)


@keras.saving.register_keras_serializable("kerasq")
class KernelWrapper(QuantizeWrapper):
    """A layer with a kernel: symmetric weights, integer bias.

    The kernel that counts is the variable times `kernel_gain`, a constant (1, unless a
    BatchNormalization was folded: see `kerasq.prepare.batch_norm`). `weight_quantizer` puts
    the variable on its grid. Biases are rounded to the grid of the accumulators, `s_in * s_w[c]`.

    With one scale per tensor no channel's gain can be part of its scale: the kernel is quantized as
    it is folded, in training too. With `gain = gamma / sqrt(moving variance + eps)`, a constant,

        y = BatchNormalization(x * (fake_quant(kernel * gain) / gain))

    (Krishnamoorthi 2018, arXiv 1806.08342, section 3.2.2). Where the gain is 0 the kernel is not
    quantized, so that a channel that is switched off can be trained back on. Scales that are powers
    of two are those of the folded kernel as well, one a channel or one a tensor.

    Args:
        layer: Conv2D, DepthwiseConv2D or Dense without activation.
        batch_norm: a BatchNormalization behind it that stays trainable, or None. It is folded
            into the kernel in inference and at export; the range of the kernel is that of the
            kernel before folding, or with one scale per tensor behind it.
        weights: how weights of fewer than 8 bits lie: a name, configuration or prototype, as for
            `kerasq.quantize_model`.
        training_dtype: what the layer computes in while training: "float32", or "bfloat16" or
            "float16" where the float model has mixed precision. Fake-quant stays in float32, and
            inference is exact either way.
        gain_per_channel: whether `kernel_gain` is a vector, not a scalar. A further call has one of
            its own then.
        fixed_batch_norm: whether `batch_norm` normalizes by its statistics in training as well, and
            leaves them as they are, as one that is called with `training=False`.
        granularity: "per_channel", a scale for each output channel, or "per_tensor".
        keep_zeros: whether weights that are 0 stay 0 (`kerasq.quantizers.structure`).
        clusters: the number of values whose weights stay equal; 0: they are not kept.
        leader: the wrapper of the layer's first call, if this stands for a further one: the
            weights, their range and the BatchNormalization are its own.
        **kwargs: see `QuantizeWrapper`.

    Raises:
        ValueError: for weights that are not uniform, of one scale per tensor in front of a
            BatchNormalization, or clustered; for zeros to be kept by codes without 0; and for
            weights that fit narrow accumulators, of 1 bit or of one scale per tensor.
    """

    def __init__(
        self,
        layer: keras.Layer,
        batch_norm: keras.layers.BatchNormalization | None = None,
        weights: Any = "uniform",
        training_dtype: str = "float32",
        gain_per_channel: bool = False,
        fixed_batch_norm: bool = False,
        granularity: str = "per_channel",
        keep_zeros: bool = False,
        clusters: int = 0,
        leader: "KernelWrapper | None" = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        self.batch_norm = batch_norm
        self.kind = weight_quantizers.serialized(weights)
        self.training_dtype = training_dtype
        self.gain_per_channel = gain_per_channel
        self.fixed_batch_norm = fixed_batch_norm
        self.granularity = granularity
        self.keep_zeros, self.clusters = keep_zeros, clusters
        # What `kernel_gain` begins with; first ranges follow from the kernel times it.
        self.first_gain: Any = 1.0
        # Keras files what a wrapper holds under the names of attributes, in their order, this one
        # too: under another, models that were saved with a shared layer would not load.
        self.leader = leader
        self._calls = Wrappers([self])
        # Whether the same holds for now: `kerasq.FreezeRanges`.
        self.fixed_statistics = False
        if leader is None:
            chosen = self.range_gradient
            # Constants, such as those of a Rescaling, always lie on the grid that suits them best.
            if getattr(layer, "constant", False) or getattr(layer, "constant_gain", False):
                chosen = "none"
            self._weight_quantizer = self._new_quantizer(weights, chosen)
            self._check_granularity()
            if self.powers.weights:
                self._weight_quantizer = self._with_thresholds(chosen)
            elif clusters:
                self._weight_quantizer = self._clustered()
            self._weight_quantizer.trainable = layer.trainable
            # None, and nothing of it in any trace, where there is nothing to keep.
            self._structure = Structure(keep_zeros, clusters) if keep_zeros or clusters else None
        else:
            leader._calls = Wrappers([*leader._calls, self])

    @classmethod
    def sharing(cls, first: "KernelWrapper", **kwargs: Any) -> "KernelWrapper":
        """A wrapper of another call of the layer of `first`."""
        kwargs |= {"batch_norm": first.batch_norm, "weights": first.kind}
        kwargs["granularity"] = first.granularity
        return cls(first.layer, leader=first, **kwargs)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        batch_norm = self.batch_norm and keras.saving.serialize_keras_object(self.batch_norm)
        config = {"batch_norm": batch_norm, "training_dtype": self.training_dtype}
        config["weights"] = self.kind
        config["gain_per_channel"] = self.gain_per_channel
        config["fixed_batch_norm"] = self.fixed_batch_norm
        config["granularity"] = self.granularity
        config |= {"keep_zeros": self.keep_zeros, "clusters": self.clusters}
        config["leader"] = self.leader and shared_config(self.leader)
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "KernelWrapper":
        """The wrapper that `get_config` describes."""
        config = with_quantizer(current_config(config), custom_objects)
        batch_norm, first = (
            found and keras.saving.deserialize_keras_object(found, custom_objects)
            for found in (config.pop("batch_norm", None), config.pop("leader", None))
        )
        # One object, as Keras keeps those that its files name twice.
        if first is not None:
            del config["layer"], config["weights"]
            return cls.sharing(first, **config)
        return super().from_config(config | {"batch_norm": batch_norm}, custom_objects)

    def build(self, input_shape: Any = None) -> None:
        """Builds the layer, its BatchNormalization and the ranges."""
        super().build(input_shape)
        if self.leader is not None:
            if not self.leader.built:
                self.leader.build(input_shape)
            if self.gain_per_channel:
                self._add_gain()
            return
        if self.batch_norm is not None:
            # Statistics of all replicas together, so that they hold the same model.
            if tf.distribute.get_strategy().num_replicas_in_sync > 1:
                self.batch_norm.synchronized = True
            if not self.batch_norm.built:
                self.batch_norm.build(self.compute_output_shape(input_shape))
        if self._structure is not None:
            self._structure.start(lambda: self.rule.flatten(self.kernel.value))
        self._add_gain()
        self._weight_quantizer.start(self.ranged_kernel)
        self._check_zero()
        # A constraint acts inside of the step, behind any optimizer's decay and momentum.
        if self._structure is not None or isinstance(self._weight_quantizer, PowerOfTwo):
            self.kernel.constraint = _Keep(self)

    def _add_gain(self) -> None:
        self._kernel_gain = self.add_weight(
            name="kernel_gain",
            shape=self.flat_kernel().shape[-1:] if self.gain_per_channel else (),
            initializer=keras.initializers.Constant(self.first_gain),
            trainable=False,
            autocast=False,
        )

    def _with_thresholds(self, chosen: str | None) -> ThresholdWeights:
        """The weight quantizer whose scales are powers of two.

        Raises:
            ValueError: for weights that are not uniform, or clustered.
        """
        quantizer = self._weight_quantizer
        if type(quantizer) is not Uniform or self.clusters:
            raise ValueError(
                "Weights whose scales are powers of two must be uniform, of 2 bits or more, and no "
                f"clusters. Received: {type(quantizer).__name__!r} with {self.clusters} clusters "
                f"in layer {self.name!r}. Quantize with weights='uniform' and without "
                "keep_clusters, or with scales='power_of_two_activations'."
            )
        gradient = fake_quant.threshold_gradient(chosen)
        return ThresholdWeights(quantizer.bits, gradient, name="weights", dtype="float32")

    def _clustered(self) -> Uniform:
        """The weight quantizer of a clustered kernel.

        Raises:
            ValueError: for weights that are not uniform.
        """
        quantizer = self._weight_quantizer
        if type(quantizer) is not Uniform:
            raise ValueError(
                "Clusters must be kept by uniform weights. Received: weights of kind "
                f"{type(quantizer).__name__!r} in layer {self.name!r}, which has {self.clusters} "
                "clusters. Quantize with weights='uniform', or without keep_clusters."
            )
        # Values that differ from channel to channel have no range in common.
        if self.clusters > MOST_CLUSTERS + 1:
            return quantizer
        return Clustered(quantizer.bits, "none", name="weights", dtype="float32")

    def _check_zero(self) -> None:
        """Raises a ValueError where zeros are to be kept and codes have no 0."""
        quantizer = self._weight_quantizer
        if not self.keep_zeros or isinstance(quantizer, Uniform):
            return
        if np.any(quantizer.fake_quant(tf.zeros_like(self.ranged_kernel()))):
            raise ValueError(
                "Weights that stay 0 must have a code for it. Received: weights of kind "
                f"{type(quantizer).__name__!r} in layer {self.name!r}, which have none. Quantize "
                "with weights='uniform' and 2 bits or more, or without keep_zeros."
            )

    def _check_granularity(self) -> None:
        """Raises a ValueError where no gain of a BatchNormalization suits the scale.

        Few magnitudes stay what they are under any gain, and so does what inference computes; but
        divided by it they change what is normalized, and with it the next gain: it runs away.
        """
        kind = type(self._weight_quantizer)
        if self.is_per_tensor and self.batch_norm is not None and not issubclass(kind, Uniform):
            raise ValueError(
                "Weights of one scale per tensor must be uniform in front of a BatchNormalization "
                f"that is kept. Received: weights of kind {kind.__name__!r} in layer "
                f"{self.name!r}. Quantize with batch_norm='fold', which folds those without "
                "constraints and regularizers, or with weights='uniform' and 2 bits or more."
            )

    def _new_quantizer(self, weights: Any, chosen: str | None) -> weight_quantizers.WeightQuantizer:
        """The quantizer of the kernel.

        Raises:
            ValueError: where weights that are to fit narrow accumulators cannot.
        """
        bits = self.bits.weight_bits
        if not isinstance(weight_quantizers.find(weights), A2Q):
            gradient = fake_quant.range_gradient_at(bits, chosen)
            return weight_quantizers.weight_quantizer(weights, bits, gradient)
        found = weight_quantizers.weight_quantizer(weights, bits, chosen or "none")
        if self.is_per_tensor or not isinstance(found, A2Q):
            raise ValueError(
                "Weights that fit narrow accumulators must have 2 to 8 bits, and a scale for each "
                f"channel. Received: {bits} bits, granularity={self.granularity!r} at layer "
                f"{self.name!r}. Choose another scheme, or quantize with weights='uniform'."
            )
        found.room = self._room
        return found

    def _room(self) -> tuple[tf.Tensor, tf.Tensor]:
        """How far codes of the input lie from the zero point, and the bias, `(channels,)`.

        The latter in sums of these codes and of weights before `gain_and_bias`, as A2Q counts. Of
        several calls of the layer, the largest of all.
        """
        gain, bias = self.gain_and_bias()
        channels = self.flat_kernel().shape[-1:]
        grids = [grid for wrapper in self._calls for grid in wrapper.input_grids()]
        if not grids:  # It is built, and has not been called: what its width has at most.
            bits = self.bits.activation_bits
            most = 2.0**bits - 1.0 if bits <= 8 else 2.0 ** (bits - 1)
            return tf.constant(most), tf.zeros(channels)
        farthest = tf.stop_gradient(tf.reduce_max(tf.stack([grid.farthest for grid in grids])))
        if bias is None:
            return farthest, tf.zeros(channels)
        least = tf.reduce_min(tf.stack([grid.scale for grid in grids]))
        # Where the gain is 0 all codes are.
        found = tf.math.divide_no_nan(tf.abs(bias), least * tf.abs(gain))
        return farthest, tf.stop_gradient(found + tf.zeros(channels))

    @property
    def is_per_tensor(self) -> bool:
        """Whether all channels of the kernel share one scale."""
        return self.granularity == "per_tensor"

    @property
    def is_folded(self) -> bool:
        """Whether the kernel is quantized as it is folded: no gain can be part of its scales."""
        return self.is_per_tensor or self.powers.weights

    @property
    def weight_quantizer(self) -> weight_quantizers.WeightQuantizer:
        """What puts the kernel on its grid."""
        return (self.leader or self)._weight_quantizer

    @property
    def structure(self) -> Structure | None:
        """What of the kernel stays while it trains; None: nothing."""
        return (self.leader or self)._structure

    @property
    def mask(self) -> keras.Variable:
        """Where `keep_zeros`: 0.0 where a weight stays 0, else 1.0; channels in its last axis."""
        assert self.structure is not None
        return self.structure.mask

    @property
    def kernel_gain(self) -> keras.Variable:
        """What the kernel is multiplied by: `()` or `(channels,)`, of `Source.gain`."""
        if self.leader is None or self.gain_per_channel:
            return self._kernel_gain
        return self.leader._kernel_gain

    @property
    def kernel(self) -> keras.Variable:
        """The layer's float kernel."""
        return getattr(self.layer, str(self.rule.kernel))

    @property
    def bias(self) -> keras.Variable | None:
        """The layer's float bias; None where it has none."""
        return getattr(self.layer, self.rule.bias, None)

    def flat_kernel(self) -> tf.Tensor:
        """The kernel with the channels in its last axis."""
        flat = self.rule.flatten(self.kernel.value)
        return flat if self.structure is None else self.structure.kept(flat)

    def ranged_kernel(self) -> tf.Tensor:
        """What `weight_quantizer` puts on its grid: the float kernel, channels in its last axis.

        Where `is_folded`, the kernel that counts in inference; with one scale per tensor as if it
        were of a single channel: `(..., channels, 1)`.
        """
        flat = self.flat_kernel()
        if not self.is_folded:
            return flat
        # Gains are no way to train a kernel: all that comes back is what rounding leaves.
        folded = flat * tf.stop_gradient(self.gain_and_bias()[0])
        return folded[..., None] if self.is_per_tensor else folded

    def run_on(
        self,
        x: tf.Tensor,
        kernel: tf.Tensor,
        bias: tf.Tensor | None,
        layer: keras.Layer | None = None,
    ) -> tf.Tensor:
        """The layer on other weights: `kernel` (channels flattened) and `bias`.

        Or another layer with weights of these shapes, such as one that pads nothing.
        """
        layer = layer or self.layer
        own = getattr(layer, str(self.rule.kernel)), getattr(layer, self.rule.bias, None)
        # Layers read their variables themselves: a stateless scope has others in their place, which
        # gradients flow through, as they would not through an assignment.
        mapping = [(own[0], self.rule.unflatten(kernel, own[0].shape))]
        if own[1] is not None:
            mapping.append((own[1], tf.zeros(own[1].shape) if bias is None else bias))
        lock = contextlib.nullcontext() if self.training_dtype == "float32" else _POLICY_LOCK
        with lock, keras.StatelessScope(state_mapping=mapping):
            y = layer(x)
        return y if bias is None or own[1] is not None else y + bias

    def gain_and_bias(self) -> tuple[tf.Tensor, tf.Tensor | None]:
        """What inference multiplies the kernel by, and adds (None: nothing)."""
        gain, bias = self.kernel_gain.value, None if self.bias is None else self.bias.value
        if self.batch_norm is None:
            return gain, bias
        norm_gain, bias = batch_norms.gain_and_bias(self.batch_norm, bias)
        return gain * norm_gain, bias

    def folded_kernel(self) -> tf.Tensor:
        """The float kernel that counts in inference, channels in its last axis."""
        return self.flat_kernel() * self.gain_and_bias()[0]

    def integer_weights(self) -> kernels.IntegerWeights:
        """The kernel and bias that the device gets."""
        # Once for calls of the layer between the same grids, as all steps of a recurrent one.
        source = self._producers[0]
        # A fixed grid is that of a rule at a width.
        read = (id(source.quantizer or source.rule), source.output_bits)
        units = id(self.kernel_gain)
        name = f"weights of {units} between {read} and {id(self.quantizer)} at {self.scheme}"
        return graph.once(self.leader or self, name, self._integer_weights)

    def _integer_weights(self) -> kernels.IntegerWeights:
        return self._weights_at(
            self.bits, self.weight_quantizer, self.input_grids()[0], self.grid(), self.limit
        )

    @property
    def most_bias(self) -> float:
        """What codes of biases stay below; wider scales of the weights keep larger ones there."""
        return self._most_bias(self.bits, self.weight_quantizer)

    def _most_bias(self, bits: Scheme, quantizer: weight_quantizers.WeightQuantizer) -> float:
        stored = 4 if bits.weight_bits <= 4 else 8
        return min(self.target.limits.bias[bits.code_bits, stored], quantizer.bias_limit)

    def largest_step(self) -> tf.Tensor:
        """The largest step of the sums, `s_in * s_w[c]`, that the kernel asks for."""
        grid = self.input_grids()[0]
        weights = self._weights_at(self.bits, self.weight_quantizer, grid, self.grid(), None)
        return grid.scale * tf.reduce_max(weights.grid.scale)

    def largest_sums(self, grid: Grid) -> tf.Tensor:
        """What inputs on `grid` times the kernel add up to at most: `(channels,)`, real values."""
        return _largest_sums(self.flat_kernel(), self.gain_and_bias()[0], grid)

    def _weights_at(
        self,
        bits: Scheme,
        quantizer: weight_quantizers.WeightQuantizer,
        grid: Grid,
        out: Grid,
        cut: float | None,
    ) -> kernels.IntegerWeights:
        """The kernel and bias at a scheme, on codes of that quantizer, between two grids.

        `cut` is the limit of a ReLU behind them, or None.
        """
        gain, bias = self.gain_and_bias()
        limits = self.target.limits
        # Codes of one scale per tensor have one more axis, and no shape in common with the kernel.
        weigh = _weigh if self.is_per_tensor else _weigh_shared
        codes, scale, bias = weigh(
            self.flat_kernel(),
            gain,
            bias,
            quantizer.parts(self.ranged_kernel()),
            grid,
            out,
            fold=quantizer.fold,
            bits=quantizer.code_bits,
            most_bias=self._most_bias(bits, quantizer),
            # Where a range is too narrow for them it is widened (`kerasq.range_limits`), but not
            # beyond the limit of a ReLU.
            held=None if cut is None else (limits.multiplier, limits.sums[out.bits]),
            per_tensor=self.is_per_tensor,
            powers=self.powers.weights,
        )
        own = Grid(
            scale=scale,
            zero_point=tf.zeros(scale.shape),
            bits=quantizer.code_bits,
            narrow=True,
            axis=None if self.is_per_tensor else -1,
        )
        return kernels.IntegerWeights(codes, own, bias)

    def run_float(self, inputs: tf.Tensor) -> tf.Tensor:
        """The float layer with its BatchNormalization."""
        kernel = self.flat_kernel() * self.kernel_gain.value
        y = self.run_on(inputs, kernel, None if self.bias is None else self.bias.value)
        return y if self.batch_norm is None else self.batch_norm(y, training=False)

    def _rounded_bias(self) -> tf.Tensor | None:
        """The bias on the grid of the accumulators; None where there is none."""
        if self.bias is None:
            return None
        step = self.input_grids()[0].scale * self.weight_quantizer.scale(self.ranged_kernel())
        if not self.is_folded:
            step *= self.kernel_gain.value
        bias = self.bias.value
        # No gradient comes back to the step: ranges do not learn from the rounding of biases.
        return fake_quant.straight_through(bias, tf.round(bias / step) * step)

    def run_fake_quant(self, inputs: tf.Tensor, training: bool | None) -> tf.Tensor:
        """The float layer on a fake-quantized kernel and, without BatchNormalization, bias."""
        kernel = self._fake_quant_kernel()
        if training and self.leader is None and isinstance(self.weight_quantizer, A2Q):
            self._add_penalty(self.weight_quantizer)
        if self.batch_norm is not None:
            # Not rounded: the device has another bias, that which folding makes.
            bias = None if self.bias is None else self.bias.value
            y = self._run_mixed(inputs, kernel, bias)
            if training and not (self.fixed_statistics or self.fixed_batch_norm):
                return fused_batch_norm.normalize(self.batch_norm, y)
            return self.batch_norm(y, training=False)
        return self._run_mixed(inputs, kernel, self._rounded_bias())

    def _add_penalty(self, quantizer: A2Q) -> None:
        penalty = quantizer.loss(self.ranged_kernel())
        if penalty is not None:
            self.add_loss(penalty)

    def _fake_quant_kernel(self) -> tf.Tensor:
        """The kernel on its grid, in front of a BatchNormalization that is kept."""
        # Once for all calls of the layer, of which a recurrent one has one a step.
        name = f"kernel of {id(self.kernel_gain)}"
        return graph.once(self.leader or self, name, self._fake_quant)

    def _fake_quant(self) -> tf.Tensor:
        kernel = self.ranged_kernel()
        if not self.is_folded:
            # Nothing was folded where the BatchNormalization is kept: a constant costs no pass.
            gain = 1.0 if self.batch_norm is not None else self.kernel_gain.value
            return self.weight_quantizer.fake_quant(kernel, gain)
        kernel = self.weight_quantizer.fake_quant(kernel)
        kernel = kernel[..., 0] if self.is_per_tensor else kernel
        return kernel if self.batch_norm is None else self.unfolded(kernel)

    def unfolded(self, kernel: tf.Tensor) -> tf.Tensor:
        """The variable's value that folding makes `kernel` of; as it is where the gain is 0."""
        gain = tf.stop_gradient(self.gain_and_bias()[0])
        return tf.where(gain == 0.0, self.flat_kernel(), tf.math.divide_no_nan(kernel, gain))

    def _run_mixed(self, x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
        """`run_on`, computed in `training_dtype`."""
        if self.training_dtype == "float32":
            return self.run_on(x, kernel, bias)
        # By its policy a layer casts what it reads, its variables included.
        with _POLICY_LOCK:
            self.layer.dtype_policy = f"mixed_{self.training_dtype}"
            try:
                return tf.cast(self.run_on(x, kernel, bias), tf.float32)
            finally:
                self.layer.dtype_policy = "float32"

    def run_on_grids(
        self, inputs: tf.Tensor, grids: list[Grid], out: Grid, bits: Scheme | None = None
    ) -> tf.Tensor:
        """Integer accumulators, then the operator's way back to the codes of the output.

        At another scheme than the wrapper's own, weights are as quantization starts with them:
        uniform, over the range that `weight_range` finds.
        """
        (grid,) = grids
        if bits is None:
            weights = self.integer_weights()
        else:
            kind = ThresholdWeights if self.powers.weights else Uniform
            quantizer = kind(bits.weight_bits, range_gradient="none")
            weights = self._weights_at(bits, quantizer, grid, out, self.limit)
        total = self.sums(inputs, grid, weights)
        kernel = self.target.accumulator_kernel(
            self.rule.operator,
            grid.bits,
            weights.grid.bits,
            inputs=weights.codes.shape[0],
            groups=getattr(self.layer, "groups", 1),
        )
        return self._clamped(kernel(total, grid, weights, out), out) * out.scale

    def run_by(self, inputs: tf.Tensor, rescale: kernels.AccumulatorKernel) -> tf.Tensor:
        """`run_integer` by another way from the sums to the codes than the target's."""
        (grid,), out, weights = self.input_grids(), self.checked_grid(), self.integer_weights()
        codes = rescale(self.sums(inputs, grid, weights), grid, weights, out)
        return self._clamped(codes, out) * out.scale

    def sums(self, inputs: tf.Tensor, grid: Grid, weights: kernels.IntegerWeights) -> tf.Tensor:
        """The integer accumulators, bias included: steps of `s_in * s_w[c]`.

        Args:
            inputs: real values on `grid`.
            grid: that of the inputs.
            weights: the kernel and bias, such as `integer_weights()`.
        """
        total = kernels.accumulate(
            lambda codes: self.run_on(codes, weights.codes, None),
            kernels.centre(inputs, grid),
            grid,
        )
        return total + tf.cast(weights.bias, total.dtype)


def _largest_sums(kernel: tf.Tensor, gain: tf.Tensor, grid: Grid) -> tf.Tensor:
    weights = tf.reduce_sum(tf.abs(kernel * gain), axis=[*range(kernel.shape.rank - 1)])
    return weights * grid.scale * 2.0**grid.bits


def _weigh(
    kernel: tf.Tensor,
    gain: tf.Tensor,
    bias: tf.Tensor | None,
    parts: tuple[tf.Tensor, ...],
    grid: Grid,
    out: Grid,
    *,
    fold: Callable[..., tuple[tf.Tensor, Grid]],
    bits: int,
    most_bias: float,
    held: tuple[float, float] | None,
    per_tensor: bool,
    powers: bool,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Codes of the kernel, their scales, and codes of the bias, of tensors alone.

    Args:
        kernel: of float weights, channels in its last axis.
        gain: what it is multiplied by, `()` or `(channels,)`.
        bias: real values, `(channels,)`, or None.
        parts: what the weight quantizer makes of the kernel.
        grid: that of the inputs.
        out: that of the output.
        fold: of the weight quantizer.
        bits: width of the codes.
        most_bias: what codes of biases stay below.
        held: what multipliers, and sums in steps of the output, stay below; None where no scale is
            made smaller for them.
        per_tensor: whether all channels have one scale.
        powers: whether scales are powers of two: then they stay so, where limits ask for others.
    """
    sums = _largest_sums(kernel, gain, grid)
    # The bias of a dead channel may leave int32 once it is rescaled. Beyond twice what any sum and
    # the output reach, the output is at one end of its range, whatever the bias.
    most = 2.0 * (sums + out.scale * 2.0**out.bits)
    bias = tf.zeros_like(most) if bias is None else tf.clip_by_value(bias, -most, most)
    # Biases are counted in these scales: wider ones keep their codes within the limit, and the
    # product `s_in * s_w` a normal number.
    least = tf.abs(bias) / (grid.scale * most_bias)
    least = tf.maximum(least, _LEAST_STEP / grid.scale)
    if powers:
        least, kernel = scales.up(least), kernel * gain
        gain = tf.ones_like(least)
    if per_tensor:
        folded = (kernel * gain)[..., None]
        most = tf.reduce_max(least)
        codes, own = fold(folded, tf.ones([1]), least=most, parts=parts, bits=bits)
        codes, scale = codes[..., 0], own.scale[0]
    else:
        codes, own = fold(kernel, gain, least=least, parts=parts, bits=bits)
        scale = own.scale
    step = grid.scale * scale
    # In float64, as those of int16 have more bits than float32 has.
    bias_codes = tf.round(tf.cast(bias, tf.float64) / tf.cast(step, tf.float64))
    if held is not None:
        # There hardly any step of the sums lies inside of the range: all but those next to 0 are at
        # an end of it, at smaller steps as well.
        needed = tf.maximum(step / held[0], sums / held[1])
        needed = tf.reduce_max(needed) if per_tensor else needed
        factor = tf.minimum(1.0, out.scale * (1.0 - 2.0**-20) / needed)
        scale *= scales.down(factor) if powers else factor
    return codes, scale, bias_codes


_weigh_shared = shared(_weigh)


class _Keep(keras.constraints.Constraint):
    """Puts what stays of a kernel back after each update: zeros, clusters and frozen weights."""

    def __init__(self, wrapper: KernelWrapper) -> None:
        self._wrapper = wrapper
        self._own = wrapper.kernel.constraint

    def __call__(self, value: Any) -> Any:
        """The kernel of that shape, by the user's own constraint first."""
        wrapper = self._wrapper
        value = value if self._own is None else self._own(value)
        kernel = wrapper.rule.flatten(value)
        if wrapper.structure is not None:
            kernel = wrapper.structure.restored(kernel)
        if isinstance(wrapper.weight_quantizer, PowerOfTwo):
            kernel = self._frozen(kernel)
        return wrapper.rule.unflatten(kernel, value.shape)

    def _frozen(self, kernel: Any) -> Any:
        """The kernel, its frozen weights at their exact values; same shape."""
        wrapper = self._wrapper
        if not wrapper.is_per_tensor:
            return wrapper.weight_quantizer.restored(kernel)
        # Powers of two, so that neither the product nor the quotient rounds.
        gain = wrapper.kernel_gain.value
        return wrapper.weight_quantizer.restored((kernel * gain)[..., None])[..., 0] / gain
