"""Learning rates by step, as papers on quantization-aware training have them."""

import math

import keras
from keras.optimizers import schedules

from kerasq.support.numbers import check_integer, check_number

SCHEDULES = ("cosine", "step")
# Keras has no warm-up in front of steps down: a staircase of so many rates stands for it.
_STAIRS = 10


def schedule(
    learning_rate: float,
    steps: int,
    *,
    kind: str = "cosine",
    warmup_steps: int = 0,
    restarts: int = 1,
) -> schedules.LearningRateSchedule:
    """The learning rate at each of `steps` training steps.

    Args:
        learning_rate: the highest rate.
        steps: of the whole training.
        kind: "cosine" to 0 (Loshchilov & Hutter 2017, arXiv 1608.03983), or "step": a tenth of the
            rate after half of the steps and a hundredth after three quarters.
        warmup_steps: steps in which the rate rises from 0.
        restarts: how often the cosine is gone through, as INQ does with each portion of weights.

    Raises:
        ValueError: for numbers that are none, an unknown kind, a warm-up that does not end before
            the rate falls, or restarts of anything but a cosine without warm-up.

    Example:
        >>> rate = kerasq.schedule(0.1, steps=100, warmup_steps=10)
        >>> [round(float(rate(step)), 3) for step in (0, 5, 10, 55, 100)]
        [0.0, 0.05, 0.1, 0.05, 0.0]
    """
    check_number("learning_rate", learning_rate)
    check_integer("steps", steps, 1)
    check_integer("warmup_steps", warmup_steps, 0)
    check_integer("restarts", restarts, 1)
    if kind not in SCHEDULES:
        raise ValueError(f"`kind` must be one of {list(SCHEDULES)}. Received: kind={kind!r}.")
    if restarts > 1 and (kind == "step" or warmup_steps):
        raise ValueError(
            "A schedule that restarts must be a cosine without warm-up. Received: "
            f"kind={kind!r}, warmup_steps={warmup_steps}, restarts={restarts}. Leave the first two "
            "out where the rate starts anew, as with each portion of INQ."
        )
    if warmup_steps > (steps / 2 if kind == "step" else steps):
        raise ValueError(
            "The warm-up must end before the rate falls. Received: "
            f"warmup_steps={warmup_steps}, steps={steps}, kind={kind!r}. Give less of it."
        )
    if kind == "step":
        return _staircase(learning_rate, steps, warmup_steps)
    if restarts > 1:
        period = math.ceil(steps / restarts)
        # By default each period of Keras's is twice as long as the one before.
        return schedules.CosineDecayRestarts(learning_rate, period, t_mul=1.0, m_mul=1.0)
    if not warmup_steps:
        return schedules.CosineDecay(learning_rate, steps)
    # Keras counts the steps of the decay from the end of the warm-up.
    rest = max(1, steps - warmup_steps)
    return schedules.CosineDecay(0.0, rest, warmup_target=learning_rate, warmup_steps=warmup_steps)


def _staircase(
    learning_rate: float, steps: int, warmup_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Up in equal stairs, each at the rate that a ramp has in the middle of it; then down twice."""
    stairs = range(1, _STAIRS + 1) if warmup_steps else range(0)
    boundaries = [warmup_steps * i // _STAIRS for i in stairs] + [steps // 2, steps * 3 // 4]
    values = [learning_rate * (i - 0.5) / _STAIRS for i in stairs]
    values += [learning_rate, learning_rate / 10, learning_rate / 100]
    return schedules.PiecewiseConstantDecay(boundaries, values)
