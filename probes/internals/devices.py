"""What TensorFlow knows of its devices and does not tell."""

from __future__ import annotations

from tensorflow.python import pywrap_tfe
from tensorflow.python.client import pywrap_tf_session
from tensorflow.python.eager import context

__all__ = ["memory_limit_bytes"]


def memory_limit_bytes(device: str) -> int | None:
    """Return how much TensorFlow's allocator on `device` ("GPU:0") may hand out at most; None where that is unknown.

    It is an attribute that each device has since it was made; `tf.config.experimental.get_memory_info` leaves it out.
    """
    eager = context.context()
    eager.ensure_initialized()
    devices = pywrap_tfe.TFE_ContextListDevices(eager._handle)
    for place in range(pywrap_tf_session.TF_DeviceListCount(devices)):
        if pywrap_tf_session.TF_DeviceListName(devices, place).endswith(f"/device:{device}"):
            return int(pywrap_tf_session.TF_DeviceListMemoryBytes(devices, place)) or None
    return None
