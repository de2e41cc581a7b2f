"""`export_tflite`: from a quantized Keras model to an integer-only .tflite file."""

import os

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph
from kerasq.export.convert import convert
from kerasq.export.lower import Boundary, lower
from kerasq.files import check_writable
from kerasq.runtime import TFLiteModel
from kerasq.wrappers import ranged, require_quantized

DTYPES = ("int8", "uint8", "float32")


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike | None = None,
    input_dtype: str = "int8",
    output_dtype: str = "int8",
    batch_size: int = 1,
) -> TFLiteModel:
    """Exports a quantized model to LiteRT's integer kernels.

    The model is converted to a flatbuffer with QUANTIZE/DEQUANTIZE pairs, then lowered to integer
    operators. It has been loaded by the interpreter, and run, before anything is written.

    Args:
        model: what `quantize_model` returned, calibrated or trained.
        path: where to write the file, or None not to. It is written whole or not at all.
        input_dtype: type of the model's inputs: "int8", "uint8" or "float32".
        output_dtype: type of its outputs: the same choice.
        batch_size: the fixed number of samples that one call takes.

    Returns:
        The exported model.

    Raises:
        ValueError: for a model that is not quantized or has seen no data, or an unknown type.
        OSError: where `path` cannot be written; a file that was there stays as it was.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="head")])
        >>> q = kerasq.quantize_model(model)
        >>> kerasq.calibrate(q, np.array([[-1.0, 2.0], [0.5, 0.0]]))
        >>> lite = kerasq.export_tflite(q)
        >>> [op.name for op in lite.ops], lite.float_ops
        (['FULLY_CONNECTED'], [])
    """
    for name, value in (("input_dtype", input_dtype), ("output_dtype", output_dtype)):
        if value not in DTYPES:
            raise ValueError(f"`{name}` must be one of {list(DTYPES)}. Received: {name}={value!r}.")
    is_integer = isinstance(batch_size, (int, np.integer)) and not isinstance(batch_size, bool)
    if not is_integer or batch_size < 1:
        raise ValueError(
            f"`batch_size` must be a positive integer. Received: batch_size={batch_size!r}."
        )
    require_quantized(model)
    for x in model.inputs:
        if None in x.shape[1:]:
            raise ValueError(
                "The shape of a sample must be known, since exported models have fixed shapes. "
                f"Received: input {x.name!r} of shape {x.shape}. "
                "Build the model with a fixed `keras.Input(shape=...)`."
            )
    if path is not None:
        check_writable(path)
    _check_observed(model)
    content, tagged = convert(model, int(batch_size))
    boundary = Boundary(
        input_dtype=input_dtype,
        output_dtype=output_dtype,
        input_names=[x.name for x in model.inputs],
        output_names=_output_names(model),
        output_layers=[graph.origin(y)[0].name for y in model.outputs],
    )
    lite = TFLiteModel(lower(content, tagged, boundary))
    lite.predict([np.zeros(tensor.shape, np.float32) for tensor in lite.inputs])
    if path is not None:
        lite.save(path)
    return lite


def _check_observed(model: keras.Model) -> None:
    unseen = [
        name
        for name, quantizer in ranged(model).items()
        if float(tf.convert_to_tensor(quantizer.batches_seen.value)) == 0
    ]
    if unseen:
        raise ValueError(
            "The ranges must come from data before the model is exported. "
            f"Received: {len(unseen)} layer(s) that have seen none: {unseen}. "
            "Call kerasq.calibrate(model, data), or fit the model."
        )


def _output_names(model: keras.Model) -> list[str]:
    """A distinct name for each output: its key in a dict, or that of the layer that makes it."""
    if isinstance(model.output, dict) and len(model.output) == len(model.outputs):
        return sorted(model.output)  # the order in which Keras flattens it
    names: list[str] = []
    for name in model.output_names:
        taken = sum(other == name or other.startswith(f"{name}_") for other in names)
        names.append(f"{name}_{taken}" if taken else name)
    return names
