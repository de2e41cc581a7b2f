"""Node data as `node_data_builder.py` of ai-edge-model-explorer (0.1.34) documents it."""

import json

import pytest

import kerasq
from kerasq.reporting import node_data


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    """The node data of a report, by name of the file."""
    folder = tmp_path_factory.mktemp("data") / "new"
    names = made[1].save_node_data(folder)
    assert sorted(names) == sorted(path.name for path in folder.iterdir())
    return {name: json.loads((folder / name).read_text()) for name in names}


def test_results_go_by_the_tensors_of_the_file(tiny, written):
    # Model Explorer finds a node by the name of any tensor that it computes, or that it feeds.
    lite = tiny[2]
    computed = {name for op in lite.ops for name in op.outputs} | {x.name for x in lite.inputs}
    assert {*written["activation_bytes.json"]["results"]} == computed
    for data in written.values():
        assert {*data["results"]} <= computed


def test_values_are_those_of_the_report(made, written):
    layers = {x["name"]: x for x in made[1].figures["layers"]}
    found = {name: x["results"]["second"]["value"] for name, x in written.items()}
    second = layers["second"]
    assert found == {
        "sqnr_db.json": second["sqnr"],
        "own_sqnr_db.json": second["own_sqnr"],
        "weight_sqnr_db.json": second["weights"]["sqnr"],
        "clipped_percent.json": 100 * second["clipped"],
        "range_used_percent.json": 100 * second["used"],
        "max_lsb.json": second["max_lsb"],
        "ms.json": second["ms"],
        "macs.json": 6 * 6 * 8 * 9 * 8,
        "weight_bytes.json": 9 * 8 * 8 + 4 * 8,
        "activation_bytes.json": 6 * 6 * 8,
    }
    # The input is a node as well, though no layer.
    assert written["sqnr_db.json"]["results"]["image"]["value"] == layers["image_quantize"]["sqnr"]


def test_files_have_what_is_documented_and_no_more(written):
    for data in written.values():
        assert {*data} in ({"results", "thresholds"}, {"results", "gradient"})
        for result in data["results"].values():
            assert {*result} == {"value"} and type(result["value"]) in (int, float)
        ends = [x["value"] for x in data.get("thresholds", ())]
        assert ends == sorted(ends)  # The first that is not less gives the colour.
        stops = [x["stop"] for x in data.get("gradient", ())]
        assert stops in ([], [0, 1])
        for item in (*data.get("thresholds", ()), *data.get("gradient", ())):
            assert item["bgColor"][0] == "#" and len(item["bgColor"]) == 7


def test_what_is_no_number_has_no_value():
    row = {"name": "pool", "tensor": "", "weights": None, "macs": None, "ms": None, "used": None}
    row |= {"sqnr": 30.5, "own_sqnr": "inf", "clipped": None, "max_lsb": 0}
    files = node_data.files([row | {"weight_bytes": 0, "activation_bytes": 4}])
    assert sorted(files) == sorted(
        f"{x}.json" for x in ("sqnr_db", "max_lsb", "weight_bytes", "activation_bytes")
    )
    assert json.loads(files["sqnr_db.json"])["results"] == {"pool": {"value": 30.5}}


def test_nodes_are_those_of_model_explorers_adapter(tiny, written, tmp_path):
    adapter = pytest.importorskip("ai_edge_model_explorer_adapter")
    tiny[2].save(tmp_path / "model.tflite")
    path, config = str(tmp_path / "model.tflite"), adapter.VisualizeConfig()
    found = json.loads(adapter.ConvertFlatbufferDirectlyToJson(config, path))
    (graph,) = found[0]["subgraphs"]
    known = {
        attribute["value"]
        for node in graph["nodes"]
        for output in node["outputsMetadata"]
        for attribute in output["attrs"]
        if attribute["key"] == "tensor_name"
    }
    assert known >= {*written["activation_bytes.json"]["results"]}


def test_a_file_alone_has_figures_by_its_own_names(tiny, samples, tmp_path):
    lite = kerasq.TFLiteModel(tiny[2].content)
    verdict = kerasq.report(None, lite, samples[:4], tmp_path / "file.html")
    files = node_data.files(verdict.figures["layers"])
    results = {name: json.loads(text)["results"] for name, text in files.items()}
    # Of its layers nobody knows what they should compute.
    assert {*results["sqnr_db.json"]} == {"image"} and "max_lsb.json" not in results
    used = results["range_used_percent.json"]
    assert {*used} == {"image", "first", "second", "sum", "pool", "head"}
    assert all(0 < x["value"] <= 100 for x in used.values())
