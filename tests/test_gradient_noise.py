"""When errors of a gradient pass as noise: on made-up numbers, and on gradients that NumPy makes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from precscope.gradient_noise import Noise, could_be_noise, is_noise, whole_noise
from precscope.replay import Criterion, Measured, VariableComparison, judge_replay

LIMITS = Criterion()


def comparison(layer="hidden", cosine=1.0, length=1.0, noise=None):
    return VariableComparison(layer, "kernel", cosine * length**2, length, length, True, noise)


def noise(added=0.0, moved=0.0, variance=1.0, mean=1.0):
    return Noise(variance, added * variance, moved**2 * mean, mean)


def judged(*comparisons, loss=0.5):
    return judge_replay(
        comparisons,
        step=7,
        loss_scale=1024.0,
        loss=loss,
        loss_reference=0.5,
        outputs_finite=True,
        criterion=LIMITS,
    )


def test_rounding_that_drowns_in_the_noise_passes_and_the_record_says_so():
    replay = judged(comparison(cosine=0.997, noise=noise(added=0.007, moved=0.01)))
    assert replay.passed
    assert (replay.rule, replay.why_not) == ("noise", None)
    assert (replay.added_variance, replay.moved_mean) == (pytest.approx(0.007), pytest.approx(0.01))
    assert Measured((replay,), 1).passed_as_noise == (replay,)


def test_within_the_limits_noise_is_not_asked():
    replay = judged(comparison())
    assert (replay.rule, replay.added_variance, replay.moved_mean) == ("limits", None, None)
    assert judged(comparison(noise=noise(added=9.0, moved=9.0))).rule == "limits"


@pytest.mark.parametrize(
    ("cosine", "of_batches"),
    [
        (0.997, None),  # of one batch nothing is known
        (0.997, noise(added=0.021)),
        (0.997, noise(added=0.001, moved=0.06)),  # small, and the same in all batches: a fault
        (0.97, noise(added=0.001)),  # below the floor
        (0.997, Noise(0.0, 0.01, 0.0, 1.0)),  # a batch that is always the same has no noise
        (0.997, Noise(1.0, 0.001, 0.001, 0.0)),  # nothing to move, and moved
        (0.997, Noise(math.nan, 0.001, 0.0, 1.0)),
        (0.997, Noise(1.0, math.inf, math.inf, 1.0)),  # another batch overflowed
    ],
)
def test_what_is_no_noise_fails_as_before(cosine, of_batches):
    replay = judged(comparison(cosine=cosine, noise=of_batches))
    assert not replay.passed
    assert replay.rule is None
    assert replay.why_not == f"the gradient's cosine to float32 is {cosine:.5f}, below 0.999"


def test_where_another_batch_overflows_at_these_weights_a_lower_scale_may_help():
    """Found on a ResNet: its first batch was within the noise one halving below the scale where the next was finite."""
    overflowing = Noise(1.0, math.inf, math.nan, 1.0)
    assert judged(comparison(cosine=0.997, noise=overflowing)).overflowed
    assert not judged(comparison(cosine=0.997, noise=noise(added=0.5))).overflowed


def test_noise_excuses_a_turn_and_nothing_else():
    assert "the loss is" in judged(comparison(cosine=0.997, noise=noise()), loss=0.6).why_not
    longer = VariableComparison("hidden", "kernel", 0.997 * 1.06, 1.0, 1.06, True, noise())
    assert "times as long" in judged(longer).why_not


def test_errors_without_a_direction_are_estimated_below_zero_as_often():
    assert Noise(1.0, 0.01, -0.004, 1.0).moved == 0.0
    assert Noise(0.0, 0.0, 0.0, 0.0).added_variance == 0.0


def test_the_noise_of_all_is_that_of_the_parts_together():
    parts = [comparison("a", noise=Noise(1.0, 0.5, 0.25, 4.0)), comparison("b", noise=Noise(2.0, 0.25, -0.125, 1.0))]
    assert whole_noise(parts) == Noise(3.0, 0.75, 0.125, 5.0)
    assert whole_noise([*parts, comparison("c")]) is None
    assert whole_noise([]) is None


def test_one_variable_may_show_ten_times_as_much():
    big = comparison("big", length=100.0, noise=noise())
    assert is_noise([big, comparison("small", 0.9, noise=noise(added=0.19, moved=0.19))], LIMITS)
    assert not is_noise([big, comparison("small", 0.9, noise=noise(added=0.21))], LIMITS)
    assert not is_noise([big, comparison("small", 0.9, noise=noise(added=0.01, moved=0.21))], LIMITS)
    assert not is_noise([big, comparison("small", 0.79, noise=noise(added=0.01))], LIMITS)


def test_each_variable_that_turned_is_asked_not_the_worst_alone():
    big, fine = comparison("big", length=100.0, noise=noise()), comparison("fine", 0.9, noise=noise(added=0.1))
    lost = comparison("lost", 0.95, noise=noise(added=0.01, moved=0.9))
    assert is_noise([big, fine], LIMITS)
    assert not is_noise([big, fine, lost], LIMITS)


def test_a_negligible_error_of_one_variable_need_only_not_move_its_mean():
    """Of a saturated gate: a thousandth of the gradient, turned at will by rounding, without a direction."""
    big = comparison("big", length=5000.0, noise=noise())
    gate = comparison("gate", 0.5, length=1.0, noise=noise(added=0.7, moved=0.1))
    assert judged(big, gate).rule == "noise"
    flushed = VariableComparison("gate", "kernel", 0.0, 1.0, 0.0, True, noise(added=0.7, moved=1.0))
    assert judged(big, flushed).why_not == "the gradient of 'gate/kernel' is zero"


def test_noise_is_only_measured_where_it_could_excuse():
    assert could_be_noise([comparison(cosine=0.99)], LIMITS)
    assert not could_be_noise([comparison(cosine=0.97)], LIMITS)
    assert not could_be_noise([replace(comparison(), finite=False)], LIMITS)
    assert not could_be_noise([comparison("big", length=100.0), comparison("small", 0.7)], LIMITS)
    assert could_be_noise([comparison("big", length=5000.0), comparison("small", 0.7)], LIMITS)


def gradients(shift=0.0, scatter=0.0, batches=8, size=4000, seed=0):
    """Gradients of batches around a mean of length 1 with a noise of length 2, and errors: a shift and a scatter."""
    random = np.random.default_rng(seed)
    direction = random.standard_normal(size)
    mean = direction / np.linalg.norm(direction)
    expected = mean + 2 * random.standard_normal((batches, size)) / math.sqrt(size)
    common = random.standard_normal(size)
    errors = shift * common / np.linalg.norm(common) + scatter * random.standard_normal((batches, size)) / math.sqrt(
        size
    )
    return expected, expected + errors


def noise_of(expected, given):
    """What a `Noise` holds, in NumPy: the plain definitions."""
    errors, batches = given - expected, len(expected)
    pairs = [errors[i] @ errors[j] for i in range(batches) for j in range(batches) if i != j]
    return Noise(
        float(np.var(expected, 0, ddof=1).sum()),
        float((errors**2).sum(1).mean()),
        float(np.mean(pairs)),
        float((expected.mean(0) ** 2).sum()),
    )


def test_the_numbers_of_the_replay_are_the_definitions():
    tf = pytest.importorskip("tensorflow")
    from precscope.probes.gradient_numbers import noise_numbers

    expected, given = gradients(shift=0.03, scatter=0.1, batches=3)
    numbers = noise_numbers(
        [[tf.constant(row[:1000], tf.float32), tf.constant(row[1000:], tf.float32)] for row in expected],
        [[tf.constant(row[:1000] * 8, tf.float32), tf.constant(row[1000:] * 8, tf.float32)] for row in given],
        tf.constant([1.0, 8.0], tf.float64),
    ).numpy()
    for row, part in zip(numbers, (slice(0, 1000), slice(1000, None)), strict=True):
        of_part = noise_of(expected[:, part], given[:, part])
        # float32 holds the gradients to 6e-8, of which an error of 0.03 in 2 is a sixtieth
        np.testing.assert_allclose(row, [of_part.variance, of_part.error, of_part.shared_error, of_part.mean], 1e-4)


def test_scatter_is_told_from_a_shift_of_the_same_length():
    scattered, shifted = noise_of(*gradients(scatter=0.1)), noise_of(*gradients(shift=0.1))
    assert scattered.added_variance == pytest.approx(0.1**2 / 2**2, rel=0.1)
    assert shifted.added_variance == pytest.approx(0.1**2 / 2**2, rel=0.1)
    assert scattered.moved < 0.03
    assert shifted.moved == pytest.approx(0.1 / math.hypot(1, 2 / math.sqrt(8)), rel=0.1)
