"""The live view: what a frame says, and, as snapshots, what it looks like.

To accept a changed look: UPDATE_SNAPSHOTS=1 pytest tests/test_live_view.py, then read the difference.
"""

from __future__ import annotations

import io
import math
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console, Group

from precscope.device_records import DeviceInfo, DeviceSample
from precscope.errors import RunDirectoryError
from precscope.origin_records import OriginRecord
from precscope.records import CostRecord, LossScaleRecord, NoticeRecord, ProgressRecord, StepTimeRecord
from precscope.reference_records import ReferenceStepRecord
from precscope.reports.live_lines import LiveLog, panel_lines
from precscope.reports.live_view import LiveSource
from precscope.reports.terminal_live import frame_lines, layout_of, sections_of
from precscope.run_file import ProcessRecord
from precscope.run_tail import RunTail
from precscope.writer import RunWriter
from tests.core_fixtures import arrays_of, layer_record, run_record, sample_record, tensor_record
from tests.synthetic_runs import HOSTILE, MODEL, TOWER, SyntheticRun, healthy, layer, values, with_bad

STARTED = 1_700_000_000.25
GIB = 2**30


def source_of(path, now_s=134.0):
    """A source with clocks that stand still, so many seconds after the run began."""
    return LiveSource(
        RunTail(path, lambda: 0.0), clock=lambda: 0.0, wall_clock=lambda: STARTED + now_s, cpu_clock=lambda: 0.0
    )


def growing(path, samples=12, decay=0.7):
    """A run on a GPU whose second layer loses headroom, and after ten samples overflows; still being written."""
    writer = RunWriter.create(path, run_record(name="growing", model=MODEL, options={"overhead_budget": 0.02}))
    writer.add_layers([replace(item, order=order) for order, item in enumerate(TOWER)])
    keys = list(healthy())
    writer.add_tensors(
        [
            tensor_record(n, key.split()[1], kind=key.split()[0], dtype=healthy()[key].dtype.name)
            for n, key in enumerate(keys)
        ]
    )
    writer.add_devices([DeviceInfo("gpu:0", "gpu", "NVIDIA H100", 80 * GIB)])
    for number in range(samples):
        step = healthy(number) | {"activation second": values(scale=2.0 ** (4 + decay * number), seed=number)}
        if number >= 10:
            step["activation second"] = with_bad(step["activation second"], math.inf, math.inf)
            step["activation head"] = with_bad(step["activation head"], math.nan)
        writer.add_sample(
            sample_record(
                100 * number,
                loss=2.3 / (1 + number) if number < 10 else math.nan,
                time_unix_s=STARTED + 10 * number,
                applied=number < 10,
            ),
            *arrays_of(*step.values()),
            costs=[CostRecord("compile", 1, 3_200_000_000), CostRecord("step", number, number * 15_000_000)],
        )
        writer.add_loss_scale(
            LossScaleRecord(100 * number + 1, 2.0**15 if number < 10 else 2.0**14, 0, number // 5, None)
        )
        writer.add_step_time(StepTimeRecord(100 * number + 1, 99, 12_300_000 + 50_000 * (number % 3), 128))
        writer.add_device_samples(
            [DeviceSample("gpu:0", STARTED + 10 * number, (20 + number) * GIB, 80 * GIB, None, 97, 50, 310_000, 61)]
        )
    return writer


def many(path, layers=1000):
    names = [f"stage{number // 10}/block{number % 10}/dense" for number in range(layers)]
    writer = RunWriter.create(path, run_record(model=MODEL))
    writer.add_layers([layer_record(name, order=order, inputs=()) for order, name in enumerate(names)])
    writer.add_tensors([tensor_record(number, name) for number, name in enumerate(names)])
    one_scalars, one_histogram = arrays_of(values(100))
    scalars, histograms = np.repeat(one_scalars, layers), np.repeat(one_histogram, layers, axis=0)
    scalars["max"] = 2.0 ** (np.arange(layers) % 14)
    for number in range(4):
        writer.add_sample(sample_record(10 * number), scalars, histograms)
    return writer


def shown(frame, width, height, color=False):
    """The frame as a terminal of this size shows it."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        height=height,
        color_system="256" if color else None,
        force_terminal=color,
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(layout_of(sections_of(frame, width, height)), height=height, end="")
    return file.getvalue().removesuffix("\n")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    frames = {"waiting": source_of(folder / "none").frame()}
    for name, samples in (("healthy", 8), ("faulty", 12)):
        writer = growing(folder / name, samples)
        if name == "faulty":
            writer.add_notice(
                NoticeRecord(1100, "warning", "loss scale", "20 train steps or more in a row were skipped.")
            )
        frames[name] = source_of(folder / name).frame()
    many(folder / "many")
    frames["many"] = source_of(folder / "many").frame()
    return frames


@pytest.mark.parametrize("color", [False, True], ids=["plain", "color"])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (30, 8), (20, 5)])
@pytest.mark.parametrize("name", ["waiting", "healthy", "faulty", "many"])
def test_snapshot(frames, repository, name, width, height, color):
    path = repository / "tests" / "snapshots" / f"live-{name}-{width}x{height}{'-color' if color else ''}.txt"
    text = shown(frames[name], width, height, color)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["healthy", "faulty", "many"])
def test_colour_adds_nothing_but_colour(frames, name):
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown(frames[name], 100, 30, color=True)) == shown(frames[name], 100, 30)


@pytest.mark.parametrize("name", ["waiting", "healthy", "faulty", "many"])
@pytest.mark.parametrize("width", [1, 7, 20, 59, 60, 99, 100, 101, 250])
def test_it_fills_a_terminal_of_any_size_exactly(frames, name, width):
    for height in (1, 2, 5, 17, 18, 24, 30, 90):
        sections = sections_of(frames[name], width, height)
        assert sum(row[0].rows for row in sections) == height
        lines = shown(frames[name], width, height).split("\n")
        assert len(lines) == height
        assert all(cell_len(line) <= width for line in lines)


def test_sections_that_say_the_same_have_equal_keys(tmp_path):
    writer, source = growing(tmp_path / "run", 5), source_of(tmp_path / "run")

    def keys():
        return {section.name: section.key for row in sections_of(source.frame(), 120, 40) for section in row}

    before = keys()
    assert keys() == before
    writer.add_device_samples([DeviceSample("gpu:0", STARTED + 50, 30 * GIB, 80 * GIB, None, 90, 50, 200_000, 61)])
    after = keys()
    assert {name for name in before if before[name] != after[name]} == {"Machine"}


# What a frame says


def test_the_worst_layer_is_where_it_began(frames):
    second, head, *_ = frames["faulty"].layers
    assert (second.name, second.severity, second.bad) == ("second", "error", 2)
    assert (head.name, head.bad) == ("head", 1)
    assert second.history[-2:] == (-math.inf, -math.inf)
    assert second.history[0] == pytest.approx(frames["faulty"].layers[0].history[0])


def test_a_trend_is_a_slope_and_where_it_leads(tmp_path):
    writer = growing(tmp_path / "run", 0)
    spikes = np.zeros(100, np.float16)
    for number in range(8):
        spikes[0] = 2.0 ** (4 + 0.5 * number)  # exact in float16 for even numbers, rounded by less than 2**-11 else
        step = healthy() | {"activation second": spikes}
        writer.add_sample(sample_record(100 * number), *arrays_of(*step.values()))
    layer_now = next(item for item in source_of(tmp_path / "run").frame().layers if item.name == "second")
    assert layer_now.headroom_bits == pytest.approx(math.log2(65504) - 7.5, abs=1e-3)
    assert layer_now.bits_per_1000_steps == pytest.approx(-5.0, abs=1e-2)  # half a bit in 100 steps
    assert layer_now.overflow_step == pytest.approx(700 + 200 * layer_now.headroom_bits, abs=10)


def test_noise_is_no_trend(tmp_path):
    writer = growing(tmp_path / "run", 0)
    for number, exponent in enumerate([5, 4, 5, 4, 5, 4, 5, 4]):
        step = healthy() | {"activation second": np.full(100, 2.0**exponent, np.float16)}
        writer.add_sample(sample_record(100 * number), *arrays_of(*step.values()))
    layer_now = next(item for item in source_of(tmp_path / "run").frame().layers if item.name == "second")
    assert (layer_now.bits_per_1000_steps, layer_now.overflow_step) == (None, None)


def test_findings_come_and_go(tmp_path):
    writer = growing(tmp_path / "run", 12)
    source = source_of(tmp_path / "run")
    (first, *_) = source.frame().findings
    assert (first.rule, first.layer, first.is_current, first.since_step) == (
        "activation_overflow",
        "second",
        True,
        1100,
    )
    assert "'second' is where it breaks" in first.sentence
    assert "Keep 'second' in float32" in first.advice
    for number in range(12, 40):  # it recovers
        writer.add_sample(sample_record(100 * number), *arrays_of(*healthy(number).values()))
    past = next(finding for finding in source.frame().findings if finding.rule == "activation_overflow")
    assert (past.is_current, past.since_step, past.last_step) == (False, 1100, 1100)


def test_the_rules_run_seldom_where_they_take_long(tmp_path):
    now = [0.0]
    cpu = iter(range(10_000))
    source = LiveSource(
        RunTail(tmp_path / "run", lambda: now[0]),
        clock=lambda: now[0],
        wall_clock=lambda: STARTED,
        cpu_clock=lambda: float(next(cpu)),  # each second look at the clock is a second later: a run takes 1 s
    )
    writer = growing(tmp_path / "run", 5)
    assert source.frame().findings == ()
    writer.add_sample(
        sample_record(500), *arrays_of(*(healthy() | {"activation first": with_bad(values(), math.inf)}).values())
    )
    assert source.frame().findings == ()  # the layer is shown at once, the finding when it is time
    assert source.frame().layers[0].name == "first"
    now[0] = 101.0  # sooner than the 500 s that 1 s of work in 0.2 % of the time asks for: another layer is in trouble
    assert [finding.layer for finding in source.frame().findings if finding.severity == "error"] == ["first"]


def test_time_memory_and_cost(frames):
    gauges = {gauge.label: gauge for gauge in (*frames["healthy"].training, *frames["healthy"].machine)}
    assert (gauges["loss"].now, gauges["loss"].aside) == ("0.287", "from 2.3")
    assert (gauges["skipped"].now, gauges["skipped"].aside) == ("1", "of 701 steps, 0.1%")
    assert (gauges["step time"].now, gauges["step time"].aside) == ("12.3 ms", "10,364 examples/s")
    assert (gauges["gpu:0"].now, gauges["gpu:0"].aside) == ("27 GiB", "of 80 GiB")
    assert (gauges["power"].now, gauges["power"].aside) == ("310 W", "97 % busy, 61 °C")
    assert frames["healthy"].cost.startswith("3.3 s, 2.5% of the run: compiling 3.2 s")
    assert frames["healthy"].measured == "not measured against float32 yet"
    assert frames["healthy"].sampling == "8 samples, at most 2.0% of the time, the last at step 700, 1 min 4 s ago"


def test_the_step_and_the_pace_are_known_between_samples(tmp_path):
    writer, source = growing(tmp_path / "run", 3), source_of(tmp_path / "run")
    for second in range(8):
        writer.add_device_samples(
            [DeviceSample("gpu:0", STARTED + second, GIB)], ProgressRecord(400 + 50 * second, STARTED + second)
        )
        frame = source.frame()
    assert (frame.step, frame.steps_per_s) == (749, 50.0)
    assert "step 749 · 50 steps/s" in shown(frame, 80, 24)
    writer.close("finished")
    assert source.frame().steps_per_s is None  # over


def test_where_it_began_is_told_first(tmp_path):
    writer = growing(tmp_path / "run", 12)
    assert "origin:" not in shown(source_of(tmp_path / "run").frame(), 80, 24)
    writer.add_origin(OriginRecord(0, 1000, "layer", "forward", "second"))
    frame = source_of(tmp_path / "run").frame()
    assert frame.origin == "In train step 1,000 'second' turned finite values into infinities or NaN."
    assert "✖ origin: In train step 1,000 'second' turned finite values" in shown(frame, 80, 24)


def test_a_loss_that_is_nan_is_an_error(frames):
    loss = frames["faulty"].training[0]
    assert (loss.now, loss.severity) == ("nan", "error")


def test_without_a_loss_scale_none_is_shown(tmp_path):
    run = SyntheticRun(steps=[healthy()], samples=[{"loss_scale": None}], model={"loss_scaling": "none"})
    frame = source_of(run.write(tmp_path / "run")).frame()
    assert [gauge.label for gauge in frame.training] == ["loss"]


def test_all_thousand_layers_are_ranked(frames):
    assert frames["many"].layers_total == 1000
    assert all(layer.headroom_bits == pytest.approx(math.log2(65504) - 13) for layer in frames["many"].layers)
    assert "11 of 1,000" in shown(frames["many"], 80, 24)


@pytest.mark.parametrize(
    ("status", "words"),
    [("finished", "✔ run  finished after 2 min 14 s"), ("failed", "✖ run  failed after"), ("interrupted", "▲ run")],
)
def test_how_it_ended(tmp_path, status, words):
    path = SyntheticRun(steps=[healthy()], status=status, error="ValueError: x\ny").write(tmp_path / "run")
    source = source_of(path)
    text = shown(source.frame(), 80, 24)
    assert source.has_ended
    assert words in text
    assert "ValueError: x y" in text


def test_a_killed_run_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ProcessRecord, "is_alive", lambda self: False)
    writer = growing(tmp_path / "run", 3)
    source = source_of(tmp_path / "run")
    text = shown(source.frame(), 80, 24)
    assert source.has_ended
    assert "✖ run  killed after 20 s" in text  # the last sign of life
    writer.close("finished")


def test_a_run_that_cannot_be_read_for_a_while(tmp_path, monkeypatch):
    growing(tmp_path / "run", 3)
    source = source_of(tmp_path / "run")
    source.frame()
    with monkeypatch.context() as patch:
        patch.setattr(RunTail, "look", lambda self: (_ for _ in ()).throw(RunDirectoryError("locked\x1b[2J")))
        frame = source.frame()
        assert frame.problem == "locked\\x1b[2J"
        assert len(frame.layers) == 4  # what was read is still shown
    assert source.frame().problem is None


def test_a_run_that_never_could_be_read_is_an_error(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.yaml").write_text("format: else\n...\n")
    with pytest.raises(RunDirectoryError, match="is not a PrecScope run directory"):
        source_of(tmp_path / "run").frame()


def test_another_run_in_its_place_begins_anew(tmp_path):
    growing(tmp_path / "run", 12).close("failed")
    source = source_of(tmp_path / "run")
    assert source.frame().findings
    RunWriter.create(tmp_path / "run", run_record(started_unix_s=STARTED + 100), overwrite=True)
    frame = source.frame()
    assert (frame.state, frame.findings, frame.layers, frame.training[0].now) == ("running", (), (), "–")


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 60), (30, 30), (20, 5)])
def test_hostile_names_only_show(tmp_path, width, height, color):
    evil = "[bold]evil\x1b[2J\n\x07"
    layers = tuple(layer(name, *HOSTILE[place - 1 : place], type="[b]\x1bType\n") for place, name in enumerate(HOSTILE))
    step = {f"activation {name}": with_bad(values(), 6e4, math.inf) for name in HOSTILE}
    path = SyntheticRun(
        layers,
        [step],
        notices=[NoticeRecord(None, "warning", "x", evil)],
        model={"name": evil, "dtype_policy": evil, "inner_optimizer": evil},
        status="failed",
        error=evil,
    ).write(tmp_path / "evil\x1b[31m")
    frame = source_of(path).frame()
    texts = [shown(frame, width, height, color)]
    texts.append("\n".join(line.plain for line in frame_lines(frame, width)))
    texts.append("\n".join(line.plain for line in panel_lines(frame, width, 3)))
    for text in texts:
        plain = re.sub(r"\x1b\[[0-9;]*m", "", text) if color else text
        assert all(character.isprintable() for character in plain.replace("\n", ""))
        assert max(map(cell_len, plain.splitlines())) <= width
        assert "evil" in plain or "[red]bold" in plain or "…d[/red]" in plain


# In lines


def test_the_panel_has_numbers_layers_and_the_worst_finding(frames):
    numbers, layers, worst = (line.plain for line in panel_lines(frames["faulty"], 100, 3))
    assert numbers.startswith("── ● PrecScope  step 1,199 · loss nan ")
    assert numbers.endswith("─")
    assert layers.startswith("   worst layers  ✖ second 2 inf/NaN  ✖ head 1 inf/NaN")
    assert worst.startswith(" ✖ 'second' is where it breaks")


@pytest.mark.parametrize("width", [1, 20, 40, 80, 200])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_the_panel_fits(frames, width, rows):
    for frame in frames.values():
        lines = panel_lines(frame, width, rows)
        assert len(lines) == rows
        assert all(line.cell_len <= width for line in lines)


def test_a_log_tells_the_state_now_and_then_and_each_finding_once(tmp_path):
    writer, log = growing(tmp_path / "run", 5), LiveLog(interval_s=10.0)
    source = source_of(tmp_path / "run")
    (state,) = log.lines(source.frame(), 0.0)
    assert state.startswith("run: running for 2 min 14 s, step 499, loss 0.46, loss scale 32,768, skipped 0,")
    assert "worst layer second 9.1 bit" in state or "worst layer" in state
    writer.add_notice(NoticeRecord(450, "warning", "x", "message"))
    assert list(log.lines(source.frame(), 1.0)) == ["run: warning: step 450: message"]
    writer.add_sample(sample_record(500, loss=0.25), *arrays_of(*healthy().values()))
    assert list(log.lines(source.frame(), 9.0)) == []
    assert [line for line in log.lines(source.frame(), 10.0) if "step 500" in line]
    assert list(log.lines(source.frame(), 30.0)) == []  # nothing changed
    writer.close("finished", ended_unix_s=STARTED + 140)
    assert [line[:28] for line in log.lines(source_of(tmp_path / "run").frame(), 31.0, is_last=True)] == [
        "run: finished after 2 min 20"
    ]


def test_a_finding_is_logged_once(tmp_path):
    growing(tmp_path / "run", 12)
    source, log = source_of(tmp_path / "run"), LiveLog(10.0)
    lines = list(log.lines(source.frame(), 0.0))
    assert sum("error at step 1,100: 'second' is where it breaks" in line for line in lines) == 1
    assert not any("is where it breaks" in line for line in log.lines(source.frame(), 20.0))


def test_all_of_a_frame_in_lines(frames):
    text = "\n".join(line.plain for line in frame_lines(frames["healthy"], 120))
    assert "q quits" not in text
    for words in ("loss scale", "power", "second", "overflow at", "output", "sampling", "own cost"):
        assert words in text


def test_no_line_is_kept_wider_than_its_console(frames):
    file = io.StringIO()
    Console(file=file, width=60).print(Group(*frame_lines(frames["faulty"], 60)), no_wrap=True, crop=True)
    assert max(map(cell_len, file.getvalue().splitlines())) <= 60


def test_a_reference_step_is_told_with_the_findings(tmp_path):
    writer, source = growing(tmp_path / "run", 3), source_of(tmp_path / "run")
    assert "not measured against float32 yet" in shown(source.frame(), 80, 24)
    writer.add_reference(ReferenceStepRecord(200, "start", 8, 8, 1.0, 0.5, 0.5, "equal", False, 10**9), [])
    assert "none · measured against float32 at step 200" in shown(source.frame(), 80, 24)
