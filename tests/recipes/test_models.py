import keras
import numpy as np
import pytest

from recipes import models


def logits(model, x):
    """Outputs before the softmax: saturated probabilities would hide a difference."""
    head = model.layers[-1]
    features = keras.Model(model.inputs, head.input).predict(x, verbose=0)
    return features @ head.kernel.numpy() + head.bias.numpy()


@pytest.mark.parametrize("name", models.MODELS)
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


def test_unknown_model_lists_the_legal_ones():
    with pytest.raises(ValueError, match=r"one of cnn, resnet8, mobilenet.*name='vgg'"):
        models.build("vgg", (8, 8, 1), 10)


@pytest.mark.parametrize("name", models.MODELS)
def test_randomize_batch_norm_preserves_the_function(name):
    keras.utils.set_random_seed(0)
    model = models.build(name, (16, 16, 3), 10)
    x = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype("float32")
    before = logits(model, x)
    models.randomize_batch_norm(model, seed=1)
    np.testing.assert_allclose(logits(model, x), before, atol=1e-5 * np.abs(before).max())

    norms = [n for n in model.layers if isinstance(n, keras.layers.BatchNormalization)]
    gammas = np.concatenate([n.gamma.numpy() for n in norms])
    variances = np.concatenate([n.moving_variance.numpy() for n in norms])
    assert (gammas < 0).any() and (gammas > 0).any()
    assert variances.min() > 0 and variances.max() > 100 * variances.min()
    for norm in norms:  # control: the comparison notices a sign that was not undone
        norm.gamma.assign(np.abs(norm.gamma.numpy()))
    assert np.abs(logits(model, x) - before).max() > 0.1 * np.abs(before).max()


def test_randomize_batch_norm_survives_tiny_variances_and_no_gamma():
    image = keras.Input((6, 6, 2))
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2)(image)
    norm = keras.layers.BatchNormalization(scale=False)
    model = keras.Model(image, norm(x))
    norm.moving_variance.assign([1e-9, 1.0, 0.0, 5.0])
    norm.moving_mean.assign([0.1, -0.2, 0.3, 1.0])
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32")
    before = model.predict(x, verbose=0)
    models.randomize_batch_norm(model, seed=3)
    assert norm.moving_variance.numpy().min() > 0
    after = model.predict(x, verbose=0)
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())
