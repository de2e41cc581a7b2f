import numpy as np
import pytest

import kerasq
from recipes import models
from tests import networks

CLASSIFIERS = [name for name in models.MODELS if name != "autoencoder"]


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3)])
def test_models_end_in_a_softmax_over_the_classes(name, shape):
    model = models.build(name, shape, 7)
    outputs = model.predict(np.full((2, *shape), 99.0), verbose=0)
    assert outputs.shape == (2, 7)
    np.testing.assert_allclose(outputs.sum(axis=-1), 1.0, rtol=1e-5)


def test_resnet8_has_the_parameters_of_mlperf_tiny():
    # Kernels, biases and 4 values a channel of BatchNormalization, counted by hand.
    def conv(k, i, o):
        return k * k * i * o + o

    norms = 4 * (16 * 3 + 32 * 2 + 64 * 2)
    expected = (
        conv(3, 3, 16)
        + 2 * conv(3, 16, 16)
        + (conv(3, 16, 32) + conv(3, 32, 32) + conv(1, 16, 32))
        + (conv(3, 32, 64) + conv(3, 64, 64) + conv(1, 32, 64))
        + 64 * 10
        + 10
        + norms
    )
    assert models.build("resnet8", (32, 32, 3), 10).count_params() == expected


@pytest.mark.parametrize(
    ("name", "shape", "count"),
    [
        # Zhang et al. 2017 and MLPerf Tiny's published files (v1.3).
        ("ds_cnn", (49, 10, 1), 24_908),
        ("mobilenet_v1", (96, 96, 3), 221_794),
        ("autoencoder", (640,), 269_992),
    ],
)
def test_the_networks_of_mlperf_tiny_have_its_parameters(name, shape, count):
    classes = {"ds_cnn": 12, "mobilenet_v1": 2}.get(name, 0)
    assert models.build(name, shape, classes).count_params() == count


def test_resnet20_has_the_depth_and_the_parameters_of_the_paper():
    # He et al. 2016, section 4.2: 6n + 2 layers with weights, n = 3; 0.27 M parameters.
    model = models.build("resnet20", (32, 32, 3), 10)
    kernels = [x for x in model.layers if hasattr(x, "kernel")]
    shortcuts = [x for x in kernels if getattr(x, "kernel_size", None) == (1, 1)]
    assert len(kernels) - len(shortcuts) == 20 and len(shortcuts) == 2
    assert 0.265e6 < model.count_params() < 0.28e6


def test_the_autoencoder_gives_back_images():
    model = models.build("autoencoder", (6, 5, 3), 10)
    assert model.output_shape == model.input_shape == (None, 6, 5, 3)


@pytest.mark.parametrize("name", models.MODELS)
def test_wider_networks_have_more_channels(name):
    plain, wide = (models.build(name, (16, 16, 3), 10, width) for width in (1.0, 2.0))
    kernels = [[x.kernel.shape for x in m.layers if hasattr(x, "kernel")] for m in (plain, wide)]
    assert len(kernels[0]) == len(kernels[1])
    narrow, broad = (shapes[1] for shapes in kernels)  # The second one reads wider tensors.
    assert broad[-2] == 2 * narrow[-2]


def test_keras_applications_go_by_their_names():
    model = models.build("MobileNetV2", (32, 32, 3), 7)
    assert model.output_shape == (None, 7)
    with pytest.raises(
        ValueError, match=r"must fit images of \(8, 8, 1\).*[.] Give --image_size[.]"
    ):
        models.build("MobileNetV2", (8, 8, 1), 7)
    with pytest.raises(ValueError, match=r"`widen` must be 1.*widen=2.0, model='ResNet50'"):
        models.build("ResNet50", (32, 32, 3), 7, width=2.0)


def test_unknown_model_lists_the_legal_ones():
    match = r"one of cnn, resnet8, .*keras\.applications.*model='vgg'"
    with pytest.raises(ValueError, match=match):
        models.build("vgg", (8, 8, 1), 10)


def test_the_vision_transformer_is_integer_and_its_positions_are_learned():
    networks.set_seed(0)
    model = models.build("vit", (8, 8, 1), 3, width=0.25)
    x = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1)).astype("float32")
    q = networks.quantized(model, x)
    (positions,) = [v for v in q.trainable_variables if v.path.endswith("/value")]
    np.testing.assert_array_equal(positions, model.get_layer(index=4).vectors)
    lite = kerasq.export_tflite(q, check=False)
    assert lite.float_ops == []
    np.testing.assert_array_equal(lite.predict(x), networks.run(q, x))
