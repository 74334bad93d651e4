"""The tables of `precscope compare`: what they say, and, as snapshots, what they look like.

To accept a changed look: UPDATE_SNAPSHOTS=1 pytest tests/test_terminal_compare.py, then read the difference.
"""

from __future__ import annotations

import io
import json
import math
import os
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from precscope.cli import main
from precscope.compare import compare
from precscope.reports.terminal_compare import print_comparison
from tests.comparable_runs import op, read_run, write_run

MIB = 2**20


def shown(comparison, width=80, color=False, **options):
    file = io.StringIO()
    system = "256" if color else None
    console = Console(file=file, width=width, color_system=system, force_terminal=color, highlight=False, markup=False)
    print_comparison(comparison, console=console, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    half = read_run(
        folder / "resnet-float16",
        ops=[op("first", 1.0), op("second", 3.0, tensor_core=False), op("head", 0.1)],
        kernels={"second": (3, 3, 30, 64)},
        results={"accuracy": [0.9], "val_accuracy": [0.87]},
    )
    full = read_run(
        folder / "resnet-float32",
        "float32",
        step_ms=(4.0, 4.4, 4.0),
        allocated=600 * MIB,
        applied=1000,
        ops=[op("first", 2.5), op("second", 2.0), op("head", 0.1), op(None, 0.2, direction="optimizer")],
        results={"accuracy": [0.91], "val_accuracy": [0.86]},
    )
    slow = read_run(
        folder / "a-run-with-a-long-name-in-bfloat16", "mixed_bfloat16", step_ms=(5.1,), losses=(1.0, math.nan)
    )
    other = read_run(folder / "other", names=("one", "two"), batch=64, results={})
    many = [read_run(folder / f"run{number}", ops=[op("first", 1.0)], results={"loss": [0.5]}) for number in range(9)]
    return {"three": compare([half, full, slow]), "other": compare([full, other]), "many": compare(many)}


@pytest.mark.parametrize("color", [False, True], ids=["plain", "color"])
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", ["three", "other"])
def test_snapshot(comparisons, repository, name, width, color):
    path = repository / "tests" / "snapshots" / f"compare-{name}-{width}{'-color' if color else ''}.txt"
    text = shown(comparisons[name], width, color)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [62, 80, 100, 120, 200])
@pytest.mark.parametrize("name", ["three", "other", "many"])
def test_no_line_is_wider_than_the_terminal_nor_than_120(comparisons, name, width):
    lines = shown(comparisons[name], width).splitlines()
    assert max(map(cell_len, lines)) <= min(width, 120)


def test_colour_adds_nothing_but_colour(comparisons):
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown(comparisons["three"], color=True)) == shown(comparisons["three"])


def test_no_color_is_honoured(comparisons, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=True, highlight=False)
    print_comparison(comparisons["three"], console=console)
    assert "\x1b[38" not in file.getvalue()


def test_what_the_numbers_say(comparisons):
    text = " ".join(shown(comparisons["three"], 120).split())
    assert "✔ #1 (mixed_float16) is 2.00 times as fast as #2 (float32)." in text
    assert "▲ #3 (mixed_bfloat16) is SLOWER than #2 (float32): a step takes 1.27 times as long." in text
    assert "#3 (mixed_bfloat16) ended with a loss of nan." in text
    assert "#1 (mixed_float16) skipped the update of 20 of 1,000 steps." in text
    assert "second #1: its products do not run on tensor cores any more; 30: no multiple of 8" in text


def test_other_work_is_said_first(comparisons):
    lines = shown(comparisons["other"]).splitlines()
    assert lines[0].startswith("▲ NOT the same work")
    assert "batch: #1 32, #2 64" in lines[1]
    assert "times as fast" not in "\n".join(lines)


def test_runs_that_do_not_fit_are_said(comparisons):
    text = shown(comparisons["many"])
    assert "Not every run fits beside the others here: --format json has them all." in text
    assert "#9 run8" in text


def test_the_command(tmp_path, capsys):
    runs = [str(write_run(tmp_path / "half")), str(write_run(tmp_path / "full", "float32", step_ms=(4.0, 4.1)))]
    assert main(["compare", *runs]) == 0
    assert "Same work" in capsys.readouterr().out
    assert main(["compare", *runs, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [run["time_ratio"] for run in data["runs"]] == [0.5, 1.0]
    assert main(["compare", *runs, str(tmp_path / "none")]) == 0
    assert "Left out: There is no run directory" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("given", [[], ["half"], ["half", "none"]])
def test_too_few_runs_end_with_exit_code_2(tmp_path, capsys, given):
    write_run(tmp_path / "half")
    assert main(["compare", *(str(tmp_path / name) for name in given)]) == 2
    assert "A comparison needs at least two runs" in capsys.readouterr().err
