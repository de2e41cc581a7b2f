"""What kernels look like: the two signatures that a target's table holds."""

from typing import Protocol

import keras
import tensorflow as tf

from kerasq.grid import Grid
from kerasq.kernels.accumulators import IntegerWeights


class Kernel(Protocol):
    """An operator without weights, on centred codes (`kerasq.kernels`)."""

    def __call__(
        self, layer: keras.Layer, codes: list, grids: list[Grid], out: Grid, /
    ) -> tf.Tensor:
        """The codes of the output.

        Args:
            layer: the Keras layer that became the operator.
            codes: centred codes of each input; real values where the operator reads floats.
            grids: the grid of each input; none where it reads floats.
            out: the grid of the output.
        """


class AccumulatorKernel(Protocol):
    """The end of an operator with weights: from its sums to the codes of the output."""

    def __call__(
        self, total: tf.Tensor, grid: Grid, weights: IntegerWeights, out: Grid, /
    ) -> tf.Tensor:
        """The codes of the output.

        Args:
            total: sums of codes times weights, plus the bias: integers in steps of
                `grid.scale * weights.grid.scale`, channels in the last axis.
            grid: the grid of the input.
            weights: kernel and bias.
            out: the grid of the output.
        """
