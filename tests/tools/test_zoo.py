"""The quick rows of the zoo, and its page."""

import pathlib

import pytest

from tools import zoo

PAGE = pathlib.Path(zoo.__file__).parents[1] / "docs/coverage.md"


@pytest.mark.parametrize("name", [name for name, row in zoo.ROWS.items() if row.quick])
def test_a_row(name):
    result = zoo.measure(zoo.ROWS[name])
    assert result.max_lsb <= (2 if result.worst in zoo.TABLES else 1)
    if zoo.ROWS[name].cnn:
        assert zoo.reaches(result)
        assert result.quantized == "yes" and result.exact == result.agreement == 1.0
    else:
        # LayerNormalization is float; recurrent layers have operators that XNNPACK does not.
        assert bool(result.float_ops) == (name == "transformer")
        assert result.quantized == ("partly" if result.float_ops else "yes")


def test_the_page_has_every_row():
    rows = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line[:1] == "|"]
    assert rows[0] == zoo.HEADER[0] and rows[2:] == list(zoo.ROWS)


def test_replace_table():
    page = "# Title\n\n| a |\n|---|\n| b |\n\nEnd.\n"
    assert zoo.replace_table(page, "| c |\n|---|") == "# Title\n\n| c |\n|---|\n\nEnd.\n"
    with pytest.raises(ValueError, match="must hold a Markdown table"):
        zoo.replace_table("none", "| c |")
