"""Tables that line up."""

import re

import pytest

from kerasq.support import tables

ROWS = [
    ["layer", "op", "MACs"],
    ["a_longer_name", "ADD", "1,024"],
    ["b", "CONV_2D", "7"],
    ["", "-", "0.10"],
]


@pytest.mark.parametrize("left", [0, 1, 2, 3, 9])
def test_a_markdown_table_lines_up(left):
    lines = tables.markdown(ROWS, left=left).splitlines()
    assert len(lines) == len(ROWS) + 1
    bars = [[i for i, character in enumerate(line) if character == "|"] for line in lines]
    assert all(found == bars[0] for found in bars) and len(bars[0]) == 4


@pytest.mark.parametrize("left", [0, 1, 2, 3, 9])
def test_a_plain_table_lines_up(left):
    header, rule, *rows = tables.plain(ROWS, left=left).splitlines()
    columns = [slice(*found.span()) for found in re.finditer("-+", rule)]
    cells = [[line[column].strip() for column in columns] for line in (header, *rows)]
    assert cells == ROWS
    assert max(len(line) for line in (header, *rows)) <= len(rule)


@pytest.mark.parametrize("left", [1, 3])
def test_a_markdown_table_has_the_cells_as_they_are(left):
    header, rule, *rows = tables.markdown(ROWS, left=left).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (header, *rows)]
    assert cells == ROWS
    assert set(rule) == {"|", "-", ":"} and rule.count("|") == header.count("|") == 4


def test_text_is_on_the_left_and_figures_on_the_right():
    assert tables.plain(ROWS, left=2).splitlines() == [
        "layer          op         MACs",
        "-------------  -------  ------",
        "a_longer_name  ADD       1,024",
        "b              CONV_2D       7",
        "               -          0.10",
    ]


@pytest.mark.parametrize("cell", ["1e5", "007", "0.10", "nan", "1,024", "True", "-"])
def test_cells_that_look_like_numbers_stay_as_they_are(cell):
    for table in (tables.plain, tables.markdown):
        last = table([["name", "value"], ["x", cell]]).splitlines()[-1]
        assert last.replace("|", " ").split() == ["x", cell]


def test_a_header_alone():
    lines = tables.markdown([["name", "value"]]).splitlines()
    assert len(lines) == 2 and lines[0].replace("|", " ").split() == ["name", "value"]


def test_steps_that_repeat_come_once():
    steps = [[f"{name}_{i}", name, "0.5"] for i in range(4) for name in ("a", "b", "c")]
    rows = [["first", "a", "0.5"], *steps, ["last", "d", ""]]
    # The step begins wherever it repeats from: "first" is an operator of the kind of "a".
    assert tables.without_repeats(rows) == [
        rows[0],
        *steps[:3],
        ["... these 3, 3 times more: to c_3", "", ""],
        rows[-1],
    ]


def test_what_repeats_twice_or_has_another_scale_is_shown():
    twice = [["a", "x"], ["b", "y"]] * 2
    others = [[f"{name}", name, f"{i}"] for i in range(4) for name in "ab"]
    alike = [[f"a_{i}", "x"] for i in range(3)]
    for rows in (twice, others, alike, []):
        assert tables.without_repeats(rows) == rows
