"""A run that is being written, as one frame of the live view shows it: plain data, so that tests need no terminal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precscope.advice.origin_account import main_origin, origin_sentence
from precscope.advice.wording import counted
from precscope.errors import PrecScopeError
from precscope.formats import FORMATS
from precscope.reports.live_findings import FindingsLog, LiveFinding
from precscope.reports.live_gauges import Gauge, machine_gauges, training_gauges
from precscope.reports.live_layers import LayerNow, LayerWatch
from precscope.reports.live_pictures import LayerPictures, PictureBook
from precscope.reports.run_view import cost_in_words, model_line
from precscope.reports.text import duration, percent, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from precscope.advice.finding import Severity
    from precscope.records import NoticeRecord
    from precscope.run_tail import RunTail
    from precscope.worker_tail import WorkerTail

__all__ = ["LiveFrame", "LiveSource"]

State = Literal["waiting", "running", "finished", "interrupted", "failed", "killed"]
_STATES = {
    "running": "running for",
    "finished": "finished after",
    "interrupted": "interrupted after",
    "failed": "failed after",
    "killed": "killed after",
}
_MOST_NOTICES = 3
_PACE_S = 5.0


@dataclass(frozen=True)
class LiveFrame:
    """All that a frame shows; text is printable, None where nothing is known.

    Attributes:
        name: The run directory's name.
        state: "waiting" while there is no run, "killed" where its process is gone, else the run's status.
        state_text: The state in words, with the time since the run began.
        problem: Why the run cannot be read at the moment, or what ended it.
        model: The model in a line.
        step: The newest train step that is known of, from 0.
        steps_per_s: Steps in a second of wall-clock time over the last few seconds, validation and all; None where
            they are not known, or over.
        training: Loss, loss scale and skipped steps.
        machine: Step time, memory and power.
        layers: The worst layers at the last sample.
        pictures: Where the values of the first of them lie, in the same order; None where that was not read.
        layers_total: How many layers are recorded.
        origin: Where finite values first turned into infinities or NaN, in words; None where none did.
        findings: What the rules found, worst first.
        measured: When errors against float32 were measured, or that they were not yet; empty where there are none.
        notices: What the session had to say, warnings and worse, the latest first.
        sampling: How often steps were sampled, and when last.
        cost: What PrecScope cost so far.
    """

    name: str
    state: State
    state_text: str
    problem: str | None = None
    model: str = ""
    step: int | None = None
    steps_per_s: float | None = None
    training: tuple[Gauge, ...] = ()
    machine: tuple[Gauge, ...] = ()
    layers: tuple[LayerNow, ...] = ()
    pictures: tuple[LayerPictures | None, ...] = ()
    layers_total: int = 0
    origin: str | None = None
    findings: tuple[LiveFinding, ...] = ()
    measured: str = ""
    notices: tuple[tuple[Severity, str], ...] = ()
    sampling: str = ""
    cost: str = ""


class LiveSource:
    """Makes frames of a run, each from what was committed since the last one.

    Args:
        tail: The run.
        clock: A monotonic clock in seconds.
        wall_clock: Seconds since 1970.
        cpu_clock: CPU time of this process in seconds.
        layers: How many layers a frame has at most.
    """

    def __init__(
        self,
        tail: RunTail,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        cpu_clock: Callable[[], float] = time.process_time,
        layers: int = 60,
    ) -> None:
        self._tail = tail
        self._clock = clock
        self._wall_clock = wall_clock
        self._cpu_clock = cpu_clock
        self._most_layers = layers
        self._runs = 0
        self._problem: str | None = None
        self._start_anew()

    @property
    def has_ended(self) -> bool:
        """Whether the run is over and everything was read."""
        return self._tail.status not in ("waiting", "running") and not self._tail.is_behind

    @property
    def is_behind(self) -> bool:
        """Whether there is more to read than the last frame read."""
        return self._tail.is_behind

    def frame(self) -> LiveFrame:
        """Look at the run and return what it shows now.

        Raises:
            RunDirectoryError: The run cannot be read, and never could; later failures are a frame's `problem`.
        """
        try:
            changed = self._tail.look()
            self._problem = None
        except PrecScopeError as error:
            if self._runs == 0 or self._tail.record is None:
                raise
            changed, self._problem = False, printable(" ".join(str(error).split()))
        if self._tail.runs != self._runs:
            self._runs = self._tail.runs
            self._start_anew()
        if self._tail.record is None:
            return LiveFrame(printable(self._tail.path.name), "waiting", "waiting for the run to begin")
        self._take(changed)
        return self._frame()

    def _start_anew(self) -> None:
        self._watches: dict[str, LayerWatch] = {}
        self._log = FindingsLog(self._cpu_clock)
        self._book = PictureBook(self._cpu_clock)
        self._layers: tuple[LayerNow, ...] = ()
        self._training: tuple[Gauge, ...] = ()
        self._machine: tuple[Gauge, ...] = ()

    def _take(self, changed: bool) -> None:
        record, workers = self._tail.record, self._tail.workers
        if changed and record is not None and workers:
            self._training = training_gauges(workers[0], record.model.get("loss_scaling"))
            self._machine = machine_gauges(workers)
        for worker in workers if changed else ():
            self._watches.setdefault(worker.path.name, LayerWatch()).take(worker)
        if any(worker.fresh for worker in self._tail.workers):
            self._layers = self._worst_layers()
        now_s, is_last = self._clock(), self.has_ended
        try:
            self._book.look(self._tail, [layer.id for layer in self._layers], now_s, is_last)
            trouble = next((layer.id for layer in self._layers[:1] if layer.severity == "error"), None)
            self._log.look(self._tail, now_s, is_last, trouble)
        except PrecScopeError as error:
            self._problem = printable(" ".join(str(error).split()))

    def _worst_layers(self) -> tuple[LayerNow, ...]:
        """Return the layers of all workers, each as the worker sees it that has it worst."""
        rows = [row for watch in self._watches.values() for row in watch.rows(self._most_layers)]
        worst: dict[str, LayerNow] = {}
        for row in sorted(rows, key=lambda row: row.rank):
            worst.setdefault(row.id, row)
        return tuple(worst.values())[: self._most_layers]

    def _frame(self) -> LiveFrame:
        tail, record = self._tail, self._tail.record
        assert record is not None  # asked for by the caller
        took_s = self._took_s()
        main = next(iter(tail.workers), None)
        error = None if record.error is None else printable(" ".join(record.error.split()))
        status = tail.status
        return LiveFrame(
            name=printable(tail.path.name),
            state=status,
            state_text=f"{_STATES[status]} {_whole(took_s)}",
            problem=self._problem or error,
            model=model_line(record.model),
            step=_newest_step(main),
            steps_per_s=_pace(main) if main is not None and status == "running" else None,
            training=self._training,
            machine=self._machine,
            layers=self._layers,
            pictures=tuple(self._book.of(layer.id) for layer in self._layers),
            layers_total=max((watch.layers for watch in self._watches.values()), default=0),
            origin=_origin(tail.workers),
            findings=self._log.findings(),
            measured="" if main is None else _measured(main),
            notices=_notices(tail.workers),
            sampling="" if main is None else self._sampling(main),
            cost="" if main is None else self._cost(main, took_s),
        )

    def _took_s(self) -> float:
        """Return the time since the run began; of one that is over, until its end or the last sign of life."""
        record = self._tail.record
        assert record is not None  # asked for by the caller
        end = self._wall_clock() if self._tail.status == "running" else record.ended_unix_s
        if end is None:
            end = max(map(_last_sign, self._tail.workers), default=record.started_unix_s)
        return max(end - record.started_unix_s, 0.0)

    def _sampling(self, worker: WorkerTail) -> str:
        record, last = self._tail.record, worker.samples.last
        options = {} if record is None else record.options
        budget = options.get("overhead_budget")
        every = options.get("every")
        rule = f"every {every:,} steps" if isinstance(every, int) else ""
        if not rule and isinstance(budget, float):
            rule = f"at most {percent(budget)} of the time"
        if last is None:
            return ", ".join(part for part in ("no step sampled yet", rule) if part)
        ago = ""
        if self._tail.status == "running":
            age_s = self._wall_clock() - last.time_unix_s
            ago = " just now" if age_s < 1 else f" {_whole(age_s)} ago"
        parts = [
            counted(worker.samples.seen, "sample"),
            rule,
            f"the last at step {last.step:,}" + (f",{ago}" if ago else ""),
        ]
        return ", ".join(part for part in parts if part)

    def _cost(self, worker: WorkerTail, took_s: float) -> str:
        cost = cost_in_words(worker.costs, took_s)
        if cost is None:
            return ""
        of_run = f", {percent(cost.share)} of the run" if cost.share is not None else ""
        return f"{cost.total}{of_run}: {', '.join(cost.parts)}"


def _whole(seconds: float) -> str:
    """Return a duration in whole seconds: a frame that says the same need not be drawn again."""
    return duration(int(seconds)) if seconds >= 1 else "0 s"


def _newest_step(worker: WorkerTail | None) -> int | None:
    if worker is None:
        return None
    sample, look, stretch = worker.samples.last, worker.loss_scales.last, worker.step_times.last
    progress = worker.progress.last
    steps = [
        None if sample is None else sample.step,
        None if look is None else look.step - 1,  # a look counts the steps before it
        None if stretch is None else stretch.first_step + stretch.steps - 1,
        None if progress is None else progress.step - 1,
    ]
    return max((step for step in steps if step is not None and step >= 0), default=None)


def _pace(worker: WorkerTail) -> float | None:
    """Return the steps in a second, over the last `_PACE_S` seconds that were followed."""
    last, looks = worker.progress.last, worker.progress.items()
    first = next(
        (look for look in reversed(looks) if last is not None and last.time_unix_s - look.time_unix_s >= _PACE_S), None
    )
    if last is None or first is None or last.step < first.step:
        return None
    return (last.step - first.step) / (last.time_unix_s - first.time_unix_s)


def _last_sign(worker: WorkerTail) -> float:
    """Return when the worker last wrote something that has a time."""
    looks = [series.last for series in worker.device_samples.values()]
    times = [look.time_unix_s for look in looks if look is not None]
    return max([*times, worker.samples.last.time_unix_s if worker.samples.last else 0.0])


def _measured(worker: WorkerTail) -> str:
    if worker.reference_steps:
        return f"measured against float32 at step {worker.reference_steps[-1].step:,}"
    narrow = any(FORMATS[tensor.dtype].bits == 16 for tensor in worker.tensors)
    return "not measured against float32 yet" if narrow else ""


def _origin(workers: Sequence[WorkerTail]) -> str | None:
    origin = main_origin([origin for worker in workers for origin in worker.origins])
    return None if origin is None else printable(origin_sentence(origin))


def _notices(workers: Sequence[WorkerTail]) -> tuple[tuple[Severity, str], ...]:
    notices = [notice for worker in workers for notice in worker.notices if notice.level != "info"]
    return tuple(map(_notice, reversed(notices[-_MOST_NOTICES:])))


def _notice(notice: NoticeRecord) -> tuple[Severity, str]:
    at = "" if notice.step is None else f"step {notice.step:,}: "
    return notice.level, printable(f"{at}{notice.message}")
