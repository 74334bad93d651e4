"""What all tests share; keep it small."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

# Before anything imports TensorFlow, and for the processes that tests start.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _global_policy_is_kept() -> Iterator[None]:
    """No test leaves another dtype policy to the next one."""
    yield
    if (keras := sys.modules.get("keras")) is not None and hasattr(keras, "config"):
        policy = keras.config.dtype_policy().name
        keras.config.set_dtype_policy("float32")
        assert policy == "float32", f"The test left the global dtype policy {policy!r}."


@pytest.fixture(scope="module")
def few_timed_passes() -> Iterator[None]:
    """Price a policy by few passes: what they take is not what is tested."""
    from precscope.probes import replayer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replayer, "_MOST_PASSES", 3)
        yield
