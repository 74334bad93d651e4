"""When a replay passes, and at which loss scales: on made-up numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from precscope.advice.proposal import verdict_sentence, verified_policy
from precscope.errors import RunDirectoryError
from precscope.gradient_noise import Noise
from precscope.policy import MadeFor, OptimizerNeeds, Policy, Price
from precscope.replay import Criterion, JudgedScales, Measured, VariableComparison, judge_replay, scales_to_judge
from precscope.reports.proof_view import proof_view
from precscope.verification import PricedPolicy, Verification, read_verification, write_verification


def comparison(layer="hidden", cosine=1.0, length=1.0, ratio=1.0, finite=True):
    return VariableComparison(layer, "kernel", cosine * length * length * ratio, length, length * ratio, finite)


def judged(*comparisons, loss=0.5, reference=0.5, outputs_finite=True):
    return judge_replay(
        comparisons or [comparison()],
        step=7,
        loss_scale=1024.0,
        loss=loss,
        loss_reference=reference,
        outputs_finite=outputs_finite,
        criterion=Criterion(),
    )


def test_equal_gradients_pass_with_cosine_1():
    replay = judged(comparison("a"), comparison("b", length=2.0))
    assert replay.passed
    assert replay.why_not is None
    assert (replay.cosine, replay.length_ratio) == (pytest.approx(1.0, abs=1e-15), pytest.approx(1.0, abs=1e-15))


def test_the_cosine_is_that_of_all_variables_together():
    """Two orthogonal parts of lengths 3 and 4, the second turned by 90 degrees: cosine 9 / 25."""
    replay = judged(comparison("a", length=3.0), comparison("b", length=4.0, cosine=0.0))
    assert replay.cosine == pytest.approx(9 / 25, abs=1e-15)
    assert replay.why_not == "the gradient's cosine to float32 is 0.36000, below 0.999"
    assert (replay.worst_variable, replay.worst_cosine) == ("b/kernel", 0.0)


@pytest.mark.parametrize(
    ("replay", "why_not"),
    [
        (judged(outputs_finite=False), "the model's output is not finite"),
        (judged(loss=math.nan), "the loss is not finite"),
        (judged(comparison("a"), comparison("b", finite=False)), "the gradient of 'b' is not finite"),
        (
            judged(comparison("a", finite=False), comparison("b", finite=False)),
            "the gradient of 'b' is not finite, nor that of 1 other layer",
        ),
        (judged(comparison(ratio=0.0)), "the gradient is zero and is not in float32"),
        (judged(comparison(ratio=1.06)), "the gradient is 1.06 times as long as in float32"),
        (judged(loss=0.51), "the loss is 0.51, in float32 0.5"),
    ],
)
def test_what_fails_is_said(replay, why_not):
    assert not replay.passed
    assert replay.why_not == why_not


def test_just_inside_the_limits_passes():
    assert judged(comparison(cosine=0.9991, ratio=1.049), loss=0.505).passed
    assert judged(loss=1e-6, reference=9e-5).passed  # below the floor, a relative difference says nothing
    assert judged(loss=None, reference=None).passed


def test_a_small_variable_that_turned_is_found_behind_a_whole_that_did_not():
    replay = judged(comparison("big", length=100.0), comparison("small", cosine=0.5))
    assert replay.cosine > 0.999
    assert replay.why_not == "the gradient of 'small/kernel' has the cosine 0.50000, below 0.99"
    assert "is zero" in judged(comparison("big", length=100.0), comparison("small", ratio=0.0)).why_not


def test_a_variable_of_rounding_errors_is_not_judged_alone():
    """A bias before a normalization has no gradient but rounding errors."""
    assert judged(comparison("big", length=1e5), comparison("bias", cosine=-1.0)).passed


def test_no_gradient_at_all_in_either_pass_is_no_difference():
    assert judged(comparison(length=0.0)).passed


@pytest.mark.parametrize(
    ("initial", "settled", "dynamic", "scales"),
    [
        (None, None, True, JudgedScales((1.0,))),
        (2.0**15, None, True, JudgedScales((2.0**15,), (), 3)),
        (2.0**15, 2.0**15, True, JudgedScales((2.0**15,), (), 3)),
        (2.0**15, 2.0**18, True, JudgedScales((2.0**15, 2.0**18), (), 3)),
        (2.0**15, 2.0**14, True, JudgedScales((2.0**15,), (2.0**14,), 3)),
        (2.0**15, 2.0**8, True, JudgedScales((2.0**15,), (2.0**8,), 7)),
        (2.0**15, 2.0**2, True, JudgedScales((2.0**15,), (2.0**2,), 3)),
        (2.0**15, 2.0**-4, True, JudgedScales((2.0**15,), (), 3)),
        (128.0, 64.0, False, JudgedScales((128.0,))),
    ],
)
def test_the_loss_scales_that_count(initial, settled, dynamic, scales):
    assert scales_to_judge(initial, settled, dynamic) == scales


@pytest.mark.parametrize(
    ("initial", "settled", "dynamic", "may_fall"),
    [(None, None, True, 0), (2.0**15, None, True, 12), (2.0**4, None, True, 3), (2.0**15, None, False, 0)],
)
def test_without_a_training_that_tells_the_scale_may_fall_to_8(initial, settled, dynamic, may_fall):
    assert scales_to_judge(initial, settled, dynamic).down_to_the_least().may_fall == may_fall


def test_bfloat16_rounds_eight_times_as_coarsely_and_is_judged_by_wider_limits():
    wide = Criterion.for_policy("mixed_bfloat16")
    assert (wide.gradient_cosine, wide.variable_cosine, wide.loss) == (0.99, 0.9, Criterion().loss)
    assert Criterion.for_policy("mixed_float16") == Criterion()


def test_only_gradients_overflow_by_the_loss_scale():
    assert judged(comparison(finite=False)).overflowed
    assert not judged(comparison(finite=False), outputs_finite=False).overflowed
    assert not judged(comparison(finite=False), loss=math.inf).overflowed
    assert not judged(comparison(cosine=0.5)).overflowed


def test_only_judged_replays_count_and_the_worst_of_them_is_shown():
    good, turned, broken = judged(), judged(comparison(cosine=0.9)), judged(outputs_finite=False)
    assert Measured((good, broken), 1).passed
    assert not Measured((good, turned), 2).passed
    assert Measured((good, turned), 2).worst is turned


# verification.yaml


def verification(**changes):
    measured = Measured((judged(), judged(comparison(cosine=0.5))), 1)
    values = {
        "proven": True,
        "is_minimal": True,
        "default": "mixed_float16",
        "pins": ("head",),
        "suspects": ("head", "norm"),
        "left_out": {"custom": "its output is float16"},
        "batches": (3, 40),
        "weights": "as kept with each batch",
        "before": Measured((judged(outputs_finite=False),), 1),
        "after": measured,
        "bfloat16": Measured((judged(),), 1),
        "trials": 4,
        "criterion": Criterion(),
        "prices": {name: PricedPolicy(1.5, 0.1, None, 4) for name in ("plain", "policy", "float32")},
        "pin_prices": {"head": Price(0.25, None, 2)},
        "timed_passes": 11,
        "device": "2 CPU cores",
        "unix_s": 1.5,
        "took_s": {"float32": 2.5, "search": 4.0},
        "traces": 5,
        "tracing_s": 3.25,
    }
    return Verification(**(values | changes))


def test_a_verification_is_written_and_read_again(tmp_path):
    written = verification()
    write_verification(tmp_path, written)
    assert read_verification(tmp_path) == written
    write_verification(tmp_path, verification(after=None, proven=False, prices={"plain": PricedPolicy(math.nan)}))
    read = read_verification(tmp_path)
    assert read.after is None
    assert read.prices["plain"].time_ms is None
    assert [file.name for file in tmp_path.iterdir()] == ["verification.yaml"]


def test_one_that_does_not_tell_how_long_it_took_is_read(tmp_path):
    write_verification(tmp_path, verification())
    file = tmp_path / "verification.yaml"
    lines = file.read_text().splitlines()
    later = ("took_s:", "  float32: 2.5", "  search: 4.0", "traces:", "tracing_s:")
    file.write_text("\n".join(line for line in lines if not line.startswith(later)))
    assert read_verification(tmp_path) == verification(took_s={}, traces=0, tracing_s=None)


def test_in_words_a_cosine_is_said_once_and_how_long_it_took():
    turned = Measured((judged(comparison("a", length=3.0), comparison("b", length=4.0, cosine=0.0)),), 1)
    view = proof_view(verification(before=turned))
    rows = [text for _, text in view.rows]
    assert rows[0] == "cosine to float32, plain mixed_float16: 0.3600"
    assert "It took 6.5 s, 3.2 s of them tracing the step 5 times." in rows
    silent = proof_view(verification(took_s={}, traces=0, tracing_s=None))
    assert not any("It took" in text for _, text in silent.rows)


def test_without_one_there_is_none(tmp_path):
    assert read_verification(tmp_path) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("version: 1", "version: 9"), "written by a newer PrecScope"),
        (lambda text: text.replace("format: precscope-verification", "format: x"), "does not say"),
        (lambda text: text[: len(text) // 2], "cut off|not valid YAML"),
        (lambda text: text.replace("trials:", "trails:"), "missing or of a wrong type"),
        (lambda text: text.replace("judged: 1", "juged: 1"), "missing or of a wrong type"),
    ],
)
def test_a_damaged_one_is_told(tmp_path, change, message):
    write_verification(tmp_path, verification())
    file = tmp_path / "verification.yaml"
    file.write_text(change(file.read_text()))
    with pytest.raises(RunDirectoryError, match=message):
        read_verification(tmp_path)


def test_a_price_is_the_difference_of_what_was_measured():
    assert PricedPolicy(3.0, 0.1, 20.0, 7).beside(PricedPolicy(2.5, 0.1, 12.0, 9)) == Price(0.5, 8.0, -2, 0.2)
    assert PricedPolicy(3.0, 0.1, None, None).beside(PricedPolicy()) == Price(None, None, None)


# Where the loss scale fell


def at_scale(scale, *comparisons):
    return judge_replay(
        comparisons or [comparison()],
        step=7,
        loss_scale=scale,
        loss=0.5,
        loss_reference=0.5,
        outputs_finite=True,
        criterion=Criterion(),
    )


def test_a_part_of_a_set_may_not_let_the_scale_fall_further_than_the_set_did():
    scales = JudgedScales((2.0**15,), (), 3)
    assert scales.after(Measured((at_scale(2.0**15),), 1)) == JudgedScales((2.0**15,), (), 0)
    assert scales.after(Measured((at_scale(2.0**13),), 1, 2)) == JudgedScales((2.0**15,), (), 2)


def test_the_scale_at_which_all_passed_is_known_where_it_fell():
    assert Measured((at_scale(2.0**13), at_scale(2.0**9)), 1, 2).settled_scale == 2.0**13
    assert Measured((at_scale(2.0**15),), 1).settled_scale is None
    assert Measured((at_scale(2.0**15, comparison(cosine=0.5)),), 1, 1).settled_scale is None


FLOAT16 = Policy("mixed_float16", MadeFor("m", "Model", "run"), optimizer=OptimizerNeeds(True, 2.0**15))


def test_the_verdict_says_at_which_scale_to_begin_where_nothing_else_is_needed():
    fell, did_not = Measured((at_scale(2.0**8),), 1, 7), Measured((at_scale(2.0**15),), 1)
    words = [
        verdict_sentence(verification(pins=(), after=after)).partition("no layer ")[2] for after in (fell, did_not)
    ]
    assert words == ["needs float32, with a loss scale that begins at 256.", "needs float32."]


@pytest.mark.parametrize(
    ("changes", "initial_scale"),
    [
        ({"after": Measured((at_scale(2.0**13),), 1, 2)}, 2.0**13),
        ({"after": Measured((at_scale(2.0**15),), 1)}, 2.0**15),
        ({"after": None, "proven": False}, 2.0**15),
        # With pins, what a training without them came to tells nothing.
        ({"after": Measured((at_scale(2.0**15), at_scale(2.0**13)), 1)}, 2.0**15),
        ({"pins": (), "after": Measured((at_scale(2.0**15), at_scale(2.0**13)), 1)}, 2.0**13),
        ({"pins": (), "after": Measured((at_scale(2.0**14), at_scale(2.0**12)), 1, 1)}, 2.0**12),
        ({"pins": (), "after": Measured((at_scale(2.0**15), at_scale(2.0**2)), 1)}, 2.0**15),  # by a fault
    ],
)
def test_the_policy_begins_at_the_scale_that_passes(changes, initial_scale):
    assert verified_policy(FLOAT16, verification(**changes)).optimizer == OptimizerNeeds(True, initial_scale)


def test_an_optimizer_that_needs_no_scale_is_given_none():
    policy = replace(FLOAT16, optimizer=OptimizerNeeds())
    proof = verification(after=Measured((at_scale(2.0**13),), 1, 2))
    assert verified_policy(policy, proof).optimizer == OptimizerNeeds()


def test_in_words_the_scale_that_the_policy_begins_with():
    view = proof_view(verification(after=Measured((at_scale(2.0**13),), 1, 2)))
    rows = dict(view.rows)
    assert rows["loss scale"] == ("judged at 8,192, to which it fell from 32,768: the policy begins there")


def test_where_the_training_fell_further_all_words_name_the_scale_of_the_policy():
    further = verification(pins=(), after=Measured((at_scale(2.0**14), at_scale(2.0**12)), 1, 1))
    assert verdict_sentence(further).endswith("no layer needs float32, with a loss scale that begins at 4,096.")
    assert dict(proof_view(further).rows)["loss scale"].startswith(
        "judged at 16,384, to which it fell from 32,768; the policy begins at 4,096, to which it fell in the training"
    )


def test_in_words_what_noise_excuses(tmp_path):
    turned = VariableComparison("hidden", "kernel", 0.997, 1.0, 1.0, True, Noise(1.0, 0.007, 1e-7, 1.0))
    excused = verification(after=Measured((at_scale(1.0), at_scale(1.0, turned)), 2))
    assert dict(proof_view(excused).rows)["rounding"] == (
        "1 of 2 replays below that passes: the errors drown in the noise of batches. They add 0.7 % to its variance "
        "(may add 2 %) and move the mean gradient by less than 0.1 % (may by 5 %)"
    )
    assert "the errors drown in the noise" in verified_policy(FLOAT16, excused).proof.sentence
    assert "drown" not in verified_policy(FLOAT16, verification()).proof.sentence
    assert "rounding" not in dict(proof_view(verification()).rows)
    write_verification(tmp_path, excused)
    assert read_verification(tmp_path) == excused


def test_one_of_before_noise_was_judged_is_read(tmp_path):
    write_verification(tmp_path, verification())
    file = tmp_path / "verification.yaml"
    later = ("rule:", "added_variance:", "moved_mean:", "fallen:", "gradient_floor:", "variable_floor:")
    later += ("variable_added_variance:", "variable_moved_mean:", "negligible_error:")
    lines = [line for line in file.read_text().splitlines() if not line.lstrip(" -").startswith(later)]
    file.write_text("\n".join(lines))
    read = read_verification(tmp_path)
    assert read.criterion == Criterion()
    assert (read.after.fallen, read.after.replays[0].rule) == (0, None)
