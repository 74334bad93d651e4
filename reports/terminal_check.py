"""The gate's result in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.text import Text

from precscope.advice.wording import counted
from precscope.reports.palette import BOLD, FAINT, LEVELS
from precscope.reports.terminal_lines import paragraph
from precscope.reports.text import cut, printable, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precscope.gate import CheckResult, Outcome

__all__ = ["print_check"]

_WIDEST, _NAME, _MOST_OFFENDERS = 120, 20, 5
#: Sign and style of each outcome.
_SIGNS: dict[Outcome, tuple[str, str]] = {
    "held": LEVELS["good"],
    "not held": LEVELS["bad"],
    "not judged": LEVELS["attention"],
}


def print_check(result: CheckResult, *, console: Console | None = None) -> None:
    """Print which limits the run holds, to stdout by default."""
    console = console or Console(highlight=False, markup=False, emoji=False)
    width = min(console.width, _WIDEST)
    console.print(Group(*_lines(result, width)), no_wrap=True, crop=True, overflow="ellipsis")


def _lines(result: CheckResult, width: int) -> Iterator[Text]:
    status = "" if result.status is None else f"  {result.status}"
    yield Text.assemble((shorten(printable(result.run), width // 2), BOLD), (status, FAINT))
    yield Text()
    for judgement in result.judgements:
        sign, style = _SIGNS[judgement.outcome]
        first = Text.assemble((f"{sign} ", style), f"{judgement.limit:<{_NAME}}")
        rest = Text(" " * (_NAME + 2))
        words = "" if judgement.outcome != "not judged" else "Not judged. "
        yield from paragraph(Text(words + printable(judgement.sentence)), width, first, rest)
        offenders = [line for line in judgement.offenders if line != judgement.sentence]
        for line in offenders[:_MOST_OFFENDERS]:
            yield from paragraph(Text(cut(printable(line), 4 * width), FAINT), width, rest, Text(f"{rest}  "))
        if len(offenders) > _MOST_OFFENDERS:
            yield Text(f"{rest}and {len(offenders) - _MOST_OFFENDERS} more", FAINT)
    yield Text()
    yield _answer(result)


def _answer(result: CheckResult) -> Text:
    outcomes = [judgement.outcome for judgement in result.judgements]
    sign, style = _SIGNS[result.outcome]
    limits = counted(len(outcomes), "limit")
    words = {
        "held": f"Held: all of {limits}." if len(outcomes) > 1 else f"Held: {limits}.",
        "not held": f"Not held: {outcomes.count('not held')} of {limits}.",
        "not judged": f"Could not be checked: {outcomes.count('not judged')} of {limits}.",
    }
    return Text(f"{sign} {words[result.outcome]}", style)
