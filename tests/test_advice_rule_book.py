"""docs/rules.md is made from the rules and must not lag behind them."""

from __future__ import annotations

from precscope.advice import RULES
from precscope.advice.rule_book import rule_book


def test_the_page_is_current(repository):
    page = (repository / "docs" / "rules.md").read_text(encoding="utf-8")
    assert page == rule_book(), "Run: python -m precscope.advice.rule_book > docs/rules.md"


def test_every_rule_has_a_chapter_with_a_title_and_a_body():
    chapters = rule_book().split("\n## ")
    for rule in RULES:
        chapter = next(text for text in chapters if text.startswith(f"{rule.__name__}\n"))
        assert chapter.count("**") == 2
        assert len(chapter) > 200


def test_rules_have_distinct_names():
    assert len({rule.__name__ for rule in RULES}) == len(RULES)
