"""Rewrite of `Quantized`: values, float or of another grid, onto a grid."""

import dataclasses

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.export.builder import Builder
from kerasq.export.marks import Quantized


def quantized(builder: Builder, source: int, mark: Quantized) -> int:
    """The integer tensor that a mark asks for, from a tensor of the marked graph.

    QUANTIZE cuts where int8 ends. A grid of few levels takes two: the first, of the same scale,
    has the lower end of the range there, the second the upper one.
    """
    name, grid = mark.name, mark.grid
    is_code = source in builder.codes and not mark.reads_float
    given = builder.grids[builder.codes[source]] if is_code else None
    is_cut_below = given is not None and given.low >= grid.low
    if grid.levels is not None and not is_cut_below:
        # All int8 codes at the same scale, so far down that the low end is code -128.
        full = dataclasses.replace(grid, levels=None)
        full = dataclasses.replace(full, zero_point=grid.zero_point - grid.qmin + full.qmin)
        lower = dataclasses.replace(mark, name=f"{name}/lower_end", grid=full)
        below = quantized(builder, source, lower)
        return builder.requantized(below, name, grid)
    if given is not None:
        return builder.requantized(builder.codes[source], name, grid)
    real = builder.real(source)
    code = builder.add(name, builder.tensor(source).shape, grid)
    if _pick(builder, real, code) is not None:
        # From floats, QUANTIZE has written int8 since version 1, int16 since 2.
        builder.emit("QUANTIZE", [real], [code], 1 if grid.bits <= 8 else 2)
    return code


def _pick(builder: Builder, real: int, code: int) -> str | None:
    """Makes `code` by GATHER from integers, or returns the reason why not.

    Where floats are picked from a constant table, as in Embedding, quantizing the table's rows is
    quantizing the picked ones, and the file holds a quarter of the bytes.
    """
    made: schema.OperatorT | None = next((x for x in builder.ops if real in x.outputs), None)
    if made is None or builder.op(made) != "GATHER":
        return "the values are not picked from a table"
    table = builder.constant(int(made.inputs[0]))
    if table is None or table.dtype != np.float32:
        return "the table is no constant of floats"
    grid = builder.grids[code]
    values = grid.quantize(table, builder.target.away)
    codes = builder.add(f"{builder.name(code)}/table", table.shape, grid, values)
    options = type(made.builtinOptions).__name__.removesuffix("T"), vars(made.builtinOptions)
    builder.emit("GATHER", [codes, int(made.inputs[1])], [code], options=options)
    return None


def drop_unread(builder: Builder) -> None:
    """Drops operators that nothing reads: GATHER from floats whose integers are read instead."""
    read, kept = {*map(int, builder.graph.outputs)}, []
    # From the end on, as what only a dropped operator reads goes with it.
    for op in reversed(builder.ops):
        if read & {*map(int, op.outputs)}:
            kept.append(op)
            read |= {*map(int, op.inputs)}
    builder.ops = kept[::-1]
