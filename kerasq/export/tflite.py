"""`export_tflite`: from a quantized Keras model to an integer-only .tflite file."""

import functools
import os
import platform
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kerasq import graph, range_limits, registry
from kerasq.export.convert import convert
from kerasq.export.dead_channels import values_of
from kerasq.export.lower import lower
from kerasq.export.proof import prove
from kerasq.export.signature import Signature
from kerasq.litert import tflite_metadata
from kerasq.litert.runtime import TFLiteModel
from kerasq.litert.runtimes import RUNTIMES
from kerasq.litert.tflite_metadata import Description, class_count
from kerasq.scheme import FLOAT_BITS
from kerasq.support.data import input_names
from kerasq.support.files import check_writable
from kerasq.support.finite import check_finite
from kerasq.support.restore import restored_on_error
from kerasq.targets import LITERT, Target
from kerasq.wrappers import (
    input_boundaries,
    preprocessing_of,
    quantized_by,
    range_variables,
    ranged,
    require_quantized,
    target_of,
)

DTYPES = ("int8", "int16", "uint8", "float32")


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike | None = None,
    *,
    input_dtype: str | None = None,
    output_dtype: str | None = None,
    batch_size: int = 1,
    check: bool = True,
    labels: Sequence[str] = (),
    normalization: tuple[Any, Any] | None = None,
    remove_dead_channels: bool = True,
) -> TFLiteModel:
    """Exports a quantized model to LiteRT's integer kernels.

    The model is converted to a float flatbuffer that is marked, then lowered to integer operators.
    Before anything is written, it must predict what `model` does on the first samples that this was
    calibrated on, in this process, or else on random ones. Ranges that are
    narrower than kernels take are widened in `model` as well, so that it predicts what the file
    does. That, what stays in float, or could not be packed, is printed; `print(lite)` shows all
    operators.

    Args:
        model: what `quantize_model` returned, calibrated or trained.
        path: where to write the file, or None not to. It is written whole or not at all.
        input_dtype: type of the model's inputs: None for the integers of their own grids (int8,
            or int16 where the scheme says so), which "int8" and "int16" insist on, or "uint8" or
            "float32". An input that stays float is float32 in any case. At "float32" an input that
            the model takes as integers, such as pixels of uint8, is of the model's type.
        output_dtype: type of its outputs: the same choice.
        batch_size: the fixed number of samples that one call takes.
        check: whether a file that predicts something else is an error.
        labels: names of the classes: two for an output of one value. With them, or a
            normalization, the file has TFLite Metadata, which MediaPipe and Android's tools read.
        normalization: `(mean, std)`, numbers or one a channel, where whoever feeds the model
            computes `(pixel - mean) / std`: the metadata says so, nothing computes it. None where
            the model takes pixels as they are.
        remove_dead_channels: whether the file goes without channels that change nothing: those
            whose weights are all code 0, which have one value whatever the input, and those that
            nothing reads with other weights. What constants add to sums goes into biases, so that
            all codes of the outputs are the same. Where padding, a sum with other channels, or an
            output of the model needs a channel, it stays.

    Returns:
        The exported model.

    Raises:
        ValueError: for a model that is not quantized, has seen no data or has NaN weights, an
            unknown type, or labels or a normalization that do not fit; and for a file that does not
            compute what `model` predicts: the first layer that differs is named. After an error, or
            an interrupt, `model` is as it was.
        OSError: where `path` cannot be written; a file that was there stays as it was.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="head")])
        >>> q = kerasq.quantize_model(model)
        >>> kerasq.calibrate(q, np.array([[-1.0, 2.0], [0.5, 0.0]]))
        >>> lite = kerasq.export_tflite(q)
        >>> [op.name for op in lite.ops], lite.float_ops
        (['FULLY_CONNECTED'], [])
    """
    require_quantized(model)
    check_shapes(model, batch_size)
    about = Description(name=model.name, labels=labels, normalization=normalization)
    _check_description(model, about)
    signature = _signature(model, input_dtype, output_dtype)
    # Converting takes a while, so all that can be wrong is found before.
    if path is not None:
        check_writable(path)
    _check_observed(model)
    check_finite(model)
    with restored_on_error(range_variables(model)), graph.remembering():
        content = _prepared(model, signature, int(batch_size), remove_dead_channels)
        lite = _written(model, content, path, check, about)
    for line in lite.remarks():
        print(line)
    return lite


def _prepared(
    model: keras.Model, signature: Signature, batch_size: int, remove_dead_channels: bool
) -> bytes:
    """A file's content, of a model whose ranges kernels take."""
    for remark in range_limits.widen(model):
        print(remark)
    range_limits.check(model)
    return _content(model, signature, batch_size, remove_dead_channels)


def _written(
    model: keras.Model,
    content: bytes,
    path: str | os.PathLike | None,
    check: bool,
    about: Description,
) -> TFLiteModel:
    """The exported model, proved and in its file."""
    runtime = _runtime(target_of(model))
    if about.labels or about.normalization is not None:
        content = tflite_metadata.described(content, about)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        # `_runtime` says it, and the remarks.
        lite = TFLiteModel(content, target=runtime)
    if check:
        prove(model, lite)
    else:
        # Kernels check shapes and scales when they are prepared: a file that cannot run is no file.
        lite.predict([np.zeros(tensor.shape, np.float32) for tensor in lite.inputs])
    if path is not None:
        lite.save(path)
    return lite


def content_of(
    model: keras.Model,
    batch_size: int,
    dtype: str | None = None,
    remove_dead_channels: bool = True,
) -> bytes:
    """A model's file, which is not loaded here, with both ends of a type."""
    return _content(model, _signature(model, dtype, dtype), batch_size, remove_dead_channels)


def _content(
    model: keras.Model, signature: Signature, batch_size: int, remove_dead_channels: bool
) -> bytes:
    values = functools.partial(values_of, model) if remove_dead_channels else None
    return lower(convert(model, batch_size), signature, values)


def _check_description(model: keras.Model, about: Description) -> None:
    """Raises a ValueError unless labels and normalization fit a model."""
    classes = [class_count(y.shape, y.dtype.startswith("float")) for y in model.outputs]
    tflite_metadata.check_labels(about.labels, classes)
    # A sample may be one number.
    channels = [[1, *x.shape[1:]][-1] for x in model.inputs]
    tflite_metadata.check_normalization(about.normalization, channels)


def _runtime(target: Target) -> str:
    """The interpreter that runs an export: LiteRT's, where the target's own one is not here."""
    own, runtime, missing = target.runtime, LITERT.name, ""
    if own is None:
        missing = f"no interpreter here computes as target {target.name!r} does."
    elif not RUNTIMES[own].version():
        missing = f"{RUNTIMES[own].title} is not installed. Run `pip install 'kerasq[{own}]'`."
    else:
        runtime = own
        if target.machines and platform.machine() not in target.machines:
            machines = " or ".join(target.machines)
            missing = f"its kernels are those of {machines}, not of this processor."
    if missing:
        print(f"The file is not checked against what the model predicts: {missing}")
    return runtime


def check_shapes(model: keras.Model, batch_size: int) -> None:
    """Raises a ValueError unless the shapes of all inputs are known."""
    is_integer = isinstance(batch_size, (int, np.integer)) and not isinstance(batch_size, bool)
    if not is_integer or batch_size < 1:
        raise ValueError(
            f"`batch_size` must be a positive integer. Received: batch_size={batch_size!r}."
        )
    for x in model.inputs:
        if None in x.shape[1:]:
            raise ValueError(
                "The shape of a sample must be known, since exported models have fixed shapes. "
                f"Received: input {x.name!r} of shape {x.shape}. "
                "Build the model with a fixed `keras.Input(shape=...)`."
            )


def _signature(model: keras.Model, input_dtype: str | None, output_dtype: str | None) -> Signature:
    """Types and names of the ends, as a user asked for them."""
    # An input has no boundary where all its readers stay float.
    boundaries = input_boundaries(model)
    found = [boundaries.get(id(x)) for x in model.inputs]
    input_bits = [FLOAT_BITS if x is None else x.bits.activation_bits for x in found]
    # An output that no wrapper makes is float, and takes any type.
    output_bits = [
        wrapper.bits.code_bits for wrapper in map(quantized_by, model.outputs) if wrapper
    ]
    return Signature(
        input_dtype=_dtype("input_dtype", input_dtype, input_bits),
        output_dtype=_dtype("output_dtype", output_dtype, output_bits),
        float_inputs=[bits == FLOAT_BITS for bits in input_bits],
        preprocessing=list(map(preprocessing_of, found)),
        input_names=input_names(model),
        output_names=output_names(model),
        output_layers=[_maker(y) for y in model.outputs],
    )


def _maker(tensor: keras.KerasTensor) -> str:
    """The call that computes a tensor: not one that is dropped, such as that of a Dropout."""
    layer, inputs = graph.origin(tensor)
    if registry.is_dropped(layer):
        return _maker(inputs[0])
    return graph.tensor_name(tensor)


def _dtype(name: str, dtype: str | None, widths: list[int]) -> str | None:
    """`dtype`, or None where it is what the ends of the model have anyway; checked."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(
            f"`{name}` must be one of {list(DTYPES)}, or None. Received: {name}={dtype!r}."
        )
    wanted = {"int8": 8, "uint8": 8, "int16": 16}.get(str(dtype))
    wrong = sorted({bits for bits in widths if bits not in (wanted, FLOAT_BITS)})
    if wanted and wrong:
        raise ValueError(
            f"`{name}` must fit the grids of the model. Received: {name}={dtype!r} where grids "
            f"have {wrong} bits. Use None for the model's own integers, or 'float32', or give the "
            "layer another scheme."
        )
    return dtype if dtype in ("uint8", "float32") else None


def _check_observed(model: keras.Model) -> None:
    """Raises a ValueError where a range is still what it was made with."""
    unseen = [name for name, quantizer in ranged(model).items() if not quantizer.has_seen_data()]
    if unseen:
        raise ValueError(
            "The ranges must come from data before the model is exported. "
            f"Received: {len(unseen)} layer(s) that have seen none: {unseen}. "
            "Call kerasq.calibrate(model, data), or fit the model."
        )


def output_names(model: keras.Model) -> list[str]:
    """A distinct name for each output: its key in a dict, or that of the layer that makes it."""
    # A dict of dicts has more outputs than keys, which Keras then names by layer itself.
    if isinstance(model.output, dict) and len(model.output) == len(model.outputs):
        return sorted(model.output)  # the order in which Keras flattens it
    names: list[str] = []
    for name in model.output_names:
        # Not that of another layer, which may be an output as well.
        others = {*names} | {*model.output_names} - {name}
        names.append(graph.distinct_name(name, others, first=1))
    return names
