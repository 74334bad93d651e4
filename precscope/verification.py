"""`verification.yaml` in a run directory: what replaying batches under a policy showed, and what the policy costs."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

import yaml

from precscope.errors import RunDirectoryError
from precscope.policy import Price
from precscope.replay import Criterion, Measured, Replay
from precscope.run_failures import damaged, newer_format, os_failure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["VERIFICATION_FILE", "PricedPolicy", "Verification", "read_verification", "write_verification"]

FORMAT_NAME = "precscope-verification"
FORMAT_VERSION = 1
VERIFICATION_FILE = "verification.yaml"


@dataclass(frozen=True)
class PricedPolicy:
    """What one forward and backward pass of one batch costs, without the optimizer's update.

    Attributes:
        time_ms: Median time in milliseconds; None where it was not measured.
        time_noise_ms: Half the interquartile range of the times: smaller differences say nothing.
        memory_mib: Peak of the allocator in MiB; None on a CPU, whose allocator keeps no account.
        casts: Operations that cast between floating-point dtypes; None where they were not counted.
    """

    time_ms: float | None = None
    time_noise_ms: float | None = None
    memory_mib: float | None = None
    casts: int | None = None

    def beside(self, other: PricedPolicy) -> Price:
        """Return what this costs more than `other`; times to the nanosecond."""
        noises = self.time_noise_ms, other.time_noise_ms
        return Price(
            _difference(self.time_ms, other.time_ms),
            _difference(self.memory_mib, other.memory_mib),
            None if self.casts is None or other.casts is None else self.casts - other.casts,
            None if None in noises else round(sum(noise or 0.0 for noise in noises), 6),
        )


@dataclass(frozen=True)
class Verification:
    """The outcome of a proof.

    Attributes:
        proven: Whether a set of layers was found under which every judged replay passes.
        is_minimal: Whether each smaller set by one layer was replayed too, and failed.
        default: Name of the default policy.
        trained: Name of the default policy that the run was trained under; empty where a file does not tell.
        pins: Ids of the layers to keep in float32; where nothing was proven, the ones that were proposed.
        suspects: Ids of the layers that the findings name, which the search began with.
        left_out: Why layers could not be tried in float32, by id.
        batches: Steps of the batches that were replayed.
        weights: Whose weights they were replayed with, in words.
        before: Under plain mixed precision: as it was trained, or of a run in float32 under the default policy.
        after: Under the policy; None where nothing was proven.
        bfloat16: Under mixed_bfloat16 with nothing pinned, where float16 needs pins; None where that was not tried.
        trials: How many sets were replayed; each was traced once.
        criterion: What they had to show.
        prices: What a pass costs by "plain", "policy" and "float32".
        pin_prices: What each of the first pins costs beside the policy without it, by id.
        timed_passes: How many passes of each were timed, in turn.
        device: On what.
        unix_s: When.
        took_s: How long each part of the proof took, in seconds, by its name.
        traces: How often the step was traced, in all.
        tracing_s: How long that took of all parts, in seconds; None where it was not measured.
    """

    proven: bool
    is_minimal: bool
    default: str
    pins: tuple[str, ...]
    suspects: tuple[str, ...]
    left_out: Mapping[str, str]
    batches: tuple[int, ...]
    weights: str
    before: Measured
    after: Measured | None
    bfloat16: Measured | None
    trials: int
    criterion: Criterion
    prices: Mapping[str, PricedPolicy]
    pin_prices: Mapping[str, Price]
    timed_passes: int
    device: str
    unix_s: float
    took_s: Mapping[str, float] = field(default_factory=dict)
    traces: int = 0
    tracing_s: float | None = None
    trained: str = ""

    @property
    def before_policy(self) -> str:
        """The default policy under which `before` was measured."""
        return self.default if self.trained in ("", "float32") else self.trained

    @property
    def is_of_another_default(self) -> bool:
        """Whether it proves another default policy than the one that the run was trained under."""
        return self.trained not in ("", self.default)

    @property
    def nothing_needed(self) -> bool:
        """Whether plain mixed precision passes as it is."""
        return self.proven and not self.pins


def write_verification(directory: Path, verification: Verification) -> None:
    """Write the verification of the run in `directory`, in place of an earlier one.

    Raises:
        RunDirectoryError: It cannot be written.
    """
    content = {"format": FORMAT_NAME, "version": FORMAT_VERSION, **_plain(asdict(verification))}
    part = directory / f"{VERIFICATION_FILE}.part"
    try:
        part.write_text(
            yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120, explicit_end=True), encoding="utf-8"
        )
        part.replace(directory / VERIFICATION_FILE)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise os_failure(error, directory) from error


def read_verification(directory: Path) -> Verification | None:
    """Return the verification of the run in `directory`, or None where there is none.

    Raises:
        RunDirectoryError: A newer PrecScope wrote it, or it is damaged.
    """
    file = directory / VERIFICATION_FILE
    try:
        text = file.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise os_failure(error, file) from error
    except (yaml.YAMLError, ValueError) as error:
        raise damaged(file, "is not valid YAML") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise damaged(file, f"does not say 'format: {FORMAT_NAME}'")
    version = content.get("version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise newer_format(file, version, FORMAT_VERSION)
    if not text.rstrip().endswith("\n..."):
        raise damaged(file, "is cut off: its last line is not '...'")
    try:
        return _verification(content)
    except RunDirectoryError:
        raise
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(file, f"has a part that is missing or of a wrong type ({error})") from error


def _verification(content: dict[str, Any]) -> Verification:
    earlier = {"took_s", "traces", "tracing_s", "trained"} - set(content)  # what the first files did not hold
    values = {item.name: content[item.name] for item in fields(Verification) if item.name not in earlier}
    values["criterion"] = Criterion(**values["criterion"])
    values["before"] = _measured(values["before"])
    for name in ("after", "bfloat16"):
        values[name] = None if values[name] is None else _measured(values[name])
    values["prices"] = {name: PricedPolicy(**price) for name, price in values["prices"].items()}
    values["pin_prices"] = {name: Price(**price) for name, price in values["pin_prices"].items()}
    for name in ("pins", "suspects", "batches"):
        values[name] = tuple(values[name])
    return Verification(**values)


def _measured(content: dict[str, Any]) -> Measured:
    return Measured(
        tuple(Replay(**replay) for replay in content["replays"]), content["judged"], content.get("fallen", 0)
    )


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else round(one - other, 6)


def _plain(value: Any) -> Any:
    """Return `value` in types that YAML knows; a number that is not finite becomes None: absence is null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
