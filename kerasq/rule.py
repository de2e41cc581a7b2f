"""A row of the registry: what one kind of Keras layer becomes on the device."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Protocol

import keras
import numpy as np

from kerasq.grid import Grid
from kerasq.targets import Target


class Output(enum.StrEnum):
    """On which grid the output of a layer lies."""

    LEARNED = "range"  # its own, over a range that is learned
    INPUT = "input"  # that of its input, which it rounds to
    PASS_THROUGH = "same"  # that of its input, whose values are only moved or picked
    FIXED = "fixed"  # the one that the integer kernel insists on
    DERIVED = "derived"  # one that follows from that of its input
    INDEX = "index"  # none: integers of their own, such as the place of the largest value
    FUSED = "fused"  # none: the layer becomes part of the one before it
    DECOMPOSED = "decomposed"  # none: it becomes several layers (`kerasq.prepare.decompose`)
    FLOAT = "float"  # none: it stays float


class Fits(Protocol):
    """Whether a call of a layer has an integer form."""

    def __call__(self, layer: Any, /, *args: Any, **kwargs: Any) -> bool | str:
        """Of the layer and the arguments of the call: True, or False, or why it has none."""


class Options(Protocol):
    """The options of an operator, from the layer that becomes it."""

    def __call__(self, layer: Any, /) -> tuple[str, dict[str, Any]] | None:
        """The class of the options in the flatbuffer schema, and their values; None for none."""


class Derive(Protocol):
    """The grid of a layer's output, from that of its input and the target."""

    def __call__(self, layer: Any, grid: Grid, target: Target, /) -> Grid:
        """Of tensors, as the input's is."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """How one kind of layer is quantized.

    Attributes:
        operators: the LiteRT operators that it becomes, in order; none where it is fused or leaves
            nothing behind.
        output: the grid of its output.
        kernel: attribute of the weight that is quantized per channel, or None.
        bias: attribute of the bias, None where there is none.
        channels: the number of trailing axes of `kernel` that make up the channels.
        transposed: whether the last axis of `kernel` is that of the inputs, the one before it that
            of the channels.
        grids: the grids of `Output.FIXED`, by bits.
        derive: the grid of `Output.DERIVED`.
        options: for an operator that the export makes itself, because the converter does not.
        tabled: whether it may be a lookup table, GATHER, where a target has no kernel for a
            function of each value alone, or one that rounds as the device's C library does.
        fits: where it says no of a call, the layer stays float. None: of calls that have more than
            their tensors, such as a mask (`kerasq.fits.reads_tensors_alone`).
        reads_mask: whether it computes something else under a mask, which Keras passes beside the
            tensors and a file does not have.
        channels_last: whether its channels must be last, as LiteRT's kernels have them.
        required: what else attributes of the layer must be one of, where LiteRT has no integer
            kernel for the rest.
        note: a condition that the table in the documentation states.
    """

    operators: tuple[str, ...]
    output: Output
    kernel: str | None = None
    bias: str = "bias"
    channels: int = 1
    transposed: bool = False
    grids: Mapping[int, Grid] = dataclasses.field(default_factory=dict)
    derive: Derive | None = None
    options: Options | None = None
    tabled: bool = False
    fits: Fits | None = None
    reads_mask: bool = False
    channels_last: bool = False
    required: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def op(self) -> str:
        """The operators in words, for tables and errors: "-" where there are none."""
        return ", ".join(self.operators) or "-"

    @property
    def operator(self) -> str:
        """The operator that gives the output, the last one; "-" where there is none."""
        return self.operators[-1] if self.operators else "-"

    def operator_at(self, bits: int, target: Target) -> str:
        """`operator` for codes of so many bits on a target."""
        return "GATHER" if self.tabled and not target.has(self.operator, bits) else self.operator

    def flatten(self, kernel: Any) -> Any:
        """A kernel with the channels in its last axis."""
        if self.transposed:
            return _transpose(kernel)
        if self.channels == 1:
            return kernel
        head = kernel.shape[: len(kernel.shape) - self.channels]
        return keras.ops.reshape(kernel, (*head, -1))

    def unflatten(self, kernel: Any, shape: Any) -> Any:
        """The kernel of `shape` that `flatten` was called on."""
        if self.transposed:
            return _transpose(kernel)
        return kernel if self.channels == 1 else keras.ops.reshape(kernel, shape)

    def unmet(self, layer: keras.Layer) -> str | None:
        """The first condition that a layer does not meet, or None."""
        data_format = {"data_format": ("channels_last",)} if self.channels_last else {}
        for key, legal in {**data_format, **self.required}.items():
            value = getattr(layer, key)
            if value not in legal:
                # One row may serve layers of one dimension and of two.
                alike = [other for other in legal if np.shape(other) == np.shape(value)]
                return f"needs {key}={(alike or legal)[0]!r}, has {key}={value!r}"
        return None


def _transpose(kernel: Any) -> Any:
    """A kernel with its last two axes exchanged."""
    *head, first, last = range(len(kernel.shape))
    return keras.ops.transpose(kernel, (*head, last, first))
