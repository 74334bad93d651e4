"""The GPUs of this process, found through NVML: what they are, and readers of their state."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from precscope.device_records import DeviceInfo
from precscope.probes.gpu_state import Gpu
from precscope.probes.nvml import Nvml, open_nvml
from precscope.probes.visible_devices import Card, MigInstance, VisibleDevice, visible_devices

__all__ = ["describe_gpus", "open_gpus"]

_Notice = Callable[[str], None]


def describe_gpus(
    notice: _Notice = lambda message: None, pci_bus_ids: Sequence[str] | None = None
) -> tuple[DeviceInfo, ...]:
    """Describe the GPUs of this process, in CUDA's order; none where NVML is out of reach. Never raises.

    Arguments are those of `open_gpus`.
    """
    with open_gpus(notice, pci_bus_ids=pci_bus_ids) as gpus:
        return tuple(gpu.info for gpu in gpus)


@contextmanager
def open_gpus(
    notice: _Notice, environment: Mapping[str, str] | None = None, pci_bus_ids: Sequence[str] | None = None
) -> Iterator[tuple[Gpu, ...]]:
    """Find the GPUs of this process, in CUDA's order, to be read while the context is open; none without NVML.

    Args:
        notice: Told, each once, why there are no GPUs or why a value of theirs is None.
        environment: Where CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER are read; this process' own by default.
        pci_bus_ids: The framework's GPUs in its order, where it names them: then the environment is not read.
    """
    with open_nvml(notice) as nvml:
        if nvml is None:
            yield ()
        else:
            yield _gpus(nvml, _once(notice), os.environ if environment is None else environment, pci_bus_ids)


def _once(notice: _Notice) -> _Notice:
    said: set[str] = set()

    def say_once(message: str) -> None:
        if message not in said:
            said.add(message)
            notice(message)

    return say_once


class _Found(NamedTuple):
    """A card with its handle, and those of its MIG instances in the order of `card.mig`."""

    card: Card
    handle: Any
    mig_handles: tuple[Any, ...]


def _gpus(
    nvml: Nvml, say_once: _Notice, environment: Mapping[str, str], pci_bus_ids: Sequence[str] | None
) -> tuple[Gpu, ...]:
    found = list(_find(nvml, say_once))
    visible = visible_devices([each.card for each in found], environment, pci_bus_ids, say_once)
    if not visible:
        why = "CUDA_VISIBLE_DEVICES leaves this process none" if found else "NVML lists none"
        say_once(f"GPUs are not sampled: {why}.")
    return tuple(
        _gpu(nvml, f"gpu:{position}", found[device.card], device, say_once) for position, device in enumerate(visible)
    )


def _find(nvml: Nvml, say_once: _Notice) -> Iterator[_Found]:
    """List the cards that this process may open. The others are none of CUDA's either, and take no number there."""
    for index in range(nvml.value("nvmlDeviceGetCount") or 0):
        handle, reason, _ = nvml.ask(("nvmlDeviceGetHandleByIndex", index))
        if reason is not None:
            say_once(f"GPU {index} of this machine is left out: {reason}.")
            continue
        mig_handles = _mig_handles(nvml, handle)
        card = Card(
            name=nvml.value("nvmlDeviceGetName", handle),
            uuid=nvml.value("nvmlDeviceGetUUID", handle),
            pci_bus_id=getattr(nvml.value("nvmlDeviceGetPciInfo", handle), "busId", None),
            mig=None if mig_handles is None else tuple(_mig_instance(nvml, each) for each in mig_handles),
        )
        yield _Found(card, handle, mig_handles or ())


def _mig_handles(nvml: Nvml, handle: Any) -> tuple[Any, ...] | None:
    """List the handles of a card's MIG instances; None where MIG mode is off or the card has no such thing."""
    current_mode, _pending_mode = nvml.value("nvmlDeviceGetMigMode", handle) or (0, 0)
    if not current_mode:
        return None
    slots = range(nvml.value("nvmlDeviceGetMaxMigDeviceCount", handle) or 0)
    handles = (nvml.value("nvmlDeviceGetMigDeviceHandleByIndex", handle, slot) for slot in slots)
    return tuple(each for each in handles if each is not None)


def _mig_instance(nvml: Nvml, handle: Any) -> MigInstance:
    return MigInstance(
        uuid=nvml.value("nvmlDeviceGetUUID", handle),
        gpu_instance_id=nvml.value("nvmlDeviceGetGpuInstanceId", handle),
        compute_instance_id=nvml.value("nvmlDeviceGetComputeInstanceId", handle),
    )


def _gpu(nvml: Nvml, id: str, found: _Found, device: VisibleDevice, say_once: _Notice) -> Gpu:
    handle = found.handle if device.mig is None else found.mig_handles[device.mig]
    capability = nvml.value("nvmlDeviceGetCudaComputeCapability", found.handle)
    cuda_version = nvml.value("nvmlSystemGetCudaDriverVersion")
    info = DeviceInfo(
        id=id,
        kind="gpu" if device.mig is None else "mig",
        name=nvml.value("nvmlDeviceGetName", handle) or found.card.name,
        memory_total_bytes=getattr(nvml.value("nvmlDeviceGetMemoryInfo", handle), "total", None),
        uuid=nvml.value("nvmlDeviceGetUUID", handle),
        pci_bus_id=found.card.pci_bus_id,
        compute_capability=None if capability is None else "{}.{}".format(*capability),
        driver_version=nvml.value("nvmlSystemGetDriverVersion"),
        cuda_driver_version=None if cuda_version is None else f"{cuda_version // 1000}.{cuda_version % 1000 // 10}",
    )
    return Gpu(nvml, handle, found.handle, info, say_once)
