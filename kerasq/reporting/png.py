"""Small images as PNG, without a package for it."""

import base64
import struct
import zlib

import numpy as np

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
    height, width, channels = pixels.shape
    # Each row begins with its filter: none.
    rows = np.concatenate(
        [np.zeros((height, 1), np.uint8), pixels.reshape(height, width * channels)], axis=1
    )
    kind = 2 if channels == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header)
    content += _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + _chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))
