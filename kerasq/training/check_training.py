"""Trouble in training is told while there is time."""

import math
from typing import Any

import keras

from kerasq.analysis import trouble
from kerasq.analysis.trouble import Trouble
from kerasq.wrappers import ranged, require_quantized

# Of an epoch's mean loss over the least one before it, from which on training diverges.
DIVERGES = 2.0
# The mean over the first epoch is compared with that over this many of its first batches.
STARTING_BATCHES = 10


class CheckTraining(keras.callbacks.Callback):
    """After each epoch, prints what has gone wrong, in which layer, and what to do.

    That is: a loss that is NaN or has doubled; layers with NaN, with constant output, or whose
    range has collapsed; more than 3 % of values, or weights, beyond their range (of fewer than 8
    bits: 25 %, where clipping is part of quantization). Each trouble of a layer is printed once;
    `print(kerasq.summary(model))` shows those of the last epoch.

    Args:
        data: what values are looked at on, as for `kerasq.calibrate`; without, only loss, weights
            and ranges are. A hundred samples will do: it costs a `predict` of them after each
            epoch.

    Attributes:
        troubles: those of the last epoch.
        clipped: after each epoch, by layer, the share of values beyond the range; see
            `kerasq.plot_clipped`.

    Example:
        >>> layers = [keras.Input((8,), name="x"), keras.layers.Dense(4, name="head")]
        >>> model = keras.Sequential(layers)
        >>> q = kerasq.quantize_model(model)
        >>> q.compile("sgd", "mse")
        >>> x = np.random.default_rng(0).normal(size=(64, 8))
        >>> check = kerasq.CheckTraining(x[:32])
        >>> _ = q.fit(x, np.zeros((64, 4)), epochs=2, verbose=0, callbacks=[check])
        >>> check.troubles, sorted(check.clipped[-1])
        ([], ['head', 'x_quantize'])
    """

    def __init__(self, data: Any = None) -> None:
        super().__init__()
        self._data = data
        self._least = math.inf
        self._told: set[tuple[str, str]] = set()
        self.troubles: list[Trouble] = []
        self.clipped: list[dict[str, float | None]] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Forgets an earlier `fit`."""
        del logs
        require_quantized(self.model)
        self._observe = None if self._data is None else trouble.observer(self.model)
        self._least = math.inf
        self._told.clear()
        self.clipped.clear()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the loss that training starts from."""
        if batch + 1 == STARTING_BATCHES and self._least == math.inf and logs and "loss" in logs:
            self._least = float(logs["loss"])

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks, and prints what is new."""
        self.troubles = self._of_loss(float((logs or {}).get("loss", 0.0)))
        if self._observe is not None:
            self._observe(self._data)
            quantizers = ranged(self.model)
            self.clipped.append({name: q.clipped for name, q in quantizers.items()})
        self.troubles += trouble.find(self.model)
        for found in self.troubles:
            # Figures change from epoch to epoch; the advice is one for each kind.
            if (found.layer, found.advice) not in self._told:
                self._told.add((found.layer, found.advice))
                print(f"\nTrouble in epoch {epoch + 1}. {found}", flush=True)

    def _of_loss(self, loss: float) -> list[Trouble]:
        """Whether training diverges."""
        before, self._least = self._least, min(self._least, loss)
        if loss <= before + (DIVERGES - 1.0) * abs(before):  # Not so for NaN.
            return []
        what = f"its loss went from {before:.3g} to {loss:.3g}"
        advice = "Training diverges: take a tenth of the learning rate, or clip gradients."
        return [Trouble(layer="", what=what, advice=advice)]
