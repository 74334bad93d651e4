"""The terminal report: what it says, and, as snapshots, what it looks like.

To accept a changed look: UPDATE_SNAPSHOTS=1 pytest tests/test_terminal_report.py, then read the difference.
"""

from __future__ import annotations

import io
import math
import os
import re
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from precscope.records import CostRecord, NoticeRecord
from precscope.reports.terminal import print_report
from tests.synthetic_runs import HOSTILE, TOWER, SyntheticRun, healthy, layer, values, with_bad

SNAPSHOTS = "snapshots"


def shown(run, width=80, color=False, **options):
    """The report as text; with escape codes of the 256-colour palette where `color`."""
    file = io.StringIO()
    system = "256" if color else None
    console = Console(file=file, width=width, color_system=system, force_terminal=color, highlight=False, markup=False)
    print_report(run, console=console, **options)
    return file.getvalue()


def faulty():
    """A layer that overflows, another that nearly does, a sinking loss scale, notices and costs."""
    bad = {
        "activation second": with_bad(values(scale=300.0), math.inf, -math.inf),
        "activation head": with_bad(values(dtype=np.float32), math.nan),
        "gradient first": with_bad(values(), math.nan),
    }
    steps = [healthy(seed) | {"activation first": values(scale=7000.0, seed=seed)} for seed in range(6)]
    steps[3:] = [step | bad for step in steps[3:]]
    return SyntheticRun(
        layers=(*TOWER[:3], layer("flatten", "second", type="Flatten", unseen="shares its input"), TOWER[3]),
        steps=steps,
        samples=[{"step": 100 * i, "loss": 2.3 / (1 + i) if i < 3 else math.nan, "applied": i < 3} for i in range(6)],
        scales=[(50 * i, 2.0 ** min(15, 20 - i), max(0, i - 5)) for i in range(12)],
        notices=[
            NoticeRecord(0, "info", "sampling", "The budget of 2 % allows a sample every 100 steps."),
            NoticeRecord(300, "warning", "probes", "The probe on 'second' switched itself off: out of memory."),
        ],
        costs=[CostRecord("compile", 1, 3_200_000_000), CostRecord("step", 6, 90_000_000), CostRecord("poll", 0, 0)],
        status="failed",
        error="InvalidArgumentError: loss is NaN\n  at train_step",
    )


def in_bfloat16():
    steps = [
        {key: array.astype(ml_dtypes.bfloat16) if array.dtype == np.float16 else array for key, array in step.items()}
        for step in (healthy(1), healthy(2))
    ]
    layers = tuple(replace(item, compute_dtype=item.compute_dtype.replace("float16", "bfloat16")) for item in TOWER)
    model = {"loss_scaling": "none", "dtype_policy": "mixed_bfloat16", "optimizer": "SGD", "inner_optimizer": None}
    samples = [{"loss_scale": None, "loss": 0.5}, {"loss_scale": None, "loss": 0.25}]
    return SyntheticRun(layers, steps, samples, model=model, status="interrupted", error="KeyboardInterrupt")


RUNS = {
    "faulty": faulty(),
    "healthy": SyntheticRun(
        steps=[healthy(seed) for seed in range(4)],
        samples=[{"step": 500 * i, "loss": 2.0 / (1 + i)} for i in range(4)],
        scales=[(100 * i, 2.0 ** (15 + i // 10), i // 12) for i in range(21)],
    ),
    "bfloat16": in_bfloat16(),
    "empty": SyntheticRun(status="running"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: run.read(folder / name) for name, run in RUNS.items()}


@pytest.mark.parametrize("color", [False, True], ids=["plain", "color"])
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", RUNS)
def test_snapshot(runs, repository, name, width, color):
    path = repository / "tests" / SNAPSHOTS / f"report-{name}-{width}{'-color' if color else ''}.txt"
    text = shown(runs[name], width, color)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_colour_adds_nothing_but_colour(runs, name):
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown(runs[name], color=True)) == shown(runs[name])


@pytest.mark.parametrize("width", [62, 80, 100, 120, 200])
@pytest.mark.parametrize("name", RUNS)
def test_no_line_is_wider_than_the_terminal_nor_than_120(runs, name, width):
    lines = shown(runs[name], width).splitlines()
    assert max(map(cell_len, lines)) <= min(width, 120)
    assert all(line == line.rstrip() for line in lines)


def test_a_tiny_terminal_does_not_fail(runs):
    assert "faulty" in shown(runs["faulty"], 20)


def test_no_color_is_honoured(runs, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    file = io.StringIO()
    print_report(runs["faulty"], console=Console(file=file, width=80, force_terminal=True, highlight=False))
    assert "\x1b[38" not in file.getvalue()


def test_the_answer_comes_first(runs):
    lines = shown(runs["faulty"]).splitlines()
    assert lines[0].startswith("faulty  failed after 2 min 14 s")
    assert lines[1] == "InvalidArgumentError: loss is NaN at train_step"
    answer = next(number for number, line in enumerate(lines) if "Keep 2 of 5 layers in float32" in line)
    assert answer < 12


def test_numbers_stand_beside_their_limits(runs):
    text = " ".join(shown(runs["faulty"], 120).split())
    assert "infinities 6 (limit 0)" in text
    assert "(limit 65,504)" in text
    assert "scale fallen since half-time 6 bits (limit 3)" in text
    assert "→ Keep 'second' in float32, with 'flatten' that reads it." in text
    assert "→ As for 1." in text


def test_what_was_not_seen_and_what_it_cost(runs):
    text = shown(runs["faulty"], 120)
    assert "not seen   shares its input: 'flatten'" in text
    assert "▲ step 300: The probe on 'second' switched itself off" in text
    assert "3.3 s, 2.5% of the run: compiling 3.2 s, sampled steps 90 ms (6×)" in text


def test_a_limit_on_layers_and_how_to_see_the_rest(tmp_path):
    names = [f"dense_{number}" for number in range(30)]
    layers = tuple(layer(name, *names[place - 1 : place]) for place, name in enumerate(names))
    step = {f"activation {name}": values(scale=1.0 + place) for place, name in enumerate(names)}
    run = SyntheticRun(layers, [step]).read(tmp_path / "run")
    text = shown(run)
    assert "6 of 30 shown · --all" in text
    assert "  dense_29" in text
    assert "  dense_0 " not in text
    assert shown(run, show_all=True).count("Dense float16\n") == 30
    assert "  dense_0 " in shown(run, show_all=True)


def test_a_pattern_selects_layers_and_shows_their_weights(runs):
    text = shown(runs["healthy"], pattern="^fir")
    assert "  first " in text
    assert "  second " not in text
    assert "w. grad." in text
    assert "weight " in text


def order_of(text, *names):
    """`names` as their rows follow each other in the table of layers."""
    rows = re.findall(r"^[✖▲ ] (\w+) +output ", text, re.MULTILINE)
    return [name for name in rows if name in names]


@pytest.mark.parametrize(
    ("sort", "title", "first"),
    [
        ("harm", "Layers, worst first ─", ["second", "first"]),
        ("order", "Layers, in forward order ─", ["first", "second"]),
        ("headroom", "Layers, least headroom first ─", ["first", "second"]),
        ("flushed", "Layers, worst first (no reference step was taken, so they", ["second", "first"]),
        ("time", "Layers, worst first (no time by layer was measured, so they", ["second", "first"]),
    ],
)
@pytest.mark.parametrize("width", [80, 120])
def test_layers_are_sorted(runs, sort, title, first, width):
    text = shown(runs["faulty"], width, sort=sort)
    assert title in text
    assert order_of(text, "first", "second") == first


@pytest.mark.parametrize("width", [80, 120])
def test_a_column_shows_what_layers_are_sorted_by(runs, width):
    layers = tuple(replace(item, parameters=10**place) for place, item in enumerate(TOWER))
    text = shown(
        SyntheticRun(layers, [healthy()]).read(runs["empty"].path.parent / f"wide-{width}"), width, sort="parameters"
    )
    assert order_of(text, "head", "second", "first", "input") == ["head", "second", "first", "input"]
    assert re.search(r"headroom +subn\. +param\.\n", text)
    assert re.search(r"head +output .* 1,000\n", text)
    assert "inf/NaN" not in text


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        ("running", None, "still running"),
        ("finished", None, "finished after 2 min 14 s"),
        ("interrupted", "KeyboardInterrupt", "interrupted after"),
        ("failed", "ValueError: x", "failed after"),
    ],
)
def test_how_it_ended(tmp_path, status, error, words):
    text = shown(SyntheticRun(steps=[healthy()], status=status, error=error).read(tmp_path / "run"))
    assert words in text.splitlines()[0]
    assert error is None or error in text


def test_a_killed_run_says_so(tmp_path):
    run = SyntheticRun(steps=[healthy()], status="running").read(tmp_path / "run")
    assert "killed: its process is gone" in shown(replace(run, process_alive=False))


def test_one_sample(tmp_path):
    text = shown(SyntheticRun(steps=[healthy()]).read(tmp_path / "run"))
    assert "Seen in one step only, step 0; 4 of 4 layers recorded." in text
    assert "0 of 1 sampled" in text


def test_only_nan(tmp_path):
    step = {key: np.full_like(array, np.nan) for key, array in healthy().items()}
    text = shown(SyntheticRun(steps=[step, step], samples=[{"loss": math.nan}] * 2).read(tmp_path / "run"))
    assert text.count("nothing finite") == 7
    assert "loss             nan ××××" in text
    assert re.search(r"first +output +nothing finite +– +– +2,000", text)


def test_a_float32_run_says_only_what_was_seen(tmp_path):
    wide = {key: array.astype(np.float32) for key, array in healthy().items()}
    layers = tuple(replace(item, compute_dtype="float32") for item in TOWER)
    run = SyntheticRun(layers, [wide], [{"loss_scale": None}], model={"loss_scaling": "none"}).read(tmp_path / "run")
    text = shown(run)
    assert "No recorded layer computes in 16 bits, and all values were finite." in text
    assert "none: gradients are not scaled" in text
    assert "65504" not in text
    assert "subnormal" not in text


def test_what_is_not_known_is_a_dash(tmp_path):
    zeros = {key: np.zeros_like(array) for key, array in healthy().items()}
    text = shown(SyntheticRun(steps=[zeros]).read(tmp_path / "run"))
    assert re.search(r"first +output +│ +│ +│ +– +– +0", text)


def test_sampled_pictures_are_labelled(tmp_path):
    assert "sampled, all other" not in shown(SyntheticRun(steps=[healthy()]).read(tmp_path / "small"))
    large = healthy() | {"activation first": values(size=2**19)}
    assert "sampled" in shown(SyntheticRun(steps=[large]).read(tmp_path / "large")).rpartition("legend")[2]


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("width", [80, 120])
def test_hostile_names_only_show(tmp_path, width, color):
    layers = tuple(
        layer(name, *HOSTILE[place - 1 : place], type="[b]\x1bType\n", unseen="why\x1b[2J" if place == 7 else None)
        for place, name in enumerate(HOSTILE)
    )
    step = {f"activation {name}": with_bad(values(), 6e4, math.inf) for name in HOSTILE}
    evil = "[bold]evil\x1b[2J\n\x07"
    run = SyntheticRun(
        layers,
        [step],
        notices=[NoticeRecord(None, "warning", "x", evil)],
        model={"name": evil, "dtype_policy": evil, "inner_optimizer": evil},
        status="failed",
        error=evil,
        record={"hardware": {"gpus": [{"name": evil, "memory_bytes": 1}]}, "software": {"keras": evil}},
    ).read(tmp_path / "run")
    for options in ({}, {"show_all": True}, {"pattern": "."}):
        text = shown(run, width, color, **options)
        if color:
            text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        assert all(character.isprintable() for character in text.replace("\n", ""))
        assert max(map(cell_len, text.splitlines())) <= width
        assert "[bold]evil\\x1b[2J" in text
        assert "[red]bold[/red]" in text or "pattern" not in options


def test_the_example_in_the_documentation_is_what_is_printed(runs, repository):
    page = (repository / "docs" / "reading_a_report.md").read_text(encoding="utf-8")
    assert shown(runs["faulty"]) in page
