"""From a run to the file: the template, the scripts and styles in it, and what the browser may do."""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from precscope.advice import Evidence
from precscope.advice.loss_scale_account import CAUSES
from precscope.advice.wording import counted
from precscope.errors import PrecScopeError
from precscope.reports.page.page_view import page_view
from precscope.reports.palette import LEVELS, PAGE_BANDS, SEVERITIES
from precscope.reports.report_view import report_view
from precscope.reports.scale_view import best_scale, headroom
from precscope.reports.text import percent, printable, shorten, significant
from precscope.reports.time_view import milliseconds

if TYPE_CHECKING:
    from pathlib import Path

    from precscope.reader import Run

__all__ = ["render_page", "render_summary", "write_page"]

#: In this order in one script, where each sees what stands before it.
_SCRIPTS = (
    "data.js",
    "what_if.js",
    "range_map.js",
    "layer_table.js",
    "figures.js",
    "layer_dialog.js",
    "page.js",
)


def write_page(run: Run, path: Path, *, overwrite: bool = False) -> int:
    """Write the page on `run` to the file `path` and return its size in bytes.

    Raises:
        PrecScopeError: The file exists and `overwrite` is false, or it cannot be written.
    """
    if path.is_dir():
        raise PrecScopeError(f"Expected a file name for the page, received the directory '{path}'. Name a file in it.")
    if path.exists() and not overwrite:
        raise PrecScopeError(f"The file '{path}' exists. Choose another name, or replace it with --force.")
    # What UTF-8 has no bytes for (half a surrogate pair in a name) is spelled out.
    page = render_page(run).encode("utf-8", errors="backslashreplace")
    unfinished = path.with_name(f".{path.name[:200]}.part")
    try:
        unfinished.write_bytes(page)
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise PrecScopeError(f"The page cannot be written to '{path}': {error.strerror or error}.") from error
    return len(page)


def render_page(run: Run) -> str:
    """Return the page on `run`: one HTML document that asks for nothing outside itself."""
    view, script, plotly = page_view(run), _script(), _plotly()
    template = _environment().get_template("page.html.j2")
    return template.render(
        view=view,
        report=view.report,
        # Our own files are safe as they are; nothing else is.
        styles=Markup(_asset("page.css")),
        colors=PAGE_BANDS,
        script=Markup(script),
        plotly=Markup(plotly),
        policy_hashes=[_hash(script), _hash(plotly)],
        figures={name: json.loads(figure.to_json()) for name, figure in view.figures.items() if figure is not None},
        signs={name: sign for name, (sign, _) in (LEVELS | SEVERITIES).items()},
    )


def render_summary(run: Run) -> str:
    """Return verdict and findings on `run` as a piece of HTML for a notebook; it holds no script."""
    report = report_view(Evidence(run))
    signs = {name: sign for name, (sign, _) in (LEVELS | SEVERITIES).items()}
    return _environment().get_template("summary.html.j2").render(report=report, path=str(run.path), signs=signs)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("precscope.reports.page", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        best_scale=best_scale,
        counted=counted,
        headroom=headroom,
        milliseconds=milliseconds,
        percent=percent,
        printable=printable,
        shorten=shorten,
        significant=significant,
    )
    environment.globals.update(causes=CAUSES)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


@cache
def _asset(name: str) -> str:
    return files("precscope.reports.page").joinpath(name).read_text(encoding="utf-8")


def _script() -> str:
    parts = "\n".join(map(_asset, _SCRIPTS))
    return f'(() => {{\n"use strict";\n{parts}\n}})();'


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


def _hash(script: str) -> str:
    """Return what the page's content security policy calls a script: nothing else may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
