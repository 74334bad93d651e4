"""docs/run_directory.md says what the files are: its code runs, its columns are those of the database."""

from __future__ import annotations

import re
import sqlite3
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import precscope
from precscope.records import SCALAR_DTYPE
from precscope.writer import RunWriter
from tests.core_fixtures import arrays_of, layer_record, run_record, sample_record, tensor_record

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def page(repository: Path) -> str:
    return (repository / "docs" / "run_directory.md").read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with eight tensors and four samples; tensor 7 has a NaN, in the last sample it is alone."""
    writer = RunWriter.create(tmp_path / "runs" / "mnist", run_record())
    writer.add_layers([layer_record("dense")])
    writer.add_tensors([tensor_record(i, "dense", name=str(i), kind="gradient") for i in range(8)])
    values = np.arange(24, dtype=np.float16).reshape(8, 3)
    values[7, 0] = np.nan
    for step in range(3):
        writer.add_sample(sample_record(step), *arrays_of(*values))
    writer.add_sample(sample_record(3), *arrays_of(values[7]), tensor_indices=[7])
    writer.close("finished")
    return writer.path


def code_block(page: str, first_line: str) -> str:
    return next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if block.startswith(first_line))


def test_the_arrays_can_be_read_without_precscope(
    page: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(run)
    names: dict[str, Any] = {}
    exec(code_block(page, "import json"), names)
    assert capsys.readouterr().out == "0 [7]\n1 [7]\n2 [7]\n3 [7]\n"
    assert names["fields"] == SCALAR_DTYPE
    expected = precscope.open_run(run)
    assert (names["scalars"] == expected.scalars[3, 7:]).all()
    assert (names["histograms"] == expected.histograms(3)[7:]).all()
    names["database"].close()


def test_the_example_of_open_run_runs(page: str, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run.parents[1])
    names: dict[str, Any] = {"precscope": precscope}
    exec(code_block(page, "run = precscope.open_run"), names)
    assert names["run"].status == "finished"


def test_every_table_and_column_is_documented(page: str, run: Path):
    database = sqlite3.connect(run / "worker-0.sqlite")
    tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    arrays = set(re.findall(r"^\| `(\w+)` \| [^|]*\|$", page, re.MULTILINE))
    for table in tables:
        columns = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
        row = re.search(rf"^\| `{table}` \| [^|]* \| (.*) \|$", page, re.MULTILINE)
        assert row is not None, table
        documented = set(re.findall(r"`(\w+)`", row[1])) | (arrays if table == "samples" else set())
        assert columns - documented == set(), table
        assert table == "meta" or documented - columns == set(), table
    database.close()
