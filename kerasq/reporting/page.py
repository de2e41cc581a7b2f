"""The page: one HTML file with its data, its script and the library that draws; and a JSON twin."""

import html
import json
import math
import os
import pathlib
from typing import Any

import numpy as np

from kerasq.support import optional
from kerasq.support.files import check_writable, path_of, write_whole

_HERE = pathlib.Path(__file__).parent
# Digits that figures are written with: more are noise, and would be most of the file.
DIGITS = 5


def twin_of(path: str | os.PathLike) -> pathlib.Path:
    """Where the JSON twin of a page is written: beside it."""
    return pathlib.Path(path).with_suffix(".json")


def check_path(path: str | os.PathLike) -> None:
    """Raises, before any work, where a page cannot be written there, or Bokeh is missing.

    Raises:
        ValueError: for a path that does not end in .html.
        OSError: for one that cannot be written.
        ImportError: without Bokeh.
    """
    if path_of(path).suffix != ".html":
        raise ValueError(
            "A report must be an .html file; its figures go to a .json file beside it. "
            f"Received: {os.fspath(path)!r}."
        )
    check_writable(path)
    check_writable(twin_of(path))
    optional.load("bokeh.resources", "report")


def write(path: str | os.PathLike, title: str, kind: str, figures: dict[str, Any]) -> None:
    """Writes a page and its twin, each whole or not at all.

    Args:
        path: of the page, as `check_path` wants it.
        title: of the page.
        kind: which script fills it: "report" or "difference".
        figures: what it shows.
    """
    content = json.dumps(plain(figures), separators=(",", ":"), allow_nan=False)
    resources = optional.load("bokeh.resources", "report")
    library = resources.Resources(mode="inline", components=["bokeh", "bokeh-api"]).js_raw
    parts = {
        "title": html.escape(title),
        "style": _read("page.css"),
        "body": _read(f"{kind}.html"),
        # No tag may begin within a script. It is one of a string: elsewhere JSON has none.
        "data": content.replace("<", "\\u003c"),
        "library": "\n".join(library),
        "script": _read("page.js") + _read(f"{kind}.js"),
    }
    page = _read("page.html")
    for name, text in parts.items():
        page = page.replace(f"<!--{name}-->", text, 1)
    write_whole(path, page.encode())
    write_whole(twin_of(path), content.encode())


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def plain(x: Any) -> Any:
    """A value as JSON has it: floats rounded, infinity as "inf", NaN as null."""
    if isinstance(x, dict):
        return {str(key): plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, np.ndarray):
        return plain(x.tolist())
    return _plain_number(x) if isinstance(x, (float, np.number)) else x


def _plain_number(x: Any) -> Any:
    if isinstance(x, np.integer):
        return int(x)
    if math.isnan(x):
        return None
    if math.isinf(x):
        return "inf" if x > 0 else "-inf"
    # Whole numbers, such as a value of 0, without a fraction.
    short = float(f"{x:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short
