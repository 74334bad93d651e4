"""The gate's result for build servers: JUnit's XML, and annotations of GitHub's workflows."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import TYPE_CHECKING

from precscope.reports.text import cut, printable

if TYPE_CHECKING:
    from precscope.gate import CheckResult, Judgement

__all__ = ["as_github", "as_junit"]

_MOST_IN_ANNOTATION = 5
_LONGEST = 2_000


def as_junit(result: CheckResult) -> str:
    """Return JUnit XML: a test case a limit, with a failure where it was broken, an error where it was not judged.

    XML has no way to write control characters, so they are spelled out as everywhere.
    """
    outcomes = [judgement.outcome for judgement in result.judgements]
    counts = {
        "tests": str(len(outcomes)),
        "failures": str(outcomes.count("not held")),
        "errors": str(outcomes.count("not judged")),
    }
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": f"precscope {printable(result.run)}", **counts})
    for judgement in result.judgements:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": f"precscope.{printable(result.run)}", "name": judgement.limit, "time": "0"}
        )
        if judgement.outcome == "held":
            ElementTree.SubElement(case, "system-out").text = printable(judgement.sentence)
            continue
        kind = "failure" if judgement.outcome == "not held" else "error"
        found = ElementTree.SubElement(
            case, kind, {"message": printable(judgement.sentence), "type": judgement.outcome}
        )
        found.text = "\n".join(printable(line) for line in (judgement.sentence, *judgement.offenders))
    ElementTree.indent(root)
    text: str = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'


def as_github(result: CheckResult) -> str:
    """Return a workflow command a limit that was broken or not judged, and one for the whole."""
    lines = [_annotation(result, judgement) for judgement in result.judgements if judgement.outcome != "held"]
    held = sum(judgement.outcome == "held" for judgement in result.judgements)
    words = f"{held} of {len(result.judgements)} limits held by {cut(printable(result.run), 200)}."
    return "\n".join([*lines, _command("notice", "PrecScope", words)])


def _annotation(result: CheckResult, judgement: Judgement) -> str:
    shown = [printable(line) for line in judgement.offenders[:_MOST_IN_ANNOTATION]]
    if len(judgement.offenders) > len(shown):
        shown.append(f"and {len(judgement.offenders) - len(shown)} more")
    title = f"PrecScope: {judgement.limit} {judgement.outcome}, {cut(printable(result.run), 100)}"
    return _command(
        "error", title, "\n".join([cut(line, _LONGEST) for line in (printable(judgement.sentence), *shown)])
    )


def _command(level: str, title: str, message: str) -> str:
    """Return "::level title=...::message", escaped as github.com/actions/toolkit does it (core/src/command.ts)."""
    return f"::{level} title={_escaped(title).replace(':', '%3A').replace(',', '%2C')}::{_escaped(message)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
