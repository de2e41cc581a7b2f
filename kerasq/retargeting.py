"""`retarget`: a quantized model on another target's kernels."""

from typing import Any

import keras

from kerasq import targets
from kerasq.calibration import samples
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.plan import lacks
from kerasq.targets import Target
from kerasq.wrappers import QuantizeWrapper, require_quantized, with_quantizer, wrapped

# What a further call of a layer has of its first one.
_SHARED = ("layer", "leader", "weights", "batch_norm", "granularity")


def retarget(model: keras.Model, target: str | Target) -> keras.Model:
    """A model with the same weights and ranges that computes as another target's kernels do.

    Each layer rounds as that target does, so that its predictions differ by a few steps; train it
    on for some batches where that costs accuracy. An optimizer's state is not kept: `compile` it.

    Args:
        model: what `quantize_model` returned, calibrated or trained; it is not changed.
        target: as for `quantize_model`.

    Returns:
        The new model.

    Raises:
        ValueError: where `model` is not quantized, for an unknown target, and where that has no
            kernel of a layer at its width, as for functions on int16: these are named.

    Example:
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="head")])
        >>> q = kerasq.quantize_model(model)
        >>> kerasq.calibrate(q, np.array([[-1.0, 2.0], [0.5, 0.0]]))
        >>> kerasq.retarget(q, "tflm").get_layer("head").target.name
        'tflm'
    """
    require_quantized(model)
    found = targets.find(target)
    if missing := [layer.name for layer in wrapped(model) if _lacks(found, layer)]:
        raise ValueError(
            "A target must have a kernel of every layer at its width. Received: target "
            f"{found.name!r}, which has none of {missing}. Quantize the float model for it: "
            "quantize_model(model, target=...) gives such layers another width, or says what to do."
        )

    first: dict[int, Any] = {}
    ranges: dict[int, Any] = {}

    def configuration(layer: QuantizeWrapper) -> dict:
        """That of a wrapper on the other target; steps that share a range share one there."""
        config = {**layer.get_config(), "target": found.name}
        if isinstance(config.get("output_quantizer"), dict):
            key = id(layer.output_quantizer)
            ranges[key] = ranges.get(key) or with_quantizer(config, None)["output_quantizer"]
            config["output_quantizer"] = ranges[key]
        return config

    def clone(layer: keras.Layer) -> Any:
        if not isinstance(layer, QuantizeWrapper):
            return type(layer).from_config(layer.get_config())
        if not isinstance(layer, KernelWrapper) or layer.leader is None:
            first[id(layer)] = first.get(id(layer)) or type(layer).from_config(configuration(layer))
            return first[id(layer)]
        # Further calls of a layer share the weights of its first one.
        kept = {k: v for k, v in configuration(layer).items() if k not in _SHARED}
        return type(layer).sharing(clone(layer.leader), **kept)

    moved = keras.models.clone_model(model, clone_function=clone)
    moved.set_weights(model.get_weights())
    moved.dtype_policy = model.dtype_policy  # Which has `compile` scale the loss, or not.
    samples.keep(moved, samples.samples_of(model))
    return moved


def _lacks(target: Target, layer: QuantizeWrapper) -> bool:
    operator = layer.rule.operator_at(layer.bits.code_bits, target)
    return lacks(target, operator, layer.bits) is not None
