"""What the reference steps of a run found flushed, by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precscope.reader import Run

__all__ = ["measured_flushed_shares"]


def measured_flushed_shares(run: Run) -> dict[str, float]:
    """Return, by layer, the largest share of the reference's non-zero values that were zero in the run's own policy.

    Empty without a reference step: what a 16-bit run flushed is zero already and cannot be seen in it.
    """
    shares: dict[str, float] = {}
    for record in run.reference:
        if record.reference_nonzero:
            share = record.flushed / record.reference_nonzero
            shares[record.layer] = max(share, shares.get(record.layer, 0.0))
    return shares
