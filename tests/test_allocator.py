from __future__ import annotations

import pytest
import tensorflow as tf

from precscope.probes import allocator as allocator_module
from precscope.probes.allocator import AllocatorMemory
from precscope.probes.internals.devices import memory_limit_bytes


class Account:
    """TensorFlow's two functions for a device that keeps an account."""

    def __init__(self) -> None:
        self.current, self.peak = 300, 900

    def get_memory_info(self, device: str) -> dict[str, int]:
        assert device == "GPU:1"
        return {"current": self.current, "peak": self.peak}

    def reset_memory_stats(self, device: str) -> None:
        assert device == "GPU:1"
        self.peak = self.current


@pytest.fixture
def account(monkeypatch):
    account = Account()
    for name in ("get_memory_info", "reset_memory_stats"):
        monkeypatch.setattr(tf.config.experimental, name, getattr(account, name))
    return account


def test_current_and_peak_are_read(account):
    assert AllocatorMemory("GPU:1").read() == (300, 900)


def test_the_peak_starts_anew(account):
    allocator = AllocatorMemory("GPU:1")
    allocator.reset()
    assert allocator.read() == (300, 300)


@pytest.mark.parametrize("device", ["CPU:0", "GPU:99", "nonsense"])
def test_a_device_without_an_account_is_none_and_one_notice(device):
    notices: list[str] = []
    allocator = AllocatorMemory(device, notices.append)
    allocator.reset()
    assert [allocator.read(), allocator.read()] == [None, None]
    (notice,) = notices
    assert notice.startswith(f"The memory of TensorFlow's allocator on {device} is not recorded: ")


@pytest.mark.gpu
def test_a_gpu_keeps_an_account():
    allocator = AllocatorMemory("GPU:0")
    allocator.reset()
    with tf.device("GPU:0"):
        held = tf.zeros([2**20], tf.float32)
    current_bytes, peak_bytes = allocator.read()
    assert peak_bytes >= current_bytes >= held.shape[0] * 4


@pytest.mark.parametrize(("limit", "free"), [(1000, 700), (None, 600), (200, 0)])
def test_what_is_free_is_the_limit_less_what_is_handed_out(account, monkeypatch, limit, free):
    monkeypatch.setattr(allocator_module, "memory_limit_bytes", lambda device: limit)
    assert AllocatorMemory("GPU:1").free() == free


def test_nothing_is_known_of_a_cpu_but_the_limit_that_tensorflow_gives_it():
    assert AllocatorMemory("CPU:0").free() is None
    assert (memory_limit_bytes("CPU:0") or 0) > 0
    assert memory_limit_bytes("GPU:99") is None
