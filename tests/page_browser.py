"""Chromium for the tests of the page: the one that is installed, as the tests of a page on disk need it."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

#: No sandbox: containers and root have none. The rest keeps Chromium itself from asking the network.
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Give a headless Chromium: the system's, else playwright's own. Without one, CI fails and others skip."""
    from playwright.sync_api import Error, sync_playwright

    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found[0] if found else None, args=_ARGUMENTS)
        except Error as error:
            if found or os.environ.get("CI"):
                raise
            pytest.skip(f"There is no Chromium; `make browser` installs it. ({str(error).splitlines()[0]})")
        yield browser
        browser.close()
