"""The records of a training on several devices: its workers, its replicas, and what each replica computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from precscope.records import RunStatus

__all__ = ["ReplicaRecord", "ReplicaSample", "WorkerRecord"]


@dataclass(frozen=True)
class ReplicaRecord:
    """One replica of the model: it takes its part of each batch.

    Attributes:
        number: Its number among all replicas, from 0.
        worker: Number of the worker that runs it.
        device: Its device, as TensorFlow names it.
    """

    number: int
    worker: int
    device: str


@dataclass(frozen=True, eq=False)
class ReplicaSample:
    """What one replica computed in a sampled step.

    Attributes:
        replica: Its number.
        loss: The mean loss of its own part of the batch, unscaled; None where it was not seen.
        scalars: SCALAR_DTYPE of the sample's tensors, in their order.
    """

    replica: int
    loss: float | None
    scalars: NDArray[np.void]


@dataclass(frozen=True)
class WorkerRecord:
    """One worker: a process that trains, with a file of its own in the run directory.

    Attributes:
        number: Its number, from 0, as in the file's name.
        status: How it ended, as the run's; "killed" where it says "running" and the process is gone, "missing" where
            there is no file, "damaged" where that cannot be read. What it recorded is in the run, but for the last two.
        error: The exception's type and message, or why the file cannot be read; else None.
        samples: How many samples it wrote.
    """

    number: int
    status: RunStatus | Literal["killed", "missing", "damaged"]
    error: str | None
    samples: int
