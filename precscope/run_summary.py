"""One run in the figures that a comparison sets side by side."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precscope.spread import Spread, spread_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from precscope.device_records import DeviceSample
    from precscope.reader import Run
    from precscope.records import StepTimeRecord

__all__ = ["MEMORY_SOURCES", "MemorySource", "RunSummary", "summarize"]

#: Whose account of the peak memory: TensorFlow's allocator's before the first sampled step (later it holds PrecScope's
#: own work too), the GPU's of this process, the GPU's of all processes, the host's of this process; these three include
#: sampled steps. The first that all runs have is compared.
MemorySource = Literal["allocator", "gpu process", "gpu", "host process"]
MEMORY_SOURCES: tuple[MemorySource, ...] = ("allocator", "gpu process", "gpu", "host process")


@dataclass(frozen=True)
class RunSummary:
    """One run.

    Attributes:
        name: The run directory's name.
        path: The run directory.
        status: How it ended: "finished", "running", "interrupted", "failed" or "killed".
        policy: Name of the model's dtype policy; None where the record does not tell.
        batch: Examples in the usual batch; None where unknown.
        step_time_ms: Median and quartiles of plain steps, over windows of them; None where none was timed.
        steps_timed: How many plain steps these windows hold.
        examples_per_s: At the median step time.
        memory_bytes: Peak memory by source.
        steps_applied: Updates applied; None where unknown.
        steps_skipped: Steps whose update was skipped; None where unknown.
        loss: Loss at the last sampled step that had one; may be NaN.
        loss_step: That step.
        results: Last value of what Keras' history holds, by name ("val_accuracy").
        time_ratio: Median step time over that of the reference; None where the runs did not do the same work.
        memory_ratio: Peak memory over that of the reference, likewise.
    """

    name: str
    path: str
    status: str
    policy: str | None
    batch: int | None
    step_time_ms: Spread | None
    steps_timed: int
    examples_per_s: float | None
    memory_bytes: dict[MemorySource, int]
    steps_applied: int | None
    steps_skipped: int | None
    loss: float | None
    loss_step: int | None
    results: dict[str, float]
    time_ratio: float | None = None
    memory_ratio: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was measured that could be compared."""
        return not (self.step_time_ms or self.memory_bytes or self.results) and self.loss is None


def summarize(run: Run) -> RunSummary:
    """Return `run` in figures; what was not measured is None."""
    batch = _usual_batch(run.step_times)
    # A window of other batches, such as an epoch's ragged end, would count as a spread that is none.
    windows = [window for window in run.step_times if window.batch == batch]
    step_time = spread_of([window.mean_time_ns / 1e6 for window in windows], [window.steps for window in windows])
    seen = [sample for sample in run.samples if sample.loss is not None]
    looks = [look for look in run.loss_scales if look.steps_applied is not None]
    return RunSummary(
        name=run.record.name,
        path=str(run.path),
        status=run.status,
        policy=run.record.model.get("dtype_policy"),
        batch=batch,
        step_time_ms=step_time,
        steps_timed=sum(window.steps for window in windows),
        examples_per_s=1e3 * batch / step_time.median if batch and step_time and step_time.median else None,
        memory_bytes=_peak_memory(run),
        steps_applied=looks[-1].steps_applied if looks else None,
        steps_skipped=looks[-1].steps_skipped if looks else None,
        loss=seen[-1].loss if seen else None,
        loss_step=seen[-1].step if seen else None,
        results={name: values[-1] for name, values in run.results.items() if values},
    )


def _usual_batch(windows: Sequence[StepTimeRecord]) -> int | None:
    steps: Counter[int | None] = Counter()
    for window in windows:
        steps[window.batch] += window.steps
    return max(steps, key=steps.__getitem__) if steps else None


def _peak_memory(run: Run) -> dict[MemorySource, int]:
    on_gpu = [sample for sample in run.device_samples if sample.device != "host"]
    on_host = [sample for sample in run.device_samples if sample.device == "host"]
    allocated = (sample.allocator_peak_bytes for sample in run.samples if sample.allocator_peak_bytes is not None)
    peaks: dict[MemorySource, int | None] = {
        "allocator": next(allocated, None),
        "gpu process": _most(_process_bytes(on_gpu)),
        "gpu": _most(sample.memory_used_bytes for sample in on_gpu),
        "host process": _most(_process_bytes(on_host)),
    }
    return {source: peak for source, peak in peaks.items() if peak is not None}


def _process_bytes(samples: Iterable[DeviceSample]) -> Iterable[int | None]:
    return (sample.process_memory_bytes for sample in samples)


def _most(values: Iterable[int | None]) -> int | None:
    """Return the largest: of several devices, that of the fullest."""
    return max((value for value in values if value is not None), default=None)
