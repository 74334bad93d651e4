"""Silent faults told by their signatures, and by name only; a reference step that measured the layer knows better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from precscope.advice import analyze, keep_float32
from precscope.origin_records import DATA_ID
from tests.synthetic_runs import SyntheticRun, layer, values
from tests.test_measured_rules import STEP, harm, measured

#: The data, and a layer without weights that reads them.
PAIR = (
    layer(DATA_ID, type="InputLayer", compute="float32", parameters=0),
    layer("first", DATA_ID, type="Lambda", parameters=0),
)


def run_of(tmp_path, given, put_out, samples=4, layers=PAIR):
    step = {f"activation {DATA_ID}": np.asarray(given, np.float32), "activation first": np.asarray(put_out)}
    run = SyntheticRun(layers, [step] * samples).read(tmp_path / "run")
    named = [replace(t, name="x") if t.layer == DATA_ID else t for t in run.tensors]
    return replace(run, tensors=tuple(named))


def found(run, rule):
    return [finding for finding in analyze(run) if finding.id == rule]


@pytest.mark.parametrize(
    ("center", "deviation", "whole", "is_found"),
    [
        (1013.0, 0.2, False, True),
        (1013.0, 20.0, False, False),
        (5.0, 2.0, False, False),
        (0.0, 1e-3, False, False),
        (2010.0, 3.0, True, False),  # years
        (20_000.0, 30.0, True, True),  # days
    ],
)
def test_values_that_are_rounded_to_a_few_steps(tmp_path, center, deviation, whole, is_found):
    given = center + values(640, deviation, np.float32).reshape(64, 10)
    run = run_of(tmp_path, np.round(given) if whole else given, values(640).reshape(64, 10))
    findings = found(run, "cast_rounding")
    assert [(f.layer, f.action, f.severity, f.confidence, f.alternative) for f in findings] == (
        [("first", "keep_float32", "warning", "predicted", "scale_input")] if is_found else []
    )


def test_a_layer_that_casts_by_itself_or_is_float32_is_not_warned_of(tmp_path):
    given = 1013 + values(640, 0.2, np.float32).reshape(64, 10)
    for changes in ({"autocast": False}, {"compute_dtype": "float32", "policy": "float32"}):
        layers = (PAIR[0], replace(PAIR[1], **changes))
        run = run_of(tmp_path / str(len(changes)), given, values(640).reshape(64, 10), layers=layers)
        assert found(run, "cast_rounding") == []


@pytest.mark.parametrize(("scale", "out", "is_found"), [(300, 0, True), (300, 1, False), (0.5, 0, False)])
def test_zeros_behind_squares_that_float16_cannot_hold(tmp_path, scale, out, is_found):
    put_out = np.zeros((64, 32), np.float16)
    put_out[0, 0] = out
    run = run_of(tmp_path, values(2048, scale, np.float32).reshape(64, 32), put_out)
    assert [f.layer for f in found(run, "vanished_output")] == (["first"] if is_found else [])
    assert keep_float32(analyze(run)) == (("first",) if is_found else ())


@pytest.mark.parametrize(
    ("largest", "given", "samples", "is_found"),
    [(2048, 1, 4, True), (2048, 1, 3, False), (2047, 1, 4, False), (2048, 5, 4, False)],
)
def test_a_sum_of_ones_that_stands_still(tmp_path, largest, given, samples, is_found):
    counts = np.linspace(0, largest, 64).astype(np.float16)[None]
    run = run_of(tmp_path, np.full((1, 64), given), counts, samples)
    assert [f.layer for f in found(run, "stalled_sum")] == (["first"] if is_found else [])


def test_a_reference_step_knows_better(tmp_path):
    counts = np.linspace(0, 2048, 64).astype(np.float16)[None]
    run = run_of(tmp_path, np.ones((1, 64)), counts)
    run = replace(run, reference_steps=(STEP,), reference=(measured("first"), harm(0.0)))
    assert [f for f in analyze(run) if f.severity != "info"] == []


def test_labels_are_not_what_a_layer_reads(tmp_path):
    run = run_of(tmp_path, 4e5 + values(64, 1e4, np.float32)[None], values(64)[None])
    assert [f.action for f in found(run, "cast_overflow")] == ["scale_input"]
    labels = tuple(replace(t, name="y") if t.layer == DATA_ID else t for t in run.tensors)
    assert [f for f in analyze(replace(run, tensors=labels)) if f.severity != "info"] == []


def test_which_of_several_features_a_layer_reads_is_not_guessed(tmp_path):
    run = run_of(tmp_path, 4e5 + values(64, 1e4, np.float32)[None], values(64)[None])
    first, second = run.tensors
    layers_data = replace(first, index=0, name="x/amount"), second, replace(first, index=0, name="x/other")
    assert [f for f in analyze(replace(run, tensors=layers_data)) if f.severity != "info"] == []
