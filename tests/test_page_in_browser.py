"""The page in headless Chromium: what a visitor sees and does, and that nothing leaves the file."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from playwright.sync_api import expect

from precscope.formats import FORMATS
from precscope.records import CostRecord
from precscope.reports.page import write_page
from precscope.reports.text import printable
from precscope.what_if import what_if
from tests.page_browser import chromium
from tests.synthetic_runs import SyntheticRun, healthy, layer, values, with_bad
from tests.test_page import HOSTILE, hostile_run, overflowing
from tests.test_reference_view import STEP
from tests.test_reference_view import record as reference_record

SMALL = "tower/small"


def tower():
    """Thirty blocks: outputs of one are tiny, of another infinite; gradients at loss scale 2**15."""
    names = [f"tower/block_{n}" for n in range(29)] + [SMALL]
    steps = []
    for step in range(3):
        outputs = {f"activation {name}": values(seed=n + step) for n, name in enumerate(names)}
        outputs |= {f"gradient {name}": values(scale=2.0**-9, seed=n + step) for n, name in enumerate(names)}
        outputs[f"activation {SMALL}"] = values(scale=2.0**-20, dtype=np.float32, seed=step)
        outputs["activation tower/block_7"] = with_bad(values(seed=step), np.inf)
        steps.append(outputs)
    layers = tuple(layer(name, *names[max(n - 1, 0) : n]) for n, name in enumerate(names))
    costs = [CostRecord("step", 3, 10**9)]
    return SyntheticRun(layers, steps=steps, scales=[(0, 32768.0, 0), (30, 16384.0, 3)], costs=costs)


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def visit(browser, tmp_path):
    """Return a function that writes a run's page, opens it and returns the tab; what went wrong fails the test."""
    complaints, contexts = [], []

    def open_page(run, address="", **options):
        path = tmp_path / "report.html"
        write_page(run, path, overwrite=True)
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: (complaints.append("a dialog opened"), dialog.dismiss()))
        tab.on("request", lambda request: None if request.url.startswith("file:") else complaints.append(request.url))
        tab.goto(path.as_uri() + address)
        while not tab.evaluate("window.Plotly !== undefined"):  # the page starts it when it is idle
            tab.wait_for_timeout(20)
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def names(tab):
    return tab.locator("#layer-table tbody th").all_inner_texts()


def plain_names(tab):
    return [name.lstrip("✖▲").strip() for name in names(tab)]


def test_search_filter_and_sort(visit, tmp_path):
    tab = visit(tower().read(tmp_path / "run"))
    assert len(names(tab)) == 30
    assert "tower/block_7" in names(tab)[0]  # findings first
    tab.fill("#search", "BLOCK_1")
    assert plain_names(tab) == ["tower/block_1", *(f"tower/block_{n}" for n in range(10, 20))]
    assert tab.inner_text("#layers-count") == "11 of 30 layers."
    tab.fill("#search", "no such layer")
    assert names(tab) == []
    tab.fill("#search", "")
    tab.select_option("#filter-severity", "error")
    assert plain_names(tab) == ["tower/block_7"]
    tab.select_option("#filter-severity", "")
    tab.click("#layer-table thead button:text('Would flush')")
    assert plain_names(tab)[0] == SMALL
    assert tab.locator("th[aria-sort]").get_attribute("aria-sort") == "descending"
    tab.click("#layer-table thead button:text('Would flush')")
    assert plain_names(tab)[-1] == SMALL


def test_a_long_table_is_shown_on_request(visit, tmp_path):
    layers = tuple(layer(f"block_{n}") for n in range(350))
    tab = visit(SyntheticRun(layers, steps=[{"activation block_0": values()}]).read(tmp_path / "run"))
    assert len(names(tab)) == 100
    tab.click("#more")
    tab.locator("#layer-table tbody tr", has_text="block_349").wait_for()
    assert plain_names(tab) == [item.id for item in layers]
    tab.click("#layer-table thead button:text('Type')")
    tab.fill("#search", "block_349")
    assert plain_names(tab) == ["block_349"]


def predicted(tab, name, title):
    heads = [text.strip() for text in tab.locator("#layer-table thead th").all_inner_texts()]
    row = tab.locator("#layer-table tbody tr", has_text=name)
    return row.locator("th, td").nth(heads.index(title)).inner_text()


def test_formats_and_loss_scales_are_predicted_in_the_page(visit, tmp_path):
    tab = visit(tower().read(tmp_path / "run"))
    before = tab.evaluate("document.getElementById('map-canvas').toDataURL()")
    assert predicted(tab, "tower/block_3", "Would flush") == "0%"
    flushed = predicted(tab, SMALL, "Would flush")
    tab.check("#formats input[value=bfloat16]", force=True)
    assert predicted(tab, SMALL, "Would flush") == "0%" != flushed
    assert tab.evaluate("document.getElementById('map-canvas').toDataURL()") != before
    tab.check("#formats input[value=float16]", force=True)
    tab.locator("#scale").fill("0")  # without loss scaling
    assert predicted(tab, "tower/block_3", "Would flush") == "38% to 68%"
    assert "at loss scale 1:" in tab.inner_text("#map-summary")
    tab.click("#scale-recorded")
    assert predicted(tab, "tower/block_3", "Would flush") == "0%"
    assert tab.evaluate("document.getElementById('map-canvas').toDataURL()") == before


def test_a_link_leads_to_a_layer_and_its_neighbours(visit, tmp_path):
    tab = visit(tower().read(tmp_path / "run"), "#layer=tower%2Fblock_7")
    dialog = tab.locator("#layer-dialog")
    heading = dialog.locator("h2")
    # Addresses are followed, and cleared after a dialog, by events that come later: `expect` waits for them.
    expect(heading).to_contain_text("tower/block_7")
    assert "infinit" in dialog.inner_text()
    dialog.locator(".figure svg").first.wait_for()
    tab.click("button[aria-label='Next layer']")
    expect(heading).to_contain_text("tower/block_8")
    expect(tab).to_have_url(re.compile(r"#layer=tower%2Fblock_8$"))
    tab.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(tab).to_have_url(re.compile(r"^[^#]*$"))
    tab.click("#layer-table >> text=tower/block_12")
    expect(heading).to_contain_text("tower/block_12")


def test_an_address_that_changes_while_the_dialog_closes_is_followed(visit, tmp_path):
    tab = visit(tower().read(tmp_path / "run"), "#layer=tower%2Fblock_7")
    expect(tab.locator("#layer-dialog h2")).to_contain_text("tower/block_7")
    # In one task: the events of the closing and of the new address come after both.
    tab.evaluate(
        "() => { document.getElementById('layer-dialog').close(); location.hash = '#layer=tower%2Fblock_12'; }"
    )
    expect(tab.locator("#layer-dialog h2")).to_contain_text("tower/block_12")
    expect(tab.locator("#layer-dialog")).to_be_visible()
    expect(tab).to_have_url(re.compile(r"#layer=tower%2Fblock_12$"))


def test_the_range_map_answers_to_the_keyboard(visit, tmp_path):
    tab = visit(tower().read(tmp_path / "run"))
    tab.focus("#map-canvas")
    for key in ("ArrowDown", "ArrowDown", "ArrowDown"):
        tab.keyboard.press(key)
    canvas = tab.locator("#map-canvas")
    assert canvas.get_attribute("aria-valuenow") == "3"
    assert "tower/block_2. Output (float16): flushed 0%" in canvas.get_attribute("aria-valuetext")
    tab.keyboard.press("End")
    tab.keyboard.press("Enter")
    expect(tab.locator("#layer-dialog h2")).to_contain_text(SMALL)


def test_hostile_names_do_nothing_but_show(visit, tmp_path):
    tab = visit(hostile_run(tmp_path / "run"))
    assert tab.locator("#layer-table tbody tr").count() == len(HOSTILE)
    assert tab.locator("img, svg[onload], b:text('bold')").count() == 0
    for name in HOSTILE:
        tab.evaluate("name => { location.hash = `#layer=${encodeURIComponent(name)}`; }", name)
        expect(tab.locator("#layer-dialog h2 bdi")).to_have_text(printable(name))
        tab.locator("#layer-dialog .figure svg").first.wait_for()
        assert tab.locator("img").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1280


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", ["", "#layer=second"])
def test_contrast_and_roles(visit, tmp_path, scheme, address):
    from axe_playwright_python.sync_playwright import Axe

    run = SyntheticRun(steps=[overflowing(0), overflowing(1)], scales=[(0, 32768.0, 0), (10, 16384.0, 2)])
    tab = visit(run.read(tmp_path / "run"), address, color_scheme=scheme)
    for figure in tab.locator("[data-figure]").all():
        figure.scroll_into_view_if_needed()
    found = Axe().run(tab)
    assert found.violations_count == 0, found.generate_report()


def test_the_switch_changes_the_colours(visit, tmp_path):
    tab = visit(SyntheticRun(steps=[healthy()]).read(tmp_path / "run"))
    ground = "getComputedStyle(document.body).backgroundColor"
    light = tab.evaluate(ground)
    tab.click("#theme")
    assert tab.evaluate(ground) != light
    tab.click("#theme")
    assert tab.evaluate(ground) == light


def test_a_narrow_window_has_no_sideways_scroll(visit, tmp_path):
    tab = visit(tower().read(tmp_path / "run"), viewport={"width": 420, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 420


@pytest.mark.parametrize("scale", [2.0**15, 2.0**3, 1000.0])
def test_the_page_predicts_what_python_predicts(visit, tmp_path, scale):
    """The brackets of what_if.js are those of precscope/what_if.py, also where no limit is at an octave's edge."""
    random = np.random.default_rng(3)
    gradient = (random.standard_normal(4000) * 2.0 ** random.uniform(-30, 10, 4000)).astype(np.float32)
    run = SyntheticRun(
        (layer("only"),),
        steps=[{"activation only": values(), "gradient only": gradient}],
        samples=[{"loss_scale": scale}],
        scales=[(1, scale, 0)],
    ).read(tmp_path / "run")
    tab = visit(run)
    tab.locator("#scale").fill("10")
    for name in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"):
        expected = what_if(
            run.histograms(0)[1],
            FORMATS[name],
            scale_ratio=2.0**10 / scale,
            absmax=np.abs(gradient).max(),
            smallest_nonzero=np.abs(gradient).min(),
            is_exact=False,
        )
        tab.check(f"#formats input[value={name}]", force=True)
        tab.focus("#map-canvas")
        tab.keyboard.press("ArrowDown")
        line = tab.locator("#map-canvas").get_attribute("aria-valuetext").partition("Gradient (float32): ")[2]
        fields = ("flushed", "subnormal", "overflow")
        assert line == ", ".join(f"{field} {_worded(getattr(expected, field), expected.nonzero)}" for field in fields)


def _worded(bracket, nonzero):
    shares = [float(side / nonzero) for side in (bracket.lower, bracket.upper)]
    least, most = (f"{100 * share:.{1 if 0 < share < 0.0995 else 0}f}%" for share in shares)
    assert not any(0 < share < 0.001 or 0.995 <= share < 1 for share in shares), "pick values away from these words"
    return least if least == most else f"{least} to {most}"


def test_the_reference_step_is_shown_where_it_was_taken(visit, tmp_path):
    run = SyntheticRun(steps=[healthy()]).read(tmp_path / "run")
    step = replace(STEP, step=20, examples=8, batch=32)
    numbers = {"relative_error": 0.01, "own_relative_error": 0.002, "inherited_relative_error": 0.009}
    counts = {"reference_nonzero": 100, "flushed": 25, "overflowed": 3}
    record = reference_record("second", "activation", step=20, sqnr_db=40.0, cosine=0.999, **numbers, **counts)
    object.__setattr__(run, "reference_steps", (step,))
    object.__setattr__(run, "reference", (record,))
    tab = visit(run)
    text = tab.locator("#reference").inner_text()
    assert "at step 20, at the end, on 8 of 32 examples" in text
    assert "Left out, so that its reference is less than float32: stubborn" in text
    tab.locator("#reference summary").click()
    cells = tab.locator("#reference tbody tr").locator("th, td").all_inner_texts()
    assert cells == ["second", "output", "0.01", "0.002", "0.009", "25%", "3", "40", "0.999"]
