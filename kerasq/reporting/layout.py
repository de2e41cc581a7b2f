"""Where the layers of a graph are drawn: one below the other, branches beside each other."""

from collections.abc import Sequence


def places(inputs: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Row and column of each node.

    Args:
        inputs: by node, in topological order, the nodes that it reads.

    Returns:
        By node its row, which is its longest way from an input, and its column: the first of those
        that it reads, unless that place is taken.
    """
    rows: list[int] = []
    columns: list[int] = []
    taken: set[tuple[int, int]] = set()
    for read in inputs:
        row = 1 + max((rows[i] for i in read), default=-1)
        column = min((columns[i] for i in read), default=0)
        while (row, column) in taken:
            column += 1
        taken.add((row, column))
        rows.append(row)
        columns.append(column)
    return [*zip(rows, columns, strict=True)]
