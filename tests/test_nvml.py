"""NVML from the C interface up: nvidia-ml-py runs for real, against the library that `nvml_fake/` builds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from precscope.device_records import DeviceInfo
from precscope.probes.gpu_state import Gpu
from precscope.probes.gpus import describe_gpus
from precscope.probes.nvml import Nvml

BUILD = Path(__file__).parent / "nvml_fake" / "build.py"
MIB = 1024 * 1024
GPU_1 = "GPU-01000000-aaaa-bbbb-cccc-000000000000"

# Reads every GPU `argv[1]` times and prints all that came out.
READ = """
import json, sys
from dataclasses import asdict
from precscope.probes.gpus import open_gpus

notices = []
bus_ids = json.loads(sys.argv[2])
with open_gpus(notices.append, pci_bus_ids=bus_ids) as gpus:
    looks = [[gpu.read(float(look)) for gpu in gpus] for look in range(int(sys.argv[1]))]
    infos = [asdict(gpu.info) for gpu in gpus]
looks = [[sample and asdict(sample) for sample in look] for look in looks]
print(json.dumps({"infos": infos, "looks": looks, "notices": notices}))
"""

# Lets the sampler look four times.
SAMPLE = """
import json
from precscope.probes.device_sampler import DeviceSampler

notices, samples, looks = [], [], iter(range(3))
sampler = DeviceSampler(samples.extend, notice=notices.append, wait=lambda stop, seconds: next(looks, None) is None)
sampler.start()
sampler.stop()
print(json.dumps({"devices": [sample.device for sample in samples], "notices": notices, "reads": sampler.reads}))
"""


def build(folder: Path, *options: str) -> Path:
    subprocess.run([sys.executable, BUILD, folder, *options], check=True)
    return folder


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def fake_of_old_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("old_nvml"), "-DOLD_DRIVER")


def run(library: Path, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**clean, "LD_LIBRARY_PATH": str(library), **environment},
        capture_output=True,
        text=True,
        check=True,
    )


def read(library: Path, times: int = 1, pci_bus_ids: list[str] | None = None, **environment: str) -> dict:
    return json.loads(run(library, READ, str(times), json.dumps(pci_bus_ids), **environment).stdout)


def uuids(result: dict) -> list[str]:
    return [info["uuid"] for info in result["infos"]]


def test_a_gpu_is_described(fake):
    (info,) = read(fake, NVML_FAKE_NAMES="NVIDIA H100")["infos"]
    assert info == {
        "id": "gpu:0",
        "kind": "gpu",
        "name": "NVIDIA H100",
        "memory_total_bytes": 81920 * MIB,
        "uuid": "GPU-00000000-aaaa-bbbb-cccc-000000000000",
        "pci_bus_id": "00000000:10:00.0",
        "compute_capability": "9.0",
        "driver_version": "580.82.07",
        "cuda_driver_version": "12.8",
    }


def test_every_value_comes_from_its_own_gpu(fake):
    result = read(fake, 2, NVML_FAKE_GPUS="2", NVML_FAKE_REASONS="0x44")
    assert result["notices"] == []
    first, second = result["looks"][1]
    assert second == {
        "device": "gpu:1",
        "time_unix_s": 1.0,
        # 2000 MiB and one for each time it was asked before: while described, and at the first look.
        "memory_used_bytes": 2002 * MIB,
        "memory_total_bytes": 81920 * MIB,
        "process_memory_bytes": 600 * MIB,
        "utilization_percent": 91,
        "memory_utilization_percent": 41,
        "power_mw": 300001,
        "temperature_c": 51,
        "sm_clock_mhz": 1001,
        "memory_clock_mhz": 2001,
        "throttle_reasons": ["sw_power_cap", "hw_thermal_slowdown"],
    }
    assert (first["device"], first["power_mw"]) == ("gpu:0", 300000)


@pytest.mark.parametrize(
    ("bits", "names"), [("0", []), ("1", ["gpu_idle"]), ("0x1004", ["sw_power_cap", "unknown_0x1000"])]
)
def test_throttle_reasons_have_names(fake, bits, names):
    assert read(fake, NVML_FAKE_REASONS=bits)["looks"][0][0]["throttle_reasons"] == names


def test_an_old_driver_is_asked_in_its_own_words(fake_of_old_driver):
    result = read(fake_of_old_driver, NVML_FAKE_REASONS="8")
    sample = result["looks"][0][0]
    assert result["notices"] == []
    assert (sample["temperature_c"], sample["throttle_reasons"]) == (50, ["hw_slowdown"])
    # Such a driver counts what it keeps for itself as used.
    assert sample["memory_used_bytes"] == (1001 + 500) * MIB


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "driver is not loaded"),
        (4, "no permission"),
        (18, "restart the machine"),
        (999, "GPUs are not sampled: NVMLError_Unknown"),
    ],
)
def test_a_driver_that_does_not_start_is_one_notice(fake, code, words):
    result = read(fake, 2, NVML_FAKE_ERRORS=f"nvmlInitWithFlags={code}")
    assert (result["infos"], result["looks"]) == ([], [[], []])
    (notice,) = result["notices"]
    assert words in notice


def test_a_library_that_is_none_is_one_notice(tmp_path):
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"")
    (notice,) = read(tmp_path)["notices"]
    assert "libnvidia-ml.so.1) was not found" in notice


def test_without_the_binding_there_is_one_notice(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    notices: list[str] = []
    assert describe_gpus(notices.append) == ()
    assert notices == ["GPUs are not sampled: nvidia-ml-py is not installed (`pip install nvidia-ml-py`)."]


def test_a_foreign_module_of_the_same_name_is_one_notice(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", types.ModuleType("pynvml"))
    notices: list[str] = []
    assert describe_gpus(notices.append) == ()
    assert notices == ["GPUs are not sampled: the driver or nvidia-ml-py is too old for it."]


def test_nvml_is_shut_down_as_often_as_it_was_started(fake):
    told = run(fake, READ, "1", "null", NVML_FAKE_TELLS="1").stderr.split()
    assert told == ["init", "shutdown"]


@pytest.mark.parametrize(("code", "words"), [(3, "the card does not give it"), (4, "no permission")])
def test_a_value_that_is_refused_is_none_and_one_reason(fake, code, words):
    result = read(fake, 3, NVML_FAKE_GPUS="2", NVML_FAKE_ERRORS=f"nvmlDeviceGetPowerUsage={code}")
    assert [[sample["power_mw"] for sample in look] for look in result["looks"]] == [[None, None]] * 3
    assert all(sample["temperature_c"] for look in result["looks"] for sample in look)
    (notice,) = result["notices"]
    assert notice.startswith(f"Fake GPU: power is unknown: {words}")


def test_a_value_that_the_card_does_not_give_is_not_asked_for_again():
    asked = []

    class RefusalError(Exception):
        value = 3  # NVML_ERROR_NOT_SUPPORTED

    class Binding:
        def __getattr__(self, function):
            def call(handle, *arguments):
                asked.append(function)
                if function == "nvmlDeviceGetPowerUsage":
                    raise RefusalError
                return types.SimpleNamespace(used=1) if function == "nvmlDeviceGetMemoryInfo" else None

            return call

    gpu = Gpu(Nvml(Binding()), 0, 0, DeviceInfo("gpu:0", "gpu"), say_once=lambda message: None)
    assert [gpu.read(0.0).power_mw for _ in range(3)] == [None] * 3
    assert asked.count("nvmlDeviceGetPowerUsage") == 1
    assert asked.count("nvmlDeviceGetMemoryInfo") == 3


def test_all_values_refused_but_memory_leave_memory(fake):
    functions = (
        "UtilizationRates PowerUsage TemperatureV ClockInfo CurrentClocksEventReasons ComputeRunningProcesses_v3"
    )
    errors = ";".join(f"nvmlDeviceGet{name}=3" for name in functions.split())
    result = read(fake, 2, NVML_FAKE_ERRORS=errors)
    sample = result["looks"][1][0]
    assert {name for name, value in sample.items() if value is not None} == {
        "device",
        "time_unix_s",
        "memory_used_bytes",
        "memory_total_bytes",
    }
    # SM and memory clock are two values with one reason each.
    assert len(result["notices"]) == 7


def test_a_gpu_that_gives_nothing_is_no_longer_sampled(fake):
    functions = (
        "MemoryInfo MemoryInfo_v2 UtilizationRates PowerUsage TemperatureV ClockInfo "
        "CurrentClocksEventReasons ComputeRunningProcesses_v3"
    )
    result = read(fake, NVML_FAKE_ERRORS=";".join(f"nvmlDeviceGet{name}=4" for name in functions.split()))
    assert result["looks"] == [[None]]
    assert result["notices"][-1] == "gpu:0 (Fake GPU) is no longer sampled: it gives no value at all."


@pytest.mark.parametrize(
    ("who", "bytes_", "words"),
    [
        ("own", 600 * MIB, None),
        ("graphics", 600 * MIB, None),
        ("foreign", None, "runs in a container"),
        ("silent", None, "does not tell the memory of single processes"),
    ],
)
def test_this_process_is_found_among_the_others(fake, who, bytes_, words):
    result = read(fake, 2, NVML_FAKE_PROCESS=who)
    assert [look[0]["process_memory_bytes"] for look in result["looks"]] == [bytes_] * 2
    assert len(result["notices"]) == (words is not None)
    assert all(words in notice for notice in result["notices"])


def test_a_gpu_that_is_lost_leaves_the_others(fake):
    # Asked for its memory while it is described and at two looks, GPU 1 is lost in the middle of the second one.
    result = read(fake, 3, NVML_FAKE_GPUS="2", NVML_FAKE_LOST="1:3")
    assert [[sample is not None for sample in look] for look in result["looks"]] == [[True, True]] + [[True, False]] * 2
    (notice,) = result["notices"]
    assert notice.startswith("gpu:1 (Fake GPU) is no longer sampled: the GPU has fallen off the bus")


def test_the_sampler_goes_on_with_the_gpus_that_are_left(fake):
    result = json.loads(run(fake, SAMPLE, NVML_FAKE_GPUS="2", NVML_FAKE_LOST="0:3").stdout)
    assert result["devices"] == ["gpu:0", "gpu:1", "gpu:1", "gpu:1", "gpu:1"]
    assert (len(result["notices"]), result["reads"]) == (1, 4)


def test_the_sampler_ends_when_no_gpu_is_left(fake):
    result = json.loads(run(fake, SAMPLE, NVML_FAKE_LOST="0:3").stdout)
    assert (result["devices"], result["reads"]) == (["gpu:0"], 2)


def test_the_sampler_turns_to_the_host_where_no_gpu_is_visible(fake):
    result = json.loads(run(fake, SAMPLE, CUDA_VISIBLE_DEVICES="").stdout)
    assert result["devices"] == ["host"] * 4
    assert result["notices"] == ["GPUs are not sampled: CUDA_VISIBLE_DEVICES leaves this process none."]


def test_visible_devices_are_taken_from_the_environment(fake):
    result = read(fake, NVML_FAKE_GPUS="3", CUDA_VISIBLE_DEVICES="2,1")
    assert [(info["id"], info["pci_bus_id"]) for info in result["infos"]] == [
        ("gpu:0", "00000000:12:00.0"),
        ("gpu:1", "00000000:11:00.0"),
    ]
    assert [sample["power_mw"] for sample in result["looks"][0]] == [300002, 300001]


def test_pci_bus_ids_of_the_framework_go_before_the_environment(fake):
    result = read(fake, pci_bus_ids=["0000:11:00.0"], NVML_FAKE_GPUS="2", CUDA_VISIBLE_DEVICES="0")
    assert uuids(result) == [GPU_1]


def test_a_card_that_this_process_may_not_open_takes_no_number(fake):
    errors = "nvmlDeviceGetHandleByIndex_v2@0=4"
    result = read(fake, NVML_FAKE_GPUS="2", NVML_FAKE_ERRORS=errors, CUDA_VISIBLE_DEVICES="0")
    assert uuids(result) == [GPU_1]
    assert result["notices"] == ["GPU 0 of this machine is left out: no permission; an administrator can allow it."]


def test_a_machine_whose_driver_lists_no_gpu(fake):
    assert read(fake, NVML_FAKE_GPUS="0")["notices"] == ["GPUs are not sampled: NVML lists none."]


@pytest.mark.parametrize("name", ["MIG-01020000-aaaa-bbbb-cccc-000000000000", f"MIG-{GPU_1}/12/0"])
def test_a_mig_instance_has_its_own_memory_and_its_cards_clocks(fake, name):
    result = read(fake, 2, NVML_FAKE_GPUS="2", NVML_FAKE_MIG="1:2", CUDA_VISIBLE_DEVICES=name)
    (info,) = result["infos"]
    assert (info["id"], info["kind"], info["name"]) == ("gpu:0", "mig", "Fake GPU MIG 1g.10gb")
    assert (info["memory_total_bytes"], info["pci_bus_id"]) == (10240 * MIB, "00000000:11:00.0")
    sample = result["looks"][1][0]
    assert (sample["memory_used_bytes"], sample["memory_total_bytes"]) == (200 * MIB, 10240 * MIB)
    assert (sample["temperature_c"], sample["sm_clock_mhz"], sample["memory_clock_mhz"]) == (51, 1001, 2001)
    assert (sample["power_mw"], sample["utilization_percent"]) == (None, None)
    assert sorted(result["notices"]) == [
        "Fake GPU MIG 1g.10gb: power is unknown: the card does not give it.",
        "Fake GPU MIG 1g.10gb: utilization is unknown: the card does not give it.",
    ]


def test_a_partitioned_card_stands_for_its_first_instance(fake):
    result = read(fake, NVML_FAKE_GPUS="2", NVML_FAKE_MIG="1:2")
    assert uuids(result) == ["MIG-01010000-aaaa-bbbb-cccc-000000000000"]
    assert any("one MIG instance and no other GPU" in notice for notice in result["notices"])
