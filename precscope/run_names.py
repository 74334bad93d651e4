"""Where a run goes whose directory nobody named: under a base directory, by the model's name, numbered."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["claim_run_directory", "next_run_directory"]

_NOT_IN_A_NAME = re.compile(r"[^\w.-]+")


def next_run_directory(base: Path, name: str) -> Path:
    """Return `base`/`name`-N, with N one above the highest that is there; nothing is created.

    Args:
        base: The directory of the runs; it need not exist.
        name: A model's name; what is not fit for a file's name becomes "_".
    """
    stem = _NOT_IN_A_NAME.sub("_", name).strip("._-") or "model"
    numbered = re.compile(rf"{re.escape(stem)}-(\d+)")
    names = (entry.name for entry in base.iterdir()) if base.is_dir() else ()
    taken = [int(match[1]) for match in map(numbered.fullmatch, names) if match]
    return base / f"{stem}-{max(taken, default=0) + 1}"


def claim_run_directory(base: Path, name: str) -> Path:
    """Create `next_run_directory`, empty, and return it: no other process that asks at the same time gets the same.

    Where it cannot be created it is returned all the same: who writes there says why not.
    """
    while True:
        directory = next_run_directory(base, name)
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            if directory.is_dir():  # another process was faster; else a part of the base is a file
                continue
        except OSError:
            pass
        return directory
