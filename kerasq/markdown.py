"""Markdown tables that line up."""


def table(rows: list[list[str]]) -> str:
    """A Markdown table of `rows`, the first of which is the header.

    >>> print(table([["layer", "op"], ["conv", "CONV_2D"]]))
    | layer | op      |
    | ----- | ------- |
    | conv  | CONV_2D |
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [rows[0], ["-" * width for width in widths], *rows[1:]]
    padded = ([cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
