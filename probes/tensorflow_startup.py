"""Loading TensorFlow for a command of ours: it must be there, and need not talk while it starts.

Only for commands that own their process. A session that runs in a user's program leaves the logs as the user set them.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from precscope.errors import PrecScopeError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["load_tensorflow"]

_INFORMATION = re.compile(
    rb"I\d{4} |\d{4}-.*: I |To enable the following instructions|WARNING: All log messages before"
)


def load_tensorflow() -> None:
    """Import TensorFlow and Keras without their start-up messages; errors among those are shown.

    Raises:
        PrecScopeError: One of the two is missing; the message says how to install them.
    """
    missing = [name for name in ("tensorflow", "keras") if find_spec(name) is None]
    if missing:
        raise PrecScopeError(
            f"This trains a Keras model on TensorFlow, but {' and '.join(missing)} cannot be imported here. "
            'Install what it needs: pip install "precscope[tensorflow]"'
        )
    # TensorFlow logs a machine without a GPU as an error, which it is not. Failures are raised, whatever the level.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if Path("/dev/nvidiactl").exists() else "3")
    with _information_dropped():
        import_module("keras")


@contextmanager
def _information_dropped() -> Iterator[None]:
    """Hold back what libraries write to stderr, then pass on what is not mere information.

    Some of TensorFlow's libraries log before they read TF_CPP_MIN_LOG_LEVEL, past Python's sys.stderr.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            held.seek(0)
            for line in held:
                if not _INFORMATION.match(line):
                    os.write(stderr, line)
            os.close(stderr)
