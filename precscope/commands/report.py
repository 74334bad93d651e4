"""`precscope report`: what a run shows, in the terminal or as a page."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["report"]


@click.command("report")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--all", "show_all", is_flag=True, help="Show every layer and every finding.")
@click.option("--layer", "pattern", metavar="PATTERN", help="Show only layers whose name matches, with their weights.")
@click.option("--html", "page", metavar="FILE", type=click.Path(path_type=Path), help="Write a page to FILE instead.")
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
@click.option("--force", is_flag=True, help="Replace FILE where it exists.")
def report(run_dir: Path, show_all: bool, pattern: str | None, page: Path | None, open_page: bool, force: bool) -> None:
    """Print what the run in RUN_DIR shows.

    First the verdict and what to do, then the layers, worst first. Works while the training still runs, and after it
    was interrupted or killed. PATTERN is a regular expression that may match any part of a name. With --html, the
    report is one HTML file that needs no network and holds every layer.
    """
    from precscope.reader import open_run

    if page is None:
        from precscope.reports.terminal import print_report

        if open_page or force:
            raise click.UsageError("--open and --force belong to a page. Name its file: --html report.html")
        print_report(open_run(run_dir), show_all=show_all, pattern=pattern)
        return
    if show_all or pattern is not None:
        raise click.UsageError("--all and --layer belong to the terminal; the page has every layer and a search.")
    from precscope.reports.page import write_page

    size = write_page(open_run(run_dir), page, overwrite=force)
    click.echo(f"Wrote {page} ({size / 1e6:.1f} MB)")
    if open_page:
        _open(page)


def _open(page: Path) -> None:
    import webbrowser

    address = page.resolve().as_uri()
    if not webbrowser.open(address):
        click.echo(f"No browser was found. Open it yourself: {address}")
