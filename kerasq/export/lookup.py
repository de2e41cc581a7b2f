"""Rewrite of `LookedUp`: a function of each value alone, as a table of 256 codes."""

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from kerasq.export.builder import Builder
from kerasq.litert import flatbuffer


def look_up(builder: Builder, source: int, target: int, table: np.ndarray) -> None:
    """Computes `target = table[source + 128]`, all three in codes."""
    name, shape = builder.name(target), builder.tensor(target).shape
    # GATHER takes no int8 indices, and codes are negative up to the middle.
    signed, index = (
        flatbuffer.new_tensor(builder.model, f"{name}/{part}", shape, np.int32)
        for part in ("code", "index")
    )
    types = {"inDataType": schema.TensorType.INT8, "outDataType": schema.TensorType.INT32}
    builder.emit("CAST", [source], [signed], options=("CastOptions", types))
    lowest = np.array(-builder.grids[source].qmin, np.int32)
    offset = flatbuffer.new_tensor(builder.model, f"{name}/offset", (), np.int32, values=lowest)
    # On int32 ADD has been there from the start, without scales.
    builder.emit("ADD", [signed, offset], [index], 1, ("AddOptions", {}))
    codes = builder.add(f"{name}/table", table.shape, builder.grids[target], table)
    builder.emit("GATHER", [codes, index], [target], options=("GatherOptions", {}))
