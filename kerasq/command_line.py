"""`kerasq` on the command line: a trained model to a file, and what there is to know of a file.

    kerasq quantize model.keras --data=images --out=model.tflite
    kerasq inspect model.tflite --target=tflm
    kerasq inspect model.tflite --latency
    kerasq compare quantized.keras model.tflite --data=images
    kerasq report quantized.keras model.tflite --data=images --out=report.html
    kerasq deploy model.tflite --data=images --out=firmware
    kerasq check-kernels

Each command prints its flags with `--help`. Bad input ends in one message and exit code 1, flags
that there are none of in exit code 2, a pipe that nobody reads any more in 141, without a message.
Files are written whole or not at all.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
from absl import flags, logging

from kerasq.analysis.operator_latency import operator_latency
from kerasq.calibration.calibrate import calibrate
from kerasq.calibration.observers import OBSERVERS
from kerasq.comparison.compare import compare
from kerasq.export.tflite import export_tflite
from kerasq.firmware.kit import deploy
from kerasq.legacy import UnsafeFileError, load_model
from kerasq.litert import contents, flatbuffer
from kerasq.litert.micro import least_arena
from kerasq.litert.refusals import NPU, Refusal, beside_npu, refusals
from kerasq.litert.report import report as operators
from kerasq.litert.runtime import TFLiteModel
from kerasq.litert.runtimes import RUNTIMES
from kerasq.probes.check import check_kernels
from kerasq.quantize import quantize_model
from kerasq.reporting.build import report
from kerasq.reporting.page import check_path as check_page
from kerasq.support import shell, stderr
from kerasq.support.files import check_writable, make_folder, whole_file
from kerasq.support.samples import has_labels, load_labels, load_samples
from kerasq.targets import DEFAULT, ETHOS_U, TARGETS
from kerasq.wrappers import require_quantized, target_of

# The exit code of a program that a closed pipe ends: 128 and the number of SIGPIPE.
CLOSED_PIPE = 141


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        run: what it does, of its flags and arguments.
        define: adds its flags.
        arguments: the names of its arguments; those in brackets may be left out.
        text: what it is for, in a line.
    """

    run: Callable[..., None]
    define: Callable[[flags.FlagValues], None]
    arguments: tuple[str, ...]
    text: str


def _data(values: flags.FlagValues, text: str) -> None:
    """Flags of samples."""
    flags.DEFINE_string(
        "data", None, f"{text}: a .npy or .npz file, or a folder of images.", flag_values=values
    )
    flags.mark_flag_as_required("data", flag_values=values)
    flags.DEFINE_integer("samples", 200, "The most samples to take.", 1, flag_values=values)


def _samples(values: flags.FlagValues, inputs: Iterable[Any]) -> Any:
    """The samples of `_data`, for tensors of a model."""
    return load_samples(values.data, {x.name: x.shape for x in inputs}, values.samples)


def _out(values: flags.FlagValues, text: str) -> None:
    flags.DEFINE_string("out", None, text, flag_values=values)
    flags.mark_flag_as_required("out", flag_values=values)


def _safe_mode(values: flags.FlagValues) -> None:
    """The flag of `_model`."""
    text = (
        "Whether to refuse model files that hold code, such as that of a Lambda. "
        "--safe_mode=false runs that code, whatever it does: only for files that you trust."
    )
    flags.DEFINE_boolean("safe_mode", True, text, flag_values=values)


def _model(values: flags.FlagValues, path: str) -> keras.Model:
    """A model, read as the flag of `_safe_mode` says.

    Raises:
        ValueError: as `load_model`; for a file that is refused by that flag it names it.
    """
    try:
        return load_model(path, safe_mode=values.safe_mode)
    except UnsafeFileError as error:
        raise ValueError(f"{error} In a shell that is --safe_mode=false.") from error


def _define_quantize(values: flags.FlagValues) -> None:
    _data(values, "Samples to calibrate on")
    _out(values, "The .tflite file.")
    flags.DEFINE_string("scheme", "w8a8", "Widths: w8a8, w4a8, w8a16, ...", flag_values=values)
    flags.DEFINE_enum("target", DEFAULT, [*TARGETS], "What it runs on.", flag_values=values)
    flags.DEFINE_enum(
        "method", None, [*OBSERVERS], "How ranges follow from samples.", flag_values=values
    )
    flags.DEFINE_string(
        "keras", None, "Where to keep the quantized model, .keras, too.", flag_values=values
    )
    flags.DEFINE_list(
        "labels", [], "Names of the classes, which go into the file.", flag_values=values
    )
    _safe_mode(values)


def _quantize(values: flags.FlagValues, path: str) -> None:
    for written in filter(None, (values.out, values.keras)):
        check_writable(written)
    if values.keras and pathlib.Path(values.keras).suffix != ".keras":
        raise ValueError(f"--keras must name a .keras file. Received: {values.keras!r}.")
    files = [pathlib.Path(x).resolve() for x in (path, values.out, values.keras) if x]
    if len({*files}) < len(files):
        raise ValueError(
            "The model, --out and --keras must be files of their own. Received: "
            f"{path!r}, {values.out!r} and {values.keras!r}."
        )
    model = _model(values, path)
    x = _samples(values, model.inputs)
    quantized = quantize_model(model, values.scheme, target=values.target)
    calibrate(quantized, x, method=values.method)
    lite = export_tflite(quantized, values.out, labels=values.labels)
    if values.keras:
        with whole_file(values.keras) as temporary:
            quantized.save(temporary)
    print(lite)
    print(f"\nWritten: {values.out}, beside the simulation:\n")
    print(compare(quantized, lite, x=x))


def _define_inspect(values: flags.FlagValues) -> None:
    text = (
        "Whose operators; by default the interpreter that the file was made for. For ethos-u, "
        "Vela says what the NPU leaves to the processor."
    )
    flags.DEFINE_enum("target", None, [*RUNTIMES, ETHOS_U.name], text, flag_values=values)
    text = "Whether to time each operator, on LiteRT."
    flags.DEFINE_boolean("latency", False, text, flag_values=values)
    flags.DEFINE_integer("num_threads", 1, "Threads to time with.", 1, flag_values=values)


def _inspect(values: flags.FlagValues, path: str) -> None:
    target = values.target or _runtime_of(path)
    if values.latency and target != DEFAULT:
        raise ValueError(
            "--latency is that of LiteRT's operators. Received: a file on target "
            f"{target!r}. Add --target=litert, or leave it out."
        )
    if target == ETHOS_U.name:
        lite = _without_warning(path)
        print(lite)
        beside = beside_npu(lite.content)
        print(f"The NPU, {NPU}, runs {len(lite.ops) - len(beside)} of {len(lite.ops)} operators.")
        _list("The processor beside it runs", beside)
        return
    lite = _loaded(path, target)
    print(lite)
    if target == "tflm":
        _check_none(refusals(lite.content, target), target)
        zeros = [np.zeros(tensor.shape, tensor.dtype) for tensor in lite.inputs]
        print(f"Arena: {least_arena(lite.content, zeros):,} bytes are the least that it runs in.")
    if values.latency:
        print(f"\n{operator_latency(lite, num_threads=values.num_threads)}")


def _loaded(path: str, target: str) -> TFLiteModel:
    """A file on an interpreter.

    Raises:
        ValueError: where that refuses it; what it holds, and all that is refused, is printed.
    """
    try:
        return _without_warning(path, target)
    except ValueError as error:
        content = pathlib.Path(path).read_bytes()
        try:
            found = refusals(content, target)
        except ValueError:
            raise error from None  # No interpreter reads it.
        print(operators(contents.read(flatbuffer.read(content), len(content))))
        _check_none(found, target)
        raise


def _check_none(found: Sequence[Refusal], target: str) -> None:
    """Prints the operators that an interpreter refuses.

    Raises:
        ValueError: where there are some.
    """
    title = RUNTIMES[target].title
    if found:
        _list(f"{title} refuses", found)
        raise ValueError(
            f"{title} must run all operators of the file. Received: {len(found)} that it refuses, "
            "which are listed. Replace the layers that they are from, or quantize the model for "
            f"target {target!r}."
        )


def _list(head: str, found: Sequence[Refusal]) -> None:
    """Prints operators, a line each."""
    if found:
        print("\n".join([f"{head}:", *(f"  {x}" for x in found)]))


def _without_warning(path: str, target: str = DEFAULT) -> TFLiteModel:
    """A file on an interpreter; that it was made for another one is a remark of what is printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TFLiteModel(path, target=target)


def _runtime_of(path: str) -> str:
    """The interpreter that a file was made for; LiteRT's where it does not say."""
    try:
        made = _without_warning(path).made
    except ValueError:
        return DEFAULT  # LiteRT refuses it, and will say so.
    return made.runtime if made is not None and made.runtime in RUNTIMES else DEFAULT


def _labels(values: flags.FlagValues) -> None:
    """Flags of labels of samples."""
    flags.DEFINE_string(
        "labels",
        None,
        "Labels, one a sample of --data: a .npy file, or y of an .npz, or its arrays by output. By "
        "default y of --data, where that is an .npz file with one.",
        flag_values=values,
    )


def _labelled(values: flags.FlagValues, x: Any, lite: TFLiteModel) -> Any:
    """Samples with the labels of `_labels`, or of the file that they are in, where it has some."""
    path = values.labels
    if path is None and has_labels(values.data, lite.input_names):
        path = values.data
    if path is None:
        return x
    return x, load_labels(path, values.samples, lite.output_names)


def _say_whether(values: flags.FlagValues, accuracy: Any) -> None:
    """Says so where there were labels, but no accuracy."""
    if values.labels is not None and not accuracy:
        print("\nNo accuracy: the labels are no classes of an output.")


def _quantized(values: flags.FlagValues, path: str) -> keras.Model:
    """A quantized model.

    Raises:
        ValueError: for another one.
    """
    model = _model(values, path)
    require_quantized(model)
    return model


def _simulated(model: keras.Model, path: str) -> TFLiteModel:
    """An export on the interpreter that its model simulates."""
    # What only an NPU computes runs as LiteRT would run it.
    return TFLiteModel(path, target=target_of(model).runtime or DEFAULT)


def _define_compare(values: flags.FlagValues) -> None:
    _data(values, "Samples to compare on")
    _labels(values)
    _safe_mode(values)


def _compare(values: flags.FlagValues, quantized: str, path: str) -> None:
    model = _quantized(values, quantized)
    lite = _simulated(model, path)
    found = compare(model, lite, x=_labelled(values, _samples(values, model.inputs), lite))
    print(found)
    _say_whether(values, found.accuracy)


def _define_report(values: flags.FlagValues) -> None:
    _data(values, "Samples to measure on")
    _out(values, "The page, .html; its figures go to a .json file beside it.")
    _labels(values)
    flags.DEFINE_string(
        "float", None, "The float model, .keras, to compare with.", flag_values=values
    )
    flags.DEFINE_boolean("time_layers", True, "Whether to time each layer.", flag_values=values)
    flags.DEFINE_string(
        "model_explorer",
        None,
        "A folder for the figures of all layers as node data of Model Explorer.",
        flag_values=values,
    )
    _safe_mode(values)


def _report(values: flags.FlagValues, *paths: str) -> None:
    check_page(values.out)
    if values.model_explorer:
        make_folder(values.model_explorer)
    model = _quantized(values, paths[0]) if len(paths) > 1 else None
    lite = TFLiteModel(paths[-1]) if model is None else _simulated(model, paths[-1])
    before = _model(values, values.float) if values.float else None
    x = _samples(values, lite.inputs if model is None else model.inputs)
    data = _labelled(values, x, lite)
    verdict = report(
        model, lite, data, values.out, float_model=before, time_layers=values.time_layers
    )
    print(verdict)
    found = verdict.figures["verdict"]
    _say_whether(values, found["accuracy"] or found["accuracy_by_output"])
    print(f"\nWritten: {values.out}")
    if values.model_explorer:
        folder = pathlib.Path(values.model_explorer)
        files = ",".join(str(folder / name) for name in verdict.save_node_data(folder))
        print(f"Open by: model-explorer {paths[-1]} --node_data_paths={files}")


def _define_deploy(values: flags.FlagValues) -> None:
    _data(values, "Samples, of which the first become test vectors")
    _out(values, "The folder of the C++ sources.")
    flags.DEFINE_integer(
        "count", 4, "How many of these become test vectors.", 1, flag_values=values
    )
    flags.DEFINE_list("labels", [], "Names of the classes.", flag_values=values)
    flags.DEFINE_string("name", None, "Of the network, in C++.", flag_values=values)
    flags.DEFINE_string(
        "compiled", None, "What Vela made of the file, for an Ethos-U.", flag_values=values
    )
    flags.DEFINE_string(
        "quantized", None, "The .keras model it is from, with --compiled.", flag_values=values
    )
    text = "Width of the multipliers in model_multipliers.h, for kernels of your own."
    flags.DEFINE_integer("multiplier_bits", None, text, 2, 31, flag_values=values)
    _safe_mode(values)


def _deploy(values: flags.FlagValues, path: str) -> None:
    if bool(values.compiled) != bool(values.quantized):
        raise ValueError(
            "--compiled, what Vela made of the file, and --quantized, the .keras model that it was "
            "exported from, go together: nothing here computes as an NPU does but the simulation. "
            f"Received: --compiled={values.compiled} --quantized={values.quantized}."
        )
    # What is for the NPU runs nowhere here, but as LiteRT would run it: its codes go unused.
    lite = _without_warning(path) if values.compiled else TFLiteModel(path, target="tflm")
    names = deploy(
        lite,
        values.out,
        x=_samples(values, lite.inputs),
        labels=values.labels,
        count=values.count,
        name=values.name,
        compiled=values.compiled,
        model=values.quantized and _model(values, values.quantized),
        multiplier_bits=values.multiplier_bits,
    )
    print("\n".join(str(pathlib.Path(values.out) / name) for name in names))


def _define_check_kernels(values: flags.FlagValues) -> None:
    legal = [name for name, target in TARGETS.items() if target.runtime]
    flags.DEFINE_enum("target", DEFAULT, legal, "Whose rules are checked.", flag_values=values)


def _check_kernels(values: flags.FlagValues) -> None:
    print(check_kernels(values.target))


COMMANDS = {
    "quantize": Command(
        _quantize,
        _define_quantize,
        ("MODEL.keras",),
        "Quantizes a float model after training, and exports it.",
    ),
    "inspect": Command(
        _inspect,
        _define_inspect,
        ("MODEL.tflite",),
        "Prints operators, grids and remarks of any .tflite file, its latency or arena.",
    ),
    "compare": Command(
        _compare,
        _define_compare,
        ("QUANTIZED.keras", "MODEL.tflite"),
        "Compares a quantized model with its export, layer by layer.",
    ),
    "report": Command(
        _report,
        _define_report,
        ("[QUANTIZED.keras]", "MODEL.tflite"),
        "Writes a page that says where accuracy went, and what to do about it.",
    ),
    "deploy": Command(
        _deploy,
        _define_deploy,
        ("MODEL.tflite",),
        "Writes a file as C++ sources for TFLite Micro.",
    ),
    "check-kernels": Command(
        _check_kernels,
        _define_check_kernels,
        (),
        "Runs every operator on this machine's interpreter, beside its simulation.",
    ),
}


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.text}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["kerasq COMMAND ... [--flags]", "", *lines, "", "kerasq COMMAND --help prints flags."]
    )


def _parsed(name: str, command: Command, rest: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    """The flags and arguments of a command.

    Raises:
        flags.Error: for what are none.
    """
    values = flags.FlagValues()
    command.define(values)
    found = values([name, *rest])[1:]
    least = sum(not name.startswith("[") for name in command.arguments)
    if not least <= len(found) <= len(command.arguments):
        wanted = " ".join(command.arguments) or "no arguments"
        raise flags.IllegalFlagValueError(f"It takes {wanted}. Received: {' '.join(found)!r}.")
    return values, found


def _help(name: str, command: Command) -> str:
    values = flags.FlagValues()
    command.define(values)
    usage = " ".join(["kerasq", name, *command.arguments])
    return (
        f"{usage}\n\n{command.text}\n\n{values.get_help(prefix='  ', include_special_flags=False)}"
    )


def main(argv: Sequence[str]) -> int:
    """Runs a command; returns the exit code: 0, 1 for bad input, 2 for bad flags."""
    name, rest = (argv[0], argv[1:]) if argv else ("", [])
    command = COMMANDS.get(name)
    if command is None:
        if name in ("--help", "-h", "help"):
            print(_usage())
            return 0
        print(f"The first argument must be a command. Received: {name!r}.", file=sys.stderr)
        print(_usage(), file=sys.stderr)
        return 2
    if {"--help", "-h"} & {*rest}:
        print(_help(name, command))
        return 0
    try:
        values, arguments = _parsed(name, command, rest)
    except flags.Error as error:
        print(
            f"kerasq {name}: {str(error).rstrip('.')}. See kerasq {name} --help.", file=sys.stderr
        )
        return 2
    return _run(name, lambda: command.run(values, *arguments))


def _run(name: str, run: Callable[[], Any]) -> int:
    """Runs a command; what input is wrong is said in a message, not by a traceback."""
    try:
        run()
    except BrokenPipeError:  # Whoever read has read enough, such as `head`.
        raise
    # What kerasq raises for bad input. Others are faults of ours, whose traceback is wanted.
    except (ImportError, OSError, ValueError) as error:
        print(f"kerasq {name}: {error}", file=sys.stderr)
        return 1
    return 0


def _warn(message: Warning | str, *place: Any, **kwargs: Any) -> None:
    """A warning in a shell: what it says, not the line of code that it comes from."""
    print(f"kerasq: {message}", file=sys.stderr)


def script() -> None:
    """What is installed as `kerasq`.

    TensorFlow and LiteRT write nothing, unless the environment has TF_CPP_MIN_LOG_LEVEL. Where they
    end the process, Python writes in which of its calls.
    """
    warnings.showwarning = _warn
    quiet: contextlib.AbstractContextManager = contextlib.nullcontext()
    if shell.IS_QUIET:
        logging.set_verbosity(logging.ERROR)
        quiet = stderr.aside()
    with quiet:
        try:
            code = main(sys.argv[1:])
            sys.stdout.flush()
        except BrokenPipeError:
            # What is left goes nowhere, or Python would complain of it at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = CLOSED_PIPE
    sys.exit(code)
