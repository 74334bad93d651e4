"""The options of a session: one field each, with its default and its check beside it.

A new option is one field of `Options`. Its check takes the value given and returns the value kept, or raises
ValueError with what was expected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

from precscope.errors import OptionsError
from precscope.suggest import did_you_mean
from precscope.yaml_mapping import read_mapping

__all__ = ["Options", "flag", "integer", "resolve_options"]

Check = Callable[[Any], Any]


def _option(default: Any, check: Check) -> Any:
    return field(default=default, metadata={"check": check})


def _share(value: Any) -> float:
    # bool is a Real in Python, but `overhead_budget: yes` is a mistake.
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < 1:
        raise ValueError("a number above 0 and below 1 (0.02 is 2 %; in YAML write 0.01 or 1.0e-2)")
    return float(value)


def flag(value: Any) -> bool:
    """Check that an option is true or false, and return it."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def integer(minimum: int) -> Check:
    """Return a check that an option is an integer of at least `minimum`."""

    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
            raise ValueError(f"an integer of at least {minimum}")
        return int(value)

    return check


def _interval(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ValueError("a number of seconds, 0 for never")
    return float(value)


def _size(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) < math.inf:
        raise ValueError("a number of MiB, 0 for none")
    return float(value)


def _names(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError("a string or a list of strings, none of them empty")
    return tuple(names)


def _patterns(value: Any) -> tuple[str, ...]:
    patterns = _names(value)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"regular expressions, but {pattern!r} is none ({error})") from None
    return patterns


def _auto_or_flag(value: Any) -> bool | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        return flag(value)
    except ValueError as error:
        raise ValueError(f'"auto", {error}') from None


def _or_none(check: Check) -> Check:
    def checked(value: Any) -> Any:
        if value is None:
            return None
        try:
            return check(value)
        except ValueError as error:
            raise ValueError(f"{error}, or nothing (None, in YAML null)") from None

    return checked


@dataclass(frozen=True)
class Options:
    """What a session records and when.

    Attributes:
        overhead_budget: Share of the training time that samples may cost (0.02 is 2 %), compiling not counted. Samples
            are never closer than 10 steps. Not used where `every` is set.
        every: Sample every N steps, whatever that costs; None keeps to `overhead_budget`.
        start: First train step that may be sampled, from 0.
        stop: Train step from which on nothing is sampled; None for no end.
        layers: Regular expressions, searched for in the layer's id; None records every layer.
        layer_types: Class names ("Dense"); None records every type. With `layers`, both must agree.
        activations: Record the layers' outputs.
        gradients: Record the gradients, at the layers' outputs and of the weights.
        weights: Record the weights and their lost updates.
        profile_steps: How many plain steps TensorFlow's profiler records, once, for the time of ops and layers; 0 for
            none.
        profile_start: First train step that it may record, from 0; it moves on where a sample is due.
        dense_steps: How many steps in a row are sampled, whatever that costs, when a value turned infinite or NaN; 0
            for none. At most five times in a run, or one step in a hundred.
        tripwire: Keep the weights and the batch of the first step that turns non-finite, so that it can be replayed.
        device_interval_s: Seconds between two looks at the devices (memory, utilization, power, ...); 0 for none.
        keep_batches_mib: MiB that batches of sampled steps may take in the run directory, to be replayed later; 0 keeps
            none. Over the limit, fewer are kept, spread evenly over the training.
        run_size_mib: MiB that the samples of a worker may take in the run directory; 0 for no limit. Over the limit,
            old samples are thinned out evenly; those with infinities, NaN or a skipped step go last.
        reference: Take reference steps in float32, at the start, once the loss scale has settled, and at the end: True
            in any case, "auto" where they fit into memory and are cheap beside the run, see docs/reference_step.md.
        reference_budget: Share of the training time that reference steps in between may cost.
        live: Show the run while it is written, in lines at the bottom of this terminal.

    Raises:
        OptionsError: A value is none that the option can take.
    """

    overhead_budget: float = _option(0.02, _share)
    every: int | None = _option(None, _or_none(integer(1)))
    start: int = _option(0, integer(0))
    stop: int | None = _option(None, _or_none(integer(1)))
    layers: tuple[str, ...] | None = _option(None, _or_none(_patterns))
    layer_types: tuple[str, ...] | None = _option(None, _or_none(_names))
    activations: bool = _option(True, flag)
    gradients: bool = _option(True, flag)
    weights: bool = _option(True, flag)
    profile_steps: int = _option(5, integer(0))
    profile_start: int = _option(20, integer(0))
    device_interval_s: float = _option(0.1, _interval)
    dense_steps: int = _option(8, integer(0))
    tripwire: bool = _option(False, flag)
    keep_batches_mib: float = _option(0.0, _size)
    run_size_mib: float = _option(1024.0, _size)
    reference: bool | Literal["auto"] = _option("auto", _auto_or_flag)
    reference_budget: float = _option(0.01, _share)
    live: bool = _option(False, flag)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            try:
                object.__setattr__(self, item.name, item.metadata["check"](value))
            except ValueError as error:
                raise OptionsError(
                    f"Option {item.name!r}: expected {error}, received {value!r} ({type(value).__name__})."
                ) from None
        if self.stop is not None and self.stop <= self.start:
            raise OptionsError(f"Option 'stop': expected a step above start={self.start}, received {self.stop}.")

    def selects(self, layer_id: str, layer_type: str) -> bool:
        """Return whether the layer called `layer_id` of class `layer_type` is to be recorded."""
        if self.layer_types is not None and layer_type not in self.layer_types:
            return False
        return self.layers is None or any(re.search(pattern, layer_id) for pattern in self.layers)

    def as_dict(self) -> dict[str, Any]:
        """Return the options by name, tuples as lists: what `run.yaml` holds and `resolve_options` takes."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def resolve_options(source: Options | Mapping[str, Any] | str | Path | None = None, /, **keywords: Any) -> Options:
    """Return the options that `source` (a YAML file, a mapping or options) and `keywords` give; keywords win.

    Raises:
        OptionsError: The file cannot be read, or a key or a value is wrong; the message names it and its neighbours.
    """
    if isinstance(source, Options):
        _check_names(keywords, "the keywords")
        return replace(source, **keywords)
    if isinstance(source, (str, Path)):
        origin, given = f"{str(source)!r}", read_mapping(Path(source), "options")
    elif source is None or isinstance(source, Mapping):
        origin, given = "the mapping", dict(source or {})
    else:
        raise OptionsError(
            f"Options come from a YAML file, a mapping or Options; received {source!r} ({type(source).__name__})."
        )
    _check_names(given, origin)
    _check_names(keywords, "the keywords")
    return Options(**{**given, **keywords})


def _check_names(given: Mapping[Any, Any], origin: str) -> None:
    known = [item.name for item in fields(Options)]
    for name in given:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise OptionsError(f"Unknown option {name!r} in {origin}.{hint} The options are: {', '.join(known)}.")
