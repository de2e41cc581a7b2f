"""TensorFlow's converter, as both exports set it up."""

import itertools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def converter(
    model: keras.Model, batch_size: int, run: Callable[[Any], Any]
) -> tf.lite.TFLiteConverter:
    """The converter of a function of a model's inputs.

    What it writes has inputs and outputs in the model's order, and no signature
    (`kerasq.export.signature.add`).

    Args:
        model: what the inputs are those of.
        batch_size: the fixed number of samples that a call takes.
        run: from tensors in the structure of `model.input` to the outputs, in their order; it is
            traced, maybe more than once.
    """

    def specs(samples: int | None) -> list[tf.TensorSpec]:
        # Names of our own: a user's may be Python keywords, or what TensorFlow refuses.
        return [
            tf.TensorSpec([samples, *x.shape[1:]], x.dtype, name=f"input_{i}")
            for i, x in enumerate(model.inputs)
        ]

    def serve(*xs: tf.Tensor) -> list[tf.Tensor]:
        return keras.tree.flatten(run(keras.tree.pack_sequence_as(model.input, list(xs))))

    # Traced for any number of samples, as training is: Keras's operations look at shapes. A sum
    # whose second operand squeezes to a vector, as (1, 6, 1) does, is one with a bias for it, and
    # along another axis.
    is_fixed = all(x.shape[0] == batch_size for x in model.inputs)
    traced = tf.function(serve, specs(batch_size if is_fixed else None), autograph=False)
    # Loops keep lists of tensors, whose shapes the converter must know.
    if _has_loop(traced.get_concrete_function()):
        traced = serve

    function = tf.function(lambda *xs: traced(*xs), specs(batch_size), autograph=False)
    concrete = function.get_concrete_function()
    found = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    # By way of a SavedModel in a temporary folder it takes more than twice as long.
    found.experimental_lower_to_saved_model = False
    # TensorFlow's version and options, for which it would read and write the file once more.
    found.exclude_conversion_metadata = True
    return found


def _has_loop(function: Any) -> bool:
    """Whether a traced function, or one that it calls, has a loop."""
    graph = function.graph.as_graph_def()
    nodes = itertools.chain(graph.node, *(f.node_def for f in graph.library.function))
    return any(node.op in ("While", "StatelessWhile") for node in nodes)
