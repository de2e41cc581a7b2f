"""Each layer of a quantized model beside the float network that it holds."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import graph
from kerasq.calibration.calibrate import BATCH_SIZE
from kerasq.support.data import batch_spec, batches
from kerasq.support.shared import traced_if_often
from kerasq.support.sqnr import Noise
from kerasq.wrappers import QuantizeWrapper, infer, infer_float

# The most values of a layer that are kept of a batch: enough for a histogram of 30 bins.
KEPT = 2**14


@dataclasses.dataclass(frozen=True, kw_only=True)
class BesideFloat:
    """A layer on some samples.

    Attributes:
        sqnr: of its output beside that of the float network, in dB; infinite where they are equal,
            None where the float network's is 0 throughout.
        values: of the float network, which its range is to hold, at most `KEPT` a batch.
    """

    sqnr: float | None
    values: np.ndarray


def observer(model: keras.Model) -> Callable[[Any], dict[str, BesideFloat]]:
    """A function of data, as for `kerasq.calibrate`, that compares all layers with a grid.

    By layer name. Each side runs on its own values: the simulation, which computes as the integer
    kernels do, and the float network with the weights of today, before they are put on grids.

    Args:
        model: what `quantize_model` returned.
    """

    @traced_if_often(batch_spec(model.input))
    def both(x: Any) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        simulated, wanted = _outputs(model, x, infer), _outputs(model, x, infer_float)
        return {name: (_powers(y, simulated[name]), _some(y)) for name, y in wanted.items()}

    def observe(data: Any) -> dict[str, BesideFloat]:
        noises: dict[str, Noise] = {}
        values: dict[str, list[np.ndarray]] = {}
        for x in batches(model, data, BATCH_SIZE):
            for name, (powers, some) in both(x).items():
                noises.setdefault(name, Noise()).add_powers(*map(float, powers))
                values.setdefault(name, []).append(some.numpy())
        return {
            name: BesideFloat(sqnr=noise.sqnr, values=np.concatenate(values[name]))
            for name, noise in noises.items()
        }

    return observe


def _outputs(model: keras.Model, x: Any, call: Callable[..., Any]) -> dict[str, tf.Tensor]:
    """By name of a layer with a grid, its output where each call is computed by `call`."""
    found = {}

    def noted(node: graph.Node, *args: Any, **kwargs: Any) -> Any:
        y = call(node, *args, **kwargs)
        if isinstance(node.layer, QuantizeWrapper):
            found[node.layer.name] = y
        return y

    graph.run(model, x, noted)
    return found


def _powers(wanted: tf.Tensor, found: tf.Tensor) -> tf.Tensor:
    """The sums of squares of values, and of what is wrong with others."""
    return tf.stack([tf.reduce_sum(tf.square(wanted)), tf.reduce_sum(tf.square(found - wanted))])


def _some(x: tf.Tensor) -> tf.Tensor:
    """All of a tensor's values, or so many at random, the same in each call."""
    flat = tf.reshape(x, [-1])
    size = tf.size(flat)

    # Every second value, or fewer, would be those of some channels alone.
    def drawn() -> tf.Tensor:
        return tf.random.stateless_uniform([KEPT], [0, 0], maxval=size, dtype=tf.int32)

    return tf.gather(flat, tf.cond(size > KEPT, drawn, lambda: tf.range(size)))
