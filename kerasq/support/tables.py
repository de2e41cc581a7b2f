"""Tables that line up, for terminals and for Markdown files."""

from tabulate import tabulate


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
