"""The steps at which the loss scale moved, against a simulation of Keras' rule that knows them."""

from __future__ import annotations

import numpy as np
import pytest

from precscope.loss_scale_history import scale_history
from precscope.records import LossScaleRecord


def simulate(skipped, polls, growth_steps, scale=2.0**15):
    """Return the looks after `polls` steps, and the changes (step, scale before, was raised) of Keras' rule."""
    counter = skips = 0
    looks, changes = [], []
    for step in range(len(skipped) + 1):
        if step in polls:
            looks.append(LossScaleRecord(step, scale, step - skips, skips, counter))
        if step == len(skipped):
            break
        if skipped[step]:
            changes.append((step, scale, False))
            scale, counter, skips = scale / 2, 0, skips + 1
        elif counter == growth_steps - 1:
            changes.append((step, scale, True))
            scale, counter = scale * 2, 0
        else:
            counter += 1
    return looks, changes


@pytest.mark.parametrize("seed", range(60))
def test_brackets_hold_the_truth_and_what_is_called_exact_is(seed):
    random = np.random.default_rng(seed)
    steps, growth = 400, int(random.integers(5, 60))
    skipped = random.random(steps) < random.choice([0.0, 0.01, 0.05, 0.5, 1.0])
    polls = {0, steps, *random.integers(1, steps, int(random.integers(0, 40))).tolist()}
    looks, truth = simulate(skipped, polls, growth)
    history = scale_history(looks, growth)
    known = history.changes
    assert history.skipped == skipped.sum()
    assert sum(change.raised for change in known) == sum(raised for _, _, raised in truth)
    assert sum(not change.raised for change in known) == skipped.sum()
    assert all(interval.explained for interval in history.intervals)
    for interval in history.intervals:
        inside = [change for change in truth if interval.start <= change[0] < interval.end]
        if any(change.before is None for change in interval.changes):  # the order is not known
            assert all(interval.changes[0].earliest <= step <= interval.changes[0].latest for step, _, _ in inside)
            continue
        for change, (step, before, raised) in zip(interval.changes, inside, strict=True):
            assert change.earliest <= step <= change.latest
            assert (change.before, change.raised) == (before, raised)


def test_a_single_change_between_two_looks_is_exact():
    skipped = np.zeros(100, bool)
    skipped[37] = True
    looks, _ = simulate(skipped, {0, 100}, 2000)
    assert [(c.earliest, c.latest, c.before) for c in scale_history(looks, 2000).changes] == [(37, 37, 2.0**15)]


def test_several_skips_are_bracketed_and_the_last_is_exact():
    skipped = np.zeros(100, bool)
    skipped[[10, 20, 30]] = True
    looks, _ = simulate(skipped, {0, 100}, 2000)
    changes = scale_history(looks, 2000).changes
    assert [(c.earliest, c.latest, c.is_exact) for c in changes] == [(0, 28, False), (1, 29, False), (30, 30, True)]


def test_a_growth_and_its_probe_are_told_apart_by_the_rule_of_growth():
    skipped = np.zeros(200, bool)
    skipped[53] = True
    looks, _ = simulate(skipped, {0, 45, 90}, 50)
    assert [(c.earliest, c.raised) for c in scale_history(looks, 50).changes] == [(49, True), (53, False)]
    # Without the look at 45, a skip at step 3 and a growth at step 53 would leave the same counters.
    looks, _ = simulate(skipped, {0, 90}, 50)
    assert {(c.earliest, c.latest, c.before) for c in scale_history(looks, 50).changes} == {(0, 53, None)}
    assert not any(c.is_exact for c in scale_history(looks, None).changes)  # without the rule the order is open


def test_how_soon_the_scale_grows():
    looks, _ = simulate(np.zeros(30, bool), {0, 30}, 50)
    history = scale_history(looks, 50)
    assert (history.since_change, history.until_growth) == (30, 20)


def test_a_scale_that_was_set_by_hand_is_not_explained():
    looks = [LossScaleRecord(0, 8.0, 0, 0, 0), LossScaleRecord(10, 64.0, 10, 0, 10)]
    (interval,) = scale_history(looks, 2000).intervals
    assert (interval.explained, interval.changes) == (False, ())


def test_a_fixed_scale_and_none_have_no_changes():
    for scale in (128.0, None):
        looks = [LossScaleRecord(0, scale, 0, 0, None), LossScaleRecord(10, scale, 10, 0, None)]
        history = scale_history(looks)
        assert (history.changes, history.scale, history.skipped, history.until_growth) == ((), scale, 0, None)


def test_looks_that_begin_late_take_the_initial_scale():
    looks = [LossScaleRecord(10, 2.0**12, 7, 3, 4)]
    changes = scale_history(looks, 2000, 2.0**15).changes
    assert [(c.earliest, c.latest) for c in changes] == [(0, 3), (1, 4), (5, 5)]
    assert scale_history(looks, 2000).changes == ()


def test_a_scale_that_left_float32_has_only_halvings():
    looks = [LossScaleRecord(0, 2.0**-140, 0, 0, 0), LossScaleRecord(20, 0.0, 0, 20, 0)]
    changes = scale_history(looks, 2000).changes
    assert [c.earliest for c in changes] == list(range(20))
    assert not any(c.raised for c in changes)
    assert scale_history([]).changes == ()
