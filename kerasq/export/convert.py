"""First half of the export: a quantized Keras model to a QDQ flatbuffer, by TFLiteConverter."""

import re
from typing import Any

import keras
import tensorflow as tf

from kerasq import graph, registry
from kerasq.grid import Grid
from kerasq.wrappers import KernelWrapper, QuantizeWrapper

_TAG = "kerasq_op{}_"
_TAGS = re.compile(_TAG.format(r"(\d+)"))


class Tagger:
    """Runs layers in float, wrappers between fake-quant ops, all under names with a number.

    The converter keeps op names, so that the number leads from a tensor of the flatbuffer back to
    the layer and to its exact grid.

    Attributes:
        tagged: by number, the readable name of what it stands for: a layer (grid None), or a
            fake-quantized tensor and its grid.
    """

    def __init__(self) -> None:
        self.tagged: list[tuple[str, Grid | None]] = []

    def _tag(self, name: str, grid: Grid | None) -> str:
        self.tagged.append((name, grid))
        return _TAG.format(len(self.tagged) - 1)

    def run(self, layer: keras.Layer, inputs: Any) -> tf.Tensor:
        """The layer's output."""
        with tf.name_scope(self._tag(layer.name, None)):
            if isinstance(layer, QuantizeWrapper):
                return self._wrapper(layer, inputs)
            return layer(inputs)

    def _wrapper(self, wrapper: QuantizeWrapper, inputs: Any) -> tf.Tensor:
        with tf.init_scope():
            grid = wrapper.grid().numpy()
        if isinstance(wrapper, KernelWrapper):
            y = self._kernel(wrapper, inputs)
        elif registry.relu_limit(wrapper.layer)[0]:
            y = tf.nn.relu(inputs)  # The range's clamp is the upper limit.
        else:
            y = wrapper.layer(inputs)
        return self._fake_quant(y, wrapper.name, grid)

    def _kernel(self, wrapper: KernelWrapper, x: tf.Tensor) -> tf.Tensor:
        """The layer on constants: weights that lie on their grid already."""
        with tf.init_scope():
            weights = wrapper.integer_weights()
            kernel = (weights.codes * weights.grid.scale).numpy()
            bias = (weights.bias * (wrapper.input_grids()[0].scale * weights.grid.scale)).numpy()
            grid = weights.grid.numpy()
        fake_quantized = self._fake_quant(tf.constant(kernel), f"{wrapper.name}/kernel", grid)
        return wrapper.run_on(x, fake_quantized, tf.constant(bias))

    def _fake_quant(self, x: tf.Tensor, name: str, grid: Grid) -> tf.Tensor:
        op = "" if grid.axis is None else "_per_channel"
        return getattr(tf.quantization, f"fake_quant_with_min_max_vars{op}")(
            x,
            grid.low,
            grid.high,
            num_bits=grid.bits,
            narrow_range=grid.narrow,
            name=self._tag(name, grid),
        )


def tags_of(tensor_name: str) -> list[int]:
    """The numbers in the name of a tensor: one an op that the converter made it from."""
    return [int(number) for number in _TAGS.findall(tensor_name)]


def convert(model: keras.Model, batch_size: int) -> tuple[bytes, list[tuple[str, Grid | None]]]:
    """Converts `model` to a float flatbuffer with QUANTIZE/DEQUANTIZE pairs.

    Args:
        model: a quantized model whose ranges are known.
        batch_size: the fixed number of samples a call takes.

    Returns:
        The flatbuffer, and the name and grid of each tagged tensor. The signature's inputs are
        called "input_0", ..., its outputs "output_0", ..., in the model's order.
    """
    tagger = Tagger()
    # Names of our own: a user's may be Python keywords or hold characters that TensorFlow refuses.
    specs = [
        tf.TensorSpec([batch_size, *x.shape[1:]], x.dtype, name=f"input_{i}")
        for i, x in enumerate(model.inputs)
    ]

    @tf.function(input_signature=specs)
    def serve(*xs: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = keras.tree.pack_sequence_as(model.input, list(xs))
        outputs = graph.run(model, inputs, tagger.run)
        return {f"output_{i}": y for i, y in enumerate(outputs)}

    module = tf.Module()
    module.serve = serve
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [serve.get_concrete_function()], module
    )
    return converter.convert(), tagger.tagged
