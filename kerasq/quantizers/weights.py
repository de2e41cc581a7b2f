"""The weight quantizers by name, and the one for a kernel of some width."""

from typing import Any

import keras

from kerasq.quantizers.a2q import A2Q
from kerasq.quantizers.base import WeightQuantizer
from kerasq.quantizers.binary import Binary
from kerasq.quantizers.dorefa import DoReFa
from kerasq.quantizers.power_of_two import PowerOfTwo
from kerasq.quantizers.ternary import Ternary, TrainedTernary
from kerasq.quantizers.uniform import Uniform
from kerasq.support import identifiers

WEIGHTS: dict[str, type[WeightQuantizer]] = {
    "uniform": Uniform,
    "a2q": A2Q,
    "dorefa": DoReFa,
    "ternary": Ternary,
    "trained_ternary": TrainedTernary,
    "power_of_two": PowerOfTwo,
}


def find(weights: str | dict[str, Any] | WeightQuantizer) -> WeightQuantizer:
    """The prototype that `quantize_model(weights=...)` stands for.

    Raises:
        ValueError: for anything but a name, a configuration or an instance.
    """
    return identifiers.find("weights", weights, WeightQuantizer, WEIGHTS)


def serialized(weights: str | dict[str, Any] | WeightQuantizer) -> str | dict[str, Any]:
    """`weights` as a configuration holds it: a name, or a dict."""
    if isinstance(weights, WeightQuantizer):
        return keras.saving.serialize_keras_object(weights)
    return weights


def weight_quantizer(
    weights: str | dict[str, Any] | WeightQuantizer, bits: int, range_gradient: str
) -> WeightQuantizer:
    """A new quantizer for one kernel, with the settings of the prototype that `weights` is.

    Of widths that its class does not have, 1 bit is binary and 8 bits are uniform.

    Raises:
        ValueError: for a width that there is not.
    """
    prototype = find(weights)
    # `weights` is one for the whole model, where some layers may have 1 or 8 bits: a kind for few
    # bits leaves them to those that there are for these.
    if bits not in prototype.widths and bits in (1, 8):
        prototype = Binary() if bits == 1 else Uniform()
    if bits not in prototype.widths:
        kind = weights if isinstance(weights, str) else type(prototype).__name__
        raise ValueError(
            f"Weights of kind {kind!r} must have a width in {[*prototype.widths]}. "
            f"Received: {bits} bits. Choose another scheme, or other `weights`."
        )
    # float32 under any policy: bfloat16 does not hold an 8-bit code times a scale.
    own = {"bits": bits, "range_gradient": range_gradient, "name": "weights", "dtype": "float32"}
    return type(prototype).from_config(prototype.get_config() | own)
