"""All operators of a .tflite file that a runtime refuses: interpreters name the first alone."""

import dataclasses
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from kerasq.litert import flatbuffer, micro
from kerasq.litert.excerpt import Subgraph
from kerasq.litert.verify import verify
from kerasq.support import optional

# The smallest of the NPUs that `targets.ETHOS_U` is for, as Vela calls it.
NPU = "ethos-u55-128"
# They run other subgraphs, whose operators are looked at one by one.
_CONTROL = ("WHILE", "IF", "CALL_ONCE")
# What interpreters add to a reason: where in their source, and which node of a file, it was.
_PLACE = re.compile(
    r"\S+\.(cc|h):\d+:? |\s*(Failed to get|Failed to \w+ node|Node) \S+( op code)? .*"
)
# On zeros they may end the process.
_NOT_RUN = ("DIV", "FLOOR_DIV", "FLOOR_MOD")
# Seconds that Vela may take.
_LIMIT = 3600


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refusal:
    """An operator that is refused.

    Attributes:
        place: its number in the file, from 0; of those in loops, behind that of their subgraph.
        operator: its name.
        output: the name of the tensor that it writes.
        reason: the rule that it breaks, in the words of who refuses it.
    """

    place: str
    operator: str
    output: str
    reason: str

    def __str__(self) -> str:
        return f"{self.operator} ({self.place}, {self.output!r}): {self.reason}"


def refusals(content: bytes, runtime: str) -> list[Refusal]:
    """The operators that an interpreter does not load, each tried in a file of its own.

    Args:
        content: the file.
        runtime: a key of `kerasq.litert.runtimes.RUNTIMES`.

    Raises:
        ImportError: for TFLite Micro, where it is not installed.
        ValueError: for a file that is damaged.
    """
    model = _read(content)
    found = []
    for place, graph, op in _operators(model):
        kind = _kind(model, op)
        reason = "" if kind in _CONTROL else _reason(Subgraph(model, graph).alone(op)[0], runtime)
        if reason:
            output = _output(graph, op)
            found.append(Refusal(place=place, operator=kind, output=output, reason=reason))
    return found


def _read(content: bytes) -> Any:
    """The object form of a file that no interpreter may have looked at.

    Raises:
        ValueError: for one that is damaged.
    """
    try:
        model = flatbuffer.read(content)
    except Exception as error:  # On damaged files readers raise anything.
        raise ValueError(
            f"A .tflite file must be a whole model. Received: {error}. Export it again."
        ) from error
    verify(model)
    return model


def beside_npu(content: bytes) -> list[Refusal]:
    """The operators that an Ethos-U leaves to the processor beside it, by Vela, Arm's compiler.

    Raises:
        ImportError: where Vela is not installed.
        ValueError: for a file that it does not compile.
    """
    optional.load("ethosu.vela", "vela")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        path.write_bytes(content)
        options = [f"--accelerator-config={NPU}", f"--output-dir={folder}"]
        command = [sys.executable, "-m", "ethosu.vela", str(path), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())
        raise ValueError(f"Vela must compile the file for {NPU}. Received: {said[-500:]}")
    return _said_by_vela(flatbuffer.read(content), done.stdout)


def _said_by_vela(model: Any, said: str) -> list[Refusal]:
    """The warnings of Vela, in the order of the file."""
    places = {_output(graph, op): place for place, graph, op in _operators(model)}
    order = [*places]
    warnings = re.findall(
        r"^Warning \([^)]*\) operator: (\S+), ofm: '(.*)'\nReason: ((?:.+\n?)+)", said, re.MULTILINE
    )
    found = [
        Refusal(
            place=places.get(output, "operator"),
            operator=operator,
            output=output,
            reason=". ".join(reason.strip().splitlines()),
        )
        for operator, output, reason in warnings
    ]
    return sorted(found, key=lambda x: order.index(x.output) if x.output in places else -1)


def _operators(model: Any) -> Iterator[tuple[str, Any, Any]]:
    """The operators of all subgraphs: the place of each in words, its subgraph and itself."""
    for number, graph in enumerate(model.subgraphs):
        inside = f" of subgraph {number}" if number else ""
        for i, op in enumerate(graph.operators):
            yield f"operator {i}{inside}", graph, op


def _kind(model: Any, op: Any) -> str:
    """The name of an operator; of one that is not LiteRT's own, that of its author."""
    code = model.operatorCodes[op.opcodeIndex]
    name = flatbuffer.op_name(code.builtinCode)
    return name if code.customCode is None else f"{name} {code.customCode.decode()!r}"


def _output(graph: Any, op: Any) -> str:
    """The name of what an operator writes; of one that writes nothing, of what it reads."""
    ends = [i for i in (*op.outputs, *op.inputs) if i >= 0]
    return graph.tensors[ends[0]].name.decode() if ends else ""


def _reason(model: Any, runtime: str) -> str:
    """Why a file of one operator is refused; "" where it is not."""
    try:
        if runtime == "tflm":
            _try_on_micro(model)
        else:
            Interpreter(model_content=flatbuffer.write(model)).allocate_tensors()
    except (RuntimeError, ValueError) as error:
        reason = _PLACE.sub("", " ".join(str(error).split()))
        return reason or f"it gives no reason; it reads {_types(model)}"
    return ""


def _types(model: Any) -> str:
    """The types of what the operator of a file reads."""
    (graph,) = model.subgraphs
    return ", ".join(flatbuffer.type_name(graph.tensors[i].type) for i in graph.inputs)


def _try_on_micro(model: Any) -> None:
    """Loads a file of one operator, and runs it: many kernels look at types only then."""
    micro.verify(model)
    micro.verify_softmax_values(model)
    interpreter = micro.MicroInterpreter(flatbuffer.write(model))
    (graph,) = model.subgraphs
    tensors = [graph.tensors[i] for i in graph.inputs]
    known = all(x.type in flatbuffer.NUMPY_TYPES for x in tensors)
    if not known or _kind(model, graph.operators[0]) in _NOT_RUN:
        return
    for i, tensor in enumerate(tensors):
        shape = () if tensor.shape is None else tuple(tensor.shape)
        interpreter.set_tensor(i, np.zeros(shape, flatbuffer.dtype(tensor)))
    interpreter.invoke()
