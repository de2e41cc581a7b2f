"""What quantized models run on: one table of targets, by name."""

from kerasq.targets.ethos_u import ETHOS_U
from kerasq.targets.litert import ARM64, LITERT, X86_64
from kerasq.targets.target import Limits, Target
from kerasq.targets.tflm import TFLM

__all__ = [
    "ARM64",
    "DEFAULT",
    "ETHOS_U",
    "LITERT",
    "TARGETS",
    "TFLM",
    "X86_64",
    "Limits",
    "Target",
    "find",
    "register",
]

# A new target is a file beside litert.py and a row here.
TARGETS: dict[str, Target] = {
    target.name: target for target in (LITERT, X86_64, ARM64, TFLM, ETHOS_U)
}

# The target of models that do not name one.
DEFAULT = LITERT.name


def register(target: Target) -> None:
    """Adds a target of your own, so that models may name it, saved ones included.

    Raises:
        ValueError: where another target has its name.
    """
    if TARGETS.setdefault(target.name, target) is not target:
        raise ValueError(
            "A target must have a name of its own. "
            f"Received: {target.name!r}, beside those that there are: {sorted(TARGETS)}."
        )


def find(target: str | Target) -> Target:
    """The target of a name, or the target itself if it is registered.

    Raises:
        ValueError: for a name that no target has, or a target that is not registered.
    """
    if isinstance(target, str) and target in TARGETS:
        return TARGETS[target]
    if isinstance(target, Target) and TARGETS.get(target.name) is target:
        return target
    name = target.name if isinstance(target, Target) else target
    raise ValueError(
        f"`target` must be one of {sorted(TARGETS)}, or be added to them with "
        f"`kerasq.targets.register`. Received: target={name!r}."
    )
