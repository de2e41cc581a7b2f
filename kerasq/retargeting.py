"""`retarget`: a quantized model on another target's kernels."""

from typing import Any

import keras

from kerasq import graph as graphs
from kerasq import targets
from kerasq.calibration import samples
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.plan import lacks
from kerasq.quantizers.activations import ActivationQuantizer
from kerasq.targets import Target
from kerasq.wrappers import QuantizeWrapper, require_quantized, wrapped

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
    if missing := _missing(found, model):
        raise ValueError(
            "A target must have a kernel of every layer at its width. Received: target "
            f"{found.name!r}, which has none of {', '.join(missing)}. Quantize the float model for "
            'it: quantize_model(model, target=...), with recurrence="unrolled" for an LSTM, gives '
            "such layers other operators or another width, or says what to do."
        )

    moved = keras.models.clone_model(model, clone_function=_Copies(found).of)
    moved.set_weights(model.get_weights())
    moved.dtype_policy = model.dtype_policy  # Which has `compile` scale the loss, or not.
    samples.keep(moved, samples.samples_of(model))
    return moved


class _Copies:
    """Layers of a model as another target computes them; what they share, their copies share."""

    def __init__(self, target: Target) -> None:
        self._target = target
        # By id of the original.
        self._leaders: dict[int, KernelWrapper] = {}
        self._quantizers: dict[int, ActivationQuantizer] = {}

    def of(self, layer: keras.Layer) -> keras.Layer:
        """The copy of a layer."""
        if not isinstance(layer, QuantizeWrapper):
            return graphs.copy_layer(layer)
        if not isinstance(layer, KernelWrapper):
            return self._copy(layer)
        # Further calls of a layer share the weights of its first one.
        leader = layer if layer.leader is None else layer.leader
        if id(leader) not in self._leaders:
            self._leaders[id(leader)] = self._copy(leader)
        if leader is layer:
            return self._leaders[id(leader)]
        with graphs.without_own_parts(layer.layer):
            kept = {k: v for k, v in self._config(layer).items() if k not in _SHARED}
        return type(layer).sharing(self._leaders[id(leader)], **kept)

    def _copy(self, wrapper: QuantizeWrapper) -> Any:
        # Configurations hold none of the user's own, which is there before the layer is built.
        with graphs.without_own_parts(wrapper.layer) as parts:
            config = self._config(wrapper)
        if parts:
            config["layer"].pop("build_config", None)
        copy = type(wrapper).from_config(config)
        graphs.add_parts(copy.layer, parts)
        return copy

    def _config(self, layer: QuantizeWrapper) -> dict[str, Any]:
        config = layer.get_config() | {"target": self._target.name}
        if layer.output_quantizer is not None and layer.output_quantizer.uses > 1:
            config["output_quantizer"] = self._quantizer(layer.output_quantizer)
        return config

    def _quantizer(self, original: ActivationQuantizer) -> ActivationQuantizer:
        if id(original) not in self._quantizers:
            copy = type(original).from_config(original.get_config())
            self._quantizers[id(original)] = copy
        return self._quantizers[id(original)]


def _missing(target: Target, model: keras.Model) -> list[str]:
    """The layers of the user's model that a target has no kernel of, with their operators."""
    found: dict[str, None] = {}
    for layer in wrapped(model):
        operator = layer.rule.operator_at(layer.bits.code_bits, target)
        is_long = operator == "SOFTMAX" and not (
            layer.bits.code_bits > 8 or target.limits.takes_softmax(layer.input.shape[-1])
        )
        if is_long or lacks(target, operator, layer.bits) is not None:
            found[f"{layer.source!r} ({operator} on int{layer.bits.code_bits})"] = None
    return [*found]
