"""The verdict: what `report` returns, and what a file says of itself."""

import collections
import dataclasses
import math
import os
import platform
from typing import Any

from kerasq.analysis.allocate import Allocation
from kerasq.analysis.latency import latency
from kerasq.analysis.sensitivity import Sensitivity
from kerasq.litert.partitions import partitions
from kerasq.litert.runtime import TFLiteModel
from kerasq.reporting import node_data
from kerasq.reporting.advice import Advice
from kerasq.reporting.layer_figures import LayerFigures
from kerasq.reporting.layout import places
from kerasq.support import tables
from kerasq.support.files import make_folder, write_whole

# What is said where no rule fires, by whether there is a float network to compare with.
NOTHING = {
    True: "Nothing stands out: there is nothing to mend.",
    False: "Nothing stands out in the file alone; its float or quantized model would tell more.",
}
# Calls that latencies are medians of.
ROUNDS = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What `kerasq.report` found. Printing it gives the verdict and the advice.

    Attributes:
        figures: all figures of the page, as they are in its `.json` file.
        advice: what to try next, the gravest first.
    """

    figures: dict[str, Any]
    advice: tuple[Advice, ...]

    def save_node_data(self, folder: str | os.PathLike) -> list[str]:
        """Writes the figures of all layers as node data for Model Explorer, which draws the file.

        A file for each figure, such as `sqnr_db.json`: SQNR (dB), share that is clipped and part of
        the range in use (percent), largest difference between simulation and file (steps),
        multiplications, milliseconds and bytes. Open them by

            model-explorer model.tflite --node_data_paths=folder/sqnr_db.json,folder/macs.json

        Layers go by the names of their tensors in the file. What has no number, such as the SQNR of
        a layer that adds no noise, stays uncoloured.

        Args:
            folder: where to; it is made where it is not there, files of these names are replaced.

        Returns:
            The names of the files.

        Raises:
            OSError: where they cannot be written.

        References:
            `node_data_builder.py` of the package ai-edge-model-explorer, class GraphNodeData.
        """
        files = node_data.files(self.figures["layers"])
        path = make_folder(folder)
        for name, text in files.items():
            write_whole(path / name, text.encode())
        return [*files]

    def __str__(self) -> str:
        sides = _sides(self.figures["verdict"])
        lines = [sides, ""] if sides else []
        lines.append(
            f"{self.figures['samples']} samples, {self.figures['verdict']['bytes']:,} bytes."
        )
        advice = [f"- {x}" for x in self.advice] or [self.figures["nothing"]]
        return "\n".join([*lines, "", "What to try next:", *advice])


def _sides(found: dict[str, Any]) -> str:
    """The table of what each side does, of what is known; "" where nothing is."""
    sides = ("float", "simulated", "file")
    known = {
        head: cells
        for head, values in _columns(found).items()
        # Nothing is known of the classes of a regressor, for one.
        if any(cells := [values.get(side, "") for side in sides])
    }
    rows = [[*x] for x in zip(sides, *known.values(), strict=True) if any(x[1:])]
    return tables.plain([["", *known], *rows]) if rows else ""


def _columns(found: dict[str, Any]) -> dict[str, dict[str, str]]:
    """By heading what is known of each side."""
    # Of several outputs a column for each.
    several = {f"accuracy of {name}": x for name, x in found["accuracy_by_output"].items()}
    shares = several or {"accuracy": found["accuracy"]}
    same = {pair.removeprefix("float "): x for pair, x in found["agreement"].items()}
    shares = {**shares, "same class as float": same}
    columns = {head: {side: _percent(x) for side, x in y.items()} for head, y in shares.items()}
    return {**columns, "SQNR (dB)": {side: str(x) for side, x in found["sqnr"].items()}}


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def of_file(lite: TFLiteModel) -> dict[str, Any]:
    """What a file says of itself, and how fast it is here."""
    is_litert = lite.target == "litert"
    return {
        "bytes": len(lite.content),
        "operators": dict(collections.Counter(op.name for op in lite.ops).most_common()),
        "target": lite.made.target if lite.made else None,
        "runs_on": f"{lite.target}, {lite.kernels} kernels, {platform.machine()}",
        "remarks": lite.remarks(),
        "latency_ms": latency([lite], rounds=ROUNDS)[0] if is_litert else None,
        "arena_bytes": None if is_litert else lite.arena_bytes(),
        "partitions": _partitions(lite),
    }


def _partitions(lite: TFLiteModel) -> dict[str, Any] | None:
    """What XNNPACK runs; None where it runs nothing, or that is not known."""
    # The kernels of LiteRT alone are called so.
    parts = partitions(lite.content) if lite.kernels == "optimized" else None
    if parts is None:
        return None
    makers = {name: op.name for op in lite.ops for name in op.outputs}
    return {"count": parts.parts, "outside": {name: makers[name] for name in parts.outside}}


def rows(layers: list[LayerFigures]) -> list[dict[str, Any]]:
    """The layers for JSON, each with its place in the drawing of the graph."""
    index = {x.name: i for i, x in enumerate(layers)}
    read = [[index[name] for name in x.inputs if index[name] < i] for i, x in enumerate(layers)]
    found = []
    for layer, (row, column) in zip(layers, places(read), strict=True):
        own = {x.name: getattr(layer, x.name) for x in dataclasses.fields(layer)}
        own["weights"] = layer.weights and vars(layer.weights)
        found.append({**own, "row": row, "column": column})
    return found


def sensitivity_figures(found: Sensitivity | Allocation) -> dict[str, Any]:
    """A table of sensitivities, and the Pareto front where there is one."""
    table = found.sensitivity if isinstance(found, Allocation) else found
    order = table.sort()
    figures: dict[str, Any] = {
        "metric": table.metric,
        "candidates": table.candidates,
        "base": table.base,
        "layers": order.layers,
        "alone": order.alone,
        "gain": order.gain,
    }
    if isinstance(found, Allocation):
        front = [(x.cost, x.predicted) for x in found.front if math.isfinite(x.predicted)]
        figures |= {"unit": found.unit, "front": front}
        figures["chosen"] = (found.chosen.cost, found.chosen.measured or found.chosen.predicted)
    return figures
