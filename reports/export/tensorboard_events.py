"""A run as TensorBoard's event file, by the tensorboard package; TensorFlow is not loaded."""

from __future__ import annotations

import math
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from precscope.errors import PrecScopeError
from precscope.formats import FORMATS
from precscope.reports.text import cut, printable
from precscope.statistics import BIN_EXPONENTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from precscope.reader import Run
    from precscope.records import TensorKind

    Scalars = dict[str, float]

__all__ = ["event_files"]

#: TensorBoard's own checksum takes a second for three megabytes, and its pages show 1,000 points of a scalar and 500
#: histograms. So of a large run that many are written, of samples spread evenly; loss and loss scale are whole.
_MOST_SCALARS, _MOST_HISTOGRAMS = 1_000_000, 20_000
_SCALARS_A_GROUP = 4
_LONGEST_TAG = 500
_LABELS: dict[TensorKind, str] = {
    "activation": "output",
    "gradient": "gradient",
    "weight": "weight",
    "weight_gradient": "weight_gradient",
}


def event_files(run: Run) -> dict[str, Callable[[Path], None]]:
    """Return what writes the event file, by its name.

    Raises:
        PrecScopeError: The tensorboard package is not installed.
    """
    try:
        import tensorboard.compat.proto.event_pb2
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError:
        raise PrecScopeError(
            "TensorBoard's events are written by the tensorboard package, which is not installed. Install it with: "
            "pip install tensorboard. Or export CSV, which needs nothing: --to csv"
        ) from None
    # TensorBoard knows its files by "tfevents" in their names.
    return {f"events.out.tfevents.{int(run.record.started_unix_s)}.precscope": partial(_write, run)}


def _write(run: Run, path: Path) -> None:
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer.record_writer import RecordWriter

    with path.open("wb") as file:
        writer = RecordWriter(file)
        started = run.record.started_unix_s
        writer.write(event_pb2.Event(wall_time=started, file_version="brain.Event:2").SerializeToString())
        for step, time_unix_s, scalars, histograms in _in_order(run):
            event = event_pb2.Event(wall_time=time_unix_s, step=step)
            for tag, number in scalars.items():
                event.summary.value.add(tag=tag, simple_value=number)
            for tag, counts in histograms.items():
                _fill_histogram(event.summary.value.add(tag=tag).histo, counts)
            writer.write(event.SerializeToString())


def _in_order(run: Run) -> Iterator[tuple[int, float, Scalars, dict[str, NDArray[np.uint64]]]]:
    """Give step, time, scalars and histograms by step: TensorBoard drops what comes after a later step."""
    steps = [sample.step for sample in run.samples]
    times = [sample.time_unix_s for sample in run.samples]
    groups = _groups(run)
    with_scalars = _spread(len(steps), _MOST_SCALARS // max(_SCALARS_A_GROUP * len(groups), 1))
    with_histograms = _spread(len(steps), _MOST_HISTOGRAMS // max(len(groups), 1))
    whole = [(steps[index], "sample", index) for index in range(len(steps))]
    whole += [(look.step, "look", index) for index, look in enumerate(run.loss_scales)]
    whole += [(stretch.first_step, "time", index) for index, stretch in enumerate(run.step_times)]
    for step, what, index in sorted(whole):
        if what == "sample":
            scalars = _sample(run, index) | (_layers(run, groups, index) if index in with_scalars else {})
            yield step, times[index], scalars, _histograms(run, groups, index) if index in with_histograms else {}
            continue
        # Between samples the time is not recorded, so it is taken from the samples around.
        time_unix_s = float(np.interp(step, steps, times)) if steps else run.record.started_unix_s
        yield step, time_unix_s, _look(run, index) if what == "look" else _step_time(run, index), {}


def _spread(samples: int, most: int) -> set[int]:
    """Return at most `most` of the samples' indices (but two), evenly spread, the first and the last among them."""
    if samples <= most:
        return set(range(samples))
    return set(np.linspace(0, samples - 1, max(most, 2)).round().astype(int).tolist())


def _look(run: Run, index: int) -> Scalars:
    look = run.loss_scales[index]
    known = {"loss_scale": look.loss_scale, "steps_skipped": look.steps_skipped, "steps_applied": look.steps_applied}
    return {f"training/{name}": float(value) for name, value in known.items() if value is not None}


def _step_time(run: Run, index: int) -> Scalars:
    return {"training/step_time_ms": run.step_times[index].mean_time_ns / 1e6}


def _groups(run: Run) -> dict[tuple[str, str], list[int]]:
    """Return the columns of the tensors, by what is measured ("output") and layer, both as in a tag."""
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for tensor in run.tensors:
        groups[_LABELS[tensor.kind], cut(printable(tensor.layer), _LONGEST_TAG)].append(tensor.index)
    return groups


def _sample(run: Run, index: int) -> Scalars:
    sample = run.samples[index]
    scalars: Scalars = {} if sample.loss is None else {"training/loss": sample.loss}
    if not run.loss_scales and sample.loss_scale is not None:
        scalars["training/loss_scale"] = sample.loss_scale
    return scalars


def _layers(run: Run, groups: dict[tuple[str, str], list[int]], index: int) -> Scalars:
    row, scalars = run.scalars[index], {}
    infinities = row["positive_infinities"].astype(np.int64) + row["negative_infinities"].astype(np.int64)
    nonfinite = infinities + row["nans"].astype(np.int64)
    finite = row["count"].astype(np.int64) - nonfinite
    nonzero = finite - row["zeros"].astype(np.int64)
    largest = np.where(finite > 0, np.maximum(np.abs(row["min"]), np.abs(row["max"])), -np.inf).astype(np.float64)
    for (label, layer), columns in groups.items():
        if not row["count"][columns].any():
            continue
        absmax, values = float(largest[columns].max()), int(nonzero[columns].sum())
        scalars[f"nonfinite.{label}/{layer}"] = float(nonfinite[columns].sum())
        if values:
            scalars[f"subnormal_share.{label}/{layer}"] = float(row["subnormals"][columns].sum()) / values
        if math.isfinite(absmax):
            scalars[f"absmax.{label}/{layer}"] = absmax
        rooms = [FORMATS[run.tensors[c].dtype].headroom_bits(float(largest[c])) for c in columns if nonzero[c] > 0]
        if known := [room for room in rooms if room is not None]:
            scalars[f"headroom_bits.{label}/{layer}"] = min(known)
    return scalars


def _histograms(run: Run, groups: dict[tuple[str, str], list[int]], index: int) -> dict[str, NDArray[np.uint64]]:
    counts = run.histograms(index)
    found = {
        f"log2_magnitude.{label}/{layer}": counts[columns].sum(axis=0) for (label, layer), columns in groups.items()
    }
    return {tag: histogram for tag, histogram in found.items() if histogram.any()}


def _fill_histogram(proto: Any, counts: NDArray[np.uint64]) -> None:
    """Fill TensorBoard's histogram: of the base-2 logarithm of the magnitudes, in which a bin is one wide."""
    (filled,) = np.nonzero(counts)
    first, last = int(filled[0]), int(filled[-1])
    lower = np.array(BIN_EXPONENTS[first : last + 1], np.float64)
    inside = counts[first : last + 1].astype(np.float64)
    proto.min, proto.max, proto.num = lower[0], lower[-1] + 1, inside.sum()
    middle = lower + 0.5
    proto.sum, proto.sum_squares = float((middle * inside).sum()), float((middle**2 * inside).sum())
    # An empty bin first: TensorBoard lets the first bin begin at the smallest number there is otherwise.
    proto.bucket_limit.extend([lower[0], *(lower + 1)])
    proto.bucket.extend([0.0, *inside])
