"""The Python examples of the README run as they stand, one after the other, on tiny data."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from precscope.cli import main
from precscope.reader import open_run

if TYPE_CHECKING:
    from pathlib import Path

# What the examples leave to their reader.
PREPARED = """
import numpy as np
import tensorflow as tf

x = np.random.default_rng(0).normal(size=(480, 64)).astype("float32")
y = np.arange(480) % 10
dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(32)
"""
RUNS = ("first", "loop", "options")


@pytest.fixture(scope="module")
def folder(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the examples ran: one process, for TensorFlow is loaded once."""
    page = (repository / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert len(examples) == 4
    where = tmp_path_factory.mktemp("readme")
    program = where / "examples.py"  # a file: AutoGraph reads the source of a tf.function
    program.write_text("\n".join([PREPARED, *examples]), encoding="utf-8")
    done = subprocess.run([sys.executable, program], cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "PrecScopeWarning" not in done.stderr
    assert re.search(r"^dense\w* \d+$", done.stdout, re.MULTILINE)
    return where


@pytest.mark.parametrize("name", RUNS)
def test_each_example_records_a_run_that_can_be_reported(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(folder / "runs" / name)
    assert run.record.status == "finished"
    assert run.samples
    assert main(["report", str(folder / "runs" / name)]) == 0
    assert "Layers" in capsys.readouterr().out


def test_the_file_and_the_keywords_of_the_example_hold(folder: Path) -> None:
    run = open_run(folder / "runs" / "options")
    assert [sample.step for sample in run.samples] == [1, 10, 20]
    assert {tensor.kind for tensor in run.tensors} == {"activation", "gradient", "weight", "weight_gradient"}
    assert run.record.options["overhead_budget"] == 0.05
    assert run.profiled_window is None
