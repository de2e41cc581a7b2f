"""The float network that a quantized model holds, which methods compare with: once."""

import keras

from kerasq.support.finite import check_finite
from kerasq.wrappers import require_quantized

# What a model has whose weights such a method has changed; a saved one does not say.
_CHANGED = "kerasq_changed_by"


def check(model: keras.Model) -> None:
    """Raises a ValueError where a model has no float network to compare with any more."""
    require_quantized(model)
    check_finite(model)
    if method := changed_by(model):
        raise ValueError(
            "A model must have the weights that it was trained with. Received: one that "
            f"{method} has changed. Quantize and calibrate the float model anew."
        )


def changed_by(model: keras.Model) -> str | None:
    """The method that has changed the weights; None for none."""
    return getattr(model, _CHANGED, None)


def mark(model: keras.Model, method: str) -> None:
    """Notes that a method has changed the weights."""
    setattr(model, _CHANGED, method)


def unmark(model: keras.Model) -> None:
    """Notes that the weights are what they were."""
    setattr(model, _CHANGED, None)
