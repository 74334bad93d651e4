"""Comparing runs: the same work or why not, ratios, memory, and what explains a layer's change."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from precscope.compare import ComparisonError, compare, comparison_json
from tests.comparable_runs import op, read_run

MIB = 2**20


@pytest.fixture
def pair(tmp_path):
    """A run in float16 and one in float32, in this order."""
    half = read_run(tmp_path / "half", step_ms=(2.0, 2.2, 2.0, 2.4), results={"val_accuracy": [0.8, 0.91]})
    full = read_run(
        tmp_path / "full", "float32", step_ms=(4.0, 4.0, 4.4, 4.0), allocated=600 * MIB, applied=1000, results={}
    )
    return half, full


def test_ratios_are_to_the_only_float32_run(pair):
    comparison = compare(pair)
    half, full = comparison.runs
    assert comparison.same_work
    assert comparison.differences == ()
    assert comparison.reference == 1
    assert (half.step_time_ms.median, full.step_time_ms.median) == (2.0, 4.0)  # values that were measured
    assert (half.step_time_ms.lower_quartile, half.step_time_ms.upper_quartile) == (2.0, 2.2)
    assert (half.time_ratio, full.time_ratio) == (0.5, 1.0)
    assert half.examples_per_s == 16_000
    assert half.steps_timed == 200


def test_memory_is_the_allocators_before_the_first_probed_step(pair):
    comparison = compare(pair)
    assert comparison.memory_source == "allocator"
    assert [run.memory_bytes["allocator"] for run in comparison.runs] == [300 * MIB, 600 * MIB]
    assert comparison.runs[0].memory_ratio == 0.5


def test_memory_of_different_sources_is_not_compared(tmp_path):
    allocator = read_run(tmp_path / "a")
    nvml = read_run(tmp_path / "b", allocated=None, on_gpu=900 * MIB)
    comparison = compare([allocator, nvml])
    assert comparison.memory_source is None
    assert [run.memory_ratio for run in comparison.runs] == [None, None]
    assert comparison.runs[1].memory_bytes == {"gpu process": 900 * MIB}
    assert any("different sources" in caution for caution in comparison.cautions)


def test_the_first_source_that_all_runs_have_is_taken(tmp_path):
    first = read_run(tmp_path / "a", on_gpu=1000 * MIB)
    second = read_run(tmp_path / "b", allocated=None, on_gpu=750 * MIB)
    comparison = compare([first, second])
    assert comparison.memory_source == "gpu process"
    assert comparison.runs[1].memory_ratio == 0.75


def test_steps_loss_and_results_at_the_end(pair):
    half, full = compare(pair).runs
    assert (half.steps_applied, half.steps_skipped) == (980, 20)
    assert (half.loss, half.loss_step) == (0.5, 500)
    assert half.results == {"val_accuracy": 0.91}
    assert full.results == {}


@pytest.mark.parametrize(
    ("changes", "what", "values"),
    [
        ({"names": ("first", "other", "head")}, "layers", ("3 (with second)", "3 (with other)")),
        ({"names": ("first", "head")}, "layers", ("3 (with second)", "2")),
        ({"model": {"name": "bridge"}}, "model", ("tower", "bridge")),
        ({"model": {"class": "Sequential"}}, "model class", ("Functional", "Sequential")),
        ({"model": {"parameters": 7}}, "parameters", ("12,345", "7")),
        ({"model": {"inner_optimizer": "SGD"}}, "optimizer", ("Adam", "SGD")),
        ({"batch": 64}, "batch", ("32", "64")),
    ],
)
def test_other_work_is_named_and_gets_no_ratios(tmp_path, changes, what, values):
    runs = [read_run(tmp_path / "a", ops=[op("first", 1.0)]), read_run(tmp_path / "b", **changes)]
    if changes.get("names") == ("first", "other", "head"):  # a name alone would be no other layer
        runs[1] = replace(runs[1], layers=tuple(replace(item, type="Conv2D") for item in runs[1].layers))
    comparison = compare(runs)
    assert not comparison.same_work
    assert [(item.what, item.values) for item in comparison.differences] == [(what, values)]
    assert [run.time_ratio for run in comparison.runs] == [None, None]
    assert comparison.layers == ()
    assert comparison.runs[0].step_time_ms is not None  # what was measured stays


def test_names_that_keras_counted_up_are_the_same_work(tmp_path):
    first = read_run(tmp_path / "a", names=("dense", "dense_1"), ops=[op("dense_1", 2.0)], model={"name": "sequential"})
    second = read_run(
        tmp_path / "b", names=("dense_2", "dense_3"), ops=[op("dense_3", 1.0)], model={"name": "sequential_1"}
    )
    comparison = compare([first, second])
    assert comparison.same_work
    assert [(row.layer, row.time_ms, row.ratios) for row in comparison.layers] == [
        ("dense_1", (2.0, 1.0), (1.0, 0.5)),
    ]


def test_what_else_differs_is_told_and_does_not_stop_ratios(tmp_path):
    elsewhere = {"hardware": {"gpus": [{"name": "NVIDIA A100"}]}, "software": {"keras": "3.16.0"}}
    comparison = compare([read_run(tmp_path / "a"), read_run(tmp_path / "b", record=elsewhere)])
    assert {item.what: item.values for item in comparison.circumstances} == {
        "device": ("NVIDIA H100 80GB HBM3", "NVIDIA A100"),
        "Keras": ("3.15.1", "3.16.0"),
    }
    assert comparison.runs[1].time_ratio == 1.0


def layers_of(tmp_path, own, base, **changes):
    half = read_run(tmp_path / "half", ops=own, **changes)
    full = read_run(tmp_path / "full", "float32", ops=base)
    comparison = compare([half, full])
    return {row.layer or row.part: row for row in comparison.layers}


def test_layers_that_got_faster_and_why(tmp_path):
    plain = {"op_type": "FusedBatchNormV3", "tensor_core": None}
    rows = layers_of(
        tmp_path,
        [op("first", 1.0), op("second", 2.0), op("head", 0.5, **plain)],
        [op("first", 4.0, tensor_core=False), op("second", 3.0), op("head", 1.0, **plain)],
    )
    assert list(rows) == ["first", "second", "head"]  # the costliest first
    assert rows["first"].ratios == (0.25, 1.0)
    assert rows["first"].dtypes == ("float16", "float32")
    assert rows["first"].reasons == (("runs on tensor cores (which it was not)",), ())
    assert rows["second"].reasons == (("runs on tensor cores (as before)",), ())
    assert "bound by memory" in rows["head"].reasons[0][0]


def test_layers_that_got_slower_and_why(tmp_path):
    rows = layers_of(
        tmp_path,
        [op("first", 3.0, tensor_core=False), op("second", 1.0), op("second", 1.5, op_type="Cast", cast=True)],
        [op("first", 2.0), op("second", 1.0)],
        kernels={"first": (30, 64)},
    )
    assert rows["first"].reasons[0] == ("its products do not run on tensor cores any more; 30: no multiple of 8",)
    assert rows["second"].reasons[0] == ("1.5 ms more go into casts",)


def test_a_cpu_is_not_blamed_for_tensor_cores(tmp_path):
    cpu = {"device": "host", "tensor_core": False}
    rows = layers_of(tmp_path, [op("first", 3.0, **cpu)], [op("first", 2.0, **cpu)], kernels={"first": (30, 64)})
    assert rows["first"].ratios == (1.5, 1.0)
    assert rows["first"].reasons == ((), ())


def test_no_reason_is_made_up(tmp_path):
    unknown = {"op_type": None, "tensor_core": None}
    rows = layers_of(
        tmp_path,
        [op("first", 1.0, **unknown), op("second", 1.02), op(None, 1.0, direction="optimizer")],
        [op("first", 2.0, **unknown), op("second", 1.0), op(None, 3.0, direction="optimizer")],
    )
    assert rows["first"].reasons == ((), ())  # nothing says what its kernels do
    assert rows["second"].reasons == ((), ())  # no change to speak of
    assert rows["optimizer"].time_ms == (1.0, 3.0)
    assert rows["optimizer"].reasons == ((), ())


def test_a_layer_that_shares_its_kernels_says_so(tmp_path):
    rows = layers_of(tmp_path, [op("first", 1.0, shared_with=("second",))], [op("first", 2.0)])
    assert "its kernels also do work of second, so its own time is not known exactly" in rows["first"].reasons[0]
    assert rows["second"].time_ms == (0.0, None)


def test_what_was_not_measured_is_none_and_said(tmp_path):
    bare_run = read_run(tmp_path / "b", step_ms=(), applied=None, losses=(), results={"loss": [2.0, 1.0]})
    comparison = compare([read_run(tmp_path / "a"), bare_run])
    bare = comparison.runs[1]
    assert "'b' has no step times." in comparison.cautions
    assert bare.results == {"loss": 1.0}
    assert (bare.step_time_ms, bare.examples_per_s, bare.time_ratio, bare.loss) == (None, None, None, None)
    assert (bare.steps_applied, bare.steps_skipped) == (None, None)


def test_runs_in_which_nothing_was_measured_are_left_out(tmp_path):
    nothing = {"step_ms": (), "losses": (), "allocated": None, "applied": None}
    good, empty = read_run(tmp_path / "a"), read_run(tmp_path / "empty", **nothing)
    comparison = compare([good, empty, read_run(tmp_path / "c")], unreadable=["No run directory 'x'."])
    assert [run.name for run in comparison.runs] == ["a", "c"]
    assert comparison.cautions[0] == "Left out: No run directory 'x'."
    assert "Nothing was measured in" in comparison.cautions[1]
    with pytest.raises(
        ComparisonError, match=r"at least two runs, 1 of 2 can be used. Nothing was measured in '.*empty'"
    ):
        compare([good, empty])


def test_one_run_is_no_comparison(tmp_path):
    with pytest.raises(ComparisonError, match=r"A comparison needs at least two runs, got 1\.$"):
        compare([read_run(tmp_path / "a")])


def test_cautions(tmp_path):
    few = read_run(tmp_path / "few", step_ms=(2.0,))
    failed = read_run(tmp_path / "failed", status="failed")
    text = " ".join(compare([few, failed]).cautions)
    assert "'few' has 1 window of timed steps" in text
    assert "'failed' did not finish (failed)" in text


def test_json_holds_all_and_is_strict(pair, tmp_path):
    diverged = read_run(tmp_path / "nan", "mixed_bfloat16", losses=(1.0, math.nan), results={"loss": [math.inf]})

    def refuse(name):
        raise AssertionError(name)

    data = json.loads(comparison_json(compare([*pair, diverged])), parse_constant=refuse)
    assert (data["format"], data["version"]) == ("precscope-comparison", 1)
    assert [run["policy"] for run in data["runs"]] == ["mixed_float16", "float32", "mixed_bfloat16"]
    assert data["runs"][0]["step_time_ms"] == {
        "median": 2.0, "lower_quartile": 2.0, "upper_quartile": 2.2, "count": 4,
    }  # fmt: skip
    assert data["runs"][2]["loss"] == "nan"
    assert data["runs"][2]["results"] == {"loss": "inf"}
    assert data["runs"][1]["results"] == {}
