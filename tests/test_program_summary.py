"""What `precscope run` says at its end: the command for each report, and the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precscope import program_summary
from precscope.program_summary import summary
from precscope.records import NoticeRecord
from tests.synthetic_runs import SyntheticRun, healthy, values, with_bad

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_answer_stands_below_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad = [healthy(seed) | {"activation second": with_bad(values(seed=seed), float("inf"))} for seed in range(3)]
    runs = [
        (
            SyntheticRun(steps=[healthy(1), healthy(2)], scales=[(0, 2.0**15, 0), (57, 2.0**15, 0)]).write(
                tmp_path / "a"
            ),
            "a",
        ),
        (SyntheticRun(steps=bad, status="failed", error="ValueError: mine").write(tmp_path / "b c"), "b c"),
        (tmp_path / "nowhere", "gone"),
        (SyntheticRun(steps=[], status="interrupted").write(tmp_path / "d"), "d"),
    ]
    lines = summary(runs).splitlines()
    assert lines[:2] == ["4 runs were recorded. Read them:", "  precscope report a"]
    assert lines[2].startswith(
        "    model 'a', 57 steps: No further layer was seen to need float32 ('head' is in it already)"
    )
    assert lines[3] == "  precscope report 'b c'"
    assert lines[4].startswith("    model 'b c', 20 steps, failed: ")
    assert "second" in lines[4]
    assert lines[5:7] == ["  precscope report nowhere", "    model 'gone'"]
    assert lines[8] == "    model 'd', interrupted: No step was sampled, so nothing can be said yet."


def test_warnings_of_a_run_stand_with_its_answer(tmp_path: Path) -> None:
    notices = [
        NoticeRecord(1, "info", "probes", "a remark"),
        NoticeRecord(2, "warning", "probes", "ids collide"),
        NoticeRecord(9, "warning", "probes", "ids collide"),
        NoticeRecord(9, "error", "probes", "it failed"),
    ]
    path = SyntheticRun(steps=[healthy()], notices=notices).write(tmp_path / "a")
    assert summary([(path, "a")]).splitlines()[3:] == ["    warning: ids collide", "    error: it failed"]


def test_of_many_runs_the_last_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = summary([(tmp_path / "runs" / f"fold-{number}", "fold") for number in range(1, 31)]).splitlines()
    assert lines[0] == "30 runs were recorded. All lie in runs. The last:"
    assert lines[1::2] == [f"  precscope report runs/fold-{number}" for number in range(19, 31)]


def test_a_program_does_not_wait_long_for_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_summary, "_READING_S", 0.0)
    path = SyntheticRun(steps=[healthy()]).write(tmp_path / "a")
    assert summary([(path, "a")]).splitlines()[-1] == "    model 'a'"
