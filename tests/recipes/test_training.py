import dataclasses
import json

import keras
import numpy as np
import pytest

from recipes import datasets, models, training

SETTINGS = training.FitSettings(
    epochs=3, batch_size=16, learning_rate=0.05, momentum=0.9, weight_decay=1e-3, augment=True
)


@pytest.fixture
def data():
    digits = datasets.load("digits")
    train = {"x_train": digits.x_train[:72], "y_train": digits.y_train[:72]}
    return dataclasses.replace(
        digits, **train, x_test=digits.x_test[:20], y_test=digits.y_test[:20]
    )


def fresh_model(data):
    keras.utils.set_random_seed(0)
    return models.build("cnn", data.image_shape, data.classes)


def test_each_epoch_holds_every_image_once(data):
    plain = dataclasses.replace(SETTINGS, augment=False)
    batches, steps = training.training_batches(data.x_train, data.y_train, plain)
    x = np.concatenate([x for x, _ in batches.take(steps)])
    assert steps == 5 and x.dtype == np.float32
    np.testing.assert_array_equal(np.sort(x.sum((1, 2, 3))), np.sort(data.x_train.sum((1, 2, 3))))
    assert not np.array_equal(x, data.x_train)


def test_batches_from_a_later_epoch_are_those_of_the_uninterrupted_run(data):
    whole, steps = training.training_batches(data.x_train, data.y_train, SETTINGS)
    later, _ = training.training_batches(data.x_train, data.y_train, SETTINGS, first_epoch=1)
    expected = list(whole.skip(steps).take(steps))
    for (x, y), (want_x, want_y) in zip(later.take(steps), expected, strict=True):
        np.testing.assert_array_equal(x, want_x)
        np.testing.assert_array_equal(y, want_y)
    first = next(iter(whole))
    assert not np.array_equal(first[0], expected[0][0])


def test_augmentation_keeps_labels_and_moves_pixels(data):
    plain = dataclasses.replace(SETTINGS, augment=False)
    x, y = next(iter(training.training_batches(data.x_train, data.y_train, plain)[0]))
    moved, same = next(iter(training.training_batches(data.x_train, data.y_train, SETTINGS)[0]))
    np.testing.assert_array_equal(y, same)
    assert moved.shape == x.shape and not np.array_equal(x, moved)


@pytest.mark.parametrize(("channels", "moves"), [(1, False), (3, True), (2, False)])
def test_images_in_colour_are_augmented_by_default(channels, moves):
    x = np.arange(16 * 8 * 8 * channels, dtype="float32").reshape(16, 8, 8, channels)
    settings = dataclasses.replace(SETTINGS, augment=None)
    images, _ = next(iter(training.training_batches(x, np.zeros(16, int), settings)[0]))
    known = {image.tobytes() for image in x}
    assert moves == any(image.tobytes() not in known for image in images.numpy())


def test_resumed_training_ends_where_uninterrupted_training_ends(data, tmp_path, monkeypatch):
    whole = fresh_model(data)
    history, _, nothing = training.fit(whole, data, SETTINGS, tmp_path / "whole")

    assert nothing == 0
    end = training.EpochBackup.on_epoch_end

    def die_after_two(self, epoch, logs=None):
        end(self, epoch, logs)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.EpochBackup, "on_epoch_end", die_after_two)
        with pytest.raises(KeyboardInterrupt):
            training.fit(fresh_model(data), data, SETTINGS, tmp_path / "cut")
    keras.utils.set_random_seed(9)  # other initial weights: all must come from the backup
    resumed = models.build("cnn", data.image_shape, data.classes)
    resumed_history, _, before = training.fit(resumed, data, SETTINGS, tmp_path / "cut")

    assert len(resumed_history["loss"]) == 3
    seconds = json.loads((tmp_path / "cut" / "history.json").read_text())["seconds"]
    assert len(seconds) == 3 and before == sum(seconds[:2]) > 0
    np.testing.assert_allclose(resumed_history["loss"], history["loss"], rtol=1e-3)
    for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    assert int(resumed.optimizer.iterations.numpy()) == int(whole.optimizer.iterations.numpy())


def test_weight_decay_is_for_kernels_only(data):
    model = fresh_model(data)
    training.compile_model(model, SETTINGS, steps_per_epoch=5)
    model.optimizer.build(model.trainable_variables)
    decayed = {v.name for v in model.trainable_variables if model.optimizer._use_weight_decay(v)}
    assert decayed == {"kernel"}


def test_accuracy_counts_the_largest_output():
    outputs = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    images = np.zeros((3, 4, 4, 1))
    assert training.accuracy(outputs, images, np.array([1, 0, 0])) == pytest.approx(2 / 3)


def test_accuracy_of_an_autoencoder_is_the_share_of_the_variance():
    x = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 1)).astype("uint8")
    labels = np.zeros(9, int)
    assert training.accuracy(x / np.float32(255), x, labels) == pytest.approx(1.0)
    mean = np.broadcast_to(x.mean(axis=0) / 255, x.shape)
    assert training.accuracy(mean, x, labels) == pytest.approx(0.0, abs=1e-6)


def rates(steps, **changes):
    settings = dataclasses.replace(SETTINGS, learning_rate=1.0, **changes)
    found = training.schedule(settings, steps)
    return np.array([float(found(i)) for i in range(settings.epochs * steps)])


def test_cosine_with_warmup():
    found = rates(10, epochs=5, warmup_epochs=1)
    np.testing.assert_allclose(found[:10], np.arange(10) / 10, atol=1e-6)
    t = np.arange(40) / 40
    np.testing.assert_allclose(found[10:], 0.5 * (1 + np.cos(np.pi * t)), atol=1e-6)


def test_steps_with_warmup():
    found = rates(10, epochs=8, warmup_epochs=1, schedule="step")
    assert 0 < found[0] < 0.1 and (np.diff(found[:11]) >= 0).all() and found[9] < 1.0
    np.testing.assert_allclose(found[11:41], 1.0)
    np.testing.assert_allclose(found[41:61], 0.1)
    np.testing.assert_allclose(found[61:], 0.01, rtol=1e-5)


def test_restarts_go_through_the_cosine_again():
    found = rates(10, epochs=4, restarts=2)
    np.testing.assert_allclose(found[:20], found[20:], atol=1e-6)
    assert found[0] == 1.0 and found[19] < 0.01


def test_label_smoothing_is_in_the_loss(data, tmp_path):
    smooth = dataclasses.replace(SETTINGS, epochs=1, label_smoothing=0.2, learning_rate=0.0)
    model = fresh_model(data)
    history, *_ = training.fit(model, data, smooth, tmp_path)
    held_out = data.parts[1]
    p = model.predict(held_out.x.astype("float32"), verbose=0).astype(float)
    target = np.eye(10)[held_out.y] * 0.8 + 0.02
    assert history["val_loss"][0] == pytest.approx(-(target * np.log(p)).sum(-1).mean(), rel=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_models_that_end_in_logits_learn_as_those_of_probabilities(data, tmp_path, smoothing):
    settings = dataclasses.replace(SETTINGS, epochs=1, label_smoothing=smoothing)
    losses = []
    for name in ("probabilities", "logits"):
        model = fresh_model(data)
        if name == "logits":
            model.layers[-1].activation = keras.activations.linear
        history, *_ = training.fit(model, data, settings, tmp_path / name)
        losses += [[history["loss"], history["val_loss"], history["val_accuracy"]]]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_the_best_epoch_is_kept(data, tmp_path):
    backup = training.EpochBackup(tmp_path, "val_accuracy", best_from=1)
    model = fresh_model(data)
    training.compile_model(model, SETTINGS, 5)
    model.optimizer.build(model.trainable_variables)
    backup.set_model(model)
    for epoch, value in enumerate((0.9, 0.5, 0.7, 0.7)):
        model.layers[-1].bias.assign(np.full(10, float(epoch)))
        backup.on_epoch_begin(epoch)
        backup.on_epoch_end(epoch, {"val_accuracy": value})
    assert backup.restore_best(model) == 3
    np.testing.assert_array_equal(model.layers[-1].bias.numpy(), 2.0)
    assert sorted(f.name for f in tmp_path.glob("*.h5")) == [
        "best-00003.weights.h5",
        "epoch-00004.weights.h5",
    ]


def test_only_the_chief_writes(data, tmp_path):
    backup = training.EpochBackup(tmp_path, writes=False)
    backup.set_model(fresh_model(data))
    backup.on_epoch_begin(0)
    backup.on_epoch_end(0, {"val_accuracy": 0.5})
    assert not list(tmp_path.iterdir()) and backup.history == {"val_accuracy": [0.5]}


def test_labels_of_an_autoencoder_are_not_smoothed():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    with pytest.raises(ValueError, match=r"autoencoder.*Received: label_smoothing=0\.1"):
        training.compile_model(model, dataclasses.replace(SETTINGS, label_smoothing=0.1), 5)


def test_the_best_epoch_of_a_loss_is_the_lowest(tmp_path):
    backup = training.EpochBackup(tmp_path, "val_loss")
    backup.history = {"val_loss": [0.3, 0.1, 0.2, float("nan")]}
    assert backup._best() == 2


@pytest.mark.parametrize("kind", ["best", "epoch"])
def test_a_kill_while_an_epoch_is_saved(data, tmp_path, monkeypatch, kind):
    whole = training.fit(fresh_model(data), data, SETTINGS, tmp_path / "whole")
    write = training.EpochBackup._write

    def killed(self, written, epoch):
        if (written, epoch) == (kind, whole[1]):
            raise KeyboardInterrupt
        write(self, written, epoch)

    monkeypatch.setattr(training.EpochBackup, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        training.fit(fresh_model(data), data, SETTINGS, tmp_path / "cut")
    monkeypatch.undo()
    assert training.fit(fresh_model(data), data, SETTINGS, tmp_path / "cut")[1] == whole[1]


@pytest.mark.parametrize("count", [1, 255, 257, 700])
def test_batches_to_evaluate_are_even(count):
    x, y = np.arange(count)[:, None], np.arange(count)
    batches = list(training.ordered_batches(x, y))
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), y)
    sizes = [len(x) for x, _ in batches]
    assert max(sizes) <= 256 and max(sizes) - min(sizes) < len(sizes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"restarts": 2, "warmup_epochs": 1}, "must be a cosine without warm-up"),
        ({"restarts": 2, "schedule": "step"}, "must be a cosine without warm-up"),
        ({"schedule": "step", "warmup_epochs": 2}, "`warmup_epochs` must end before"),
    ],
)
def test_schedules_that_cannot_be(changes, text):
    with pytest.raises(ValueError, match=text):
        training.schedule(dataclasses.replace(SETTINGS, **changes), 10)


def test_epochs_are_filled_up_for_replicas(data):
    images = data.x_train[:35]
    settings = dataclasses.replace(SETTINGS, augment=False, batch_size=16)
    batches, steps = training.training_batches(images, data.y_train[:35], settings, multiple=2)
    sizes = [len(x) for x, _ in batches.take(steps + 1)]
    assert steps == 3 and sizes == [16, 16, 4, 16]


def test_dropout_goes_on_where_it_was(data, tmp_path):
    def model():
        keras.utils.set_random_seed(0)
        image = keras.Input(data.image_shape)
        x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(image))
        return keras.Model(image, keras.layers.Dense(10, activation="softmax")(x))

    whole, *_ = training.fit(model(), data, SETTINGS, tmp_path / "whole")
    cut = model()

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.fit(cut, data, SETTINGS, tmp_path / "cut", callbacks=[Stop()])
    resumed, *_ = training.fit(model(), data, SETTINGS, tmp_path / "cut")
    np.testing.assert_allclose(resumed["loss"], whole["loss"], rtol=1e-4)
