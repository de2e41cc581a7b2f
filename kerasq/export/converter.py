"""TensorFlow's converter, as both exports set it up."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def converter(
    model: keras.Model, batch_size: int, run: Callable[[Any], Any]
) -> tf.lite.TFLiteConverter:
    """The converter of a function of a model's inputs.

    Inputs and outputs are called "input_0", ... and "output_0", ... in the model's order; see
    `kerasq.export.signature.in_order`.

    Args:
        model: what the inputs are those of.
        batch_size: the fixed number of samples that a call takes.
        run: from tensors in the structure of `model.input` to the outputs, in their order; it is
            traced, maybe more than once.
    """
    # Names of our own: a user's may be Python keywords or hold characters that TensorFlow refuses.
    specs = [
        tf.TensorSpec([batch_size, *x.shape[1:]], x.dtype, name=f"input_{i}")
        for i, x in enumerate(model.inputs)
    ]

    @tf.function(input_signature=specs, autograph=False)
    def serve(*xs: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = run(keras.tree.pack_sequence_as(model.input, list(xs)))
        return {f"output_{i}": y for i, y in enumerate(keras.tree.flatten(outputs))}

    module = tf.Module()
    module.serve = serve  # The signature, and with it the names, are those of an attribute.
    return tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], module)
