"""What Vela, the compiler of Arm's Ethos-U NPUs, made of a file."""

import os
from typing import Any

import keras
import numpy as np

from kerasq.export.tflite import content_of
from kerasq.firmware.sources import NPU, Program
from kerasq.litert import contents, flatbuffer, values
from kerasq.litert.contents import Tensor
from kerasq.litert.runtime import TFLiteModel
from kerasq.support.files import existing_file
from kerasq.targets import ETHOS_U
from kerasq.wrappers import require_quantized, target_of

# Bytes that TFLite Micro's interpreter takes beside the tensors: once, and for each of them.
_FIXED, _EACH = 2**13, 2**8


def program(
    path: str | os.PathLike, lite: TFLiteModel, model: keras.Model | None, columns: list[np.ndarray]
) -> Program:
    """What Vela made of a file, and what it computes.

    Args:
        path: of what Vela has written.
        lite: the file that it was given.
        model: the quantized model that this was exported from.
        columns: samples for each input.

    Raises:
        OSError: where there is no such file.
        ValueError: for one that Vela has not compiled, or has compiled from another file, and for
            a model that is none for the NPU.
    """
    content = existing_file(path, "compiled").read_bytes()
    file = flatbuffer.read(content)
    if not flatbuffer.is_for_npu(file):
        raise ValueError(
            "`compiled` must be a file that Vela has written. Received: "
            f"{os.fspath(path)!r}, without an operator for the NPU. Run `vela` on the file first; "
            "`python -m tools.vela` says what stays beside the NPU."
        )
    found = contents.read(file, len(content))
    _check_ends(found.inputs, lite.inputs, path)
    _check_ends(found.outputs, lite.outputs, path)
    if found.made is not None and found.made.target != ETHOS_U.name:
        raise ValueError(
            f"What Vela compiles must be made for target {ETHOS_U.name!r}. Received: "
            f"{os.fspath(path)!r}, made for {found.made.target!r}, whose rounding the NPU does not "
            f"have. Export kerasq.retarget(model, {ETHOS_U.name!r}) for Vela."
        )
    kinds = {NPU if kind == "CUSTOM" else kind for kind in flatbuffer.op_kinds(file)}
    return Program(
        origin=f"{lite.made_for()} Compiled by Vela. Codes are those of kerasq's simulation.",
        content=content,
        operators=sorted(kinds),
        arena=_arena(file),
        outputs=_simulated(model, lite, columns),
    )


def _check_ends(found: list[Tensor], wanted: list[Tensor], path: str | os.PathLike) -> None:
    if [_format(x) for x in found] != [_format(x) for x in wanted]:
        raise ValueError(
            "`compiled` must be what Vela made of `lite`. Received: "
            f"{os.fspath(path)!r}, whose inputs or outputs have other shapes, types or grids."
        )


def _simulated(
    model: keras.Model | None, lite: TFLiteModel, columns: list[np.ndarray]
) -> list[np.ndarray]:
    """The codes of each output, as the simulation predicts them."""
    if model is None:
        raise ValueError(
            "`compiled` needs `model`, the quantized model that `lite` was exported from: nothing "
            "here computes as an NPU does but its simulation. Received: model=None."
        )
    require_quantized(model)
    if target_of(model).name != ETHOS_U.name:
        raise ValueError(
            f"`model` must be for target {ETHOS_U.name!r}. Received: one for target "
            f"{target_of(model).name!r}. Call kerasq.retarget(model, {ETHOS_U.name!r}), and export "
            "that for Vela."
        )
    anew = content_of(model, 1, remove_dead_channels=bool(lite.removed_channels))
    found, given = (_parts(flatbuffer.read(x)) for x in (anew, lite.content))
    if changed := [name for name, part in found.items() if given.get(name, part) != part]:
        raise ValueError(
            "`model` must be what `lite` was exported from, as it is now. Received: one of other "
            f"weights or ranges, in {changed[:3]}. Export it again, and run `vela` on that."
        )
    predicted = keras.tree.flatten(
        model.predict_on_batch(keras.tree.pack_sequence_as(model.input, columns))
    )
    return [values.codes(y, tensor) for y, tensor in zip(predicted, lite.outputs, strict=True)]


def _parts(model: Any) -> dict[str, tuple]:
    """By name of a tensor on a grid, its scales and its constant values, as bytes."""
    found = {}
    for tensor in model.subgraphs[0].tensors:
        grid, constant = flatbuffer.grid_of(tensor), flatbuffer.constant(model, tensor)
        # Ends of another type than codes have none.
        if grid is not None:
            values = b"" if constant is None else constant.tobytes()
            found[tensor.name.decode()] = np.asarray(grid.scale).tobytes(), values
    return found


def _format(tensor: Tensor) -> tuple:
    """All that whoever feeds or reads a tensor must know."""
    grid = None if tensor.grid is None else (float(tensor.grid.scale), int(tensor.zero_point))
    return tensor.shape, tensor.type, grid


def _arena(model: Any) -> int:
    """Bytes of all tensors that are computed, Vela's working memory among them, and some more.

    An estimate from above: no interpreter for Python has the NPU to measure it with.
    """
    tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
    computed = [x for x in tensors if model.buffers[x.buffer].data is None]
    # Each begins at a multiple of 16.
    sizes = (int(np.prod(x.shape)) * flatbuffer.dtype(x).itemsize for x in computed)
    return sum(-(-size // 16) * 16 for size in sizes) + _FIXED + _EACH * len(tensors)
