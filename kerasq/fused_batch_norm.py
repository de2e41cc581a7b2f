"""BatchNormalization in training by TensorFlow's one op for it, FusedBatchNormV3."""

import keras
import numpy as np
import tensorflow as tf

# cuDNN takes no smaller one, and TensorFlow then raises it in silence.
LEAST_EPSILON = 1.001e-5
_EMPTY = np.zeros(0, np.float32)


def normalize(norm: keras.layers.BatchNormalization, x: tf.Tensor) -> tf.Tensor:
    """What `norm(x, training=True)` returns, and does to its moving statistics.

    Keras 3 normalizes by a dozen operators, each of which goes through the whole tensor; here it
    is one op forward and one backward. Layers that the op does not stand for are called as they
    are.

    Args:
        norm: a built BatchNormalization of the last axis.
        x: float32 values, `(..., channels)`.
    """
    if not _is_plain(norm):
        return norm(x, training=True)
    channels = x.shape[-1]
    # The op wants images; statistics are over all axes but the last anyway.
    image = x if x.shape.rank == 4 else tf.reshape(x, [-1, 1, 1, channels])
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=image,
        scale=norm.gamma.value if norm.scale else np.ones(channels, np.float32),
        offset=norm.beta.value if norm.center else np.zeros(channels, np.float32),
        # Nothing to average with: the moving statistics stay Keras's own.
        mean=_EMPTY,
        variance=_EMPTY,
        epsilon=norm.epsilon,
        exponential_avg_factor=1.0,
        is_training=True,
    )
    # It returns the sample's variance, over count - 1; Keras averages that over count.
    count = tf.cast(tf.size(image) // channels, tf.float32)
    variance *= (count - 1.0) / count
    for moving, now in ((norm.moving_mean, mean), (norm.moving_variance, variance)):
        moving.assign(moving.value * norm.momentum + now * (1.0 - norm.momentum))
    return y if image is x else tf.ensure_shape(tf.reshape(y, tf.shape(x)), x.shape)


def _is_plain(norm: keras.layers.BatchNormalization) -> bool:
    """Whether the op computes what the layer does, where that is trainable."""
    return (
        type(norm) is keras.layers.BatchNormalization
        and norm.trainable
        and not norm.synchronized
        # Keras 3.10 does not know it yet.
        and not getattr(norm, "renorm", False)
        and norm.epsilon >= LEAST_EPSILON
    )
