"""Long runs: what is bounded stays bounded, old samples are thinned out evenly and incidents last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from precscope.options import Options
from precscope.reader import open_run
from precscope.records import LossScaleRecord, StepTimeRecord
from precscope.replica_records import ReplicaRecord, ReplicaSample
from precscope.sampling import Sampler
from precscope.writer import RunWriter
from tests.core_fixtures import arrays_of, random_arrays, run_record, sample_record, tensor_record

if TYPE_CHECKING:
    from pathlib import Path

TENSORS = 20
MILLION = 1_000_000
DAY_NS = 24 * 3600 * 10**9


def begin(path: Path, most_bytes: int | None, tensors: int = TENSORS) -> RunWriter:
    writer = RunWriter.create(path, run_record(), most_bytes=most_bytes)
    writer.add_tensors([tensor_record(index, name=str(index)) for index in range(tensors)])
    return writer


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def test_a_million_steps_and_a_day_stay_bounded(tmp_path: Path):
    """A day of steps of 86 ms, with a look at the loss scale each half minute and a sample that costs a second."""
    tensors, most_bytes, step_ns, cost_ns = 8, 2**19, DAY_NS // MILLION, 10**9
    sampler, next_look = Sampler(Options()), 0
    writer = begin(tmp_path / "run", most_bytes, tensors)
    scalars, histograms = random_arrays(tensors, seed=1)
    bad = scalars.copy()
    bad["nans"][2] = 1
    written: list[int] = []
    incidents: list[int] = []
    largest = 0
    while (step := min(next_look, MILLION if sampler.next_step is None else sampler.next_step)) < MILLION:
        if step == next_look:
            writer.add_loss_scale(LossScaleRecord(step, 2.0**15, step, 0, step))
            next_look += 30 * 10**9 // step_ns
        if step == sampler.next_step:
            is_bad = len(written) % 100 == 50
            writer.add_sample(sample_record(step), bad if is_bad else scalars, histograms)
            writer.add_step_time(StepTimeRecord(step, 10, step_ns, 32))
            sampler.sampled(step, cost_ns if written else None, step_ns)
            written.append(step)
            incidents += [step] if is_bad else []
            largest = max(largest, size_of(tmp_path / "run"))
    writer.close("finished")
    assert 1_500 < len(written) < 2_000
    assert len(incidents) > 10
    # The log may hold 1,000 pages of 4 KiB before SQLite folds it into the file; beside it lies its index.
    assert largest < most_bytes + 1_100 * 4_120 + 2**16
    assert size_of(tmp_path / "run") < 1.4 * most_bytes  # looks at the loss scale and `run.yaml` come on top
    check_thinned(tmp_path / "run", written, incidents, histograms)


def check_thinned(path: Path, written: list[int], incidents: list[int], histograms: np.ndarray) -> None:
    run = open_run(path)
    kept = [sample.step for sample in run.samples]
    assert set(incidents) <= set(kept) <= set(written)
    assert (kept[0], kept[-1]) == (written[0], written[-1])
    assert len(kept) < 0.3 * len(written)
    # What was thinned lies evenly: each tenth of the training has its share. The last holds the newest, too.
    tenths = np.histogram(kept, bins=10, range=(0, MILLION))[0]
    assert tenths[:8].min() >= 0.5 * np.median(tenths[:8]) >= 4
    assert run.scalars.shape == (len(kept), len(histograms))
    bad = np.flatnonzero(run.scalars["nans"].any(axis=1))
    assert [kept[index] for index in bad] == incidents
    assert (run.histograms(1) == histograms).all()
    # The totals still hold every sample that was taken.
    assert (run.total_histograms() == histograms * len(written)).all()


def test_incidents_are_thinned_where_nothing_else_is_left(tmp_path: Path):
    """A training that is NaN from the first step on does not fill the disk either."""
    writer = begin(tmp_path / "run", 2**19)
    scalars, histograms = arrays_of(*[np.full(32, np.nan, np.float32)] * TENSORS)
    for step in range(600):
        writer.add_sample(sample_record(step, applied=False), scalars, histograms)
    writer.close("finished")
    run = open_run(tmp_path / "run")
    assert size_of(tmp_path / "run") < 1.3 * 2**19
    assert 20 < len(run.samples) < 300
    assert (run.samples[0].step, run.samples[-1].step) == (0, 599)


def test_skipped_steps_and_infinite_losses_are_incidents(tmp_path: Path):
    writer = begin(tmp_path / "run", 2**19)
    arrays = random_arrays(TENSORS, seed=1)
    special: dict[int, dict[str, Any]] = {
        50: {"applied": False},
        61: {"loss": float("inf")},
        72: {"loss": float("nan")},
    }
    for step in range(600):
        writer.add_sample(sample_record(step, **special.get(step, {})), *arrays)
    writer.close("finished")
    kept = {sample.step for sample in open_run(tmp_path / "run").samples}
    assert {0, 50, 61, 72, 599} <= kept
    assert len(kept) < 300


def test_without_a_limit_nothing_is_thinned(tmp_path: Path):
    writer = begin(tmp_path / "run", None)
    for step in range(300):
        writer.add_sample(sample_record(step), *random_arrays(TENSORS, seed=1))
    assert writer.samples_thinned == 0
    assert len(open_run(tmp_path / "run").samples) == 300


def test_a_limit_below_a_single_sample_keeps_the_first_and_the_newest(tmp_path: Path):
    writer = begin(tmp_path / "run", 1)
    for step in range(20):
        writer.add_sample(sample_record(step), *random_arrays(TENSORS, seed=1))
    kept = [sample.step for sample in open_run(tmp_path / "run").samples]
    assert kept[0] == 0
    assert kept[-1] == 19
    assert len(kept) < 8


def test_the_samples_of_replicas_go_with_theirs(tmp_path: Path):
    writer = begin(tmp_path / "run", 2**20)
    writer.add_replicas([ReplicaRecord(number, 0, "/device:CPU:0") for number in range(2)])
    scalars, histograms = random_arrays(TENSORS, seed=1)
    for step in range(300):
        replicas = [ReplicaSample(number, float(step), scalars) for number in range(2)]
        writer.add_sample(sample_record(step), scalars, histograms, replicas=replicas)
    writer.close("finished")
    run = open_run(tmp_path / "run")
    assert len(run.samples) < 300
    assert size_of(tmp_path / "run") < 1.2 * 2**20
    for sample in run.samples:
        assert [replica.loss for replica in run.replica_samples(sample.index)] == [float(sample.step)] * 2


@pytest.mark.parametrize("changes", [True, False])
def test_looks_at_the_loss_scale_are_thinned_where_it_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: bool
):
    monkeypatch.setattr("precscope.writer._MOST_ROWS", 200)
    writer = begin(tmp_path / "run", None)
    for step in range(1_000):
        scale = 2.0 ** (15 - (step > 333) + (step % 2 if changes else 0))
        writer.add_loss_scale(LossScaleRecord(step, scale, step, 0, step))
        writer.add_step_time(StepTimeRecord(step, 10, 1_000, 32))
    run = open_run(tmp_path / "run")
    steps = [look.step for look in run.loss_scales]
    assert len(steps) <= 200
    assert (steps[0], steps[-1]) == (0, 999)
    assert len(run.step_times) <= 200
    if not changes:
        assert {333, 334} <= set(steps)  # between which the scale moved
