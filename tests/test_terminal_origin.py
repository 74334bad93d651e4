"""Where a run turned non-finite, in the terminal and the page; and its records, written and read again."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

import precscope
from precscope.advice import Evidence, analyze, keep_float32
from precscope.origin_records import DATA_ID, Frame, OriginRecord
from precscope.reports.origin_view import origin_view
from precscope.reports.page import render_page
from precscope.reports.terminal import print_report
from tests.synthetic_runs import SyntheticRun, healthy

if TYPE_CHECKING:
    from pathlib import Path

FRAMES = (
    Frame(DATA_ID, "forward", "float32", None, None, 0, -4.1, 3.9, 0, 0, 1024),
    Frame("first", "forward", "float16", -4.1, 3.9, 0, -3.1, 12.4, 0, 0, 1024),
    Frame("second", "forward", "float16", -3.1, 12.4, 0, 0.045, 6.1e4, 12, 3, 1024),
)


def origin(**changes: Any) -> OriginRecord:
    values: dict[str, Any] = {
        "index": 0,
        "step": 41,
        "cause": "layer",
        "direction": "forward",
        "layer": "second",
        "place": "model.py:12: return tf.exp(x)",
        "epoch": 0,
        "batch": 41,
        "loss_scale": 32768.0,
        "applied": False,
        "data_finite": True,
        "finite_step": 40,
        "last_step": 41,
        "noticed_by": "skipped step",
        "frames": FRAMES,
    }
    return OriginRecord(**(values | changes))


def run(path: Path, *origins: OriginRecord, **fields: Any) -> precscope.Run:
    steps = [healthy(seed) for seed in range(3)]
    return SyntheticRun(steps=steps, scales=[(0, 2.0**15, 0), (30, 2.0**15, 0)], origins=[*origins], **fields).read(
        path
    )


def printed(run: precscope.Run, width: int) -> str:
    stream = StringIO()
    print_report(run, console=Console(file=stream, width=width, highlight=False, markup=False, emoji=False))
    return stream.getvalue()


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = [
        origin(),
        origin(index=1, cause="weights", direction=None, layer=None, bad_weights=("a/kernel", "b"), applied=None),
    ]
    assert run(tmp_path / "run", *written).origins == tuple(written)


def test_a_run_from_before_there_were_origins_opens(tmp_path: Path) -> None:
    path = run(tmp_path / "run").path
    with closing(sqlite3.connect(path / "worker-0.sqlite")) as database:
        database.execute("DROP TABLE origins")
        database.commit()
    assert precscope.open_run(path).origins == ()


@pytest.mark.parametrize("width", [80, 120])
def test_the_report_opens_with_the_sentence_and_shows_the_frames(tmp_path: Path, width: int) -> None:
    text = printed(run(tmp_path / "run", origin()), width)
    assert max(map(len, text.splitlines())) <= width
    head = " ".join(text.split("Where it turned")[0].replace("▌", "").split())
    assert "In train step 41 (epoch 1, batch 42) 'second' turned finite values (-3.1 to 12.4) into" in head
    assert "12 infinities and 3 NaN (of 1,024) in float16" in head
    frames = [line for line in text.splitlines() if line.startswith(("  forward", "▸ forward"))]
    # "▸" stands before the pass of the last.
    assert [line.split()[1] for line in frames] == ["data", "first", "forward"]
    assert frames[-1].rstrip().endswith("12 Inf, 3 NaN")
    assert "your code  model.py:12: return tf.exp(x)" in text
    assert "the batch was finite, all weights were finite; step 40 was still finite" in " ".join(text.split())
    assert "largest output in the samples before" in " ".join(text.split())
    assert "The first sign came earlier" in text


def test_a_loss_scale_that_was_too_high_for_a_moment_alarms_nobody(tmp_path: Path) -> None:
    probe = origin(direction="backward", arrives_at="first", step=5)
    quiet = run(tmp_path / "run", probe, model={"loss_scaling": "static"})
    view = origin_view(Evidence(quiet))
    assert view is not None
    assert not view.is_healthy  # nothing skips it under a fixed scale
    steps = [healthy(seed) for seed in range(3)]
    scales: list[Any] = [(0, 2.0**15, 0), (5, 2.0**15, 0), (6, 2.0**14, 1), (300, 2.0**14, 1)]
    skipped = SyntheticRun(steps=steps, scales=scales, origins=[probe]).read(tmp_path / "skipped")
    view = origin_view(Evidence(skipped))
    assert view is not None
    assert view.is_healthy
    assert "Where it turned" not in printed(skipped, 80)


def test_what_a_kept_step_showed_is_a_finding_where_no_sample_saw_it(tmp_path: Path) -> None:
    caught = origin(noticed_by="tripwire", kept="kept/step-000000041.npz", step=25)
    bad = run(tmp_path / "run", caught, model={"loss_scaling": "none"})
    (finding,) = [f for f in analyze(bad) if f.id == "nonfinite_origin"]
    assert (finding.layer, finding.action, finding.severity) == ("second", "keep_float32", "error")
    assert "No sampled step saw that; the tripwire kept it." in finding.sentence
    data = origin(noticed_by="tripwire", cause="data", layer=DATA_ID, step=25)
    (finding,) = [f for f in analyze(run(tmp_path / "data", data)) if f.id == "nonfinite_origin"]
    assert (finding.layer, finding.action) == (None, "fix_data")
    assert not [f for f in analyze(run(tmp_path / "none")) if f.id == "nonfinite_origin"]


def test_code_between_layers_is_never_given_a_policy(tmp_path: Path) -> None:
    from precscope.advice.finding import Finding

    def finding(name: str, *consumers: str) -> Finding:
        return Finding("x", name, "error", "observed", "keep_float32", {}, "", consumers)

    assert keep_float32([finding("a", "(before head)", "head"), finding("block/(before b)")]) == ("a", "head", "block")


def test_the_page_shows_it_and_escapes_names(tmp_path: Path) -> None:
    name = "<b>second</b>"
    evil = origin(layer=name, frames=(FRAMES[-1]._replace(layer=name),), place="m.py:1: x = '<script>'")
    page = render_page(run(tmp_path / "run", evil))
    assert 'id="origin"' in page
    assert "&lt;b&gt;second&lt;/b&gt;" in page
    assert "<b>second" not in page.split("<script")[0]
    assert "12 Inf, 3 NaN" in page
    assert 'id="origin"' not in render_page(run(tmp_path / "none"))
