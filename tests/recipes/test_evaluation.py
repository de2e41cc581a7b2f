import numpy as np
import pytest

from recipes import evaluation, report
from recipes.datasets import Samples


def test_accuracy_counts_the_largest_output():
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    images = np.zeros((3, 4, 4, 1))
    assert evaluation.accuracy(outputs, Samples(images, np.array([1, 0, 0]))) == pytest.approx(
        2 / 3
    )


def test_accuracy_of_an_autoencoder_is_the_share_of_the_variance():
    x = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 1)).astype("uint8")
    samples = Samples(x, np.zeros(9, int))
    assert evaluation.accuracy(x / np.float32(255), samples) == pytest.approx(1.0)
    mean = np.broadcast_to(x.mean(axis=0) / 255, x.shape)
    assert evaluation.accuracy(mean, samples) == pytest.approx(0.0, abs=1e-6)


def test_fine_tuning_that_does_harm_is_spoken_of():
    figures = {"float_accuracy": 0.9, "majority": 0.1, "calibrated_accuracy": 0.88}
    assert report.remarks(figures | {"finetuned_accuracy": 0.875}) == []
    (remark,) = report.remarks(figures | {"finetuned_accuracy": 0.5})
    assert "lost 38.00 points" in remark and "--learning_rate" in remark
