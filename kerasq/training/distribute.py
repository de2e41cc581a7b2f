"""Training over several workers with Keras's own `fit`."""

from typing import Any

import tensorflow as tf


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes files: the only one does, and of several workers the chief."""
    return getattr(strategy, "is_chief", True)


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
        What each worker runs::

            strategy = kerasq.MultiWorkerStrategy()  # reads TF_CONFIG
            with strategy.scope():
                q = kerasq.quantize_model(keras.models.load_model("float.keras"))
                q.compile("sgd", "sparse_categorical_crossentropy")
            q.fit(batches)  # the same global batches on every worker
            if strategy.is_chief:
                kerasq.export_tflite(q, "model.tflite")
            strategy.wait()  # until the chief has written it

    Attributes:
        is_chief: whether this worker is the one that writes files and does what is not trained:
            the cluster's chief, or its first worker where it has none.
    """

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes files, and does what is not trained."""
        resolver = self.cluster_resolver
        has_chief = "chief" in resolver.cluster_spec().jobs
        return (resolver.task_type, resolver.task_id) == (("chief" if has_chief else "worker"), 0)

    def wait(self) -> None:
        """Returns when all workers have called this.

        Raises:
            tf.errors.UnavailableError: where one of them has died.
        """
        # TensorFlow has no public barrier: a sum over all workers is one.
        here = self.run(lambda: tf.constant(1.0))
        self.reduce("SUM", here)

    def reduce(self, reduce_op: Any, value: Any, axis: int | None = None) -> Any:
        """As in TensorFlow, of each part of a structure."""

        def one(part: Any) -> tf.Tensor:
            # Keras takes the mean over axis 0 of everything; metrics, which are scalars, have none.
            is_scalar = self.experimental_local_results(part)[0].shape.rank == 0
            return super(MultiWorkerStrategy, self).reduce(
                reduce_op, part, axis=None if is_scalar else axis
            )

        return tf.nest.map_structure(one, value)
