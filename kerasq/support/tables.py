"""Tables that line up, for terminals and for Markdown files."""

from tabulate import tabulate

# So many rows at most, so often at least, are shown once.
_LONGEST, _OFTEN = 100, 3


def plain(rows: list[list[str]], left: int = 1) -> str:
    """A table for a terminal; the first row is the header, the first `left` columns are text.

    >>> print(plain([["layer", "MACs"], ["conv", "1,024"]]))
    layer      MACs
    -------  ------
    conv      1,024
    """
    return _table(rows, left, "simple")


def markdown(rows: list[list[str]], left: int = 1) -> str:
    """A Markdown table; the first row is the header, the first `left` columns are text.

    >>> print(markdown([["layer", "op"], ["conv", "CONV_2D"]], left=2))
    | layer   | op      |
    |:--------|:--------|
    | conv    | CONV_2D |
    """
    return _table(rows, left, "pipe")


def without_repeats(rows: list[list[str]]) -> list[list[str]]:
    """Rows, of which some in a row that come three times or more, but for their names, come once.

    A recurrent layer that is unrolled has the same operators in each step.

    >>> steps = [[f"{name}_{i}", name.upper()] for i in range(4) for name in ("add", "tanh")]
    >>> print(plain([["output", "operator"], *without_repeats(steps)], left=2))
    output                                operator
    ------------------------------------  ----------
    add_0                                 ADD
    tanh_0                                TANH
    ... these 2, 3 times more: to tanh_3
    """
    keys = [row[1:] for row in rows]
    found, i = [], 0
    while i < len(rows):
        size, times = _repeated(keys[i:])
        found += rows[i : i + size]
        i += size * times
        if times > 1:
            text = f"... these {size}, {times - 1} times more: to {rows[i - 1][0]}"
            found.append([text, *[""] * len(keys[0])])
    return found


def _repeated(keys: list[list[str]]) -> tuple[int, int]:
    """How many of the first rows are repeated, and how often they are there; 1, 1 for none."""
    for size in range(2, min(_LONGEST, len(keys) // _OFTEN) + 1):
        times = 1
        while keys[times * size : (times + 1) * size] == keys[:size]:
            times += 1
        if times >= _OFTEN:
            return size, times
    return 1, 1


def _table(rows: list[list[str]], left: int, style: str) -> str:
    columns = len(rows[0])
    alignment = ["left"] * min(left, columns) + ["right"] * (columns - left)
    return tabulate(
        rows,
        headers="firstrow",
        tablefmt=style,
        colalign=alignment if rows[1:] else None,  # tabulate 0.9 wants a row behind the header.
        disable_numparse=True,
    )
