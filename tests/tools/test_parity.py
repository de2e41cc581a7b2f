from tools import parity


def test_operators_that_are_alike_share_a_row():
    columns = {
        "here": {("ADD", "int8"): "exact", ("SUB", "int8"): "exact", ("ADD", "int16"): "exact"},
        "there": {("ADD", "int8"): "exact", ("SUB", "int8"): "exact", ("ADD", "int16"): "1 %, 1"},
        "nowhere": {("SUB", "int8"): "exact"},
    }
    assert parity.table(columns) == [
        ["on", "here", "there", "nowhere", "which"],
        ["int16", "exact", "1 %, 1", "-", "ADD"],
        ["int8", "exact", "exact", "-", "ADD"],
        ["int8", "exact", "exact", "exact", "SUB"],
    ]
