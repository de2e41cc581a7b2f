"""What a user asks for: the widths of weights and activations, for the model and layer by layer."""

import dataclasses
import fnmatch
import re
from collections.abc import Mapping
from typing import Any

import keras


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """Bit widths of a layer's weights and of its activations: what it reads and what it writes.

    Weights are symmetric per channel. Activations of up to 8 bits are asymmetric, those of 16
    symmetric (LiteRT quantization specification); 32 stands for float. Below 8 bits a layer with
    weights reads that width, and a layer in front of one writes it behind its ReLU; other values
    stay int8, such as those that are summed up, or that only layers of 8 bits read.
    """

    weight_bits: int
    activation_bits: int

    @property
    def code_bits(self) -> int:
        """Width of the integers that hold activations on the device: 8 or 16; 32 for float."""
        return max(8, self.activation_bits)


FLOAT_BITS = 32  # Float values have a width too, so that a width is always an integer.
# The schemes that LiteRT has kernels of; narrower ones run on these, as int8 codes.
SCHEMES = ("w8a8", "w8a16", "w4a8", "w4a16", "float")
# 16 is the one width of activations over 8 that LiteRT has kernels of; all narrower ones fit int8.
_NAME = re.compile(r"w([1-8])a([2-8]|16)")
RULE = (
    'A scheme must be "float" or "w<bits>a<bits>", such as "w8a8" or "w4a16": weights of 1 to 8 '
    "bits, activations of 2 to 8 or 16."
)


def resolve(name: str) -> Scheme:
    """The scheme called `name`.

    Raises:
        ValueError: for a name that is none.
    """
    if not is_scheme(name):
        raise ValueError(f"{RULE} Received: scheme={name!r}.")
    if name == "float":
        return Scheme(weight_bits=FLOAT_BITS, activation_bits=FLOAT_BITS)
    weight_bits, activation_bits = map(int, name[1:].split("a"))
    return Scheme(weight_bits=weight_bits, activation_bits=activation_bits)


def is_scheme(name: Any) -> bool:
    """Whether `name` names a scheme."""
    return isinstance(name, str) and (name == "float" or _NAME.fullmatch(name) is not None)


def widened(name: str) -> str:
    """The scheme of the same weights and activations of 16 bits; "float" for that."""
    return name if name == "float" else f"w{resolve(name).weight_bits}a16"


def per_layer(
    default: str,
    overrides: Mapping[Any, str] | None,
    layers: dict[str, keras.layers.Layer],
    models: Mapping[str, tuple[keras.layers.Layer, ...]] | None = None,
) -> dict[str, str]:
    """The scheme of each layer: `default`, or what `overrides` says.

    A key of `overrides` is a layer's name, a shell pattern of names ("block2_*") or a layer class
    (`keras.layers.DepthwiseConv2D`). A name counts before a pattern, a pattern before a class;
    among keys of one kind the last one counts. A key for a nested model is for the layers in it
    that no key fits.

    Args:
        default: the scheme of all others.
        overrides: schemes by key.
        layers: the layers by name.
        models: by name of a layer, the models that it is nested in, from the outermost.

    Raises:
        ValueError: for an unknown scheme, or a key that fits no layer.
    """
    overrides = {} if overrides is None else overrides
    if not isinstance(overrides, Mapping):
        raise ValueError(
            "`overrides` must be a dict of layer name, pattern or class to scheme. "
            f"Received: overrides={overrides!r}."
        )
    resolve(default)
    return dict.fromkeys(layers, default) | overridden(overrides, layers, models)


def overridden(
    overrides: Mapping[Any, str] | None,
    layers: dict[str, keras.layers.Layer],
    models: Mapping[str, tuple[keras.layers.Layer, ...]] | None = None,
) -> dict[str, str]:
    """The schemes of the layers that `overrides` names, as in `per_layer`, and of no others."""
    models = models or {}
    nested = {model.name: model for around in models.values() for model in around}
    # A key that is the name of a layer and of a model is the layer's.
    schemes = _by_name(overrides, nested | layers)
    found = {}
    for name in layers:
        # From the outermost model to the layer itself: what is nearer to it overwrites.
        for key in (*(model.name for model in models.get(name, ())), name):
            if key in schemes:
                found[name] = schemes[key]
    return found


def _by_name(
    overrides: Mapping[Any, str] | None, layers: dict[str, keras.layers.Layer]
) -> dict[str, str]:
    """The schemes of the layers and models that keys of `overrides` fit."""
    schemes: dict[str, str] = {}
    # Later keys overwrite earlier ones, and sorting leaves keys of one rank in the user's order.
    for key, scheme in sorted((overrides or {}).items(), key=lambda item: _rank(item[0], layers)):
        if not is_scheme(scheme):
            raise ValueError(f"{RULE} Received: overrides={{{key!r}: {scheme!r}}}.")
        found = fitting(key, layers)
        if not found:
            raise ValueError(
                "A key of `overrides` must be the name, a shell pattern of names, or the class of "
                f"layers. Received: overrides={{{key!r}: {scheme!r}}}. "
                f"The model's layers: {list(layers)}."
            )
        schemes.update(dict.fromkeys(found, scheme))
    return schemes


def check_overrides(overrides: Any) -> None:
    """Raises a ValueError unless `overrides` are a dict, or None."""
    if overrides is not None and not isinstance(overrides, Mapping):
        raise ValueError(
            "`overrides` must be a dict of schemes by the names, patterns of names or classes of "
            f"layers. Received: overrides={overrides!r:.80}."
        )


def fitting(key: Any, layers: dict[str, keras.layers.Layer]) -> list[str]:
    """Names of the layers that a key of `overrides` stands for."""
    return [name for name, layer in layers.items() if _fits(key, name, layer)]


def _rank(key: Any, layers: dict[str, keras.layers.Layer]) -> int:
    """0 for a class, 1 for a pattern, 2 for a name."""
    return int(isinstance(key, str)) + (key in layers)


def _fits(key: Any, name: str, layer: keras.layers.Layer) -> bool:
    if isinstance(key, str):  # Keras's names differ by case, which `fnmatch` ignores on Windows.
        return name == key or fnmatch.fnmatchcase(name, key)
    return isinstance(key, type) and isinstance(layer, key)
