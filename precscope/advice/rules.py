"""The rules, in the order in which what they find does harm."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from precscope.advice.activation_rules import activation_headroom, activation_overflow
from precscope.advice.data_rules import bad_input, cast_overflow
from precscope.advice.evidence import Evidence
from precscope.advice.finding import Finding
from precscope.advice.gradient_rules import gradient_leak, gradient_overflow
from precscope.advice.kernel_rules import unwritten_memory
from precscope.advice.loss_scale_rules import loss_scale_floor, skipped_steps, unwrapped_optimizer
from precscope.advice.measured_rules import (
    measured_backward_error,
    measured_break,
    measured_error,
    measured_underflow,
)
from precscope.advice.origin_rules import nonfinite_origin
from precscope.advice.output_rules import loss_not_finite, output_in_16_bits
from precscope.advice.replica_rules import lone_overflow
from precscope.advice.rounding_rules import amplified_rounding, output_rounding
from precscope.advice.silent_rules import cast_rounding, stalled_sum, vanished_output
from precscope.advice.weight_rules import bad_weights, lost_updates, odd_sizes

__all__ = ["RULES", "Rule"]

Rule = Callable[[Evidence], Iterable[Finding]]

#: Causes before consequences. A rule yields its own findings worst first, so this order and the severity rank them all.
RULES: tuple[Rule, ...] = (
    bad_input,
    unwritten_memory,
    cast_overflow,
    lone_overflow,
    activation_overflow,
    measured_break,
    loss_not_finite,
    gradient_overflow,
    nonfinite_origin,
    bad_weights,
    skipped_steps,
    loss_scale_floor,
    measured_error,
    amplified_rounding,
    output_rounding,
    vanished_output,
    stalled_sum,
    cast_rounding,
    activation_headroom,
    unwrapped_optimizer,
    measured_underflow,
    gradient_leak,
    measured_backward_error,
    output_in_16_bits,
    lost_updates,
    odd_sizes,
)
