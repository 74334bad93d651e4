"""CUDA's rules for which GPUs a process sees; the cases are those of NVIDIA's programming guide, where it has one."""

from __future__ import annotations

import pytest

from precscope.probes.visible_devices import Card, MigInstance, visible_devices


def card(position: int, name: str = "A100", mig: tuple[MigInstance, ...] | None = None) -> Card:
    return Card(name, f"GPU-8{position}32f937-d72c-4106-c12f-20bd9faed9f6", f"00000000:0{position}:00.0", mig)


CARDS = [card(position) for position in range(4)]
INSTANCES = (MigInstance("MIG-aa00", 1, 0), MigInstance("MIG-ab00", 2, 0))


def positions(cards, value, order=None, pci_bus_ids=None):
    """The visible cards' positions and what was said about them."""
    notices: list[str] = []
    environment = {"CUDA_VISIBLE_DEVICES": value, "CUDA_DEVICE_ORDER": order}
    environment = {name: setting for name, setting in environment.items() if setting is not None}
    devices = visible_devices(cards, environment, pci_bus_ids, notices.append)
    return [device.card if device.mig is None else (device.card, device.mig) for device in devices], notices


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ("2,1", [2, 1]),
        (" 2 , 1 ", [2, 1]),
        ("0,2,-1,1", [0, 2]),
        ("", []),
        ("-1", []),
        ("1,", [1]),
        ("GPU-8132f937-d72c-4106-c12f-20bd9faed9f6", [1]),
        ("GPU-83,GPU-80", [3, 0]),
    ],
)
def test_plain_cases_need_no_word(value, expected):
    assert positions(CARDS, value) == (expected, [])


@pytest.mark.parametrize(
    ("value", "expected", "words"),
    [
        ("0,7,1", [0], "'7' names no GPU here"),
        ("0,GPU-81", [0], "'GPU-81' names no GPU here"),
        ("GPU-81,0", [1], "'0' names no GPU here"),
        ("GPU-8", [], "'GPU-8' fits several GPUs"),
        ("NoDevFiles", [], "'NoDevFiles' names no GPU here"),
        ("²", [], "names no GPU here"),
        ("0,0", [], "names a GPU twice ('0'), so CUDA sees none"),
        ("1,0,1", [], "names a GPU twice"),
        ("GPU-81,GPU-8132", [], "names a GPU twice"),
        ("MIG-aa00", [], "'MIG-aa00' names no GPU here"),
    ],
)
def test_what_cuda_ignores_is_said(value, expected, words):
    found, notices = positions(CARDS, value)
    assert found == expected
    (notice,) = notices
    assert words in notice


DIFFERENT = [card(0, "T400"), card(1, "A100")]


@pytest.mark.parametrize(
    ("value", "order", "uncertain"),
    [
        ("0", None, True),
        (None, None, True),
        ("1", "FASTEST_FIRST", True),
        ("0", "PCI_BUS_ID", False),
        ("GPU-81", None, False),
    ],
)
def test_indices_of_different_gpus_are_uncertain_without_pci_order(value, order, uncertain):
    _, notices = positions(DIFFERENT, value, order)
    assert [notice for notice in notices if "CUDA_DEVICE_ORDER=PCI_BUS_ID" in notice] == notices
    assert len(notices) == uncertain


def test_bus_ids_of_the_framework_leave_nothing_to_conclude():
    assert positions(DIFFERENT, "0", pci_bus_ids=["0000:01:00.0"]) == ([1], [])


def test_a_bus_id_that_nvml_does_not_list_is_said():
    found, notices = positions(CARDS, None, pci_bus_ids=["0000:00:00.0", "0000:ff:00.0"])
    assert found == [0]
    assert notices == ["NVML lists no GPU at PCI bus id 0000:ff:00.0: not sampled."]


MIXED = [card(0), card(1, mig=INSTANCES)]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("MIG-ab00", [(1, 1)]),
        ("MIG-ab", [(1, 1)]),
        (f"MIG-{MIXED[1].uuid}/2/0", [(1, 1)]),
        ("1", [(1, 0)]),
        ("GPU-81", [(1, 0)]),
        ("0", [0]),
    ],
)
def test_mig_instances_are_named_or_the_first_is_taken(value, expected):
    assert positions(MIXED, value) == (expected, [])


@pytest.mark.parametrize("value", [None, "0,1", "MIG-aa00,MIG-ab00"])
def test_one_mig_instance_is_all_that_a_process_sees(value):
    found, notices = positions(MIXED, value)
    assert found == [(1, 0)]
    assert notices == [
        "A CUDA process sees one MIG instance and no other GPU beside it: only the first one is sampled."
    ]


def test_a_mig_prefix_that_fits_two_is_ignored():
    found, notices = positions(MIXED, "MIG-a")
    assert found == []
    assert "fits several GPUs" in notices[0]


def test_a_partitioned_card_without_instances_is_not_seen():
    found, notices = positions([card(0), card(1, mig=())], None)
    assert found == [0]
    assert notices == ["A100 is in MIG mode and has no instance, so CUDA does not see it."]
