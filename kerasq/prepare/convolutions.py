"""Convolutions that are, or hold, a convolution of each channel alone."""

from typing import Any

import keras

from kerasq.prepare.parts import Parts

L = keras.layers


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
    depthwise = depthwise_class(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
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
