"""Notices that values turned infinite or NaN, samples densely for a while, and records where that began."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from precscope.origin import find_origin
from precscope.origin_records import DATA_ID, OriginRecord
from precscope.probes.code_places import place_of_name
from precscope.probes.replay import step_values

if TYPE_CHECKING:
    from collections.abc import Hashable

    from precscope.options import Options
    from precscope.origin import FoundOrigin
    from precscope.origin_records import NoticedBy
    from precscope.probes.keeper import Keeper
    from precscope.probes.model_records import ModelRecords
    from precscope.probes.reading import Reading
    from precscope.probes.sampling_loop import SampledStep, SamplingLoop
    from precscope.probes.tripwire import Tripped

__all__ = ["OriginWatch", "origin_record"]

#: So often sampling turns dense without further conditions; later, so that it stays below one step in a hundred.
_FREE_EPISODES, _LATER_SHARE = 5, 0.01
#: Origins that are told apart; what comes later is counted only where it is one of these.
_MOST_ORIGINS = 20
_OFTEN = 3


class OriginWatch:
    """Looks at each sample, and is told by the poll.

    Args:
        options: How many steps may be sampled densely.
        loop: Samples.
        keeper: Writes what is found.
        records: The model's layers.
    """

    def __init__(self, options: Options, loop: SamplingLoop, keeper: Keeper, records: ModelRecords) -> None:
        self._dense_steps = options.dense_steps
        self._loop = loop
        self._keeper = keeper
        self._records = records
        self._origins: dict[Any, OriginRecord] = {}
        self._notice: tuple[NoticedBy, int] | None = None  # what began the dense sampling that goes on
        self._episodes, self._dense_samples, self._in_episode = 0, 0, 0
        self._finite_step: int | None = None

    @property
    def origins(self) -> tuple[OriginRecord, ...]:
        """What was found so far."""
        return tuple(self._origins.values())

    def noticed(self, by: NoticedBy, last_good_step: int | None = None) -> None:
        """Take note that something was seen between two samples; the steps that come are looked at one by one.

        Args:
            by: What was seen.
            last_good_step: The last step that is known to have been finite.
        """
        if last_good_step is not None and last_good_step >= 0:
            self._finite_step = max(self._finite_step or 0, last_good_step)
        if self._notice is None:
            self._begin_episode(by, self._loop.steps_seen)

    def sampled(self, sampled: SampledStep, reading: Reading) -> None:
        """Look at one sample."""
        if self._notice is not None:
            self._in_episode += 1
            self._dense_samples += 1
        found = None if _is_finite(reading) else find_origin(step_values(self._records, reading))
        if found is None:
            self._finite_step = sampled.step
        else:
            self.record(self._described(found, sampled, reading))
        self._go_on(found, sampled.step)

    def tripped(
        self,
        tripped: Tripped,
        found: FoundOrigin | None,
        note: str | None,
        kept: str | None,
        records: ModelRecords | None,
    ) -> None:
        """Record what the tripwire caught and what running it again showed."""
        step, noticed_step = tripped.given.step, self._loop.steps_seen
        if found is None:
            file = "" if kept is None else f" It is kept in {kept}."
            self._keeper.tell("info", "tripwire", f"train step {step:,} tripped the wire; {note}.{file}", noticed_step)
            return
        known: dict[str, Any] = {"loss_scale": tripped.loss_scale, "kept": kept, "note": note}
        if tripped.loss_scale is not None and not tripped.is_lost:
            known["applied"] = False
        if step > 0:  # the wire judged every step since it was armed
            known["finite_step"] = step - 1
        origin = self.describe(found, step, records, noticed_by="tripwire", noticed_step=noticed_step, **known)
        self.record(origin)

    def is_new(self, found: FoundOrigin) -> bool:
        """Tell whether no step that showed the same is kept."""
        known = self._origins.get(_key(found))
        return known is None or known.kept is None

    def record(self, origin: OriginRecord) -> OriginRecord:
        """Write an origin; one that was seen before is counted."""
        key = _key(origin)
        known = self._origins.get(key)
        if known is not None:
            again = int(origin.step not in (known.step, known.last_step))  # the tripwire sees sampled steps, too
            times, last_step = known.times + again, max(known.last_step, origin.step)
            earlier = origin if origin.step < known.step else known
            kept = known.kept or origin.kept
            origin = replace(earlier, index=known.index, times=times, last_step=last_step, kept=kept)
        elif len(self._origins) >= _MOST_ORIGINS:
            return origin
        else:
            origin = replace(origin, index=len(self._origins))
        self._origins[key] = origin
        self._keeper.write(lambda writer: writer.add_origin(origin))
        return origin

    def describe(
        self, found: FoundOrigin, step: int, records: ModelRecords | None = None, **known: Any
    ) -> OriginRecord:
        """Return the record of an origin in train step `step`; `records` saw it, by default those of the samples."""
        epoch, batch = self._loop.place_in_epoch(step) or (None, None)
        fields = {"finite_step": self._finite_step, "epoch": epoch, "batch": batch} | known
        return origin_record(found, step, records or self._records, **fields)

    def _described(self, found: FoundOrigin, sampled: SampledStep, reading: Reading) -> OriginRecord:
        by, noticed_step = self._notice or ("sample", sampled.step + 1)
        applied = None
        if reading.updates_before is not None and reading.updates_after is not None:
            applied = reading.updates_after > reading.updates_before
        return self.describe(
            found,
            sampled.step,
            loss_scale=reading.loss_scale,
            applied=applied,
            noticed_by=by,
            noticed_step=noticed_step,
            dense_steps=self._in_episode,
        )

    def _begin_episode(self, by: NoticedBy, step: int) -> None:
        free = self._episodes < _FREE_EPISODES
        allowed = free or self._dense_samples + self._dense_steps <= _LATER_SHARE * self._loop.steps_seen
        if not self._dense_steps or not allowed:
            return
        self._episodes += 1
        self._notice, self._in_episode = (by, step), 0
        self._loop.dense_left = self._dense_steps

    def _go_on(self, found: FoundOrigin | None, step: int) -> None:
        """Begin, go on with or end dense sampling after a sample."""
        if found is not None and self._tells_nothing_new(found):
            self._loop.dense_left = 0
        elif self._notice is None and found is not None:
            self._begin_episode("sample", step + 1)
        if self._notice is not None and not self._loop.dense_left:
            self._notice = None

    def _tells_nothing_new(self, found: FoundOrigin) -> bool:
        """Tell whether steps that follow need no look: the weights are lost, or the same was seen again and again."""
        known = self._origins.get(_key(found))
        return found.cause == "weights" or (known is not None and known.times >= _OFTEN)


def origin_record(found: FoundOrigin, step: int, records: ModelRecords, **known: Any) -> OriginRecord:
    """Return the record of an origin that was found in train step `step`; `known` holds what else is known of it."""
    layer, note = _owner_of(found.layer)
    return OriginRecord(
        index=0,
        step=step,
        cause=found.cause,
        direction=found.direction,
        layer=layer,
        arrives_at=found.arrives_at,
        place=_place_of(records, found.layer),
        data_finite=found.data_finite,
        bad_weights=found.bad_weights,
        bad_updates=found.bad_updates,
        last_step=step,
        frames=found.frames,
        **known | {"note": known.get("note") or note},
    )


def _place_of(records: ModelRecords, layer_id: str | None) -> str | None:
    """Return the user's line behind a layer: where it computes or is called, else the one that names it."""
    plan = None if layer_id is None else records.plan(layer_id)
    if plan is None or plan.place is not None:
        return None if plan is None else plan.place
    return place_of_name(plan.layer.name) if hasattr(plan.layer, "name") else None


def _is_finite(reading: Reading) -> bool:
    """Tell whether all that was recorded is finite, the batch left aside; as `StepValues.is_finite`, but at once."""
    names = ("positive_infinities", "negative_infinities", "nans")
    bad = np.sum([reading.scalars[name] for name in names], axis=0)
    inside = np.array([tensor.key.layer != DATA_ID for tensor in reading.tensors], bool)
    loss_is_finite = reading.loss is None or math.isfinite(reading.loss)
    return loss_is_finite and not bad[inside].any() and not reading.spoiled.any()


def _key(origin: FoundOrigin | OriginRecord) -> Hashable:
    """Return what makes two origins the same."""
    return origin.cause, origin.direction, _owner_of(origin.layer)[0], origin.arrives_at


def _owner_of(layer_id: str | None) -> tuple[str | None, str | None]:
    """Return the layer in whose call code between layers ran, and where in it; a layer stays what it is."""
    owner, code, before = (layer_id or "").rpartition("/(")
    return (owner, f"in its own code, {before[:-1]}") if code else (layer_id, None)
