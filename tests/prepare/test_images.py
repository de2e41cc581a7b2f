"""Layers that crop, resize and flatten are existing operators, and compute what Keras does."""

import keras
import numpy as np
import pytest

import kerasq
from tests import networks

L = keras.layers
CROPPED = ["STRIDED_SLICE", "RESIZE_BILINEAR"]

CASES = {
    "center of a smaller image": (lambda: L.CenterCrop(9, 7), (6, 6, 3), CROPPED),
    "crop": (lambda: L.Resizing(4, 5, crop_to_aspect_ratio=True), (9, 7, 3), CROPPED),
    "pad": (
        lambda: L.Resizing(12, 12, pad_to_aspect_ratio=True),
        (9, 6, 3),
        ["PAD", "RESIZE_BILINEAR"],
    ),
    "crop, nearest": (
        lambda: L.Resizing(5, 9, "nearest", crop_to_aspect_ratio=True),
        (6, 6, 3),
        ["STRIDED_SLICE", "RESIZE_NEAREST_NEIGHBOR"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_ratio_of_images(name):
    make, shape, ops = CASES[name]
    model = keras.Sequential([keras.Input(shape), make()])
    x = networks.data(model, 24)
    q = networks.quantized(model, x)
    lite = kerasq.export_tflite(q, check=False)
    assert [op.name for op in lite.ops] == ops
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
    step = lite.outputs[0].grid.scale
    np.testing.assert_allclose(lite.predict(x), networks.run(model, x), atol=1.01 * step)


def test_images_of_channels_first_are_flattened_in_two_steps():
    """TensorFlow's converter makes one RESHAPE of two: the first has no tensor of its own then."""
    image = keras.Input((3, 4, 2), name="image")
    flat = L.Flatten(data_format="channels_first", name="flat")(image)
    model = keras.Model(image, L.Flatten(name="again")(flat))
    x = networks.data(model, 8)
    q = networks.quantized(model, x)
    report = kerasq.compare(q, kerasq.export_tflite(q), x=x)
    assert report.exact == 1.0 and {layer.max_lsb for layer in report.layers} == {0}
