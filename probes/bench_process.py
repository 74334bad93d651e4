"""One worker of a bench as its parent sees it: started, asked, and ended; when it dies, why."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from typing import Any

from precscope.errors import PrecScopeError

__all__ = ["BenchProcess", "WorkerError"]

_WORKER = "precscope.probes.bench_worker"
_END_TIMEOUT_S = 10.0


class WorkerError(PrecScopeError):
    """A worker failed, died or took too long.

    Attributes:
        everywhere: Whether the same would happen under every policy.
    """

    def __init__(self, message: str, everywhere: bool = False) -> None:
        super().__init__(message)
        self.everywhere = everywhere


class BenchProcess:
    """A process that trains `entry` under `policy`.

    Args:
        entry: The build function, `MODULE:FUNCTION`.
        policy: Name of the dtype policy.
    """

    def __init__(self, entry: str, policy: str) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the worker
        # Several workers share the GPU, and by default TensorFlow takes most of its memory at once.
        environment = {**os.environ, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", _WORKER, entry, policy],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
            text=True,
        )
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="precscope-bench-reader", daemon=True)
        self._reader.start()

    def ask(self, timeout_s: float | None, do: str, **what: int) -> dict[str, Any]:
        """Send a request and return its answer.

        Args:
            timeout_s: How long to wait for it, None for ever.
            do: The request's name.
            what: Its numbers.

        Raises:
            WorkerError: The worker failed or died, or the time is over; it is ended then.
        """
        try:
            answer = self._exchange(json.dumps({"do": do, **what}), timeout_s)
        except WorkerError:
            self.end()
            raise
        if "error" in answer:
            self.end()
            raise WorkerError(answer["error"], answer.get("everywhere", False))
        return answer

    def end(self) -> None:
        """End the process, by force where it does not go."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(_END_TIMEOUT_S)
        self._reader.join(_END_TIMEOUT_S)
        for stream in (self._process.stdin, self._process.stdout, self._stderr):
            if stream is not None and not stream.closed:
                with suppress(BrokenPipeError):
                    stream.close()

    def _exchange(self, request: str, timeout_s: float | None) -> dict[str, Any]:
        stdin = self._process.stdin
        assert stdin is not None  # asked for above
        if stdin.closed:
            raise WorkerError("Its process has ended.")
        try:
            stdin.write(request + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._cause_of_death()) from None
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise WorkerError(f"It gave no answer within {timeout_s:.0f} s and was ended.") from None
        if line is None:
            raise WorkerError(self._cause_of_death())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _read(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None  # asked for above
        for line in stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _cause_of_death(self) -> str:
        code = self._process.wait(_END_TIMEOUT_S)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (the system may have run out of memory)" if code == -signal.SIGKILL else ""
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        last = f" Its last words: {lines[-1].strip()}" if lines else ""
        return f"Its process {how}{hint}.{last}"
