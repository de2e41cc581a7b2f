"""`latency`: how long models take for one call, beside each other."""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from kerasq.litert.runtime import KERNELS, TFLiteModel, require_lite
from kerasq.support.numbers import check_integer


def latency(
    models: Sequence[TFLiteModel], *, num_threads: int = 1, rounds: int = 200
) -> list[float]:
    """Median milliseconds that one call of each model takes on this machine, on its kernels.

    The models take turns, so that a change of the machine's load or clock meets all of them. What
    their inputs hold, zeros, makes no difference to the kernels. `kerasq.operator_latency` says
    where the time goes.

    Args:
        models: the models.
        num_threads: threads of each.
        rounds: calls of each model, at least one.

    Raises:
        ValueError: for `rounds` or `num_threads` below 1, and for what is no list of models.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> (ms,) = kerasq.latency([kerasq.export_float_tflite(model)], rounds=10)
        >>> ms > 0
        True
    """
    check(rounds, num_threads)
    if not isinstance(models, Sequence):
        raise ValueError(
            "`models` must be a list of TFLiteModels. "
            f"Received: {models!r:.80}. Of one, give [model]."
        )
    for model in models:
        require_lite(model, "models")
        if model.target != "litert":
            raise ValueError(
                "`models` must be TFLiteModels that LiteRT runs. Received: one that runs on "
                f"{model.target!r}. Load the file with kerasq.TFLiteModel(path)."
            )
    # Not `TFLiteModel.predict`, which checks and quantizes what it is fed.
    interpreters = [loaded(x.content, KERNELS[x.kernels], num_threads) for x in models]
    return medians(interpreters, range(rounds), time.perf_counter)


def check(rounds: int, num_threads: int) -> None:
    """Raises a ValueError for no rounds, and for no threads."""
    check_integer("rounds", rounds, 1)
    check_integer("num_threads", num_threads, 1)


def loaded(content: bytes, kernels: OpResolverType, num_threads: int) -> Interpreter:
    """A file in an interpreter, fed zeros."""
    interpreter = Interpreter(
        model_content=content, num_threads=num_threads, experimental_op_resolver_type=kernels
    )
    interpreter.allocate_tensors()
    # What happens to be in their memory may be no index, which kernels refuse.
    for detail in interpreter.get_input_details():
        interpreter.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
    return interpreter


def medians(
    interpreters: Sequence[Interpreter], rounds: Iterable[int], clock: Callable[[], float]
) -> list[float]:
    """Median milliseconds of a call of each interpreter, one call of each in every round."""
    times: list[list[float]] = [[] for _ in interpreters]
    for _ in rounds:
        for interpreter, measured in zip(interpreters, times, strict=True):
            start = clock()
            interpreter.invoke()
            measured.append(1e3 * (clock() - start))
    # Not the mean: a call that another process interrupts takes many times as long.
    return [statistics.median(measured) for measured in times]
