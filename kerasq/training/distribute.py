"""Training over several workers with Keras's own `fit`."""

from typing import Any

import tensorflow as tf


class MultiWorkerStrategy(tf.distribute.MultiWorkerMirroredStrategy):
    """`tf.distribute.MultiWorkerMirroredStrategy` that the `fit` of Keras 3 runs on.

    Keras 3.15 reduces whole batches and scalar metrics over workers, which TensorFlow's `reduce`
    refuses: "Attempt to convert a value (PerReplica...) to a Tensor"
    (https://github.com/keras-team/keras/issues/20585). Here `reduce` takes structures, and a scalar
    has no axis. Make it before anything else of TensorFlow runs, and model and optimizer in its
    `scope()`. Learned ranges get the gradients of all workers, ranges that follow the data the mean
    of what each worker saw, and a BatchNormalization that is kept the statistics of all batches
    together, so that all workers hold the same model.

    Example:
        strategy = kerasq.MultiWorkerStrategy()  # reads TF_CONFIG
        with strategy.scope():
            q = kerasq.quantize_model(keras.models.load_model("float.keras"))
            q.compile("sgd", "sparse_categorical_crossentropy")
        q.fit(batches)  # the same global batches on every worker
    """

    def reduce(self, reduce_op: Any, value: Any, axis: int | None = None) -> Any:
        """As in TensorFlow, of each part of a structure."""

        def one(part: Any) -> tf.Tensor:
            is_scalar = self.experimental_local_results(part)[0].shape.rank == 0
            return super(MultiWorkerStrategy, self).reduce(
                reduce_op, part, axis=None if is_scalar else axis
            )

        return tf.nest.map_structure(one, value)
