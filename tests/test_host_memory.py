from __future__ import annotations

import psutil

from precscope.probes.host_memory import HostMemory


def test_the_hosts_memory_is_what_psutil_says():
    host = HostMemory(notice=lambda message: None)
    before = psutil.virtual_memory()
    sample = host.read(5.0)
    assert (host.info.id, host.info.kind) == ("host", "host")
    assert host.info.memory_total_bytes == before.total
    assert (sample.device, sample.time_unix_s, sample.memory_total_bytes) == ("host", 5.0, before.total)
    # A process counts the pages of mapped files as its own, the host does not: neither bounds the other.
    assert 0 < sample.process_memory_bytes < before.total
    assert 0 < sample.memory_used_bytes < before.total


def test_what_a_host_does_not_have_is_none():
    sample = HostMemory(notice=lambda message: None).read(0.0)
    assert sample.power_mw is sample.utilization_percent is sample.throttle_reasons is None


def test_memory_that_this_process_takes_is_seen():
    host = HostMemory(notice=lambda message: None)
    before = host.read(0.0).process_memory_bytes
    held = b"x" * 2**26
    assert host.read(0.0).process_memory_bytes - before > len(held) // 2


def test_a_system_that_refuses_is_said_and_ends_the_sampling(monkeypatch):
    notices: list[str] = []
    host = HostMemory(notices.append)

    def refuse() -> None:
        raise PermissionError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    assert host.read(0.0) is None
    assert notices == ["host: memory is no longer sampled: /proc/meminfo"]
