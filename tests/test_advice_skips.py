"""What counters that are read now and then tell about skipped steps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from precscope.advice.skips import skip_history
from precscope.records import LossScaleRecord
from tests.core_fixtures import sample_record


def looks(*rows):
    return [LossScaleRecord(step, scale, step - skipped, skipped, None) for step, scale, skipped in rows]


def test_nothing_known():
    history = skip_history([], [])
    assert (history.seen, history.skipped, history.longest_run, history.last_scale) == (0, None, 0, None)


def test_counts_and_scales():
    history = skip_history(looks((0, 8.0, 0), (100, 4.0, 1), (200, 16.0, 1)), [])
    assert (history.seen, history.skipped, history.first_step) == (200, 1, 0)
    assert (history.first_scale, history.last_scale, history.lowest_scale) == (8.0, 16.0, 4.0)
    assert (history.longest_run, history.unrecovered) == (1, 0)


@pytest.mark.parametrize(
    ("rows", "longest", "unrecovered"),
    [
        (((10, 1.0, 10),), 10, 10),  # all of them
        (((10, 1.0, 9),), 5, 0),  # one applied step parts nine skips into five and four at best
        (((10, 1.0, 5),), 1, 0),
        (((5, 1.0, 5), (8, 1.0, 8), (9, 1.0, 8)), 8, 0),  # whole stretches join
        (((5, 1.0, 0), (8, 1.0, 3)), 3, 3),
        (((5, 1.0, 0), (5, 1.0, 0)), 0, 0),  # two looks at the same step
    ],
)
def test_the_longest_run_is_the_least_that_the_counts_allow(rows, longest, unrecovered):
    history = skip_history(looks(*rows), [])
    assert (history.longest_run, history.unrecovered) == (longest, unrecovered)


@pytest.mark.parametrize(
    ("scales", "bits"),
    [
        ([8.0, 4.0, 4.0, 4.0, 4.0], 0.0),  # settled in the first half
        ([8.0, 8.0, 8.0, 4.0, 1.0], 3.0),
        ([1.0, 2.0, 4.0, 8.0, 8.0], 0.0),  # grown
        ([8.0, 8.0, 8.0, 1.0, 0.0], math.inf),
        ([0.0, 0.0], 0.0),
    ],
)
def test_how_far_the_scale_sank_in_the_second_half(scales, bits):
    assert skip_history(looks(*((10 * i, scale, 0) for i, scale in enumerate(scales))), []).sunk_bits == bits


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_never_exceeds_the_truth_and_meets_it_when_every_step_is_looked_at(seed):
    random = np.random.default_rng(seed)
    skipped = random.random(200) < random.uniform(0, 0.9)
    totals = np.concatenate([[0], np.cumsum(skipped)])
    truth = max(len(run) for run in "".join("x" if s else " " for s in skipped).split(" "))
    every_step = skip_history(looks(*((i, 1.0, int(totals[i])) for i in range(201))), [])
    assert every_step.longest_run == truth
    now_and_then = sorted({*random.integers(0, 201, 12).tolist(), 200})
    history = skip_history(looks(*((i, 1.0, int(totals[i])) for i in now_and_then)), [])
    assert history.longest_run <= truth
    assert history.skipped == skipped.sum()


def test_without_looks_the_sampled_steps_are_judged():
    applied = {0: False, 1: False, 7: False, 9: None, 11: True}
    history = skip_history([], [sample_record(step, applied=known) for step, known in applied.items()])
    assert history.sampled_only
    assert (history.seen, history.skipped, history.longest_run) == (4, 3, 2)
    assert history.last_scale == 32768.0


def test_counters_that_are_not_known_are_no_skips():
    history = skip_history([LossScaleRecord(5, 2.0, None, None, None)], [])
    assert (history.skipped, history.last_scale) == (None, 2.0)
