"""`policy.yaml`: a precision policy as a file that a person reads, edits and keeps beside the model."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import asdict, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from precscope.errors import PolicyError
from precscope.policy import KeptLayer, MadeFor, OptimizerNeeds, Pin, Policy, Price, Proof, Reason
from precscope.suggest import did_you_mean

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

__all__ = ["FORMAT_NAME", "FORMAT_VERSION", "policy_yaml", "read_policy", "write_policy", "write_text"]

FORMAT_NAME = "precscope-policy"
FORMAT_VERSION = 1

_HEAD = """\
# Which layers stay out of 16 bits, and why. Apply it to a built model:
#   precscope.apply_policy(model, "policy.yaml")
# or build one under it: with precscope.policy_scope("policy.yaml"): model = build()
"""


def policy_yaml(policy: Policy) -> str:
    """Return `policy` as the text of its file."""
    content = _plain(asdict(policy))
    made_for = content.pop("made_for")  # long, and of less interest than the rest
    content = {"format": FORMAT_NAME, "version": FORMAT_VERSION, **content, "made_for": made_for}
    return _HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120, explicit_end=True)


def write_policy(policy: Policy, file: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Write `policy` to `file`, by rename, so that there is never half of one.

    Raises:
        PolicyError: The file exists and is not to be replaced, or it cannot be written.
    """
    return write_text(policy_yaml(policy), file, overwrite)


def write_text(text: str, file: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Write a policy's text to `file`; see `write_policy`."""
    path = Path(file).expanduser()
    if path.exists() and not overwrite:
        raise PolicyError(f"'{path}' exists. Give another name, or --force (overwrite=True) to replace it.")
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise PolicyError(f"'{path}' cannot be written: {error.strerror or error}. Choose another path.") from error
    return path


def read_policy(file: str | os.PathLike[str]) -> Policy:
    """Return the policy that `file` holds.

    Raises:
        PolicyError: There is no such file, it is none of a policy, a newer PrecScope wrote it, or it is damaged; the
            message says where.
    """
    if not isinstance(file, (str, PathLike)):
        raise PolicyError(f"Expected a policy or the path of its file, received {type(file).__name__}.")
    path = Path(file).expanduser()
    content = _load(path)
    for key in ("format", "version"):
        content.pop(key)
    return _Reader(path).record(Policy, content, "")  # type: ignore[no-any-return]  # of the class that is given


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise PolicyError(
            f"There is no policy file '{path}'. Write one with: precscope policy RUN_DIR -o FILE."
        ) from None
    except OSError as error:
        raise PolicyError(f"The policy file '{path}' cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise _damaged(path, f"is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise PolicyError(
            f"'{path}' is not a precision policy: it does not say 'format: {FORMAT_NAME}'. Expected a file that "
            "precscope policy or precscope verify wrote."
        )
    version = content.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _damaged(path, f"has the format version {version!r}, not a positive integer")
    if version > FORMAT_VERSION:
        raise PolicyError(
            f"'{path}' was written by a newer PrecScope: it has format version {version}, this one reads up to "
            f"{FORMAT_VERSION}. Update with: pip install --upgrade precscope."
        )
    if not text.rstrip().endswith("\n..."):  # YAML's end of a document: without it layers may be missing
        raise _damaged(path, "is cut off: its last line is not '...'")
    return content


class _Reader:
    """Builds the records of a policy from plain data, and says where the data is wrong."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, cls: type[Any], content: Any, place: str) -> Any:
        """Return a `cls` from a mapping of its fields."""
        if not isinstance(content, dict):
            such = ", such as {layer: head, policy: float32}" if cls is Pin else ""
            raise self._wrong(place, f"a mapping{such}", content)
        known = {item.name: item for item in fields(cls)}
        for name in content:
            if name not in known:
                hint = did_you_mean(str(name), known)
                raise _damaged(self._path, f"has an unknown key {_at(place, name)!r}.{hint}")
        values = {name: self.value(cls, name, value, _at(place, name)) for name, value in content.items()}
        try:
            return cls(**values)
        except TypeError as error:  # a field without a default is missing
            missing = str(error).partition(": ")[2] or str(error)
            where = f"in {place!r}" if place else "at its top level"
            raise _damaged(self._path, f"lacks {missing} {where}") from None

    def value(self, cls: type[Any], name: str, value: Any, place: str) -> Any:
        """Return the value of a field, checked."""
        parts = _PARTS.get((cls, name))
        if parts is not None:
            return self._part(parts, value, place)
        expected, is_right = _CHECKS[_KINDS.get((cls, name), "text")]
        if not is_right(value):
            raise self._wrong(place, expected, value)
        return tuple(value) if isinstance(value, list) else value

    def _part(self, parts: tuple[type[Any], str], value: Any, place: str) -> Any:
        cls, form = parts
        if form == "optional" and value is None:
            return None
        if form != "many":
            return self.record(cls, value, place)
        if not isinstance(value, list):
            raise self._wrong(place, "a list", value)
        return tuple(self.record(cls, item, f"{place}[{position}]") for position, item in enumerate(value))

    def _wrong(self, place: str, expected: str, received: Any) -> PolicyError:
        return _damaged(self._path, f"has {received!r} at {place!r}, expected {expected}")


_PARTS: dict[tuple[type[Any], str], tuple[type[Any], str]] = {
    (Policy, "made_for"): (MadeFor, "one"),
    (Policy, "pins"): (Pin, "many"),
    (Policy, "kept"): (KeptLayer, "many"),
    (Policy, "optimizer"): (OptimizerNeeds, "one"),
    (Policy, "proof"): (Proof, "optional"),
    (Pin, "reasons"): (Reason, "many"),
    (Pin, "price"): (Price, "optional"),
}
_KINDS: dict[tuple[type[Any], str], str] = {
    (Policy, "proven"): "flag or nothing",
    (OptimizerNeeds, "loss_scale_optimizer"): "flag",
    (OptimizerNeeds, "initial_scale"): "positive or nothing",
    (MadeFor, "started_unix_s"): "number or nothing",
    (MadeFor, "layers"): "texts by name",
    (Reason, "numbers"): "numbers by name",
    (Price, "time_ms"): "number or nothing",
    (Price, "memory_mib"): "number or nothing",
    (Price, "time_noise_ms"): "number or nothing",
    (Price, "casts"): "number or nothing",
    (Proof, "cosine_before"): "number or nothing",
    (Proof, "cosine_after"): "number or nothing",
    (Proof, "threshold"): "number",
    (Proof, "batches"): "number",
    (Proof, "loss_scales"): "numbers",
}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_mapping_to(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, dict) and all(isinstance(key, str) and is_right(item) for key, item in value.items())
    )


_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "text": ("a text", lambda value: isinstance(value, str) and bool(value)),
    "flag": ("true or false", lambda value: isinstance(value, bool)),
    "flag or nothing": ("true, false or null", lambda value: value is None or isinstance(value, bool)),
    "number": ("a number", _is_number),
    "number or nothing": ("a number or null", lambda value: value is None or _is_number(value)),
    "positive or nothing": (
        "a positive number or null",
        lambda value: value is None or (_is_number(value) and 0 < value < math.inf),
    ),
    "numbers": ("a list of numbers", lambda value: isinstance(value, list) and all(map(_is_number, value))),
    "numbers by name": ("numbers by name", _is_mapping_to(lambda value: value is None or _is_number(value))),
    "texts by name": ("texts by name", _is_mapping_to(lambda value: isinstance(value, str))),
}


def _damaged(path: Path, reason: str) -> PolicyError:
    stop = "" if reason.endswith((".", "?")) else "."
    return PolicyError(
        f"The policy file '{path}' is damaged: it {reason}{stop} Mend that by hand, or write the file again with "
        "precscope policy."
    )


def _at(place: str, name: Any) -> str:
    return f"{place}.{name}" if place else str(name)


def _plain(value: Any) -> Any:
    """Return `value` in types that YAML knows: tuples become lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value  # a NumPy scalar
