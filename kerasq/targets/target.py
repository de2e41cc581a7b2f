"""A target: the integer kernels of a device, as the simulation and the export need to know them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels import AccumulatorKernel, Kernel
from kerasq.litert.operators import Operator
from kerasq.litert.runtimes import RUNTIMES
from kerasq.scheme import FLOAT_BITS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What a target's kernels can hold.

    Attributes:
        bias: what bias codes stay below, by bits of the activations, and of weights as they are
            stored, 8 or 4.
        accumulator_bits: width of the sums, by bits of the activations.
        multiplier: what `s_in * s_w / s_out`, `s_in / s_out` of sums, and `s_a * s_b / s_out` of
            products stay below.
        added: what `s_in / s_out` of a sum stays below where that of the other input is below
            2^-10, by bits of the activations.
        requantized: what `s_in / s_out` of codes that are only put onto another grid stays below,
            by bits of the activations.
        sums: what products of codes and weights add up to at most, in steps of the output, by bits
            of the activations.
        curve_scale: what the scale of an int16 input of LOGISTIC, TANH and SOFTMAX stays below.
        fixed_point: by operator, the scales of an int16 input near which kernels compute by other
            means, which nothing here simulates: ranges are widened beyond them.
        least_root: the least code of an int16 input of RSQRT that is told from smaller ones.
        root: what `1 / (sqrt(s_in) s_out)` of RSQRT on int16 stays below.
        softmax_scale: the least scale of an int8 input of SOFTMAX and LOG_SOFTMAX.
        softmax_values: the most values that SOFTMAX on int8 is over; longer ones are on int16.
    """

    bias: Mapping[tuple[int, int], float]
    accumulator_bits: Mapping[int, int]
    multiplier: float
    added: Mapping[int, float]
    requantized: Mapping[int, float]
    sums: Mapping[int, float]
    curve_scale: float
    fixed_point: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    least_root: int = 1
    root: float = math.inf
    softmax_scale: float = 0.0
    softmax_values: int | None = None

    def takes_softmax(self, values: int | None) -> bool:
        """Whether SOFTMAX on int8 may be over so many values; None where that is not known."""
        return self.softmax_values is None or (values or 0) <= self.softmax_values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What a quantized model runs on.

    Widths are the bits of the codes that an operator reads and writes: 8, 16, or 32 for float
    (QUANTIZE reads floats). Where there are several, the widest counts.

    Attributes:
        name: what `quantize_model` takes, and a saved model keeps.
        runtime: the interpreter whose kernels these are, as `TFLiteModel(target=...)` takes it;
            None where there is none for Python, and files can only be checked to run.
        away: whether QUANTIZE from float rounds ties away from zero, not to the even code. Who
            feeds a file codes does the same (`TFLiteModel.codes`).
        fuses_lstm: whether an LSTM is best one operator, UNIDIRECTIONAL_SEQUENCE_LSTM.
        negative_places: whether an Embedding takes places that are counted from the end.
        machines: the processors that these are the kernels of, by Python's `platform.machine()`;
            none where they are the same on all.
        operators: the operators, with their versions and types.
        kernels: the functions that operators without weights are simulated by, by operator and
            width.
        accumulator_kernels: those of operators with weights, by operator, width, and width of the
            weights as they are stored: 8, or 4 where they are packed.
        limits: see `Limits`.

    Raises:
        ValueError: for a kernel of an operator that the table does not have, or an unknown
            runtime.
    """

    name: str
    runtime: str | None = None
    away: bool = False
    fuses_lstm: bool = False
    negative_places: bool = True
    machines: tuple[str, ...] = ()
    operators: Mapping[str, Operator]
    kernels: Mapping[tuple[str, int], Kernel]
    accumulator_kernels: Mapping[tuple[str, int, int], AccumulatorKernel]
    limits: Limits

    def __post_init__(self) -> None:
        if self.runtime not in (None, *RUNTIMES):
            raise ValueError(
                f"A target's `runtime` must be one of {list(RUNTIMES)}, or None. "
                f"Received: target {self.name!r} with runtime={self.runtime!r}."
            )
        named = {key[0] for key in (*self.kernels, *self.accumulator_kernels)}
        if unknown := sorted(named - {*self.operators}):
            raise ValueError(
                "A target's kernels must be those of its operators. "
                f"Received: target {self.name!r} with kernels of {unknown}, which it does not have."
            )

    def kernel(self, operator: str, bits: int) -> Kernel:
        """The kernel of an operator without weights.

        Raises:
            ValueError: where there is none at this width.
        """
        return self._found(self.kernels, (operator, bits))

    def accumulator_kernel(
        self, operator: str, bits: int, weight_bits: int, *, inputs: int = 0, groups: int = 1
    ) -> AccumulatorKernel:
        """The kernel of an operator with weights of `weight_bits`; see `packs` for the others.

        Raises:
            ValueError: where there is none at these widths.
        """
        # Weights of any number of bits are stored in one of two ways, and kernels see only those.
        stored = 4 if self.packs(operator, weight_bits, bits, inputs=inputs, groups=groups) else 8
        return self._found(self.accumulator_kernels, (operator, bits, stored))

    def _found(self, kernels: Mapping[Any, Any], key: tuple[Any, ...]) -> Any:
        if key not in kernels:
            legal = [other for other in kernels if other[0] == key[0]]
            raise ValueError(
                "An operator must have a kernel that the target simulates. Received: "
                f"{key} on target {self.name!r}, which has {legal or 'none'} of it."
            )
        return kernels[key]

    def run(
        self, operator: str, layer: keras.Layer, codes: list, grids: list[Grid], out: Grid
    ) -> tf.Tensor:
        """What an operator without weights computes; see `Kernel`.

        Raises:
            ValueError: where there is no kernel at these widths.
        """
        if self.operators[operator].one_grid:
            # The file has a QUANTIZE before each input that lies on another grid.
            codes = [
                code if grid is out else self.run("QUANTIZE", layer, [code], [grid], out)
                for code, grid in zip(codes, grids, strict=True)
            ]
        # Neighbours of other widths have a QUANTIZE between them, so only QUANTIZE reads another
        # width than it writes: 16 bits at either end make it the int16 kernel.
        bits = max(grid.bits for grid in (*grids, out)) if grids else FLOAT_BITS
        return self.kernel(operator, bits)(layer, codes, grids, out)

    def has(self, operator: str, bits: int) -> bool:
        """Whether an operator that computes has a kernel for codes of so many bits."""
        if operator not in self.operators or (bits > 8 and self.operators[operator].int16 is None):
            return False
        simulated = (*self.kernels, *self.accumulator_kernels)
        return any(key[:2] == (operator, 16 if bits > 8 else 8) for key in simulated)

    def packs(
        self,
        operator: str,
        weight_bits: int,
        activation_bits: int,
        *,
        inputs: int = 0,
        groups: int = 1,
    ) -> bool:
        """Whether an operator's weights are stored as packed INT4: those of up to 4 bits.

        Args:
            operator: its name.
            weight_bits: the width of its weights.
            activation_bits: the width of what it reads.
            inputs: those of each output of a FULLY_CONNECTED.
            groups: those of a convolution.
        """
        known = self.operators[self._packed_by(operator)]
        fits = (known.int4_odd or inputs % 2 == 0) and (known.int4_groups or groups == 1)
        return weight_bits <= 4 and activation_bits in known.int4 and (activation_bits > 8 or fits)

    def _packed_by(self, operator: str) -> str:
        """The operator that takes packed weights in the place of one."""
        return self.operators[operator].int4_by or operator

    def version(self, operator: str, weight_bits: int, activation_bits: int) -> int:
        """The least operator version for these widths.

        Raises:
            ValueError: where there is no kernel for them.
        """
        known = self.operators.get(operator)
        if known is not None and self.packs(operator, weight_bits, activation_bits):
            return self.operators[self._packed_by(operator)].int4[activation_bits]
        found = None
        if known is not None:
            found = known.int8 if activation_bits <= 8 else known.int16
        if found is None:
            raise ValueError(
                f"{operator} must have a kernel for int{activation_bits}. Received: target "
                f"{self.name!r}, which has none. Add it to the target, or replace the layer."
            )
        return found
