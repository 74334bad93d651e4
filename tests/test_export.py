"""Exports: read back by the tools that they are for, complete, harmless, and never over other files unasked."""

from __future__ import annotations

import csv
import json
import math
import sqlite3
import subprocess
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest

from precscope.cli import main
from precscope.commands.export import _FORMATS
from precscope.device_records import DeviceInfo, DeviceSample
from precscope.errors import PrecScopeError
from precscope.lint_result import LintFinding
from precscope.op_records import OpRecord, ProfiledWindow
from precscope.origin_records import OriginRecord
from precscope.reader import open_run
from precscope.records import CostRecord, LossScaleRecord, NoticeRecord, StepTimeRecord
from precscope.replica_records import ReplicaRecord
from precscope.reports.export import EXPORTERS, export_run, tensorboard_events
from precscope.tables import TABLES, run_table
from precscope.writer import RunWriter
from tests.core_fixtures import arrays_of, layer_record, run_record, sample_record, tensor_record
from tests.synthetic_runs import HOSTILE, SyntheticRun, healthy, layer, values, with_bad
from tests.test_reference_view import STEP, record
from tests.test_terminal_report import RUNS


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {name: run.read(folder / name) for name, run in RUNS.items()}


@pytest.fixture
def accumulator(monkeypatch):
    """TensorBoard's own reader, kept from loading TensorFlow, which it does where it finds it."""
    monkeypatch.setitem(sys.modules, "tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder):
        found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
        found.Reload()
        return found

    return read


def measured(path):
    """A run with a row in every table."""
    writer = RunWriter.create(path, run_record())
    writer.add_layers([layer_record("first", inputs=()), layer_record("second", order=1, inputs=("first",))])
    writer.add_tensors([tensor_record(0, "first"), tensor_record(1, "second", shape=None, calls=None)])
    for step in range(3):
        arrays = arrays_of(values(seed=step), with_bad(values(seed=step), math.inf, math.nan))
        writer.add_sample(
            sample_record(step, loss=[0.5, math.nan, None][step], applied=[True, False, None][step]), *arrays
        )
    writer.add_loss_scale(LossScaleRecord(2, 16384.0, 1, 1, None))
    writer.add_notice(NoticeRecord(None, "info", "probes", "A notice."))
    writer.set_costs([CostRecord("compile", 1, 10**9)])
    writer.add_step_time(StepTimeRecord(4, 3, 2_500_000, None))
    op = OpRecord(
        "a/b", None, "kernel", "first", "forward", "float16", 10**6, 2, None, "gpu:0", shared_with=("second",)
    )
    writer.add_op_times(ProfiledWindow(1, 2), [op])
    writer.add_replicas([ReplicaRecord(0, 0, "/GPU:0")])
    writer.add_devices([DeviceInfo("gpu:0", "gpu", "Card")])
    writer.add_device_samples([DeviceSample("gpu:0", 1.5, power_mw=70_000, throttle_reasons=("gpu_idle",))])
    writer.add_reference(STEP, [record("second", "activation")])
    writer.add_lint([LintFinding("float16_exp", "warning", "second", "Exp in float16.", "Clip.", "net.py:3: x")])
    writer.add_origin(OriginRecord(0, 1, "layer", "forward", "second", bad_weights=("second/kernel",)))
    writer.set_results({"loss": [0.5, 0.25], "accuracy": [0.9]})
    writer.close("finished")
    return open_run(path)


def series(found, tag):
    return [(event.step, event.value) for event in found.Scalars(tag)]


def test_tensorboard_reads_scalars(runs, tmp_path, accumulator):
    export_run(runs["faulty"], "tensorboard", tmp_path / "logs")
    found = accumulator(tmp_path / "logs")
    loss = series(found, "training/loss")
    assert loss[:3] == [(0, pytest.approx(2.3)), (100, pytest.approx(1.15)), (200, pytest.approx(2.3 / 3))]
    assert [step for step, _ in loss] == [0, 100, 200, 300, 400, 500]
    assert math.isnan(loss[-1][1])
    scale = series(found, "training/loss_scale")
    assert scale[0] == (0, 32768.0)
    assert scale[-1] == (550, 512.0)
    assert series(found, "training/steps_skipped")[-1] == (550, 6.0)
    run = runs["faulty"]
    (second,) = run.find("second", "activation")
    expected = [(sample.step, run.statistics(sample.index, second.index).absmax) for sample in run.samples]
    assert series(found, "absmax.output/second") == [(step, pytest.approx(value)) for step, value in expected]
    rooms = series(found, "headroom_bits.output/second")
    assert rooms == [(step, pytest.approx(math.log2(65504 / value), abs=1e-3)) for step, value in expected]
    assert series(found, "nonfinite.output/second") == [(100 * n, 0.0 if n < 3 else 2.0) for n in range(6)]
    assert "subnormal_share.gradient/first" in found.Tags()["scalars"]
    assert "absmax.weight_gradient/first" in found.Tags()["scalars"]


def test_tensorboard_reads_histograms(runs, tmp_path, accumulator):
    run = runs["healthy"]
    export_run(run, "tensorboard", tmp_path / "logs")
    found = accumulator(tmp_path / "logs")
    events = found.Histograms("log2_magnitude.output/first")
    assert [event.step for event in events] == [0, 500, 1000, 1500]
    histogram = events[0].histogram_value
    (tensor,) = run.find("first", "activation")
    counts = run.histograms(0)[tensor.index]
    exponents = np.flatnonzero(counts) - 46
    assert histogram.num == counts.sum()
    assert (histogram.min, histogram.max) == (exponents[0], exponents[-1] + 1)
    by_edge = dict(zip(histogram.bucket_limit, histogram.bucket, strict=True))
    assert by_edge[0.0] == counts[45]  # magnitudes from 1/2 to 1
    assert sum(by_edge.values()) == histogram.num


def test_what_is_absent_is_not_written(tmp_path, accumulator):
    step = {key: np.full_like(array, np.nan) for key, array in healthy().items()} | {
        "activation second": np.zeros(9, np.float16)
    }
    run = SyntheticRun(steps=[step], samples=[{"loss": None, "loss_scale": None}]).read(tmp_path / "run")
    export_run(run, "tensorboard", tmp_path / "logs")
    found = accumulator(tmp_path / "logs")
    tags = set(found.Tags()["scalars"])
    assert "training/loss" not in tags
    assert {"absmax.output/first", "headroom_bits.output/first", "subnormal_share.output/second"} & tags == set()
    assert series(found, "nonfinite.output/first") == [(0, 1000.0)]
    assert series(found, "absmax.output/second") == [(0, 0.0)]
    assert "log2_magnitude.output/second" not in found.Tags()["histograms"]


def test_an_empty_run_and_one_of_step_times_only(runs, tmp_path, accumulator):
    export_run(runs["empty"], "tensorboard", tmp_path / "empty")
    assert accumulator(tmp_path / "empty").Tags()["scalars"] == []
    writer = RunWriter.create(tmp_path / "run", run_record())
    writer.add_step_time(StepTimeRecord(4, 3, 2_500_000, 32))
    writer.close("finished")
    export_run(open_run(tmp_path / "run"), "tensorboard", tmp_path / "times")
    assert series(accumulator(tmp_path / "times"), "training/step_time_ms") == [(4, 2.5)]


def test_a_large_run_is_thinned_evenly(tmp_path, accumulator, monkeypatch):
    run = SyntheticRun(steps=[healthy(seed) for seed in range(9)]).read(tmp_path / "run")
    monkeypatch.setattr(tensorboard_events, "_MOST_SCALARS", 5 * 4 * 9)  # of nine kinds of tensors, in five samples
    monkeypatch.setattr(tensorboard_events, "_MOST_HISTOGRAMS", 3 * 9)
    export_run(run, "tensorboard", tmp_path / "logs")
    found = accumulator(tmp_path / "logs")
    assert [step for step, _ in series(found, "absmax.output/first")] == [0, 20, 40, 60, 80]
    assert [event.step for event in found.Histograms("log2_magnitude.output/first")] == [0, 40, 80]
    assert len(series(found, "training/loss")) == 9


@pytest.mark.parametrize("to", EXPORTERS)
def test_hostile_names(tmp_path, to, accumulator):
    names = [*HOSTILE, "=cmd()"]
    layers = tuple(layer(name) for name in names)
    step = {f"activation {name}": with_bad(values(), math.inf) for name in names}
    run = SyntheticRun(layers, [step], status="failed", error=HOSTILE[1]).read(tmp_path / "run")
    export_run(run, to, tmp_path / "out")
    if to == "tensorboard":
        tags = accumulator(tmp_path / "out").Tags()["scalars"]
        assert r"absmax.output/esc\x1b[31mape\x1b]0;title\x07" in tags
        assert all(tag.isprintable() and len(tag) < 600 for tag in tags)
    elif to == "parquet":  # binary: names as they are
        table = pyarrow.parquet.read_table(tmp_path / "out" / "layers.parquet")
        assert set(table["id"].to_pylist()) == set(names)
    else:
        text = (tmp_path / "out" / "layers.csv").read_text(encoding="utf-8")
        assert all(c.isprintable() for c in text.replace("\n", ""))
        assert len(text.splitlines()) == 1 + len(names)
        assert "\n'=cmd()," in text


def test_every_table_of_csv_and_parquet_is_the_same(tmp_path):
    run = measured(tmp_path / "run")
    export_run(run, "csv", tmp_path / "csv")
    export_run(run, "parquet", tmp_path / "parquet")
    assert {path.stem for path in (tmp_path / "csv").iterdir()} == set(TABLES)
    for name in TABLES:
        from_csv = pd.read_csv(tmp_path / "csv" / f"{name}.csv", keep_default_na=False, na_values=[""])
        from_parquet = pd.read_parquet(tmp_path / "parquet" / f"{name}.parquet")
        assert list(from_csv.columns) == list(from_parquet.columns) == [c.name for c in run_table(run, name).columns]
        assert len(from_csv) == len(from_parquet) > 0, name
        for column in from_csv:
            for one, other in zip(from_csv[column], from_parquet[column], strict=True):
                if not (pd.isna(one) and pd.isna(other)):
                    assert one == pytest.approx(other) if isinstance(one, float) else str(one) == str(other), column


def test_every_table_of_the_database_is_exported(tmp_path):
    database = sqlite3.connect(measured(tmp_path / "run").path / "worker-0.sqlite")
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    database.close()
    # "results" are "metrics"; the window is told by its ops; the rest is of the file, of the moment, or arrays.
    assert tables - {"meta", "results", "profiled_windows", "progress", "replica_samples"} <= set(TABLES)


def test_the_statistics_are_those_of_the_run(runs, tmp_path):
    run = runs["faulty"]
    export_run(run, "parquet", tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "statistics.parquet").to_pylist()
    assert len(table) == np.count_nonzero(run.scalars["count"])
    for row in table:
        known = run.statistics(row["sample"], row["tensor"])
        assert row["step"] == run.samples[row["sample"]].step
        assert row["layer"] == run.tensors[row["tensor"]].layer
        for name in ("count", "zeros", "nans", "min", "max", "smallest_nonzero", "mean", "rms"):
            assert row[name] == getattr(known, name), name


def test_nan_is_a_value_and_absence_is_absent(tmp_path):
    samples = [{"loss": math.nan}, {"loss": None}, {"loss": math.inf, "loss_scale": None}]
    step = {"activation first": np.zeros(3, np.float16), "activation second": np.full(3, np.nan, np.float16)}
    run = SyntheticRun(steps=[step] * 3, samples=samples).read(tmp_path / "run")
    export_run(run, "csv", tmp_path / "csv")
    export_run(run, "parquet", tmp_path / "parquet")
    with (tmp_path / "csv" / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["loss"] for row in rows] == ["nan", "", "inf"]
    assert [row["loss_scale"] for row in rows] == ["32768.0", "32768.0", ""]
    loss = pyarrow.parquet.read_table(tmp_path / "parquet" / "samples.parquet")["loss"].to_pylist()
    assert math.isnan(loss[0])
    assert loss[1:] == [None, math.inf]
    with (tmp_path / "csv" / "statistics.csv").open(newline="") as file:
        zeros, nans = list(csv.DictReader(file))[:2]
    assert (zeros["max"], zeros["smallest_nonzero"]) == ("0.0", "")
    assert (nans["max"], nans["mean"], nans["nans"]) == ("", "", "3")


def test_histograms_are_summed_over_the_run(runs, tmp_path):
    run = runs["healthy"]
    export_run(run, "parquet", tmp_path / "out")
    rows = pyarrow.parquet.read_table(tmp_path / "out" / "histograms.parquet").to_pylist()
    assert sum(row["count"] for row in rows) == run.total_histograms().sum()
    assert all(run.total_histograms()[row["tensor"], row["exponent"] + 46] == row["count"] for row in rows)


def test_lists_are_json(runs):
    columns = {column.name: column.values for column in run_table(runs["faulty"], "layers").columns}
    assert [json.loads(inputs) for inputs in columns["inputs"]][2] == ["first"]
    findings = {column.name: column.values for column in run_table(runs["faulty"], "findings").columns}
    assert json.loads(findings["numbers"][0])["infinities"] == 6


@pytest.mark.parametrize("to", EXPORTERS)
def test_nothing_is_overwritten_unasked(runs, tmp_path, to, capsys):
    words = ["export", str(runs["healthy"].path), str(tmp_path / "deep" / "out"), "--to", to]
    assert main(words) == 0
    assert "Wrote " in capsys.readouterr().out
    (tmp_path / "deep" / "out" / "mine.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in (tmp_path / "deep" / "out").iterdir()}
    assert main(words) == 2
    assert "exists. Choose another folder, or replace what is there with --force." in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    after = {path.name: path.read_bytes() for path in (tmp_path / "deep" / "out").iterdir()}
    assert after == before  # the same input gives the same output, and nothing else is touched


def test_a_file_in_the_way(runs, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(PrecScopeError, match="Expected a folder to export to, received the file"):
        export_run(runs["healthy"], "csv", tmp_path / "out", overwrite=True)
    with pytest.raises(PrecScopeError, match=r"The run cannot be exported to '.*out/in': Not a directory\."):
        export_run(runs["healthy"], "csv", tmp_path / "out" / "in")
    assert (tmp_path / "out").read_text() == "mine"


def test_a_write_that_fails_leaves_no_half_of_a_file(runs, tmp_path, monkeypatch):
    def full(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(EXPORTERS, "csv", lambda run: {"layers.csv": full})
    with pytest.raises(PrecScopeError, match=r"cannot be exported to '.*': No space left on device\."):
        export_run(runs["healthy"], "csv", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("to", "package", "words"),
    [
        ("tensorboard", "tensorboard", "pip install tensorboard"),
        ("tensorboard", "tensorboard.summary.writer.record_writer", "pip install tensorboard"),
        ("parquet", "pyarrow", "pip install pyarrow"),
    ],
)
def test_a_missing_package_says_how_to_get_it(runs, tmp_path, monkeypatch, to, package, words):
    monkeypatch.setitem(sys.modules, package, None)
    if package == "pyarrow":
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    if package == "tensorboard":
        for name in [name for name in sys.modules if name.startswith("tensorboard.")]:
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PrecScopeError, match=f"not installed. Install it with: {words}.*--to csv"):
        export_run(runs["healthy"], to, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", EXPORTERS)
def test_no_export_loads_tensorflow(runs, tmp_path, to):
    words = ["export", str(runs["healthy"].path), str(tmp_path / "out"), "--to", to]
    code = (
        f"import sys; from precscope.cli import main; assert main({words!r}) == 0; "
        "print(sorted({'tensorflow', 'keras', 'plotly'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_command_knows_every_format_and_the_page_every_table(repository):
    assert tuple(EXPORTERS) == _FORMATS
    page = (repository / "docs" / "export.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in TABLES)
