"""What one kernel or op cost in a profiled window of train steps: the record that op time, layers and reports share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Direction", "OpRecord", "ProfiledWindow"]

#: What an op works for. None in a record means that nothing says so.
Direction = Literal["forward", "backward", "optimizer", "input", "precscope"]


@dataclass(frozen=True)
class ProfiledWindow:
    """The train steps over which the op records add up.

    Attributes:
        first_step: The window's first train step.
        steps: How many it holds.
    """

    first_step: int
    steps: int


@dataclass(frozen=True)
class OpRecord:
    """Device time of one op, summed over a profiled window.

    Attributes:
        op: The op's name with its scopes ("gradient_tape/model/conv/BiasAdd/BiasAddGrad"); of a fused kernel one op of
            those that do most of its work; where nothing names it, XLA's instruction or the kernel.
        op_type: TensorFlow's op type ("BiasAddGrad"), or None.
        kernel: Name of the GPU kernel or copy, of XLA's instruction on a CPU, or None (a CPU without XLA).
        layer: Id of the layer it works for; None where there is none (optimizer, loss) or nothing says which.
        direction: What it works for, or None where nothing says so. "forward" and "backward" without a layer are ops
            outside all layers, such as the loss.
        dtype: Name of the dtype it computes in, of a cast the dtype it casts to; None where unknown. Products of
            float32 on tensor cores (TF32) are "float32".
        device_time_ns: Time on the device, of all its runs together. On a CPU the time of the thread that ran it.
        count: How many times it ran.
        tensor_core: Whether it ran on tensor cores; None where its name does not tell.
        device: Id of the device ("gpu:0"), or "host" for a CPU.
        cast: Whether it does nothing but convert between float formats.
        shared_with: Other layers whose work the same kernel does. Its time is not divided: it stands whole at `layer`.
    """

    op: str
    op_type: str | None
    kernel: str | None
    layer: str | None
    direction: Direction | None
    dtype: str | None
    device_time_ns: int
    count: int
    tensor_core: bool | None
    device: str
    cast: bool = False
    shared_with: tuple[str, ...] = ()
