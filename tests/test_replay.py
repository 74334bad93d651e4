"""`precscope replay`: a kept step runs again in another model, and its frames are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import precscope
from precscope.cli import main
from precscope.kept_batches import KeptBatchWriter
from tests.origin_models import build_reciprocal, rows

if TYPE_CHECKING:
    from pathlib import Path

RARE: dict[str, Any] = {"profile_steps": 0, "device_interval_s": 0.0, "every": 10**6, "start": 10**6}
MODELS = "tests/origin_models.py"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("replay") / "run"
    model = build_reciprocal()
    x, y = rows(9)
    x[8 * 6] = 0.0
    with precscope.profile(model, path, tripwire=True, **RARE):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    KeptBatchWriter(path, 2**20).keep(7, data=(x[:8], y[:8]))
    return path


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("width", [80, 120])
def test_it_prints_the_frames_newest_last(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, repository: Path, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(repository)
    assert main(["replay", str(run_dir), "--step", "6", "--model", f"{MODELS}:build_reciprocal"]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= width
    frames = [line for line in lines if line.startswith(("  forward", "▸ forward"))]
    assert [line.split()[-8 if line.startswith("▸") else 1] for line in frames[:2]] == ["data", "hidden"]
    assert frames[-1].startswith("▸ forward  reciprocal")
    assert frames[-1].endswith("1 Inf")
    assert "'reciprocal' turned finite values" in " ".join(out.split())
    assert "later frames: --all" in out


def test_all_frames_and_a_step_without_weights(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.chdir(repository)
    assert main(["replay", str(run_dir), "--step", "7", "--model", f"{MODELS}:build_reciprocal", "--all"]) == 0
    out = printed(capsys)
    assert "all values were finite, forward and backward" in out
    assert "backward hidden" in out
    assert "No weights are kept with this step" in out


@pytest.mark.parametrize(
    ("step", "function", "words"),
    [
        ("3", "build_reciprocal", "does not keep train step 3. It keeps: 6, 7."),
        ("6", "build_other", "The kept weights do not fit the model that"),
        ("6", "build_nothing", "returned int. It must return a compiled keras.Model"),
        ("6", "build_absent", "has no function 'build_absent'"),
    ],
)
def test_what_cannot_be_replayed_is_said(
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    repository: Path,
    step: str,
    function: str,
    words: str,
) -> None:
    monkeypatch.chdir(repository)
    assert main(["replay", str(run_dir), "--step", step, "--model", f"{MODELS}:{function}"]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_a_run_that_keeps_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    with precscope.profile(build_reciprocal(), tmp_path / "run", **RARE):
        pass
    monkeypatch.chdir(repository)
    assert main(["replay", str(tmp_path / "run"), "--model", f"{MODELS}:build_reciprocal"]) == 2
    assert "keeps no train step. Record it with precscope.profile(..., tripwire=True)" in capsys.readouterr().err
