from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np
import pytest

from precscope.options import Options
from precscope.sampling import Sampler

if TYPE_CHECKING:
    from collections.abc import Callable

MS = 1_000_000
STEPS = 2_000


@dataclass
class Training:
    """A training as the sampler sees it: which steps were sampled, and what share of plain time they had cost."""

    sampled: list[int]
    overheads: list[float]


def train(
    options: Options,
    cost_ns: Callable[[int], float],
    plain_ns: Callable[[int], float],
    steps: int = STEPS,
    meets_others: bool = False,
) -> Training:
    """Simulate a training whose first sample compiles."""
    sampler = Sampler(options, meets_others)
    training = Training([], [])
    spent = plain = 0.0
    since_last: list[float] = []
    for step in range(steps):
        plain += plain_ns(step)
        if sampler.next_step is None or step < sampler.next_step:
            since_last.append(plain_ns(step))
        else:
            cost = int(cost_ns(step)) if training.sampled else None
            spent += cost or 0
            sampler.sampled(step, cost, fmean(since_last) if since_last else None)
            training.sampled.append(step)
            since_last = []
        training.overheads.append(spent / plain)
    return training


def steps_sampled(options: Options, steps: int = 100) -> list[int]:
    return train(options, lambda step: 0, lambda step: MS, steps).sampled


def test_every_n_steps_whatever_the_cost():
    training = train(Options(every=300), lambda step: 5_000 * MS, lambda step: MS)
    assert training.sampled == [0, 300, 600, 900, 1200, 1500, 1800]


def test_every_step():
    assert steps_sampled(Options(every=1), steps=5) == [0, 1, 2, 3, 4]


def test_the_window_begins_the_grid_and_excludes_stop():
    assert steps_sampled(Options(every=10, start=25, stop=55)) == [25, 35, 45]


def test_the_window_holds_with_the_budget_too():
    sampled = steps_sampled(Options(start=30, stop=60))
    assert sampled == [30, 40, 50]


def test_after_the_window_no_step_is_due():
    sampler = Sampler(Options(every=10, stop=5))
    sampler.sampled(0, None, None)
    assert sampler.next_step is None


@pytest.mark.parametrize(
    ("options", "first_seen", "due"),
    [
        (Options(), 7, 7),
        (Options(start=20), 7, 20),
        (Options(every=10), 0, 0),
        (Options(every=10), 7, 10),
        (Options(every=10, start=5), 16, 25),
        (Options(stop=5), 7, None),
    ],
)
def test_a_session_that_begins_late_keeps_to_the_window_and_the_grid(
    options: Options, first_seen: int, due: int | None
):
    sampler = Sampler(options)
    sampler.start_at(first_seen)
    assert sampler.next_step == due


def test_a_late_sample_returns_to_the_grid():
    sampler = Sampler(Options(every=10))
    sampler.sampled(13, None, None)  # several steps ran in one call
    assert sampler.next_step == 20


def test_a_skipped_step_makes_the_next_one_due_and_keeps_the_grid():
    sampler = Sampler(Options(every=10, stop=12))
    sampler.skip(0)
    assert sampler.next_step == 1
    sampler.sampled(1, None, None)
    assert sampler.next_step == 10
    sampler.skip(10)
    sampler.skip(11)
    assert sampler.next_step is None


def test_the_second_sample_comes_after_ten_steps_to_learn_the_cost():
    assert train(Options(), lambda step: 20 * MS, lambda step: 40 * MS).sampled[:2] == [0, 10]


def test_steady_costs_use_the_budget_and_no_more():
    training = train(Options(), lambda step: 20 * MS, lambda step: 40 * MS)
    assert 0.019 < training.overheads[-1] <= 0.02
    assert max(training.overheads[100:]) <= 0.02
    assert set(np.diff(training.sampled[2:])) == {25}  # 20 ms are 2 % of 25 steps of 40 ms


def test_a_larger_budget_samples_more():
    few, many = (train(Options(overhead_budget=b), lambda step: 20 * MS, lambda step: 40 * MS) for b in (0.01, 0.04))
    assert len(many.sampled) > 3 * len(few.sampled)
    assert few.overheads[-1] <= 0.01
    assert many.overheads[-1] <= 0.04


def test_samples_that_cost_nothing_leave_plain_steps_between_them():
    assert steps_sampled(Options()) == list(range(0, 100, 10))


RANDOM = np.random.default_rng(0)
NOISE = RANDOM.lognormal(0, 0.5, STEPS)
OUTLIERS = np.where(RANDOM.random(STEPS) < 0.1, 30, 1)
TRAININGS: dict[str, tuple[Callable[[int], float], Callable[[int], float]]] = {
    "cost grows fourfold": (lambda step: (10 + step / 50) * MS, lambda step: 40 * MS),
    "cost jumps tenfold": (lambda step: (10 if step < 1000 else 100) * MS, lambda step: 40 * MS),
    "cost falls tenfold": (lambda step: (100 if step < 1000 else 10) * MS, lambda step: 40 * MS),
    "steps become ten times slower": (lambda step: 20 * MS, lambda step: (4 if step < 1000 else 40) * MS),
    "steps become ten times faster": (lambda step: 20 * MS, lambda step: (40 if step < 1000 else 4) * MS),
    "noise": (lambda step: NOISE[step] * 20 * MS, lambda step: NOISE[-step] * 40 * MS),
    "outliers of thirty times": (lambda step: OUTLIERS[step] * 20 * MS, lambda step: 40 * MS),
    "probed step of 1.5 and a read": (lambda step: 28 * MS, lambda step: 40 * MS),
    "steps of a microsecond": (lambda step: 10_000, lambda step: 1_000),
}


@pytest.mark.parametrize("name", TRAININGS)
def test_the_whole_training_ends_within_its_budget(name: str):
    training = train(Options(), *TRAININGS[name])
    assert training.overheads[-1] <= 0.02
    assert len(training.sampled) >= 2


@pytest.mark.parametrize("name", ["steps become ten times slower", "cost falls tenfold"])
def test_what_became_cheap_is_sampled_more_often(name: str):
    sampled = np.array(train(Options(), *TRAININGS[name]).sampled)
    assert np.count_nonzero(sampled >= 1000) > 3 * np.count_nonzero(sampled < 1000)


def test_an_overspent_budget_is_paid_back_before_the_next_sample():
    sampler = Sampler(Options())
    sampler.sampled(0, None, None)
    sampler.sampled(10, 200 * MS, 1.0 * MS)  # 11 ms of training cannot pay for this
    assert sampler.next_step is not None
    # Both samples, the next with a margin of a quarter: 450 ms, which are 2 % of 22,500 steps of 1 ms.
    assert sampler.next_step == 22_500


def test_training_before_the_window_does_not_end_in_a_burst():
    training = train(Options(start=1500), lambda step: 20 * MS, lambda step: 40 * MS)
    assert training.sampled[:2] == [1500, 1510]
    assert set(np.diff(training.sampled[1:])) == {25}


def test_a_negative_cost_counts_as_none():
    sampler = Sampler(Options())
    sampler.sampled(0, -5 * MS, MS)
    sampler.sampled(10, 2 * MS, MS)
    spent_and_next = 2 + 1.25 * 2
    assert sampler.next_step == spent_and_next / 0.02


def test_pauses_within_the_measured_steps_buy_no_samples():
    """The first plain steps hold the compiling of the plain function, later ones a checkpoint now and then."""
    sampler = Sampler(Options())
    spent = samples = 0
    for step in range(STEPS):
        if sampler.next_step is None or step < sampler.next_step:
            continue
        pause = 78_000 / 9 if samples == 1 else 500 if samples % 7 == 0 else 0
        cost = None if samples == 0 else 20 * MS
        sampler.sampled(step, cost, (40 + pause) * MS if samples else None)
        spent += cost or 0
        samples += 1
    assert 0.015 < spent / (STEPS * 40 * MS) <= 0.02


def test_compiling_takes_no_part_in_the_budget():
    """A later sample that compiles again (another batch shape) changes neither the sum nor the expectation."""
    sampler = Sampler(Options())
    sampler.sampled(0, None, None)
    sampler.sampled(10, 20 * MS, 40.0 * MS)
    sampler.sampled(500, None, 40.0 * MS)
    assert sampler.next_step == 525


def test_compiling_at_every_sample_is_tried_less_and_less_often():
    sampler = Sampler(Options())
    steps = []
    while len(steps) < 5:
        assert sampler.next_step is not None
        steps.append(sampler.next_step)
        sampler.sampled(sampler.next_step, None, MS)
    assert steps == [0, 10, 30, 70, 150]


def test_an_unknown_step_time_is_replaced_by_the_last_known():
    sampler = Sampler(Options())
    sampler.sampled(0, None, None)
    sampler.sampled(10, 20 * MS, 40.0 * MS)
    sampler.sampled(1000, 20 * MS, None)
    assert sampler.next_step == 1025


# Several workers


@pytest.mark.parametrize("dearer", [1.3, 2.0, 6.0])
def test_workers_with_different_costs_sample_the_same_steps(dearer: float):
    """Once they have settled, the steps of the one that samples more seldom are among those of the other."""
    cheap, dear = (_train_beside_others(cost_ns) for cost_ns in (0.9 * MS, 0.9 * MS * dearer))
    settled = [step for step in dear.sampled if step > 2_000]
    assert len(settled) > 20
    assert set(settled) <= set(cheap.sampled)
    assert len(cheap.sampled) >= len(dear.sampled)
    assert max(cheap.overheads[1_000:] + dear.overheads[1_000:]) <= 0.02


def _train_beside_others(cost_ns: float) -> Training:
    return train(Options(), lambda step: cost_ns, lambda step: MS, 20_000, meets_others=True)
