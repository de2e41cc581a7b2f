"""Convolutions that LiteRT has no operator for.

Those of each channel alone, those in three dimensions, and transposed ones of these or that are
dilated.
"""

import dataclasses
from typing import Any

import keras
import numpy as np

from kerasq.layers import FrameConv2D, Take
from kerasq.prepare.parts import Parts, reshaped

L = keras.layers
_TYPE: dict[str, Any] = {"dtype": "float32"}


def separable(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """DepthwiseConv, "<name>_depthwise", and Conv of one pixel."""
    is_2d = isinstance(layer, L.SeparableConv2D)
    depthwise_class, point_class = (
        (L.DepthwiseConv2D, L.Conv2D) if is_2d else (L.DepthwiseConv1D, L.Conv1D)
    )
    options = {"dtype": "float32", "trainable": layer.trainable}
    # What lies between the two is no tensor of the Keras layer, but gets a range like any other:
    # the device stores it as integers.
    depthwise = depthwise_class(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
        use_bias=False,
        name=parts.name(name, "depthwise"),
        **options,
    )
    point = point_class(layer.filters, 1, use_bias=layer.use_bias, name=name, **options)
    kernel, *others = layer.get_weights()
    return parts.call(point, parts.call(depthwise, x, [kernel]), others)


def grouped(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """A convolution with a group for each channel: DepthwiseConv."""
    channels = x.shape[-1]
    if layer.groups != channels or channels == 1:
        return None
    depthwise_class = L.DepthwiseConv2D if isinstance(layer, L.Conv2D) else L.DepthwiseConv1D
    multiplier = layer.filters // channels
    padding = layer.padding
    if padding == "causal":  # Which a DepthwiseConv1D does not know.
        zeros = (layer.dilation_rate[0] * (layer.kernel_size[0] - 1), 0)
        x = parts.call(L.ZeroPadding1D(zeros, name=parts.name(name, "before")), x)
        padding = "valid"
    depthwise = depthwise_class(
        layer.kernel_size,
        strides=layer.strides,
        padding=padding,
        depth_multiplier=multiplier,
        dilation_rate=layer.dilation_rate,
        use_bias=layer.use_bias,
        name=name,
        dtype="float32",
        trainable=layer.trainable,
    )
    kernel, *others = layer.get_weights()
    # Conv keeps the filters of one group after those of another, each of one input channel, in the
    # last axis; DepthwiseConv has an axis for the channels, and one for the filters of each.
    kernel = kernel.reshape((*layer.kernel_size, channels, multiplier))
    return parts.call(depthwise, x, [kernel, *others])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Axis:
    """What a convolution does along one axis.

    Attributes:
        before: zeros in front of the values.
        after: zeros behind them.
        count: the places of the output.
        reach: what one of them reads, holes of a dilated kernel included.
    """

    before: int
    after: int
    count: int
    reach: int

    @classmethod
    def of(cls, size: int, kernel: int, stride: int, dilation: int, padding: str) -> "_Axis":
        """Of so many values, by Keras's rule."""
        reach = dilation * (kernel - 1) + 1
        if padding == "valid":
            return cls(before=0, after=0, count=(size - reach) // stride + 1, reach=reach)
        count = -(-size // stride)
        total = max((count - 1) * stride + reach - size, 0)
        return cls(before=total // 2, after=total - total // 2, count=count, reach=reach)


def conv_3d(parts: Parts, layer: keras.layers.Conv3D, name: str, x: Any) -> Any:
    """One Conv2D of a tall image of all frames of the output.

    The frames that one of the output reads lie behind each other in its channels, so that all are
    sums of one operator with one kernel, which round once. Frames lie below each other, each with
    the zeros of its padding; rows of windows that reach into the next frame are cut off in the end.
    """
    options = (layer.kernel_size, layer.strides, layer.dilation_rate)
    sizes = zip(x.shape[1:-1], *options, strict=True)
    depth, height, width = (_Axis.of(*numbers, layer.padding) for numbers in sizes)
    stride = layer.strides[1]
    # Each frame begins where a window does.
    rows = height.before + x.shape[2] + height.after
    fill = -rows % stride
    rows += fill
    padding = [(depth.before, depth.after), (height.before, height.after + fill)]
    x = _resized(parts, name, x, [*padding, (width.before, width.after)])
    # All in four axes, samples included: TFLite Micro cuts no more.
    x = reshaped(parts, name, x, (-1, *x.shape[3:]), "tall")
    # What windows read behind the last frame, and are cut off for.
    more = max(height.reach - stride, 0)
    if more:
        below = L.ZeroPadding2D(((0, more), (0, 0)), name=parts.name(name, "below"), **_TYPE)
        x = parts.call(below, x)
    x = _frames(parts, layer, name, x, _Frames(count=depth.count, rows=rows, more=more))
    made = FrameConv2D(
        layer.filters,
        layer.kernel_size[1:],
        strides=layer.strides[1:],
        dilation_rate=layer.dilation_rate[1:],
        groups=layer.groups,
        use_bias=layer.use_bias,
        trainable=layer.trainable,
        frames=(depth.count, rows // stride, height.count),
        name=name,
        dtype="float32",
    )
    return parts.call(made, x, _as_planes(layer))


def transposed(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """A Conv with the kernel turned round, of the values with zeros between and around them.

    One in three dimensions, and a dilated one, which TRANSPOSE_CONV has none of; None for others.
    Of zeros between values no sum is rounded twice, and the kernel stays one; they are multiplied.
    """
    rank = len(layer.kernel_size)
    if rank < 3 and max(layer.dilation_rate) == 1:
        return None
    options = (layer.kernel_size, layer.strides, layer.dilation_rate)
    sizes = zip(x.shape[1:-1], layer.compute_output_shape(x.shape)[1:-1], *options, strict=True)
    around = [_around(*numbers, layer.padding) for numbers in sizes]
    x = _resized(parts, name, _spread(parts, name, x, layer.strides), around)
    made = (L.Conv1D, L.Conv2D, L.Conv3D)[rank - 1](
        layer.filters,
        layer.kernel_size,
        dilation_rate=layer.dilation_rate,
        use_bias=layer.use_bias,
        trainable=layer.trainable,
        name=name,
        **_TYPE,
    )
    kernel, *bias = layer.get_weights()
    made.build(x.shape)
    # Keras has the outputs before the inputs here.
    made.set_weights([np.flip(kernel, tuple(range(rank))).swapaxes(-1, -2), *bias])
    return parts.call(made, x)


def _around(
    size: int, output: int, kernel: int, stride: int, dilation: int, padding: str
) -> tuple[int, int]:
    """Zeros before and behind the values of an axis; less than 0 where some are cut off.

    TensorFlow takes the output for what a convolution of that stride and padding has read.
    """
    reach = dilation * (kernel - 1) + 1
    missing = max((size - 1) * stride + reach - output, 0) if padding == "same" else 0
    before = reach - 1 - missing // 2
    return before, output + reach - 1 - size * stride - before


def _spread(parts: Parts, name: str, x: Any, strides: tuple[int, ...]) -> Any:
    """Values with zeros behind each, so that they are a stride apart."""
    for axis, stride in enumerate(strides, 1):
        if stride > 1:
            head, size, rest = x.shape[1:axis], x.shape[axis], x.shape[axis + 1 :]
            rows = (int(np.prod((*head, size))), 1, int(np.prod(rest)))
            x = reshaped(parts, name, x, rows, "values")
            ends = ((0, 0), (0, stride - 1))
            zeros = L.ZeroPadding2D(ends, name=parts.name(name, "zeros"), **_TYPE)
            x = reshaped(parts, name, parts.call(zeros, x), (*head, size * stride, *rest), "apart")
    return x


def _resized(parts: Parts, name: str, x: Any, around: list[tuple[int, int]]) -> Any:
    """Zeros around the values, or fewer values."""
    rank = len(around) - 1
    padding = [tuple(max(n, 0) for n in ends) for ends in around]
    cropping = [tuple(max(-n, 0) for n in ends) for ends in around]
    changes = (
        ((L.ZeroPadding1D, L.ZeroPadding2D, L.ZeroPadding3D)[rank], padding, "padded"),
        ((L.Cropping1D, L.Cropping2D, L.Cropping3D)[rank], cropping, "cut"),
    )
    for make, ends, suffix in changes:
        if np.any(ends):
            own = make(ends if rank else ends[0], name=parts.name(name, suffix), **_TYPE)
            x = parts.call(own, x)
    return x


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Frames:
    """The frames of the output in a tall image.

    Attributes:
        count: how many.
        rows: those of each, as it is read.
        more: rows behind the last one.
    """

    count: int
    rows: int
    more: int


def _frames(parts: Parts, layer: keras.layers.Conv3D, name: str, x: Any, frames: _Frames) -> Any:
    """The frames of the output below each other: for each, those that it reads, as channels."""
    size, dilation = layer.kernel_size[0], layer.dilation_rate[0]
    read = [_every(parts, layer, name, x, dilation * i, frames) for i in range(size)]
    if size == 1:
        return read[0]
    # Groups of channels stay such where there are several.
    *tall, channels = read[0].shape[1:]
    groups = layer.groups
    if groups > 1:
        apart = (*tall, groups, channels // groups)
        read = [reshaped(parts, name, frame, apart, "groups") for frame in read]
    joined = L.Concatenate(name=parts.name(name, "frames"), **_TYPE)
    y = parts.call(joined, read)
    return reshaped(parts, name, y, (*tall, size * channels), "joined") if groups > 1 else y


def _every(
    parts: Parts, layer: keras.layers.Conv3D, name: str, x: Any, first: int, frames: _Frames
) -> Any:
    """The rows of frames from a first one on, as far apart as the layer strides."""
    stride, rows = layer.strides[0], frames.rows
    own = parts.name(name, "frame")
    if stride > 1:
        begins = [(first + stride * i) * rows for i in range(frames.count)]
        places = [begin + i for begin in begins for i in range(rows)]
        places += [places[-1] + 1 + i for i in range(frames.more)]
        return parts.call(Take(places, 1, name=own, **_TYPE), x)
    behind = x.shape[1] - (first + frames.count) * rows - frames.more
    if not first and not behind:
        return x
    cut = ((first * rows, behind), (0, 0))
    return parts.call(L.Cropping2D(cut, name=own, **_TYPE), x)


def _as_planes(layer: keras.layers.Conv3D) -> list[np.ndarray]:
    """The weights, frames of the kernel behind each other in its inputs."""
    kernel, *bias = layer.get_weights()
    size = layer.kernel_size
    kernel = np.moveaxis(kernel, 0, 2).reshape(*size[1:], -1, layer.filters)
    return [kernel, *bias]
