"""The user's line of code behind a traced op or a call: the innermost frame outside Keras, TensorFlow and PrecScope."""

from __future__ import annotations

import linecache
import re
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from precscope.probes import keras_internals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["innermost_own_frame", "place_of_call", "place_of_frame", "place_of_name"]

_LIBRARIES = tuple(
    str(Path(package.__file__).parent) for package in (keras, tf, sys.modules["precscope"]) if package.__file__
)
# PrecScope's probes lie beside its core in a checkout, and inside it where it is installed.
_PROBES = str(Path(__file__).parent)
_STANDARD = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"])
_FOREIGN = (*_LIBRARIES, _PROBES, *_STANDARD, "<")
#: Ops that only hand values on, whose line tells nothing about where values arise.
_PASSING_ON = ("Cast", "Const", "Identity", "NoOp", "Placeholder", "ReadVariableOp", "Reshape", "Shape", "StridedSlice")


def innermost_own_frame(frames: Sequence[Any]) -> Any:
    """Return the innermost of `frames` (outermost first) that is the user's own code; None where there is none."""
    own = [frame for frame in frames if not frame.filename.startswith(_FOREIGN)]
    return own[-1] if own else None


def place_of_frame(frame: Any) -> str:
    """Return "train.py:12: y = tf.exp(x)", without the code where it cannot be read."""
    line = linecache.getline(frame.filename, frame.lineno).strip()
    return f"{Path(frame.filename).name}:{frame.lineno}" + (f": {line}" if line else "")


def place_of_call(entry: tuple[str, str], layer: Any, ops: Iterable[Any]) -> str | None:
    """Return the user's line that computes in a layer's call, or else calls it; None where only libraries do.

    Args:
        entry: File and function of PrecScope's own frame below which the train step was traced: what lies outside (a
            script that calls `fit`) tells nothing about the layer.
        layer: The layer.
        ops: The ops that its call made; none in eager execution.
    """
    own: dict[tuple[str, int], Any] = {}
    # Inside a library's layer no line is the user's: any op tells who called it.
    for op in ops if _is_own(type(layer)) else list(ops)[:1]:
        if op.type not in _PASSING_ON and (frame := innermost_own_frame(_below(list(op.traceback), entry))):
            own.setdefault((frame.filename, frame.lineno), frame)
    if not own and (frame := innermost_own_frame(_below(keras_internals.stack(), entry))):
        own[frame.filename, frame.lineno] = frame
    if not own:
        return _place_of_class(type(layer).call)
    frames = list(own.values())
    same_file = [frame for frame in frames if frame.filename == frames[0].filename]
    first, last = (chosen(frame.lineno for frame in same_file) for chosen in (min, max))
    return place_of_frame(frames[0]) if first == last else f"{Path(frames[0].filename).name}:{first}-{last}"


def place_of_name(name: str) -> str | None:
    """Return the only line of the user's code that names a layer `name`; None where none or several do."""
    quoted = re.compile(rf"""(['"]){re.escape(name)}\1""")
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    own = sorted(file for file in files if file and file.endswith(".py") and not file.startswith(_FOREIGN))
    found = [
        (file, number, line.strip())
        for file in own
        for number, line in enumerate(linecache.getlines(file), start=1)
        if quoted.search(line)
    ]
    if len(found) != 1:
        return None
    file, number, line = found[0]
    return f"{Path(file).name}:{number}: {line}"


def _is_own(layer_class: type[Any]) -> bool:
    module = sys.modules.get(layer_class.__module__)
    file = getattr(module, "__file__", None)
    return file is None or not file.startswith(_FOREIGN)


def _below(frames: Sequence[Any], entry: tuple[str, str]) -> Sequence[Any]:
    """Return the frames inside the innermost one of `entry`; all of them where it is not among them."""
    entered = [number for number, frame in enumerate(frames) if (frame.filename, frame.name) == entry]
    return frames[entered[-1] + 1 :] if entered else frames


def _place_of_class(call: Callable[..., Any]) -> str | None:
    """Return where a layer class of the user's own defines its `call`."""
    code = getattr(call, "__code__", None)
    if code is None or code.co_filename.startswith(_FOREIGN):
        return None
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"
