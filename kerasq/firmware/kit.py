"""`deploy`: a .tflite file as the C++ sources that a microcontroller project includes."""

import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from kerasq.firmware import npu
from kerasq.firmware.sources import Kit, Program, sources
from kerasq.litert import flatbuffer, values
from kerasq.litert.contents import Tensor
from kerasq.litert.micro import least_arena
from kerasq.litert.runtime import TFLiteModel
from kerasq.litert.runtimes import RUNTIMES
from kerasq.litert.tflite_metadata import check_labels, class_count
from kerasq.requantization import Multipliers, multipliers
from kerasq.support.files import check_writable, make_folder, path_of, write_whole
from kerasq.targets import ETHOS_U


def deploy(
    lite: TFLiteModel,
    path: str | os.PathLike,
    *,
    x: Any,
    labels: Sequence[str] = (),
    count: int = 4,
    name: str | None = None,
    compiled: str | os.PathLike | None = None,
    model: keras.Model | None = None,
    multiplier_bits: int | None = None,
) -> list[str]:
    """Writes a file as C++ for TFLite Micro: the model, its operators, test vectors and a `main`.

    - `model.h`, `model.cc`: the .tflite file, aligned; the arena's size; scales, zero points,
      shapes and labels.
    - `model_ops.h`: the op resolver, with exactly the operators of the file.
    - `model_test_vectors.h`, `.cc`: samples, and what portable kernels make of them.
    - `main.cc`: runs the samples on the device, compares every code and says where one differs.
    - `model_multipliers.h`, with `multiplier_bits`: what every operator rescales by, as integers.

    The arena is the least in which TFLite Micro's interpreter runs the file on this machine.

    For an Ethos-U the kit has what Vela made of the file (`compiled`). The codes are then those of
    the simulation of `model`, and the arena is an estimate from above: nothing runs it here.

    Args:
        lite: what `export_tflite` returned for target "tflm", or any file that TFLite Micro runs.
        path: the folder, which is made where it is not there; files of these names are replaced.
        x: real samples, as for `predict`.
        labels: names of the classes: two for an output of one value. By default those of the file.
        count: how many of the samples become test vectors.
        name: of the network. The C++ namespace is then `<name>_model`, and so do the files' names
            begin: kits of several networks go into one program.
        compiled: where the file is that Vela made of `lite`, for an Ethos-U.
        model: the quantized model, for target "ethos-u", that `lite` was exported from; it goes
            with `compiled`.
        multiplier_bits: width in [2, 31] of the multipliers that kernels of your own are to have:
            see `kerasq.multipliers`. None writes none: TFLite Micro computes its own.

    Returns:
        The names of the files.

    Raises:
        ImportError: where tflite_micro is not installed.
        TypeError: where `lite` is no TFLiteModel.
        ValueError: for a file that TFLite Micro does not run, whose batch size is not 1, for
            samples that do not fit it, for labels of another number than the output has, for a
            name that is none in C++, for what Vela made of another file, or did not make, and for
            multipliers of another width.
        OSError: where `path` cannot be written.

    Example:
        >>> kerasq.deploy(lite, "firmware", x=x_test, labels=["yes", "no"])  # doctest: +SKIP
        ['main.cc', 'model.cc', 'model.h', 'model_ops.h', 'model_test_vectors.cc', ...]
    """
    lite = _file(lite, compiled, model)
    labels = _listed(labels) or list(lite.labels)
    _check(lite, count)
    folder = path_of(path)
    _check_name(name)
    check_labels(labels, [class_count(x.shape, _is_score(x)) for x in lite.outputs])
    own = _multipliers(lite, multiplier_bits)
    columns = [column[:count] for column in lite.columns(x)]
    if not len(columns[0]):
        raise ValueError("`x` must hold at least one sample. Received: none.")
    # As `Quantize` of the kit rounds, whatever the file was made for.
    given = [values.codes(x, y, away=True) for x, y in zip(columns, lite.inputs, strict=True)]
    if compiled is None:
        program = _portable(lite, given)
    else:
        program = npu.program(compiled, lite, model, columns)
    kit = Kit(
        name="model" if name is None else f"{name}_model",
        program=program,
        inputs=lite.inputs,
        outputs=lite.outputs,
        labels=labels,
        vectors=[*given, *program.outputs],
        multipliers=own,
    )
    return _write(folder, sources(kit))


def _file(
    lite: TFLiteModel, compiled: str | os.PathLike | None, model: keras.Model | None
) -> TFLiteModel:
    """The file as it can be asked for its codes."""
    if not isinstance(lite, TFLiteModel):
        raise TypeError(
            "`lite` must be a kerasq.TFLiteModel, such as `export_tflite` returns. "
            f"Received: {type(lite).__name__}."
        )
    if compiled is None and model is not None:
        raise ValueError(
            "`model` goes with `compiled`, what Vela made of the file: others run here. Received: "
            "`model` alone. Leave it out, or run `vela` on the file and pass `compiled`, too."
        )
    if compiled is None and lite.made is not None and lite.made.target == ETHOS_U.name:
        raise ValueError(
            "A file of target 'ethos-u' needs what Vela made of it, which the NPU runs. Received: "
            "such a file alone. Run `vela` on it, and pass `compiled` and `model`; or export for "
            "target 'tflm', whose codes are those of the processor beside the NPU."
        )
    if compiled is None and lite.target != "tflm":
        return TFLiteModel(lite.content, target="tflm")
    return lite


def _multipliers(lite: TFLiteModel, bits: int | None) -> Multipliers | None:
    return None if bits is None else multipliers(lite, bits)


def _listed(labels: Any) -> Any:
    """Labels as a list; what is none, which `check_labels` refuses, as it is."""
    is_list = isinstance(labels, Iterable) and not isinstance(labels, str)
    return list(labels) if is_list else labels


def _portable(micro: TFLiteModel, given: list[np.ndarray]) -> Program:
    """A file on TFLite Micro's portable kernels, which run it here."""
    calls = list(micro.run_codes(given))
    return Program(
        origin=f"{micro.made_for()} Codes are those of {RUNTIMES['tflm']}, portable kernels.",
        content=micro.content,
        operators=flatbuffer.op_kinds(flatbuffer.read(micro.content)),
        arena=least_arena(micro.content, given),
        outputs=[*map(np.concatenate, zip(*calls, strict=True))],
    )


def _check(lite: TFLiteModel, count: int) -> None:
    if {tensor.shape[:1] for tensor in lite.inputs} != {(1,)}:
        raise ValueError(
            "A file for a device must take one sample a call. Received: inputs of shape "
            f"{[tensor.shape for tensor in lite.inputs]}. Export it with batch_size=1."
        )
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"`count` must be an integer of at least 1. Received: count={count!r}.")


def _check_name(name: str | None) -> None:
    # Behind it comes "_model", so that no keyword, type, header or other file is called so.
    is_name = isinstance(name, str) and re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII)
    if name is not None and not is_name:
        raise ValueError(
            "`name` must be one that C++ can have: letters, digits and underscores, a letter "
            f"first. Received: name={name!r}."
        )


def _is_score(tensor: Tensor) -> bool:
    """Whether an output has a value for each class, and no labels."""
    return tensor.grid is not None or tensor.dtype.kind == "f"


def _write(folder: pathlib.Path, files: dict[str, str]) -> list[str]:
    make_folder(folder)
    # All that can fail is found before the first one is written.
    for name in files:
        check_writable(folder / name)
    for name, text in files.items():
        write_whole(folder / name, text.encode())
    return sorted(files)
