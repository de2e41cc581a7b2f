"""Numbers that are none: NaN and infinite weights."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf


def not_finite(layer: Any) -> list[str]:
    """Names of the variables of a layer that hold NaN or infinite values."""
    # As tensors, which a variable of several replicas gives as well.
    values = {v.name: tf.convert_to_tensor(v.value) for v in getattr(layer, "variables", ())}
    floats = {name: x for name, x in values.items() if x.dtype.is_floating}
    return sorted(name for name, x in floats.items() if not np.isfinite(x).all())


def check_variances(model: keras.Model) -> None:
    """Raises a ValueError that names a BatchNormalization whose variances have no root."""
    for layer in model.layers:
        if not isinstance(layer, keras.layers.BatchNormalization):
            continue
        least = float(np.min(layer.moving_variance))
        if least + layer.epsilon < 0.0:
            raise ValueError(
                "The moving variance of a BatchNormalization must not be below 0. Received: layer "
                f"{layer.name!r} with {least:g}, whose root is NaN. Load weights that belong to "
                "it, or let it see data in training."
            )


def check_finite(model: keras.Model) -> None:
    """Raises a ValueError that names every layer with NaN or infinite values."""
    found = {layer.name: not_finite(layer) for layer in model.layers}
    broken = "; ".join(f"{name!r}: {', '.join(names)}" for name, names in found.items() if names)
    if broken:
        raise ValueError(
            "Weights and ranges must be finite numbers. Received: NaN or infinite values in layers "
            f"{broken}. Go back to the last checkpoint that has none."
        )
