"""The live view below what a training prints in the same terminal: lines at the bottom that do not scroll.

The terminal's scroll region ends above them, as package managers do it for their progress bars: what the training
prints, a progress bar that draws over itself included, goes on in the region as in a smaller terminal. The lines are
drawn by a process of their own, so that the training pays nothing for them, and the terminal is as before even where
the training is killed.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from precscope.reports.live_lines import LiveLog, panel_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console
    from rich.text import Text

    from precscope.reports.live_view import LiveSource

__all__ = ["BottomLines", "show_panel"]

_FRAME_S = 0.5
_LOG_S = 60.0
_MOST_ROWS = 3
_ROWS_FOR_ALL, _LEAST_ROWS, _LEAST_COLUMNS = 16, 6, 20
_SAVE, _RESTORE, _WHOLE_SCREEN, _CLEAR_LINE, _CLEAR_BELOW = "\x1b7", "\x1b8", "\x1b[r", "\x1b[2K", "\x1b[J"
_DOWN = "\x1bD"  # to the next line, in the same column; the last one scrolls


def show_panel(source: LiveSource, console: Console, pid: int) -> None:
    """Show the run that process `pid`, our parent, trains below what it prints, until it or the run ends."""
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training's
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # we draw although the training has the terminal

    def is_over() -> bool:
        return bool(ended) or os.getppid() != pid or source.has_ended

    with suppress(OSError):  # the terminal is gone
        if not console.is_terminal or console.is_dumb_terminal:
            _log(source, console, is_over)
            return
        panel = BottomLines(console)
        try:
            while not is_over():
                if _has_terminal(console, pid):
                    panel.show(source)
                else:
                    panel.close()
                time.sleep(_FRAME_S)
        finally:
            panel.close()


def _has_terminal(console: Console, pid: int) -> bool:
    """Tell whether the training is in the foreground: not stopped by Ctrl-Z, nor sent to the background."""
    try:
        return os.tcgetpgrp(console.file.fileno()) == os.getpgid(pid)
    except OSError:  # not the terminal that controls us, as in a container: nobody else gets it
        return True


def _log(source: LiveSource, console: Console, is_over: Callable[[], bool]) -> None:
    """Print lines where there is no terminal: in the log file of a batch job, say."""
    log = LiveLog(_LOG_S)
    while True:
        is_last = is_over()
        for line in log.lines(source.frame(), time.monotonic(), is_last):
            print(line, file=console.file, flush=True)
        if is_last:
            return
        time.sleep(_FRAME_S)


class BottomLines:
    """Keeps the last rows of a terminal for itself, and gives them back.

    Each change is one write, so that nothing that others print comes between.

    Args:
        console: Writes to the terminal; tells its size.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._size: tuple[int, int] | None = None  # columns and rows of the terminal whose last rows are ours
        self._rows = 0
        self._drawn: list[str] = []

    def show(self, source: LiveSource) -> None:
        """Draw the run as it is now; nothing in a terminal that is too small."""
        width, height = self._console.size
        rows = _MOST_ROWS if height >= _ROWS_FOR_ALL else 1
        if height < _LEAST_ROWS or width < _LEAST_COLUMNS:
            self.close()
            return
        lines = self._encoded(panel_lines(source.frame(), width, rows))
        taking = "" if self._size == (width, height) else self._take(width, height, rows)
        if taking or lines != self._drawn:
            self._drawn = lines
            top = height - rows + 1
            drawn = "".join(f"\x1b[{top + place};1H{_CLEAR_LINE}{line}" for place, line in enumerate(lines))
            self._write(f"{taking}{_SAVE}{drawn}{_RESTORE}")

    def close(self) -> None:
        """Clear the lines and let the whole screen scroll again; the cursor stays where it is."""
        if self._size is not None:
            _, height = self._console.size
            self._write(f"{_SAVE}{_WHOLE_SCREEN}\x1b[{max(height - self._rows + 1, 1)};1H{_CLEAR_BELOW}{_RESTORE}")
            self._size, self._drawn = None, []

    def _take(self, width: int, height: int, rows: int) -> str:
        """Return what makes room at the bottom of a terminal of this size, wherever the cursor is."""
        whole = "" if self._size is None else f"{_SAVE}{_WHOLE_SCREEN}{_RESTORE}"
        self._size, self._rows = (width, height), rows
        room = f"{_DOWN * rows}\x1b[{rows}A"
        return f"{whole}{room}{_SAVE}\x1b[1;{height - rows}r\x1b[{height - rows + 1};1H{_CLEAR_BELOW}{_RESTORE}"

    def _encoded(self, lines: Sequence[Text]) -> list[str]:
        """Return the lines with their colours as the terminal takes them."""
        encoded = []
        for line in lines:
            with self._console.capture() as capture:
                self._console.print(line, end="", no_wrap=True, crop=True, overflow="crop")
            encoded.append(capture.get())
        return encoded

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()
