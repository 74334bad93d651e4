"""For which reference steps there is time."""

from __future__ import annotations

import pytest

from precscope.reference_budget import ReferenceBudget

S = 10**9


def budget(*, compiled_s: int = 4, share: float = 0.01, asked: bool = False) -> ReferenceBudget:
    made = ReferenceBudget(share, asked)
    made.compiled(compiled_s * S)
    return made


@pytest.mark.parametrize("moment", ["start", "settled", "end"])
def test_one_that_is_asked_for_is_taken_at_each_moment_whatever_it_costs(moment):
    assert budget(compiled_s=10**6, asked=True).allows(moment, 0, 0.0)


@pytest.mark.parametrize(
    ("compiled_s", "session_s", "at_start", "at_end"),
    [
        (4, 5, True, True),  # 6 s are nothing to wait for
        (6, 9, True, True),
        (8, 30, False, True),  # 12 s are more than a tenth of what the session took
        (8, 120, True, True),
        (20, 21, False, True),  # a short training, which was hardly more than compiling
        (21, 22, False, False),
        (100, 149, False, False),  # the session would take more than twice its time
        (100, 150, False, True),
        (100, 1500, True, True),
    ],
)
def test_the_first_waits_until_it_is_small_beside_the_session(compiled_s, session_s, at_start, at_end):
    found = budget(compiled_s=compiled_s)
    assert found.allows("start", session_s * S, 0.0) is at_start
    assert found.allows("settled", session_s * S, 0.0) is at_start
    assert found.allows("budget", session_s * S, 0.0) is at_start
    assert found.allows("end", session_s * S, 0.0) is at_end


def test_those_in_between_keep_to_their_share_of_the_training():
    found = budget()
    found.spent(2 * S, 5 * S)  # traced: no part of the budget, but its run tells what the next one costs
    assert (found.taken, found.expected_ns) == (1, 2 * S)
    assert not found.allows("budget", 10**6 * S, 199.0 * S)
    assert found.allows("budget", 0, 200.0 * S)
    found.spent(1 * S, 0)
    assert not found.allows("budget", 10**6 * S, 199.0 * S)  # one second spent, and one expected
    assert found.allows("budget", 0, 200.0 * S)


def test_batches_that_are_traced_over_and_over_pay_for_it():
    found = budget()
    found.spent(1 * S, 5 * S)
    found.spent(1 * S, 5 * S)
    assert found.expected_ns == 6 * S
    assert not found.allows("budget", 10**6 * S, 1199.0 * S)
    assert found.allows("budget", 0, 1200.0 * S)


def test_what_the_first_cost_is_known_better_than_what_compiling_tells():
    found = budget(compiled_s=100)
    found.spent(1 * S, 50 * S)
    found.compiled(200 * S)
    assert found.allows("end", 2 * S, 0.0)
