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

from precscope.probes.internals.graphs import call_stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

__all__ = ["innermost_own_frame", "place_in_call", "place_of_call", "place_of_frame", "place_of_name", "place_of_ops"]

_LIBRARIES = tuple(
    str(Path(package.__file__).parent) for package in (keras, tf, sys.modules["precscope"]) if package.__file__
)
# PrecScope's probes lie beside its core in a checkout, and inside it where it is installed.
_PROBES = str(Path(__file__).parent)
_STANDARD = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"])
_FOREIGN = (*_LIBRARIES, _PROBES, *_STANDARD, "<")
# PrecScope's modules that run a train step with taps.
_ENTRIES = tuple(str(Path(__file__).with_name(name)) for name in ("probed_step.py", "shadow_step.py"))
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


def place_in_call(op: Any, file: str, function: str) -> str | None:
    """Return the innermost line of the user's own inside a layer's call that made `op`; None where that is a library's.

    Args:
        op: The op.
        file: The file of the function that stands in for the layer's call.
        function: That function's name.
    """
    frames = list(op.traceback)
    entered = [place for place, frame in enumerate(frames) if frame.filename == file and frame.name == function]
    own = innermost_own_frame(frames[entered[-1] + 1 :] if entered else [])
    return None if own is None else place_of_frame(own)


def place_of_call(layer: Any, ops: Sequence[Any]) -> str | None:
    """Return the user's line that computes in a layer's call, or else calls it; None where only libraries do.

    Args:
        layer: The layer.
        ops: The ops that its call made; none in eager execution.
    """
    # Inside a library's layer no line is the user's: any op tells who called it.
    place = place_of_ops(ops if _is_own(type(layer)) else ops[:1])
    if place is None and not ops:
        frame = innermost_own_frame(_in_trace(call_stack()))
        place = None if frame is None else place_of_frame(frame)
    return place or _place_of_class(type(layer).call)


def place_of_ops(ops: Iterable[Any]) -> str | None:
    """Return the user's line that made these ops, or from which line to which they go; None where only libraries do."""
    own: dict[int, Any] = {}
    for op in ops:
        frame = None if op.type in _PASSING_ON else innermost_own_frame(_in_trace(list(op.traceback)))
        if frame is not None and frame.filename == next(iter(own.values()), frame).filename:
            own.setdefault(frame.lineno, frame)
    if not own:
        return None
    frame = own[min(own)]
    return place_of_frame(frame) if len(own) == 1 else f"{Path(frame.filename).name}:{min(own)}-{max(own)}"


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


def _in_trace(frames: Sequence[Any]) -> Sequence[Any]:
    """Return the frames inside the train step: what lies outside, a script that calls `fit`, tells nothing of a layer.

    The innermost frame of PrecScope's that runs the step parts the two; where there is none, nothing is known.
    """
    entered = [number for number, frame in enumerate(frames) if frame.filename.startswith(_ENTRIES)]
    return frames[entered[-1] + 1 :] if entered else []


def _place_of_class(call: Callable[..., Any]) -> str | None:
    """Return where a layer class of the user's own defines its `call`."""
    code = getattr(call, "__code__", None)
    if code is None or code.co_filename.startswith(_FOREIGN):
        return None
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"
