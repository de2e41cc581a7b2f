import re

import keras
import numpy as np
import pytest

import kerasq
from kerasq.quantizers.power_of_two import FREE
from tests import networks


def samples(seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 1, (64, 12, 12, 3)).astype("float32"), np.arange(64) % 10


def quantized(scheme="w4a8", make=networks.residual, **options):
    q = kerasq.quantize_model(make(), scheme, weights="power_of_two", **options)
    kerasq.calibrate(q, samples()[0])
    return q


def compiled(q, rate=0.003, **options):
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, weight_decay=0.01)
    loss = "sparse_categorical_crossentropy"
    q.compile(optimizer, loss, **{"jit_compile": False, **options})
    return q


class Watch(keras.callbacks.Callback):
    """What is frozen, and what it is worth, after each epoch."""

    def __init__(self, inq):
        super().__init__()
        self.inq = inq
        self.frozen, self.kernels, self.rates = [], [], []

    def on_epoch_end(self, epoch, logs=None):
        self.frozen.append([x.weight_quantizer.frozen.numpy() for x in self.inq.wrappers])
        self.kernels.append([x.flat_kernel().numpy() for x in self.inq.wrappers])
        self.rates.append(float(np.asarray(self.model.optimizer.learning_rate)))


@pytest.mark.parametrize(
    ("batch_norm", "options"),
    [("fold", {}), ("keep", {"steps_per_execution": 4}), ("fold", {"jit_compile": True})],
)
def test_frozen_weights_stay_exactly_where_they_are(options, batch_norm):
    x, y = samples()
    q = compiled(quantized(batch_norm=batch_norm), **options)
    inq = kerasq.IncrementalQuantization((0.5, 0.75, 1.0), epochs=(1, 2, 1))
    watch = Watch(inq)
    q.fit(x, y, batch_size=8, epochs=inq.epochs, verbose=0, callbacks=[inq, watch])
    assert inq.epochs == 4 and inq.frozen_share == 1.0
    for step, portion in enumerate((0.5, 0.75, 0.75, 1.0)):
        for codes in watch.frozen[step]:
            assert (codes != FREE).mean() == pytest.approx(portion, abs=0.5 / codes.size + 1e-9)
    for before, after in zip(watch.frozen, watch.frozen[1:], strict=False):
        for a, b in zip(before, after, strict=True):
            np.testing.assert_array_equal(b[a != FREE], a[a != FREE])
    moved = 0.0
    for codes, kernels in zip(watch.frozen, watch.kernels, strict=True):
        for i, wrapper in enumerate(inq.wrappers):
            exact = codes[i] * wrapper.weight_quantizer.scale(None).numpy()
            settled = codes[i] != FREE
            np.testing.assert_array_equal(kernels[i][settled], exact[settled])
    for first, second in zip(watch.kernels[1], watch.kernels[2], strict=True):
        moved = max(moved, np.abs(first - second).max())
    assert moved > 1e-4  # The others train.


@pytest.mark.parametrize(
    ("bits", "per_channel", "make"),
    [
        (4, False, networks.residual),
        (3, True, networks.mobile),
        (2, False, networks.residual),
    ],
)
def test_the_exported_weights_are_the_trained_ones(bits, per_channel, make):
    x, y = samples()
    q = compiled(quantized(f"w{bits}a8", make, batch_norm="fold"))
    inq = kerasq.IncrementalQuantization((0.5, 1.0), per_channel=per_channel)
    q.fit(x, y % 5, epochs=2, verbose=0, callbacks=[inq])
    lite = kerasq.export_tflite(q)
    grids = {tensor.name: tensor.grid for tensor in lite.tensors}
    sizes = set()
    for wrapper in inq.wrappers:
        codes, grid = lite.constant(f"{wrapper.name}/kernel"), grids[f"{wrapper.name}/kernel"]
        real = np.moveaxis(grid.dequantize(codes), grid.axis, -1)
        kernel = wrapper.folded_kernel().numpy()
        assert np.abs(real.reshape(kernel.shape) - kernel).max() == 0.0
        sizes |= {int(abs(code)) for code in np.unique(codes)}
        exponents = wrapper.weight_quantizer.exponent.numpy()
        assert (len(set(exponents)) == 1) or per_channel
        magnitudes = np.abs(kernel[kernel != 0.0])
        assert (np.log2(magnitudes) == np.rint(np.log2(magnitudes))).all()
    span = min(2 ** (bits - 2), 7)
    assert sizes <= {0, *(2**k for k in range(7 - span, 7))} and max(sizes) == 64
    assert kerasq.compare(q, lite, x=x).max_lsb == 0


@pytest.mark.parametrize("per_channel", [True, False])
def test_the_highest_exponent_of_the_least_error(per_channel):
    x, y = samples()
    powers = {}
    for rule in ("max", "mse"):
        q = compiled(quantized("w2a8"), rate=0.0)
        kernels = [x.flat_kernel().numpy() for x in q.layers if hasattr(x, "flat_kernel")]
        inq = kerasq.IncrementalQuantization(
            (1.0,), 1, partition="magnitude", per_channel=per_channel, highest_exponent=rule
        )
        q.fit(x, y, epochs=1, verbose=0, callbacks=[inq])
        powers[rule] = [x.weight_quantizer.exponent.numpy() for x in inq.wrappers]
    lower = 0
    for kernel, top, found in zip(kernels, powers["max"], powers["mse"], strict=True):
        magnitudes = np.abs(kernel).reshape(-1, kernel.shape[-1])
        largest = magnitudes.max(axis=0) if per_channel else magnitudes.max()
        np.testing.assert_array_equal(top, np.floor(np.log2(4 * largest / 3)) + 0 * top)
        errors = []
        for k in range(5):  # At 2 bits: 2^n from 2^n / 2 on, 0 below.
            rounded = np.where(magnitudes >= 2.0 ** (top - k) / 2, 2.0 ** (top - k), 0.0)
            errors.append(((rounded - magnitudes) ** 2).sum(axis=0 if per_channel else None))
        np.testing.assert_array_equal(found, top - np.argmin(errors, axis=0))
        lower += (found < top).mean() / len(kernels)
    assert lower > 0.3


def test_the_largest_weights_go_first():
    x, y = samples()
    q = compiled(quantized(), rate=0.0)
    before = {x.name: x.flat_kernel().numpy() for x in q.layers if hasattr(x, "flat_kernel")}
    inq = kerasq.IncrementalQuantization((0.25, 1.0), epochs=(1, 1))
    q.fit(x, y, epochs=1, verbose=0, callbacks=[inq])
    for wrapper in inq.wrappers:
        size = np.abs(before[wrapper.name])
        frozen = wrapper.weight_quantizer.is_frozen().numpy()
        assert size[frozen].min() >= size[~frozen].max()


def test_a_random_partition_is_that_of_its_seed():
    x, y = samples()
    found = []
    for seed in (1, 1, 2):
        q = compiled(quantized())
        inq = kerasq.IncrementalQuantization((0.5, 1.0), partition="random", seed=seed)
        q.fit(x, y, epochs=1, verbose=0, callbacks=[inq])
        wrapper = inq.wrappers[0]
        size, frozen = np.abs(wrapper.flat_kernel()), wrapper.weight_quantizer.is_frozen().numpy()
        assert size[frozen].min() < size[~frozen].max()
        found.append(frozen)
    np.testing.assert_array_equal(found[0], found[1])
    assert (found[0] != found[2]).any()


def test_interrupted_training_goes_on(tmp_path):
    x, y = samples()
    ends = []
    for cut in (False, True):
        keras.utils.set_random_seed(0)
        inq = kerasq.IncrementalQuantization((0.5, 0.75, 1.0))
        q = compiled(quantized())
        options = {"batch_size": 16, "verbose": 0, "shuffle": False}
        if cut:
            q.fit(x, y, epochs=2, callbacks=[inq], **options)
            q.save(tmp_path / "q.keras")
            q = keras.models.load_model(tmp_path / "q.keras")
            inq = kerasq.IncrementalQuantization((0.5, 0.75, 1.0))
        q.fit(x, y, epochs=3, initial_epoch=2 if cut else 0, callbacks=[inq], **options)
        ends.append([x.weight_quantizer.frozen.numpy() for x in inq.wrappers])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_learning_rate_starts_anew_with_each_step():
    x, y = samples()
    q = compiled(quantized())
    inq = kerasq.IncrementalQuantization((0.5, 1.0), epochs=2)
    watch = Watch(inq)
    falling = keras.callbacks.LearningRateScheduler(
        lambda epoch, rate: rate * 0.1 if epoch % 2 else rate
    )
    q.fit(x, y, epochs=4, verbose=0, callbacks=[inq, falling, watch])
    np.testing.assert_allclose(watch.rates, [3e-3, 3e-4, 3e-3, 3e-4], rtol=1e-5)
    # As it does where training goes on with a rate that has fallen.
    q, again = compiled(quantized(), rate=3e-4), {"epochs": 4, "initial_epoch": 2, "verbose": 0}
    inq = kerasq.IncrementalQuantization((0.5, 1.0), epochs=2, learning_rate=3e-3)
    watch = Watch(inq)
    q.fit(x, y, callbacks=[inq, falling, watch], **again)
    np.testing.assert_allclose(watch.rates, [3e-3, 3e-4], rtol=1e-5)


def test_a_learning_rate_beside_a_schedule():
    x, y = samples()
    inq = kerasq.IncrementalQuantization((0.5, 1.0), learning_rate=0.1)
    q = compiled(quantized(), rate=keras.optimizers.schedules.CosineDecay(0.1, 10))
    with pytest.raises(ValueError, match=r"`learning_rate` must be None.*CosineDecay"):
        q.fit(x, y, verbose=0, callbacks=[inq])


def test_what_is_not_frozen_yet_is_said_and_averages_move_nothing(capsys):
    x, y = samples()
    q = quantized()
    optimizer = keras.optimizers.AdamW(1e-2, use_ema=True, ema_momentum=0.5)
    q.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    inq = kerasq.IncrementalQuantization((0.5, 1.0), epochs=2)
    for first, said in ((0, "of the weights are powers of two, the others int8"), (2, None)):
        q.fit(x, y, epochs=first + 2, initial_epoch=first, verbose=0, callbacks=[inq])
        text = capsys.readouterr().out
        assert (said or "") in text and ("powers of two" in text) == bool(said)
        for wrapper in inq.wrappers:
            kernel, quantizer = wrapper.flat_kernel(), wrapper.weight_quantizer
            np.testing.assert_array_equal(kernel, quantizer.restored(kernel))


def test_scaled_losses():
    x, y = samples()
    q = quantized()
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-3))
    q.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    inq = kerasq.IncrementalQuantization((0.5, 1.0))
    q.fit(x, y, epochs=2, verbose=0, callbacks=[inq])
    assert inq.frozen_share == 1.0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"portions": (0.5, 0.4, 1.0)}, "must grow from above 0.0 to 1.0"),
        ({"portions": (0.5, 0.9)}, "must grow from above 0.0 to 1.0"),
        ({"portions": ()}, "must grow from above 0.0 to 1.0"),
        ({"partition": "smallest"}, "must be one of ['magnitude', 'random']"),
        ({"highest_exponent": "least"}, "must be one of ['max', 'mse']"),
        ({"epochs": 0}, "must be a number above 0, or one for each portion"),
        ({"epochs": (1, 2)}, "Received: epochs=(1, 2), 4 portions"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        kerasq.IncrementalQuantization(**arguments)


def test_a_model_without_powers_of_two():
    x, y = samples()
    q = kerasq.quantize_model(networks.residual())
    compiled(q)
    match = r"Received: 'residual', which has none.*weights=\"power_of_two\""
    with pytest.raises(ValueError, match=match):
        q.fit(x, y, verbose=0, callbacks=[kerasq.IncrementalQuantization()])
