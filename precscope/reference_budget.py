"""Whether a reference step is worth its time: plain arithmetic without a clock, as in `precscope.sampling`.

The first reference step traces two passes, which is most of what it costs; like compiling, that is paid once, whatever
the spacing. So two things are kept apart. The running budget (`reference_budget`) is for those in between and leaves
the first out. The first, and those at a moment of its own (the start, a settled loss scale, the end), are judged by how
long the session has lasted: they are taken where nobody would notice them, or where they are small beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precscope.reference_records import ReferenceMoment

__all__ = ["ReferenceBudget"]

#: What the first reference step costs at most, in times of what compiling the probed step took, which is known before:
#: 0.25 for an MLP, 0.8 for an LSTM and 1.0 for ResNet-18 were measured on two CPU cores.
_TIMES_COMPILING = 1.5
_UNNOTICED_NS = 10 * 10**9
#: Beyond that, the share of the session's time until then. At the end no later moment is left to wait for, and none at
#: all leaves silent faults unseen: a session may then become twice as long, at most. In a training of some dozen steps
#: compiling is nearly all there is, and twice as long is soon over: that far it is waited for.
_UNNOTICED_AT_END_NS = 30 * 10**9
_SHARE_SO_FAR = 0.1
_SHARE_AT_END = 1.0


class ReferenceBudget:
    """Decides for which reference steps there is time.

    Args:
        share: Of the training time that reference steps in between may cost.
        is_asked_for: Whether those at a moment of their own are taken in any case.

    Attributes:
        taken: How many reference steps were taken.
        expected_ns: What the next one will cost.
    """

    def __init__(self, share: float, is_asked_for: bool) -> None:
        self.taken = 0
        self.expected_ns = 0
        self._share = share
        self._is_asked_for = is_asked_for
        self._spent_ns = 0

    def compiled(self, time_ns: int) -> None:
        """Take note of what compiling the probed step took in all: it tells what the first reference step will cost."""
        if not self.taken:
            self.expected_ns = round(_TIMES_COMPILING * time_ns)

    def spent(self, time_ns: int, trace_time_ns: int) -> None:
        """Take note that one was taken.

        Args:
            time_ns: What it cost, tracing not counted.
            trace_time_ns: What tracing it cost, 0 where that was done before. From the second on it counts: batches
                that differ in shape are traced each time.
        """
        self.expected_ns = time_ns + (trace_time_ns if self.taken else 0)
        self._spent_ns += self.expected_ns if self.taken or not trace_time_ns else 0
        self.taken += 1

    def allows(self, moment: ReferenceMoment, session_ns: int, trained_ns: float) -> bool:
        """Tell whether one may be taken.

        Args:
            moment: Why now.
            session_ns: How long the session has lasted.
            trained_ns: How long plain steps have taken.
        """
        if moment != "budget" and self._is_asked_for:
            return True
        if moment == "budget" and self.taken:
            return self._spent_ns + self.expected_ns <= self._share * trained_ns
        if moment == "end":
            return self.expected_ns <= max(_UNNOTICED_AT_END_NS, _SHARE_AT_END * session_ns)
        return self.expected_ns <= max(_UNNOTICED_NS, _SHARE_SO_FAR * session_ns)
