"""The records of the report as data; docs/report_format.md says what each field means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from precscope.advice.finding import Action, Confidence, Severity
    from precscope.advice.loss_scale_verdict import Cause
    from precscope.advice.verdict import Verdict
    from precscope.layer_time import LayerTime
    from precscope.lint_result import LintFinding
    from precscope.records import CostRecord, NoticeRecord
    from precscope.reports.layer_figures import LayerFigures

__all__ = [
    "CostData",
    "FindingData",
    "LossScaleData",
    "OriginData",
    "ProofData",
    "ReportData",
    "RunData",
    "SkipData",
    "TimeData",
]


@dataclass(frozen=True)
class RunData:
    """The run's record and where it lies."""

    name: str
    path: str
    status: str
    error: str | None
    started_unix_s: float
    ended_unix_s: float | None
    model: dict[str, Any]
    software: dict[str, str]
    hardware: dict[str, Any]
    options: dict[str, Any]


@dataclass(frozen=True)
class FindingData:
    """A finding; each of its numbers has a value, a threshold and a unit."""

    id: str
    layer: str | None
    severity: Severity
    confidence: Confidence
    sentence: str
    numbers: dict[str, dict[str, Any]]
    action: Action
    advice: str | None
    alternative: Action | None
    consumers: tuple[str, ...]
    risks: tuple[LintFinding, ...]


@dataclass(frozen=True)
class ProofData:
    """What replaying kept batches showed (`precscope verify`).

    `within_noise` counts the replays that pass below `least_cosine`, or below a variable's limit, for their errors
    drown in the noise of batches.
    """

    proven: bool
    minimal: bool
    default: str
    keep_float32: tuple[str, ...]
    cosine_before: float | None
    cosine_after: float | None
    least_cosine: float
    within_noise: int
    batches: int
    device: str


@dataclass(frozen=True)
class OriginData:
    """Where finite values turned infinite or NaN; see `OriginRecord`, which has the frames, too."""

    step: int
    cause: str
    direction: str | None
    layer: str | None
    place: str | None
    epoch: int | None
    batch: int | None
    loss_scale: float | None
    data_finite: bool | None
    bad_weights: tuple[str, ...]
    bad_updates: tuple[str, ...]
    times: int
    kept: str | None


@dataclass(frozen=True)
class SkipData:
    """A stretch of skipped steps; see `SkippedStretch`."""

    earliest_step: int
    latest_step: int
    exact: bool
    skipped: int
    loss_scale_before: float | None
    loss_scale_after: float | None
    cause: Cause
    fault: bool


@dataclass(frozen=True)
class LossScaleData:
    """What the loss scale does; None where it is not known."""

    scaling: str | None
    level: str | None
    sentence: str | None
    last: float | None
    lowest: float | None
    steps_seen: int
    steps_skipped: int | None
    sampled_only: bool
    skips: tuple[SkipData, ...]
    headroom_bits: float | None
    best_fixed: float | None
    limiting_layer: str | None


@dataclass(frozen=True)
class TimeData:
    """Step time, and device time by layer and part in the profiled window."""

    batch: int | None
    step_time_ms: dict[str, Any] | None
    steps_timed: int
    examples_per_s: float | None
    profiled_first_step: int | None
    profiled_steps: int | None
    parts: tuple[LayerTime, ...]


@dataclass(frozen=True)
class CostData:
    """What PrecScope cost: in all, as a share of the run's time (None while it runs), and by part."""

    time_ns: int
    share: float | None
    parts: tuple[CostRecord, ...]


@dataclass(frozen=True)
class ReportData:
    """All that a report says; NaN and infinities are as the run has them."""

    run: RunData
    verdict: Verdict
    proof: ProofData | None
    policy: str | None
    origins: tuple[OriginData, ...]
    findings: tuple[FindingData, ...]
    order: str
    layers: tuple[LayerFigures, ...]
    loss: dict[str, Any]
    loss_scale: LossScaleData
    time: TimeData
    memory_bytes: dict[str, int]
    reference: dict[str, Any] | None
    notices: tuple[NoticeRecord, ...]
    cost: CostData
