"""TFLite Micro's interpreter, behind the calls that LiteRT's has."""

import contextlib
import re
from typing import Any

import numpy as np

from kerasq.litert import flatbuffer
from kerasq.support import optional, stderr

# Bytes of the memory for activations and what kernels need besides; the second where the first
# is not enough.
ARENAS = (2**24, 2**28)
# The most axes that kernels take, which for more of them are refused, or end the process; and those
# of two tensors of different shapes.
AXES = {
    "BROADCAST_TO": 5,
    "CONCATENATION": 6,
    "L2_NORMALIZATION": 4,
    "SLICE": 5,
    "STRIDED_SLICE": 4,
    "TRANSPOSE": 5,
}
BROADCAST_AXES = {"ADD": 5, "MUL": 5, "SUB": 5}
# The least scale that an int8 softmax reads: just above 2^-26.
SOFTMAX_SCALE = 2.0**-26 * (1.0 + 2.0**-20)
# The most values of an int8 softmax: where exponentials add up to 512, it shifts by 32 bits, which
# ends the process.
SOFTMAX_VALUES = 511


class MicroInterpreter:
    """Runs a file on TFLite Micro's portable kernels.

    Args:
        content: the file.
        arenas: bytes of memory that it gets, one after the other until one is enough.

    Raises:
        ImportError: where tflite_micro is not installed.
        RuntimeError: for a file that it does not run, in its own words.
    """

    def __init__(self, content: bytes, arenas: tuple[int, ...] = ARENAS) -> None:
        self._runtime = optional.load("tflite_micro", "tflm").runtime
        self._content = content
        self._interpreter = self._loaded(arenas)

    def _loaded(self, arenas: tuple[int, ...]) -> Any:
        for arena in arenas:
            with stderr.held() as text:
                try:
                    return self._runtime.Interpreter.from_bytes(self._content, arena_size=arena)
                except RuntimeError:
                    pass
        raise RuntimeError(" ".join(text) or "TFLite Micro gives no reason")

    def allocate_tensors(self) -> None:
        """Nothing: it has done so when it was made."""

    def get_input_details(self) -> list[dict[str, int]]:
        """Where `set_tensor` puts each input, as LiteRT's interpreter says it."""
        return self._details(self._interpreter.get_input_details)

    def get_output_details(self) -> list[dict[str, int]]:
        """Where `get_tensor` finds each output."""
        return self._details(self._interpreter.get_output_details)

    def _details(self, of: Any) -> list[dict[str, int]]:
        found: list[dict[str, int]] = []
        # It does not say how many there are.
        with contextlib.suppress(IndexError, ValueError, RuntimeError), stderr.held():
            while of(len(found)):
                found.append({"index": len(found)})
        return found

    def set_tensor(self, index: int, value: np.ndarray) -> None:
        """Sets an input, by its place among them."""
        self._interpreter.set_input(value, index)

    def get_tensor(self, index: int) -> np.ndarray:
        """An output, by its place among them."""
        return np.array(self._interpreter.get_output(index))

    def invoke(self) -> None:
        """Runs the file once."""
        failed = None
        with stderr.held() as text:
            try:
                self._interpreter.invoke()
            except RuntimeError as error:
                failed = error
        if failed is not None:
            raise RuntimeError(" ".join(text) or str(failed)) from failed

    def arena_bytes(self) -> int:
        """The memory that one call has taken, in bytes."""
        with stderr.held() as text:
            self._interpreter.print_allocations()
        (total,) = re.findall(r"Arena allocation total (\d+) bytes", " ".join(text))
        return int(total)


def verify(model: Any) -> None:
    """Raises a ValueError for a whole file, in object form, that would end the process."""
    for graph in model.subgraphs:
        for op in graph.operators:
            kind = flatbuffer.op_name(flatbuffer.op_code(model, op))
            if kind in ("SOFTMAX", "LOG_SOFTMAX"):
                _check_softmax(graph.tensors[op.inputs[0]])
            if kind == "SLICE" or kind in BROADCAST_AXES:
                _check_axes(graph, op, kind)


def verify_softmax_values(model: Any) -> None:
    """Raises a ValueError for a file that would end the process where values are much alike."""
    for graph in model.subgraphs:
        for op in graph.operators:
            source = graph.tensors[op.inputs[0]] if len(op.inputs) else None
            is_int8 = source is not None and source.type == flatbuffer.Type.INT8
            if is_int8 and flatbuffer.op_name(flatbuffer.op_code(model, op)) == "SOFTMAX":
                _check_length(source)


def _check_length(source: Any) -> None:
    count = int(source.shape[-1])
    if count > SOFTMAX_VALUES:
        raise ValueError(
            f"TFLite Micro takes no int8 softmax over more than {SOFTMAX_VALUES} values, and ends "
            f"the process where many of them are alike. Received: {source.name.decode()!r} of "
            f"{count}. Quantize the model for target 'tflm', which computes it on int16."
        )


def _check_softmax(source: Any) -> None:
    """What an int8 softmax reads is multiplied by 2^26 times its scale, which must be above 1.

    So `QuantizeMultiplierGreaterThanOne` asks: else it ends the process.
    """
    if source.type != flatbuffer.Type.INT8:
        return
    grid = flatbuffer.grid_of(source)
    assert grid is not None
    if grid.scale < SOFTMAX_SCALE:
        raise ValueError(
            "TFLite Micro takes no int8 softmax whose input has steps of 2^-26 or less. Received: "
            f"{source.name.decode()!r} with {grid.scale:.3g}. Widen its range."
        )


def _check_axes(graph: Any, op: Any, kind: str) -> None:
    """A kernel's loops have so many axes, and no more."""
    if found := axes_beyond(graph, op, AXES.get(kind), BROADCAST_AXES.get(kind)):
        shape, most = found
        name = graph.tensors[op.outputs[0]].name.decode()
        raise ValueError(
            f"TFLite Micro takes no {kind} of more than {most} axes. Received: {shape} in front of "
            f"{name!r}. Reshape that to fewer axes."
        )


def axes_beyond(
    graph: Any, op: Any, most: int | None, of_different: int | None
) -> tuple[tuple[int, ...], int] | None:
    """The shape of too many axes that an operator reads, and how many it takes; None for none.

    Args:
        graph: the subgraph, in object form.
        op: the operator.
        most: the most axes that it takes; None for any number.
        of_different: the same where it reads tensors of different shapes, if that is another.
    """
    shapes = [graph.tensors[i].shape for i in op.inputs if i >= 0]
    known = [() if shape is None else tuple(map(int, shape)) for shape in shapes]
    if of_different is not None and len({*known}) > 1:
        most = of_different
    longest = max(known, key=len, default=())
    return None if most is None or len(longest) <= most else (longest, most)


def least_arena(content: bytes, inputs: list[np.ndarray]) -> int:
    """The least arena in which a file runs, in bytes, to the next 1,024.

    More than `arena_bytes`: kernels are prepared in memory that is free again when they run.

    Args:
        content: the file.
        inputs: samples for each input, of which the first is run.

    Raises:
        ImportError: where tflite_micro is not installed.
        RuntimeError: for a file that it does not run.
    """
    used = _run(content, inputs, ARENAS).arena_bytes()
    for size in range(-(-used // 1024) * 1024, ARENAS[-1], 1024):
        with contextlib.suppress(RuntimeError):
            _run(content, inputs, (size,))
            return size
    return ARENAS[-1]


def _run(content: bytes, inputs: list[np.ndarray], arenas: tuple[int, ...]) -> MicroInterpreter:
    """An interpreter that has run the first sample."""
    interpreter = MicroInterpreter(content, arenas)
    for i, values in enumerate(inputs):
        interpreter.set_tensor(i, values[:1])
    interpreter.invoke()
    return interpreter
