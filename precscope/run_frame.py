"""A run as a pandas DataFrame, for those who have pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from precscope.errors import PrecScopeError
from precscope.records import SCALAR_DTYPE

if TYPE_CHECKING:
    import pandas as pd

    from precscope.reader import Run

__all__ = ["run_frame"]

_MEASURES = ("min", "max", "mean", "rms")


def run_frame(run: Run) -> pd.DataFrame:
    """Return a row for each tensor and sample in which it was recorded, in the order of time.

    Columns: step, loss, loss_scale, layer, kind, name, dtype, then the fields of SCALAR_DTYPE. What has no meaning
    (extremes without finite values, an unknown loss) is NaN, as pandas writes absence.

    Raises:
        PrecScopeError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise PrecScopeError(
            "Run.to_pandas() needs pandas, which is not installed. Install it with: pip install pandas"
        ) from None
    scalars = run.scalars
    samples, tensors = np.nonzero(scalars["count"])
    found = scalars[samples, tensors]
    columns: dict[str, object] = {
        name: np.array([getattr(sample, name) for sample in run.samples], kind)[samples]
        for name, kind in (("step", np.int64), ("loss", np.float64), ("loss_scale", np.float64))
    }
    for name in ("layer", "kind", "name", "dtype"):
        values = [getattr(tensor, name) for tensor in run.tensors]
        columns[name] = pd.Categorical([values[tensor] for tensor in tensors], categories=list(dict.fromkeys(values)))
    for name in SCALAR_DTYPE.names or ():
        columns[name] = found[name]
    finite = found["count"] - found["positive_infinities"] - found["negative_infinities"] - found["nans"]
    for name in _MEASURES:
        columns[name] = np.where(finite > 0, found[name], np.nan)
    columns["smallest_nonzero"] = np.where(finite > found["zeros"], found["smallest_nonzero"], np.nan)
    return pd.DataFrame(columns)
