"""The terminal that the live view fills: its alternate screen, keys and signals, all as before at the end.

For POSIX systems.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from rich.live import Live

from precscope.reports.terminal_live import layout_of, sections_of

try:
    import termios
    import tty
except ImportError:  # Windows
    termios = tty = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType

    from rich.console import Console
    from rich.layout import Layout

    from precscope.reports.live_view import LiveFrame

__all__ = ["LiveTerminal", "keyboard"]

_QUIT_KEYS = "qQ\x04"  # Ctrl-D too
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
_NOTICED = ("SIGTSTP", "SIGWINCH")


class LiveTerminal:
    """Fills a terminal with frames while its context is open.

    Signals only leave a note for `wait`, so that no frame is left half drawn. A second Ctrl-C interrupts at once.

    Args:
        console: Writes to the terminal.
        keyboard: File descriptor of the keys; None for no keys.
    """

    def __init__(self, console: Console, keyboard: int | None = None) -> None:
        self._console = console
        self._keyboard = keyboard if keyboard is not None and termios is not None and os.isatty(keyboard) else None
        self._signals: list[int] = []
        self._layout: Layout | None = None
        self._shape: object = None
        self._keys: dict[str, object] = {}
        self._stack = ExitStack()
        self._screen = ExitStack()
        self._wake = -1

    def __enter__(self) -> LiveTerminal:
        """Take the terminal."""
        with ExitStack() as stack:  # whatever fails half-way, what was done before is undone
            self._wake, write_end = os.pipe()
            stack.callback(os.close, self._wake)
            stack.callback(os.close, write_end)
            os.set_blocking(write_end, False)
            self._catch_signals(stack)
            stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(write_end, warn_on_full_buffer=False))
            stack.enter_context(self._screen)
            self._open_screen()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the terminal back as it was."""
        self._stack.close()

    def show(self, frame: LiveFrame) -> None:
        """Draw what differs from what the terminal shows."""
        width, height = self._console.size
        rows = sections_of(frame, width, height)
        sections = [section for row in rows for section in row if section.rows]
        shape = width, height, [(section.name, section.rows) for section in sections]
        if self._layout is None or self._shape != shape:
            self._layout, self._shape = layout_of(rows), shape
            self._console.clear()
            self._live.update(self._layout, refresh=True)
        else:
            with self._console:  # one write for all of them
                for section in sections:
                    if self._keys[section.name] != section.key:
                        self._layout[section.name].update(section.render())
                        self._layout.refresh_screen(self._console, section.name)
        self._keys = {section.name: section.key for section in sections}

    def wait(self, seconds: float) -> bool:
        """Wait for so long, or until something happens; return whether the view is to end."""
        sources = [self._wake] if self._keyboard is None else [self._wake, self._keyboard]
        ready, _, _ = select.select(sources, [], [], seconds)
        if self._wake in ready:
            os.read(self._wake, 1024)
        keys = self._read_keys() if self._keyboard in ready else ""
        signals, self._signals = self._signals, []
        if any(signal.Signals(number).name in _ENDING for number in signals):
            return True
        if any(signal.Signals(number).name == "SIGTSTP" for number in signals):
            self._stop()
        return any(key in _QUIT_KEYS for key in keys)

    def _read_keys(self) -> str:
        assert self._keyboard is not None  # asked for by the caller
        with suppress(OSError):
            if keys := os.read(self._keyboard, 1024):
                return keys.decode("latin-1")
        self._keyboard = None  # the terminal is gone; SIGHUP tells
        return ""

    def _open_screen(self) -> None:
        """Take keys one by one, and fill the alternate screen."""
        if self._keyboard is not None:
            before = termios.tcgetattr(self._keyboard)
            self._screen.callback(termios.tcsetattr, self._keyboard, termios.TCSAFLUSH, before)
            tty.setcbreak(self._keyboard, termios.TCSAFLUSH)
        self._live = Live(
            console=self._console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._screen.enter_context(self._live)

    def _stop(self) -> None:
        """Give the terminal back while the process is stopped (Ctrl-Z), and take it again afterwards."""
        self._screen.close()
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        self._layout = None
        self._open_screen()

    def _catch_signals(self, stack: ExitStack) -> None:
        def note(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGINT and number in self._signals:
                raise KeyboardInterrupt
            self._signals.append(number)

        for name in (*_ENDING, *_NOTICED):
            if number := getattr(signal, name, None):
                before: Callable[..., Any] | int | None = signal.signal(number, note)
                stack.callback(signal.signal, number, signal.SIG_DFL if before is None else before)


def keyboard() -> int | None:
    """Return the file descriptor of this process' keys; None where its input is no terminal."""
    with suppress(OSError, ValueError, AttributeError):
        if sys.stdin.isatty():
            return sys.stdin.fileno()
    return None
