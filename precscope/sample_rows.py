"""One sample as rows of the database: its numbers as columns, its arrays as bytes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from precscope.database import to_row
from precscope.sample_arrays import encode_histograms, encode_indices, encode_replica_scalars, encode_scalars

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from precscope.records import SampleRecord
    from precscope.replica_records import ReplicaSample

__all__ = ["replica_row", "sample_row"]


def sample_row(
    number: int,
    sample: SampleRecord,
    scalars: NDArray[np.void],
    histograms: NDArray[np.uint64],
    indices: NDArray[np.int64] | None,
    totals: NDArray[np.uint64] | None,
) -> dict[str, Any]:
    """Return the row of sample `number`.

    Args:
        number: Its position in the file.
        sample: The step.
        scalars: SCALAR_DTYPE [tensors].
        histograms: uint64 [tensors, HISTOGRAM_BINS].
        indices: Which tensors these are; None for all.
        totals: Histograms summed over this and all earlier samples, where they are to be stored with this one.
    """
    return to_row(sample) | {
        "index": number,
        "loss_is_nan": _is_nan(sample.loss),  # SQLite turns NaN into NULL, which says "not seen"
        "incident": _is_incident(sample, scalars),
        "tensor_indices": None if indices is None else encode_indices(indices),
        "scalars": encode_scalars(scalars),
        "histograms": encode_histograms(histograms),
        "histogram_totals": None if totals is None else encode_histograms(totals),
    }


def replica_row(number: int, replica: ReplicaSample) -> dict[str, Any]:
    """Return the row of what one replica computed in sample `number`."""
    return {
        "sample": number,
        "replica": replica.replica,
        "loss": replica.loss,
        "loss_is_nan": _is_nan(replica.loss),
        "scalars": encode_replica_scalars(replica.scalars),
    }


def _is_nan(loss: float | None) -> bool:
    return loss is not None and math.isnan(loss)


def _is_incident(sample: SampleRecord, scalars: NDArray[np.void]) -> bool:
    """Tell whether the step was skipped, or anything in it was not finite."""
    is_finite = not any(scalars[name].any() for name in ("positive_infinities", "negative_infinities", "nans"))
    return sample.applied is False or not is_finite or (sample.loss is not None and not math.isfinite(sample.loss))
