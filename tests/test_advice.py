"""Findings from runs with a known truth: the right layer, the right action, and silence where nothing is wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from precscope.advice import RULES, Evidence, Thresholds, analyze, keep_float32
from precscope.advice.actions import advise
from precscope.advice.verdict import give_verdict
from precscope.records import NoticeRecord
from precscope.reference_records import ReferenceStepRecord
from tests.synthetic_runs import TOWER, SyntheticRun, healthy, layer, values, with_bad

INF, NAN = math.inf, math.nan
NOTHING_SEEN = (
    "No further layer was seen to need float32 ('head' is in it already); what 16 bits lose unseen was not measured."
)
FLOAT16_MAX = float(np.finfo(np.float16).max)


def found(run, rule):
    return [finding for finding in analyze(run) if finding.id == rule]


def the(run, rule):
    findings = found(run, rule)
    assert len(findings) == 1, findings
    return findings[0]


def verdict_of(run):
    evidence = Evidence(run)
    return give_verdict(evidence, analyze(evidence))


def serious(run):
    return [finding for finding in analyze(run) if finding.severity != "info"]


# Healthy runs


def test_a_healthy_run_needs_nothing(tmp_path):
    steps = [healthy(seed) for seed in range(0, 50, 10)]
    run = SyntheticRun(steps=steps, scales=[(0, 2.0**15, 0), (4000, 2.0**17, 0)]).read(tmp_path / "run")
    assert analyze(run) == ()
    assert verdict_of(run).sentence == NOTHING_SEEN
    assert verdict_of(run).level == "good"


def test_single_skips_while_the_scale_grows_are_healthy(tmp_path):
    looks = [(step, 2.0**16, skips) for step, skips in ((0, 0), (2000, 1), (4000, 2), (6000, 3))]
    run = SyntheticRun(steps=[healthy(), healthy(1)], scales=looks).read(tmp_path / "run")
    finding = the(run, "skipped_steps")
    assert (finding.severity, finding.action, finding.layer) == ("info", "none", None)
    assert finding.sentence == "The optimizer skipped 3 of 6,000 steps while the loss scale sought its level: healthy."
    assert verdict_of(run).sentence == NOTHING_SEEN


def test_a_relu_net_with_mostly_zeros_stays_silent(tmp_path):
    step = {key: np.where(array > 0, array, 0).astype(array.dtype) for key, array in healthy().items()}
    assert serious(SyntheticRun(steps=[step]).read(tmp_path / "run")) == []


def test_many_subnormal_gradients_beside_large_ones_are_only_mentioned(tmp_path):
    """The small ones cannot turn the gradient, however many they are."""
    gradient = np.concatenate([values(900, 1e-5, seed=1), values(100, 1.0, seed=2)])
    run = SyntheticRun(steps=[healthy() | {"gradient first": gradient}]).read(tmp_path / "run")
    finding = the(run, "gradient_leak")
    assert (finding.severity, finding.action, finding.layer) == ("info", "none", "first")
    assert finding.numbers["subnormal"].value > 0.5
    assert finding.numbers["cosine, at least"].value > 0.999
    assert serious(run) == []


def test_a_softmax_in_16_bits_without_harm_is_only_mentioned(tmp_path):
    layers = (*TOWER[:3], layer("head", "second", type="Softmax"))
    probabilities = np.full((100, 10), 0.1, np.float16)
    step = healthy() | {"activation head": probabilities, "gradient head": values()}
    finding = the(SyntheticRun(layers, [step]).read(tmp_path / "run"), "output_in_16_bits")
    assert (finding.severity, finding.action, finding.layer) == ("info", "none", "head")


def test_a_softmax_in_16_bits_that_overflows_only_while_the_scale_grows_is_only_mentioned(tmp_path):
    layers, step = head_overflow()
    looks = [(0, 2.0**15, 0), (5000, 2.0**17, 1), (9000, 2.0**17, 1)]
    run = SyntheticRun(layers, [step], samples=[{"loss_scale": 2.0**18, "applied": False}], scales=looks)
    assert serious(run.read(tmp_path / "run")) == []


# Forward


def test_the_source_of_an_overflow_is_named_not_its_victims(tmp_path):
    bad = healthy(1) | {
        "activation second": with_bad(values(), INF, -INF, INF),
        "activation head": with_bad(values(dtype=np.float32), NAN),
    }
    run = SyntheticRun(steps=[healthy(), bad, bad]).read(tmp_path / "run")
    finding = analyze(run)[0]
    assert (finding.id, finding.layer, finding.severity) == ("activation_overflow", "second", "error")
    assert (finding.action, finding.confidence) == ("keep_float32", "observed")
    assert finding.numbers["infinities"] == (6, 0, "")
    assert finding.numbers["NaN"] == (0, 0, "")
    assert finding.numbers["largest input"].value == np.abs(bad["activation first"]).max()
    assert "in 2 of 3 sampled steps, first at step 10, although its input was finite" in finding.sentence
    assert "1 later layer only passed this on" in finding.sentence
    assert [f.layer for f in found(run, "activation_overflow")] == ["second"]
    assert verdict_of(run).sentence == "Keep 1 of 4 layers in float32: 'second'."


def test_an_overflowing_layer_takes_its_float16_consumers_along(tmp_path):
    layers = (*TOWER[:3], layer("left", "second"), layer("right", "second"), layer("head", "left", compute="float32"))
    bad = healthy() | {"activation second": with_bad(values(scale=1e4), INF)}
    run = SyntheticRun(layers, [bad]).read(tmp_path / "run")
    assert keep_float32(analyze(run)) == ("second", "left", "right")
    assert advise(analyze(run)[0]) == "Keep 'second' in float32, with 'left' and 'right' that read it."


def test_readers_are_followed_through_a_layer_that_was_not_recorded(tmp_path):
    flatten = layer("flatten", "second", type="Flatten", unseen="shares its input")
    layers = (*TOWER[:3], flatten, layer("third", "flatten"), layer("fourth", "third"))
    step = healthy() | {"activation second": with_bad(values(), 5e4), "activation third": values()}
    assert keep_float32(analyze(SyntheticRun(layers, [step]).read(tmp_path / "run"))) == ("second", "flatten", "third")


def test_nan_without_infinities_leaves_the_consumers_alone(tmp_path):
    layers = (*TOWER[:2], layer("second", "first"), layer("third", "second"), layer("head", "third", compute="float32"))
    bad = healthy() | {"activation second": with_bad(values(), NAN)}
    assert keep_float32(analyze(SyntheticRun(layers, [bad]).read(tmp_path / "run"))) == ("second",)


def test_of_a_container_and_a_layer_inside_it_the_inner_one_is_named(tmp_path):
    layers = (
        TOWER[0],
        layer("block", "input", type="Functional"),
        layer("block/dense", "input"),
        layer("head", "block"),
    )
    bad = with_bad(values(scale=1e4), INF)
    step = {"activation input": values(dtype=np.float32), "activation block/dense": bad, "activation block": bad}
    run = SyntheticRun(layers, [step]).read(tmp_path / "run")
    finding = the(run, "activation_overflow")
    assert (finding.layer, finding.consumers) == ("block/dense", ("head",))


def test_inputs_are_followed_through_layers_that_were_not_recorded(tmp_path):
    layers = (*TOWER[:2], layer("reshape", "first", type="Reshape", unseen="not selected"), layer("second", "reshape"))
    bad = healthy() | {"activation first": with_bad(values(), INF), "activation second": with_bad(values(), INF)}
    run = SyntheticRun(layers, [bad]).read(tmp_path / "run")
    assert [f.layer for f in found(run, "activation_overflow")] == ["first"]


def test_without_known_edges_only_the_first_bad_layer_is_a_source(tmp_path):
    layers = tuple(layer(item.id, type=item.type, compute=item.compute_dtype) for item in TOWER)
    bad = healthy() | {"activation first": with_bad(values(), INF), "activation second": with_bad(values(), NAN)}
    run = SyntheticRun(layers, [bad]).read(tmp_path / "run")
    finding = the(run, "activation_overflow")
    assert finding.layer == "first"
    assert "Its input was not recorded: check the data too" in finding.sentence


def test_nan_from_an_input_that_was_not_recorded_points_at_the_data(tmp_path):
    bad = healthy() | {"activation first": with_bad(values(), NAN)}
    del bad["activation input"]
    layers = (layer("input", type="InputLayer", unseen="not recorded"), *TOWER[1:])
    run = SyntheticRun(layers, [bad]).read(tmp_path / "run")
    finding = the(run, "activation_overflow")
    assert (finding.layer, finding.action) == ("first", "fix_data")
    assert keep_float32(analyze(run)) == ()


def test_in_bfloat16_the_format_is_not_blamed(tmp_path):
    layers = (TOWER[0], layer("first", "input", compute="bfloat16"))
    import ml_dtypes

    bad = with_bad(values(dtype=ml_dtypes.bfloat16), NAN)
    step = {"activation input": values(dtype=np.float32), "activation first": bad}
    run = SyntheticRun(layers, [step]).read(tmp_path / "run")
    finding = the(run, "activation_overflow")
    assert finding.action == "fix_layer"
    assert "bfloat16 reaches as far as float32" in finding.sentence
    assert keep_float32(analyze(run)) == ()
    assert verdict_of(run).sentence.startswith("Float32 is not the answer here.")


def test_bad_data_outrank_what_they_cause(tmp_path):
    bad = {key: with_bad(array, NAN) for key, array in healthy().items() if key.startswith("activation")}
    findings = analyze(SyntheticRun(steps=[healthy() | bad]).read(tmp_path / "run"))
    assert [(f.id, f.layer, f.action) for f in findings] == [("bad_input", "input", "fix_data")]
    assert "in the only sampled step (0)" in findings[0].sentence


def test_data_beyond_float16_are_named_before_the_layer_that_casts_them(tmp_path):
    step = healthy() | {
        "activation input": with_bad(values(dtype=np.float32), 7e4),
        "activation first": with_bad(values(), INF),
    }
    run = SyntheticRun(steps=[step]).read(tmp_path / "run")
    finding = analyze(run)[0]
    assert (finding.id, finding.layer, finding.action) == ("cast_overflow", "first", "scale_input")
    assert finding.numbers["largest input"] == (7e4, FLOAT16_MAX, "")
    assert (finding.severity, finding.confidence) == ("error", "observed")
    assert found(run, "activation_overflow") == []


def test_a_float32_layer_whose_output_float16_cannot_hold(tmp_path):
    layers = (*TOWER[:3], layer("wide", "second", compute="float32"), layer("tail", "wide"))
    step = healthy() | {"activation wide": with_bad(values(dtype=np.float32), 1e5), "activation tail": values()}
    finding = the(SyntheticRun(layers, [step]).read(tmp_path / "run"), "cast_overflow")
    assert (finding.layer, finding.action, finding.severity) == ("tail", "keep_float32", "warning")
    assert finding.confidence == "predicted"


@pytest.mark.parametrize(
    ("largest", "severity"),
    [(FLOAT16_MAX / 4.1, None), (FLOAT16_MAX / 3, "warning"), (FLOAT16_MAX / 1.5, "error"), (FLOAT16_MAX, "error")],
)
def test_headroom(tmp_path, largest, severity):
    step = healthy() | {"activation second": with_bad(values(), -largest)}
    findings = found(SyntheticRun(steps=[healthy(5), step]).read(tmp_path / "run"), "activation_headroom")
    assert [(f.layer, f.severity, f.action) for f in findings] == (
        [] if severity is None else [("second", severity, "keep_float32")]
    )
    for finding in findings:
        assert finding.numbers["headroom"].threshold == {"warning": 2.0, "error": 1.0}[severity]
        assert finding.numbers["largest output"] == (float(np.float16(largest)), FLOAT16_MAX, "")


def test_headroom_counts_only_steps_in_which_the_layer_was_finite_and_not_its_own_overflow(tmp_path):
    poisoned = healthy(1) | {
        "activation first": with_bad(values(), INF),
        "activation second": with_bad(values(), 6e4, NAN),
    }
    run = SyntheticRun(steps=[healthy(), poisoned]).read(tmp_path / "run")
    assert found(run, "activation_headroom") == []


def test_thresholds_can_be_moved(tmp_path):
    run = SyntheticRun(steps=[healthy()]).read(tmp_path / "run")
    findings = analyze(run, Thresholds(headroom_warning_bits=20.0))
    assert {f.layer for f in findings if f.id == "activation_headroom"} == {"first", "second"}


def test_a_loss_that_breaks_on_finite_activations(tmp_path):
    run = SyntheticRun(steps=[healthy()], samples=[{"loss": NAN}]).read(tmp_path / "run")
    finding = the(run, "loss_not_finite")
    assert (finding.layer, finding.action) == (None, "fix_data")
    layers = (*TOWER[:3], layer("head", "second"))
    step = healthy() | {"activation head": values(), "gradient head": values()}
    run = SyntheticRun(layers, [step], samples=[{"loss": INF}]).read(tmp_path / "other")
    finding = the(run, "loss_not_finite")
    assert (finding.layer, finding.action) == ("head", "keep_float32")


# Gradients and the loss scale


def head_overflow():
    layers = (*TOWER[:3], layer("head", "second", type="Softmax"))
    probabilities = np.zeros((100, 10), np.float16)
    probabilities[:, 0] = 1.0
    step = healthy() | {
        "activation head": probabilities,
        "gradient head": with_bad(values(), -INF),
        "gradient second": with_bad(values(), NAN),
        "gradient first": with_bad(values(), NAN),
        "weight_gradient first": with_bad(values(dtype=np.float32), NAN),
    }
    return layers, step


def test_persistent_skips_name_the_layer_nearest_the_loss(tmp_path):
    layers, step = head_overflow()
    looks = [(0, 2.0**15, 0), (12, 2.0**3, 12)]
    run = SyntheticRun(layers, [step], samples=[{"applied": False}], scales=looks).read(tmp_path / "run")
    finding = the(run, "skipped_steps")
    assert (finding.layer, finding.severity, finding.action) == ("head", "error", "keep_float32")
    assert finding.numbers["skipped in a row, at least"] == (12, 10, "")
    assert "skipped 12 of 12 steps; nothing was learned" in finding.sentence
    assert "The gradient of 'head' overflowed first" in finding.sentence
    output = the(run, "output_in_16_bits")
    assert (output.severity, output.action) == ("warning", "keep_float32")
    assert keep_float32(analyze(run)) == ("head",)


def test_a_scale_that_began_too_high_and_settled(tmp_path):
    overflow = healthy() | {"gradient second": with_bad(values(), INF), "gradient first": with_bad(values(), INF)}
    looks = [(0, 2.0**15, 0), (4, 2.0**11, 4), (500, 2.0**11, 4)]
    run = SyntheticRun(steps=[overflow, healthy()], samples=[{"applied": False}], scales=looks).read(tmp_path / "run")
    finding = the(run, "skipped_steps")
    assert (finding.layer, finding.severity, finding.action) == (None, "info", "none")
    assert "while the loss scale sought its level: healthy" in finding.sentence


def test_skips_that_no_sample_saw_ask_for_more_samples(tmp_path):
    looks = [(0, 2.0**15, 0), (20, 2.0**10, 5), (30, 1.0, 15)]
    finding = the(SyntheticRun(steps=[healthy()], scales=looks).read(tmp_path / "run"), "skipped_steps")
    assert (finding.layer, finding.severity, finding.action) == (None, "error", "sample_more")


def test_a_scale_that_keeps_sinking_is_not_healthy(tmp_path):
    """Skips far apart, but nothing ever raises the scale again."""
    looks = [(100 * i, 2.0 ** (15 - i), i) for i in range(13)]
    finding = the(SyntheticRun(steps=[healthy()], scales=looks).read(tmp_path / "run"), "skipped_steps")
    assert (finding.severity, finding.action) == ("warning", "sample_more")
    assert finding.numbers["scale fallen since half-time"] == (6.0, 3.0, "bits")
    assert "still falling at the end" in finding.sentence


def test_skips_without_a_later_update_are_not_called_healthy(tmp_path):
    run = SyntheticRun(steps=[healthy()], scales=[(0, 4.0, 0), (9, 4.0, 0), (11, 1.0, 2)]).read(tmp_path / "run")
    finding = the(run, "skipped_steps")
    assert finding.severity == "info"
    assert "whether training goes on is not known" in finding.sentence


def test_skips_that_bad_data_caused_are_not_called_healthy(tmp_path):
    bad = healthy() | {"activation input": with_bad(values(dtype=np.float32), NAN)}
    run = SyntheticRun(steps=[bad, healthy()], scales=[(0, 4.0, 0), (9, 2.0, 1)]).read(tmp_path / "run")
    assert "as they must be where the forward pass is not finite" in the(run, "skipped_steps").sentence


def test_many_single_skips_are_not_healthy(tmp_path):
    """One step in five: no run is long, but this is no search for a scale."""
    looks = [(step, 2.0**5, step // 5) for step in range(0, 500, 5)]
    finding = the(SyntheticRun(steps=[healthy()], scales=looks).read(tmp_path / "run"), "skipped_steps")
    assert finding.severity == "warning"


def test_a_forward_overflow_is_the_cause_of_skipped_steps(tmp_path):
    bad = {key: with_bad(array, NAN) for key, array in healthy().items() if key.startswith("gradient")}
    step = healthy() | bad | {"activation second": with_bad(values(), INF)}
    run = SyntheticRun(steps=[step], scales=[(0, 2.0**15, 0), (20, 2.0**-5, 20)]).read(tmp_path / "run")
    assert [f.id for f in analyze(run)][:3] == ["activation_overflow", "skipped_steps", "loss_scale_floor"]
    assert the(run, "skipped_steps").layer == "second"
    assert the(run, "loss_scale_floor").action == "stop_training"
    assert verdict_of(run).level == "bad"


def test_without_a_dynamic_scale_nothing_skips_a_bad_gradient(tmp_path):
    overflow = healthy() | {"gradient second": with_bad(values(), INF), "gradient first": with_bad(values(), INF)}
    for scaling, action in (("static", "lower_loss_scale"), ("none", "keep_float32")):
        run = SyntheticRun(steps=[overflow], model={"loss_scaling": scaling}).read(tmp_path / scaling)
        finding = the(run, "gradient_overflow")
        assert (finding.layer, finding.severity, finding.action) == ("second", "error", action)
        assert found(run, "skipped_steps") == []


def test_an_optimizer_without_a_loss_scale(tmp_path):
    finding = the(
        SyntheticRun(steps=[healthy()], model={"loss_scaling": "none"}).read(tmp_path / "run"), "unwrapped_optimizer"
    )
    assert (finding.severity, finding.action) == ("warning", "wrap_optimizer")
    assert finding.numbers["float16 layers with weights"].value == 2


@pytest.mark.parametrize(
    ("scaling", "action"), [("dynamic", "raise_loss_scale"), ("static", "raise_loss_scale"), ("none", "wrap_optimizer")]
)
def test_gradients_that_leak_ask_for_a_higher_scale(tmp_path, scaling, action):
    step = healthy() | {f"gradient {name}": values(scale=1e-7, seed=3) for name in ("first", "second")}
    step["weight_gradient first"] = values(scale=1e-6, dtype=np.float32)
    run = SyntheticRun(steps=[step], model={"loss_scaling": scaling}).read(tmp_path / "run")
    finding = the(run, "gradient_leak")
    assert (finding.severity, finding.action) == ("warning", action)
    assert finding.numbers["subnormal"].value == 1.0
    assert finding.numbers["cosine, at least"].value < 0.999
    predicted = [number.value for name, number in finding.numbers.items() if name.endswith("(predicted)")]
    assert 0 <= predicted[0] <= 0.05
    assert predicted[1] == 1.0  # values near 2**-24 at a scale of 2**15: without it not one would be left


def test_gradients_that_leak_while_others_are_at_the_limit_ask_for_bfloat16(tmp_path):
    step = healthy() | {"gradient first": values(scale=1e-7), "gradient second": with_bad(values(), 6e4)}
    finding = the(SyntheticRun(steps=[step]).read(tmp_path / "run"), "gradient_leak")
    assert (finding.layer, finding.severity, finding.action) == ("first", "warning", "use_bfloat16")


def test_gradients_are_judged_at_the_scale_that_the_run_ended_with(tmp_path):
    leaking = healthy() | {"gradient first": values(scale=1e-7)}
    samples = [{"loss_scale": 1.0}, {"loss_scale": 2.0**15}]
    run = SyntheticRun(steps=[leaking, healthy()], samples=samples).read(tmp_path / "run")
    assert found(run, "gradient_leak") == []


# Weights


def test_weights_that_were_bad_before_anything_computed(tmp_path):
    bad = {key: with_bad(array, NAN) for key, array in healthy().items() if not key.endswith("input")}
    run = SyntheticRun(steps=[healthy(), healthy() | bad]).read(tmp_path / "run")
    findings = analyze(run)
    assert (findings[0].id, findings[0].layer, findings[0].action) == ("bad_weights", "first", "restore_weights")
    assert "already held infinities or NaN by step 10" in findings[0].sentence
    assert found(run, "activation_overflow") == []


@pytest.mark.parametrize(("dtype", "severity"), [("float16", "warning"), ("float32", "info")])
def test_lost_updates(tmp_path, dtype, severity):
    step = healthy() | {"weight first": values(dtype=dtype)}
    run = SyntheticRun(steps=[step, step], updates={"first": (1000, 510)}).read(tmp_path / "run")
    finding = the(run, "lost_updates")
    assert (finding.layer, finding.severity) == ("first", severity)
    assert finding.numbers["lost updates"] == (0.51, 0.5, "share")


def test_half_of_the_updates_lost_is_not_more_than_half(tmp_path):
    run = SyntheticRun(steps=[healthy()], updates={"first": (1000, 500)}).read(tmp_path / "run")
    assert found(run, "lost_updates") == []


@pytest.mark.parametrize(
    ("gpus", "shape", "is_found"), [(1, (1, 16, 10), True), (1, (1, 16, 24), False), (0, (1, 16, 10), False)]
)
def test_sizes_that_tensor_cores_do_not_like(tmp_path, gpus, shape, is_found):
    step = healthy() | {"weight first": np.ones(shape, np.float32)}
    hardware = {"cpu_count": 2, "gpus": [{"name": "NVIDIA H100 80GB HBM3"}] * gpus}
    findings = found(SyntheticRun(steps=[step], record={"hardware": hardware}).read(tmp_path / "run"), "odd_sizes")
    assert [(f.severity, f.action) for f in findings] == ([("info", "pad_to_8")] if is_found else [])


# Neighbours of what is infinite, and how values move


@pytest.mark.parametrize(("size", "readers"), [(1e4, ("head",)), (1.0, ())])
def test_readers_follow_a_layer_whose_values_grow_but_not_a_division_by_zero(tmp_path, size, readers):
    layers = (*TOWER[:3], layer("head", "second"))
    step = healthy() | {"activation second": with_bad(values(scale=size), INF), "activation head": values()}
    finding = the(SyntheticRun(layers, [step]).read(tmp_path / "run"), "activation_overflow")
    assert finding.consumers == readers
    assert finding.alternative == (None if readers else "change_constant")


def test_a_reader_that_casts_by_itself_does_not_follow(tmp_path):
    layers = (*TOWER[:3], layer("norm", "second", type="LayerNormalization", autocast=False))
    step = healthy() | {"activation second": with_bad(values(scale=1e4), INF)}
    assert the(SyntheticRun(layers, [step]).read(tmp_path / "run"), "activation_overflow").consumers == ()


def test_readers_of_a_sum_follow_too(tmp_path):
    layers = (*TOWER[:3], layer("sum", "second", type="Add"), layer("tail", "sum"), layer("end", "tail"))
    step = healthy() | {"activation second": with_bad(values(scale=1e4), INF)}
    assert the(SyntheticRun(layers, [step]).read(tmp_path / "run"), "activation_overflow").consumers == ("sum", "tail")


def test_minus_infinity_that_nobody_passes_on_is_only_mentioned(tmp_path):
    step = healthy() | {"activation second": with_bad(values(), -INF, -INF)}
    run = SyntheticRun(steps=[step]).read(tmp_path / "run")
    finding = the(run, "activation_overflow")
    assert (finding.severity, finding.action) == ("info", "none")
    assert "a mask does this on purpose" in finding.sentence
    assert serious(run) == []


@pytest.mark.parametrize(
    ("peaks", "severity"),
    [
        ([3e4] * 8, "info"),
        ([FLOAT16_MAX] * 8, "info"),
        ([1e4, 1.2e4, 1.5e4, 1.8e4, 2.1e4, 2.5e4, 3e4, 3.3e4], "error"),
        ([3e4, 8e3] * 4, "warning"),
    ],
)
def test_headroom_of_a_value_that_stays_or_moves(tmp_path, peaks, severity):
    steps = [healthy(i) | {"activation second": with_bad(values(seed=i), peak)} for i, peak in enumerate(peaks)]
    assert the(SyntheticRun(steps=steps).read(tmp_path / "run"), "activation_headroom").severity == severity


def test_weights_show_that_a_fixed_scale_was_too_high(tmp_path):
    bad = healthy() | {"weight first": with_bad(values(dtype=np.float32), NAN)}
    run = SyntheticRun(steps=[healthy(), bad], model={"loss_scaling": "static"}, scales=[(0, 2.0**15, 0)])
    finding = the(run.read(tmp_path / "run"), "gradient_overflow")
    assert (finding.layer, finding.action) == ("first", "lower_loss_scale")


@pytest.mark.parametrize(("kind", "is_found"), [("Embedding", True), ("Dense", False)])
def test_an_embedding_that_a_dynamic_scale_did_not_protect(tmp_path, kind, is_found):
    bad = healthy() | {"weight first": with_bad(values(dtype=np.float32), NAN)}
    layers = (TOWER[0], layer("first", "input", type=kind), *TOWER[2:])
    looks = [(0, 2.0**15, 0), (12, 2.0**3, 12)]
    samples = [{"loss_scale": 2.0**15}, {"loss_scale": 2.0**14, "applied": False}]
    run = SyntheticRun(layers, [healthy(), bad], samples=samples, scales=looks).read(tmp_path / "run")
    findings = found(run, "gradient_overflow")
    assert [(f.layer, f.action) for f in findings] == ([("first", "lower_loss_scale")] if is_found else [])
    assert the(run, "skipped_steps").action == "restore_weights"
    assert "Weights that are not finite are the cause" in the(run, "skipped_steps").sentence
    assert keep_float32(analyze(run)) == ()


def test_a_gradient_that_is_zero_because_it_was_too_small(tmp_path):
    step = healthy() | {f"gradient {name}": np.zeros(1000, np.float16) for name in ("first", "second")}
    step |= {"gradient head": values(scale=1e-8, dtype=np.float32), "weight_gradient first": np.zeros(9, np.float32)}
    finding = the(SyntheticRun(steps=[step]).read(tmp_path / "run"), "gradient_leak")
    assert (finding.layer, finding.severity, finding.action) == ("second", "warning", "raise_loss_scale")
    step["gradient head"] = values(dtype=np.float32)  # large enough: then it is no underflow, but a dead layer
    assert found(SyntheticRun(steps=[step]).read(tmp_path / "dead"), "gradient_leak") == []


# Ranking


def test_errors_come_first_and_causes_before_consequences(tmp_path):
    layers, step = head_overflow()
    step["activation first"] = with_bad(values(), 3e4)
    run = SyntheticRun(layers, [step], scales=[(0, 2.0**15, 0), (30, 2.0**-15, 30)]).read(tmp_path / "run")
    ranked = [(f.severity, f.id) for f in analyze(run)]
    assert ranked == [
        ("error", "skipped_steps"),
        ("error", "loss_scale_floor"),
        ("warning", "activation_headroom"),
        ("warning", "output_in_16_bits"),
    ]


# Every rule on runs with next to nothing in them


def only_nan():
    return {key: np.full_like(array, NAN) for key, array in healthy().items()}


POOR_RUNS = {
    "no layers": SyntheticRun(layers=()),
    "no samples": SyntheticRun(),
    "no samples, running": SyntheticRun(status="running"),
    "one sample": SyntheticRun(steps=[healthy()]),
    "only NaN": SyntheticRun(steps=[only_nan(), only_nan()], samples=[{"loss": NAN}] * 2),
    "only zeros": SyntheticRun(steps=[{key: np.zeros_like(array) for key, array in healthy().items()}]),
    "empty tensors": SyntheticRun(steps=[{key: array[:0] for key, array in healthy().items()}]),
    "nothing recorded in a sample": SyntheticRun(steps=[{}, healthy()]),
    "no loss scale known": SyntheticRun(
        steps=[healthy()], samples=[{"loss_scale": None, "applied": None, "loss": None}], model={"loss_scaling": None}
    ),
    "an input that does not exist": SyntheticRun(
        layers=(layer("first", "gone", "first"),), steps=[{"activation first": values()}]
    ),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", POOR_RUNS)
def test_every_rule_takes_a_poor_run(tmp_path, name, rule):
    for finding in rule(Evidence(POOR_RUNS[name].read(tmp_path / "run"))):
        assert finding.id == rule.__name__
        assert finding.sentence
        assert advise(finding)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("no layers", "No step was sampled, so nothing can be said yet."),
        ("no samples", "No step was sampled, so nothing can be said yet."),
        ("one sample", NOTHING_SEEN),
        ("only NaN", "Float32 is not the answer here. Check the data"),
        ("only zeros", NOTHING_SEEN),
    ],
)
def test_verdicts_on_poor_runs(tmp_path, name, sentence):
    assert verdict_of(POOR_RUNS[name].read(tmp_path / "run")).sentence.startswith(sentence)


def test_a_running_and_a_float32_run_say_so(tmp_path):
    run = SyntheticRun(steps=[healthy()], status="running").read(tmp_path / "running")
    assert verdict_of(run).sentence == NOTHING_SEEN.replace("float32 (", "float32 so far (")
    wide = {key: array.astype(np.float32) for key, array in healthy().items()}
    layers = tuple(layer(item.id, *item.inputs, type=item.type, compute="float32") for item in TOWER)
    run = SyntheticRun(layers, [wide], model={"loss_scaling": "none"}).read(tmp_path / "float32")
    step = ReferenceStepRecord(5, "start", 8, 8, 1.0, 0.5, 0.5, "equal", False, 10**9)
    run = replace(run, reference_steps=(step,))
    assert "against float32" not in verdict_of(run).basis  # that was float32 with itself
    assert verdict_of(run).sentence == "No recorded layer computes in 16 bits, and all values were finite."
    assert analyze(run) == ()


# Whether it was measured


def test_that_no_layer_needs_float32_is_said_only_where_it_was_measured(tmp_path):
    run = SyntheticRun(steps=[healthy(), healthy(1)]).read(tmp_path / "run")
    step = ReferenceStepRecord(5, "start", 8, 8, 1.0, 0.5, 0.5, "equal", False, 10**9)
    verdict = verdict_of(replace(run, reference_steps=(step, replace(step, step=10, moment="end"))))
    assert verdict.sentence == "No further layer needs float32; 'head' is in it already."
    assert verdict.basis.endswith("Measured against float32 in 2 reference steps from step 5 to 10.")


@pytest.mark.parametrize(
    ("status", "replicas", "notice", "words"),
    [
        ("finished", 1, None, "no reference step was taken. Record again with reference=True for that."),
        ("finished", 2, None, "a batch is run again in a training on one device only."),
        ("running", 1, None, "no reference step was taken yet."),
        ("finished", 1, "even a small slice does not fit.", "even a small slice does not fit."),
    ],
)
def test_a_run_without_a_reference_step_says_so_and_why(tmp_path, status, replicas, notice, words):
    run = SyntheticRun(steps=[healthy()], status=status, model={"replicas": replicas}).read(tmp_path / "run")
    if notice is not None:
        run = replace(run, notices=(NoticeRecord(3, "info", "reference", notice),))
    assert verdict_of(run).basis.endswith(f"Not measured against float32: {words}")
