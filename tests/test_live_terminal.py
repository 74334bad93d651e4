"""`precscope live` in a pseudo-terminal, beside a run that is written: it takes the terminal and gives it back."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager

import pytest

from precscope.records import LossScaleRecord
from precscope.writer import RunWriter
from tests.core_fixtures import layer_record, random_arrays, run_record, sample_record, tensor_record

_LIMIT_S = 30.0
ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h", "\x1b[?1049l"
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


class Terminal:
    """A pseudo-terminal in which a program runs, and what the program has written to it."""

    def __init__(self, columns, rows):
        self.master, self.slave = pty.openpty()
        self.resize(columns, rows)
        self.attributes = termios.tcgetattr(self.slave)
        self.text = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")  # Ctrl-C makes the system drop output

    def resize(self, columns, rows):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys):
        os.write(self.master, keys.encode())

    def wait_for(self, pattern):
        """Read until the pattern was written since the last call that found one; return what came until then."""
        end = time.monotonic() + _LIMIT_S
        while (found := re.search(pattern, self.text)) is None:
            ready, _, _ = select.select([self.master], [], [], max(end - time.monotonic(), 0))
            assert ready, f"{pattern!r} was not written within {_LIMIT_S:g} s, but: {self.text[-2000:]!r}"
            self.text += self._decoder.decode(os.read(self.master, 65536))
        before, self.text = self.text[: found.end()], self.text[found.end() :]
        return before

    def drain(self):
        """Return what was written and not yet read."""
        while select.select([self.master], [], [], 0)[0]:
            self.text += self._decoder.decode(os.read(self.master, 65536))
        text, self.text = self.text, ""
        return text


@contextmanager
def live(path, columns=80, rows=24, **environment):
    """Run `precscope live` in a terminal of its own; yield both."""
    terminal = Terminal(columns, rows)
    variables = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")}
    code = "from precscope.cli import run; run()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "live", str(path)],
        stdin=terminal.slave,
        stdout=terminal.slave,
        stderr=terminal.slave,
        env={**variables, "TERM": "xterm-256color", **environment},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C is for whom the terminal controls
    )
    try:
        yield terminal, process
    finally:
        process.kill()
        process.wait()
        os.close(terminal.master)
        os.close(terminal.slave)


def begin(path):
    writer = RunWriter.create(path, run_record(started_unix_s=time.time()))
    writer.add_layers([layer_record("dense")])
    writer.add_tensors([tensor_record(0)])
    return writer


def add_sample(writer, step):
    writer.add_sample(sample_record(step, time_unix_s=time.time()), *random_arrays(1, seed=step))
    writer.add_loss_scale(LossScaleRecord(step + 1, 32768.0, step + 1, 0, None))


def assert_restored(terminal, process, code=0):
    """Check that the program ended, and the terminal is as it was."""
    assert process.wait(_LIMIT_S) == code
    rest = terminal.drain()
    assert rest.count(LEAVE_SCREEN) == 1
    assert rest.rindex(SHOW_CURSOR) > -1
    assert rest.count(HIDE_CURSOR) == 0
    assert termios.tcgetattr(terminal.slave) == terminal.attributes


def test_from_before_the_run_to_its_end_and_q(tmp_path):
    with live(tmp_path / "run") as (terminal, process):
        before = terminal.wait_for("waiting for the run to begin")
        assert ENTER_SCREEN in before
        assert HIDE_CURSOR in before
        assert termios.tcgetattr(terminal.slave) != terminal.attributes  # keys come one by one
        writer = begin(tmp_path / "run")
        terminal.wait_for("running for")
        for step in range(0, 500, 100):
            add_sample(writer, step)
            terminal.wait_for(f"step {step}")
        terminal.wait_for("dense")
        writer.close("finished")
        terminal.wait_for("finished after")
        assert process.poll() is None  # it stays until it is told to go
        terminal.type("q")
        assert_restored(terminal, process)


@pytest.mark.parametrize("way", ["Ctrl-C", "SIGTERM", "SIGHUP"])
def test_it_gives_the_terminal_back(tmp_path, way):
    add_sample(begin(tmp_path / "run"), 100)
    with live(tmp_path / "run") as (terminal, process):
        terminal.wait_for("q quits")
        if way == "Ctrl-C":
            terminal.type("\x03")
        else:
            process.send_signal(signal.Signals[way])
        assert_restored(terminal, process)


def test_a_run_that_cannot_be_read_is_told_before_the_terminal_is_taken(tmp_path):
    (tmp_path / "file").write_text("x")
    with live(tmp_path / "file") as (terminal, process):
        assert process.wait(_LIMIT_S) == 2
        text = terminal.drain()
        assert "is a file, not a run directory" in text.replace("\r\n", "")
        assert "\x1b" not in text


def test_it_follows_the_size_of_the_terminal(tmp_path):
    add_sample(begin(tmp_path / "run"), 100)
    with live(tmp_path / "run") as (terminal, process):
        terminal.wait_for("Training")
        for columns, rows, words in ((120, 40, "Machine"), (20, 5, "loss"), (1, 1, "…"), (80, 24, "Findings")):
            terminal.drain()
            terminal.resize(columns, rows)
            terminal.wait_for(words)
        terminal.type("q")
        assert_restored(terminal, process)


def test_ctrl_z_gives_the_terminal_back_and_takes_it_again(tmp_path):
    add_sample(begin(tmp_path / "run"), 100)
    with live(tmp_path / "run") as (terminal, process):
        terminal.wait_for("q quits")
        terminal.type("\x1a")  # the system stops no process without a shell to wake it, so it goes on at once
        terminal.wait_for(re.escape(LEAVE_SCREEN))
        terminal.wait_for(re.escape(ENTER_SCREEN))
        terminal.wait_for("q quits")
        terminal.type("q")
        assert_restored(terminal, process)


@pytest.mark.parametrize(("variable", "has_colour"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_no_color_is_honoured(tmp_path, variable, has_colour):
    add_sample(begin(tmp_path / "run"), 100)
    with live(tmp_path / "run", **variable) as (terminal, process):
        text = terminal.wait_for("sampling")
        assert ("\x1b[38;5;" in text) is has_colour
        terminal.type("q")
        process.wait(_LIMIT_S)


def test_a_dumb_terminal_gets_lines(tmp_path):
    writer = begin(tmp_path / "run")
    add_sample(writer, 100)
    writer.close("finished")
    with live(tmp_path / "run", TERM="dumb") as (terminal, process):
        terminal.wait_for("run: finished after")
        assert process.wait(_LIMIT_S) == 0
        assert "\x1b" not in terminal.drain()


def test_a_pipe_gets_lines_until_the_run_ends(tmp_path):
    code = "from precscope.cli import run; run()"
    command = [sys.executable, "-c", code, "live", str(tmp_path / "run"), "--every", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "run: waiting for the run to begin\n"
        writer = begin(tmp_path / "run")
        add_sample(writer, 700)
        while "step 700, loss 0.25" not in process.stdout.readline():
            pass
        writer.close("failed", "ValueError: x")
        *_, last = process.stdout.read().splitlines()
        assert "run: failed after" in last
        assert last.endswith("ValueError: x")
    assert process.returncode == 0


def test_one_frame_on_request(tmp_path):
    add_sample(begin(tmp_path / "run"), 100)
    code = "from precscope.cli import run; run()"
    command = [sys.executable, "-c", code, "live", "--once"]
    done = subprocess.run([*command, str(tmp_path / "run")], capture_output=True, text=True, check=True)
    assert "● run  running for" in done.stdout
    assert "Layers at the last sample, worst first" in done.stdout
    assert "\x1b" not in done.stdout
    missing = subprocess.run([*command, str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert missing.returncode == 2
    assert "There is no run directory at" in missing.stderr
