"""The processes and devices that train one model together."""

import contextlib
import os
from typing import Any

import tensorflow as tf

import kerasq

STRATEGIES = ("none", "mirrored", "multi_worker")


class Team:
    """A `tf.distribute` strategy, and what the process that runs this does in it.

    Args:
        name: "none", "mirrored" (all GPUs of this machine; or logical CPUs) or "multi_worker" (the
            cluster that the environment variable TF_CONFIG describes).
        replicas: logical CPU devices that "mirrored" trains on, if more than one.

    Attributes:
        is_chief: whether this process writes files and does what is not trained.
    """

    def __init__(self, name: str = "none", replicas: int = 1) -> None:
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
        if replicas > 1:
            cpu = tf.config.list_physical_devices("CPU")[0]
            parts = [tf.config.LogicalDeviceConfiguration()] * replicas
            tf.config.set_logical_device_configuration(cpu, parts)
        self.strategy: Any = None
        self.is_chief = True
        if name == "mirrored":
            devices = [f"CPU:{i}" for i in range(replicas)] if replicas > 1 else None
            self.strategy = tf.distribute.MirroredStrategy(devices)
        elif name == "multi_worker":
            self.strategy = kerasq.MultiWorkerStrategy()
            resolver = self.strategy.cluster_resolver
            task = (resolver.task_type, resolver.task_id)
            has_chief = "chief" in resolver.cluster_spec().jobs
            self.is_chief = task == (("chief", 0) if has_chief else ("worker", 0))

    @property
    def replicas(self) -> int:
        """How many share a batch."""
        return 1 if self.strategy is None else self.strategy.num_replicas_in_sync

    def scope(self) -> contextlib.AbstractContextManager:
        """Where models to be trained are made."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def wait(self) -> None:
        """Returns when all workers have called this; fails where one of them has died."""
        if isinstance(self.strategy, kerasq.MultiWorkerStrategy):
            here = self.strategy.run(lambda: tf.constant(1.0))
            self.strategy.reduce("SUM", here)

    def shared(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Batches of which each replica gets its part."""
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = (
            tf.data.experimental.AutoShardPolicy.DATA
        )
        return batches.with_options(options)
