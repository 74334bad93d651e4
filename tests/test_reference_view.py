"""The reference step in reports: the rows, their order, and what a terminal shows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

import precscope
from precscope.reference_records import ReferenceRecord, ReferenceStepRecord
from precscope.reports.figures.reference_errors import reference_figure
from precscope.reports.reference_view import reference_view, worst_first
from precscope.reports.terminal_reference import reference_errors
from precscope.writer import RunWriter
from tests.core_fixtures import layer_record, run_record

if TYPE_CHECKING:
    from pathlib import Path

    from precscope.reader import Run

STEP = ReferenceStepRecord(
    step=40,
    moment="end",
    examples=16,
    batch=64,
    loss_scale=1024.0,
    loss_reference=0.25,
    loss_policy=math.inf,
    random="equal: drawn in float32 in both passes",
    compiled=False,
    time_ns=5_000_000,
    left_out=("stubborn: it computes in float16 by itself, whatever its policy says",),
)


def record(layer: str, kind: Any, name: str = "0", **changes: Any) -> ReferenceRecord:
    values: dict[str, Any] = {
        "step": 40,
        "moment": "end",
        "count": 1000,
        "reference_nonzero": 800,
        "reference_norm": 1.0,
        "flushed": 0,
        "overflowed": 0,
        "nans": 0,
        "relative_error": 1e-3,
        "sqnr_db": 60.0,
        "cosine": 0.9999,
        "inherited_relative_error": 5e-4,
        "own_reference_nonzero": 800,
        "own_flushed": 0,
        "own_overflowed": 0,
        "own_nans": 0,
        "own_relative_error": 5e-4,
        "own_sqnr_db": 66.0,
        "own_cosine": 0.99999,
    }
    return ReferenceRecord(layer=layer, kind=kind, name=name, **{**values, **changes})


NO_OWN: dict[str, Any] = {name: None for name in ReferenceRecord.__dataclass_fields__ if name.startswith("own_")}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_layers([layer_record(name, order=place) for place, name in enumerate(("first", "norm", "head"))])
    writer.add_reference(replace(STEP, step=40, moment="start"), [record("first", "activation", moment="start")])
    records = [
        record("head", "activation", **NO_OWN),
        record("norm", "activation", relative_error=0.5, own_overflowed=3, own_nans=1, overflowed=7, nans=2),
        record("first", "gradient", own_flushed=200, flushed=400),
        record("first", "weight_gradient", "kernel"),
        record("first", "weight_gradient", "bias", reference_norm=1e-9, own_relative_error=900.0, cosine=0.1),
    ]
    writer.add_reference(STEP, records)
    writer.close("finished")
    return precscope.open_run(writer.path)


def test_records_come_back_as_they_were_written(run: Run):
    assert run.reference_steps[-1] == STEP
    assert run.reference[1] == record("head", "activation", **NO_OWN)
    assert len(run.reference) == 6


def test_a_loss_that_was_nan_is_told_from_one_that_was_not_seen(tmp_path: Path):
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_reference(replace(STEP, loss_reference=None, loss_policy=math.nan), [])
    writer.close("finished")
    (step,) = precscope.open_run(writer.path).reference_steps
    assert step.loss_reference is None
    assert math.isnan(step.loss_policy or 0.0)


def test_the_last_step_is_shown_and_only_its_records(run: Run):
    view = reference_view(run)
    assert view is not None
    assert (view.step, view.moment, view.steps, view.examples, view.batch) == (40, "at the end", 2, 16, 64)
    assert view.losses == "0.25 in float32, inf in the policy"
    assert [row.layer for row in view.rows] == ["first", "first", "first", "norm", "head"]
    gradient, kernel, bias, norm, head = view.rows
    assert (gradient.flushed_share, gradient.own_flushed_share) == (0.5, 0.25)
    assert (norm.overflowed, norm.own_overflowed) == (9, 4)
    assert head.own_overflowed is None
    assert (kernel.tensor, bias.tensor, gradient.tensor) == ("gradient of kernel", "gradient of bias", "gradient")
    assert [row.is_negligible for row in (kernel, bias)] == [False, True]
    only = reference_view(run, {"head"})
    assert only is not None
    assert [row.layer for row in only.rows] == ["head"]


def test_overflow_comes_before_flushing_and_that_before_error(run: Run):
    view = reference_view(run)
    assert view is not None
    ranked = [(row.layer, row.tensor) for row in worst_first(view.rows)]
    assert ranked[:3] == [("norm", "output"), ("first", "gradient"), ("first", "gradient of kernel")]
    assert ranked[-1] == ("first", "gradient of bias")  # a gradient of no account, however wrong


def test_without_a_reference_step_nothing_is_shown(tmp_path: Path):
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.close("finished")
    assert reference_view(precscope.open_run(writer.path)) is None
    assert list(reference_errors(None, 80, False)) == []


def rendered(run: Run, width: int) -> list[str]:
    console = Console(width=width, color_system=None, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        for line in reference_errors(reference_view(run), width, False):
            console.print(line, no_wrap=True)
    return capture.get().splitlines()


def test_the_terminal_at_120_columns(run: Run):
    lines = rendered(run, 120)
    assert all(len(line) <= 120 for line in lines)
    assert lines[1].startswith("Errors against float32, largest own first ──")
    text = " ".join(" ".join(lines).split())
    assert "step 40, at the end, on 16 of 64 examples, for more did not fit into memory" in text
    assert "Loss 0.25 in float32, inf in the policy. Random numbers equal" in text
    assert "stubborn: it computes in float16 by itself" in text
    table = [line.split() for line in lines[-6:]]
    assert " ".join(table[0]) == "layer tensor own error own flush own ovfl. whole cosine inherited"
    assert table[1] == ["norm", "output", "5.00e-04", "0%", "4", "0.5", "1", "5.00e-04"]
    assert table[2] == ["first", "gradient", "5.00e-04", "25%", "0", "0.001", "1", "5.00e-04"]
    assert ["head", "output", "–", "–", "–", "0.001", "1", "5.00e-04"] in table


def test_the_terminal_at_80_columns(run: Run):
    lines = rendered(run, 80)
    assert all(len(line) <= 80 for line in lines)
    assert lines[-5].split() == ["norm", "output", "5.00e-04", "0%", "4", "0.5"]


def test_the_figure_shows_whole_and_own_error(run: Run):
    figure = reference_figure(reference_view(run))
    assert [trace.name for trace in figure.data] == ["whole error", "own error"]
    assert list(figure.data[0].y) == [0.5, 1e-3]
    assert list(figure.data[1].y) == [5e-4, None]
