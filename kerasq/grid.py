"""Affine quantization grids: the one value object that every stage of kerasq speaks."""

import dataclasses
from typing import Any

import numpy as np


# Arrays and tensors compare element by element, which a generated `__eq__` cannot: see `equals`.
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """An affine grid of integer codes: `real = scale * (code - zero_point)`.

    Codes are signed. `bits=8` gives [-128, 127], or [-127, 127] when `narrow`. In the simulation
    `scale` and `zero_point` are TensorFlow tensors; everywhere else they are NumPy arrays.

    A grid of fewer `levels` than codes uses the topmost ones: integer kernels then cut at its upper
    end by themselves, and a fused ReLU cuts at its lower one. So activations of b < 8 bits are
    int8 codes 128 - 2^b .. 127.

    Attributes:
        scale: step between two codes, in real units; float32, shape `()` or `(channels,)`.
        zero_point: code of the real value 0.0; same shape as `scale`; 0 on symmetric grids.
        bits: width of a code, in [2, 16].
        narrow: whether the lowest code is left out, which makes the grid symmetric around 0.
        axis: the axis that `scale` runs along, or None for one scale per tensor.
        levels: how many codes are in use; None for all.

    Source: LiteRT 8-bit quantization specification; Jacob et al. 2018, equation 1.

    Example:
        >>> grid = Grid.from_range(0.0, 25.5)
        >>> float(grid.scale), int(grid.zero_point)
        (0.10000000149011612, -128)
        >>> grid.quantize(np.array([0.0, 1.0, 99.0]))
        array([-128, -118,  127], dtype=int8)
    """

    scale: Any
    zero_point: Any
    bits: int = 8
    narrow: bool = False
    axis: int | None = None
    levels: int | None = None

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise ValueError(
                "`bits` must be in [2, 16], the widths that the fake-quant ops know. "
                f"Received: bits={self.bits}."
            )

    @classmethod
    def from_range(
        cls,
        low: Any,
        high: Any,
        *,
        bits: int = 8,
        narrow: bool = False,
        axis: int | None = None,
        levels: int | None = None,
    ) -> "Grid":
        """The grid over [low, high], nudged so that 0.0 has a code (Jacob et al. 2018, 3.1).

        `scale = (high - low) / (qmax - qmin)` in double precision, rounded once to float32, as the
        TFLite converter does; `zero_point = qmin + floor(-low / scale + 1/2)`, of the exact
        quotient.

        Args:
            low: least real value, at most 0; scalar or `(channels,)`.
            high: greatest real value, at least 0; same shape.
            bits: width of a code.
            narrow: leave out the lowest code.
            axis: axis of the channels.
            levels: how many codes are in use; None for all.

        Raises:
            ValueError: where a range does not contain 0, is empty or is not finite.
        """
        # In float32 the scale of some ranges would differ from the converter's by its last bit.
        low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise ValueError(f"A range must be finite. Received: low={low}, high={high}.")
        if (low > 0).any() or (high < 0).any() or (high <= low).any():
            raise ValueError(
                "A range must contain 0.0, so that zero padding is exact, and must not be empty. "
                f"Received: low={low}, high={high}. Widen it to include 0.0."
            )
        # The codes follow from the widths alone, scale and zero point from the codes.
        grid = cls(scale=0.0, zero_point=0, bits=bits, narrow=narrow, axis=axis, levels=levels)
        steps = grid.qmax - grid.qmin
        scale = (high - low) / steps
        # Not -low / scale, whose rounding moves the ties of ranges that are symmetric.
        below = np.clip(-low * steps / (high - low), 0, steps)
        # Ties go up; `np.rint` would take every other one down.
        zero_point = grid.qmin + np.floor(below + 0.5)
        return dataclasses.replace(
            grid, scale=np.float32(scale), zero_point=zero_point.astype(np.int32)
        )

    @property
    def qmin(self) -> int:
        """The lowest code in use."""
        if self.levels is not None:
            return self.qmax + 1 - self.levels
        return -(2 ** (self.bits - 1)) + self.narrow

    @property
    def qmax(self) -> int:
        """The highest code."""
        return 2 ** (self.bits - 1) - 1

    @property
    def dtype(self) -> np.dtype:
        """The NumPy type that stores a code (4-bit codes travel as int8)."""
        return np.dtype(np.int8 if self.bits <= 8 else np.int16)

    @property
    def low(self) -> np.ndarray:
        """The real value of the lowest code."""
        return self._real(self.qmin)

    @property
    def high(self) -> np.ndarray:
        """The real value of the highest code."""
        return self._real(self.qmax)

    @property
    def farthest(self) -> Any:
        """How far codes lie from the zero point at most; a tensor where that is one."""
        middle = (self.qmin + self.qmax) / 2
        return (self.qmax - self.qmin) / 2 + abs(self.zero_point - middle)

    def _real(self, code: int) -> np.ndarray:
        # In float32, for the ends to be values that `dequantize` gives.
        return np.asarray(np.float32(self.scale) * np.float32(code - np.asarray(self.zero_point)))

    def _along_axis(self, values: Any, rank: int) -> np.ndarray:
        values = np.asarray(values)
        if self.axis is None or values.ndim == 0:
            return values
        shape = [1] * rank
        shape[self.axis] = values.size
        return values.reshape(shape)

    def quantize(self, x: Any, away: bool = False) -> np.ndarray:
        """Codes of real values: `clip(rint(x * (1 / scale)) + zero_point, qmin, qmax)`.

        Ties go to the even code, and the scale's reciprocal is rounded to float32, as in LiteRT's
        default (XNNPACK) kernels. With `away`, `x / scale` is rounded, ties away from zero, as by
        TFLite Micro and C's `round`.
        """
        x = np.asarray(x, np.float32)
        scale = self._along_axis(np.float32(self.scale), x.ndim)
        if away:
            # In float64, as half a step less than a tie and half a step make the tie in float32.
            steps = (x / scale).astype(np.float64)
            rounded = np.copysign(np.floor(np.abs(steps) + 0.5), steps)
        else:
            # Not x / scale, which float32 rounds to another code near some ties.
            rounded = np.rint(x * (np.float32(1) / scale))
        codes = rounded + self._along_axis(self.zero_point, x.ndim)
        return np.clip(codes, self.qmin, self.qmax).astype(self.dtype)

    def dequantize(self, codes: Any) -> np.ndarray:
        """Real values of codes: `scale * (code - zero_point)`, in float32."""
        codes = np.asarray(codes)
        # The difference of two int8 codes takes nine bits.
        centred = codes.astype(np.int32) - self._along_axis(self.zero_point, codes.ndim)
        return self._along_axis(np.float32(self.scale), codes.ndim) * centred.astype(np.float32)

    def equals(self, other: "Grid | None") -> bool:
        """Whether `other` has the same codes for all values."""
        # Without `narrow`, which a file does not hold.
        return (
            other is not None
            and (self.bits, self.levels) == (other.bits, other.levels)
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def numpy(self) -> "Grid":
        """The same grid with NumPy arrays in place of tensors."""
        # The simulation's zero points are floats, as its codes are.
        return dataclasses.replace(
            self,
            scale=np.asarray(self.scale, np.float32),
            zero_point=np.asarray(self.zero_point).astype(np.int32),
        )
