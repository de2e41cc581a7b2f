"""Ranges, noise and histograms of a quantized model in TensorBoard."""

import os
from typing import Any

import keras
import tensorflow as tf

from kerasq.analysis import beside_float, trouble
from kerasq.kernel_wrapper import KernelWrapper
from kerasq.quantizers.uniform import Uniform
from kerasq.support import optional
from kerasq.support.files import path_of
from kerasq.support.numbers import check_integer
from kerasq.wrappers import ranged, require_quantized


class LogRanges(keras.callbacks.Callback):
    """Writes what becomes of a quantized model to TensorBoard, after every few epochs.

    As curves: `ranges/<layer>/low` and `high` are the ends of a layer's output;
    `ranges/<layer>/weights` is the mean over channels of the range of its kernel, where that is
    learned. As a histogram: `weights/<layer>`, the float kernel that is rounded.

    With samples, or for `clipped` behind a `CheckTraining` that has some, also

    - `ranges/<layer>/clipped`, the share of values beyond the range;
    - `sqnr/<layer>`, `10 log10(sum y^2 / sum (q - y)^2)` dB, with `q` the layer's output in the
      simulation and `y` that of the float network: of the same model, with its weights of today in
      float. Each side runs on its own values, so that it is the noise of all layers up to there, as
      "SQNR" in `kerasq.report`;
    - `activations/<layer>`, a histogram of `y`, of at most 2^14 values for every 32 samples.

    Args:
        log_dir: folder of the event files; that of `keras.callbacks.TensorBoard` will do.
        data: a few samples, as for `kerasq.calibrate`, the same each time: 32 will do. It costs
            about three times a `predict` of them, and tracing that once.
        every: of so many epochs one is written, the first one first, as by `histogram_freq` of
            Keras's callback.

    Raises:
        ImportError: where TensorBoard, which writes, is not installed.
        ValueError: where `every` is no positive integer.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> q = kerasq.quantize_model(model)
        >>> q.compile("sgd", "mse")
        >>> x = np.random.default_rng(0).normal(size=(64, 8))
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = kerasq.LogRanges(folder, x[:32], every=5)
        ...     _ = q.fit(x, np.zeros((64, 4)), verbose=0, callbacks=[log])
    """

    def __init__(self, log_dir: str | os.PathLike, data: Any = None, *, every: int = 1) -> None:
        super().__init__()
        check_integer("every", every, 1, "in epochs")
        # Before training, not after its first epoch.
        optional.load("tensorboard", "tensorboard")
        self._log_dir = str(path_of(log_dir, "log_dir"))
        self._data, self._every = data, every

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the file."""
        del logs
        require_quantized(self.model)
        if self._data is not None:
            self._note_clipped = trouble.observer(self.model)
            self._beside_float = beside_float.observer(self.model)
        self._writer = tf.summary.create_file_writer(self._log_dir)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a point of each curve, and the histograms."""
        del logs
        if epoch % self._every:
            return
        # Epochs count from 0, as in Keras's own TensorBoard callback, so that curves line up.
        with self._writer.as_default(step=epoch):
            if self._data is not None:
                self._note_clipped(self._data)
                self._write_beside_float()
            self._write_ranges()
            self._write_weights()

    def _write_beside_float(self) -> None:
        for name, found in self._beside_float(self._data).items():
            if found.sqnr is not None:
                tf.summary.scalar(f"sqnr/{name}", found.sqnr)
            tf.summary.histogram(f"activations/{name}", found.values)

    def _write_ranges(self) -> None:
        for name, quantizer in ranged(self.model).items():
            for end, value in zip(("low", "high"), quantizer.range(), strict=True):
                tf.summary.scalar(f"ranges/{name}/{end}", value)
            if quantizer.clipped is not None:
                tf.summary.scalar(f"ranges/{name}/clipped", quantizer.clipped)

    def _write_weights(self) -> None:
        for layer in self.model.layers:
            # A kernel that several calls share is that of the first.
            if not isinstance(layer, KernelWrapper) or layer.leader is not None:
                continue
            kernel = layer.ranged_kernel()
            tf.summary.histogram(f"weights/{layer.name}", kernel)
            if isinstance(layer.weight_quantizer, Uniform):
                # A curve a channel would be hundreds.
                mean = tf.reduce_mean(layer.weight_quantizer.range(kernel))
                tf.summary.scalar(f"ranges/{layer.name}/weights", mean)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the file."""
        del logs
        self._writer.close()
