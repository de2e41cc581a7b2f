"""The page in a browser: no errors, no network; it sorts, filters and opens layers."""

import base64
import copy
import json

import numpy as np
import pytest
import tensorflow as tf

import kerasq
from kerasq.litert import flatbuffer
from kerasq.reporting import page
from kerasq.reporting.png import data_uri
from tools import browser

pytestmark = pytest.mark.skipif(browser.path() is None, reason="There is no Chromium here.")

NAMES = '[...document.querySelectorAll("#layers tr[data-name]")].map((x) => x.dataset.name)'


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    found = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


def click(opened, title):
    """A click on the heading of a column; then the layers in their order."""
    opened.run(
        '[...document.querySelectorAll("#layers th button")]'
        f".find((x) => x.textContent === {json.dumps(title)}).click()"
    )
    return opened.run(NAMES)


def is_clean(opened):
    return opened.problems == [] and all(
        x.startswith(("file:", "data:", "blob:")) for x in opened.requests
    )


def test_the_page_sorts_filters_and_opens_layers(opened, made):
    folder, verdict = made
    opened.open(folder / "report.html")
    layers = verdict.figures["layers"]
    names = [x["name"] for x in layers]
    assert opened.run(NAMES) == names
    known = [x for x in layers if x["macs"] is not None]
    upwards = [x["name"] for x in sorted(known, key=lambda x: x["macs"])]
    assert click(opened, "MACs") == upwards
    assert click(opened, "MACs")[0] == upwards[-1]  # The other way round.
    assert click(opened, "Layer") == sorted(names)
    opened.run(
        'const box = byId("filter"); box.value = "conv w8"; box.dispatchEvent(new Event("input"))'
    )
    assert opened.run(NAMES) == ["first", "second"]
    assert opened.run('byId("count").textContent') == "2 of 6"
    opened.run("document.querySelector('tr[data-name=first] button').click()")
    # Values, codes, weights, their codes, boxes, biases and their errors.
    opened.wait_for_charts("tr.detail .chart", 7)
    assert opened.run('document.querySelectorAll("tr.detail .chart").length') == 7
    assert "steps of the output" in opened.run('document.querySelector("tr.detail p").innerText')
    click(opened, "SQNR")  # What is open stays with its layer.
    assert opened.run('document.querySelector("tr.detail").previousSibling.dataset.name') == "first"
    opened.run("document.querySelector('tr[data-name=first] button').click()")
    assert opened.run('document.querySelectorAll("tr.detail").length') == 0
    opened.wait_for_charts("#graph, #depth", 2)
    assert is_clean(opened), opened.problems


def test_on_a_phone_nothing_is_wider_than_the_screen(opened, made):
    opened.resize(390, 844, 2)
    opened.open(made[0] / "report.html")
    opened.run("document.querySelector('tr[data-name=first] button').click()")
    opened.wait_for_charts("tr.detail .chart", 7)
    assert opened.run("document.documentElement.scrollWidth") <= 390
    # And on paper.
    assert base64.b64decode(opened.send("Page.printToPDF")["data"])[:4] == b"%PDF"
    opened.send("Emulation.clearDeviceMetricsOverride")
    assert is_clean(opened), opened.problems


def test_pictures_are_of_a_size_and_of_a_layer(opened, broken, tmp_path):
    found = []
    for layer in ("", "second"):
        path = tmp_path / f"picture{layer}.png"
        opened.picture(broken[1] / "broken.html", path, (600, 500), layer)
        found.append(tf.io.decode_png(path.read_bytes()).numpy())
    assert [x.shape[:2] for x in found] == [(500, 600)] * 2
    # Below the row of the layer are its charts; at the top of the page are none.
    blue = [(x[..., 2] > x[..., 0].astype(int) + 60).mean() for x in found]
    assert blue[1] > 0.01 > blue[0]
    top = opened.run('document.querySelector("tr.open").getBoundingClientRect().top')
    assert abs(top) < 1  # A part of a pixel.
    opened.send("Emulation.clearDeviceMetricsOverride")


def test_advice_leads_to_its_layer(opened, broken):
    _, folder, verdict = broken
    opened.open(folder / "broken.html")
    items = opened.run('[...document.querySelectorAll("#advice li")].map((x) => x.textContent)')
    assert items == [str(x).replace("`", "") for x in verdict.advice]
    opened.run('[...document.querySelectorAll("#advice a")].at(-1).click()')
    assert opened.run('document.querySelector("tr.open").dataset.name') == "second"
    opened.run('byId("advised").click()')
    assert opened.run(NAMES) == ["image_quantize", "second"]
    assert is_clean(opened), opened.problems


def test_several_outputs_have_a_column_each(opened, made, tmp_path):
    figures = copy.deepcopy(made[1].figures)
    figures["verdict"] |= {
        "accuracy": {},
        "accuracy_by_output": {"a": {"file": 0.5}, "b": {"float": 0.5}},
    }
    page.write(tmp_path / "several.html", "several", "report", figures)
    opened.open(tmp_path / "several.html")
    rows = opened.run('[...document.querySelectorAll("#sides tr")].map((x) => x.innerText)')
    assert rows[0].split("\t")[1:3] == ["accuracy of a", "accuracy of b"]
    assert rows[-1].split("\t")[:3] == ["file", "50.00 %", ""]
    assert is_clean(opened), opened.problems


def test_a_regressor_has_no_classes_and_a_pruned_layer_says_so(opened, made, tmp_path):
    figures = copy.deepcopy(made[1].figures)
    figures["verdict"] |= {"accuracy": {}, "agreement": {}}
    shown = {"has_classes": False, "disagrees": False, "outputs": {"file": [[0, 0.25]]}}
    figures["shown"] = [{"index": 7, "error": 0.5, "values": [1.0], **shown}]
    figures["layers"][1]["removed"] = 3
    page.write(tmp_path / "one.html", "one", "report", figures)
    opened.open(tmp_path / "one.html")
    assert opened.run('document.querySelector("#sides tr").innerText').split("\t") == [
        "",
        "SQNR of outputs (dB)",
    ]
    text = opened.run('document.querySelector("#shown .card").innerText').split("\n")
    assert text[1:3] == ["file: 0.25", "differs by 0.5"]
    opened.run("document.querySelector('tr[data-name=first] button').click()")
    assert "3 of its 8 channels" in opened.run('document.querySelector("tr.detail p").innerText')
    assert is_clean(opened), opened.problems


def test_curves_over_training_are_drawn(opened, made, tmp_path):
    figures = copy.deepcopy(made[1].figures)
    curves = {"low": 0.0, "high": 3.0, "weights": 0.5, "clipped": 0.02, "sqnr": "inf"}
    figures["logs"] = {
        "first": {name: [[0, y], [4, y]] for name, y in curves.items()},
        "second": {"sqnr": [[0, "inf"], [4, 30.0]]},
    }
    page.write(tmp_path / "logs.html", "logs", "report", figures)
    opened.open(tmp_path / "logs.html")
    captions = '[...document.querySelectorAll("tr.detail .chart p")].map((x) => x.innerText)'
    opened.run("document.querySelector('tr[data-name=first] button').click()")
    opened.wait_for_charts("tr.detail .chart", 9)
    # A SQNR that is infinite throughout is no curve.
    assert [x for x in opened.run(captions) if "training" in x] == [
        "The range over training \u25a0 low \u25a0 high \u25a0 weights",
        "Clipped over training",
    ]
    opened.run("document.querySelector('tr[data-name=first] button').click()")
    opened.run("document.querySelector('tr[data-name=second] button').click()")
    opened.wait_for_charts("tr.detail .chart", 8)
    assert opened.run(captions)[-1] == "SQNR over training, of all layers up to it"
    assert is_clean(opened), opened.problems


def test_a_wide_graph_fits_paper(opened, made, tmp_path):
    figures = copy.deepcopy(made[1].figures)
    figures["layers"][-1]["column"] = 11
    page.write(tmp_path / "wide.html", "wide", "report", figures)
    opened.open(tmp_path / "wide.html")
    opened.wait_for_charts("#graph", 1)
    drawing = 'byId("graph").lastElementChild.firstElementChild'
    width = f"{drawing}.getBoundingClientRect().width"
    assert opened.run(width) > 2000
    opened.run('window.dispatchEvent(new Event("beforeprint"))')
    assert 1000 < opened.run(width) <= 1041
    opened.run('window.dispatchEvent(new Event("afterprint"))')
    assert opened.run(width) > 2000
    assert is_clean(opened), opened.problems


def test_347_layers_are_small_and_quick(opened, made, tmp_path):
    figures = copy.deepcopy(made[1].figures)
    rows = figures["layers"]
    figures["layers"] = [
        {**rows[i % len(rows)], "name": f"layer{i}", "inputs": [f"layer{i - 1}"][:i], "row": i}
        for i in range(347)
    ]
    page.write(tmp_path / "large.html", "large", "report", figures)
    assert (tmp_path / "large.html").stat().st_size < 10e6
    opened.open(tmp_path / "large.html")
    assert len(opened.run(NAMES)) == 347
    # Each frame of a scroll through all of it, in milliseconds.
    slowest = opened.run(
        """new Promise((done) => {
          let last = performance.now(), slowest = 0, y = 0;
          const step = (now) => {
            slowest = Math.max(slowest, now - last);
            last = now;
            window.scrollTo(0, (y += 300));
            if (y < document.documentElement.scrollHeight) requestAnimationFrame(step);
            else done(slowest);
          };
          requestAnimationFrame(step);
        })"""
    )
    assert slowest < 1000  # Of a busy machine; a quiet one takes 20.
    assert is_clean(opened), opened.problems


def test_a_difference_is_shown(opened, made, broken, tmp_path):
    pair = (made[0] / "report.json", broken[1] / "broken.json")
    found = kerasq.compare_reports(*pair, tmp_path / "difference.html")
    opened.open(tmp_path / "difference.html")
    shown = opened.run('[...document.querySelectorAll("#changes tbody td:first-child")].length')
    assert shown == sum({*x} != {"along"} for x in found["layers"].values())
    assert opened.run('document.querySelectorAll("#sides .worse").length') > 0
    opened.wait_for_charts("#depth", 1)
    assert is_clean(opened), opened.problems


def test_networks_without_a_common_layer_are_compared(opened, made, tmp_path):
    figures = copy.deepcopy(made[1].figures)
    for layer in figures["layers"]:
        layer["name"] = "other_" + layer["name"]
    (tmp_path / "other.json").write_text(json.dumps(figures))
    pair = (made[0] / "report.json", tmp_path / "other.json")
    kerasq.compare_reports(*pair, tmp_path / "difference.html")
    opened.open(tmp_path / "difference.html")
    names = opened.run(
        '[...document.querySelectorAll("#changes tbody td")].map((x) => x.innerText)'
    )
    assert len(names) == 12 and "only in one: other_head" in names
    assert opened.run('byId("depth")') is None  # There is nothing to draw.
    assert is_clean(opened), opened.problems


EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"


def test_names_are_text_whatever_they_are(opened, tiny, samples, tmp_path):
    _, _, lite = tiny
    model = flatbuffer.read(lite.content)
    for i, tensor in enumerate(model.subgraphs[0].tensors):
        tensor.name = f"{i}{EVIL}<!--script-->`$& \u5c64 {'w' * 300}".encode()
    model.signatureDefs = model.metadata = None
    file = kerasq.TFLiteModel(flatbuffer.write(model))
    verdict = kerasq.report(None, file, samples[:2], tmp_path / "evil.html")
    opened.resize(390, 844)
    opened.open(tmp_path / "evil.html")
    assert opened.run(NAMES) == [x["name"] for x in verdict.figures["layers"]]
    assert EVIL in opened.run(NAMES)[0]
    opened.run("document.querySelectorAll('tr[data-name] button').forEach((x) => x.click())")
    opened.wait_for_charts("tr.detail .chart", 15)
    assert opened.run("document.documentElement.scrollWidth") <= 390
    assert opened.run("window.evil") is None
    assert opened.run('byId("depth")') is None  # Of a file alone there are no depths.
    opened.send("Emulation.clearDeviceMetricsOverride")
    assert is_clean(opened), opened.problems


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_png(opened, channels):
    x = np.random.default_rng(0).integers(0, 256, (5, 7, channels)).astype(np.float32)
    x[0, 0], x[0, 1] = 0, 255
    found = opened.run(
        f"""(async () => {{
          const image = new Image();
          image.src = "{data_uri(x)}";
          await image.decode();
          const canvas = new OffscreenCanvas(7, 5).getContext("2d");
          canvas.drawImage(image, 0, 0);
          return [...canvas.getImageData(0, 0, 7, 5).data];
        }})()"""
    )
    pixels = np.array(found).reshape(5, 7, 4)
    np.testing.assert_array_equal(pixels[..., :3], np.broadcast_to(x, (5, 7, 3)))
