"""What a run says about the machine's GPUs: TensorFlow names them, NVML adds what it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from precscope.device_records import DeviceInfo
from precscope.probes import environment

if TYPE_CHECKING:
    import pytest

DETAILS = {"device_name": "NVIDIA H100", "compute_capability": (9, 0)}
INFO = DeviceInfo("gpu:0", "gpu", "NVIDIA H100", 85_520_809_984, "GPU-1", driver_version="580.82.07")
FROM_TENSORFLOW = {"name": "NVIDIA H100", "compute_capability": "9.0"}


def see(monkeypatch: pytest.MonkeyPatch, in_tensorflow: int, in_nvml: int) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU"] * in_tensorflow)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: DETAILS)
    monkeypatch.setattr(environment, "describe_gpus", lambda: (INFO,) * in_nvml)


def test_nvml_adds_memory_and_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 1, 1)
    hardware = environment.describe_hardware()
    assert hardware["gpus"] == [FROM_TENSORFLOW | {"memory_bytes": 85_520_809_984, "uuid": "GPU-1"}]
    assert hardware["driver"] == "580.82.07"


def test_without_nvml_or_with_other_gpus_there_nothing_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    for in_nvml in (0, 2):
        see(monkeypatch, 1, in_nvml)
        hardware = environment.describe_hardware()
        assert hardware["gpus"] == [FROM_TENSORFLOW]
        assert hardware["driver"] is None


def test_without_gpus_nvml_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 0, 1)
    assert (environment.describe_hardware()["gpus"], environment.describe_hardware()["driver"]) == ([], None)
