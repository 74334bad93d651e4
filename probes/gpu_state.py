"""The state of one GPU: memory, utilization, power, temperature, clocks, and why they are not higher."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from precscope.device_records import DeviceInfo, DeviceSample

if TYPE_CHECKING:
    from collections.abc import Callable

    from precscope.probes.nvml import Call, Nvml

__all__ = ["Gpu"]

# nvml.h: nvmlTemperatureSensors_t, nvmlClockType_t, and the size and version of nvmlMemory_v2_t.
_TEMPERATURE_GPU, _CLOCK_SM, _CLOCK_MEMORY, _MEMORY_V2 = 0, 1, 2, 0x02000028
# nvml.h: the bits of nvmlClocksEventReason* (before driver 535 nvmlClocksThrottleReason*, with the same values).
_THROTTLE_REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}


class _Question(NamedTuple):
    """Functions with what follows the handle, the newest first: drivers of different age know different ones."""

    functions: tuple[tuple[Any, ...], ...]
    of_card: bool = False  # of a MIG instance, its card is asked, for they share it


_QUESTIONS = {
    "memory in use": _Question((("nvmlDeviceGetMemoryInfo", _MEMORY_V2), ("nvmlDeviceGetMemoryInfo",))),
    "this process' memory": _Question((("nvmlDeviceGetComputeRunningProcesses",),)),
    "utilization": _Question((("nvmlDeviceGetUtilizationRates",),)),
    "power": _Question((("nvmlDeviceGetPowerUsage",),)),
    "temperature": _Question(
        (("nvmlDeviceGetTemperatureV", _TEMPERATURE_GPU), ("nvmlDeviceGetTemperature", _TEMPERATURE_GPU)), of_card=True
    ),
    "SM clock": _Question((("nvmlDeviceGetClockInfo", _CLOCK_SM),), of_card=True),
    "memory clock": _Question((("nvmlDeviceGetClockInfo", _CLOCK_MEMORY),), of_card=True),
    "throttle reasons": _Question(
        (("nvmlDeviceGetCurrentClocksEventReasons",), ("nvmlDeviceGetCurrentClocksThrottleReasons",)), of_card=True
    ),
}


class _GpuGoneError(Exception):
    """The GPU gives nothing any more. Never leaves this module."""


class Gpu:
    """One GPU or MIG instance of this process, to be read while NVML is open.

    Args:
        nvml: The open library.
        handle: NVML's handle of the GPU or MIG instance.
        card_handle: That of its card; the same but for a MIG instance.
        info: What the GPU is.
        say_once: Told why a value is None; it keeps to itself what it was told before.
    """

    def __init__(
        self, nvml: Nvml, handle: Any, card_handle: Any, info: DeviceInfo, say_once: Callable[[str], None]
    ) -> None:
        self.info = info
        self._nvml = nvml
        self._handle = handle
        self._say_once = say_once
        self._calls: dict[str, tuple[Call, ...]] = {
            about: tuple((function, card_handle if of_card else handle, *rest) for function, *rest in functions)
            for about, (functions, of_card) in _QUESTIONS.items()
        }
        self._pid = os.getpid()

    def read(self, time_unix_s: float) -> DeviceSample | None:
        """Return the state now; None once the GPU is gone, after telling why."""
        try:
            return self._sample(time_unix_s)
        except _GpuGoneError as gone:
            self._say_once(f"{self.info.id} ({self.info.name}) is no longer sampled: {gone}.")
            return None

    def _sample(self, time_unix_s: float) -> DeviceSample:
        memory = self._ask("memory in use")
        utilization = self._ask("utilization")
        sample = DeviceSample(
            device=self.info.id,
            time_unix_s=time_unix_s,
            memory_used_bytes=getattr(memory, "used", None),
            memory_total_bytes=getattr(memory, "total", None),
            process_memory_bytes=self._process_memory_bytes(),
            utilization_percent=getattr(utilization, "gpu", None),
            memory_utilization_percent=getattr(utilization, "memory", None),
            power_mw=self._ask("power"),
            temperature_c=self._ask("temperature"),
            sm_clock_mhz=self._ask("SM clock"),
            memory_clock_mhz=self._ask("memory clock"),
            throttle_reasons=_throttle_reasons(self._ask("throttle reasons")),
        )
        if sample == DeviceSample(self.info.id, time_unix_s):
            raise _GpuGoneError("it gives no value at all")
        return sample

    def _process_memory_bytes(self) -> int | None:
        """Find this process. One that also draws has the same figure in both lists, so one list is enough."""
        processes = self._ask("this process' memory")
        if processes is None:
            return None
        mine = self._mine(processes) or self._mine(
            self._nvml.value("nvmlDeviceGetGraphicsRunningProcesses", self._handle) or ()
        )
        if not mine:
            self._say(
                "this process' memory",
                f"NVML lists no process {self._pid}, which has not used the GPU yet or runs in a container, where its "
                "id is another",
            )
            return None
        used_bytes: int | None = mine[0].usedGpuMemory
        if used_bytes is None:
            self._say("this process' memory", "the driver does not tell the memory of single processes")
        return used_bytes

    def _mine(self, processes: Any) -> list[Any]:
        return [process for process in processes if process.pid == self._pid]

    def _ask(self, about: str) -> Any:
        answer = self._nvml.ask(*self._calls[about])
        if answer.reason is None:
            return answer.value
        if answer.device_is_gone:
            raise _GpuGoneError(answer.reason)
        if answer.is_final:
            self._calls[about] = ()  # not asked again
        self._say(about, answer.reason)
        return None

    def _say(self, about: str, reason: str) -> None:
        # By the card's name, without the device's id: eight equal cards have one thing to say.
        self._say_once(f"{self.info.name}: {about} is unknown: {reason}.")


def _throttle_reasons(bits: int | None) -> tuple[str, ...] | None:
    if bits is None:
        return None
    names = tuple(name for bit, name in _THROTTLE_REASONS.items() if bits & bit)
    unknown = bits & ~sum(_THROTTLE_REASONS)
    return (*names, f"unknown_{unknown:#x}") if unknown else names
