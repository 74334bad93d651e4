"""The program that runs public scripts says whether they behave as without `precscope run`."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np

from tests.compatibility.script_surroundings import make_data

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = "import os, sys\nprint(len(os.environ['KERAS_HOME']) > 0, 0.25)\nsys.exit('my own end')\n"


def test_a_script_is_run_twice_and_compared(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "tests.compatibility.public_scripts",
        "--images",
        "20",
        str(tmp_path / "script.py"),
    ]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120, check=True)
    record = json.loads(done.stdout)
    assert record["exit"] == [1, 1]
    assert record["same_stdout"]
    assert record["same_stderr"]
    assert record["last_line"] == "my own end"
    assert record["told"] == ["precscope: no training was recorded: the program did not import Keras 3."]


def test_made_data_have_the_shapes_of_the_published(tmp_path: Path) -> None:
    make_data(tmp_path, 20)
    with np.load(tmp_path / "datasets" / "mnist.npz") as mnist:
        assert (mnist["x_train"].shape, mnist["x_train"].dtype) == ((20, 28, 28), np.uint8)
        images = mnist["x_train"]
    with gzip.open(tmp_path / "datasets" / "fashion-mnist" / "train-images-idx3-ubyte.gz") as file:
        np.testing.assert_array_equal(np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28), images)
    with np.load(tmp_path / "datasets" / "imdb.npz", allow_pickle=True) as imdb:
        assert max(max(review) for review in imdb["x_train"]) < 20_000
