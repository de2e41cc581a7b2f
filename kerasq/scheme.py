"""What a user asks for: the widths of weights and activations."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """Bit widths of a layer's weights and of its output."""

    weight_bits: int
    activation_bits: int


SCHEMES = {"w8a8": Scheme(weight_bits=8, activation_bits=8)}


def resolve(name: str) -> Scheme:
    """The scheme called `name`.

    Raises:
        ValueError: for a name that is not in `SCHEMES`.
    """
    if not isinstance(name, str) or name not in SCHEMES:
        raise ValueError(f"`scheme` must be one of {sorted(SCHEMES)}. Received: scheme={name!r}.")
    return SCHEMES[name]


def per_layer(default: str, overrides: dict[str, str] | None, layers: list[str]) -> dict[str, str]:
    """The scheme of each layer: `default`, or what `overrides` says under the layer's name.

    Raises:
        ValueError: for an unknown scheme, or a name in `overrides` that no layer has.
    """
    overrides = overrides or {}
    if not isinstance(overrides, dict):
        raise ValueError(
            "`overrides` must be a dict of layer name to scheme. "
            f"Received: overrides={overrides!r}."
        )
    resolve(default)
    for name, scheme in overrides.items():
        resolve(scheme)
        if name not in layers:
            raise ValueError(
                "`overrides` must name layers that are quantized. "
                f"Received: overrides={{{name!r}: {scheme!r}}}. Legal names: {layers}."
            )
    return {name: overrides.get(name, default) for name in layers}
