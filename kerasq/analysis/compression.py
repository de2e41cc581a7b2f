"""`compression`: what zeros and clusters of a quantized model's weights save, layer by layer."""

import dataclasses
import itertools
import zlib

import keras
import numpy as np
import tensorflow as tf

from kerasq.kernel_wrapper import KernelWrapper
from kerasq.layers import Scale
from kerasq.lstm_wrapper import LstmWrapper
from kerasq.support import tables
from kerasq.wrappers import require_quantized

# Sizes of blocks, of inputs and of channels, that are looked for.
_BLOCKS = (1, 2, 4, 8, 16, 32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCompression:
    """The weights of one layer, as the device gets them.

    Attributes:
        name: the layer's name.
        weights: how many there are.
        zeros: the share of them whose code is 0, in [0, 1]: what is 0, and what rounds to it.
        pattern: how weights lie that are 0, before rounding: "channels" (whole output channels),
            "inputs" (whole input channels), "1:4" or "2:4" (so many at most of each four input
            channels that follow each other are not 0), "blocks <a>x<b>" (the largest aligned blocks
            of so many inputs and output channels), "unstructured"; "" where there are none. Of
            several the first one.
        codes: how many different codes there are; of a layer whose scales differ from channel to
            channel, in all of them together.
        channel_codes: how many there are at most in one channel.
        compressed: bytes of the codes, one each, in the order of the file, deflated as in a zip.
        dead: how many output channels have codes of 0 alone, and so one value whatever the input:
            `export_tflite` leaves those out that nothing needs.
    """

    name: str
    weights: int
    zeros: float
    pattern: str
    codes: int
    channel_codes: int
    compressed: int
    dead: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compression:
    """What the weights of a model compress to. Printing it gives a table.

    Attributes:
        layers: each layer with weights, in order.
    """

    layers: tuple[LayerCompression, ...]

    @property
    def weights(self) -> int:
        """All weights together."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> float:
        """The share of all weights whose code is 0."""
        return sum(layer.zeros * layer.weights for layer in self.layers) / self.weights

    @property
    def compressed(self) -> int:
        """Bytes of all of them, deflated layer by layer."""
        return sum(layer.compressed for layer in self.layers)

    def __str__(self) -> str:
        header = ["layer", "pattern", "weights", "zeros (%)", "dead", "codes", "a channel"]
        rows = [[*header, "deflated B"]]
        for x in self.layers:
            counts = (f"{x.dead}", f"{x.codes}", f"{x.channel_codes}", f"{x.compressed:,}")
            rows.append([x.name, x.pattern, f"{x.weights:,}", f"{100 * x.zeros:.1f}", *counts])
        zeros = f"{100 * self.zeros:.1f}"
        dead = f"{sum(x.dead for x in self.layers)}"
        total = ["total", "", f"{self.weights:,}", zeros, dead, "", "", f"{self.compressed:,}"]
        rows.append(total)
        return tables.plain(rows, left=2)


def compression(model: keras.Model) -> Compression:
    """Zeros, their pattern, different codes and deflated size of each layer's weights.

    What compresses on the way to the device is its whole file; runtimes that skip zeros, or look
    codes up, need the pattern, or the number of codes. LiteRT's own kernels do neither.

    Args:
        model: what `quantize_model` returned.

    Raises:
        ValueError: for a model that is not quantized, or has no layers with quantized weights.

    Example:
        >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="head")])
        >>> model.layers[0].set_weights([np.eye(8, 4), np.zeros(4)])
        >>> (layer,) = kerasq.compression(kerasq.quantize_model(model)).layers
        >>> layer.zeros, layer.pattern, layer.codes
        (0.875, '1:4', 2)
    """
    require_quantized(model)
    layers = tuple(_layer(kernel) for layer in model.layers for kernel in _kernels(layer))
    if not layers:
        raise ValueError(
            "`model` must have layers with weights that are quantized. "
            f"Received: model {model.name!r} without any."
        )
    return Compression(layers=layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kernel:
    """A kernel, channels in its last axis: real values, its codes, and whether it is depthwise."""

    name: str
    real: np.ndarray
    codes: np.ndarray
    is_depthwise: bool = False


def _kernels(layer: keras.Layer) -> list[_Kernel]:
    """The kernels of a layer; constants and statistics are none."""
    if isinstance(layer, LstmWrapper):
        weights = layer.integer_weights()
        names, both = ("kernel", "recurrent_kernel"), (weights.kernel, weights.recurrent)
        return [
            _Kernel(name=f"{layer.name}/{name}", real=real.numpy(), codes=_int8(found))
            for name, real, found in zip(names, layer.kernels(), both, strict=True)
        ]
    is_first = isinstance(layer, KernelWrapper) and layer.leader is None
    if not is_first or isinstance(layer.layer, Scale):
        return []
    codes = _int8(layer.integer_weights().codes)
    real, is_depthwise = layer.flat_kernel().numpy(), layer.rule.channels > 1
    return [_Kernel(name=layer.name, real=real, codes=codes, is_depthwise=is_depthwise)]


def _int8(codes: tf.Tensor) -> np.ndarray:
    return codes.numpy().astype(np.int8)


def _layer(kernel: _Kernel) -> LayerCompression:
    codes, channels = kernel.codes, np.moveaxis(kernel.codes, -1, 0)
    # As LiteRT has them: channels first, but last in a depthwise kernel.
    content = codes if kernel.is_depthwise else channels
    return LayerCompression(
        name=kernel.name,
        weights=codes.size,
        zeros=float(np.mean(codes == 0)),
        pattern=pattern_of(kernel.real == 0.0, has_inputs=not kernel.is_depthwise),
        codes=len(np.unique(codes)),
        channel_codes=max(len(np.unique(channel)) for channel in channels),
        compressed=len(zlib.compress(content.tobytes(), 9)),
        dead=sum(not channel.any() for channel in channels),
    )


def pattern_of(zeros: np.ndarray, *, has_inputs: bool = True) -> str:
    """How the zeros of a kernel lie: see `LayerCompression.pattern`.

    Args:
        zeros: where they are, `(..., inputs, channels)`; a depthwise kernel has no axis of inputs.
        has_inputs: whether there is that axis.
    """
    if not zeros.any():
        return ""
    inner = tuple(range(zeros.ndim - 1))
    if (zeros == zeros.all(axis=inner)).all():
        return "channels"
    if not has_inputs:
        return "unstructured"
    outer = (*inner[:-1], zeros.ndim - 1)
    if (zeros == zeros.all(axis=outer, keepdims=True)).all():
        return "inputs"
    if (most := _most_of_four(zeros)) <= 2:
        return f"{most}:4"
    shape = _largest_blocks(zeros)
    return "unstructured" if shape == (1, 1) else f"blocks {shape[0]}x{shape[1]}"


def _most_of_four(zeros: np.ndarray) -> int:
    """How many of four inputs that follow each other are not 0 at most; 4 where some are left."""
    *head, inputs, channels = zeros.shape
    if inputs % 4:
        return 4
    return int((~zeros).reshape(*head, inputs // 4, 4, channels).sum(axis=-2).max())


def _largest_blocks(zeros: np.ndarray) -> tuple[int, int]:
    """The largest aligned blocks, of inputs and channels, each of which is 0 or not, as a whole."""
    shapes = sorted(itertools.product(_BLOCKS, _BLOCKS), key=lambda x: -x[0] * x[1])
    return next(shape for shape in shapes if _is_of_blocks(zeros, shape))


def _is_of_blocks(zeros: np.ndarray, shape: tuple[int, int]) -> bool:
    *head, inputs, channels = zeros.shape
    if inputs % shape[0] or channels % shape[1]:
        return False
    blocks = zeros.reshape(*head, inputs // shape[0], shape[0], channels // shape[1], shape[1])
    return bool((blocks.all(axis=(-3, -1)) == blocks.any(axis=(-3, -1))).all())
