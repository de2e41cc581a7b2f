"""Operations over windows of an image or sequence: convolutions, poolings, resizing."""

from collections.abc import Callable
from typing import Any

import keras

from kerasq import registry
from kerasq.graph import Node, symbolic
from kerasq.prepare.parts import Called
from kerasq.prepare.products import weighted

L = keras.layers


def convolution(make: Callable[..., keras.Layer]) -> Callable:
    """A convolution with constant kernels, or variables.

    Args:
        make: the layer, of rank and channels of the input, shapes of the kernels, and the options
            that the operation has as well.
    """

    def call(node: Node, args: tuple, options: dict) -> Called:
        x, *kernels = args
        rank = len(x.shape)
        if len(symbolic(args)) != 1 or not symbolic(x) or rank not in (3, 4):
            return None
        own = {key: getattr(node.layer, key) for key in ("strides", "padding", "dilation_rate")}
        own["data_format"] = node.layer.data_format or keras.config.image_data_format()
        shapes = [tuple(kernel.shape) for kernel in kernels]
        layer = make(rank, x.shape[-1], *shapes, use_bias=False, **own, **options)
        return weighted(layer, x, *kernels)

    return call


def conv(rank: int, channels: int, kernel: tuple, **options: Any) -> keras.Layer:
    """A convolution, in groups where the kernel has fewer channels than the input."""
    layer = L.Conv1D if rank == 3 else L.Conv2D
    return layer(kernel[-1], kernel[:-2], groups=channels // kernel[-2], **options)


def depthwise_conv(rank: int, channels: int, kernel: tuple, **options: Any) -> keras.Layer:
    """A convolution of each channel alone."""
    del channels
    layer = L.DepthwiseConv1D if rank == 3 else L.DepthwiseConv2D
    return layer(kernel[:-2], depth_multiplier=kernel[-1], **options)


def separable_conv(
    rank: int, channels: int, depthwise: tuple, pointwise: tuple, **options: Any
) -> keras.Layer:
    """Both, one behind the other."""
    del channels
    layer = L.SeparableConv1D if rank == 3 else L.SeparableConv2D
    return layer(pointwise[-1], depthwise[:-2], depth_multiplier=depthwise[-1], **options)


def conv_transpose(rank: int, channels: int, kernel: tuple, **options: Any) -> keras.Layer:
    """A transposed convolution."""
    del channels
    layer = L.Conv1DTranspose if rank == 3 else L.Conv2DTranspose
    return layer(kernel[-2], kernel[:-2], **options)


def pooling(*layers: type) -> Callable:
    """A pooling of windows, in as many dimensions as the tensor has."""

    def make(node: Node, args: tuple, options: dict) -> Called:
        keys = ("pool_size", "strides", "padding", "data_format")
        own = {key: getattr(node.layer, key) for key in keys}
        layer = layers[len(args[0].shape) - 3](**own, **options)
        return None if registry.complaint(layer) else (layer, args[0])

    return make


def resize(node: Node, args: tuple, options: dict) -> Called:
    """Images of another size."""
    keys = ("crop_to_aspect_ratio", "pad_to_aspect_ratio", "antialias")
    own = {key: getattr(node.layer, key) for key in ("interpolation", "data_format", *keys)}
    fills = ("fill_mode", "fill_value")
    own |= {key: getattr(node.layer, key) for key in fills if hasattr(node.layer, key)}
    layer = L.Resizing(*node.layer.size, **own, **options)
    is_batch = len(args[0].shape) == 4  # Without samples it is one image.
    return (layer, args[0]) if is_batch and not registry.complaint(layer) else None
