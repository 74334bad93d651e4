"""The thread that samples the state of this process' devices while the training runs."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from precscope.error_text import failure_in_a_line
from precscope.errors import OptionsError
from precscope.probes.gpus import open_gpus
from precscope.probes.host_memory import HostMemory

if TYPE_CHECKING:
    from precscope.device_records import DeviceInfo, DeviceSample

__all__ = ["Device", "DeviceSampler", "open_devices"]

_BATCH_S = 1.0
_MOST_READS_PER_BATCH = 100
_JOIN_S = 5.0
_MOST_OF_ONE_CORE = 0.005
_AIM = 0.9 * _MOST_OF_ONE_CORE  # a pause follows the look that it pays for, so the share stays a little behind

Notice = Callable[[str], None]


class Device(Protocol):
    """What can be sampled."""

    info: DeviceInfo

    def read(self, time_unix_s: float) -> DeviceSample | None:
        """Return the state now; None once there is nothing more to read, after telling why."""


@contextmanager
def open_devices(notice: Notice, pci_bus_ids: Sequence[str] | None = None) -> Iterator[tuple[Device, ...]]:
    """Open the GPUs of this process, or the host's memory where it has none, to be read while the context is open."""
    with open_gpus(notice, pci_bus_ids=pci_bus_ids) as gpus:
        yield gpus or (HostMemory(notice),)


class DeviceSampler:
    """Samples the devices in a thread of its own, and hands the samples on about once a second.

    Nothing is kept: a batch that was handed on is forgotten, and while the sink is busy nothing is sampled. A failure,
    the sink's too, ends the sampling and is told once; the training never sees it. Where looks at every interval would
    take more than 0.5 % of one core, as with many GPUs, they come less often.

    Args:
        sink: Takes each batch, in the order of time. Called in the sampler's thread.
        interval_s: Time between two looks, above 0. The time of a look comes on top.
        notice: Told, each once, what cannot be sampled and why. Called in the sampler's thread, but for the word that
            the thread does not end.
        devices: Opens the devices, in the sampler's thread; replaced in tests, or to name the framework's GPUs:
            `lambda notice: open_devices(notice, pci_bus_ids)`.
        clock: Gives the samples' time in seconds since 1970.
        cpu_clock_ns: Gives the CPU time of the calling thread.
        wait: Waits for the event at most so many seconds; True once it is set.

    Attributes:
        reads: How many times the devices were looked at since `start`.
        cpu_time_ns: CPU time of the thread since `start`, opening the devices and the sink included.
    """

    def __init__(
        self,
        sink: Callable[[tuple[DeviceSample, ...]], None],
        interval_s: float = 0.1,
        *,
        notice: Notice = lambda message: None,
        devices: Callable[[Notice], AbstractContextManager[Sequence[Device]]] = open_devices,
        clock: Callable[[], float] = time.time,
        cpu_clock_ns: Callable[[], int] = time.thread_time_ns,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        if not (0 < interval_s < math.inf):
            raise OptionsError(
                f"The device sampling interval must be a number of seconds above 0, not {interval_s!r}; 0.1 is usual."
            )
        self._sink = sink
        self._interval_s = interval_s
        self._reads_per_batch = min(max(1, round(_BATCH_S / interval_s)), _MOST_READS_PER_BATCH)
        self._notice = notice
        self._devices = devices
        self._clock = clock
        self._cpu_clock_ns = cpu_clock_ns
        self._wait = wait
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.reads = 0
        self.cpu_time_ns = 0

    def start(self) -> None:
        """Begin to sample; nothing where that was done already."""
        if self._thread is None:
            self._stop.clear()
            self.reads = self.cpu_time_ns = 0
            self._thread = threading.Thread(target=self._run, name="precscope-device-sampler", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # this process may start no more threads
                self._thread = None
                self._tell(f"Devices are not sampled: {error}.")

    def stop(self) -> None:
        """Hand on the last samples and end the thread; nothing where it is not running.

        A driver that hangs holds this up for 5 s at most; its thread is then left behind.
        """
        thread = self._thread
        if thread is None:
            return
        self._stop.set()
        if thread is threading.current_thread():
            return
        thread.join(_JOIN_S)
        if thread.is_alive():
            self._tell(
                f"The device sampler did not end within {_JOIN_S:g} s and is left behind: the driver or the sink hangs."
            )
        else:
            self._thread = None

    def _run(self) -> None:
        try:
            with self._devices(self._notice) as devices:
                self._sample(list(devices))
        except Exception as error:  # anything at all: the training goes on without this thread
            self._tell(f"Devices are no longer sampled: {failure_in_a_line(error)}")
        finally:
            self.cpu_time_ns = self._cpu_clock_ns()

    def _sample(self, devices: list[Device]) -> None:
        batch: list[DeviceSample] = []
        pace = _Pace(self._interval_s, self._tell)
        try:
            while devices:
                batch += self._read(devices)
                self.reads += 1
                if self.reads % self._reads_per_batch == 0:
                    full, batch = batch, []
                    self._hand_on(full)
                self.cpu_time_ns = self._cpu_clock_ns()
                if self._wait(self._stop, pace.pause_s(self.cpu_time_ns)):
                    break
        finally:
            self._hand_on(batch)

    def _read(self, devices: list[Device]) -> list[DeviceSample]:
        """One look at each device; those that are gone leave the list."""
        time_unix_s = self._clock()
        samples = []
        for device in tuple(devices):
            sample = device.read(time_unix_s)
            if sample is None:
                devices.remove(device)
            else:
                samples.append(sample)
        return samples

    def _hand_on(self, batch: list[DeviceSample]) -> None:
        if batch:
            self._sink(tuple(batch))

    def _tell(self, message: str) -> None:
        with suppress(Exception):  # nobody is left to hear of a notice that fails
            self._notice(message)


class _Pace:
    """Lengthens the pauses of a thread that would otherwise take too much of one core."""

    def __init__(self, interval_s: float, tell: Notice) -> None:
        self._interval_s = interval_s
        self._tell = tell
        self._first_cpu_time_ns: int | None = None
        self._paused_s = 0.0
        self._told = False

    def pause_s(self, cpu_time_ns: int) -> float:
        """Return the next pause, at least the interval; what the thread took up to its first look does not count."""
        if self._first_cpu_time_ns is None:
            self._first_cpu_time_ns = cpu_time_ns
        busy_s = (cpu_time_ns - self._first_cpu_time_ns) / 1e9
        pause_s = max(self._interval_s, busy_s / _AIM - self._paused_s)
        if pause_s > 2 * self._interval_s and not self._told:
            self._told = True
            self._tell(
                f"Devices are sampled less often than every {self._interval_s:g} s, because that would take more than "
                f"{_MOST_OF_ONE_CORE:.1%} of one core."
            )
        self._paused_s += pause_s
        return pause_s
