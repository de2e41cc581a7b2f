"""Small images as PNG."""

import base64

import numpy as np
import tensorflow as tf

# Larger images are shown at every other pixel, or fewer.
LARGEST = 112


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether an array `(height, width, channels)` can be shown as an image."""
    return len(shape) == 3 and shape[-1] in (1, 3) and min(shape[:2]) >= 4


def data_uri(x: np.ndarray) -> str:
    """An image `(height, width, 1 or 3)` of any range of values as the address of a PNG."""
    step = -(-max(x.shape[:2]) // LARGEST)
    x = x[::step, ::step].astype(np.float64)
    low, high = x.min(), x.max()
    pixels = np.rint((x - low) / ((high - low) or 1.0) * 255).astype(np.uint8)
    return "data:image/png;base64," + base64.b64encode(tf.io.encode_png(pixels).numpy()).decode()
