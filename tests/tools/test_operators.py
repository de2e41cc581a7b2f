"""The tool that says where the time of networks goes, on files that are there already."""

import keras

import kerasq
from tests import networks, processes

L = keras.layers


def test_the_slowest_network_is_in_the_table(tmp_path):
    for name, units in (("Quick", 8), ("Slow", 2048)):
        layers = [L.Dense(units), L.Dense(units), L.Dense(2, activation="softmax")]
        model = keras.Sequential([keras.Input((256,)), *layers])
        kerasq.export_tflite(networks.quantized(model), tmp_path / f"{name}_64.tflite")
    page = tmp_path / "page.md"
    old = "| network | kinds of operators | ms |\n|---|---|---|\n| VGG | CONV_2D | 5 |\n"
    page.write_text(f"| ratio |\n|---|\n| 2 |\n\n{old}\nEnd.\n")
    flags = [f"--folder={tmp_path}", "--size=64", "--networks=Quick,Slow", "--runs=2"]
    found = processes.script("tools/operators.py", *flags, "--slowest=1", f"--into={page}")
    assert found.returncode == 0, found.stderr
    head, _, row = found.stdout.rstrip().splitlines()[-3:]
    names = ["network", "kinds of operators", "alone, ms", "whole file, ms"]
    assert [x.strip() for x in head.split("|")[1:-1]] == names
    cells = [x.strip() for x in row.split("|")[1:-1]]
    assert cells[0] == "Slow" and cells[1].startswith("FULLY_CONNECTED (x3) ")
    assert float(cells[3]) > 0
    assert "SOFTMAX" in found.stderr  # All kinds, of each network.
    # The table takes the place of that of before, and of no other.
    written = page.read_text()
    assert written.startswith("| ratio |\n|---|\n| 2 |\n\n| network ")
    assert row in written and "VGG" not in written and written.endswith("\nEnd.\n")
    page.write_text("nothing")
    found = processes.script("tools/operators.py", *flags[:2], "--networks=Quick", f"--into={page}")
    assert found.returncode != 0 and "must hold a table" in found.stderr
