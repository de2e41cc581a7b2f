"""`compare_reports`: two reports side by side, what changed."""

import json
import os
import pathlib
from typing import Any

from kerasq.reporting import page
from kerasq.support.files import existing_file

# What of each layer is set side by side.
FIGURES = ("own_sqnr", "sqnr", "clipped", "codes_used", "max_lsb", "weight_bytes", "scheme", "op")


def compare_reports(
    one: str | os.PathLike, other: str | os.PathLike, path: str | os.PathLike
) -> dict[str, Any]:
    """Writes a page that shows two reports side by side: what changed from the first to the second.

    Args:
        one: the `.json` file of a report, such as that before a change.
        other: that of another, of the same network.
        path: of the page, a name that ends in .html; its figures go to a `.json` file beside it.

    Returns:
        The figures: `verdict`, a pair for each figure; `layers`, by name, the pairs that differ,
        None for a layer that one side lacks; `advice`, those that are "gone", "new" and "left".

    Raises:
        FileNotFoundError: where there is no such file.
        ImportError: where Bokeh, which draws, is not installed.
        OSError: where the page cannot be written.
        ValueError: for a file that is no report, and for a page whose figures would replace one.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
        >>> x = np.random.default_rng(0).normal(size=(32, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for scheme in ("w8a8", "w4a8"):
        ...         q = kerasq.quantize_model(model, scheme)
        ...         kerasq.calibrate(q, x)
        ...         lite = kerasq.export_tflite(q)
        ...         _ = kerasq.report(q, lite, x, f"{folder}/{scheme}.html")
        ...     pair = (f"{folder}/w8a8.json", f"{folder}/w4a8.json")
        ...     found = kerasq.compare_reports(*pair, f"{folder}/difference.html")
        >>> found["layers"]["head"]["scheme"]
        ['w8a8', 'w4a8']
    """
    page.check_path(path)
    read = [existing_file(one, "one"), existing_file(other, "other")]
    if {x.resolve() for x in read} & {page.twin_of(path).resolve()}:
        raise ValueError(
            "`path` must not be the page of a report that is compared: its figures would be "
            f"replaced. Received: path={os.fspath(path)!r}. Give it another name."
        )
    pair = [*map(_read, read)]
    figures = {
        "names": [x.stem for x in read],
        "models": [x["model"] for x in pair],
        "samples": [x["samples"] for x in pair],
        "verdict": _verdict(pair),
        "layers": _layers(pair),
        "advice": _advice(pair),
    }
    page.write(path, "kerasq report: what changed", "difference", figures)
    return page.plain(figures)


def _read(path: str | os.PathLike) -> dict[str, Any]:
    """The figures of a report.

    Raises:
        ValueError: where a file holds none.
    """
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        found = {"error": str(error)}
    if not isinstance(found, dict) or not {"verdict", "layers", "advice"} <= {*found}:
        raise ValueError(
            "A report to compare must be the .json file that `kerasq.report` wrote. "
            f"Received: {os.fspath(path)!r}. It lies beside the page."
        )
    return found


def _verdict(pair: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The figures of the whole model, in pairs."""
    flat = [_flat(x["verdict"]) for x in pair]
    return {key: [x.get(key) for x in flat] for key in {**flat[0], **flat[1]}}


def _flat(verdict: dict[str, Any]) -> dict[str, Any]:
    names = {"accuracy": "accuracy", "agreement": "same class", "sqnr": "SQNR (dB)"}
    found = {
        f"{title}, {side}": value
        for key, title in names.items()
        for side, value in verdict[key].items()
    }
    # Which reports of before do not have.
    for output, sides in verdict.get("accuracy_by_output", {}).items():
        found |= {f"accuracy of {output}, {side}": value for side, value in sides.items()}
    for key in ("bytes", "latency_ms", "activation_bytes", "target"):
        found[key.replace("_", " ")] = verdict.get(key)
    return found


def _layers(pair: list[dict[str, Any]]) -> dict[str, Any]:
    """By name of a layer the pairs of figures that differ, or None where one side lacks it."""
    rows = [{x["name"]: x for x in one["layers"]} for one in pair]
    return {name: _changed(rows[0].get(name), rows[1].get(name)) for name in {**rows[0], **rows[1]}}


def _changed(one: dict[str, Any] | None, other: dict[str, Any] | None) -> dict[str, Any] | None:
    """The figures of a layer that differ, in pairs; None where one side lacks it."""
    if one is None or other is None:
        return None
    pairs: dict[str, list] = {key: [one[key], other[key]] for key in FIGURES}
    pairs["range"] = [[x["low"], x["high"]] for x in (one, other)]
    changed = {key: values for key, values in pairs.items() if values[0] != values[1]}
    # Both are drawn, changed or not.
    return {**changed, "along": pairs["sqnr"]}


def _advice(pair: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The advice that is gone, new or left."""
    keyed = [{(x["layer"], x["rule"]): x for x in one["advice"]} for one in pair]
    return {
        "gone": [x for key, x in keyed[0].items() if key not in keyed[1]],
        "new": [x for key, x in keyed[1].items() if key not in keyed[0]],
        "left": [x for key, x in keyed[1].items() if key in keyed[0]],
    }
