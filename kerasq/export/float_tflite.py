"""`export_float_tflite`: what an integer model is compared with."""

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq.export.converter import converter
from kerasq.export.signature import add
from kerasq.export.tflite import check_shapes, output_names
from kerasq.graph import functional
from kerasq.litert import flatbuffer
from kerasq.litert.runtime import TFLiteModel
from kerasq.quantize import float_model
from kerasq.support.data import input_names
from kerasq.support.files import check_writable

# Types of the weights that the converter is asked for; None for its own choice, int8.
WEIGHTS: dict[str, tf.DType | None] = {"float32": None, "float16": tf.float16, "int8": None}


def export_float_tflite(
    model: keras.Model,
    path: str | os.PathLike | None = None,
    *,
    weights: str = "float32",
    batch_size: int = 1,
) -> TFLiteModel:
    """Converts a float model to a .tflite that takes and gives float32.

    Args:
        model: a float Keras model whose inputs have known shapes.
        path: where to write the file, whole or not at all; None not to.
        weights: how they are stored: "float32"; "float16", which halves the file and computes in
            float32; or "int8", TFLite's dynamic range quantization, whose kernels quantize
            activations as they come.
        batch_size: the fixed number of samples that one call takes.

    Returns:
        The converted model.

    Raises:
        ValueError: for a model that is none, or quantized, unknown `weights`, or an input whose
            shape is not known.
        OSError: where `path` cannot be written.

    Example:
        >>> model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(64)])
        >>> plain = kerasq.export_float_tflite(model)
        >>> small = kerasq.export_float_tflite(model, weights="float16")
        >>> len(small.content) < 0.6 * len(plain.content)
        True
    """
    if weights not in WEIGHTS:
        raise ValueError(
            f"`weights` must be one of {list(WEIGHTS)}. Received: weights={weights!r}."
        )
    model = float_model(model)
    functional.check(model)
    check_shapes(model, batch_size)
    if path is not None:
        check_writable(path)
    if isinstance(model, keras.Sequential):  # It has no `input` and `output` before it is called.
        model = keras.Model(model.inputs, model.outputs)
    # With variables the converter leaves the weights out, as resource variables that nothing
    # initializes (TensorFlow 2.21): a small file that answers NaN.
    constants = [(v, tf.constant(v.numpy())) for v in model.variables]

    def run(inputs: Any) -> Any:
        with keras.StatelessScope(state_mapping=constants):
            return model(inputs, training=False)

    found = converter(model, batch_size, run)
    if weights != "float32":
        found.optimizations = [tf.lite.Optimize.DEFAULT]
    if (stored := WEIGHTS[weights]) is not None:
        found.target_spec.supported_types = [stored]
    lite = TFLiteModel(_named(found.convert(), model))
    if path is not None:
        lite.save(path)
    return lite


def _named(content: bytes, model: keras.Model) -> bytes:
    """Inputs and outputs by the model's names; the converter writes none."""
    found = flatbuffer.read(content)
    add(found)
    signature, graph = found.signatureDefs[0], found.subgraphs[0]
    names = [*input_names(model), *output_names(model)]
    for end, name in zip([*signature.inputs, *signature.outputs], names, strict=True):
        end.name = name.encode()
    graph.inputs = np.array([end.tensorIndex for end in signature.inputs], np.int32)
    graph.outputs = np.array([end.tensorIndex for end in signature.outputs], np.int32)
    return flatbuffer.write(found)
