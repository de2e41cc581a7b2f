"""The export report: what a .tflite file holds, in words."""

import collections
from collections.abc import Sequence

import numpy as np

from kerasq.litert.contents import Contents, Op, Tensor
from kerasq.litert.metadata import Made
from kerasq.litert.operators import KERNEL_OPS, OPERATORS
from kerasq.litert.removed import KEPT
from kerasq.support import tables

# Whose packed weights are rounded otherwise on each processor.
_BY_PROCESSOR = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")

# So many labels are told.
_LABELS = 10
# As many layers without channels.
_LAYERS = 10


def report(contents: Contents) -> str:
    """Operators with the types and grids of their outputs, the model's ends, and sizes."""
    head = ["output", "operator", "type", "weights", "bytes", "scale", "zero point"]
    rows: list[list[str]] = []
    for op in contents.ops:
        stored, size, kernel = "", "", contents.kernel(op)
        if not (ends := op.outputs or op.inputs):  # What sets variables before all calls.
            rows.append(["", op.name, *[""] * 5])
            continue
        output = contents.by_name[ends[0]]
        if kernel is not None:
            stored = f"{kernel.type}, {kernel.codes}" if kernel.codes else kernel.type
            size = f"{kernel.bytes:,}"
        rows.append([output.name, op.name, output.type, stored, size, *_grid(output)])
    total, constants = contents.byte_count, contents.constant_bytes
    lines = [
        tables.plain([head, *tables.without_repeats(rows)], left=4),
        "",
        f"Input {', '.join(map(_end, contents.inputs))}.",
        f"Output {', '.join(map(_end, contents.outputs))}.",
        f"{total:,} bytes, {constants:,} of them weights and constants.",
    ]
    if not contents.float_ops():
        lines.append("Integer only.")
    return "\n".join(lines)


def remarks(contents: Contents) -> list[str]:
    """What feeders must compute, is float, is stored too wide, or was removed; a line each."""
    lines = [
        f"Input {tensor.name!r} takes codes of x * gain + shift, which whoever feeds it computes: "
        f"see `preprocessing` of `TFLiteModel.inputs[{i}]`, which `predict` calls by itself."
        for i, tensor in enumerate(contents.inputs)
        if tensor.preprocessing is not None
    ]
    if floats := float_layers(contents):
        layers = [f"{layer} ({_counted(ops)})" for layer, ops in floats.items()]
        lines.append(f"Float operators: {'; '.join(layers)}.")
    if unpacked := _unpacked(contents):
        lines.append(
            "Weights stored wider than they are, for want of a narrower kernel: "
            f"{'; '.join(unpacked)}.{_of_processors(contents)}"
        )
    if removed := _removed(contents):
        lines.append(f"Channels removed, which change nothing: {', '.join(removed)}.")
    return lines


def _removed(contents: Contents) -> list[str]:
    """The layers with weights that have lost channels, and how many."""
    names = [op.outputs[0] for op in contents.ops if op.name in KERNEL_OPS]
    found = {name: contents.removed[name] for name in names if name in contents.removed}
    shown = [f"{name} ({np.sum(x != KEPT)} of {len(x)})" for name, x in found.items()]
    more = len(shown) - _LAYERS
    return shown if more <= 0 else [*shown[:_LAYERS], f"and of {more} more layers"]


def written_by(made: Made | None) -> str:
    """The version of kerasq, what it wrote and how that was trained; "" where it does not say."""
    if made is None or not made.kerasq:
        return ""
    schemes = ", ".join(f"{count} {name}" for name, count in made.schemes.items())
    trained = ""
    if {*made.training} == {"optimizer", "steps"}:
        trained = f"; trained by {made.training['optimizer']}, {made.training['steps']} steps"
    return f"Written by kerasq {made.kerasq}; layers: {schemes}{trained}."


def named(labels: Sequence[str]) -> str:
    """The labels of a file, of many the first ones and the last."""
    shown = [*labels] if len(labels) <= _LABELS else [*labels[: _LABELS - 1], "...", labels[-1]]
    return f"Labels, {len(labels)}: {', '.join(shown)}."


def _of_processors(contents: Contents) -> str:
    """What packs weights that each processor's kernel rounds otherwise; "" where nothing does."""
    is_anywhere = contents.made is not None and contents.made.target == "litert"
    if not is_anywhere or not any(_could_be_packed(contents, op) for op in contents.ops):
        return ""
    return (
        " Where the processor is known, those of up to 4 bits on int8 in CONV_2D, in "
        "FULLY_CONNECTED of an odd number of inputs, and on x86-64 in DEPTHWISE_CONV_2D, are "
        "packed: "
        "target='litert-arm64' or 'litert-x86-64'."
    )


def _could_be_packed(contents: Contents, op: Op) -> bool:
    """Whether some processor's own kernel reads an operator's weights packed."""
    kernel = contents.kernel(op) if op.name in _BY_PROCESSOR else None
    source = contents.by_name[op.inputs[0]]
    if kernel is None or source.type != "int8":
        return False
    if op.name == "CONV_2D" and source.shape[-1] != kernel.shape[-1]:
        return False  # No processor's does in groups.
    fits = kernel.codes.endswith("-bit codes") and not kernel.codes.startswith("5")
    return kernel.type == "int8" and fits


def float_layers(contents: Contents) -> dict[str, list[str]]:
    """The float operators, by the layer that they come from."""
    floats: dict[str, list[str]] = {}
    for op in contents.float_ops():
        # The converter names what is inside of a layer "<layer>/<operation>".
        layer = (op.outputs or op.inputs)[0].split("/")[0]
        floats.setdefault(layer, []).append(op.name)
    return floats


def _unpacked(contents: Contents) -> list[str]:
    """The weights that fewer bits would hold, with the kernel that wants them wider."""
    found = []
    for op in contents.ops:
        kernel = contents.kernel(op)
        if kernel is not None and kernel.codes:
            # Whether a kernel reads packed weights hangs on the type that it reads beside them.
            data = contents.by_name[op.inputs[OPERATORS[op.name].data]]
            codes = f"{kernel.codes} as {kernel.type}"
            found.append(f"{op.outputs[0]} ({codes}, {op.name} on {data.type})")
    return found


def _grid(tensor: Tensor) -> tuple[str, str]:
    """Scale, rounded, and zero point of a tensor."""
    if tensor.grid is None:
        return "", ""
    if tensor.grid.axis is not None:
        return "by channel", "by channel"
    return f"{float(tensor.grid.scale):.4g}", str(tensor.zero_point)


def _end(tensor: Tensor) -> str:
    """An input or output: its name and type, and scale and zero point."""
    if tensor.grid is None:
        return f"{tensor.name}: {tensor.type}"
    # float32 prints as many digits as lead back to it; as a Python float it would have 17.
    scale = str(np.float32(tensor.grid.scale))
    return f"{tensor.name}: {tensor.type}, scale {scale}, zero point {tensor.zero_point}"


def _counted(names: list[str]) -> str:
    """Each name once, with the number of times it is there."""
    counts = collections.Counter(names)
    return ", ".join(name if n == 1 else f"{n} x {name}" for name, n in counts.items())
