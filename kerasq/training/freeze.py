"""Freezing: ranges, and statistics of BatchNormalization, that stay while training goes on."""

from typing import Any

import keras

from kerasq.kernel_wrapper import KernelWrapper
from kerasq.support.numbers import check_integer
from kerasq.wrappers import QuantizeWrapper, ranged, require_quantized


class FreezeRanges(keras.callbacks.Callback):
    """From an epoch on, ranges and BatchNormalization statistics stay where they are.

    Ranges that still move when training ends make the last steps train against a grid that the
    device does not have (Krishnamoorthi 2018, section 3.2.2, for statistics; Jain et al. 2020,
    section 5, for ranges). Ranges of activations and weights stop, learned ones and those that
    follow the data; of a BatchNormalization that was kept, mean and variance stop, gamma and beta
    train on; one that stays float stops altogether. Scales that are computed from weights, such as
    those of ternary ones and, by default, of 8 bits, follow the weights. After `fit` everything can
    move again; where that was interrupted, at the beginning of the next `fit` with this callback.

    Args:
        epoch: the first epoch, counted from 0, in which nothing of this moves.

    Raises:
        ValueError: for a negative epoch; and in `fit`, for a model that is not quantized, an
            optimizer with `use_ema`, or ranges that have seen no data when they are to be frozen.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> q = kerasq.quantize_model(model)
        >>> q.compile("sgd", "mse")
        >>> x = np.random.default_rng(0).normal(size=(32, 8))
        >>> frozen = kerasq.FreezeRanges(epoch=1)
        >>> _ = q.fit(x, np.zeros((32, 4)), epochs=2, verbose=0, callbacks=[frozen])
    """

    def __init__(self, epoch: int) -> None:
        super().__init__()
        check_integer("epoch", epoch, 0, "the first one")
        self.epoch = epoch
        self._frozen = False

    def _set(self, is_frozen: bool) -> None:
        """Stops, or lets go, everything that has a range or statistics."""
        for layer in self.model.layers:
            parts: list[keras.Layer | None] = []
            if isinstance(layer, QuantizeWrapper):
                parts.append(layer.output_quantizer)
            if isinstance(layer, KernelWrapper):
                parts.append(layer.weight_quantizer)
                layer.fixed_statistics = is_frozen
            if isinstance(layer, keras.layers.BatchNormalization):
                parts.append(layer)
            for part in parts:
                if part is not None:
                    _freeze(part) if is_frozen else _thaw(part)
        self._frozen = is_frozen
        # What is trained is decided when the step is traced, and Keras keeps the traced step.
        self.model.make_train_function(force=True)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks the model, and frees what an interrupted `fit` has left frozen."""
        del logs
        require_quantized(self.model)
        optimizer = self.model.optimizer
        # At the end of `fit` Keras matches averages by number with what is trainable then.
        if getattr(optimizer, "inner_optimizer", optimizer).use_ema:
            raise ValueError(
                "The optimizer must keep no averages of variables that are to be frozen. Received: "
                "use_ema=True. Compile with use_ema=False, or leave FreezeRanges out."
            )
        if any(quantizer.fixed for quantizer in ranged(self.model).values()):
            self._set(False)
        # An optimizer takes only variables that it was built with, so it is built while all of them
        # are trainable.
        if not self.model.optimizer.built:
            with self.model.distribute_strategy.scope():
                self.model.optimizer.build(self.model.trainable_variables)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Freezes when its epoch has come."""
        del logs
        if epoch < self.epoch or self._frozen:
            return
        unseen = [name for name, x in ranged(self.model).items() if not x.has_seen_data()]
        if unseen:
            raise ValueError(
                "Ranges must have seen data before they are frozen. Received: "
                f"epoch={self.epoch}, and layers {unseen} without any. Call kerasq.calibrate first."
            )
        self._set(True)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Lets everything move again."""
        del logs
        if self._frozen:
            self._set(False)


def _freeze(quantizer: keras.Layer) -> None:
    """Stops what trains; layers that share weights share their quantizer, which comes twice."""
    if getattr(quantizer, "fixed", False):
        return
    # A user may have frozen some for good.
    quantizer.was_trainable = quantizer.trainable
    quantizer.trainable, quantizer.fixed = False, True


def _thaw(quantizer: keras.Layer) -> None:
    """Undoes `_freeze`, where that was called."""
    if getattr(quantizer, "fixed", False):
        quantizer.trainable, quantizer.fixed = quantizer.was_trainable, False
