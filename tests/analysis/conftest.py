"""One small network and its data, for tests that measure it layer by layer."""

import pytest

from tests import networks


@pytest.fixture(scope="module")
def model():
    return networks.mlp()


@pytest.fixture(scope="module")
def x(model):
    return networks.data(model, 96)
