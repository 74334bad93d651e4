"""NVML through nvidia-ml-py: the one door to it. Every failure becomes a value: None, with the reason in words."""

from __future__ import annotations

from contextlib import contextmanager
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Answer", "Call", "Nvml", "NvmlCode", "open_nvml"]

#: A function of nvidia-ml-py by name and its arguments: ("nvmlDeviceGetPowerUsage", handle).
Call = tuple[Any, ...]


class NvmlCode(IntEnum):
    """NVML's return codes that mean something here (nvml.h, nvmlReturn_t)."""

    UNINITIALIZED = 1
    NOT_SUPPORTED = 3
    NO_PERMISSION = 4
    DRIVER_NOT_LOADED = 9
    LIBRARY_NOT_FOUND = 12
    FUNCTION_NOT_FOUND = 13
    GPU_IS_LOST = 15
    LIB_RM_VERSION_MISMATCH = 18
    ARGUMENT_VERSION_MISMATCH = 25


_UNKNOWN_CALL = (NvmlCode.FUNCTION_NOT_FOUND, NvmlCode.ARGUMENT_VERSION_MISMATCH)
_REASONS: dict[int | None, str] = {
    NvmlCode.UNINITIALIZED: "NVML was shut down by another part of this process",
    NvmlCode.NOT_SUPPORTED: "the card does not give it",
    NvmlCode.NO_PERMISSION: "no permission; an administrator can allow it",
    NvmlCode.DRIVER_NOT_LOADED: "the NVIDIA driver is not loaded; see what `nvidia-smi` says",
    NvmlCode.LIBRARY_NOT_FOUND: (
        "NVML (libnvidia-ml.so.1) was not found, so there is no NVIDIA driver, or this container was started without "
        "its utilities (NVIDIA_DRIVER_CAPABILITIES=compute,utility)"
    ),
    NvmlCode.FUNCTION_NOT_FOUND: "the driver or nvidia-ml-py is too old for it",
    NvmlCode.ARGUMENT_VERSION_MISMATCH: "the driver or nvidia-ml-py is too old for it",
    NvmlCode.GPU_IS_LOST: "the GPU has fallen off the bus; the kernel's log has an Xid error about it",
    NvmlCode.LIB_RM_VERSION_MISMATCH: "the driver was updated while it was in use; restart the machine",
}


class Answer(NamedTuple):
    """A value; or None, the reason, and NVML's code for it (None where the failure was not NVML's)."""

    value: Any = None
    reason: str | None = None
    code: int | None = None

    @property
    def is_final(self) -> bool:
        """Whether asking again is in vain."""
        return self.code in (NvmlCode.NOT_SUPPORTED, NvmlCode.NO_PERMISSION, *_UNKNOWN_CALL)

    @property
    def device_is_gone(self) -> bool:
        """Whether no other question about the device will be answered either."""
        return self.code in (NvmlCode.GPU_IS_LOST, NvmlCode.UNINITIALIZED)


class Nvml:
    """NVML, initialized."""

    def __init__(self, binding: Any) -> None:
        self._binding = binding

    def ask(self, *calls: Call) -> Answer:
        """Ask with the first of the calls that both driver and binding know. Never raises."""
        answer = Answer()
        for function, *arguments in calls:
            answer = self._call(function, arguments)
            if answer.reason is None or answer.code not in _UNKNOWN_CALL:
                break
        return answer

    def value(self, function: str, *arguments: Any) -> Any:
        """Return the value of one call, or None where the reason does not matter. Never raises."""
        return self._call(function, arguments).value

    def _call(self, function: str, arguments: Any) -> Answer:
        try:
            return Answer(getattr(self._binding, function)(*arguments))
        except AttributeError:
            return Answer(None, _REASONS[NvmlCode.FUNCTION_NOT_FOUND], NvmlCode.FUNCTION_NOT_FOUND)
        except Exception as error:  # NVMLError, and whatever a foreign module named pynvml may raise
            code = getattr(error, "value", None)
            return Answer(None, _REASONS.get(code, f"{type(error).__name__}: {error}"), code)


@contextmanager
def open_nvml(notice: Callable[[str], None]) -> Iterator[Nvml | None]:
    """NVML while the context is open, or None where it is out of reach, with the reason told to `notice`."""
    try:
        import pynvml  # late: it is an extra, and a machine without a GPU does not need it
    except ImportError:
        notice("GPUs are not sampled: nvidia-ml-py is not installed (`pip install nvidia-ml-py`).")
        yield None
        return
    nvml = Nvml(pynvml)
    started = nvml.ask(("nvmlInit",))
    if started.reason is not None:
        notice(f"GPUs are not sampled: {started.reason}.")
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.ask(("nvmlShutdown",))
