"""`run.yaml`: the format's name and version, the process that records, and the `RunRecord`.

It is replaced by rename, so that a reader sees the old one or the new one, never half of one.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

from precscope.records import RunRecord
from precscope.run_failures import damaged, newer_format, not_a_run, os_failure

__all__ = ["FORMAT_NAME", "FORMAT_VERSION", "RUN_FILE", "ProcessRecord", "read_run_file", "write_run_file"]

FORMAT_NAME = "precscope-run"
FORMAT_VERSION = 1
RUN_FILE = "run.yaml"


@dataclass(frozen=True)
class ProcessRecord:
    """The process that records a run, so that a reader can tell a run that goes on from one that was killed.

    Attributes:
        host: Its host's name.
        pid: Its process id on that host.
        created_unix_s: When the process began: a process id is used again, sooner or later.
        created_ticks: The same in the system's ticks since it was booted, which stay when its clock is set; None where
            the system does not tell.
        boot: Names the boot from which they count; None likewise.
    """

    host: str
    pid: int
    created_unix_s: float
    created_ticks: int | None = None
    boot: str | None = None

    @classmethod
    def current(cls) -> ProcessRecord:
        """Return the record of this process."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, psutil.Process().create_time(), _created_ticks(pid), _boot())

    def is_alive(self) -> bool | None:
        """Return whether the process lives; None on another host, where that cannot be seen."""
        if self.host != socket.gethostname():
            return None
        try:
            process = psutil.Process(self.pid)
            return self._is(process) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.AccessDenied:
            return True
        except psutil.NoSuchProcess:
            return False

    def _is(self, process: psutil.Process) -> bool:
        """Tell whether the process that has the id now is the one that was recorded."""
        ticks, boot = _created_ticks(self.pid), _boot()
        if None not in (ticks, boot, self.created_ticks, self.boot):
            return (ticks, boot) == (self.created_ticks, self.boot)
        # The system derives the creation time from the boot time, which moves when the clock is set.
        return abs(process.create_time() - self.created_unix_s) < 2.0


def _created_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return int(stat.rpartition(")")[2].split()[19])  # the name before may hold spaces and brackets
    except (OSError, ValueError, IndexError):
        return None


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return None


def write_run_file(directory: Path, record: RunRecord, process: ProcessRecord) -> None:
    """Write `run.yaml`, in place of the one that is there.

    Raises:
        RunDirectoryError: It cannot be written; the old one is still there.
    """
    run = _plain(asdict(record))
    content = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "process": asdict(process), "run": run}
    part = directory / f"{RUN_FILE}.part"
    try:
        with part.open("w", encoding="utf-8") as file:
            yaml.safe_dump(content, file, sort_keys=False, allow_unicode=True, width=120, explicit_end=True)
            file.flush()
            os.fsync(file.fileno())
        part.replace(directory / RUN_FILE)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise os_failure(error, directory) from error


def read_run_file(directory: Path) -> tuple[RunRecord, ProcessRecord]:
    """Return what `run.yaml` in `directory` says.

    Raises:
        RunDirectoryError: The directory is none of a run, a newer PrecScope wrote it, or the file is damaged.
    """
    content = _load(directory / RUN_FILE)
    try:
        return _record(RunRecord, content["run"]), _record(ProcessRecord, content["process"])
    except KeyError as error:
        raise damaged(directory / RUN_FILE, f"lacks {error}") from error
    except TypeError as error:
        raise damaged(directory / RUN_FILE, f"has a part of a wrong type ({error})") from error


def _load(file: Path) -> dict[str, Any]:
    """Return the content of `run.yaml`, a file of this format and of a version that is known."""
    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise not_a_run(file.parent, f"it has no {RUN_FILE}") from None
    except OSError as error:
        raise os_failure(error, file) from error
    except (yaml.YAMLError, ValueError) as error:
        raise damaged(file, "is not valid YAML") from error
    if content is None:
        raise damaged(file, "is empty")
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise not_a_run(file.parent, f"its {RUN_FILE} does not say 'format: {FORMAT_NAME}'")
    version = content.get("version")
    if not isinstance(version, int) or version < 1:
        raise damaged(file, f"has the format version {version!r}, not a positive integer")
    if version > FORMAT_VERSION:
        raise newer_format(file, version, FORMAT_VERSION)
    if not text.rstrip().endswith("\n..."):  # YAML's end of a document: without it a number may have lost digits
        raise damaged(file, "is cut off: its last line is not '...'")
    return content


def _record(cls: type[Any], values: dict[str, Any]) -> Any:
    """Build the dataclass `cls`; what a later PrecScope added is left out, what an earlier lacked is default."""
    names = [item.name for item in fields(cls) if item.name in values or item.default is MISSING]
    return cls(**{name: values[name] for name in names})


def _plain(value: Any) -> Any:
    """Return `value` in types that YAML knows: what is none of them becomes its text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return value if value is None or type(value) in (bool, int, float, str) else str(value)
