"""The page as a file: every kind of run, hostile names, what a browser may do, and the command line around it."""

from __future__ import annotations

import json
import re
import webbrowser
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from precscope.cli import main
from precscope.errors import PrecScopeError
from precscope.reports.page import render_page, write_page
from tests.synthetic_runs import SyntheticRun, healthy, layer, values, with_bad

HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    '"><svg/onload=alert(1)>',
    "%{y} <b>bold</b> {{ 7 * 7 }}",
    "\x1b[31mred\x1b]0;title\x07",
    "line\nbreak",
    "\u202egnp.exe",
    "مرحبا",
    "x" * 10_000,
]


class Outline(HTMLParser):
    """Elements by name, and the text of scripts."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = [("", {})]
        self.scripts: dict[str, str] = {}
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag, attributes = self.tags[-1]
        if tag == "script":
            name = attributes.get("id", "ours")
            self.scripts[name] = self.scripts.get(name, "") + data
        else:
            self.text += data


def overflowing(step: int) -> dict[str, np.ndarray]:
    return healthy(step) | {"activation second": with_bad(values(seed=step), np.inf, np.nan)}


def hostile_run(path):
    layers = tuple(layer(name, *HOSTILE[max(n - 1, 0) : n]) for n, name in enumerate(HOSTILE))
    step = {f"activation {name}": with_bad(values(seed=n), np.inf) for n, name in enumerate(HOSTILE)}
    model = {"name": HOSTILE[0], "dtype_policy": HOSTILE[1]}
    run = SyntheticRun(layers, steps=[step, step], model=model, status="failed", error=HOSTILE[0])
    return run.read(path)


RUNS = {
    "empty": SyntheticRun(layers=()),
    "no sample": SyntheticRun(),
    "one sample": SyntheticRun(steps=[healthy()]),
    "only NaN": SyntheticRun(steps=[{key: np.full_like(array, np.nan) for key, array in healthy().items()}] * 2),
    "all zero": SyntheticRun(steps=[{key: np.zeros_like(array) for key, array in healthy().items()}] * 2),
    "still running": SyntheticRun(steps=[healthy()], status="running"),
    "interrupted": SyntheticRun(steps=[healthy()], status="interrupted", error="KeyboardInterrupt"),
    "loss is NaN": SyntheticRun(
        steps=[healthy()] * 2, samples=[{"loss": np.nan}, {"loss": np.inf, "loss_scale": None}]
    ),
    "scale sank to zero": SyntheticRun(steps=[healthy()], samples=[{"loss_scale": 0.0}], scales=[(1, 0.0, 1)]),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_run_has_a_page_that_says_what_it_has(name, tmp_path):
    outline = Outline(render_page(RUNS[name].read(tmp_path / "run")))
    data = json.loads(outline.scripts["page-data"])
    assert len(data["layers"]) == len(RUNS[name].layers)
    assert "Not measured: no reference step" in outline.text
    if not RUNS[name].steps:
        assert "No step was sampled" in outline.text
        assert "Not measured: no tensor was recorded yet." in outline.text


def test_json_holds_no_number_that_json_lacks(tmp_path):
    page = render_page(RUNS["only NaN"].read(tmp_path / "run"))
    for name in ("page-data", "figure-data"):
        json.loads(Outline(page).scripts[name], parse_constant=pytest.fail)


def test_verdict_policy_and_findings_are_in_the_page(tmp_path):
    run = SyntheticRun(steps=[overflowing(0), overflowing(1)], scales=[(0, 32768.0, 0), (10, 16384.0, 2)])
    text = Outline(render_page(run.read(tmp_path / "run"))).text
    assert "Keep 1 of 4 layers in float32: 'second'" in text
    assert 'Dense(..., dtype="float32")  # second' in text
    assert "2 of 10 steps skipped, dynamic loss scale." in text


def test_hostile_names_are_text_only(tmp_path):
    page = render_page(hostile_run(tmp_path / "run"))
    outline = Outline(page)
    assert not {"img", "svg", "b>"} & {tag for tag, _ in outline.tags}
    assert not [name for _, attributes in outline.tags for name in attributes if name.startswith("on")]
    assert "\x1b" not in page
    assert "\u202e" not in page
    ids = [item["id"] for item in json.loads(outline.scripts["page-data"])["layers"]]
    assert ids == HOSTILE


def test_only_our_two_scripts_may_run(tmp_path):
    outline = Outline(render_page(RUNS["one sample"].read(tmp_path / "run")))
    (policy,) = [item["content"] for tag, item in outline.tags if item.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert len(re.findall("'sha256-", policy)) == 2
    assert "unsafe-inline" not in policy.split("style-src")[0]
    outside = [item for tag, item in outline.tags if tag in ("script", "link", "img", "iframe") and len(item) > 2]
    assert outside == []


def test_the_page_replaces_a_file_only_when_told(tmp_path, capsys):
    run_dir, page = RUNS["one sample"].write(tmp_path / "run"), tmp_path / "report.html"
    page.write_text("mine")
    assert main(["report", str(run_dir), "--html", str(page)]) == 2
    assert "exists. Choose another name, or replace it with --force." in capsys.readouterr().err
    assert page.read_text() == "mine"
    assert main(["report", str(run_dir), "--html", str(page), "--force"]) == 0
    assert capsys.readouterr().out.startswith(f"Wrote {page} (")
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "run"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "received the directory"), ("missing/report.html", "cannot be written to .*No such file or directory")],
)
def test_a_place_that_takes_no_file(tmp_path, name, message):
    run = RUNS["one sample"].read(tmp_path / "run")
    with pytest.raises(PrecScopeError, match=message):
        write_page(run, tmp_path / name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--open"], "belong to a page. Name its file: --html report.html"),
        (["--html", "x.html", "--all"], "belong to the terminal"),
    ],
)
def test_options_that_do_not_go_together(tmp_path, capsys, words, message):
    run_dir = RUNS["one sample"].write(tmp_path / "run")
    assert main(["report", str(run_dir), *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("has_browser", [True, False])
def test_open_tells_where_the_page_is_when_there_is_no_browser(tmp_path, capsys, monkeypatch, has_browser):
    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or has_browser)
    run_dir, page = RUNS["one sample"].write(tmp_path / "run"), tmp_path / "a b.html"
    assert main(["report", str(run_dir), "--html", str(page), "--open"]) == 0
    assert opened == [page.as_uri()]
    assert (f"No browser was found. Open it yourself: {page.as_uri()}" in capsys.readouterr().out) is not has_browser
