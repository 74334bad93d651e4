"""The sampling thread, with devices, clock and waiting of the test's own: real threads, no time passes."""

from __future__ import annotations

import itertools
import re
import threading
from contextlib import contextmanager, nullcontext

import pytest

from precscope.device_records import DeviceInfo, DeviceSample
from precscope.errors import OptionsError
from precscope.probes.device_sampler import DeviceSampler


class FakeDevice:
    """A device whose memory grows by one byte a look, and which is gone, or raises, at the look `ends_at`."""

    def __init__(self, id: str = "gpu:0", ends_at: int | None = None, error: Exception | None = None) -> None:
        self.info = DeviceInfo(id, "gpu")
        self.looks = 0
        self._ends_at, self._error = ends_at, error

    def read(self, time_unix_s: float) -> DeviceSample | None:
        self.looks += 1
        if self.looks == self._ends_at:
            if self._error is not None:
                raise self._error
            return None
        return DeviceSample(self.info.id, time_unix_s, memory_used_bytes=self.looks)


class Rig:
    """A sampler of some devices that looks `looks` times, and all that came out of it."""

    def __init__(
        self, *devices: FakeDevice, looks: int = 3, interval_s: float = 0.1, sink=None, notice=None, cpu_clock_ns=None
    ) -> None:
        self.batches: list[tuple[DeviceSample, ...]] = []
        self.notices: list[str] = []
        self.waits: list[float] = []
        self.opened = self.closed = 0
        self.threads: set[str] = set()
        self._looks = looks
        self._devices = devices
        self.sampler = DeviceSampler(
            sink or self.batches.append,
            interval_s,
            notice=notice or self.notices.append,
            devices=self._open,
            clock=lambda: 1000.0 + len(self.waits),
            cpu_clock_ns=cpu_clock_ns or (lambda: 0),
            wait=self._wait,
        )

    @contextmanager
    def _open(self, notice):
        self.threads.add(threading.current_thread().name)
        self.opened += 1
        yield self._devices
        self.closed += 1

    def _wait(self, stop: threading.Event, seconds: float) -> bool:
        self.waits.append(seconds)
        return len(self.waits) >= self._looks

    def run(self) -> Rig:
        self.sampler.start()
        self.sampler.stop()
        return self

    @property
    def samples(self) -> list[DeviceSample]:
        return [sample for batch in self.batches for sample in batch]


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def test_all_devices_are_sampled_at_the_clocks_time():
    rig = Rig(FakeDevice("gpu:0"), FakeDevice("gpu:1"), looks=2).run()
    assert [(sample.device, sample.time_unix_s, sample.memory_used_bytes) for sample in rig.samples] == [
        ("gpu:0", 1000.0, 1),
        ("gpu:1", 1000.0, 1),
        ("gpu:0", 1001.0, 2),
        ("gpu:1", 1001.0, 2),
    ]
    assert (rig.sampler.reads, rig.opened, rig.closed, rig.notices) == (2, 1, 1, [])


def test_it_waits_the_interval_between_looks():
    assert Rig(FakeDevice(), looks=4, interval_s=0.25).run().waits == [0.25] * 4


def test_it_works_in_a_daemon_thread_of_its_own_name():
    threads = []
    rig = Rig(FakeDevice(), sink=lambda batch: threads.append(threading.current_thread())).run()
    assert rig.threads == {"precscope-device-sampler"}
    assert [(thread.name, thread.daemon) for thread in threads] == [("precscope-device-sampler", True)]


@pytest.mark.parametrize(("interval_s", "looks_per_batch"), [(0.1, 10), (0.25, 4), (3.0, 1), (1e-6, 100)])
def test_batches_come_once_a_second_and_are_bounded(interval_s, looks_per_batch):
    rig = Rig(FakeDevice("gpu:0"), FakeDevice("gpu:1"), looks=2 * looks_per_batch + 1, interval_s=interval_s).run()
    assert [len(batch) for batch in rig.batches] == [2 * looks_per_batch] * 2 + [2]


def test_a_device_that_is_gone_leaves_the_others():
    rig = Rig(FakeDevice("gpu:0", ends_at=2), FakeDevice("gpu:1"), looks=3).run()
    assert [sample.device for sample in rig.samples] == ["gpu:0", "gpu:1", "gpu:1", "gpu:1"]


def test_it_ends_when_all_devices_are_gone():
    rig = Rig(FakeDevice(ends_at=3), looks=99).run()
    assert (len(rig.samples), rig.sampler.reads, rig.closed) == (2, 3, 1)


def told_once(rig: Rig) -> str:
    """Return the only notice, without the line of code that it names."""
    (notice,) = rig.notices
    words, place = notice.rsplit(" ", 1)
    assert re.fullmatch(r"\(device_sampler\.py:\d+\)", place)
    return words


def test_a_failing_device_switches_it_off_once_and_keeps_what_was_read():
    rig = Rig(FakeDevice(ends_at=3, error=ZeroDivisionError("no driver does this")), looks=99).run()
    assert told_once(rig) == "Devices are no longer sampled: ZeroDivisionError: no driver does this"
    assert [sample.memory_used_bytes for sample in rig.samples] == [1, 2]


def test_a_failing_sink_switches_it_off_once():
    offered = []

    def full_disk(batch):
        offered.append(batch)
        raise OSError("No space left on device")

    rig = Rig(FakeDevice(), looks=99, sink=full_disk).run()
    assert told_once(rig) == "Devices are no longer sampled: OSError: No space left on device"
    assert [len(batch) for batch in offered] == [10]


def test_devices_that_cannot_be_opened_switch_it_off():
    rig = Rig(FakeDevice())
    rig._devices = None
    rig.run()
    assert told_once(rig) == "Devices are no longer sampled: TypeError: 'NoneType' object is not iterable"


def test_a_process_that_may_start_no_more_threads_goes_on(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert Rig(FakeDevice()).run().notices == ["Devices are not sampled: can't start new thread."]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_notice_harms_nobody():
    def notice(message):
        raise RuntimeError(message)

    assert Rig(FakeDevice(ends_at=1, error=ValueError()), notice=notice).run().batches == []


def test_stop_interrupts_the_wait_and_hands_on_the_last_samples():
    looked = threading.Event()
    batches = []

    def wait(stop, seconds):
        looked.set()
        return stop.wait()  # as long as it takes

    @contextmanager
    def devices(notice):
        yield (FakeDevice(),)

    sampler = DeviceSampler(batches.append, 3600.0, devices=devices, wait=wait)
    sampler.start()
    assert looked.wait(60)
    sampler.stop()
    assert [len(batch) for batch in batches] == [1]


def test_start_and_stop_can_be_repeated():
    rig = Rig(FakeDevice(), looks=1)
    rig.sampler.stop()
    for _ in range(2):
        rig.sampler.start()
        rig.sampler.start()
        rig.sampler.stop()
        rig.sampler.stop()
    assert (rig.opened, rig.closed, len(rig.samples), rig.sampler.reads) == (2, 2, 2, 1)


def test_it_can_be_stopped_by_its_sink():
    rig = Rig(FakeDevice(), looks=1, sink=lambda batch: rig.sampler.stop())
    assert rig.run().notices == []


def test_a_driver_that_hangs_is_left_behind_and_said(monkeypatch):
    monkeypatch.setattr("precscope.probes.device_sampler._JOIN_S", 0.0)
    hanging, released = threading.Event(), threading.Event()

    class HangingDevice(FakeDevice):
        def read(self, time_unix_s):
            hanging.set()
            assert released.wait(60)
            return super().read(time_unix_s)

    rig = Rig(HangingDevice(), looks=1)
    rig.sampler.start()
    assert hanging.wait(60)
    rig.sampler.stop()
    assert rig.notices == [
        "The device sampler did not end within 0 s and is left behind: the driver or the sink hangs."
    ]
    released.set()
    monkeypatch.undo()
    rig.sampler.stop()


MS = 1_000_000


def cpu_clock(first_look_ms: float, *looks_ms: float):
    """A clock of the thread's CPU time that is read once after each look, and once at the end."""
    return map(int, itertools.accumulate([first_look_ms * MS, *(look * MS for look in looks_ms), 0])).__next__


def test_its_cpu_time_is_that_of_its_thread():
    assert Rig(FakeDevice(), looks=3, cpu_clock_ns=cpu_clock(40, 1, 2)).run().sampler.cpu_time_ns == 43 * MS


def test_the_thread_reads_its_own_cpu_clock():
    wait = threading.Event.wait

    def look_busily(stop, seconds):
        sum(range(100_000))
        return wait(stop, 0) or sampler.reads == 3

    sampler = DeviceSampler(lambda batch: None, devices=lambda notice: nullcontext([FakeDevice()]), wait=look_busily)
    sampler.start()
    sampler.stop()
    assert sampler.cpu_time_ns > 0


def test_looks_that_cost_little_keep_the_interval():
    # 0.45 ms in 0.1 s are 0.45 % of one core; what it took to open the devices and look once does not count.
    rig = Rig(FakeDevice(), looks=4, cpu_clock_ns=cpu_clock(100, 0.45, 0.45, 0.45)).run()
    assert rig.waits == [0.1] * 4
    assert rig.notices == []


def test_looks_that_cost_more_come_less_often():
    rig = Rig(FakeDevice(), looks=4, cpu_clock_ns=cpu_clock(0, 1.8, 1.8, 1.8)).run()
    assert rig.waits == pytest.approx([0.1, 0.3, 0.4, 0.4])
    assert rig.notices == [
        "Devices are sampled less often than every 0.1 s, because that would take more than 0.5% of one core."
    ]


def test_one_look_that_costs_more_is_made_up_for():
    rig = Rig(FakeDevice(), looks=4, cpu_clock_ns=cpu_clock(0, 0, 0.9, 0)).run()
    assert rig.waits == pytest.approx([0.1] * 4)


@pytest.mark.parametrize("interval_s", [0, -0.1, float("inf"), float("nan")])
def test_an_interval_that_is_none_is_refused(interval_s):
    with pytest.raises(OptionsError, match=r"sampling interval must be a number of seconds above 0, not .*0\.1 is"):
        DeviceSampler(print, interval_s)
