"""TensorFlow's own account of device memory: what its allocator has handed out, now and at the peak."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tensorflow as tf

from precscope.probes.internals.devices import memory_limit_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AllocatorMemory"]


class AllocatorMemory:
    """Current and peak memory of TensorFlow's allocator on one device; no failure ever raises.

    The first failure is the last: it is said once, and from then on there is nothing to read (a CPU's allocator keeps
    no account).

    Args:
        device: TensorFlow's name of the device ("GPU:0").
        notice: Told once why there is nothing to read.
    """

    def __init__(self, device: str, notice: Callable[[str], None] = lambda message: None) -> None:
        self._device = device
        self._notice = notice
        self._off = False

    def read(self) -> tuple[int, int] | None:
        """Return the bytes handed out now, and at most since the last `reset` (or since the program began); or None."""
        info = self._ask(tf.config.experimental.get_memory_info)
        return None if info is None else (int(info["current"]), int(info["peak"]))

    def free(self) -> int | None:
        """Return the bytes that can still be handed out, as far as is known; or None.

        That is the allocator's limit less what is handed out now. Where the limit is not known, what was handed out at
        the peak and is not now: so much there is for certain.
        """
        read = self.read()
        if read is None:
            return None
        current, peak = read
        limit = memory_limit_bytes(self._device)
        return max((peak if limit is None else limit) - current, 0)

    def reset(self) -> None:
        """Let the peak start anew from what is handed out now. The peak is shared by all of this program."""
        self._ask(tf.config.experimental.reset_memory_stats)

    def _ask(self, question: Callable[[str], dict[str, int] | None]) -> dict[str, int] | None:
        if self._off:
            return None
        try:
            if self._device.startswith("CPU"):  # with oneDNN it answers, and says 0 whatever is handed out
                raise ValueError("a CPU's allocator keeps no account.")
            return question(self._device)
        except Exception as error:  # TensorFlow's many kinds of error; none may reach the training
            self._off = True
            self._notice(f"The memory of TensorFlow's allocator on {self._device} is not recorded: {error}")
            return None
