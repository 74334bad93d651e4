"""Make the README's pictures: train a small model with a real fault, show its run in the terminal and as a page.

Usage: python docs/images/make_pictures.py [--run-dir DIR]

The model is a small relative of ConvNeXt V2 on real digits with bright pixels that nobody scaled. Its response
normalization squares values of several hundred, which leaves float16 in a few batches. It needs TensorFlow, playwright
and Chromium, and takes a minute or two on two CPU cores. With --run-dir, a run that is there already is shown again.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
BRIGHTEST_PIXEL = 1342.0
TERMINAL_WIDTH = 100
PAGE_WIDTH, PAGE_HEIGHT = 1200, 980


def record(run_dir: Path) -> None:
    """Train the model under the profiler."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    import precscope
    from precscope.probes.demos.digits import load_digits

    images, labels = load_digits(16)
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy("mixed_float16")
    model = build(keras)
    model.compile(keras.optimizers.Adam(5e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with precscope.profile(model, run_dir, every=4):
        model.fit(images[..., None] * (BRIGHTEST_PIXEL / 255), labels, batch_size=64, epochs=6, verbose=2)


def build(keras):
    """Return the model: a stem, four residual blocks and a head in float32."""

    class Energy(keras.layers.Layer):
        """x squared."""

        def call(self, x):
            return keras.ops.square(x)

    class ResponseNorm(keras.layers.Layer):
        """x + x * (norm of its channel / mean norm of all channels)."""

        def __init__(self, **options):
            super().__init__(**options)
            self.energy = Energy(name="energy")

        def call(self, x):
            norm = keras.ops.sqrt(keras.ops.mean(self.energy(x), axis=(1, 2), keepdims=True) + 1e-6)
            return x + x * norm / (keras.ops.mean(norm, axis=-1, keepdims=True) + 1e-3)

    class Block(keras.layers.Layer):
        """x + project(response(expand(depthwise(x))))."""

        def __init__(self, width, **options):
            super().__init__(**options)
            self.depthwise = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")
            self.expand = keras.layers.Dense(4 * width, "relu", name="expand")
            self.response = ResponseNorm(name="response")
            self.project = keras.layers.Dense(width, name="project")
            self.add = keras.layers.Add(name="add")

        def call(self, x):
            return self.add([x, self.project(self.response(self.expand(self.depthwise(x))))])

    layers = [keras.Input((16, 16, 1), name="pixels")]
    layers.append(keras.layers.Conv2D(16, 3, strides=2, padding="same", name="stem"))
    layers += [Block(16, name=f"block_{number}") for number in range(1, 5)]
    layers.append(keras.layers.GlobalAveragePooling2D(name="pool"))
    layers.append(keras.layers.Dense(10, dtype="float32", name="classes"))
    return keras.Sequential(layers, name="digits_convnext")


def draw_terminal(run, file: Path) -> None:
    """Write the first half of the report in the terminal as SVG: the answer, the findings, the worst layers."""
    from rich.console import Console, Group

    from precscope.advice import Evidence
    from precscope.reports.report_view import report_view
    from precscope.reports.terminal import render_report

    lines = list(render_report(report_view(Evidence(run)), TERMINAL_WIDTH))
    end = next(number for number, line in enumerate(lines) if line.plain.startswith("Loss and loss scale"))
    console = Console(record=True, width=TERMINAL_WIDTH, file=io.StringIO(), force_terminal=True, color_system="256")
    console.print(Group(*lines[: end - 1]), no_wrap=True, crop=True)
    svg = console.export_svg(title="precscope report runs/digits", unique_id="report")
    # Rich names a font that is fetched from a server; a picture in a README may fetch nothing.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code, monospace", "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace")
    file.write_text(svg, encoding="utf-8")


def draw_page(run, folder: Path) -> None:
    """Write the top of the page, and its range map, as PNG."""
    from playwright.sync_api import sync_playwright

    from precscope.reports.page import write_page

    page = folder / "report.html"
    write_page(run, page, overwrite=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": PAGE_WIDTH, "height": PAGE_HEIGHT}, color_scheme="light")
        tab.goto(page.as_uri())
        while not tab.evaluate("window.Plotly !== undefined"):  # the page starts it when it is idle
            tab.wait_for_timeout(20)
        tab.screenshot(path=HERE / "page.png")
        tab.add_style_tag(content=".bar { position: static !important; }")  # else it lies over what is scrolled to
        tab.locator("#range-map").screenshot(path=HERE / "range_map.png")
        browser.close()


def chromium() -> str | None:
    """Return the system's Chromium, None for playwright's own."""
    from shutil import which

    return next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := which(name))), None)


def main() -> None:
    """Record the run where there is none, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path)
    arguments = parser.parse_args()
    from precscope.reader import open_run

    with tempfile.TemporaryDirectory() as folder:
        run_dir = arguments.run_dir or Path(folder) / "digits"
        if not run_dir.exists():
            record(run_dir)
        run = open_run(run_dir)
        draw_terminal(run, HERE / "report.svg")
        draw_page(run, Path(folder))


if __name__ == "__main__":
    main()
