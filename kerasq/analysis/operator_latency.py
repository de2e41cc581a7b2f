"""`operator_latency`: where the time of a file goes, operator by operator."""

import collections
import dataclasses
import time
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kerasq.analysis.latency import check, loaded, medians
from kerasq.litert import excerpt, flatbuffer
from kerasq.litert.excerpt import OWN_KERNELS, Excerpt, Excerpts
from kerasq.litert.partitions import partitions
from kerasq.litert.runtime import KERNELS, TFLiteModel
from kerasq.support import tables
from kerasq.support.progress import track


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """An operator, timed alone.

    Attributes:
        op: the operator, such as "CONV_2D".
        output: the name of its first output; "" where it has none.
        runs_on: "XNNPACK", or "LiteRT" where LiteRT's own kernels run it; "" where that is not
            known.
        ms: median milliseconds of a call; None where it could not be timed alone.
        why_not: why it could not; "" where it was.
    """

    op: str
    output: str
    runs_on: str
    ms: float | None
    why_not: str = ""


class KindTime(NamedTuple):
    """All operators of one kind on the same kernels.

    Attributes:
        op: the kind, such as "CONV_2D".
        runs_on: what runs them, as `OperatorTime.runs_on`.
        operators: how many there are.
        ms: milliseconds of those that could be timed, together.
    """

    op: str
    runs_on: str
    operators: int
    ms: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatorLatency:
    """Where the time of a file goes. Printing it gives tables of operators and of their kinds.

    Attributes:
        operators: each operator of the file, in its order.
        whole_ms: median milliseconds of a call of the whole file.
        rounds: calls of each.
        num_threads: threads of each.
    """

    operators: tuple[OperatorTime, ...]
    whole_ms: float
    rounds: int
    num_threads: int

    @property
    def sum_ms(self) -> float:
        """Milliseconds of all operators together."""
        return sum(x.ms or 0.0 for x in self.operators)

    @property
    def kinds(self) -> tuple[KindTime, ...]:
        """The kinds of operators, the slowest first."""
        times: dict[tuple[str, str], list[float]] = collections.defaultdict(list)
        for x in self.operators:
            times[x.op, x.runs_on].append(x.ms or 0.0)
        found = [KindTime(*kind, len(own), sum(own)) for kind, own in times.items()]
        return tuple(sorted(found, key=lambda x: -x.ms))

    def share(self, ms: float) -> float:
        """The part that a time is of that of all operators."""
        return ms / self.sum_ms if self.sum_ms else 0.0

    def __str__(self) -> str:
        rows = [["operator", "output", "runs on", "ms", "share"]]
        # TensorFlow's converter joins many names by ";".
        rows += [
            [x.op, x.output.partition(";")[0], x.runs_on, *self._figures(x.ms)]
            for x in self.operators
        ]
        return "\n".join([tables.plain(rows, left=3), "", self.by_kind()])

    def by_kind(self) -> str:
        """The table of kinds of operators, and what they take together."""
        rows = [["kind", "runs on", "operators", "ms", "share"]]
        rows += [[x.op, x.runs_on, str(x.operators), *self._figures(x.ms)] for x in self.kinds]
        calls = f"{self.rounds} calls each, threads: {self.num_threads}"
        total = f"Each alone: {self.sum_ms:.4f} ms together; the whole file: {self.whole_ms:.4f} ms"
        left = [f"{x.op} {x.output!r} {x.why_not}" for x in self.operators if x.ms is None]
        missing = [f"Not timed alone: {'; '.join(left)}."] if left else []
        return "\n".join([tables.plain(rows, left=2), "", f"{total} ({calls}).", *missing])

    def _figures(self, ms: float | None) -> list[str]:
        """A time, and its share, for a table."""
        return ["-", "-"] if ms is None else [f"{ms:.4f}", f"{100 * self.share(ms):.1f} %"]


def operator_latency(
    lite: TFLiteModel, *, num_threads: int = 1, rounds: int = 50
) -> OperatorLatency:
    """Median milliseconds that each operator of a file takes on this machine, on its kernels.

    LiteRT's Python package has no profiler, so that each operator is cut out of the file, with its
    constants, shapes, types and grids, and timed alone, less what a call of a file without any
    operator takes. It runs where it runs in the file: on XNNPACK, or on LiteRT's own kernels.
    Operators and the whole file take turns, in the order of the file, so that weights are as cold
    as in a whole call. Operators that differ in the values of weights and grids alone are timed
    once. What they read is what the file computes for zeros.

    Times of one thread are the processor's for that thread, which stand still while another process
    has it; those of several threads, and of `kerasq.latency`, go by the wall clock.

    The sum differs from the time of the whole file. There XNNPACK runs neighbours as one part, in
    which tensors stay in the caches and some operators are fused, such as a padding into a
    convolution; alone, each has a hand-over to XNNPACK, below a microsecond.

    A loop is one operator, its body included. What works on variables or text cannot be timed
    alone, and is named.

    Args:
        lite: the file, on LiteRT.
        num_threads: threads of each operator.
        rounds: calls of each operator, at least one.

    Returns:
        The times, which print as a table.

    Raises:
        ValueError: for `rounds` or `num_threads` below 1, and for a file that LiteRT does not run.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> found = kerasq.operator_latency(kerasq.export_float_tflite(model), rounds=5)
        >>> [x.op for x in found.operators]
        ['FULLY_CONNECTED']
        >>> found.sum_ms >= 0 and found.whole_ms > 0
        True
    """
    check(rounds, num_threads)
    if not isinstance(lite, TFLiteModel) or lite.target != "litert":
        raise ValueError(
            "`lite` must be a TFLiteModel that LiteRT runs. "
            f"Received: {_described(lite)}. Load the file with kerasq.TFLiteModel(path)."
        )
    kernels = KERNELS[lite.kernels]
    alone = _Alone(lite, num_threads)
    whole = loaded(lite.content, kernels, num_threads)
    nothing = loaded(excerpt.empty(), kernels, num_threads)
    # A thread's own time stands still while another process has the processor.
    clock = time.thread_time if num_threads == 1 else time.perf_counter
    turns = [whole, *alone.interpreters, nothing]
    whole_ms, *own, call_ms = medians(turns, track(range(rounds), rounds, "round"), clock)
    return OperatorLatency(
        operators=tuple(alone.times([max(0.0, ms - call_ms) for ms in own])),
        whole_ms=whole_ms,
        rounds=rounds,
        num_threads=num_threads,
    )


def _described(lite: Any) -> str:
    on_tflm = isinstance(lite, TFLiteModel)
    return f"one of target {lite.target!r}" if on_tflm else f"{lite!r:.80}"


class _Alone:
    """The operators of a file, each in an interpreter of its own.

    Attributes:
        interpreters: one for all operators that take the same time.
    """

    def __init__(self, lite: TFLiteModel, num_threads: int) -> None:
        self._lite, self._num_threads = lite, num_threads
        # The operators that LiteRT's own kernels run; None where that is not known.
        parts = partitions(lite.content) if lite.kernels == "optimized" else None
        self._outside = None if parts is None else {*parts.outside}
        self._values = _values(lite, num_threads)
        self._excerpts = Excerpts(flatbuffer.read(lite.content), self._values)
        self.interpreters: list[Interpreter] = []
        # By operator, its interpreter, or why it has none.
        self._place: list[int | str] = []
        places: dict[Hashable, int | str] = {}
        for index in track(range(len(lite.ops)), len(lite.ops), "operator"):
            key = self._excerpts.missing(index) or (
                self._runs_on(index),
                self._excerpts.kind(index),
            )
            if key not in places:
                places[key] = key if isinstance(key, str) else self._load(index)
            self._place.append(places[key])

    def _runs_on(self, index: int) -> str:
        if self._lite.kernels == "reference":
            return "LiteRT"
        if self._outside is None:
            return ""
        outputs = self._lite.ops[index].outputs
        return "LiteRT" if not outputs or outputs[0] in self._outside else "XNNPACK"

    def _kernels(self, index: int, cut: Excerpt) -> OpResolverType:
        """The kernels of an operator alone."""
        if self._outside is None:
            return KERNELS[self._lite.kernels]
        # Within a loop, XNNPACK may run what is in it.
        is_left = self._runs_on(index) == "LiteRT" and not self._excerpts.holds_subgraphs(index)
        # What reads constants alone XNNPACK computes as it takes a file; alone, it fails on that.
        return OWN_KERNELS if is_left or not cut.inputs else KERNELS[self._lite.kernels]

    def _load(self, index: int) -> int | str:
        """The place of a new interpreter of an operator; why there is none, where it is refused."""
        cut = self._excerpts.cut(index)
        try:
            made = loaded(cut.content, self._kernels(index, cut), self._num_threads)
            for detail, i in zip(made.get_input_details(), cut.inputs, strict=True):
                made.set_tensor(detail["index"], self._values[i])
            made.invoke()
        except (RuntimeError, ValueError) as error:
            return f"is refused by LiteRT: {str(error).splitlines()[0].rstrip('.')}"
        self.interpreters.append(made)
        return len(self.interpreters) - 1

    def times(self, measured: list[float]) -> list[OperatorTime]:
        """The operators of the file, by the times of the interpreters."""
        return [
            OperatorTime(
                op=op.name,
                output=op.outputs[0] if op.outputs else "",
                runs_on=self._runs_on(index),
                ms=None if isinstance(place, str) else measured[place],
                why_not=place if isinstance(place, str) else "",
            )
            for index, (op, place) in enumerate(zip(self._lite.ops, self._place, strict=True))
        ]


def _values(lite: TFLiteModel, num_threads: int) -> dict[int, np.ndarray]:
    """By index, what the tensors of a file are for inputs of zeros."""
    content = flatbuffer.with_outputs(lite.content)
    interpreter = loaded(content, KERNELS[lite.kernels], num_threads)
    interpreter.invoke()
    found = excerpt.computed(interpreter)
    # The memory of an input may hold something else by now.
    for detail in interpreter.get_input_details():
        found[detail["index"]] = np.zeros(detail["shape"], detail["dtype"])
    return found
