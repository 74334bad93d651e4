"""Rules on reference steps with a known truth: own errors before inherited ones, and no alarm without harm."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from precscope.advice import analyze, keep_float32
from precscope.reference_records import ReferenceRecord, ReferenceStepRecord
from tests.synthetic_runs import TOWER, SyntheticRun, healthy, layer, values, with_bad

STEP = ReferenceStepRecord(10, "settled", 64, 64, 1024.0, 1.0, 1.0, "equal", False, 1_000_000)
FINE: dict[str, Any] = {
    "count": 1000,
    "reference_nonzero": 1000,
    "reference_norm": 1.0,
    "flushed": 0,
    "overflowed": 0,
    "nans": 0,
    "relative_error": 5e-4,
    "sqnr_db": 66.0,
    "cosine": 0.9999999,
    "own_reference_nonzero": 1000,
    "own_flushed": 0,
    "own_overflowed": 0,
    "own_nans": 0,
    "own_relative_error": 4e-4,
    "own_sqnr_db": 68.0,
    "own_cosine": 0.9999999,
}


def measured(layer_id: str, kind: str = "activation", **changes: Any) -> ReferenceRecord:
    name = "kernel" if kind == "weight_gradient" else "0"
    return ReferenceRecord(10, "settled", layer_id, kind, name, **(FINE | changes))  # type: ignore[arg-type]


def harm(error: float) -> ReferenceRecord:
    return measured("first", "weight_gradient", relative_error=error)


def findings_of(tmp_path, *records, step=STEP, layers=TOWER, **model):
    run = SyntheticRun(layers, [healthy()], model=model).read(tmp_path / "run")
    return analyze(replace(run, reference_steps=(step,), reference=tuple(records)))


def the(findings, rule):
    (found,) = [finding for finding in findings if finding.id == rule]
    return found


def test_a_layer_without_an_error_of_its_own_is_left_alone(tmp_path):
    inherited = measured("second", relative_error=0.9, cosine=0.4)
    findings = findings_of(tmp_path, measured("first", own_relative_error=0.5, own_cosine=0.8), inherited, harm(0.5))
    assert keep_float32(findings) == ("first",)
    finding = the(findings, "measured_error")
    assert (finding.severity, finding.confidence) == ("error", "measured")
    assert finding.numbers["own relative error"] == (0.5, 0.05, "share")
    assert finding.numbers["error of all weight gradients"].value == 0.5
    assert "Given exact input, 'first' is off by 50%" in finding.sentence


@pytest.mark.parametrize(
    ("own_error", "cosine", "severity"),
    [
        (0.049, 0.9991, None),
        (0.06, 0.9991, "warning"),
        (0.04, 0.998, "warning"),
        (0.2, 0.9991, "error"),
        (0.04, 0.98, "error"),
    ],
)
def test_an_error_of_ones_own_by_its_size(tmp_path, own_error, cosine, severity):
    record = measured("first", own_relative_error=own_error, own_cosine=cosine)
    found = [f.severity for f in findings_of(tmp_path, record, harm(0.5)) if f.id == "measured_error"]
    assert found == ([] if severity is None else [severity])


def test_an_error_that_does_no_harm_is_only_mentioned(tmp_path):
    findings = findings_of(tmp_path, measured("first", own_relative_error=0.5), harm(0.01))
    assert (the(findings, "measured_error").severity, keep_float32(findings)) == ("info", ())


def test_small_gradients_weigh_little_in_the_harm(tmp_path):
    """A key's bias in an attention has the gradient 0, and what float16 makes of it is noise."""
    noise = replace(measured("second", "weight_gradient", relative_error=5000.0, reference_norm=1e-7), name="bias")
    findings = findings_of(tmp_path, measured("first", own_relative_error=0.5), harm(0.01), noise)
    assert the(findings, "measured_error").severity == "info"


def test_a_tensor_of_which_nothing_is_left(tmp_path):
    record = measured("first", own_flushed=1000, own_relative_error=1.0, own_cosine=None)
    finding = the(findings_of(tmp_path, record, harm(0.5)), "measured_error")
    assert (finding.severity, finding.numbers["cosine"].value) == ("error", 0.0)
    assert "100% of its values became zero" in finding.sentence


def test_each_layer_of_a_chain_that_breaks_by_itself_is_named(tmp_path):
    records = [measured("first", own_overflowed=3), measured("second", own_nans=2, nans=2)]
    findings = findings_of(tmp_path, *records, step=replace(STEP, loss_policy=math.nan))
    assert keep_float32(findings) == ("first", "second")
    assert [f.severity for f in findings if f.id == "measured_break"] == ["error", "error"]


def test_infinities_that_their_readers_make_nothing_of_are_harmless(tmp_path):
    """The minus infinity of a mask, before a softmax."""
    records = [measured("first", own_overflowed=300, overflowed=300), measured("second")]
    finding = the(findings_of(tmp_path, *records, step=replace(STEP, loss_policy=None)), "measured_break")
    assert (finding.severity, finding.action) == ("info", "none")


def test_infinities_that_a_reader_turns_into_something_else_are_not(tmp_path):
    """A variance that overflows, before a division that makes zeros of it."""
    records = [measured("first", own_overflowed=3, overflowed=3), measured("second", relative_error=1.0), harm(0.9)]
    assert the(findings_of(tmp_path, *records), "measured_break").severity == "error"


@pytest.mark.parametrize(
    ("share", "cosine", "severity"),
    [(0.009, 0.9, None), (0.05, 0.9995, None), (0.05, 0.998, "warning"), (0.2, 0.998, "error"), (0.05, 0.98, "error")],
)
def test_gradients_that_are_flushed_ask_for_a_scale(tmp_path, share, cosine, severity):
    record = measured("first", "gradient", flushed=round(share * 1000), cosine=cosine)
    found = [f for f in findings_of(tmp_path, record, harm(0.5)) if f.id == "measured_underflow"]
    assert [f.severity for f in found] == ([] if severity is None else [severity])
    assert all((f.layer, f.action) == ("first", "raise_loss_scale") for f in found)


def test_without_a_loss_scale_the_optimizer_is_to_be_wrapped(tmp_path):
    record = measured("first", "gradient", flushed=500, cosine=0.5)
    findings = findings_of(tmp_path, record, harm(0.5), loss_scaling="none")
    assert the(findings, "measured_underflow").action == "wrap_optimizer"


def test_zeros_behind_a_layer_that_errs_are_its_consequence(tmp_path):
    records = [measured("second", own_relative_error=0.9), measured("first", "gradient", flushed=900, cosine=0.1)]
    findings = findings_of(tmp_path, *records, harm(0.9))
    assert [f.id for f in findings if f.severity != "info"] == ["measured_error"]


def test_a_saturated_gate_matters_only_where_the_gradients_of_all_weights_are_off(tmp_path):
    gate = measured("second", "gradient", own_cosine=0.6, own_relative_error=0.8)
    for error, severity in ((0.01, "info"), (0.5, "warning")):
        finding = the(findings_of(tmp_path / severity, gate, harm(error)), "measured_backward_error")
        assert (finding.layer, finding.severity) == ("second", severity)


def test_what_lies_between_two_layers_in_float32_goes_with_them(tmp_path):
    """A sigmoid whose gradient no scale can hold, a Reshape, and a loss that breaks on what rounds to 1."""
    layers = (
        TOWER[0],
        layer("first", "input"),
        layer("shape", "first", type="Reshape", unseen="it only rearranges its input"),
        layer("second", "shape"),
        layer("head", "second", compute="float32"),
    )
    records = [measured("second", own_nans=2), measured("first", "gradient", own_flushed=30, own_overflowed=4)]
    findings = findings_of(tmp_path, *records, step=replace(STEP, loss_policy=math.nan), layers=layers)
    assert set(keep_float32(findings)) == {"first", "shape", "second"}


def test_a_step_that_is_not_finite_in_float32_is_no_reference(tmp_path):
    broken = measured("first", own_nans=1000, own_relative_error=None, own_cosine=None)
    spoiled = replace(STEP, loss_reference=math.nan, loss_policy=math.nan)
    assert keep_float32(findings_of(tmp_path, broken, harm(0.5))) == ("first",)
    assert keep_float32(findings_of(tmp_path / "spoiled", broken, harm(0.5), step=spoiled)) == ()


@pytest.mark.parametrize(
    ("loss", "settled", "pins"),
    [(1.0, 64.0, ("first", "second")), (1.0, 1024.0, ("first",)), (math.nan, 64.0, ("first",))],
)
def test_a_reader_whose_backward_pass_the_loss_scale_fell_for(tmp_path, loss, settled, pins):
    """At a scale that was not kept; and not where the loss itself had broken, for that made it fall."""
    broken = measured("second", "gradient", own_overflowed=4)
    off = measured("first", own_relative_error=0.5, own_cosine=0.8)
    step = replace(STEP, loss_policy=loss)
    run = SyntheticRun(steps=[healthy()], scales=[(0, 1024.0, 0), (9, settled, 0)]).read(tmp_path / "run")
    run = replace(run, reference_steps=(step,), reference=(off, broken, harm(0.5)))
    assert keep_float32(analyze(run)) == pins


def test_a_gradient_that_its_reader_flushed_is_not_lost_behind_it(tmp_path):
    layers = (*TOWER[:3], layer("third", "second"), layer("head", "third", compute="float32"))
    lost = {"own_flushed": 900, "own_cosine": 0.1}
    behind = measured("second", "gradient", **lost)
    breaks = measured("third", own_nans=5)
    step = replace(STEP, loss_policy=math.nan)
    findings = findings_of(tmp_path, behind, breaks, harm(0.5), step=step, layers=layers)
    assert keep_float32(findings) == ("third", "second")
    maker = measured("third", "gradient", **lost)
    findings = findings_of(tmp_path / "maker", behind, maker, breaks, harm(0.5), step=step, layers=layers)
    assert keep_float32(findings) == ("third",)


def collapsed(tmp_path, *records):
    """A gradient that overflows at every scale, at the first layer of two in float16."""
    step = healthy() | {"gradient first": with_bad(values(), math.inf)}
    run = SyntheticRun(steps=[step], scales=[(0, 2.0**15, 0), (30, 2.0**-15, 30), (99, 2.0**-15, 30)])
    return replace(run.read(tmp_path / "run"), reference_steps=(STEP,), reference=records)


def test_the_layer_whose_backward_pass_breaks_is_named_not_the_one_that_gets_it(tmp_path):
    skipped = the(analyze(collapsed(tmp_path, measured("second", "gradient", own_overflowed=1000))), "skipped_steps")
    assert (skipped.layer, skipped.action, skipped.consumers) == ("second", "keep_float32", ())
    assert "The gradient of 'first' overflowed first: 'second' makes it so of a finite one." in skipped.sentence
    skipped = the(analyze(collapsed(tmp_path / "not", measured("second", "gradient"))), "skipped_steps")
    assert (skipped.layer, skipped.action) == ("first", "keep_float32")


@pytest.mark.parametrize(("norm", "pins"), [(1e-3, ("second",)), (1e-6, ())])
def test_a_variable_without_a_share_in_the_gradient_does_not_matter(tmp_path, norm, pins):
    """The bias of a key in attention: a softmax takes no notice of it, so its gradient is nothing but rounding."""
    turned = measured("second", "weight_gradient", reference_norm=norm, own_relative_error=2.0, own_cosine=-0.02)
    assert keep_float32(findings_of(tmp_path, turned, harm(0.06))) == pins


def test_zeros_at_a_scale_that_collapsed_are_a_consequence(tmp_path):
    zeros = measured("first", "gradient", flushed=900, cosine=0.1)
    assert "measured_underflow" in [f.id for f in findings_of(tmp_path, zeros, harm(0.5))]
    assert "measured_underflow" not in [f.id for f in analyze(collapsed(tmp_path / "2", zeros, harm(0.5)))]


def step_of(dtype):
    """Return the error of usual rounding."""
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7}[dtype] / 28**0.5


def chain(dtype):
    return (
        TOWER[0],
        layer("first", "input", compute=dtype),
        layer("second", "first", compute=dtype),
        layer("third", "second", compute=dtype),
        layer("head", "third", compute="float32"),
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_whoever_rounds_what_a_layer_makes_much_of_goes_with_it(tmp_path, dtype):
    off = measured("third", own_relative_error=0.5, own_cosine=0.8, rounded_input_relative_error=0.4)
    findings = findings_of(tmp_path / "1", off, measured("second"), harm(0.5), layers=chain(dtype))
    assert keep_float32(findings) == ("third", "second")
    finding = the(findings, "amplified_rounding")
    assert (finding.layer, finding.severity, finding.confidence) == ("second", "error", "measured")
    assert f"'second' hands over is rounded to {dtype}, and that alone puts 'third' off by 40%" in finding.sentence
    # What rounding its input does to the second layer counts as often more as the third makes of rounding.
    for error, pins in ((0.1, ("third", "second")), (0.2, ("third", "second", "first"))):
        passes_on = measured("second", rounded_input_relative_error=error * step_of(dtype))
        run = findings_of(tmp_path / str(error), off, passes_on, harm(0.5), layers=chain(dtype))
        assert keep_float32(run) == pins


def test_values_that_leave_the_format_are_not_rounded(tmp_path):
    """A variance that overflows, of which a root makes zeros: nothing is wrong with what the variance is given."""
    off = measured("third", own_relative_error=0.5, own_cosine=0.8, rounded_input_relative_error=0.5)
    broken = measured("second", own_overflowed=500, overflowed=500, rounded_input_relative_error=1e-4)
    step = replace(STEP, loss_policy=1.2)
    findings = findings_of(tmp_path, off, broken, harm(0.5), layers=chain("float16"), step=step)
    assert set(keep_float32(findings)) == {"second", "third"}


def test_rounding_that_stays_as_small_as_it_was_asks_for_one_layer_only(tmp_path):
    """A norm whose squares overflow: float32 inside it is all that it needs."""
    off = measured("second", own_relative_error=0.5, own_cosine=0.8, rounded_input_relative_error=0.001)
    assert keep_float32(findings_of(tmp_path, off, measured("first"), harm(0.5))) == ("second",)
    harmless = replace(off, rounded_input_relative_error=0.4)
    assert keep_float32(findings_of(tmp_path / "harmless", harmless, harm(0.01))) == ()


HEADLESS = (*TOWER[:2], layer("second", "first", compute="bfloat16"))


@pytest.mark.parametrize(
    ("error", "own_error", "all_weights", "severity"),
    [
        (0.14, 0.0017, 0.5, None),
        (0.2, 0.0017, 0.5, "warning"),
        (0.9, 0.0017, 0.5, "error"),
        (0.9, 0.0012, 0.5, None),  # of an error of 0.002 that is a third, by squares
        (0.9, 0.0017, 0.01, None),
    ],
)
def test_an_output_whose_rounding_is_most_of_the_loss(tmp_path, error, own_error, all_weights, severity):
    records = [
        measured("second", relative_error=0.002, own_relative_error=own_error),
        measured("second", "gradient", relative_error=error, cosine=0.9),
    ]
    findings = findings_of(tmp_path, *records, harm(all_weights), layers=HEADLESS)
    found = [f for f in findings if f.id == "output_rounding"]
    assert [f.severity for f in found] == ([] if severity is None else [severity])
    assert keep_float32(findings) == (() if severity is None else ("second",))


def test_a_loss_scale_that_flushes_the_gradient_is_no_matter_of_the_output(tmp_path):
    records = [measured("second"), measured("second", "gradient", relative_error=0.9, cosine=0.9, flushed=500)]
    findings = findings_of(tmp_path, *records, harm(0.5), layers=(*TOWER[:2], layer("second", "first")))
    assert "output_rounding" not in [finding.id for finding in findings]


def added_loss(**changes):
    return replace(measured("second", count=1, **changes), name="added loss 0")


def test_a_layer_that_breaks_the_loss_that_it_adds(tmp_path):
    """What the layer puts out is fine, and so is what its reader makes of it."""
    loss = added_loss(own_overflowed=1, overflowed=1)
    run = replace(
        collapsed(tmp_path, measured("second"), measured("head"), loss),
        reference_steps=(replace(STEP, loss_policy=math.inf),),
    )
    findings = analyze(replace(run, samples=tuple(replace(sample, loss=math.inf) for sample in run.samples)))
    assert keep_float32(findings) == ("second",)
    assert "loss_not_finite" not in [finding.id for finding in findings]
    assert "'second' turns the loss that it adds into infinities" in the(findings, "measured_break").sentence
    assert the(findings, "skipped_steps").layer == "second"


@pytest.mark.parametrize(
    ("reader", "layer_id", "action"), [("float16", "second", "keep_float32"), ("float32", "first", "fix_layer")]
)
def test_a_bad_gradient_that_a_float32_layer_gets_was_made_by_its_float16_reader(tmp_path, reader, layer_id, action):
    layers = (TOWER[0], layer("first", "input", compute="float32"), layer("second", "first", compute=reader), TOWER[3])
    step = healthy() | {"gradient first": with_bad(values(dtype=np.float32), math.inf)}
    scales = [(0, 2.0**15, 0), (30, 2.0**-15, 30), (99, 2.0**-15, 30)]
    skipped = the(analyze(SyntheticRun(layers, [step], scales=scales).read(tmp_path / "run")), "skipped_steps")
    assert (skipped.layer, skipped.action) == (layer_id, action)
