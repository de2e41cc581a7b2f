"""A network at any schemes is the model that is quantized with these schemes."""

import keras
import numpy as np
import pytest

import kerasq
from kerasq.analysis.bench import Bench
from tests import networks

L = keras.layers
CANDIDATES = ("w8a8", "w4a4", "w8a16", "w2a2", "float")


def boundaries():
    """Boundaries behind a split, a pooling, a fixed grid, an input and a float layer."""
    networks.set_seed(0)
    image = keras.Input((8, 8, 3), name="image")
    y = L.Conv2D(6, 3, padding="same", activation="relu", name="first")(image)
    left, right = keras.ops.split(y, 2, axis=-1)
    left = L.Conv2D(4, 3, padding="same", activation="tanh", name="fixed")(left)
    y = L.Concatenate(name="both")([left, L.Add(name="sum")([right, right])])
    y = L.Conv2D(6, 1, activation="relu", name="mix")(y)
    y = L.AveragePooling2D(2, name="pool")(y)
    y = L.Conv2D(4, 1, name="behind")(y)
    y = L.LayerNormalization(name="norm")(y)
    y = L.MaxPooling2D(2, name="largest")(y)
    return keras.Model(image, L.Dense(3, name="head")(L.Flatten(name="flat")(y)))


def choices(network, count, integers):
    """Random schemes of layers, where there are kernels; an input of a model cannot be float."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield [
            int(rng.choice([j for j in range(integers + (name != "image")) if network.runs(i, j)]))
            for i, name in enumerate(network.layers)
        ]


@pytest.mark.parametrize(
    ("make", "floats", "method", "granularity", "candidates"),
    [
        (boundaries, {"norm": "float"}, None, "per_channel", CANDIDATES),
        # A normalization is a dozen parts, each of which is traced at every scheme.
        (boundaries, {}, "minmax", "per_channel", ("w8a8", "w8a16", "float")),
        (networks.mobile, {}, "minmax", "per_tensor", CANDIDATES),
    ],
)
def test_any_choice_is_the_model_quantized_so(make, floats, method, granularity, candidates):
    model = make()
    x = networks.images(model, 40)
    options = {"metric": "sqnr", "overrides": floats, "steps": None, "target": "litert"}
    options["granularity"] = granularity
    bench = Bench(model, x, candidates=candidates, method=method, **options)
    for choice in choices(bench.network, 2, len(candidates) - 1):
        names = (candidates[j] for j in choice)
        overrides = dict(zip(bench.network.layers, names, strict=True)) | floats
        q = kerasq.quantize_model(model, overrides=overrides, granularity=granularity)
        kerasq.calibrate(q, x, method=method)
        measured, _ = bench.run(np.array(choice))
        assert measured == pytest.approx(networks.sqnr(model, q, x), abs=0.01), overrides
