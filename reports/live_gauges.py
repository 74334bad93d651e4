"""Loss, loss scale, skipped steps, step time, memory and power of a run that is being written, each with its course."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precscope.reports.text import ABSENT, byte_size, percent, printable, significant
from precscope.reports.time_view import milliseconds
from precscope.reports.training_view import Series

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from precscope.advice.finding import Severity
    from precscope.device_records import DeviceSample
    from precscope.records import StepTimeRecord
    from precscope.worker_tail import WorkerTail

__all__ = ["Gauge", "machine_gauges", "training_gauges"]

#: So many devices have gauges of their own.
_MOST_DEVICES = 4
_WIDE_RANGE = 20


@dataclass(frozen=True)
class Gauge:
    """One quantity, its last value and its course.

    Attributes:
        label: Its name, short and printable.
        now: Its last value with its unit; "–" where it is not known.
        series: Its course, over steps or over seconds.
        aside: What else there is to say.
        kind: How its course is drawn: as a line, as a line of logarithms, or as a mark wherever it grew.
        severity: How bad the last value is; None where it is not, or nobody can tell.
    """

    label: str
    now: str
    series: Series
    aside: str = ""
    kind: Literal["line", "logarithm", "growth"] = "line"
    severity: Severity | None = None

    @property
    def span(self) -> tuple[int, int]:
        """The first and the last step, or second, of the course."""
        steps = self.series.steps
        return (steps[0], steps[-1]) if steps else (0, 0)


def training_gauges(worker: WorkerTail, scaling: str | None) -> tuple[Gauge, ...]:
    """Return loss, loss scale and skipped steps; the latter two only where the loss is scaled."""
    samples = worker.samples.items()
    loss = Series(tuple(sample.step for sample in samples), tuple(sample.loss for sample in samples))
    known = [value for value in loss.values if value is not None]
    is_bad = bool(known) and not math.isfinite(known[-1])
    finite = [value for value in known if math.isfinite(value)]
    # A loss that fell far shows no course any more on a straight scale.
    is_wide = bool(finite) and 0 < _WIDE_RANGE * min(finite) < max(finite)
    first = f"from {significant(known[0])}" if len(known) > 1 else ""
    kind: Literal["line", "logarithm"] = "logarithm" if is_wide else "line"
    gauges = [Gauge("loss", _last(loss, significant), loss, first, kind, "error" if is_bad else None)]
    if scaling != "none":
        gauges.append(_loss_scale(worker))
        gauges.append(_skipped(worker))
    return tuple(gauges)


def machine_gauges(workers: Sequence[WorkerTail]) -> tuple[Gauge, ...]:
    """Return the step time of the first worker, then memory and power of the devices that were sampled."""
    gauges = [_step_time(workers[0].step_times.items())] if workers else []
    devices = [(worker.devices.get(id), id, s.items()) for worker in workers for id, s in worker.device_samples.items()]
    for info, id, samples in devices[:_MOST_DEVICES]:
        gauges += _host(samples) if info is not None and info.kind == "host" else _gpu(printable(id), samples)
    return tuple(gauges)


def _loss_scale(worker: WorkerTail) -> Gauge:
    looks = worker.loss_scales.items()
    series = Series(tuple(look.step for look in looks), tuple(look.loss_scale for look in looks))
    if not any(value is not None for value in series.values):
        samples = worker.samples.items()
        series = Series(tuple(sample.step for sample in samples), tuple(sample.loss_scale for sample in samples))
    last = next((value for value in reversed(series.values) if value is not None), None)
    severity: Severity | None = "error" if last is not None and last < 1 else None
    return Gauge("loss scale", significant(last), series, kind="logarithm", severity=severity)


def _skipped(worker: WorkerTail) -> Gauge:
    looks = [look for look in worker.loss_scales.items() if look.steps_skipped is not None]
    series = Series(tuple(look.step for look in looks), tuple(look.steps_skipped for look in looks))
    if not looks:
        return Gauge("skipped", ABSENT, series, "not known", "growth")
    seen, skipped = looks[-1].step, looks[-1].steps_skipped or 0
    aside = f"of {seen:,} steps" + (f", {percent(skipped / seen)}" if skipped and seen else "")
    return Gauge("skipped", f"{skipped:,}", series, aside, "growth")


def _step_time(stretches: Sequence[StepTimeRecord]) -> Gauge:
    ends = tuple(item.first_step + item.steps - 1 for item in stretches)
    series = Series(ends, tuple(item.mean_time_ns / 1e6 for item in stretches))
    if not stretches:
        return Gauge("step time", ABSENT, series, "not measured yet")
    last = stretches[-1]
    per_s = "" if last.batch is None else f"{last.batch / last.mean_time_ns * 1e9:,.0f} examples/s"
    return Gauge("step time", f"{milliseconds(last.mean_time_ns / 1e6)} ms", series, per_s)


def _host(samples: Sequence[DeviceSample]) -> list[Gauge]:
    last, used = samples[-1], _series(samples, lambda sample: sample.process_memory_bytes)
    everyone, total = last.memory_used_bytes, last.memory_total_bytes
    full = f"machine {percent(everyone / total)} full" if everyone is not None and total else ""
    return [Gauge("memory", byte_size(last.process_memory_bytes), used, full)]


def _gpu(name: str, samples: Sequence[DeviceSample]) -> list[Gauge]:
    last, used = samples[-1], _series(samples, lambda sample: sample.memory_used_bytes)
    gauges = [Gauge(name, byte_size(last.memory_used_bytes), used, f"of {byte_size(last.memory_total_bytes)}")]
    if last.power_mw is not None:
        busy = [] if last.utilization_percent is None else [f"{last.utilization_percent} % busy"]
        heat = [] if last.temperature_c is None else [f"{last.temperature_c} °C"]
        power = _series(samples, lambda sample: sample.power_mw)
        gauges.append(Gauge("power", f"{last.power_mw / 1000:.0f} W", power, ", ".join([*busy, *heat])))
    return gauges


def _series(samples: Sequence[DeviceSample], value: Callable[[DeviceSample], int | None]) -> Series:
    """Return a quantity over whole seconds since the first sample."""
    start = samples[0].time_unix_s
    return Series(tuple(int(sample.time_unix_s - start) for sample in samples), tuple(map(value, samples)))


def _last(series: Series, text: Callable[[float | None], str]) -> str:
    return text(next((value for value in reversed(series.values) if value is not None), None))
