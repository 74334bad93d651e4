"""The host's memory through psutil: what is sampled on a machine without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from precscope.device_records import DeviceInfo, DeviceSample

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HostMemory"]


class HostMemory:
    """The memory of this machine and of this process.

    The figures are the machine's: in a container with a memory limit of its own, the limit is not seen.

    Args:
        notice: Told once if the system does not give the figures.
    """

    def __init__(self, notice: Callable[[str], None]) -> None:
        self._notice = notice
        self._process = psutil.Process()
        total_bytes = psutil.virtual_memory().total
        self.info = DeviceInfo("host", "host", memory_total_bytes=total_bytes)

    def read(self, time_unix_s: float) -> DeviceSample | None:
        """Return the memory in use now, or None once the system refuses to tell."""
        try:
            memory = psutil.virtual_memory()
            resident_bytes = self._process.memory_info().rss
        except (psutil.Error, OSError) as error:
            self._notice(f"host: memory is no longer sampled: {error}")
            return None
        return DeviceSample(
            device=self.info.id,
            time_unix_s=time_unix_s,
            memory_used_bytes=memory.total - memory.available,
            memory_total_bytes=memory.total,
            process_memory_bytes=resident_bytes,
        )
