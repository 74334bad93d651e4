"""The parts of recording several replicas, one by one; `tests/test_replicas.py` trains with them."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.distribute.values import PerReplica

from precscope.options import Options
from precscope.probes.batch_handout import BatchHandout
from precscope.probes.internals.distribution import (
    Replicas,
    local_sum,
    mean_loss,
    replica_here,
    replicas_of,
    shares,
    whole_batch,
)
from precscope.probes.reading import Reading, TensorKey, TracedTensor
from precscope.probes.replica_notices import replica_notices
from precscope.probes.replicas import SharedTaps, merged_reading
from tests.core_fixtures import arrays_of

if TYPE_CHECKING:
    from collections.abc import Iterator

TWO = Replicas("MirroredStrategy", 2, ("CPU:0", "CPU:1"))


# Taps that replicas share


def test_taps_are_put_on_by_the_first_and_taken_off_by_the_last():
    events: list[str] = []

    @contextmanager
    def install() -> Iterator[None]:
        events.append("on")
        yield
        events.append("off")

    taps = SharedTaps(install)
    first, second = ExitStack(), ExitStack()
    first.enter_context(taps.installed())
    second.enter_context(taps.installed())
    first.close()  # replica 0 ends while replica 1 still needs them
    assert events == ["on"]
    second.close()
    assert events == ["on", "off"]
    with taps.installed():
        assert events == ["on", "off", "on"]


def test_taps_that_cannot_be_put_on_leave_nothing_behind():
    events: list[str] = []

    @contextmanager
    def good() -> Iterator[None]:
        try:
            yield
        finally:
            events.append("off")

    @contextmanager
    def bad() -> Iterator[None]:
        raise RuntimeError("no tap")
        yield

    taps = SharedTaps(good, bad)
    for _ in range(2):  # the second try is not taken for a second replica
        with pytest.raises(RuntimeError, match="no tap"), taps.installed():
            pass
    assert events == ["off", "off"]


# Readings


def reading(value: float, loss: float | None, kinds: tuple[Any, ...] = ("activation",)) -> Reading:
    scalars, histograms = arrays_of(*[np.full(4, value, np.float16)] * len(kinds))
    tensors = tuple(TracedTensor(TensorKey("dense", kind, "0"), "float16", (None,)) for kind in kinds)
    return Reading(tensors, scalars, histograms, np.zeros(len(kinds), np.int64), loss, None, None, None)


def test_the_reading_of_all_replicas_holds_each_ones():
    """Shares of the loss: 1.5 / 3 and 3 / 3 of three replicas, of which the third is on another worker."""
    merged = merged_reading({4: reading(1, 0.5), 5: reading(-8, 1.0)}, total=3)
    assert (merged.scalars["count"][0], merged.scalars["min"][0], merged.scalars["max"][0]) == (8, -8, 1)
    assert merged.histograms.sum() == 8
    assert [(item.replica, item.loss) for item in merged.replicas] == [(4, 1.5), (5, 3.0)]
    assert merged.loss == 2.25


def test_replicas_whose_tensors_differ_are_put_together_by_name():
    merged = merged_reading({0: reading(1, None, ("gradient", "activation")), 1: reading(2, None)}, total=2)
    assert [tensor.key.kind for tensor in merged.tensors] == ["gradient", "activation"]
    assert merged.scalars["count"].tolist() == [4, 8]
    assert merged.replicas[1].scalars["count"].tolist() == [0, 4]
    assert merged.loss is None


# Who runs what


class Cluster:
    """What a strategy says of a cluster of one chief and two workers."""

    def __init__(self, task_type: str, task_id: int) -> None:
        jobs = {"chief": ["a"], "worker": ["b", "c"], "ps": ["d"]}
        self.cluster_resolver = SimpleNamespace(
            task_type=task_type, task_id=task_id, cluster_spec=lambda: SimpleNamespace(as_dict=lambda: jobs)
        )
        self.num_replicas_in_sync = 6
        place = task_id + (task_type == "worker")
        self.extended = SimpleNamespace(
            worker_devices=("/GPU:0", "/GPU:1"), _get_replica_id_in_sync_group=lambda replica: 2 * place + replica
        )


@pytest.mark.parametrize(
    ("task", "worker", "first"), [(("chief", 0), 0, 0), (("worker", 0), 1, 2), (("worker", 1), 2, 4)]
)
def test_the_chief_is_worker_0(task: tuple[str, int], worker: int, first: int):
    replicas = replicas_of(Cluster(*task))
    assert (replicas.worker, replicas.workers, replicas.first, replicas.total) == (worker, 3, first, 6)
    assert replicas.devices == ("/GPU:0", "/GPU:1")


def test_without_a_strategy_there_is_one_replica():
    replicas = replicas_of(tf.distribute.get_strategy())
    assert not replicas.are_several
    assert replica_here(0) is None


def test_a_metric_and_a_loss_without_a_strategy():
    assert local_sum(keras.Variable(4.0)) == 4.0
    assert mean_loss(tf.constant(2.5)) == 2.5


# What is said


def test_nothing_is_said_of_what_is_recorded_in_full():
    assert list(replica_notices(TWO, Options())) == []
    assert list(replica_notices(Replicas("Strategy"), Options(tripwire=True))) == []
    assert list(replica_notices(TWO, Options(tripwire=True, keep_batches_mib=5, reference=True))) == []


def test_what_needs_the_whole_batch_is_told_where_no_process_has_it():
    workers = Replicas("MultiWorkerMirroredStrategy", 2, ("CPU:0",), workers=2)
    ((level, message),) = replica_notices(workers, Options(tripwire=True, keep_batches_mib=5))
    assert level == "warning"
    assert message.startswith(
        "tripwire, keep_batches_mib: not with 2 workers. A batch is run again, or kept, where one"
    )


def test_a_distributed_batch_is_taken_apart_and_joined():
    parts = PerReplica((tf.constant([[1.0], [2.0]]), tf.constant([[3.0]])))
    batch = ((parts, None), {"scale": tf.constant(2.0)})
    first, second = shares(batch)
    assert first[0][0].numpy().tolist() == [[1.0], [2.0]]
    assert (second[0][0].numpy().tolist(), second[0][1], float(second[1]["scale"])) == ([[3.0]], None, 2.0)
    assert whole_batch(batch)[0][0].numpy().tolist() == [[1.0], [2.0], [3.0]]
    assert shares(first) == [first]
    handout = BatchHandout()
    handout.put(lambda: None, batch[0], batch[1])
    assert handout.read().args[0].shape == (3, 1)
    assert handout.read_share().args[0].shape == (2, 1)


def test_a_strategy_that_cannot_be_recorded_is_told():
    ((_, message),) = replica_notices(Replicas("TPUStrategy", 8, devices=()), Options())
    assert message.startswith("8 replicas train under TPUStrategy; replicas can be recorded under MirroredStrategy")


def test_keras_own_distribution_is_told_to_have_no_effect(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keras.distribution, "distribution", lambda: keras.distribution.DataParallel())
    ((_, message),) = replica_notices(Replicas("Strategy"), Options())
    assert message.startswith("keras.distribution.DataParallel has no effect on TensorFlow")
    assert "MirroredStrategy" in message
