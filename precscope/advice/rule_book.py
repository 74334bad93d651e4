"""docs/rules.md, made from the rules themselves: `python -m precscope.advice.rule_book > docs/rules.md`."""

from __future__ import annotations

import inspect
from dataclasses import fields

from precscope.advice.rules import RULES, Rule
from precscope.advice.thresholds import Thresholds

__all__ = ["rule_book"]

_INTRODUCTION = """\
<!-- Made by `python -m precscope.advice.rule_book > docs/rules.md`. Change the rules' docstrings instead. -->

# The rules

Each rule looks at a recorded run and yields findings: a layer, the numbers beside the thresholds, what to do. They
stand here in the order in which what they find does harm, causes before consequences; within one severity findings
are shown in this order. An *info* asks for nothing.
"""

_THRESHOLDS = """\
## Thresholds

| threshold | default | meaning |
|---|---|---|
"""


def rule_book() -> str:
    """Return the text of docs/rules.md."""
    rows = [f"| `{f.name}` | {f.default:g} | {f.metadata['meaning']} |\n" for f in fields(Thresholds)]
    return "\n".join([_INTRODUCTION, *map(_chapter, RULES), _THRESHOLDS + "".join(rows)])


def _chapter(rule: Rule) -> str:
    title, _, body = inspect.cleandoc(rule.__doc__ or "").partition("\n")
    return f"## {rule.__name__}\n\n**{title}** {' '.join(body.split())}\n"


if __name__ == "__main__":
    print(rule_book(), end="")
