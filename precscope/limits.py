"""The limits of `precscope check`: one field each, with its check beside it, from options or a YAML file.

A new limit is one field of `Limits` and one function in `precscope/gate.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from precscope.errors import OptionsError
from precscope.options import flag, integer
from precscope.suggest import did_you_mean
from precscope.yaml_mapping import read_mapping

__all__ = ["Limits", "resolve_limits"]

_SEVERITIES = ("none", "info", "warning")
Check = Callable[[Any], Any]


def _limit(check: Check, default: Any = None) -> Any:
    return field(default=default, metadata={"check": check})


def _severity(value: Any) -> str:
    if value not in _SEVERITIES:
        raise ValueError(f"one of {', '.join(_SEVERITIES)}: the worst that is let through")
    return str(value)


def _share(value: Any) -> float:
    # bool is a Real in Python, but `max_flushed_share: yes` is a mistake.
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= float(value) <= 1:
        raise ValueError("a share from 0 to 1 (0.01 is 1 %; in YAML write 0.01 or 1.0e-2)")
    return float(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(float(value)):
        raise ValueError("a finite number")
    return float(value)


def _path(value: Any) -> str:
    if not isinstance(value, (str, Path)) or not str(value):
        raise ValueError("the path of a policy file")
    return str(value)


@dataclass(frozen=True)
class Limits:
    """What a run must hold; None is not judged.

    Attributes:
        max_severity: The worst finding that is let through: "none", "info" or "warning".
        max_flushed_share: Of any layer's values, as a reference step measured it.
        max_subnormal_share: Of the non-zero values of any output or gradient in 16 bits.
        max_skipped_steps: Steps whose update the optimizer skipped.
        max_skipped_share: The same as a share of all steps.
        min_loss_scale: The lowest loss scale that may be seen.
        min_headroom_bits: What the outputs in 16 bits must leave, log2(largest number / largest value).
        policy: Path of the policy file that the layers' dtype policies must agree with.
        any_ending: Whether a training may also have failed, been killed or interrupted, or still go on.

    Raises:
        OptionsError: A value is none that the limit can take.
    """

    max_severity: Literal["none", "info", "warning"] | None = _limit(_severity, "warning")
    max_flushed_share: float | None = _limit(_share)
    max_subnormal_share: float | None = _limit(_share)
    max_skipped_steps: int | None = _limit(integer(0))
    max_skipped_share: float | None = _limit(_share)
    min_loss_scale: float | None = _limit(_number)
    min_headroom_bits: float | None = _limit(_number)
    policy: str | None = _limit(_path)
    any_ending: bool = _limit(flag, False)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None and item.name != "any_ending":
                continue
            try:
                object.__setattr__(self, item.name, item.metadata["check"](value))
            except ValueError as error:
                raise OptionsError(
                    f"Limit {item.name!r}: expected {error}, received {value!r} ({type(value).__name__})."
                ) from None


def resolve_limits(file: Path | None = None, /, **given: Any) -> Limits:
    """Return the limits in the YAML file `file` and in `given`, which wins; None there is as if it was not given.

    A relative path of a policy in the file is looked for beside the file.

    Raises:
        OptionsError: The file cannot be read, or a key or a value is wrong; the message names it and its neighbours.
    """
    found = read_mapping(file, "limits") if file is not None else {}
    _check_names(found, f"{str(file)!r}")
    limits = Limits(**found)
    if file is not None and limits.policy is not None:
        limits = replace(limits, policy=str(file.expanduser().parent / Path(limits.policy).expanduser()))
    keywords = {name: value for name, value in given.items() if value is not None}
    _check_names(keywords, "the keywords")
    return replace(limits, **keywords)


def _check_names(given: Mapping[Any, Any], origin: str) -> None:
    known = [item.name for item in fields(Limits)]
    for name in given:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise OptionsError(f"Unknown limit {name!r} in {origin}.{hint} The limits are: {', '.join(known)}.")
