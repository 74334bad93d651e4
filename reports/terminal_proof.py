"""What a verification showed, in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.text import Text

from precscope.reports.palette import LEVELS
from precscope.reports.proof_view import ProofView, proof_view
from precscope.reports.terminal_lines import heading, note, paragraph
from precscope.reports.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.verification import Verification

__all__ = ["print_proof", "proof_lines"]

_WIDEST = 120


def print_proof(verification: Verification, console: Console | None = None) -> None:
    """Print the outcome of a verification, to stdout by default."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    lines = proof_lines(proof_view(verification), min(console.width, _WIDEST))
    console.print(Group(*lines), no_wrap=True, crop=True, overflow="ellipsis")


def proof_lines(view: ProofView | None, width: int) -> Iterator[Text]:
    """Yield the lines of a proof, at most `width` columns wide; none without one."""
    if view is None:
        return
    yield from heading("Proof", width)
    sign, style = LEVELS["good" if view.proven else "bad"]
    yield from paragraph(Text(printable(view.sentence), style), width, Text(f"{sign} ", style), Text("  "))
    for label, text in view.rows:
        yield from note(label, Text(printable(text)), width)
