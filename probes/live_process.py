"""`live=True`: a process beside the training that shows the run in its terminal, and gives the terminal back."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["LiveProcess"]

_CODE = "from precscope.cli import run; run()"
_END_TIMEOUT_S = 3.0


class LiveProcess:
    """A process that runs `precscope live` below what the training prints; use `start`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @classmethod
    def start(cls, run_dir: Path, tell: Callable[[str], None]) -> LiveProcess | None:
        """Start it on the training's terminal, or, where that has none, its error output.

        Args:
            run_dir: The run.
            tell: Told why where it cannot be started; the training goes on without.
        """
        output = _output()
        if output is None:
            tell(
                "live=True shows nothing here, for this process has no terminal and no log file. Watch the run in a "
                f"terminal: precscope live {run_dir}"
            )
            return None
        command = [sys.executable, "-c", _CODE, "live", str(run_dir.absolute()), "--beside", str(os.getpid())]
        try:
            # In a group of its own, so that Ctrl-C and Ctrl-Z reach the training alone.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL, process_group=0
            )
        except (OSError, ValueError) as error:
            tell(f"live=True: the view could not be started: {error}. Start it yourself: precscope live {run_dir}")
            return None
        return cls(process)

    def stop(self) -> None:
        """End the process; returns when the terminal is the training's alone."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_TIMEOUT_S)
            return
        self._process.kill()
        self._process.wait()


def _output() -> IO[str] | None:
    """Return the stream that leads to the terminal; else standard error, which a batch job writes to a log file.

    None where neither is the process' own, as in a notebook.
    """
    for stream in (sys.stderr, sys.stdout):
        with suppress(AttributeError, OSError, ValueError):
            if stream.isatty() and os.isatty(stream.fileno()):
                return stream
    with suppress(AttributeError, OSError, ValueError):
        if (log := sys.__stderr__) is not None and log is sys.stderr and log.fileno() >= 0:
            return log
    return None
