import keras
import numpy as np
import pytest

import kerasq
from kerasq.training import epoch_backup

X = np.random.default_rng(0).normal(size=(48, 8)).astype("float32")
Y = np.arange(48) % 4


def compiled():
    """A quantized network with Dropout."""
    keras.utils.set_random_seed(0)
    inner = [keras.layers.Dense(16, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(4)]
    q = kerasq.quantize_model(keras.Sequential([keras.Input((8,)), *inner]))
    kerasq.calibrate(q, X)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    q.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"], jit_compile=False)
    return q


def train(model, folder, callbacks=(), epochs=3):
    """Trains, or goes on; returns the backup, and how many epochs were finished before."""
    backup = kerasq.EpochBackup(folder, "loss")
    first = backup.restore(model)
    batches, steps = kerasq.epoch_batches(X, Y, batch_size=16, first_epoch=first)
    options = {"epochs": epochs, "initial_epoch": first, "steps_per_epoch": steps, "verbose": 0}
    model.fit(batches, callbacks=[*callbacks, backup], shuffle=False, **options)
    return backup, first


class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


def test_resumed_training_ends_where_uninterrupted_training_ends(tmp_path):
    """Weights, the optimizer's averages, ranges, the order of the data, and Dropout go on."""
    whole, cut, resumed = compiled(), compiled(), compiled()
    backup, first = train(whole, tmp_path / "whole")
    assert first == 0
    with pytest.raises(KeyboardInterrupt):
        train(cut, tmp_path / "cut", [Stop()])
    for variable in resumed.variables:  # All must come from the backup.
        variable.assign(keras.ops.zeros_like(variable))
    again, first = train(resumed, tmp_path / "cut")
    assert first == 2 and again.history == backup.history and len(again.seconds) == 3
    for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_best_epoch_is_kept(tmp_path):
    backup = kerasq.EpochBackup(tmp_path, "val_accuracy", best_from=1)
    model = compiled()
    model.optimizer.build(model.trainable_variables)
    backup.set_model(model)
    for epoch, value in enumerate((0.9, 0.5, 0.7, 0.7)):
        model.layers[-1].bias.assign(np.full(4, float(epoch)))
        backup.on_epoch_begin(epoch)
        backup.on_epoch_end(epoch, {"val_accuracy": value})
    assert backup.restore_best(model) == 3
    np.testing.assert_array_equal(model.layers[-1].bias.numpy(), 2.0)
    assert sorted(f.name for f in tmp_path.glob("*.h5")) == [
        "best-00003.weights.h5",
        "epoch-00004.weights.h5",
    ]


def test_validation_need_not_be_in_each_epoch(tmp_path):
    backup = kerasq.EpochBackup(tmp_path, "val_accuracy")
    model = compiled()
    model.optimizer.build(model.trainable_variables)
    backup.set_model(model)
    model.optimizer.iterations.assign(1)
    for epoch, logs in enumerate([{}, {"val_accuracy": 0.5}, {}, {"val_accuracy": 0.9}, {}]):
        model.layers[-1].bias.assign(np.full(4, float(epoch)))
        backup.on_epoch_begin(epoch)
        backup.on_epoch_end(epoch, {"loss": 1.0, **logs})
        assert backup.best_epoch == (0, 2, 2, 4, 4)[epoch]
    again = kerasq.EpochBackup(tmp_path, "val_accuracy")
    assert again.restore(model) == 5 and again.restore_best(model) == 4
    np.testing.assert_array_equal(model.layers[-1].bias.numpy(), 3.0)
    np.testing.assert_equal(again.history["val_accuracy"], [np.nan, 0.5, np.nan, 0.9])


def test_without_an_epoch_there_is_no_best_one(tmp_path):
    model = compiled()
    before = model.get_weights()
    backup = kerasq.EpochBackup(tmp_path)
    assert backup.restore(model) == backup.restore_best(model) == 0
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_the_chief_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(epoch_backup, "is_chief", lambda strategy: False)
    backup = kerasq.EpochBackup(tmp_path)
    backup.set_model(compiled())
    backup.on_epoch_begin(0)
    backup.on_epoch_end(0, {"val_accuracy": 0.5})
    assert not list(tmp_path.iterdir()) and backup.history == {"val_accuracy": [0.5]}


def test_the_best_epoch_of_a_loss_is_the_lowest(tmp_path):
    backup = kerasq.EpochBackup(tmp_path, "val_loss")
    backup.history = {"val_loss": [0.3, 0.1, 0.2, float("nan")]}
    assert backup.best_epoch == 2


@pytest.mark.parametrize("kind", ["best", "epoch"])
def test_a_kill_while_an_epoch_is_saved(tmp_path, monkeypatch, kind):
    whole = compiled()
    best = train(whole, tmp_path / "whole")[0].restore_best(whole)
    write = kerasq.EpochBackup._write

    def killed(self, written, epoch):
        if (written, epoch) == (kind, best):
            (tmp_path / "cut" / ".1.half.weights.h5").write_bytes(b"half")
            raise KeyboardInterrupt
        write(self, written, epoch)

    monkeypatch.setattr(kerasq.EpochBackup, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        train(compiled(), tmp_path / "cut")
    monkeypatch.undo()
    cut = compiled()
    backup, first = train(cut, tmp_path / "cut")
    assert first == best - 1 and backup.restore_best(cut) == best
    assert not list((tmp_path / "cut").glob(".*"))
    for a, b in zip(cut.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_without_the_optimizer_s_is_refused(tmp_path):
    compiled().save_weights(tmp_path / "epoch-00001.weights.h5")
    with pytest.raises(RuntimeError, match=r"must hold the optimizer's state.*Remove it"):
        kerasq.EpochBackup(tmp_path).restore(compiled())
