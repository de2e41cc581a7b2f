"""Wrapping a whole LSTM: per gate one scale of each kernel, int8 hidden states, an int16 cell."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from kerasq import fake_quant, kernels
from kerasq.grid import Grid
from kerasq.kernels.lstm import CELL_BITS, LstmWeights
from kerasq.quantizers.activations import FIRST_BATCHES
from kerasq.quantizers.structure import Kept, Structure
from kerasq.wrappers import QuantizeWrapper

# Codes of biases stay below.
_MOST_BIAS = 2.0**28
# Steps that a loop has none for: it takes 1.4 times as long in training, but is traced once.
_UNROLLED = 64
# The largest cell state where no data has told.
_UNSEEN = 16.0


@keras.saving.register_keras_serializable("kerasq")
class LstmWrapper(QuantizeWrapper):
    """A `kerasq.layers.SequenceLSTM` on integers.

    Kernels have a symmetric grid for each gate, over their largest magnitude. The hidden state has
    the range of the output, and the cell state the least [-2^n, 2^n), n up to 6, that holds
    `cell_peak`, its largest magnitude in calibration and training.

    Args:
        layer: the LSTM.
        keep_zeros: whether weights of both kernels that are 0 stay 0.
        **kwargs: see `QuantizeWrapper`.
    """

    # Loops of a number of steps that XLA would not know.
    supports_jit = False

    def __init__(self, layer: keras.Layer, keep_zeros: bool = False, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self.keep_zeros = keep_zeros
        self._structures = [Structure(), Structure()] if keep_zeros else []

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return {**super().get_config(), "keep_zeros": self.keep_zeros}

    def build(self, input_shape: Any = None) -> None:
        """Builds the layer, the range of its output, and that of the cell state."""
        super().build(input_shape)
        self.cell_peak = self.add_weight(
            name="cell_peak",
            shape=(),
            initializer="zeros",
            trainable=False,
            autocast=False,
            aggregation="mean",
        )
        for structure, variable in zip(self._structures, self._kernels(), strict=False):
            structure.start(functools.partial(getattr, variable, "value"))
            variable.constraint = Kept(structure, variable.constraint)

    def _kernels(self) -> tuple[keras.Variable, keras.Variable]:
        """The variables of the kernel and the recurrent kernel."""
        return self.layer.cell.kernel, self.layer.cell.recurrent_kernel

    def cell_bits(self) -> tf.Tensor:
        """The integer bits of the cell state."""
        peak = self.cell_peak.value
        peak = tf.where(peak > 0.0, peak, _UNSEEN)
        powers = 2.0 ** tf.range(float(CELL_BITS))
        return tf.reduce_sum(tf.cast(peak > powers, tf.int64))

    def assign_cell_bits(self, bits: int) -> None:
        """Has the cell state so many integer bits, 0 to `CELL_BITS`."""
        self.cell_peak.assign(2.0**bits)

    def kernels(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The float kernel and recurrent kernel."""
        kernel, recurrent = (variable.value for variable in self._kernels())
        if not self._structures:
            return kernel, recurrent
        own, other = self._structures
        return own.kept(kernel), other.kept(recurrent)

    def _weights(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Kernel, recurrent kernel and bias."""
        cell = self.layer.cell
        kernel, recurrent = self.kernels()
        bias = cell.bias.value if cell.use_bias else tf.zeros(kernel.shape[-1:])
        return kernel, recurrent, bias

    def integer_weights(self) -> LstmWeights:
        """What the device gets."""
        kernel, recurrent, bias = self._weights()
        scale = self.input_grids()[0].scale
        most = tf.reduce_max(tf.abs(tf.reshape(bias, (4, -1))), 1) / (scale * _MOST_BIAS)
        # Where all weights of a gate are next to 0 its bias would have more bits than int32 has.
        own, other = tf.maximum(_scales(kernel), most), _scales(recurrent)
        units = recurrent.shape[0]
        steps = tf.cast(tf.repeat(own * scale, units), tf.float64)
        return LstmWeights(
            kernel=_codes(kernel, own, units),
            kernel_scale=own,
            recurrent=_codes(recurrent, other, units),
            recurrent_scale=other,
            bias=tf.round(tf.cast(bias, tf.float64) / steps),
        )

    def run_float(self, inputs: tf.Tensor) -> tf.Tensor:
        """The float layer, which notes how far its cell state goes."""
        y, peak = _loop(inputs, *self._weights(), lambda h: h)
        self._note(peak)
        return y

    def _note(self, peak: tf.Tensor) -> None:
        self.cell_peak.assign(tf.maximum(self.cell_peak.value, tf.stop_gradient(peak)))

    def run_fake_quant(self, inputs: tf.Tensor, training: bool | None) -> tf.Tensor:
        """The loop in float on fake-quantized kernels; each step reads quantized hidden states."""
        kernel, recurrent, bias = self._weights()
        quantizer = self.output_quantizer
        assert quantizer is not None
        # A range that the first batches have yet to find holds any hidden state.
        is_started = quantizer.batches_seen.value >= FIRST_BATCHES
        low, high = quantizer.range()
        low = tf.stop_gradient(tf.where(is_started, low, -1.0))
        high = tf.stop_gradient(tf.where(is_started, high, 1.0))
        # One operator a step, whose rounding of the range itself is no matter in training.
        quantized = tf.quantization.fake_quant_with_min_max_vars
        y, peak = _loop(
            inputs,
            _fake_quant(kernel),
            _fake_quant(recurrent),
            bias,
            lambda h: quantized(h, low, high),
        )
        if training:
            self._note(peak)
        return y

    def run_on_grids(
        self, inputs: Any, grids: list[Grid], out: Grid, bits: Any = None
    ) -> tf.Tensor:
        """The operator; see `QuantizeWrapper.run_on_grids`."""
        del bits
        codes = [kernels.centre(inputs, grids[0])]
        return self.target.run(self.rule.operator, self, codes, grids, out) * out.scale


def _scales(kernel: tf.Tensor) -> tf.Tensor:
    """The scale of each gate of a kernel, `(4,)`."""
    gates = tf.reshape(kernel, (kernel.shape[0], 4, -1))
    return tf.maximum(tf.reduce_max(tf.abs(gates), (0, 2)) / 127.0, 1e-12)


def _codes(kernel: tf.Tensor, scales: tf.Tensor, units: int) -> tf.Tensor:
    steps = tf.cast(tf.repeat(scales, units), tf.float64)
    return tf.round(tf.cast(kernel, tf.float64) / steps)


def _fake_quant(kernel: tf.Tensor) -> tf.Tensor:
    steps = tf.repeat(_scales(kernel), kernel.shape[-1] // 4)
    return fake_quant.straight_through(kernel, tf.round(kernel / steps) * steps)


def _loop(
    x: tf.Tensor,
    kernel: tf.Tensor,
    recurrent: tf.Tensor,
    bias: tf.Tensor,
    quantized: Callable[[tf.Tensor], tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Hidden states of all steps, and the largest magnitude of the cell state.

    Args:
        x: the sequence, `(samples, steps, features)`.
        kernel: `(features, 4 units)`; gates in Keras's order.
        recurrent: `(units, 4 units)`.
        bias: `(4 units,)`.
        quantized: what a step does to the hidden state that it reads.
    """
    # What the input adds to all steps is one product, not one a step.
    added = tf.transpose(tf.matmul(x, kernel[None]) + bias, [1, 0, 2])

    def step(states: tuple[tf.Tensor, ...], total: tf.Tensor) -> tuple[tf.Tensor, ...]:
        cell, hidden = states
        total += tf.matmul(quantized(hidden), recurrent)
        entry, forget, candidate, output = tf.split(total, 4, axis=-1)
        cell = tf.sigmoid(forget) * cell + tf.sigmoid(entry) * tf.tanh(candidate)
        return cell, tf.sigmoid(output) * tf.tanh(cell)

    zeros = tf.zeros([tf.shape(x)[0], recurrent.shape[0]])
    if x.shape[1] <= _UNROLLED:
        steps = itertools.accumulate(tf.unstack(added), step, initial=(zeros, zeros))
        cells, hidden = map(tf.stack, zip(*itertools.islice(steps, 1, None), strict=True))
    else:
        cells, hidden = tf.scan(step, added, (zeros, zeros))
    return tf.transpose(hidden, [1, 0, 2]), tf.reduce_max(tf.abs(cells))
