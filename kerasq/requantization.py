"""`multipliers`: what the operators of a .tflite file rescale by, in fixed point of any width."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels.fixed_point import decompose
from kerasq.litert import flatbuffer
from kerasq.litert.contents import Op, Tensor
from kerasq.litert.operators import OPERATORS
from kerasq.litert.runtime import TFLiteModel
from kerasq.support import tables

WIDEST_MULTIPLIER = 31
FORMULA = "real = multiplier * 2^(shift - bits)"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Multiplier:
    """What one operator rescales by: `real = multiplier * 2^(shift - bits)`.

    Attributes:
        name: the tensor that it writes.
        op: the operator.
        along: what the arrays run along: "channels" of the output (one entry where all share it),
            "inputs", or "slopes" (that from zero on, that below).
        real: the exact multipliers, of scales alone, float64, `(n,)`.
        multiplier: their mantissas, int64, `(n,)`: of positive ones in [2^(bits - 1), 2^bits).
        shift: the exponents, int64, `(n,)`.
        bits: the width of the mantissas.
        most_steps: what the output's codes differ by at most from those of the exact multipliers,
            where both round half up, once.
    """

    name: str
    op: str
    along: str
    real: np.ndarray
    multiplier: np.ndarray
    shift: np.ndarray
    bits: int
    most_steps: int

    @property
    def fixed(self) -> np.ndarray:
        """What is multiplied by in place of `real`, float64."""
        return fixed(self.multiplier, self.shift, self.bits)

    @property
    def error(self) -> float:
        """The largest of the multipliers' relative errors, at most 2^-bits."""
        return float(relative_errors(self.real, self.bits).max())

    def as_json(self) -> dict[str, Any]:
        """The row as JSON has it."""
        arrays = {name: getattr(self, name).tolist() for name in ("real", "multiplier", "shift")}
        return {"name": self.name, "op": self.op, "along": self.along, **arrays}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Multipliers:
    """What all operators of a file rescale by. Printing it gives a table.

    Attributes:
        bits: the width of the mantissas.
        rows: each operator that rescales, in order.
    """

    bits: int
    rows: tuple[Multiplier, ...]

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON has it, the formula included."""
        return {
            "bits": self.bits,
            "formula": FORMULA,
            "operators": [x.as_json() for x in self.rows],
        }

    def __str__(self) -> str:
        header = ["output", "operator", "along", "multipliers", "least", "largest", "shifts"]
        rows = [[*header, "rel. error", "codes off"]]
        for x in self.rows:
            ends = (f"{x.real.min():.3g}", f"{x.real.max():.3g}")
            shifts = f"{x.shift.min()}..{x.shift.max()}"
            counts = (str(len(x.real)), *ends, shifts, f"{x.error:.1e}", f"<= {x.most_steps}")
            rows.append([x.name, x.op, x.along, *counts])
        formula = f"{FORMULA}, bits = {self.bits}."
        return f"{tables.plain(rows, left=3)}\n\n{formula}"


def multipliers(lite: TFLiteModel, bits: int = WIDEST_MULTIPLIER) -> Multipliers:
    """The multiplier and shift of every operator of a file that rescales, at a chosen width.

    `real = multiplier * 2^(shift - bits)`, with a mantissa in [2^(bits - 1), 2^bits), rounded half
    up; those below 2^-32 are 0, as no sum of int32 makes half a step by them. At 31 bits these are
    LiteRT's and TFLite Micro's own `quantized_multiplier` and `shift`, but of ADD and SUB, which
    rescale inputs and sum apart, of MEAN, which divides a mantissa by the number of values, rounded
    down, and on LiteRT of MUL and slopes, which are of float32. With s the scales, `real` is

    - of operators with weights `s_in * s_w[c] / s_out` for each output channel c, or one;
    - of MUL and BATCH_MATMUL `s_a * s_b / s_out`;
    - of ADD and SUB `s_i / s_out` for each input i;
    - of QUANTIZE, RELU and SUM `s_in / s_out`, of MEAN that over the number of values, and of
      LEAKY_RELU `s_in / s_out` and that times the slope.

    Operators by tables or exponentials (SOFTMAX, TANH), and a whole LSTM, are left out.

    A multiplier that is off by a share e of itself moves codes by `ceil(e * r)` at most, where r is
    the farthest code from the output's zero point: at 8 bits by one code of int8.

    Args:
        lite: the file.
        bits: width of the mantissas, in [2, 31], such as 15 for int16 and 8 for uint8.

    Raises:
        TypeError: where `lite` is no TFLiteModel.
        ValueError: for another width, or a file in which nothing rescales.

    References:
        Jacob et al. 2018 (arXiv 1712.05877), section 2.2; LiteRT, `QuantizeMultiplier`.

    Example:
        >>> found = kerasq.multipliers(lite, bits=15)  # doctest: +SKIP
        >>> found.rows[0].multiplier, found.rows[0].shift  # doctest: +SKIP
        (array([23170, 17213]), array([-6, -7]))
    """
    if not isinstance(lite, TFLiteModel):
        raise TypeError(
            "`lite` must be a kerasq.TFLiteModel, such as `export_tflite` returns. "
            f"Received: {type(lite).__name__}."
        )
    check_bits(bits)
    named = {tensor.name: tensor for tensor in lite.tensors}
    options = [op.builtinOptions for op in flatbuffer.read(lite.content).subgraphs[0].operators]
    found = [_row(op, named, own, bits) for op, own in zip(lite.ops, options, strict=True)]
    rows = tuple(row for row in found if row is not None)
    if not rows:
        raise ValueError(
            "`lite` must have integer operators that rescale. Received: a file of "
            f"{sorted({op.name for op in lite.ops})} in which none does. Export a quantized model."
        )
    return Multipliers(bits=bits, rows=rows)


def check_bits(bits: int) -> None:
    """Raises a ValueError for a width that mantissas cannot have."""
    if not isinstance(bits, int) or not 2 <= bits <= WIDEST_MULTIPLIER:
        raise ValueError(
            f"Multipliers must have an integer width in [2, {WIDEST_MULTIPLIER}]. "
            f"Received: {bits!r} bits."
        )


def split(real: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Mantissas and exponents of real multipliers, which may be 0 or negative; int64."""
    sizes = np.abs(real)
    mantissa, exponent = decompose(tf.constant(np.where(sizes > 0.0, sizes, 1.0)), bits)
    signs = np.sign(real).astype(np.int64)
    return signs * mantissa.numpy(), np.where(signs, exponent.numpy(), 0)


def fixed(multiplier: np.ndarray, shift: np.ndarray, bits: int) -> np.ndarray:
    """The real numbers that multipliers and shifts stand for, float64."""
    return np.ldexp(multiplier.astype(np.float64), shift - bits)


def relative_errors(real: np.ndarray, bits: int) -> np.ndarray:
    """By how large a share of themselves multipliers of a width are off; 0 for those that are 0."""
    multiplier, shift = split(real, bits)
    # Of those below 2^-32, too, by which no sum of int32 makes half a step.
    is_none = multiplier == 0
    sizes = np.where(is_none, 1.0, np.abs(real))
    return np.where(is_none, 0.0, np.abs(fixed(multiplier, shift, bits) - real) / sizes)


def most_steps(real: np.ndarray, bits: int, out: Grid) -> int:
    """What codes on `out` differ by at most, of sums that are rescaled at a width.

    With e the relative error and r the farthest code from the zero point, `ceil(e * r)`: beyond r
    both are cut, up to there products differ by `e * r`, and rounding adds less than a step.
    """
    return math.ceil(relative_errors(real, bits).max() * out.farthest)


def _row(op: Op, named: Mapping[str, Tensor], options: Any, bits: int) -> Multiplier | None:
    """What an operator rescales by; None for one that does not."""
    out = _integer_grid(named[op.outputs[0]])
    if out is None or op.name not in _RULES:
        return None
    grids = [_integer_grid(named[op.inputs[i]]) for i in _read_by(op)]
    known = [grid for grid in grids if grid is not None]
    if len(known) < len(grids):  # QUANTIZE of floats.
        return None
    along, rule = _RULES[op.name]
    shares = _shares(op, named, options)
    real = np.atleast_1d(rule([_double(grid) for grid in known], _double(out)) * shares)
    multiplier, shift = split(real, bits)
    is_sum = along == "inputs"
    return Multiplier(
        name=op.outputs[0],
        op=op.name,
        along=along,
        real=real,
        multiplier=multiplier,
        shift=shift,
        bits=bits,
        most_steps=_sum_steps(real, bits, known) if is_sum else most_steps(real, bits, out),
    )


def _shares(op: Op, named: Mapping[str, Tensor], options: Any) -> np.ndarray:
    """What the quotients of scales are multiplied by."""
    if op.name == "LEAKY_RELU":
        return np.array([1.0, options.alpha])
    if op.name == "MEAN":
        counts = [math.prod(named[name].shape) for name in (op.outputs[0], op.inputs[0])]
        return np.array(counts[0] / counts[1])
    return np.array(1.0)


def _double(grid: Grid) -> np.ndarray:
    # In double precision, as LiteRT prepares its multipliers.
    return np.asarray(grid.scale, np.float64)


def _sum_steps(real: np.ndarray, bits: int, grids: list[Grid]) -> int:
    """As `most_steps`, of a sum, which is cut at its end alone: its inputs' errors add up."""
    reach = np.array([grid.farthest for grid in grids]) * real
    return math.ceil(float(np.sum(relative_errors(real, bits) * reach)))


def _integer_grid(tensor: Tensor) -> Grid | None:
    """The grid of codes of up to 16 bits; None for floats, labels and biases."""
    return tensor.grid if tensor.dtype.kind in "iu" and tensor.dtype.itemsize <= 2 else None


def _read_by(op: Op) -> tuple[int, ...]:
    """Which inputs of an operator have the scales that it rescales by."""
    known = OPERATORS[op.name]
    if known.channels is not None:
        return known.data, 1
    return (0, 1) if op.name in ("ADD", "SUB", "MUL", "BATCH_MATMUL") else (0,)


def _product(scales: list[np.ndarray], out: np.ndarray) -> np.ndarray:
    return scales[0] * scales[1] / out


def _each(scales: list[np.ndarray], out: np.ndarray) -> np.ndarray:
    return np.array(scales) / out


def _ratio(scales: list[np.ndarray], out: np.ndarray) -> np.ndarray:
    return scales[0] / out


# What arrays run along, and the multipliers from the scales of inputs and output.
_RULES = {
    **{name: ("channels", _product) for name, op in OPERATORS.items() if op.channels is not None},
    **{name: ("channels", _product) for name in ("MUL", "BATCH_MATMUL")},
    **{name: ("inputs", _each) for name in ("ADD", "SUB")},
    **{name: ("channels", _ratio) for name in ("QUANTIZE", "RELU", "SUM", "MEAN")},
    "LEAKY_RELU": ("slopes", _ratio),
}
