"""Training batches kept in the run directory, so that they can be replayed: `kept/step-000000120.npz`, one a step.

A file holds groups by name, each a nested structure of arrays (`precscope.array_tree`): "data", what the train step was
given, and possibly more, such as "weights". All files together stay within a limit. Where another would exceed it, the
one goes whose neighbours are closest to each other: the first and the latest stay, the others are spread evenly.
"""

from __future__ import annotations

import re
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from precscope.array_tree import array_nodes, decode_array_tree, encode_array_tree
from precscope.errors import RunDirectoryError
from precscope.run_failures import damaged, os_failure
from precscope.rundir import KEPT_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["KeptBatch", "KeptBatchWriter", "TypedArray", "kept_batches"]

_FILE = re.compile(r"step-(\d+)\.npz")


@dataclass(frozen=True)
class TypedArray:
    """An array of a kept batch and the dtype that it had: bfloat16 comes as float32, which holds its values exactly.

    Attributes:
        array: The values.
        dtype: Name of the dtype in the training.
    """

    array: NDArray[Any]
    dtype: str


@dataclass(frozen=True)
class KeptBatch:
    """One batch; its arrays are read when they are asked for.

    Attributes:
        step: The train step that it was given to.
        path: The file.
    """

    step: int
    path: Path

    def groups(self) -> tuple[str, ...]:
        """Return the names of what is there: "data", ...

        Raises:
            RunDirectoryError: The file is gone or damaged.
        """
        with self._opened() as entries:
            return tuple(array_nodes(entries)["dict"])

    def load(self, group: str = "data") -> Any:
        """Return one group as it was kept: dicts, lists and tuples of arrays; bfloat16 comes as float32.

        Raises:
            RunDirectoryError: The file is gone or damaged, or there is no such group.
        """
        return self._load(group, None)

    def load_typed(self, group: str = "data") -> Any:
        """Return one group as `load` does, each array as a `TypedArray` that names the dtype that it had.

        Raises:
            RunDirectoryError: The file is gone or damaged, or there is no such group.
        """
        return self._load(group, TypedArray)

    def _load(self, group: str, leaf: Any) -> Any:
        with self._opened() as entries:
            names = array_nodes(entries)["dict"]
            if group not in names:
                known = ", ".join(map(repr, names))
                raise RunDirectoryError(f"'{self.path}' holds no group {group!r}, but {known}.")
            return decode_array_tree(entries, leaf, group)

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with np.load(self.path, allow_pickle=False) as entries:
                yield entries
        except FileNotFoundError:
            raise RunDirectoryError(
                f"'{self.path}' is gone: a run that is written keeps fewer of its older batches. Open the run again."
            ) from None
        except OSError as error:
            raise os_failure(error, self.path) from error
        except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, EOFError) as error:
            raise damaged(self.path, f"holds no batch ({type(error).__name__}: {error})") from error


def kept_batches(directory: Path) -> tuple[KeptBatch, ...]:
    """Return the batches kept in the run directory now, by step; none where none were kept.

    Raises:
        RunDirectoryError: The folder cannot be read.
    """
    folder = directory / KEPT_FOLDER
    try:
        found = {int(match[1]): file for file in folder.iterdir() if (match := _FILE.fullmatch(file.name))}
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise os_failure(error, folder) from error
    return tuple(KeptBatch(step, found[step]) for step in sorted(found))


@dataclass
class KeptBatchWriter:
    """Keeps batches in a run directory.

    Args:
        directory: The run directory.
        limit_bytes: What all kept batches may take together.
    """

    directory: Path
    limit_bytes: int
    _sizes: dict[int, int] = field(default_factory=dict)

    def keep(self, step: int, **groups: Any) -> Path:
        """Keep the batch of a step, and fewer of the older ones where they exceed the limit; return its file.

        Args:
            step: The train step; later than those kept before.
            **groups: Structures of NumPy arrays by name; "data" is what the step was given.

        Raises:
            RunDirectoryError: It cannot be kept: a single batch exceeds the limit, its structure holds something that
                is no array, or the disk takes no more.
        """
        try:
            entries = encode_array_tree(groups)
        except TypeError as error:
            raise RunDirectoryError(f"A batch cannot be kept: {error}. Batches of dense arrays can.") from None
        size = sum(array.nbytes for array in entries.values())
        if size > self.limit_bytes:
            raise RunDirectoryError(
                f"A batch takes {size / 2**20:.3g} MiB, more than keep_batches_mib = {self.limit_bytes / 2**20:.3g} "
                "allows for all of them. Raise it."
            )
        self._make_room(step, size)
        self._write(self._file(step), entries)
        self._sizes[step] = size
        return self._file(step)

    def _make_room(self, step: int, size: int) -> None:
        sizes = {**self._sizes, step: size}
        while sum(sizes.values()) > self.limit_bytes:
            steps = sorted(sizes)
            inner = range(1, len(steps) - 1)
            # With two left there is nothing between them: the newer one says more about the training as it is.
            place = min(inner, key=lambda i: (steps[i + 1] - steps[i - 1], i), default=0)
            del sizes[steps[place]]
            if steps[place] in self._sizes:
                del self._sizes[steps[place]]
                self._file(steps[place]).unlink(missing_ok=True)

    def _file(self, step: int) -> Path:
        return self.directory / KEPT_FOLDER / f"step-{step:09}.npz"

    def _write(self, file: Path, entries: dict[str, Any]) -> None:
        part = file.with_name(f"{file.name}.part")
        try:
            file.parent.mkdir(exist_ok=True)
            with part.open("wb") as stream:
                np.savez(stream, **entries)
            part.replace(file)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise os_failure(error, file) from error
