"""Time and memory in the terminal report.

To accept a changed look: UPDATE_SNAPSHOTS=1 pytest tests/test_terminal_time.py, then read the difference.
"""

from __future__ import annotations

import io
import os
import re
from typing import TYPE_CHECKING, Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from precscope.device_records import DeviceInfo, DeviceSample
from precscope.op_records import OpRecord, ProfiledWindow
from precscope.reader import Run, open_run
from precscope.records import LayerRecord, NoticeRecord, StepTimeRecord
from precscope.reports.terminal import print_report
from precscope.reports.time_view import milliseconds, time_view
from precscope.writer import RunWriter
from tests.core_fixtures import layer_record, random_arrays, run_record, sample_record, tensor_record

if TYPE_CHECKING:
    from pathlib import Path

MIB = 2**20
OPTIONS = {"profile_steps": 5, "profile_start": 20, "device_interval_s": 0.1}


def op(layer: str | None, direction: Any, time_us: int, **changes: Any) -> OpRecord:
    values: dict[str, Any] = {
        "tensor_core": False,
        "dtype": "float16",
        "device": "gpu:0",
        "kernel": "kernel",
        "op_type": "Op",
    }
    name = changes.pop("op", "op")
    return OpRecord(
        op=name, layer=layer, direction=direction, device_time_ns=5000 * time_us, count=5, **values | changes
    )


def write(path: Path, *, measured: bool, notices: tuple[NoticeRecord, ...] = (), **options: Any) -> Run:
    writer = RunWriter.create(path, run_record(name="run", options=OPTIONS | options))
    layers: list[LayerRecord] = [
        layer_record("encoder/block/attention/query", order=0),
        layer_record("narrow", order=1, type="Conv2D"),
        layer_record("head", order=2, compute_dtype="float32"),
    ]
    writer.add_layers(layers)
    writer.add_tensors([tensor_record(0, "narrow"), tensor_record(1, "narrow", kind="weight", shape=(3, 3, 6, 10))])
    peak = {"allocator_peak_bytes": 900 * MIB, "allocator_current_bytes": 100 * MIB} if measured else {}
    writer.add_sample(sample_record(0, **peak), *random_arrays(2, seed=0))
    for notice in notices:
        writer.add_notice(notice)
    if measured:
        for first, time_ns in ((2, 12_340_000), (12, 12_900_000), (40, 12_400_000)):
            writer.add_step_time(StepTimeRecord(first, 8, time_ns, 256))
        writer.add_op_times(ProfiledWindow(20, 5), OPS)
        writer.add_devices([DeviceInfo("gpu:0", "gpu", "Card", 81_559 * MIB)])
        writer.add_device_samples([DeviceSample("gpu:0", 1.0, 3000 * MIB, 81_559 * MIB, 2500 * MIB)])
    writer.close("finished", ended_unix_s=1_700_000_100.0)
    return open_run(path)


OPS = (
    op("encoder/block/attention/query", "forward", 2500, tensor_core=True),
    op("encoder/block/attention/query", "backward", 4000, tensor_core=True),
    op("narrow", "forward", 800),
    op("narrow", "backward", 1200),
    op("narrow", "backward", 100, op="cast", cast=True),
    op("head", "forward", 3, dtype="float32", tensor_core=None),
    op(None, "optimizer", 900),
    op(None, "input", 250),
    op(None, None, 500),
)


def shown(run: Run, width: int, color: bool = False, **options: Any) -> str:
    """The report from the section on time and memory on."""
    file = io.StringIO()
    system: Any = "256" if color else None
    console = Console(file=file, width=width, color_system=system, force_terminal=color, highlight=False, markup=False)
    print_report(run, console=console, **options)
    text = file.getvalue()
    start = text.index("Time and memory")
    return text[text.rindex("\n", 0, start) + 1 : text.index("Run and cost", start)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return write(tmp_path_factory.mktemp("time") / "run", measured=True)


@pytest.mark.parametrize("color", [False, True], ids=["plain", "color"])
@pytest.mark.parametrize("width", [80, 120])
def test_snapshot(run: Run, repository: Path, width: int, color: bool) -> None:
    path = repository / "tests" / "snapshots" / f"time-{width}{'-color' if color else ''}.txt"
    text = shown(run, width, color, show_all=True)
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    assert max(cell_len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in text.splitlines()) <= width


def test_layers_are_shown_when_asked_for(run: Run) -> None:
    assert "narrow" not in shown(run, 80)
    assert "time by layer: --all" in shown(run, 80)
    only = shown(run, 80, pattern="narrow")
    assert "narrow" in only
    assert "(optimizer)" not in only
    assert "query" not in only


def test_tensor_cores_and_why_not(run: Run) -> None:
    view = time_view(run)
    assert view is not None
    cores = {row.name: row.tensor_cores for row in view.layers}
    assert cores["encoder/block/attention/query"] == "yes"
    assert cores["narrow"] == "no (6×10)"
    assert cores["head"] == "–"
    # 6.5 of 10.253 ms ran on tensor cores
    assert "tensor cores 63% of it" in dict(view.rows)["ops"]


@pytest.mark.parametrize(
    ("options", "notices", "ops"),
    [
        ({}, (), "– not measured: the run ended before step 20"),
        ({"profile_steps": 0}, (), "– not measured: profile_steps is 0"),
        ({}, (NoticeRecord(7, "warning", "profiler", "it is busy"),), "– not measured: it is busy"),
    ],
)
def test_why_nothing_was_measured(
    tmp_path: Path, options: dict[str, Any], notices: tuple[NoticeRecord, ...], ops: str
) -> None:
    view = time_view(write(tmp_path / "run", measured=False, notices=notices, **options))
    assert view is not None
    rows = dict(view.rows)
    assert rows["ops"] == ops
    assert rows["step"].startswith("– not measured: no 3 plain steps")
    assert rows["memory"] == "– not measured"


def test_a_run_from_before_these_measurements_has_no_section(tmp_path: Path) -> None:
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.close("finished")
    assert time_view(open_run(tmp_path / "run")) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.000"),
        (0.0001, "<0.001"),
        (0.0123, "0.012"),
        (3.4, "3.40"),
        (12.34, "12.3"),
        (1204, "1,204"),
    ],
)
def test_milliseconds(value: float | None, text: str) -> None:
    assert milliseconds(value) == text
