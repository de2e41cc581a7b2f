"""Real values at the ends of a .tflite model: what it is fed, and what its codes mean."""

from typing import Any

import keras
import numpy as np

from kerasq.litert.contents import Tensor


def columns(x: Any, tensors: list[Tensor], names: list[str]) -> list[np.ndarray]:
    """One array of samples for each input tensor.

    Args:
        x: one array, or a list or dict (by name) of one array an input.
        tensors: the inputs, whose first axis is that of the samples.
        names: what the signature calls them.

    Raises:
        ValueError: for inputs that are missing, of other shapes or of different lengths, and for
            values that are not finite.
    """
    arrays = [np.asarray(leaf) for leaf in _leaves(x, names)]
    _check_shapes(arrays, tensors, names)
    # No code stands for NaN, and infinity would be clipped in silence.
    if not all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f"):
        raise ValueError("`x` must be finite. Received: NaN or infinity.")
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(
            "`x` must have equally many samples for every input. "
            f"Received: {[len(array) for array in arrays]}."
        )
    return arrays


def _leaves(x: Any, names: list[str]) -> list[Any]:
    """What `x` holds for each input, in their order."""
    if isinstance(x, dict):
        x = _in_order(x, names)
    # Any other list is that of the samples of the only input.
    is_column_each = isinstance(x, (list, tuple)) and len(x) == len(names)
    return list(x) if is_column_each else [x]


def _in_order(x: dict[str, Any], names: list[str]) -> list[Any]:
    """The values of a dict in the order of the inputs."""
    # The names of a nested structure are no names of inputs; Keras numbers its inputs in the order
    # of the flattened structure, and so does the file.
    if any(isinstance(leaf, (dict, list, tuple)) for leaf in x.values()):
        return keras.tree.flatten(x)
    missing = [name for name in names if name not in x]
    if missing:
        raise ValueError(f"`x` must hold every input. Received: no {missing} in {list(x)}.")
    return [x[name] for name in names]


def _check_shapes(arrays: list[np.ndarray], tensors: list[Tensor], names: list[str]) -> None:
    wanted = [tensor.shape[1:] for tensor in tensors]
    if [array.shape[1:] for array in arrays] != wanted:
        raise ValueError(
            f"`x` must have sample shapes {wanted} (inputs {names}). "
            f"Received: arrays of shape {[array.shape for array in arrays]}. "
            "The first axis is that of the samples."
        )


def codes(values: np.ndarray, tensor: Tensor, away: bool = False) -> np.ndarray:
    """What a tensor takes for real values: its codes, or the values in its own type.

    Ties go to the even code, or away from zero; see `Grid.quantize`.
    """
    if tensor.preprocessing is not None:
        values = tensor.preprocessing(values)
    if tensor.dtype.kind == "f" or tensor.grid is None:
        return values.astype(tensor.dtype)
    signed = tensor.grid.quantize(values, away)
    if tensor.dtype != np.uint8:
        return signed
    # Grids are those of signed codes; unsigned ones are 128 higher, for which int8 has no room.
    return (signed.astype(np.int16) + 128).astype(np.uint8)


def real(codes: np.ndarray, tensor: Tensor) -> np.ndarray:
    """The real values, float32, of a tensor's codes; other values as they are."""
    if tensor.dtype.kind == "f" or tensor.grid is None:
        return codes
    signed = codes if tensor.dtype != np.uint8 else codes.astype(np.int16) - 128
    return tensor.grid.dequantize(signed)
