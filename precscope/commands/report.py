"""`precscope report`: what a run shows, in the terminal or as a page."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["report"]


# As in precscope.reports.layer_order, which needs NumPy: help is to come at once.
_ORDERS = ("harm", "order", "name", "type", "headroom", "subnormal", "flushed", "nonfinite", "time", "parameters")
_FORMATS = ("text", "json", "yaml", "csv", "markdown")


@click.command("report")
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--all", "show_all", is_flag=True, help="Show every layer and every finding.")
@click.option("--layer", "pattern", metavar="PATTERN", help="Show only layers whose name matches, with their weights.")
@click.option("--sort", type=click.Choice(_ORDERS), help="Order of the layers.  [default: harm]")
@click.option("--format", "output", type=click.Choice(_FORMATS), default="text", show_default=True)
@click.option("--html", "page", metavar="FILE", type=click.Path(path_type=Path), help="Write a page to FILE instead.")
@click.option("--open", "open_page", is_flag=True, help="Open the page in a browser.")
@click.option("--force", is_flag=True, help="Replace FILE where it exists.")
def report(
    run_dir: Path,
    show_all: bool,
    pattern: str | None,
    sort: str | None,
    output: str,
    page: Path | None,
    open_page: bool,
    force: bool,
) -> None:
    """Print what the run in RUN_DIR shows.

    First the verdict and what to do, then the layers, worst first. Works while the training still runs, and after it
    was interrupted or killed. PATTERN is a regular expression that may match any part of a name. With --html, the
    report is one HTML file that needs no network and holds every layer. With --format, it is data for programs
    (docs/report_format.md) or Markdown for a pull request.
    """
    from precscope.reader import open_run

    if page is None:
        if open_page or force:
            raise click.UsageError("--open and --force belong to a page. Name its file: --html report.html")
        _print(run_dir, output, show_all, pattern, sort or "harm")
        return
    if show_all or pattern is not None or sort is not None or output != "text":
        raise click.UsageError(
            "--all, --layer, --sort and --format belong to the terminal; the page has every layer, and sorts them."
        )
    from precscope.reports.page import write_page

    size = write_page(open_run(run_dir), page, overwrite=force)
    click.echo(f"Wrote {page} ({size / 1e6:.1f} MB)")
    if open_page:
        _open(page)


def _print(run_dir: Path, output: str, show_all: bool, pattern: str | None, sort: str) -> None:
    from precscope.reader import open_run

    run = open_run(run_dir)
    if output == "text":
        from precscope.reports.terminal import print_report

        print_report(run, show_all=show_all, pattern=pattern, sort=sort)
        return
    from precscope.advice import Evidence
    from precscope.reports.report_data import report_data
    from precscope.reports.report_formats import RENDERERS, as_markdown

    data = report_data(Evidence(run), pattern, sort)
    if output == "markdown":
        click.echo(as_markdown(data, show_all=show_all or pattern is not None))
    else:  # these hold everything
        click.echo(RENDERERS[output](data))


def _open(page: Path) -> None:
    import webbrowser

    address = page.resolve().as_uri()
    if not webbrowser.open(address):
        click.echo(f"No browser was found. Open it yourself: {address}")
