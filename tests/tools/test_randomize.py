"""What tools/randomize.py does to networks of the recipes."""

import keras
import numpy as np
import pytest

from recipes import models
from tests import networks, processes
from tools import randomize


def logits(model, x):
    """Outputs before the softmax: saturated probabilities would hide a difference."""
    head = model.layers[-1]
    features = keras.Model(model.inputs, head.input).predict_on_batch(x)
    return features @ head.kernel.numpy() + head.bias.numpy()


@pytest.mark.parametrize("name", ["cnn", "resnet8", "mobilenet_v2"])
def test_the_function_stays(name):
    networks.set_seed(0)
    model = models.build(name, (16, 16, 3), 10)
    x = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype("float32")
    before = logits(model, x)
    randomize.randomize(model, seed=1)
    np.testing.assert_allclose(logits(model, x), before, atol=1e-5 * np.abs(before).max())

    norms = [n for n in model.layers if isinstance(n, keras.layers.BatchNormalization)]
    gammas = np.concatenate([n.gamma.numpy() for n in norms])
    variances = np.concatenate([n.moving_variance.numpy() for n in norms])
    assert (gammas < 0).any() and (gammas > 0).any()
    assert variances.min() > 0 and variances.max() > 100 * variances.min()
    for norm in norms:  # control: the comparison notices a sign that was not undone
        norm.gamma.assign(np.abs(norm.gamma.numpy()))
    assert np.abs(logits(model, x) - before).max() > 0.1 * np.abs(before).max()


def test_tiny_variances_and_no_gamma():
    image = keras.Input((6, 6, 2))
    x = keras.layers.DepthwiseConv2D(3, depth_multiplier=2)(image)
    norm = keras.layers.BatchNormalization(scale=False)
    model = keras.Model(image, norm(x))
    norm.moving_variance.assign([1e-9, 1.0, 0.0, 5.0])
    norm.moving_mean.assign([0.1, -0.2, 0.3, 1.0])
    x = np.random.default_rng(0).normal(size=(4, 6, 6, 2)).astype("float32")
    before = networks.run(model, x)
    randomize.randomize(model, seed=3)
    assert norm.moving_variance.numpy().min() > 0
    after = networks.run(model, x)
    np.testing.assert_allclose(after, before, atol=1e-4 * np.abs(before).max())


def test_command_line(tmp_path):
    networks.set_seed(0)
    model = models.build("cnn", (8, 8, 1), 10)
    model.save(tmp_path / "a.keras")
    done = processes.script("tools/randomize.py", tmp_path / "a.keras", tmp_path / "b.keras")
    assert done.returncode == 0, done.stderr[-3000:]
    x = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1)).astype("float32")
    again = keras.models.load_model(tmp_path / "b.keras")
    np.testing.assert_allclose(logits(again, x), logits(model, x), rtol=1e-3, atol=1e-3)
    assert not np.allclose(again.get_weights()[0], model.get_weights()[0])
