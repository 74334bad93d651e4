"""`precscope.profile(..., live=True)`: the view is there while `fit` draws its bar, then gone, and changes nothing."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import select
import struct
import sys
import termios
import time
from typing import TYPE_CHECKING, Any

import keras
import pytest

import precscope
from precscope.reader import open_run
from tests.models import data, mlp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

_LIMIT_S = 60.0


class Terminal:
    """A pseudo-terminal that is this process' error output, and what was written to it."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.stream = os.fdopen(slave, "w")
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def read(self, seconds: float = 0.0) -> str:
        while select.select([self.master], [], [], seconds)[0]:
            self.text += self._decoder.decode(os.read(self.master, 65536))
            seconds = 0.0
        return self.text


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.stream.close()
    os.close(terminal.master)


def fit(run_dir: Path, callback: keras.callbacks.Callback | None = None, **options: Any) -> list[np.ndarray]:
    model = mlp("mixed_float16")
    x, y = data()
    with precscope.profile(model, run_dir, every=2, profile_steps=0, reference=False, **options):
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, callbacks=[callback] if callback else None)
    weights: list[np.ndarray] = model.get_weights()
    return weights


def test_the_view_is_there_during_fit_and_gone_afterwards(
    tmp_path: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    costs: list[set[str]] = []

    class WaitForTheView(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            end = time.monotonic() + _LIMIT_S
            while "worst layers" not in terminal.read(0.1):
                assert time.monotonic() < end, terminal.text
            costs.append({cost.kind for cost in open_run(tmp_path / "live").costs})

    watched = fit(tmp_path / "live", WaitForTheView(), live=True)
    assert "PrecScope" in terminal.read()
    assert terminal.text.rindex("\x1b[r") > terminal.text.rindex("worst layers")  # the whole screen scrolls again
    assert "compile" in costs[0]  # what it cost is known while it trains
    plain = fit(tmp_path / "plain")
    assert all((a == b).all() for a, b in zip(watched, plain, strict=True))


def test_without_a_terminal_it_says_what_to_do(tmp_path: Path) -> None:
    fit(tmp_path / "run", live=True)
    (notice,) = [item for item in open_run(tmp_path / "run").notices if "live=True" in item.message]
    assert notice.level == "info"
    assert f"precscope live {tmp_path / 'run'}" in notice.message
