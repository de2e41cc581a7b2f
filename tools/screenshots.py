"""Makes the pictures of docs/report.md anew, by Chromium.

    python -m tools.screenshots --data_dir=cifar10 --lite1=lite1.keras --lite1_data_dir=imagenet

report_broken.png is of the network in tools/broken.py. report.png and report_layer.png are of
docs/resnet8.keras, calibrated on 500 training images of CIFAR-10 and measured on 1,000 test images:
an image folder, `train/<class>/` and `test/<class>/`. report_lite1.png is of EfficientNet-Lite1,
which is not part of the repository: a .keras file, and ImageNet images in `calibration/` and
`test/` that are called by the numbers of their classes. Pictures whose data are not given stay as
they are. Latencies are this machine's.
"""

import pathlib
import tempfile

import keras
import numpy as np
from absl import app, flags

import kerasq
from kerasq.support.samples import load_samples, spread
from tools import broken, browser

_ROOT = pathlib.Path(__file__).parents[1]
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Images of CIFAR-10: train/ and test/.")
_LITE1 = flags.DEFINE_string("lite1", None, "EfficientNet-Lite1, a .keras file.")
_LITE1_DATA_DIR = flags.DEFINE_string(
    "lite1_data_dir", None, "Images of ImageNet: calibration/ and test/."
)
_OUT = flags.DEFINE_string("out", str(_ROOT / "docs"), "The folder of the pictures.")
WIDTH = 1100
# Images of a class.
_CALIBRATED, _MEASURED = 50, 100
# Images of ImageNet.
_LITE1_CALIBRATED, _LITE1_MEASURED = 100, 67
# The layer that is opened.
_LAYER = "conv2d_2"


def _images(folder: pathlib.Path, each: int) -> tuple[np.ndarray, np.ndarray]:
    """So many images of each class, and their labels."""
    classes = sorted(x for x in folder.iterdir() if x.is_dir())
    shape = {"image": (None, 32, 32, 3)}
    found = [load_samples(x, shape, each) for x in classes]
    return np.concatenate(found), np.repeat(np.arange(len(found)), [len(x) for x in found])


def _broken(page: pathlib.Path) -> None:
    """The report of the broken network."""
    model, q, lite = broken.broken()
    print(kerasq.report(q, lite, broken.samples(), page, float_model=model))


def _resnet8(page: pathlib.Path, data: pathlib.Path) -> None:
    """The report of ResNet8."""
    model = keras.models.load_model(_ROOT / "docs" / "resnet8.keras")
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, _images(data / "train", _CALIBRATED)[0])
    test = _images(data / "test", _MEASURED)
    print(kerasq.report(q, kerasq.export_tflite(q), test, page, float_model=model))


def _lite1(page: pathlib.Path, path: pathlib.Path, data: pathlib.Path) -> None:
    """The report of EfficientNet-Lite1."""
    model = keras.models.load_model(path)
    shape = {"image": model.input_shape}
    q = kerasq.quantize_model(model)
    kerasq.calibrate(q, load_samples(data / "calibration", shape, _LITE1_CALIBRATED))
    x = load_samples(data / "test", shape, _LITE1_MEASURED)
    # In the order of `load_samples`.
    files = spread(sorted((data / "test").iterdir()), _LITE1_MEASURED)
    y = np.array([int(file.stem) for file in files])
    print(kerasq.report(q, kerasq.export_tflite(q), (x, y), page, float_model=model))


def _take(page: pathlib.Path, picture: pathlib.Path, height: int, layer: str = "") -> None:
    with tempfile.TemporaryDirectory() as profile:
        opened = browser.Browser(pathlib.Path(profile))
        try:
            opened.picture(page, picture, (WIDTH, height), layer)
        finally:
            opened.close()
    print(f"\nWritten: {picture}\n")


def main(argv: list[str]) -> None:
    """Writes what pictures it can."""
    if len(argv) > 1:
        raise app.UsageError(f"It takes flags alone. Received: {argv[1:]}.")
    if browser.path() is None:
        print(f"No pictures: there is no Chromium here, by any name of {browser.NAMES}.")
        return
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = pathlib.Path(folder) / "report.html"
        _broken(page)
        _take(page, out / "report_broken.png", 700)
        if _DATA_DIR.value is None:
            print("No pictures of ResNet8: --data_dir is not given.")
        else:
            _resnet8(page, pathlib.Path(_DATA_DIR.value))
            _take(page, out / "report.png", 1380)
            _take(page, out / "report_layer.png", 1180, _LAYER)
        if _LITE1.value is None or _LITE1_DATA_DIR.value is None:
            print("No picture of EfficientNet-Lite1: --lite1 and --lite1_data_dir are not given.")
        else:
            _lite1(page, pathlib.Path(_LITE1.value), pathlib.Path(_LITE1_DATA_DIR.value))
            _take(page, out / "report_lite1.png", 1250)


if __name__ == "__main__":
    app.run(main)
