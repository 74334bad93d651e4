"""`precscope live`: a run while it is written, in another terminal."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from precscope.reports.live_view import LiveSource

__all__ = ["live"]

_FRAME_S = 0.25
_ENDED_FRAME_S = 1.0  # nothing moves any more, but another run may take its place
_LOG_POLL_S = 1.0
#: Of a run so large that a frame takes long, fewer frames are drawn: so much of one core is what the view may take.
_SHARE, _LONGEST_FRAME_S = 0.02, 2.0


@click.command("live")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--once", is_flag=True, help="Print one frame and end.")
@click.option(
    "--every",
    "interval_s",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    help="Seconds between two lines in a pipe.",
)
@click.option("--beside", "pid", type=int, hidden=True, help="Show lines below what process PID prints here.")
def live(run_dir: Path, once: bool, interval_s: float, pid: int | None) -> None:
    """Watch the run in RUN_DIR while it is written.

    Start it in another terminal, before the training or during it: it waits for the run to begin, shows loss, loss
    scale, skipped steps, the worst layers and what the rules find, and stays after the end. q or Ctrl-C ends it.

    In a pipe (and on Windows), it prints a line when something changed, and each finding once, until the run ends.
    """
    from rich.console import Console

    from precscope.reports.live_view import LiveSource
    from precscope.run_tail import RunTail

    console = Console(highlight=False, markup=False, emoji=False)
    source = LiveSource(RunTail(run_dir))
    if once:
        _print_frame(source, console, run_dir)
    elif pid is not None:
        from precscope.reports.live_panel import show_panel

        show_panel(source, console, pid)
    elif console.is_terminal and not console.is_dumb_terminal and os.name == "posix":
        _fill_terminal(source, console)
    else:
        _log(source, interval_s)


def _print_frame(source: LiveSource, console: Console, run_dir: Path) -> None:
    from rich.console import Group

    from precscope.reports.terminal_live import frame_lines
    from precscope.rundir import find_run_directory

    find_run_directory(run_dir)  # says so where there is none
    frame = source.frame()
    while source.is_behind:
        frame = source.frame()
    console.print(Group(*frame_lines(frame, console.width)), no_wrap=True, crop=True)


def _fill_terminal(source: LiveSource, console: Console) -> None:
    from precscope.reports.live_terminal import LiveTerminal, keyboard

    source.frame()  # what cannot be read is told before the terminal is taken
    with LiveTerminal(console, keyboard()) as terminal:
        is_over = False
        while not is_over:
            start_s = time.process_time()
            terminal.show(source.frame())
            took_s = time.process_time() - start_s
            pause_s = max(_ENDED_FRAME_S if source.has_ended else _FRAME_S, min(took_s / _SHARE, _LONGEST_FRAME_S))
            is_over = terminal.wait(0.0 if source.is_behind else pause_s)


def _log(source: LiveSource, interval_s: float) -> None:
    from precscope.reports.live_lines import LiveLog

    log = LiveLog(interval_s)
    while True:
        frame, is_last = source.frame(), source.has_ended
        for line in log.lines(frame, time.monotonic(), is_last):
            click.echo(line)
        if is_last:
            return
        time.sleep(0.0 if source.is_behind else min(_LOG_POLL_S, interval_s))
