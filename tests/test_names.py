"""Layer ids in a narrow column: whole parts of their paths, and different names still different."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from precscope.reports.names import fit_names
from tests.synthetic_runs import HOSTILE

LAYERS = [f"encoder/layers/{number}/attention/query" for number in (9, 10, 11)]


@pytest.mark.parametrize(
    ("names", "cells", "shown"),
    [
        (["stem", "encoder/stem"], 12, ["stem", "encoder/stem"]),
        (["encoder/attention/query"], 17, ["…/attention/query"]),
        (["encoder/attention/query"], 16, ["…/query"]),
        (["encoder/attention/query"], 6, ["…query"]),
        (["block_3/response/energy", "block_4/response/energy"], 17, ["block_3/…/energy", "block_4/…/energy"]),
        (LAYERS, 12, ["…/9/…/query", "…/10/…/query", "…/11/…/query"]),
        (LAYERS, 20, ["…/9/attention/query", "…/10/attention/query", "…/11/attention/query"]),
        (["a/b/c/x", "x/b/d/x", "a/b/c/x"], 6, ["…/c/x", "…/d/x", "…/c/x"]),
        (["a/b/c/x", "x/b/d/x"], 4, ["…c/x", "…d/x"]),
        (["conv/kernel_of_this", "kernel_of_this"], 14, ["…ernel_of_this", "kernel_of_this"]),
        (["x" * 30, "y" * 30], 5, ["…xxxx", "…yyyy"]),
        ([""], 5, [""]),
        ([], 5, []),
    ],
)
def test_what_is_shown(names, cells, shown):
    assert fit_names(names, cells) == shown


@pytest.mark.parametrize("cells", [4, 12, 30])
def test_every_name_fits(cells):
    names = [*HOSTILE, *LAYERS, "日本語/" * 9, "/", "//a//", "a/" * 500]
    assert all(cell_len(name) <= cells for name in fit_names(names, cells))
