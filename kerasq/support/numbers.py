"""Arguments that are numbers, checked before they are compared with any."""

import numbers
from typing import Any


def check_number(argument: str, value: Any) -> None:
    """Raises a ValueError unless an argument is a real number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ValueError(f"`{argument}` must be a number. Received: {argument}={value!r:.80}.")


def check_integer(argument: str, value: Any, least: int, unit: str = "") -> None:
    """Raises a ValueError unless an argument is an integer of at least `least`.

    Args:
        argument: its name.
        value: what was given.
        least: the least that it may be.
        unit: what it counts, to be said as well.
    """
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_integer or value < least:
        counted = f", {unit}" if unit else ""
        raise ValueError(
            f"`{argument}` must be an integer of at least {least}{counted}. "
            f"Received: {argument}={value!r:.80}."
        )
