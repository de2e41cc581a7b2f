"""The processes and devices that train one model together."""

import os

import tensorflow as tf

import kerasq

STRATEGIES = ("none", "mirrored", "multi_worker")


def strategy(name: str = "none", replicas: int = 1) -> tf.distribute.Strategy:
    """The strategy by the value of its flag; for "none" TensorFlow's default one.

    Args:
        name: "none", "mirrored" (all GPUs of this machine; or logical CPUs) or "multi_worker" (the
            cluster that the environment variable TF_CONFIG describes).
        replicas: logical CPU devices that "mirrored" trains on, if more than one.
    """
    if name == "multi_worker" and "TF_CONFIG" not in os.environ:
        raise ValueError(
            "strategy=multi_worker needs the environment variable TF_CONFIG, which says who "
            "works with whom (https://www.tensorflow.org/guide/distributed_training). "
            "Received: none. Use --strategy=mirrored for one machine."
        )
    if replicas > 1 and name != "mirrored":
        raise ValueError(
            "`replicas` are those of strategy=mirrored. "
            f"Received: replicas={replicas}, strategy={name}. Add --strategy=mirrored."
        )
    if name == "multi_worker":
        return kerasq.MultiWorkerStrategy()
    if name == "none":
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(_logical_cpus(replicas) if replicas > 1 else None)


def _logical_cpus(count: int) -> list[str]:
    """Cuts the CPU into devices; only before TensorFlow has used it."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    parts = [tf.config.LogicalDeviceConfiguration()] * count
    tf.config.set_logical_device_configuration(cpu, parts)
    return [f"CPU:{i}" for i in range(count)]


def wait(of: tf.distribute.Strategy) -> None:
    """Returns when all workers have called this; fails where one of them has died."""
    if isinstance(of, kerasq.MultiWorkerStrategy):
        of.wait()


def shared(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Batches of which each worker takes its part: there are no files to share out."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return batches.with_options(options)
