"""What of a kernel stays while it trains: weights that are 0, and clusters of equal weights."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kerasq import fake_quant
from kerasq.quantizers.uniform import Uniform, weight_range

# As many values as int8 codes tell apart.
MOST_CLUSTERS = 255


@keras.saving.register_keras_serializable("kerasq")
class Structure(keras.layers.Layer):
    """Keeps zeros of a kernel at 0, and weights that are equal alike.

    `kept` is what the forward pass sees: `w * mask`, so that weights that are 0 get no gradient,
    nor count in a norm that gradients are clipped by. Weights of a cluster all get the mean of
    their gradients, the gradient descent among kernels with these clusters:

        dL/dw_i = mean of g_j, j in the cluster of i

    Han et al. 2016 (arXiv 1510.00149, equation 3) take the sum, the gradient of the one value that
    a cluster stores: the same direction, but as many times as long as the cluster is large, so that
    rates that suit the kernel would not suit it.

    `restored` is for the stored weights, behind each update: momentum that a weight had before it
    was pruned would move it on, as would averages and decoupled decay; and optimizers that do not
    treat each weight alone, such as Adafactor and Muon, would tell members of a cluster apart.

    Args:
        zeros: whether weights that are 0 stay 0.
        clusters: how many values the kernel has, whose members stay equal; 0: they are not kept.
        **kwargs: see `keras.layers.Layer`.

    Attributes:
        mask: 1.0 where a weight is trained, 0.0 where it is 0, of the kernel's shape; where zeros
            are kept.
        ids: the number of each weight's cluster, of the kernel's shape; where clusters are kept.
    """

    def __init__(self, zeros: bool = True, clusters: int = 0, **kwargs: Any) -> None:
        super().__init__(**{"name": "structure", "dtype": "float32", "trainable": False, **kwargs})
        self.zeros = zeros
        self.clusters = clusters

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "zeros": self.zeros, "clusters": self.clusters}

    def start(self, kernel: Callable[[], tf.Tensor]) -> None:
        """Creates the variables from `kernel()`, `(..., channels)`, when they are initialized."""
        # Floats, since workers cannot send each other all kinds of integers (TensorFlow 2.21).
        if self.zeros:
            self.mask = self._variable("mask", kernel, lambda w: tf.cast(w != 0.0, tf.float32))
        if self.clusters:
            self.ids = self._variable("ids", kernel, self._first_ids)
        self.built = True

    def _variable(
        self, name: str, kernel: Callable[[], tf.Tensor], first: Callable[[tf.Tensor], Any]
    ) -> keras.Variable:
        return self.add_weight(
            name=name,
            shape=kernel().shape,
            initializer=lambda *_, **__: first(kernel()),
            trainable=False,
            autocast=False,
        )

    def _first_ids(self, kernel: tf.Tensor) -> tf.Tensor:
        """The clusters of a kernel; none of one that is yet to be loaded."""
        found = clusters_of(kernel.numpy()) if tf.executing_eagerly() else None
        if found is None or found.max() >= self.clusters:
            return tf.zeros(kernel.shape)
        return tf.constant(found, tf.float32)

    def kept(self, kernel: tf.Tensor) -> tf.Tensor:
        """The kernel as it counts, same shape, with the gradients that the class states."""
        if self.clusters:
            # Its members are equal: what they share is the gradient.
            kernel = fake_quant.straight_through(self._means(kernel), kernel)
        return kernel * self.mask.value if self.zeros else kernel

    def restored(self, kernel: tf.Tensor) -> tf.Tensor:
        """The kernel with its zeros and clusters as they were before an update; same shape."""
        if self.clusters:
            kernel = self._means(kernel)
        return kernel * self.mask.value if self.zeros else kernel

    def _means(self, kernel: tf.Tensor) -> tf.Tensor:
        """Each weight as the mean of its cluster's; those that are masked count for none."""
        ids = tf.cast(self.ids.value, tf.int32)
        # In float64, in which the mean of equal weights is these, to the last bit.
        counted = tf.cast(self.mask.value if self.zeros else tf.ones_like(kernel), tf.float64)
        sums, counts = (
            tf.math.unsorted_segment_sum(x, ids, self.clusters)
            for x in (tf.cast(kernel, tf.float64) * counted, counted)
        )
        return tf.cast(tf.gather(tf.math.divide_no_nan(sums, counts), ids), kernel.dtype)


class Kept(keras.constraints.Constraint):
    """Puts what stays of a kernel back after each update.

    Args:
        structure: started on the kernel.
        own: the user's own constraint, which comes first, or None.
    """

    def __init__(self, structure: Structure, own: Any) -> None:
        self._structure, self._own = structure, own

    def __call__(self, value: Any) -> Any:
        """The kernel; same shape."""
        return self._structure.restored(value if self._own is None else self._own(value))


class Clustered(Uniform):
    """Uniform weights of a clustered kernel: all channels have one range, which follows them.

    With a range for each channel a value would have another code in each, and the file as many
    bytes as before. So it has as many codes as the kernel has clusters. (Where BatchNormalization
    has a negative gain, LiteRT's positive scales turn the signs of a channel's codes.)
    """

    def range(self, kernel: tf.Tensor) -> tf.Tensor:
        """The range of all weights, for each channel, `(channels,)`."""
        return tf.broadcast_to(weight_range(kernel[..., None], self.bits), kernel.shape[-1:])


def clusters_of(kernel: np.ndarray) -> np.ndarray | None:
    """The number of each weight's cluster, same shape; None for a kernel that is not clustered.

    Clustered is a kernel of at most 255 values beside 0, some of them equal, or one whose channels
    are clustered each for itself, as such are that BatchNormalization was folded into.

    Args:
        kernel: channels in its last axis.
    """
    weights = np.count_nonzero(kernel)
    values, ids = np.unique(kernel, return_inverse=True)
    count = np.count_nonzero(values)
    if count <= MOST_CLUSTERS:
        return ids.reshape(kernel.shape) if count < weights else None
    # By channel and value, as one number of each.
    channels = np.arange(kernel.shape[-1])
    pairs = ids.reshape(kernel.shape) + channels * len(values)
    known, ids = np.unique(pairs, return_inverse=True)
    known = known[values[known % len(values)] != 0]
    by_channel = np.bincount(known // len(values))
    if by_channel.max() > MOST_CLUSTERS or len(known) > weights / 2:
        return None
    return ids.reshape(kernel.shape)
