"""How long the HTML page takes: to write for a large run, to show in Chromium, and to answer a visitor.

Usage: python -m benchmarks.page [--layers 1000] [--samples 1000] [--repeats 5] [--run-dir DIR]

Writing is timed as a whole process, start of the interpreter included. In the browser, an interaction lasts from the
input to the end of the frame that shows its result, and the first view is the browser's own "first-contentful-paint".
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.table import Table

from benchmarks.report import write_run

ARGUMENTS = ["--no-sandbox", "--disable-background-networking", "--disable-quic", "--no-first-run"]

#: What a visitor does, as the page's own events.
INTERACTIONS = {
    "search": "set('search', 'block7')",
    "end the search": "set('search', '')",
    "filter": "set('filter-severity', 'warning')",
    "end the filter": "set('filter-severity', '')",
    "sort": "document.querySelectorAll('#layer-table thead button')[3].click()",
    "change the format": "document.querySelector('#formats input[value=bfloat16]').click()",
    "move the loss scale": "set('scale', '4')",
    "zoom the map": "document.querySelector('#zooms input[value=read]').click()",
    "scroll the map": "document.getElementById('map-scroll').scrollTop = 4000",
    "open a layer": "document.querySelector('#layer-table tbody a').click()",
    "the next layer": "document.querySelector('[aria-label=\"Next layer\"]').click()",
    "close it": "document.getElementById('layer-dialog').close()",
    "dark colours": "document.getElementById('theme').click()",
    "show all rows": "document.getElementById('more').click()",
}

_TIMED = """() => new Promise((resolve) => {
  const set = (id, value) => {
    const control = document.getElementById(id);
    control.value = value;
    control.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const before = performance.now();
  ACTION;
  requestAnimationFrame(() => {
    const channel = new MessageChannel(); // its message comes after the frame
    channel.port1.onmessage = () => resolve(performance.now() - before);
    channel.port2.postMessage(null);
  });
})"""
_FIRST_VIEW = "() => performance.getEntriesByName('first-contentful-paint')[0].startTime"


def write_page(run_dir, page):
    """Write the page in a process of its own and return its time in seconds."""
    code = "from precscope.cli import run; run()"
    before = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code, "report", str(run_dir), "--html", str(page), "--force"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - before


def measure_page(browser, page):
    """Return milliseconds by what was done, of one visit."""
    tab = browser.new_page(viewport={"width": 1400, "height": 900})
    tab.goto(page.as_uri())
    while not tab.evaluate("window.Plotly !== undefined"):
        tab.wait_for_timeout(20)
    tab.wait_for_timeout(500)
    times = {"first view": tab.evaluate(_FIRST_VIEW)}
    for name, action in INTERACTIONS.items():
        times[name] = tab.evaluate(_TIMED.replace("ACTION", action))
        tab.wait_for_timeout(200)
    tab.close()
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--run-dir", type=Path, help="a run to measure instead of writing one")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        run_dir = arguments.run_dir or write_run(Path(folder), arguments.layers, arguments.samples)
        page = Path(folder) / "report.html"
        seconds = [write_page(run_dir, page) for _ in range(arguments.repeats + 1)][1:]
        size = page.stat().st_size
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=ARGUMENTS)
        version = browser.version
        visits = [measure_page(browser, page) for _ in range(arguments.repeats)]
        browser.close()
    table = Table("what", "median", "slowest", title=f"{arguments.layers} layers, {arguments.samples} samples")
    table.add_row("write the page", f"{statistics.median(seconds):.2f} s", f"{max(seconds):.2f} s")
    table.add_row("its size", f"{size / 1e6:.1f} MB", "")
    for name in visits[0]:
        times = [visit[name] for visit in visits]
        table.add_row(name, f"{statistics.median(times):.0f} ms", f"{max(times):.0f} ms")
    console = Console()
    console.print(table)
    console.print(
        f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} CPU cores, load {psutil.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, Chromium {version}"
    )


if __name__ == "__main__":
    sys.exit(main())
