"""`EpochBackup`: training that survives a kill, and keeps its best epoch."""

import json
import math
import os
import pathlib
import time

import keras
import numpy as np

from kerasq.support.files import path_of, whole_file, write_whole
from kerasq.training.distribute import is_chief


class EpochBackup(keras.callbacks.Callback):
    """Keeps the state after each epoch, so that a kill costs one epoch, and the best weights.

    `keras.callbacks.BackupAndRestore` (Keras 3.15) writes weights and epoch as two files in place:
    a kill between or during the writes leaves a state that cannot be loaded, or one whose weights
    are an epoch ahead. Here one rename makes a state valid, and the epoch is in its name. Weights,
    the optimizer's state and the seeds of Dropout are kept; give data in an order that follows
    from the epoch (`kerasq.epoch_batches`), and training ends where it would have ended without
    the interruption. Put this callback behind others that change weights when an epoch ends. Of a
    `kerasq.MultiWorkerStrategy` the chief alone writes, to a folder that all workers see.

    Args:
        directory: holds `epoch-<k>.weights.h5`, `best-<k>.weights.h5` and `history.json`.
        monitor: what the best epoch has the highest value of; the least where its name ends in
            "loss".
        best_from: the first epoch, counted from 0, that may be the best one, such as the first one
            in which all weights are quantized.

    Attributes:
        history: losses and metrics by name, a value for each epoch, those before an interruption
            included; NaN where an epoch has none.
        seconds: what each epoch took.

    Example:
        >>> import tempfile
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> x, y = np.random.default_rng(0).normal(size=(32, 8)), np.zeros((32, 4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     q = kerasq.quantize_model(model)
        ...     q.compile("sgd", "mse")
        ...     backup = kerasq.EpochBackup(folder, "loss")
        ...     start = backup.restore(q)
        ...     _ = q.fit(x, y, epochs=2, initial_epoch=start, verbose=0, callbacks=[backup])
        ...     start, backup.restore_best(q), len(backup.history["loss"])
        (0, 2, 2)
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        monitor: str = "val_accuracy",
        *,
        best_from: int = 0,
    ) -> None:
        super().__init__()
        self._directory = path_of(directory, "directory")
        self._monitor = monitor
        self._best_from = best_from
        self.history: dict[str, list[float]] = {}
        self.seconds: list[float] = []
        self._seeds: list[list] = []

    def restore(self, model: keras.Model) -> int:
        """Loads the last state; returns the number of finished epochs, the next `initial_epoch`.

        Args:
            model: compiled, as the model was whose state it is.

        Raises:
            RuntimeError: where the state is one without the optimizer's.
        """
        if is_chief(model.distribute_strategy):  # What a kill has left half written.
            for state in self._directory.glob(".*.weights.h5"):
                state.unlink()
        states = self._states("epoch")
        if not states:
            return 0
        # Keras loads into variables that are there: an optimizer makes its own in the first step.
        model.optimizer.build(model.trainable_variables)
        model.load_weights(states[-1])
        if not int(model.optimizer.iterations.numpy()):
            raise RuntimeError(
                "The backup must hold the optimizer's state. Received: one without, in "
                f"{self._directory}. Remove it, and start over."
            )
        # The history may be an epoch ahead of the weights, as it is written first.
        finished = _number(states[-1])
        saved = json.loads((self._directory / "history.json").read_text())
        self.history = {name: values[:finished] for name, values in saved["history"].items()}
        self.seconds = saved["seconds"][:finished]
        self._seeds = saved["seeds"][:finished]
        for variable, value in zip(_seed_states(model), self._seeds[-1], strict=True):
            variable.assign(value)
        return finished

    def restore_best(self, model: keras.Model) -> int:
        """Loads the weights of the best epoch; returns its number, from 1, or 0 without one."""
        best = self.best_epoch
        if best:
            model.load_weights(self._directory / f"best-{best:05d}.weights.h5")
        return best

    @property
    def best_epoch(self) -> int:
        """The best epoch so far, counted from 1; 0 before there is one."""
        values = np.array(self.history.get(self._monitor, []))[self._best_from :]
        if np.isnan(values).all():
            return 0
        values = -values if self._monitor.endswith("loss") else values
        # argmax takes a NaN for the largest value; the best epoch is never one that diverged.
        return self._best_from + int(np.argmax(np.nan_to_num(values, nan=-np.inf))) + 1

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Starts the clock."""
        del epoch, logs
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Records the epoch, and writes its state."""
        for name, value in (logs or {}).items():
            values = self.history.setdefault(name, [])
            # Of metrics that are not of each epoch, by `validation_freq`.
            values += [math.nan] * (epoch - len(values)) + [float(value)]
        self.seconds.append(time.perf_counter() - self._start)
        if is_chief(self.model.distribute_strategy):
            self._seeds.append([x.numpy().tolist() for x in _seed_states(self.model)])
            self._save(epoch + 1)

    def _save(self, number: int) -> None:
        """Writes history, then weights, whose name makes both valid; then removes older ones."""
        self._directory.mkdir(parents=True, exist_ok=True)
        saved = {"history": self.history, "seconds": self.seconds, "seeds": self._seeds}
        write_whole(self._directory / "history.json", json.dumps(saved, indent=2).encode())
        # The best one first: a run that resumes at this epoch looks for it.
        kinds = ("best", "epoch") if self.best_epoch == number else ("epoch",)
        for kind in kinds:
            self._write(kind, number)
        for kind in kinds:
            for state in self._states(kind):
                if _number(state) != number:
                    state.unlink()

    def _write(self, kind: str, number: int) -> None:
        with whole_file(self._directory / f"{kind}-{number:05d}.weights.h5") as temporary:
            self.model.save_weights(temporary)

    def _states(self, kind: str) -> list[pathlib.Path]:
        """The saved states, oldest first."""
        return sorted(self._directory.glob(f"{kind}-*.weights.h5"))


def _seed_states(model: keras.Model) -> list[keras.Variable]:
    """The states of Dropout's random numbers, which Keras does not save with the weights."""
    found = {id(x): x for layer in model.layers for x in layer.variables}
    return [x for x in found.values() if "seed_generator" in x.path]


def _number(state: pathlib.Path) -> int:
    """The epoch in a state's name."""
    return int(state.name.split(".")[0].split("-")[1])
