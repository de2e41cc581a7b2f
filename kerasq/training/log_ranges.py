"""Ranges as curves in TensorBoard."""

import os
from typing import Any

import keras
import tensorflow as tf

from kerasq.kernel_wrapper import KernelWrapper
from kerasq.quantizers.uniform import Uniform
from kerasq.wrappers import ranged, require_quantized


class LogRanges(keras.callbacks.Callback):
    """Writes the ranges of a quantized model to TensorBoard after each epoch.

    `ranges/<layer>/low` and `high` are the ends of a layer's output; `ranges/<layer>/weights` is
    the mean over channels of the range of its kernel, where that is learned. Behind a
    `CheckTraining` with data, `ranges/<layer>/clipped` is the share of values beyond the range.

    Args:
        log_dir: folder of the event files; that of `keras.callbacks.TensorBoard` will do.
    """

    def __init__(self, log_dir: str | os.PathLike) -> None:
        super().__init__()
        self._log_dir = os.fspath(log_dir)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the file."""
        del logs
        require_quantized(self.model)
        self._writer = tf.summary.create_file_writer(self._log_dir)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a point of each curve."""
        del logs
        # Epochs count from 0, as in Keras's own TensorBoard callback, so that curves line up.
        with self._writer.as_default(step=epoch):
            for name, quantizer in ranged(self.model).items():
                for end, value in zip(("low", "high"), quantizer.range(), strict=True):
                    tf.summary.scalar(f"ranges/{name}/{end}", value)
                if quantizer.clipped is not None:
                    tf.summary.scalar(f"ranges/{name}/clipped", quantizer.clipped)
            for layer in self.model.layers:
                weights = getattr(layer, "weight_quantizer", None)
                if isinstance(layer, KernelWrapper) and isinstance(weights, Uniform):
                    # A curve a channel would be hundreds.
                    mean = tf.reduce_mean(weights.range(layer.ranged_kernel()))
                    tf.summary.scalar(f"ranges/{layer.name}/weights", mean)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the file."""
        del logs
        self._writer.close()
