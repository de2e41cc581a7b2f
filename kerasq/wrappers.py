"""Wrappers: any Keras layer, run as the integer kernel that it becomes on the device.

A wrapper does one of two things:

- in training, the float layer on fake-quantized weights, then fake-quant of the output: fast, and
  differentiable by the straight-through estimator;
- in inference, the integer kernel itself (`kerasq.kernels`), bit for bit; its gradient is that of
  the training path.
"""

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from kerasq import fake_quant, graph, kernels, quantizers, registry, scheme
from kerasq.grid import Grid
from kerasq.prepare import batch_norm as batch_norms

# Bias codes stay below this, so that accumulators have room left in int32. It is reached by
# channels whose weights are nearly all 0, as folding a BatchNormalization may leave them.
LARGEST_BIAS = 2.0**30


@keras.saving.register_keras_serializable("kerasq")
class QuantizeWrapper(keras.layers.Wrapper):
    """Runs `layer` and puts its output on a quantization grid.

    The wrapper carries the name of the layer, so that names stay those of the float model. It
    learns the grids of its inputs from the layers that it is called on.

    Args:
        layer: the layer to run; one that `kerasq.registry` has a rule for.
        scheme: name of the scheme, a key of `kerasq.scheme.SCHEMES`.
        relu: whether a ReLU behind the layer is part of it.
        limit: upper limit of that ReLU, or None.
        range_gradient: gradient of the output's range: "lsq", "clip" or "none".
    """

    def __init__(
        self,
        layer: keras.Layer,
        scheme: str = "w8a8",
        relu: bool = False,
        limit: float | None = None,
        range_gradient: str = "lsq",
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **{"name": layer.name, **kwargs})
        self.scheme = scheme
        self.relu = relu
        self.limit = limit
        self.range_gradient = range_gradient
        self._producers = _Producers()
        self.output_quantizer = None
        if self.rule.output == "range":
            self.output_quantizer = quantizers.ActivationQuantizer(
                bits=self._bits.activation_bits,
                relu=relu,
                limit=limit,
                range_gradient=range_gradient,
                name="output",
            )

    @property
    def _bits(self) -> scheme.Scheme:
        return scheme.resolve(self.scheme)

    @property
    def rule(self) -> registry.Rule:
        """The layer's row in the registry."""
        if isinstance(self.layer, keras.layers.Identity):
            return registry.INPUT
        return registry.rule(self.layer)

    @property
    def quantizer(self) -> quantizers.ActivationQuantizer | None:
        """What quantizes the output; None where the grid is fixed."""
        if self.rule.output == "input":
            return self._producers[0].quantizer
        return self.output_quantizer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer; on symbolic tensors, also notes which layers they come from."""
        inputs = graph.symbolic((args, kwargs))
        if inputs and self.layer_reads_grids:
            self._producers = _Producers(quantized_by(x, self.name) for x in inputs)
        return super().__call__(*args, **kwargs)

    @property
    def layer_reads_grids(self) -> bool:
        """Whether the inputs lie on grids: all but the input's own wrapper."""
        return self.rule is not registry.INPUT

    def build(self, input_shape: Any = None) -> None:
        """Builds the layer and the range of its output."""
        super().build(input_shape)
        if self.output_quantizer is not None:
            self.output_quantizer.build()

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The layer's own."""
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "scheme": self.scheme,
            "relu": self.relu,
            "limit": self.limit,
            "range_gradient": self.range_gradient,
        }

    def grid(self) -> Grid:
        """The grid that the output lies on, as tensors."""
        if self.rule.grid is not None:
            return self.rule.grid
        if self.output_quantizer is not None:
            return self.output_quantizer.grid()
        return self._producers[0].grid()

    def input_grids(self) -> list[Grid]:
        """The grids that the inputs lie on."""
        return [producer.grid() for producer in self._producers]

    def call(self, inputs: Any, training: bool | None = None) -> tf.Tensor:
        """Quantized output, as real values: see the module."""
        smooth = self.run_fake_quant(inputs, training)
        if self.output_quantizer is not None:
            smooth = self.output_quantizer(smooth, training=training)
        elif self.quantizer is not None:  # Average pooling rounds to the grid of its input.
            smooth = self.quantizer.fake_quant(smooth)
        # Fixed grids (softmax, sigmoid, tanh) are left out: a probability that rounds to 0 would
        # get no gradient from a cross-entropy.
        if training:
            return smooth
        return fake_quant.straight_through(smooth, self.run_integer(inputs))

    def run_float(self, inputs: Any) -> tf.Tensor:
        """The layer in float, on float weights, as it was before quantization."""
        return self.layer(inputs)

    def run_fake_quant(self, inputs: Any, training: bool | None) -> tf.Tensor:
        """The layer in float on fake-quantized weights; the output is not quantized yet."""
        del training
        return self.layer(inputs)

    def run_integer(self, inputs: Any) -> tf.Tensor:
        """What the integer kernel computes, as real values on the output's grid."""
        if not self.layer_reads_grids:
            out = self._checked_grid()
            return kernels.quantize(inputs, out) * out.scale
        grids = self.input_grids()
        out = grids[0] if self.rule.output == "input" else self._checked_grid()
        codes = [
            kernels.centre(x, grid)
            for x, grid in zip(keras.tree.flatten(inputs), grids, strict=True)
        ]
        return self.rule.simulate(self.layer, codes, grids, out) * out.scale

    def _checked_grid(self) -> Grid:
        if self.output_quantizer is not None:
            tf.debugging.Assert(
                self.output_quantizer.batches_seen.value > 0,
                [
                    f"The range of layer {self.name!r} has seen no data, so its output has no "
                    "meaning yet. Call kerasq.calibrate(model, data) or fit the model first."
                ],
            )
        return self.grid()


@dataclasses.dataclass(frozen=True)
class IntegerWeights:
    """A kernel and bias as the device stores them.

    Attributes:
        codes: kernel codes (float32 tensor of integers), channels flattened to the last axis.
        grid: their grid, per channel along that axis.
        bias: bias codes at `input scale * grid.scale`.
    """

    codes: tf.Tensor
    grid: Grid
    bias: tf.Tensor


@keras.saving.register_keras_serializable("kerasq")
class KernelWrapper(QuantizeWrapper):
    """A layer with a kernel: symmetric per-channel weights, integer bias.

    The kernel that counts is the variable times `kernel_gain`, a constant (1, unless a
    BatchNormalization was folded: see `kerasq.prepare.batch_norm.fold`). The learnable range of
    the variable is `kernel_range`, one largest magnitude a channel. Biases are rounded to the grid
    of the accumulators, `s_in * s_w[c]`.

    Args:
        layer: Conv2D, DepthwiseConv2D or Dense without activation.
        batch_norm: a BatchNormalization behind it that stays trainable, or None. It is folded
            into the kernel in inference and at export; the range of the kernel is that of the
            kernel before folding.
        **kwargs: see `QuantizeWrapper`.
    """

    def __init__(
        self,
        layer: keras.Layer,
        batch_norm: keras.layers.BatchNormalization | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(layer, **kwargs)
        self.batch_norm = batch_norm

    def get_config(self) -> dict:
        """The constructor's arguments."""
        batch_norm = self.batch_norm and keras.saving.serialize_keras_object(self.batch_norm)
        return {**super().get_config(), "batch_norm": batch_norm}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "KernelWrapper":
        """The wrapper that `get_config` describes."""
        config = dict(config)
        batch_norm = config.pop("batch_norm", None)
        if batch_norm is not None:
            batch_norm = keras.saving.deserialize_keras_object(batch_norm, custom_objects)
        wrapper = super().from_config(config, custom_objects)
        wrapper.batch_norm = batch_norm
        return wrapper

    def build(self, input_shape: Any = None) -> None:
        """Builds the layer, its BatchNormalization and the ranges."""
        super().build(input_shape)
        if self.batch_norm is not None and not self.batch_norm.built:
            self.batch_norm.build(self.layer.compute_output_shape(input_shape))
        if self.range_gradient != "none":
            self.kernel_range = self.add_weight(
                name="kernel_range",
                shape=(self._flat(self.kernel.value).shape[-1],),
                initializer=lambda *_, **__: quantizers.weight_range(self._flat(self.kernel.value)),
                constraint=quantizers.UpperEnd(),
                aggregation="mean",
                autocast=False,
            )
        self.kernel_gain = self.add_weight(
            name="kernel_gain", shape=(), initializer="ones", trainable=False, autocast=False
        )

    @property
    def kernel(self) -> keras.Variable:
        """The layer's float kernel."""
        return getattr(self.layer, str(self.rule.kernel))

    @property
    def bias(self) -> keras.Variable | None:
        """The layer's float bias."""
        return self.layer.bias if self.layer.use_bias else None

    def _flat(self, kernel: tf.Tensor) -> tf.Tensor:
        """The kernel with all channel axes flattened into the last."""
        head = kernel.shape[: kernel.shape.rank - self.rule.channels]
        return tf.reshape(kernel, [*head, -1])

    def run_on(self, x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
        """The layer on other weights: `kernel` (channels flattened) and `bias`."""
        mapping = [(self.kernel, tf.reshape(kernel, self.kernel.shape))]
        if self.bias is not None:
            mapping.append((self.bias, tf.zeros(self.bias.shape) if bias is None else bias))
        with keras.StatelessScope(state_mapping=mapping):
            y = self.layer(x)
        return y if bias is None or self.bias is not None else y + bias

    def _weight_range(self) -> tf.Tensor:
        """Largest magnitude per channel; under "none" it follows the weights."""
        if self.range_gradient == "none":
            return tf.stop_gradient(quantizers.weight_range(self._flat(self.kernel.value)))
        return quantizers.UpperEnd()(self.kernel_range.value)

    def _gain_and_bias(self) -> tuple[tf.Tensor, tf.Tensor | None]:
        """What inference multiplies the kernel by, and adds (None: nothing)."""
        gain, bias = self.kernel_gain.value, None if self.bias is None else self.bias.value
        if self.batch_norm is None:
            return gain, bias
        norm_gain, bias = batch_norms.gain_and_bias(self.batch_norm, bias)
        return gain * norm_gain, bias

    def integer_weights(self) -> IntegerWeights:
        """The kernel and bias that the device gets."""
        kernel, high = self._flat(self.kernel.value), self._weight_range()
        gain, bias = self._gain_and_bias()
        kernel, high = kernel * gain, high * tf.abs(gain)
        if bias is None:
            bias = tf.zeros(kernel.shape[-1:])
        in_scale = self.input_grids()[0].scale
        high = tf.maximum(high, quantizers.NARROWEST)
        bits = self._bits.weight_bits
        grid = fake_quant.grid_from_range(-high, high, bits, narrow=True, axis=-1)
        scale = tf.maximum(grid.scale, tf.abs(bias) / (in_scale * LARGEST_BIAS))
        grid = dataclasses.replace(grid, scale=scale)
        codes = kernels.quantize(kernel, grid)
        return IntegerWeights(codes, grid, tf.round(bias / (in_scale * scale)))

    def run_float(self, inputs: tf.Tensor) -> tf.Tensor:
        """The float layer with its BatchNormalization."""
        kernel = self._flat(self.kernel.value) * self.kernel_gain.value
        y = self.run_on(inputs, kernel, None if self.bias is None else self.bias.value)
        return y if self.batch_norm is None else self.batch_norm(y, training=False)

    def run_fake_quant(self, inputs: tf.Tensor, training: bool | None) -> tf.Tensor:
        """The float layer on a fake-quantized kernel and, without BatchNormalization, bias."""
        high = self._weight_range()
        kernel = quantizers.fake_quant_weights(
            self._flat(self.kernel.value), high, self._bits.weight_bits, self.range_gradient
        )
        kernel = kernel * self.kernel_gain.value
        if self.batch_norm is not None:
            bias = None if self.bias is None else self.bias.value
            return self.batch_norm(self.run_on(inputs, kernel, bias), training=training)
        if self.bias is None:
            return self.run_on(inputs, kernel, None)
        levels = 2 ** (self._bits.weight_bits - 1) - 1
        step = self.input_grids()[0].scale * high * self.kernel_gain.value / levels
        step = tf.stop_gradient(step)
        bias = self.bias.value
        return self.run_on(
            inputs, kernel, fake_quant.straight_through(bias, tf.round(bias / step) * step)
        )

    def run_integer(self, inputs: tf.Tensor) -> tf.Tensor:
        """Integer convolution, one multiplication, one rounding: exact below 2^24."""
        grid, out = self.input_grids()[0], self._checked_grid()
        weights = self.integer_weights()
        total = self.run_on(kernels.centre(inputs, grid), weights.codes, weights.bias)
        return kernels.rescale(total, grid.scale * weights.grid.scale / out.scale, out) * out.scale


class _Producers:
    """The wrappers that made a wrapper's inputs.

    Keras would track layers held in a plain list, and save their variables twice.
    """

    def __init__(self, wrappers: Any = ()) -> None:
        self._wrappers = tuple(wrappers)

    def __iter__(self) -> Any:
        return iter(self._wrappers)

    def __getitem__(self, index: int) -> QuantizeWrapper:
        return self._wrappers[index]


def quantized_by(tensor: keras.KerasTensor, reader: str) -> QuantizeWrapper:
    """The wrapper whose grid `tensor` lies on, found through layers that only copy values."""
    layer, inputs = graph.origin(tensor)
    if isinstance(layer, QuantizeWrapper):
        return layer
    rule = registry.find(layer)
    if rule is None or rule.output != "same":
        raise ValueError(
            f"Layer {reader!r} must read quantized values. Received: the output of {layer.name!r} "
            f"({type(layer).__name__}). Build the model with `kerasq.quantize_model`."
        )
    return quantized_by(inputs[0], reader)


def ranged(model: keras.Model) -> dict[str, quantizers.ActivationQuantizer]:
    """The quantizers of a model that have a range, by layer name."""
    return {
        layer.name: layer.output_quantizer
        for layer in model.layers
        if isinstance(layer, QuantizeWrapper) and layer.output_quantizer is not None
    }


def require_quantized(model: Any) -> None:
    """Raises a ValueError unless `model` came from `quantize_model`."""
    if not isinstance(model, keras.Model) or not ranged(model):
        found = f"model {model.name!r}" if isinstance(model, keras.Model) else repr(model)
        raise ValueError(
            f"`model` must be a quantized model. Received: {found:.80}, which has no ranges. "
            "Call kerasq.quantize_model first."
        )
