"""`save_encodings` and `load_encodings`: all grids of a model as JSON, in AIMET's layout."""

import collections
import json
import os
from collections.abc import Collection, Mapping
from typing import Any

import keras
import numpy as np

from kerasq.grid import Grid
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.kernels.lstm import CELL_BITS
from kerasq.lstm_wrapper import LstmWrapper
from kerasq.quantizers.activations import ActivationQuantizer
from kerasq.quantizers.threshold import ThresholdWeights
from kerasq.quantizers.uniform import Uniform
from kerasq.requantization import Multipliers
from kerasq.support.files import existing_file, write_whole
from kerasq.support.restore import restored_on_error
from kerasq.wrappers import ranged, require_quantized, wrapped

VERSION = "1.0.0"
# Ends that follow the weights, whose file may have been written by another library, in decimals.
_TOLERANCE = 1e-3


def save_encodings(
    model: keras.Model, path: str | os.PathLike, *, multipliers: Multipliers | None = None
) -> dict[str, Any]:
    """Writes the grids of all outputs and kernels of a calibrated model as JSON.

    The layout is that of AIMET's encodings, version 1.0.0 (AIMET documentation, "Encoding Format
    Specification"): `real = scale * (q + offset)` for q from 0 to `2^bw - 1`, so that offset is
    `qmin - zero_point`, and zero points are `qmin - offset`. Outputs have the name of their layer,
    kernels "<layer>/kernel", with BatchNormalization folded; symmetric weights leave out the lowest
    code. The cell state of a whole LSTM is "<layer>/cell"; its kernels, whose grids follow from
    their weights, are left out.

    Args:
        model: what `quantize_model` returned, calibrated or trained.
        path: the file.
        multipliers: what `kerasq.multipliers` found in the model's export. They are written as
            "requantization", an extension that AIMET does not know and `load_encodings` does not
            read: the width "bits", the "formula", and of all "operators" their name, op, and lists
            of "real", "multiplier" and "shift", which run "along" channels, inputs or slopes.

    Scales that are read again may differ in the last bits, since a model holds the ends of ranges.

    Returns:
        What was written.

    Raises:
        ValueError: for a model that is not quantized, and for multipliers of another one.
        UncalibratedError: where a range has seen no data.
        OSError: where `path` cannot be written.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="head")])
        >>> q = kerasq.quantize_model(model)
        >>> kerasq.calibrate(q, np.array([[-1.0, 2.0], [0.5, 0.0]]))
        >>> found = kerasq.save_encodings(q, "encodings.json")  # doctest: +SKIP
    """
    require_quantized(model)
    outputs, kernels = [], []
    for layer in wrapped(model):
        symmetric = layer.quantizer is not None and layer.quantizer.symmetric
        outputs.append(_encoding(layer.name, layer.checked_grid(), symmetric))
        if isinstance(layer, LstmWrapper):
            outputs.append(_cell_encoding(layer))
        if isinstance(layer, KernelWrapper) and layer.leader is None:
            kernels.append(_encoding(f"{layer.name}/kernel", layer.integer_weights().grid))
    found: dict[str, Any] = {"version": VERSION}
    found |= {"activation_encodings": outputs, "param_encodings": kernels}
    if multipliers is not None:
        _check_export(model, multipliers)
        found["requantization"] = multipliers.as_json()
    write_whole(path, json.dumps(found, indent=1).encode())
    return found


def _check_export(model: keras.Model, multipliers: Multipliers) -> None:
    """Raises a ValueError for multipliers of another model's file."""
    given = {row.name: row for row in multipliers.rows}
    kernels = {layer.name: layer for layer in wrapped(model) if isinstance(layer, KernelWrapper)}
    if missing := [name for name in kernels if name not in given]:
        raise ValueError(
            f"`multipliers` must be those of an export of `model` {model.name!r}. Received: none "
            f"of its layers {missing[:5]}. Take kerasq.multipliers(kerasq.export_tflite(model))."
        )
    if fewer := [name for name, x in kernels.items() if len(given[name].real) < _scales(x)]:
        raise ValueError(
            "`multipliers` must be those of all channels. Received: fewer of layers "
            f"{fewer[:5]}, whose other channels the file goes without. Take those of "
            "kerasq.export_tflite(model, remove_dead_channels=False)."
        )


def _scales(layer: KernelWrapper) -> int:
    """How many scales a kernel has."""
    return int(np.size(layer.integer_weights().grid.numpy().scale))


def load_encodings(model: keras.Model, path: str | os.PathLike) -> None:
    """Gives a model the grids of a file, such as `save_encodings` or AIMET has written.

    Outputs get their ranges, and count as calibrated. Kernels get theirs where ranges of weights
    learn (`range_gradient="lsq"` or `"clip"`, by default below 8 bits); at 8 bits they are those of
    the weights, and the file must agree, or have none of them.

    Args:
        model: what `quantize_model` returned, of the structure and widths that the file is for.
        path: the file.

    Raises:
        ValueError: for a file that is none, of another version or of another model, naming the
            tensor and field. The model is then as it was.
        OSError: where `path` cannot be read.
    """
    require_quantized(model)
    content = _read(path)
    layers, ranges = {layer.name: layer for layer in wrapped(model)}, ranged(model)
    cells = {_cell(x): x for x in layers.values() if isinstance(x, LstmWrapper)}
    known, required = {**layers, **cells}, {*ranges, *cells}
    given = _by_name(content, "activation_encodings", known, required)
    kernels = {
        f"{name}/kernel": layer
        for name, layer in layers.items()
        if isinstance(layer, KernelWrapper) and layer.leader is None
    }
    weights = _by_name(content, "param_encodings", kernels, required={})
    with restored_on_error(model.variables):
        # Of fixed grids there is nothing to set.
        for name, quantizer in ranges.items():
            _set_range(name, given[name], quantizer)
        for name, layer in cells.items():
            _set_cell(name, given[name], layer)
        # Steps of kernels are products with scales that were just set.
        for name, encoding in weights.items():
            _set_kernel(name, encoding, kernels[name])


def _encoding(name: str, grid: Grid, symmetric: bool = False) -> dict[str, Any]:
    """A grid as AIMET has it."""
    grid = grid.numpy()
    scale = np.atleast_1d(np.float64(grid.scale))
    # Without the code that symmetric weights leave out, which AIMET's have.
    lowest = -(2 ** (grid.bits - 1)) if grid.narrow else grid.qmin
    offset = lowest - np.broadcast_to(np.atleast_1d(np.int64(grid.zero_point)), scale.shape)
    bits = grid.bits if grid.levels is None else int(np.log2(grid.levels))
    return {
        "name": name,
        "enc_type": "PER_TENSOR" if grid.axis is None else "PER_CHANNEL",
        "dtype": "INT",
        "bw": bits,
        "is_sym": bool(symmetric or grid.narrow or grid.bits > 8),
        "scale": scale.tolist(),
        "offset": offset.tolist(),
    }


def _cell(layer: LstmWrapper) -> str:
    """The name of the cell state of a whole LSTM."""
    return f"{layer.name}/cell"


def _cell_encoding(layer: LstmWrapper) -> dict[str, Any]:
    scale = np.float32(2.0 ** (int(layer.cell_bits()) - 15))
    grid = Grid(scale=scale, zero_point=np.float32(0.0), bits=16)
    return _encoding(_cell(layer), grid, symmetric=True)


def _set_cell(name: str, encoding: Mapping[str, Any], layer: LstmWrapper) -> None:
    """Gives a whole LSTM the range of its cell state, [-2^n, 2^n)."""
    for key, wanted in _cell_encoding(layer).items():
        if key != "scale":
            _field(name, encoding, key, wanted)
    (scale,) = _numbers(name, encoding, "scale", 1)
    legal = [2.0 ** (bits - 15) for bits in range(CELL_BITS + 1)]
    if scale not in legal:
        raise ValueError(
            f"The encoding of {name!r} must have a power of two from {legal[0]} to {legal[-1]} as "
            f"'scale'. Received: {scale:g}."
        )
    layer.assign_cell_bits(legal.index(scale))


def _read(path: str | os.PathLike) -> dict[str, Any]:
    found = existing_file(path).read_bytes()
    try:
        content = json.loads(found)
    except (ValueError, RecursionError) as error:  # What is not UTF-8 either.
        raise ValueError(
            f"Encodings must be JSON. Received: {error} in {os.fspath(path)!r}."
        ) from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        version = content.get("version") if isinstance(content, dict) else content
        raise ValueError(
            f"Encodings must have the version {VERSION!r}. Received: {version!r} in "
            f"{os.fspath(path)!r}. Write them with kerasq.save_encodings."
        )
    return content


def _by_name(
    content: dict[str, Any], key: str, known: Collection[str], required: Collection[str]
) -> dict[str, dict[str, Any]]:
    """The encodings of a list, by tensor."""
    listed = _listed(content, key)
    found = {x["name"]: x for x in listed}
    counts = collections.Counter(x["name"] for x in listed)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"{key!r} must name each tensor once. Received: {twice[:5]} again.")
    if strange := sorted({*found} - {*known}):
        raise ValueError(
            f"{key!r} must name tensors of the model. Received: {strange[:5]}, of which it has "
            f"none. Its own are {sorted(known)[:5]} and so on: encodings are for one structure."
        )
    if missing := sorted({*required} - {*found}):
        raise ValueError(
            f"{key!r} must have every tensor with a range. Received: a file without {missing[:5]}."
        )
    return found


def _listed(content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    listed = content.get(key)
    if not isinstance(listed, list) or not all(
        isinstance(x, dict) and isinstance(x.get("name"), str) for x in listed
    ):
        received = _short(listed)
        raise ValueError(f"{key!r} must be a list of objects with a name. Received: {received}.")
    return listed


def _field(name: str, encoding: Mapping[str, Any], key: str, wanted: Any) -> None:
    """Raises a ValueError where a field is another than the model's."""
    if encoding.get(key) != wanted:
        raise ValueError(
            f"The encoding of {name!r} must have {key}={wanted!r}, as the model does. "
            f"Received: {encoding.get(key)!r}. Quantize with the schemes that the file is for."
        )


def _numbers(name: str, encoding: Mapping[str, Any], key: str, count: int) -> np.ndarray:
    """A field of as many numbers as there are grids."""
    listed = encoding.get(key)
    # Integers of JSON may be beyond any float; scales are float32.
    largest = float(np.finfo(np.float32).max)
    if (
        not isinstance(listed, list)
        or len(listed) != count
        or not all(isinstance(x, (int, float)) and abs(x) <= largest for x in listed)
    ):
        raise ValueError(
            f"The encoding of {name!r} must have {count} finite numbers as {key!r}. "
            f"Received: {_short(listed)}."
        )
    values: np.ndarray = np.asarray(listed, np.float64)
    if key == "scale" and not (values > 0.0).all():
        raise ValueError(
            f"The encoding of {name!r} must have scales above 0. Received: {_short(listed)}."
        )
    return values


def _short(value: Any) -> str:
    """What was received, cut where it is long."""
    text = repr(value)
    return text if len(text) < 80 else f"{text[:80]}..."


def _set_range(name: str, encoding: Mapping[str, Any], quantizer: ActivationQuantizer) -> None:
    """Gives an output the range of an encoding, and looks whether it has taken it."""
    quantizer.assign_range(*_ends(name, encoding, quantizer))
    grid = quantizer.grid().numpy()
    (scale,), offset = encoding["scale"], encoding["offset"][0]
    # Such as beyond the limit of a ReLU, or of what is taken for a tensor of zeros.
    is_near = np.isclose(grid.scale, scale, rtol=_TOLERANCE, atol=0.0)
    if not is_near or grid.qmin - grid.zero_point != offset:
        raise ValueError(
            f"The encoding of {name!r} must be a range that the layer can have, "
            f"{[float(end) for end in quantizer.range()]} at most. Received: scale={scale:g}, "
            f"offset={offset}."
        )


def _ends(
    name: str, encoding: Mapping[str, Any], quantizer: ActivationQuantizer
) -> tuple[float, float]:
    """The ends of an output's range."""
    for key, wanted in (
        ("enc_type", "PER_TENSOR"),
        ("dtype", "INT"),
        ("bw", quantizer.bits),
        ("is_sym", quantizer.symmetric),
    ):
        _field(name, encoding, key, wanted)
    (scale,), (offset,) = (_numbers(name, encoding, key, 1) for key in ("scale", "offset"))
    steps = 2**quantizer.bits - 1
    legal: Collection[float]
    if quantizer.symmetric:
        legal, wanted = [-(steps + 1) / 2], f"{-(steps + 1) // 2}"
    elif quantizer.relu:
        legal, wanted = [0.0], "0"
    else:
        legal, wanted = range(-steps, 1), f"a whole number from {-steps} to 0"
    if offset not in legal:
        raise ValueError(
            f"The encoding of {name!r} must have {wanted} as 'offset'. Received: {offset:g}."
        )
    high = float(scale * (offset + steps))
    # Of symmetric ranges the largest magnitude counts, and one code more lies below 0.
    return (-high if quantizer.symmetric else float(scale * offset)), high


def _set_kernel(name: str, encoding: Mapping[str, Any], layer: KernelWrapper) -> None:
    """Gives a kernel the range of an encoding, or finds that it has it."""
    grid = layer.integer_weights().grid.numpy()
    own = np.atleast_1d(np.asarray(grid.scale, np.float64))
    kind = "PER_TENSOR" if grid.axis is None else "PER_CHANNEL"
    legal = {"enc_type": kind, "dtype": "INT", "bw": grid.bits, "is_sym": True}
    for key, wanted in legal.items():
        _field(name, encoding, key, wanted)
    scale = _numbers(name, encoding, "scale", len(own))
    quantizer = layer.weight_quantizer
    if isinstance(quantizer, Uniform) and quantizer.range_gradient != "none":
        # What folding multiplies the range by.
        ratio = np.asarray(quantizer.range(layer.ranged_kernel())) / own
        quantizer.assign_range((scale * ratio).astype(np.float32))
        if not isinstance(quantizer, ThresholdWeights):
            return
        own = np.atleast_1d(np.asarray(layer.integer_weights().grid.scale, np.float64))
    if not np.allclose(scale, own, rtol=_TOLERANCE):
        worst = int(np.argmax(np.abs(scale / own - 1.0)))
        raise ValueError(
            f"The encoding of {name!r} must have the scales of the weights, where ranges do not "
            "learn, or powers of two, where scales are. "
            f"Received: {scale[worst]:g} for channel {worst}, which has {own[worst]:g}. "
            "Leave 'param_encodings' empty, or quantize with range_gradient='lsq'."
        )
