"""What a session measures beside the numbers: op time, devices, step times, and how the training turned out."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import tensorflow as tf

from precscope.probes.allocator import AllocatorMemory
from precscope.probes.device_sampler import Device, DeviceSampler, open_devices
from precscope.probes.host_memory import HostMemory
from precscope.probes.op_profile import OpProfile, model_op_records
from precscope.records import ProgressRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from precscope.device_records import DeviceSample
    from precscope.options import Options
    from precscope.probes.keeper import Keeper
    from precscope.probes.sampling_loop import SamplingLoop

__all__ = ["DeviceRecording", "Measurements"]

_MOST_DEVICE_SAMPLES = 20_000
_HOST_INTERVAL_S = 0.5  # the host's memory moves slowly, and a look at it takes longer than one at a GPU


class Measurements:
    """Starts with a session and ends with it; nothing here stops the training.

    Args:
        model: The model that is trained.
        optimizer: Returns its optimizer.
        options: What is measured.
        loop: Counts the steps.
        keeper: Writes the run.
    """

    def __init__(
        self, model: Any, optimizer: Callable[[], Any], options: Options, loop: SamplingLoop, keeper: Keeper
    ) -> None:
        self._model = model
        self._loop = loop
        self._keeper = keeper
        self._history_before = getattr(model, "history", None)
        self._has_gpu = bool(tf.config.list_physical_devices("GPU"))
        self._sampler: DeviceSampler | None = None
        if options.device_interval_s:
            recording = DeviceRecording(
                keeper,
                lambda message: self._tell("info", "devices", message),
                steps_seen=lambda: loop.steps_seen,
            )
            self._sampler = DeviceSampler(
                recording.keep,
                options.device_interval_s if self._has_gpu else max(options.device_interval_s, _HOST_INTERVAL_S),
                notice=lambda message: self._tell("info", "devices", message),
                devices=self._open_devices,
                clock=keeper.now_unix_s,
            )
        loop.keep_step_time = lambda record: keeper.write(lambda writer: writer.add_step_time(record))
        if self._has_gpu:
            loop.read_memory = AllocatorMemory("GPU:0", lambda message: self._tell("info", "devices", message)).read
        loop.profile = OpProfile(
            loop,
            options.profile_steps,
            options.profile_start,
            parse=lambda path: model_op_records(path, model, optimizer()),
            keep=lambda window, records: keeper.write(lambda writer: writer.add_op_times(window, records)),
            tell=lambda message, failed: self._tell("warning" if failed else "info", "profiler", message),
        )

    def start(self) -> None:
        """Begin to sample the devices."""
        if self._sampler is not None:
            self._sampler.start()

    def close(self) -> None:
        """End everything, and keep what is known only at the end."""
        if self._loop.profile is not None:
            self._loop.profile.close()
        if self._sampler is not None:
            self._sampler.stop()
            self._loop.costs.add("device", self._sampler.cpu_time_ns, self._sampler.reads)
        if results := self._results():
            self._keeper.write(lambda writer: writer.set_results(results))

    def _results(self) -> dict[str, list[float]]:
        """Return what `fit` gave by epoch; numbers alone, of the last `fit` inside the session."""
        history = getattr(self._model, "history", None)
        if history is None or history is self._history_before:
            return {}
        series = {str(name): _numbers(values) for name, values in history.history.items()}
        return {name: values for name, values in series.items() if values}

    @contextmanager
    def _open_devices(self, notice: Callable[[str], None]) -> Iterator[Sequence[Device]]:
        """Open the devices that TensorFlow computes on, and keep what they are. Runs in the sampler's thread."""
        if not self._has_gpu:
            yield self._described((HostMemory(notice),))
            return
        with open_devices(notice) as devices:
            yield self._described(devices)

    def _described(self, devices: Sequence[Device]) -> Sequence[Device]:
        self._keeper.write(lambda writer: writer.add_devices([device.info for device in devices]))
        return devices

    def _tell(self, level: Literal["info", "warning"], source: str, message: str) -> None:
        self._keeper.tell(level, source, message, self._loop.steps_seen or None)


class DeviceRecording:
    """Writes device samples, and fewer of them once there are many: a long run is not to fill the disk.

    Args:
        keeper: Writes the run.
        tell: Told once when samples are dropped.
        most: How many rows there may be at most.
        steps_seen: Returns how many train steps have begun, which is written with each batch for those who watch.
    """

    def __init__(
        self,
        keeper: Keeper,
        tell: Callable[[str], None],
        most: int = _MOST_DEVICE_SAMPLES,
        steps_seen: Callable[[], int] = lambda: 0,
    ) -> None:
        self._keeper = keeper
        self._tell = tell
        self._most = most
        self._steps_seen = steps_seen
        self._rows = 0
        self._looks = 0
        self._every = 1

    def keep(self, samples: Sequence[DeviceSample]) -> None:
        """Write a batch, in the order of time."""
        kept: list[DeviceSample] = []
        for _, look in groupby(samples, key=lambda sample: sample.time_unix_s):
            if self._looks % self._every == 0:
                kept += look
            self._looks += 1
        progress = ProgressRecord(self._steps_seen(), samples[-1].time_unix_s) if samples else None
        self._keeper.write(lambda writer: writer.add_device_samples(kept, progress))
        self._rows += len(kept)
        if self._rows > self._most:
            self._thin()

    def _thin(self) -> None:
        self._keeper.write(lambda writer: writer.thin_device_samples())
        self._rows = (self._rows + 1) // 2
        self._every *= 2
        self._tell(
            f"there were more than {self._most:,} rows of device samples: every second look was dropped, and fewer are "
            "kept from here on. A short peak in between may be missed."
        )


def _numbers(values: Sequence[Any]) -> list[float]:
    try:
        return [float(value) for value in values]
    except (TypeError, ValueError):  # a metric that is no number, or a learning rate that is a schedule
        return []
