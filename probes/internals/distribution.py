"""TensorFlow's distribution strategies: replicas, workers, and variables that no strategy mirrors."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import ResourceVariable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ONE_REPLICA",
    "Replicas",
    "in_first_replica",
    "is_distributed",
    "local_sum",
    "mean_loss",
    "plain_variable",
    "replica_here",
    "replicas_of",
    "shares",
    "whole_batch",
]


@dataclass(frozen=True)
class Replicas:
    """The replicas that a strategy trains, and those of them that this process runs.

    Attributes:
        strategy: The strategy's class name ("MirroredStrategy").
        total: Number of replicas, over all workers.
        devices: Devices of this process' replicas; empty where a replica cannot be told from another (a TPU).
        first: Number of this process' first replica among all.
        worker: This process' number among the workers.
        workers: Number of workers.
    """

    strategy: str
    total: int = 1
    devices: tuple[str, ...] = ("",)
    first: int = 0
    worker: int = 0
    workers: int = 1

    @property
    def are_several(self) -> bool:
        """Whether there is more than one replica, here or elsewhere."""
        return self.total > 1

    @property
    def batch_is_here(self) -> bool:
        """Whether this process has the whole batch of a step, and can tell which replica is given what of it."""
        return self.workers == 1 and bool(self.devices)


#: Classes that are public by another name.
_PUBLIC_NAMES = {"CollectiveAllReduceStrategy": "MultiWorkerMirroredStrategy"}


#: Training without a strategy.
ONE_REPLICA = Replicas("Strategy")


def replicas_of(strategy: Any) -> Replicas:
    """Return the replicas of a `tf.distribute.Strategy`; of TensorFlow's default strategy, the one."""
    name, total, extended = type(strategy).__name__, int(strategy.num_replicas_in_sync), strategy.extended
    name = _PUBLIC_NAMES.get(name, name)
    if total <= 1:
        return Replicas(name)
    if not hasattr(extended, "_get_replica_id_in_sync_group"):  # the strategies that run a thread for each replica
        return Replicas(name, total, devices=())
    worker, workers = _place_in_cluster(strategy)
    first = extended._get_replica_id_in_sync_group(0)
    return Replicas(name, total, tuple(map(str, extended.worker_devices)), int(first), worker, workers)


def _place_in_cluster(strategy: Any) -> tuple[int, int]:
    """Return this worker's number and how many there are; a chief, where the cluster has one, comes first."""
    resolver = getattr(strategy, "cluster_resolver", None)
    tasks = {} if resolver is None or resolver.cluster_spec() is None else resolver.cluster_spec().as_dict()
    counts = {job: len(tasks[job]) for job in ("chief", "worker") if job in tasks}
    if sum(counts.values()) <= 1 or resolver is None:
        return 0, 1
    before = counts.get("chief", 0) if resolver.task_type == "worker" else 0
    return before + int(resolver.task_id), sum(counts.values())


def replica_here(first: int) -> int | None:
    """Return which of this process' replicas the code at hand runs for; None outside of them (cross-replica context).

    Args:
        first: Number of this process' first replica among all.
    """
    context = tf.distribute.get_replica_context() if tf.distribute.has_strategy() else None
    number = None if context is None else tf.get_static_value(context._replica_id_in_sync_group)
    return None if number is None else int(number) - first


@contextmanager
def in_first_replica(strategy: Any) -> Iterator[None]:
    """Let code run as the first replica of a strategy, alone, where there are several: it scales the loss as that does.

    What the replica would put together with the others (the mean of a moving average) it has for itself.
    """
    with ExitStack() as stack:
        if int(strategy.num_replicas_in_sync) > 1:
            stack.enter_context(tf.distribute.ReplicaContext(strategy, 0))
            stack.enter_context(tf.device(strategy.extended.worker_devices[0]))
        yield


def is_distributed(leaf: Any) -> bool:
    """Tell whether a leaf of a batch holds a part for each replica."""
    return isinstance(leaf, tf.distribute.DistributedValues)


def shares(batch: Any) -> list[Any]:
    """Return what each replica is given of a batch, in their order; the batch itself where it is not distributed."""
    counts = [len(leaf.values) for leaf in tf.nest.flatten(batch) if is_distributed(leaf)]
    return [
        tf.nest.map_structure(lambda leaf, n=number: leaf.values[n] if is_distributed(leaf) else leaf, batch)
        for number in range(max(counts, default=1))
    ]


def whole_batch(batch: Any) -> Any:
    """Return a batch as one device would be given it: the parts of all replicas one after the other."""

    def joined(leaf: Any) -> Any:
        return tf.concat(leaf.values, 0) if is_distributed(leaf) else leaf

    return tf.nest.map_structure(joined, batch)


def plain_variable(value: Any, name: str, device: str | None = None, shape: Any = None) -> Any:
    """Return a variable that no strategy mirrors, made outside of any function that is being traced.

    A strategy's own variable would be made on every worker together: one that samples alone would wait for ever.
    """
    with tf.init_scope(), tf.device(device):
        return ResourceVariable(value, trainable=False, name=name, shape=shape)


def mean_loss(loss: Any) -> float:
    """Return the loss that a custom loop tells: a number, or one for each replica, whose mean is taken."""
    if isinstance(loss, tf.distribute.DistributedValues):
        return sum(float(component) for component in loss.values) / len(loss.values)
    return float(loss)


def local_sum(variable: Any) -> Any:
    """Return the value of a metric's Keras variable, as a NumPy array: the sum over this process' replicas.

    Reading such a variable as a whole would sum over all workers, which waits until each of them asks for it.
    """
    value = variable.value
    if isinstance(value, tf.distribute.DistributedValues):
        return sum(component.numpy() for component in value.values)
    return value.numpy()
