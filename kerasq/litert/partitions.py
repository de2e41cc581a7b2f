"""Which operators XNNPACK's delegate runs, and in how many parts: each part costs a hand-over."""

from typing import Any, NamedTuple

from ai_edge_litert.interpreter import Interpreter


class Partitions(NamedTuple):
    """What of a file XNNPACK runs here.

    Attributes:
        parts: in how many parts.
        outside: the first outputs of the operators that LiteRT's own kernels run.
    """

    parts: int
    outside: tuple[str, ...]


def partitions(content: bytes) -> Partitions | None:
    """The partitions of a file on LiteRT's default kernels; None where LiteRT does not tell."""
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    # Only this private method tells, in LiteRT 2.1 to 2.3.
    details = getattr(interpreter, "_get_ops_details", None)
    if details is None:
        return None
    names = {x["index"]: x["name"] for x in interpreter.get_tensor_details()}
    ops = details()
    parts = [op for op in ops if op["op_name"] == "DELEGATE"]
    return Partitions(len(parts), tuple(names[y] for y in _outside(ops, parts)))


def _outside(ops: list[dict[str, Any]], parts: list[dict[str, Any]]) -> list[int]:
    """The first outputs of the operators that are in none of the parts."""
    own = [op for op in ops if op["op_name"] != "DELEGATE"]
    maker = {int(y): op for op in own for y in op["outputs"]}
    inside = {id(op) for part in parts for op in _inside(part, maker)}
    return [int(op["outputs"][0]) for op in own if id(op) not in inside and len(op["outputs"])]


def _inside(part: dict[str, Any], maker: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """The operators between the inputs and the outputs of a part."""
    # -1 is an optional input that is absent, and an output of a loop that none reads.
    known = {-1, *(int(x) for x in part["inputs"])}
    found, wanted = [], [int(y) for y in part["outputs"]]
    while wanted:
        tensor = wanted.pop()
        if tensor in known or tensor not in maker:
            continue
        op = maker[tensor]
        found.append(op)
        known.update(int(y) for y in op["outputs"])
        wanted += [int(x) for x in op["inputs"]]
    return found
