"""Figures of layers as Model Explorer's node data: a file for each, which colours its graph."""

import json
from collections.abc import Callable
from typing import Any

# Model Explorer knows no infinity: what lies above the last threshold stays white.
_REST = 1e9
# From the colours of the page; what is best is blue.
_DECIBELS = {10: "#a50026", 20: "#f46d43", 30: "#fee090", 40: "#74add1", _REST: "#313695"}
_CLIPPED = {0: "#313695", 0.1: "#74add1", 1: "#fee090", 3: "#f46d43", 100: "#a50026"}
_USED = {12.5: "#a50026", 25: "#f46d43", 50: "#fee090", 75: "#74add1", 100: "#313695"}
_STEPS = {0: "#313695", 1: "#74add1", 2: "#fee090", 4: "#f46d43", _REST: "#a50026"}
# Costs are many or few beside each other.
_COSTS = [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#f46d43"}]


def _percent(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda row: None if row[name] is None else 100 * row[name]


def _plain(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda row: row[name]


def _weight_sqnr(row: dict[str, Any]) -> Any:
    return row["weights"] and row["weights"]["sqnr"]


# By name of a file: what it has of a layer, and the colours of the values up to each threshold.
_FIGURES: dict[str, tuple[Callable[[dict[str, Any]], Any], dict[float, str] | None]] = {
    "sqnr_db": (_plain("sqnr"), _DECIBELS),
    "own_sqnr_db": (_plain("own_sqnr"), _DECIBELS),
    "weight_sqnr_db": (_weight_sqnr, _DECIBELS),
    "clipped_percent": (_percent("clipped"), _CLIPPED),
    "range_used_percent": (_percent("used"), _USED),
    "max_lsb": (_plain("max_lsb"), _STEPS),
    "macs": (_plain("macs"), None),
    "ms": (_plain("ms"), None),
    "weight_bytes": (_plain("weight_bytes"), None),
    "activation_bytes": (_plain("activation_bytes"), None),
}


def files(rows: list[dict[str, Any]]) -> dict[str, str]:
    """By name the JSON files of all figures that any layer has.

    Each is what Model Explorer calls node data of one graph: "results", `{"value": x}` by the name
    of a node's output tensor, with "thresholds" or a "gradient" of colours.

    Args:
        rows: the layers, as they are in a report's `.json` file.
    """
    written = {}
    for name, (figure, colours) in _FIGURES.items():
        results = {row["tensor"] or row["name"]: {"value": figure(row)} for row in rows}
        known = {key: x for key, x in results.items() if isinstance(x["value"], (int, float))}
        if known:
            graph = {"results": known, **_coloured(colours)}
            written[f"{name}.json"] = json.dumps(graph, allow_nan=False)
    return written


def _coloured(colours: dict[float, str] | None) -> dict[str, Any]:
    if colours is None:
        return {"gradient": _COSTS}
    return {"thresholds": [{"value": end, "bgColor": x} for end, x in colours.items()]}
