"""The records of devices: what the run's hardware is, and what state it was in at a moment.

Units are in the names. Absence is None, never 0: a value that the card, the driver or the permissions do not give.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DeviceInfo", "DeviceKind", "DeviceSample"]

DeviceKind = Literal["gpu", "mig", "host"]


@dataclass(frozen=True)
class DeviceInfo:
    """One device that this process computes on.

    Attributes:
        id: "gpu:0" for the process' first CUDA device, as TensorFlow numbers it, also where that is a MIG instance;
            "host" for the machine's own memory.
        kind: "gpu", "mig" (an instance of a partitioned GPU) or "host".
        name: The maker's name ("NVIDIA H100 80GB HBM3").
        memory_total_bytes: All memory of the device.
        uuid: NVML's identifier ("GPU-8932f937-...", "MIG-...").
        pci_bus_id: "00000000:18:00.0"; of a MIG instance, that of its GPU.
        compute_capability: "9.0".
        driver_version: Version of the NVIDIA driver ("580.82.07").
        cuda_driver_version: Newest CUDA version that the driver serves ("13.0"); not the one that TensorFlow uses.
    """

    id: str
    kind: DeviceKind
    name: str | None = None
    memory_total_bytes: int | None = None
    uuid: str | None = None
    pci_bus_id: str | None = None
    compute_capability: str | None = None
    driver_version: str | None = None
    cuda_driver_version: str | None = None


@dataclass(frozen=True)
class DeviceSample:
    """The state of one device at one moment.

    Attributes:
        device: Id of the device ("gpu:0", "host").
        time_unix_s: Wall-clock time, read just before the device was asked.
        memory_used_bytes: Memory in use by all processes. Of a GPU, as nvidia-smi shows it: without what the driver
            reserves for itself, where the driver tells the two apart. Of the host, total minus available.
        memory_total_bytes: All memory of the device.
        process_memory_bytes: This process' part: on a GPU, contexts and libraries included; on the host, its resident
            set size.
        utilization_percent: Share of the driver's last sample period (1/6 to 1 s) in which a kernel ran. It says
            nothing about how much of the GPU the kernel filled.
        memory_utilization_percent: Share of that period in which device memory was read or written.
        power_mw: Power of the whole card; on most cards since Ampere the average of the last second.
        temperature_c: Temperature of the GPU in degrees Celsius; of a MIG instance, that of its GPU.
        sm_clock_mhz: Clock of the multiprocessors; of a MIG instance, that of its GPU.
        memory_clock_mhz: Clock of the memory; of a MIG instance, that of its GPU.
        throttle_reasons: Why the clocks are not higher ("sw_power_cap", "hw_thermal_slowdown", "gpu_idle", ...); empty
            where nothing holds them back.
    """

    device: str
    time_unix_s: float
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    process_memory_bytes: int | None = None
    utilization_percent: int | None = None
    memory_utilization_percent: int | None = None
    power_mw: int | None = None
    temperature_c: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
