"""The policy that a verdict asks for, as lines to copy into code, and how to apply it at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precscope.advice.wording import counted
from precscope.policy_code import constructor_lines
from precscope.reports.text import printable

if TYPE_CHECKING:
    from precscope.policy import Policy

__all__ = ["policy_text"]


def policy_text(policy: Policy) -> str | None:
    """Return a line for each layer to keep off the default, and how to apply them at once; None where there is none."""
    if not policy.pins:
        return None
    number = counted(len(policy.pins), "layer")
    lines = [f'# Build {number} with dtype="float32"; the others follow {printable(policy.default)}.']
    lines += [printable(line) for line in constructor_lines(policy)]
    lines += [
        "",
        "# Or write the file: precscope policy RUN_DIR -o policy.yaml",
        "# and apply it to the model as it is built now:",
        'precscope.apply_policy(model, "policy.yaml")',
    ]
    return "\n".join(lines)
