"""Flags that name schemes, and layers at schemes of their own."""

from absl import flags

from kerasq import scheme


def flag(name: str, default: str | None, help_text: str) -> flags.FlagHolder:
    """A flag whose value is a scheme."""
    found = flags.DEFINE_string(name, default, help_text)
    flags.register_validator(
        name, lambda value: value is None or scheme.is_scheme(value), message=scheme.RULE
    )
    return found


def overrides_flag() -> flags.FlagHolder:
    """The flag --overrides."""
    found = flags.DEFINE_list(
        "overrides", [], "Layers at another scheme: name=scheme or pattern=scheme, by commas."
    )

    def check(items: list[str]) -> bool:
        try:
            overrides(items)
        except ValueError as error:
            raise flags.ValidationError(str(error)) from error
        return True

    flags.register_validator("overrides", check)
    return found


def overrides(items: list[str]) -> dict[str, str]:
    """The `overrides` of `quantize_model` that "pattern=scheme" items say."""
    found = {}
    for item in items:
        pattern, equals, name = item.rpartition("=")
        if not equals or not scheme.is_scheme(name):
            raise ValueError(
                "`overrides` must be pattern=scheme, such as conv2d_*=w8a16. "
                f"{scheme.RULE} Received: {item!r}."
            )
        found[pattern] = name
    return found
