"""What a user has frozen stays as it is while the rest trains."""

import keras
import numpy as np
import pytest

import kerasq

L = keras.layers
SHAPE = (12, 12, 3)


def network(training=None):
    keras.utils.set_random_seed(0)
    inner = keras.Input(SHAPE, name="image")
    y = L.Conv2D(8, 3, use_bias=False, name="conv")(inner)
    y = L.ReLU(name="relu")(L.BatchNormalization(name="norm")(y, training=training))
    y = L.GlobalAveragePooling2D(name="pool")(y)
    return keras.Model(inner, L.Dense(4, name="head")(y))


def moved(model, **options):
    """Paths of what training changes in the model quantized, on other data than it has seen."""
    q = kerasq.quantize_model(model, **options)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, *SHAPE)).astype("float32")
    kerasq.calibrate(q, x)
    return moved_by(q, 3.0 * x + 1.0)


def moved_by(q, x):
    q.compile(keras.optimizers.SGD(0.1), "mse")
    before = {v.path: v.numpy() for v in q.weights}
    q.fit(x, np.ones((len(x), 4)), epochs=2, verbose=0)
    return {path for path, old in before.items() if not np.array_equal(old, value(q, path))}


def value(q, path):
    return next(v.numpy() for v in q.weights if v.path == path)


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a16"])
@pytest.mark.parametrize("batch_norm", ["keep", "fold"])
def test_kernels_statistics_and_ranges_of_frozen_layers_stay(scheme, batch_norm):
    model = network()
    model.get_layer("conv").trainable = model.get_layer("norm").trainable = False
    found = moved(model, scheme=scheme, batch_norm=batch_norm)
    assert not {path for path in found if path.startswith(("conv", "norm"))}
    assert {"head/kernel", "pool/output/range_max"} <= found


def test_a_normalization_trains_behind_a_frozen_kernel():
    model = network()
    model.get_layer("conv").trainable = False
    found = moved(model)
    assert "conv/kernel" not in found
    assert {"norm/gamma", "norm/moving_mean"} <= found


def test_frozen_layers_take_their_first_ranges_from_batches():
    model = network()
    model.trainable = False
    q = kerasq.quantize_model(model)
    assert "conv/output/range_max" in moved_by(q, np.ones((32, *SHAPE), "float32"))


@pytest.mark.parametrize("batch_norm", ["keep", "fold"])
def test_a_normalization_that_is_called_in_inference_keeps_its_statistics(batch_norm):
    inner = keras.Input(SHAPE, name="image")
    model = keras.Model(inner, network()(inner, training=False))
    found = moved(model, batch_norm=batch_norm)
    assert not {path for path in found if "moving" in path}
    # Which does not freeze what trains.
    assert "conv/kernel" in found
    q = kerasq.quantize_model(model)
    again = keras.models.clone_model(q)
    assert again.get_layer("conv").fixed_batch_norm and q.get_layer("conv").fixed_batch_norm


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize("range_gradient", ["lsq", None])
@pytest.mark.parametrize("front", ["Rescaling", "Normalization", "operators"])
def test_constants_never_train(scheme, range_gradient, front):
    inner = keras.Input(SHAPE, name="image")
    fronts = {
        "Rescaling": L.Rescaling(0.3, name="front"),
        "Normalization": L.Normalization(mean=[1, 2, 3], variance=[4, 1, 2], name="front"),
        "operators": lambda x: x / 127.5 - 1.0,
    }
    model = keras.Model(inner, network()(fronts[front](inner)))
    q = kerasq.quantize_model(model, scheme, range_gradient=range_gradient)
    # As those do that freeze a base first and let it train later.
    q.trainable = False
    q.trainable = True
    paths = {v.path for v in q.trainable_variables}
    assert {"conv/kernel", "head/kernel"} <= paths
    # Ranges of its outputs may learn as any others do; what it multiplies by does not.
    others = {path for path in paths if path.split("/")[0] not in ("conv", "norm", "head")}
    assert not {path for path in others if "/output/" not in path}
