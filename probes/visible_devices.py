"""Which of the machine's GPUs a CUDA program sees, and in which order: CUDA's rules, without CUDA.

The rules are those of "CUDA environment variables" in NVIDIA's CUDA programming guide; what it leaves open (identifiers
given twice, kinds mixed) follows PyTorch's reading of them. MIG's rules are those of NVIDIA's MIG user guide: a process
sees one compute instance, and no other GPU beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["Card", "MigInstance", "VisibleDevice", "visible_devices"]


@dataclass(frozen=True)
class MigInstance:
    """One compute instance of a partitioned card."""

    uuid: str | None
    gpu_instance_id: int | None = None
    compute_instance_id: int | None = None


@dataclass(frozen=True)
class Card:
    """One GPU that NVML can open, in NVML's order (that of the PCI bus). `mig` is None where MIG mode is off."""

    name: str | None
    uuid: str | None
    pci_bus_id: str | None
    mig: tuple[MigInstance, ...] | None = None


@dataclass(frozen=True)
class VisibleDevice:
    """A card's position among the cards, and of a MIG instance its position in the card's `mig`."""

    card: int
    mig: int | None = None


def visible_devices(
    cards: Sequence[Card],
    environment: Mapping[str, str],
    pci_bus_ids: Sequence[str] | None = None,
    notice: Callable[[str], None] = lambda message: None,
) -> tuple[VisibleDevice, ...]:
    """Choose the devices of this process, in CUDA's order.

    Args:
        cards: What NVML lists.
        environment: CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER are read from it.
        pci_bus_ids: The framework's devices in its order, where it names them: then nothing has to be concluded.
        notice: Told what of this is not certain.
    """
    if pci_bus_ids is not None:
        chosen = _by_pci_bus_id(cards, pci_bus_ids, notice)
    else:
        chosen = _by_environment(cards, environment, notice)
    return _as_cuda_sees_mig(cards, chosen, notice)


def _by_pci_bus_id(
    cards: Sequence[Card], pci_bus_ids: Sequence[str], notice: Callable[[str], None]
) -> list[VisibleDevice]:
    known = {_normal(card.pci_bus_id): position for position, card in enumerate(cards) if card.pci_bus_id}
    missing = [bus_id for bus_id in pci_bus_ids if _normal(bus_id) not in known]
    if missing:
        notice(f"NVML lists no GPU at PCI bus id {', '.join(missing)}: not sampled.")
    return [VisibleDevice(known[_normal(bus_id)]) for bus_id in pci_bus_ids if _normal(bus_id) in known]


def _normal(pci_bus_id: str) -> str:
    """Give "0000:18:00.0" (CUDA's) and "00000000:18:00.0" (NVML's) one spelling."""
    domain, _, rest = pci_bus_id.lower().partition(":")
    return f"{domain.lstrip('0')}:{rest}"


def _by_environment(
    cards: Sequence[Card], environment: Mapping[str, str], notice: Callable[[str], None]
) -> list[VisibleDevice]:
    value = environment.get("CUDA_VISIBLE_DEVICES")
    entries = [] if value is None else [entry.strip() for entry in value.split(",")]
    by_index = value is None or entries[0].isdecimal()
    if by_index and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and len({card.name for card in cards}) > 1:
        notice(
            "The GPUs of this machine differ and CUDA_DEVICE_ORDER is not PCI_BUS_ID, so CUDA may order them otherwise "
            "than NVML, and what is shown for one may belong to another. Set CUDA_DEVICE_ORDER=PCI_BUS_ID."
        )
    if value is None:
        return [VisibleDevice(position) for position in range(len(cards))]
    return _listed(cards, entries, notice)


def _listed(cards: Sequence[Card], entries: Sequence[str], notice: Callable[[str], None]) -> list[VisibleDevice]:
    """Take the devices of a list up to the first entry that names none; nothing at all if one is named twice."""
    kind = _kind(entries[0])
    chosen: list[VisibleDevice] = []
    for entry in entries:
        found = _find(cards, entry) if _kind(entry) == kind else []
        if len(found) != 1:
            if entry not in ("", "-1"):
                what = "fits several GPUs" if found else "names no GPU here"
                notice(f"CUDA_VISIBLE_DEVICES: {entry!r} {what}; CUDA ignores it and all that follows it.")
            break
        if found[0] in chosen:
            notice(f"CUDA_VISIBLE_DEVICES names a GPU twice ({entry!r}), so CUDA sees none.")
            return []
        chosen += found
    return chosen


def _kind(entry: str) -> str:
    return next((prefix for prefix in ("GPU-", "MIG-") if entry.startswith(prefix)), "index")


def _find(cards: Sequence[Card], entry: str) -> list[VisibleDevice]:
    """Return all devices that an index, a UUID or the beginning of a UUID fits."""
    if entry.isdecimal():
        return [VisibleDevice(int(entry))] if int(entry) < len(cards) else []
    if entry.startswith("GPU-"):
        return [VisibleDevice(at) for at, card in enumerate(cards) if (card.uuid or "").startswith(entry)]
    if entry.startswith("MIG-"):
        return [
            VisibleDevice(at, instance_at)
            for at, card in enumerate(cards)
            for instance_at, instance in enumerate(card.mig or ())
            if (instance.uuid or "").startswith(entry) or entry == _old_mig_name(card, instance)
        ]
    return []


def _old_mig_name(card: Card, instance: MigInstance) -> str:
    """Return the name from before MIG instances had UUIDs of their own (driver 470), which CUDA still takes."""
    return f"MIG-{card.uuid}/{instance.gpu_instance_id}/{instance.compute_instance_id}"


def _as_cuda_sees_mig(
    cards: Sequence[Card], chosen: Sequence[VisibleDevice], notice: Callable[[str], None]
) -> tuple[VisibleDevice, ...]:
    """Take a partitioned card's first instance; one instance, and nothing beside it, is all that a process sees."""
    seen = []
    for device in chosen:
        instances = cards[device.card].mig
        if device.mig is not None or instances is None:
            seen.append(device)
        elif instances:
            seen.append(VisibleDevice(device.card, 0))
        else:
            notice(f"{cards[device.card].name} is in MIG mode and has no instance, so CUDA does not see it.")
    instances_seen = [device for device in seen if device.mig is not None]
    if instances_seen and len(seen) > 1:
        notice("A CUDA process sees one MIG instance and no other GPU beside it: only the first one is sampled.")
    return tuple(instances_seen[:1] or seen)
