"""Trainings on several devices, in processes of their own: two logical CPU devices, and two workers on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest

from precscope.advice.evidence import Evidence
from precscope.advice.replica_rules import lone_overflow
from precscope.probes.replay_kept import replay_kept
from precscope.reader import Run, open_run
from tests.distributed_loop import BATCH, data

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

STEPS = 8
_MOST_S = 600
#: TensorFlow's coordination service was seen to lose sight of a worker on a machine with two cores, and then ends both
#: processes. That says nothing about what they compute: they begin again, three times in all.
_LOST, _TRIES = "stopped sending heartbeats", 3


def finished(processes: Sequence[subprocess.Popen[str]]) -> list[Any]:
    """Return what each process printed last, as JSON; none outlives the test."""
    return _last_lines(processes, _outputs(processes))


def _last_lines(processes: Sequence[subprocess.Popen[str]], outputs: Sequence[tuple[str, str]]) -> list[Any]:
    for process in processes:
        assert process.returncode == 0, "\n\n".join(errors[-3000:] for _, errors in outputs)
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


def _outputs(processes: Sequence[subprocess.Popen[str]]) -> list[tuple[str, str]]:
    """Return what each process printed, and its errors."""
    try:
        return [process.communicate(timeout=_MOST_S) for process in processes]
    finally:
        for process in processes:
            process.kill()


def start(repository: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=repository, env=environment, stdout=pipe, stderr=pipe, text=True)


def column(run: Run, layer: str, kind: Any, name: str = "0") -> int:
    return next(tensor.index for tensor in run.find(layer, kind) if tensor.name == name)


# MirroredStrategy


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> tuple[Path, dict[str, Any], list[str]]:
    folder = tmp_path_factory.mktemp("mirrored")
    (told,) = finished([start(repository, "tests.replica_training", str(folder))])
    return folder, told["results"], told["warnings"]


def test_a_session_whose_samples_never_come_due_changes_no_bit_under_a_strategy(mirrored):
    _, results, warnings = mirrored
    assert results["never due"] == results["plain"]
    assert [text.split(":")[1].strip() for text in warnings] == [
        "no reference step can be taken",  # of the custom loop, nor its tripwire
        "nothing was recorded",
        "nothing was recorded",
        "tripwire",
    ]


def test_sampled_steps_train_on(mirrored):
    """Both trainings end where a tap's rounding may lead: the last loss agrees to a few float16 epsilon."""
    folder, results, _ = mirrored
    plain, sampled = (json.loads(results[name][0]) for name in ("plain", "sampled"))
    np.testing.assert_allclose(sampled, plain, atol=2.0**-8)
    assert [sample.step for sample in open_run(folder / "sampled").samples] == [1, 3, 6, 9, 12]


def test_every_replica_is_recorded(mirrored):
    """Four examples, two for each replica: all numbers by hand, for x = [[1, 2], [3, 4]] and [[-5, 6], [7, 80]]."""
    run = open_run(mirrored[0] / "known")
    assert [(item.number, item.worker) for item in run.replicas] == [(0, 0), (1, 0)]
    assert [item.device[-5:] for item in run.replicas] == ["CPU:0", "CPU:1"]
    assert (run.record.model["strategy"], run.record.model["replicas"]) == ("MirroredStrategy", 2)
    outputs = run.statistics(0, column(run, "sum", "activation"))  # 3, 7 and 1, 87
    assert (outputs.count, outputs.min, outputs.max, outputs.mean) == (4, 1.0, 87.0, 24.5)
    first, second = (item.scalars[column(run, "sum", "activation")] for item in run.replica_samples(0))
    assert (first["count"], first["min"], first["max"]) == (2, 3, 7)
    assert (second["count"], second["min"], second["max"]) == (2, 1, 87)
    # d mean(y^2)/dw over both halves; each replica holds its share, half of its own mean: sum(y x) / 2.
    first, second = (item.scalars[column(run, "sum", "weight_gradient", "kernel")] for item in run.replica_samples(0))
    assert (first["min"], first["max"]) == ((3 * 1 + 7 * 3) / 2, (3 * 2 + 7 * 4) / 2)
    assert (second["min"], second["max"]) == ((1 * -5 + 87 * 7) / 2, (1 * 6 + 87 * 80) / 2)


def test_the_loss_is_each_replicas_own_and_their_mean(mirrored):
    run = open_run(mirrored[0] / "known")
    assert [item.loss for item in run.replica_samples(0)] == [(9 + 49) / 2, (1 + 87**2) / 2]
    assert run.samples[0].loss == (9 + 49 + 1 + 87**2) / 4


def test_a_replica_that_alone_overflows_is_named(mirrored):
    """And what Keras makes of it: it asks its first replica alone, applies the update, and the weights are lost."""
    folder, results, _ = mirrored
    run = open_run(folder / "overflow")
    assert not results["overflow"]["finite"]
    assert run.samples[0].applied is True
    place = column(run, "hidden", "activation")
    bad = [
        item.scalars[["positive_infinities", "negative_infinities", "nans"]][place] for item in run.replica_samples(0)
    ]
    assert [sum(counts.tolist()) for counts in bad] == [0, 64]
    (finding,) = lone_overflow(Evidence(run))
    assert (finding.layer, finding.severity) == ("hidden", "error")
    assert "only replica 1 (worker 0) of 2 replicas held infinities or NaN, first in the output of 'hidden'" in (
        finding.sentence
    )
    assert list(lone_overflow(Evidence(open_run(folder / "sampled")))) == []


def test_batches_are_kept_as_one_device_would_be_given_them(mirrored):
    """Beside reference steps and the tripwire; no bit of the training changes."""
    folder, results, _ = mirrored
    assert results["kept"]["trained"] == results["sampled"]
    x, y = data(STEPS)
    kept = open_run(folder / "kept").kept_batches
    assert [batch.step for batch in kept] == [1, 3, 6, 9, 12]
    for batch in kept:
        rows = slice(BATCH * (batch.step % STEPS), BATCH * (batch.step % STEPS + 1))
        kept_x, kept_y = batch.load()
        np.testing.assert_array_equal(kept_x, x[rows])
        np.testing.assert_array_equal(np.ravel(kept_y), y[rows])
        weights = {name.rpartition("hidden/")[2]: value for name, value in batch.load("weights").items()}
        assert weights["kernel"].shape == (6, 8)
    kept_x, kept_y = open_run(folder / "loop").kept_batches[1].load()
    np.testing.assert_array_equal(kept_x, x[3 * BATCH : 4 * BATCH])


def test_a_reference_step_is_that_of_the_first_replica(mirrored):
    folder, results, _ = mirrored
    run = open_run(folder / "kept")
    assert [(step.step, step.examples, step.batch) for step in run.reference_steps] == [(1, 8, 8), (12, 8, 8)]
    notices = results["kept"]["notices"]
    assert notices == [
        "reference steps run on what the first of 2 replicas is given of the batch, as that replica alone."
    ]
    # Taken after the update: near the loss that the replica had before it, as no other scale of it is.
    for step, sample in zip(run.reference_steps, (0, 4), strict=True):
        (first, _) = run.replica_samples(sample)
        assert step.loss_policy == pytest.approx(first.loss, rel=0.1)
        assert step.loss_reference == pytest.approx(step.loss_policy, rel=0.01)
    assert {record.layer for record in run.reference} == {"hidden", "norm", "head"}
    assert "as that replica alone" not in str(results["loop"])
    words = [notice.message for notice in open_run(folder / "loop").notices]
    assert any(
        message.startswith("no reference step can be taken: the train step of a custom loop") for message in words
    )


def test_the_tripwire_names_the_replica_and_keeps_the_batch_of_all(mirrored):
    folder, _, _ = mirrored
    run = open_run(folder / "trip")
    (origin,) = run.origins
    assert (origin.step, origin.cause, origin.layer, origin.noticed_by) == (2, "layer", "hidden", "tripwire")
    assert origin.note == "run again replica by replica, it was so on replica 1 alone, of 2 (numbered from 0)"
    (batch,) = run.kept_batches
    kept_x, _ = batch.load()
    x, _ = data(STEPS)
    np.testing.assert_array_equal(kept_x[: BATCH // 2], x[2 * BATCH : 2 * BATCH + BATCH // 2])
    np.testing.assert_array_equal(kept_x[BATCH // 2 :], x[2 * BATCH + BATCH // 2 : 3 * BATCH] * np.float32(1e30))
    assert all(np.isfinite(value).all() for value in batch.load("weights").values())
    before = keras.config.dtype_policy()
    try:
        replayed = replay_kept(run.path, 2, "tests.distributed_loop:on_one_device")
    finally:
        keras.config.set_dtype_policy(before)
    assert replayed.origin is not None
    assert (replayed.origin.layer, replayed.origin.direction) == ("hidden", "forward")


def test_a_loop_of_ones_own_under_a_strategy(mirrored):
    folder, results, _ = mirrored
    plain, profiled = (json.loads(results[name][0]) for name in ("loop plain", "loop"))
    np.testing.assert_allclose(profiled, plain, atol=2.0**-8)
    run = open_run(folder / "loop")
    assert [sample.step for sample in run.samples] == [1, 3, 6]
    assert {tensor.kind for tensor in run.tensors} == {"activation", "gradient", "weight", "weight_gradient"}
    assert [sample.loss for sample in run.samples] == pytest.approx([profiled[1], profiled[3], profiled[6]], rel=1e-6)
    first, second = run.replica_samples(0)
    assert first.loss != second.loss
    place = column(run, "hidden", "activation")
    assert run.scalars["count"][0, place] == 2 * first.scalars["count"][place] > 0
    assert run.loss_scales[-1].steps_applied == 8


# MultiWorkerMirroredStrategy


def free_ports(number: int) -> list[str]:
    """Return ports of this machine that were free a moment ago."""
    sockets = [socket.socket() for _ in range(number)]
    try:
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [str(item.getsockname()[1]) for item in sockets]
    finally:
        for item in sockets:
            item.close()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> tuple[Path, list[dict[str, Any]]]:
    for attempt in range(_TRIES):
        folder, ports = tmp_path_factory.mktemp("workers"), ",".join(free_ports(2))
        commands = [("tests.worker_training", str(number), ports, str(folder)) for number in range(2)]
        processes = [start(repository, *command) for command in commands]
        outputs = _outputs(processes)
        if attempt + 1 == _TRIES or not any(_LOST in errors for _, errors in outputs):
            break
    return folder / "run", _last_lines(processes, outputs)


def test_workers_train_as_without_precscope_though_each_samples_at_steps_of_its_own(workers):
    _, results = workers
    for result in results:
        plain, profiled = (json.loads(result[name][0]) for name in ("plain", "profiled"))
        assert len(plain) == 12
        np.testing.assert_allclose(profiled, plain, atol=2.0**-8)
    # The workers agree to the bit where they did: each has moving averages of its own.
    same = {name: [a == b for a, b in zip(*(result[name] for result in results), strict=True)] for name in results[0]}
    assert same["profiled"] == same["plain"]
    assert same["plain"].count(False) == 2


def test_each_worker_writes_a_file_and_the_run_holds_both(workers):
    path, _ = workers
    assert {file.name for file in path.iterdir()} == {"run.yaml", "worker-0.sqlite", "worker-1.sqlite"}
    run = open_run(path)
    assert [(worker.number, worker.status, worker.samples) for worker in run.workers] == [
        (0, "finished", 3),
        (1, "finished", 4),
    ]
    assert [(item.number, item.worker) for item in run.replicas] == [(0, 0), (1, 1)]
    assert (run.record.model["strategy"], run.record.model["workers"]) == ("MultiWorkerMirroredStrategy", 2)
    assert run.notices == ()
    assert [sample.step for sample in run.samples] == [1, 3, 4, 6, 8, 9]
    place = column(run, "hidden", "activation")
    counts = run.scalars["count"][:, place].tolist()
    assert counts == [128, 64, 64, 64, 64, 64]  # step 1 by both: 16 examples of 8 units
    both = [item.scalars[place] for item in run.replica_samples(0)]
    assert run.scalars["max"][0, place] == max(item["max"] for item in both)
    assert run.scalars["min"][0, place] == min(item["min"] for item in both)
