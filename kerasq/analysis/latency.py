"""`latency`: how long models take for one call, beside each other."""

import statistics
import time
from collections.abc import Sequence

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from kerasq.litert.runtime import KERNELS, TFLiteModel, require_lite
from kerasq.support.numbers import check_integer


def latency(
    models: Sequence[TFLiteModel], *, num_threads: int = 1, rounds: int = 200
) -> list[float]:
    """Median milliseconds that one call of each model takes on this machine, on its kernels.

    The models take turns, so that a change of the machine's load or clock meets all of them. What
    their inputs hold, zeros, makes no difference to the kernels.

    Args:
        models: the models.
        num_threads: threads of each.
        rounds: calls of each model, at least one.

    Raises:
        ValueError: for `rounds` below 1, and for what is no list of models.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
        >>> (ms,) = kerasq.latency([kerasq.export_float_tflite(model)], rounds=10)
        >>> ms > 0
        True
    """
    check_integer("rounds", rounds, 1)
    if not isinstance(models, Sequence):
        raise ValueError(
            "`models` must be a list of TFLiteModels. "
            f"Received: {models!r:.80}. Of one, give [model]."
        )
    for model in models:
        require_lite(model, "models")
    # Not `TFLiteModel.predict`, which checks and quantizes what it is fed.
    interpreters = [
        Interpreter(
            model_content=model.content,
            num_threads=num_threads,
            experimental_op_resolver_type=KERNELS[model.kernels],
        )
        for model in models
    ]
    for interpreter in interpreters:
        interpreter.allocate_tensors()
        # What happens to be in their memory may be no index, which kernels refuse.
        for detail in interpreter.get_input_details():
            zeros = np.zeros(detail["shape"], detail["dtype"])
            interpreter.set_tensor(detail["index"], zeros)
    times: list[list[float]] = [[] for _ in models]
    for _ in range(rounds):
        for interpreter, measured in zip(interpreters, times, strict=True):
            start = time.perf_counter()
            interpreter.invoke()
            measured.append(1e3 * (time.perf_counter() - start))
    # Not the mean: a call that another process interrupts takes many times as long.
    return [statistics.median(measured) for measured in times]
