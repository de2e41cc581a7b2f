"""Flags that name schemes, layers at schemes of their own, the target, and what shares a scale."""

from absl import flags

from kerasq import scheme, targets
from kerasq.quantize import GRANULARITIES
from kerasq.scales import FREE
from kerasq.scales import SCALES as ALL_SCALES

TARGET = flags.DEFINE_enum(
    "target",
    targets.DEFAULT,
    [name for name, target in targets.TARGETS.items() if target.runtime == "litert"],
    "What the file is for. Where a processor is named, all weights of up to 4 bits are packed.",
)
GRANULARITY = flags.DEFINE_enum(
    "granularity",
    "per_channel",
    list(GRANULARITIES),
    "What of a kernel shares a scale: each channel, or all of it, for compilers that ask for that. "
    "Weights that are not uniform then need --batch_norm=fold.",
)
SCALES = flags.DEFINE_enum(
    "scales",
    FREE,
    list(ALL_SCALES),
    "Which scales are powers of two, with zero points of 0, so that rescaling is a shift.",
)


def flag(name: str, default: str | None, help_text: str) -> flags.FlagHolder:
    """A flag whose value is a scheme."""
    found = flags.DEFINE_string(name, default, help_text)
    flags.register_validator(
        name, lambda value: value is None or scheme.is_scheme(value), message=scheme.RULE
    )
    return found


def overrides_flag() -> flags.FlagHolder:
    """The flag --overrides; its value is the `overrides` of `quantize_model`."""
    text = "Layers at another scheme: name=scheme or pattern=scheme, by commas."
    return flags.DEFINE(_Overrides(), "overrides", "", text)


class _Overrides(flags.ListParser):
    def parse(self, argument: str | list[str]) -> dict[str, str]:
        return overrides(super().parse(argument))


def overrides(items: list[str]) -> dict[str, str]:
    """The schemes that "pattern=scheme" items say, by pattern."""
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
