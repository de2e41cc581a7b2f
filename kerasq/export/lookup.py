"""Rewrite of `LookedUp`: a function of each value alone, as a table of codes."""

import numpy as np

from kerasq.export.builder import Builder
from kerasq.export.operators import widened
from kerasq.litert import flatbuffer


def look_up(builder: Builder, source: int, target: int, table: np.ndarray) -> None:
    """Computes `target = table[source]`, in codes; the table ends with that of the highest."""
    name, shape = builder.name(target), builder.tensor(target).shape
    # GATHER takes no int8 indices, and codes are negative up to the middle.
    signed = widened(builder, source, f"{name}/code")
    count = np.array(len(table) - 1 - builder.grids[source].qmax, np.int32)  # of negative codes
    index = signed
    if count:
        index = flatbuffer.new_tensor(builder.model, f"{name}/index", shape, np.int32)
        offset = flatbuffer.new_tensor(builder.model, f"{name}/offset", (), np.int32, values=count)
        # On int32 ADD has been there from the start, without scales.
        builder.emit("ADD", [signed, offset], [index], 1, ("AddOptions", {}))
    codes = builder.add(f"{name}/table", table.shape, builder.grids[target], table)
    builder.emit("GATHER", [codes, index], [target], options=("GatherOptions", {}))
