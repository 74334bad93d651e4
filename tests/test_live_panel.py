"""`live=True`: lines at the bottom of the training's own terminal, seen in tmux, and the terminal as before after."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from precscope.reports.live_panel import BottomLines
from precscope.reports.live_view import LiveSource
from precscope.run_tail import RunTail
from tests.synthetic_runs import SyntheticRun, healthy

_LIMIT_S = 40.0
REGION, WHOLE_SCREEN = "\x1b[1;21r", "\x1b[r"


class Tmux:
    """A terminal in tmux, with a server of its own."""

    def __init__(self, folder, repository, columns=80, rows=24):
        self._command = ["tmux", "-S", str(folder / "socket"), "-f", "/dev/null"]
        environment = {key: value for key, value in os.environ.items() if key != "TMUX"}
        self._options = {"cwd": repository, "env": environment, "check": True, "capture_output": True, "text": True}
        self.call("new-session", "-d", "-x", str(columns), "-y", str(rows), "env PS1='$ ' sh")

    def call(self, *words):
        return subprocess.run([*self._command, *words], **self._options).stdout

    def type(self, text, *keys):
        self.call("send-keys", "-l", text)
        self.call("send-keys", *(keys or ("Enter",)))

    def screen(self):
        return self.call("capture-pane", "-p").removesuffix("\n").split("\n")

    def wait_for(self, is_there):
        """Return the screen once it is as expected."""
        end = time.monotonic() + _LIMIT_S
        while not is_there(screen := self.screen()):
            assert time.monotonic() < end, "\n".join(screen)
        return screen


@pytest.fixture
def tmux(tmp_path, repository):
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    tmux = Tmux(tmp_path, repository)
    yield tmux
    tmux.call("kill-server")


def start(tmux, path):
    tmux.type(f"{sys.executable} -m tests.panel_training {path}")
    return tmux.wait_for(lambda screen: "PrecScope  running for" in screen[-3])


def panel_is_gone(screen):
    return not any("PrecScope" in line or "worst layers" in line for line in screen)


def fills_the_screen(tmux):
    """Whether lines scroll through the whole screen again."""
    tmux.type("seq 100 160")
    tmux.wait_for(lambda screen: "160" in screen)
    screen = [line.rstrip() for line in tmux.screen()]
    last = screen.index("160")
    return last >= len(screen) - 2 and screen[last - 21 : last] == [str(number) for number in range(139, 160)]


def test_the_training_prints_above_and_the_terminal_is_as_before(tmux, tmp_path):
    start(tmux, tmp_path / "run")
    for step in range(100, 400, 100):
        tmux.type(str(step))
    screen = tmux.wait_for(lambda screen: "step 300" in screen[-3] and "dense" in screen[-2])
    text = [line.rstrip() for line in screen[:-3]]
    for step in (100, 200, 300):
        assert f"step {step} done" in text
    assert "loss 0.25" in screen[-3]
    assert panel_is_gone(text)
    tmux.type("")
    tmux.wait_for(lambda screen: "training is over" in screen)
    tmux.wait_for(panel_is_gone)
    assert fills_the_screen(tmux)


def test_what_is_printed_scrolls_and_the_panel_stays(tmux, tmp_path):
    start(tmux, tmp_path / "run")
    for step in range(30):
        tmux.type(str(step))
    screen = tmux.wait_for(lambda screen: "step 29 done" in screen and "step 29" in screen[-3])
    assert [line.startswith("step") for line in screen[:-3]].count(True) >= 9  # keys are echoed between them
    assert "training begins" not in screen


@pytest.mark.parametrize("way", ["Ctrl-C", "SIGKILL"])
def test_the_terminal_is_as_before_where_the_training_is_ended(tmux, tmp_path, way):
    start(tmux, tmp_path / "run")
    if way == "Ctrl-C":
        tmux.call("send-keys", "C-c")
    else:
        import yaml

        process = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["process"]["pid"]
        os.kill(process, signal.SIGKILL)
    tmux.wait_for(panel_is_gone)
    assert fills_the_screen(tmux)


def test_a_stopped_training_leaves_the_terminal_to_the_shell(tmux, tmp_path):
    start(tmux, tmp_path / "run")
    tmux.call("send-keys", "C-z")
    tmux.wait_for(panel_is_gone)
    assert fills_the_screen(tmux)
    tmux.type("fg")
    tmux.wait_for(lambda screen: "PrecScope" in screen[-3])
    tmux.type("7")
    tmux.wait_for(lambda screen: "step 7 done" in screen and "step 7" in screen[-3])


def test_the_panel_moves_with_the_size_of_the_terminal(tmux, tmp_path):
    start(tmux, tmp_path / "run")
    tmux.call("resize-window", "-x", "60", "-y", "10")
    tmux.wait_for(lambda screen: len(screen) == 10 and "PrecScope" in screen[-1])
    tmux.call("resize-window", "-x", "100", "-y", "30")
    tmux.wait_for(lambda screen: len(screen) == 30 and "PrecScope" in screen[-3])
    tmux.type("5")
    tmux.wait_for(lambda screen: "step 5 done" in screen)


# What is written, and where


@pytest.fixture
def source(tmp_path):
    path = SyntheticRun(steps=[healthy()], status="running").write(tmp_path / "run")
    return LiveSource(RunTail(path), wall_clock=lambda: 1_700_000_010.0)


def panel(columns, rows):
    file = io.StringIO()
    console = Console(file=file, width=columns, height=rows, force_terminal=True, color_system="256", highlight=False)
    return BottomLines(console), file


def test_an_unchanged_panel_is_not_drawn_again(source):
    lines, file = panel(80, 24)
    lines.show(source)
    first = file.getvalue()
    lines.show(source)
    assert file.getvalue() == first
    assert first.count(REGION) == 1
    lines.close()
    lines.close()
    assert file.getvalue().removeprefix(first).count(WHOLE_SCREEN) == 1


@pytest.mark.parametrize(("columns", "rows"), [(80, 5), (19, 24), (1, 1)])
def test_a_terminal_that_is_too_small_is_left_alone(source, columns, rows):
    lines, file = panel(columns, rows)
    lines.show(source)
    lines.close()
    assert file.getvalue() == ""


def test_a_low_terminal_has_one_line(source):
    lines, file = panel(80, 10)
    lines.show(source)
    assert "\x1b[1;9r" in file.getvalue()
    assert "worst layers" not in file.getvalue()


def test_without_a_terminal_there_are_lines_in_the_log(tmp_path, repository):
    command = [sys.executable, "-m", "tests.panel_training", str(tmp_path / "run")]
    log = tmp_path / "log"
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, cwd=repository, text=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=file
        ) as process,
    ):
        end = time.monotonic() + _LIMIT_S
        while "run: running for" not in log.read_text():
            assert time.monotonic() < end
        process.communicate("100\n200\n\n")
    *_, last = log.read_text().splitlines()
    assert "run: finished after" in last
    assert "step 200, loss 0.25" in last
    assert "\x1b" not in log.read_text()


def test_a_notebook_is_told_what_to_do(tmp_path, monkeypatch):
    from precscope.probes.live_process import LiveProcess

    told = []
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert LiveProcess.start(tmp_path / "run", told.append) is None
    assert told == [
        "live=True shows nothing here, for this process has no terminal and no log file. Watch the run in a terminal: "
        f"precscope live {tmp_path / 'run'}"
    ]


def test_a_view_that_cannot_be_started_is_told(tmp_path, monkeypatch):
    from precscope.probes.live_process import LiveProcess

    told = []
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    monkeypatch.setattr(sys, "stderr", sys.__stderr__)
    assert LiveProcess.start(tmp_path / "run", told.append) is None
    assert told[0].startswith("live=True: the view could not be started: ")
    assert told[0].endswith(f"Start it yourself: precscope live {tmp_path / 'run'}")
