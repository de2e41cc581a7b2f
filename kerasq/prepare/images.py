"""Layers that crop, resize and flatten images, in parts."""

from typing import Any

import keras
import numpy as np

from kerasq.prepare.parts import Parts

L = keras.layers


def flatten(parts: Parts, layer: keras.layers.Flatten, name: str, x: Any) -> Any:
    """Of channels first: Permute, "<name>_moved", to the channels last, and Flatten."""
    order = (*range(2, len(x.shape)), 1)
    if layer.data_format != "channels_first" or len(order) < 2:
        return None
    moved = parts.call(L.Permute(order, name=parts.name(name, "moved"), dtype="float32"), x)
    return parts.call(L.Flatten(name=name, dtype="float32"), moved)


def center_crop(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """Cropping2D; of smaller images, a Resizing that keeps the aspect ratio, as in Keras."""
    size = (layer.height, layer.width)
    if any(n < m for n, m in zip(x.shape[1:3], size, strict=True)):
        made = L.Resizing(*size, crop_to_aspect_ratio=True, name=name, dtype="float32")
    else:
        made = L.Cropping2D(_around(x, size), name=name, dtype="float32")
    return parts.call(made, x)


def _around(x: Any, size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """What to cut off before and behind, down and across, so that the middle has a size."""
    more = [n - m for n, m in zip(x.shape[1:3], size, strict=True)]
    return tuple((n // 2, n - n // 2) for n in more)


def resizing(parts: Parts, layer: keras.Layer, name: str, x: Any) -> Any:
    """Resizing behind what keeps the aspect ratio: Cropping2D or ZeroPadding2D, "<name>_ratio"."""
    if not (layer.crop_to_aspect_ratio or layer.pad_to_aspect_ratio):
        return None
    # In float32, as Keras does, whose result may be a pixel off the exact one.
    height, width = x.shape[1:3]
    high = int(np.float32(width * layer.height) / np.float32(layer.width))
    wide = int(np.float32(height * layer.width) / np.float32(layer.height))
    options = {"name": parts.name(name, "ratio"), "dtype": "float32"}
    if layer.crop_to_aspect_ratio:
        size = (max(min(height, high), 1), max(min(width, wide), 1))
        ratio = L.Cropping2D(_around(x, size), **options)
    else:  # As much on both sides: of an odd number of pixels Keras leaves one out.
        sides = ((max(high - height, 0)) // 2, (max(wide - width, 0)) // 2)
        ratio = L.ZeroPadding2D(sides, **options)
    config = layer.get_config() | {
        "crop_to_aspect_ratio": False,
        "pad_to_aspect_ratio": False,
        "name": name,
        "dtype": "float32",
    }
    return parts.call(L.Resizing.from_config(config), parts.call(ratio, x))
