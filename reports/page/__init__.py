"""A run as one HTML file: no network, opens from disk, with a page for every layer."""

from __future__ import annotations

from precscope.reports.page.write_page import render_page, render_summary, write_page

__all__ = ["render_page", "render_summary", "write_page"]
