"""The evidence page: what it says of every kind of record, and how it behaves in a browser."""

import json
import os
import shutil
from pathlib import Path

import pytest

from hadamard.claims import page
from tests.claims.records import ENVIRONMENT, records

ANCHORS = ("sparse_newton", "sparse_newton-gpu", "kernel_layer", "picture_prior", "slow_step", "broken_peer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("evidence")
    for record in records():
        (directory / f"{record['key']}.json").write_text(json.dumps(record))
    faster = next(records()) | {"size": "gpu", "environment": ENVIRONMENT | {"gpu": "A GPU"}}
    (directory / "gpu").mkdir()
    (directory / "gpu" / "sparse_newton.json").write_text(json.dumps(faster))
    (directory / "expected.json").write_text('{"sparse_newton": "holds"}')
    (directory / "half.json").write_text('{"schema": 1, "key": ')
    page.build(directory, total=53)
    return directory


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "index.html").read_text(encoding="utf-8")


def test_every_claim_stands_on_it_once(text):
    assert [text.count(f'<article id="{anchor}"') for anchor in ANCHORS] == [1] * len(ANCHORS)
    assert text.count("<article ") == len(ANCHORS)
    assert "5 of 53 claims so far" in text


def test_text_is_escaped(text):
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert "Traceback &lt;most recent&gt;" in text


@pytest.mark.parametrize(
    "words",
    ["Marie Curie, Emmy Noether", "https://arxiv.org/abs/2401.12253", "≥ 5", "8.43", "[7.92, 8.94]", "12.3 ms", "3 MB"]
    + ["holds, weaker", "three seeds instead of ten", "hadamard train picture_prior", "ab" * 32, "A GPU", "≥ −0.5"]
    + ["4.2 × 10⁻¹³", "not at this size", "its interval straddles", "AdamW needs fewer on", "<code>1e-9</code>"],
)
def test_it_says_what_the_records_say(text, words):
    assert words.lower() in text.lower()


def test_it_needs_nothing_else(text):
    own = text.replace(page._plotly(), "")
    assert len(text) - len(own) > 1_000_000
    assert [mark for mark in ('rel="stylesheet"', 'src="http', "@import", "url(") if mark in own] == []


def test_an_empty_folder_gives_a_page(tmp_path):
    assert "No claim has landed yet" in page.build(tmp_path, total=8).read_text(encoding="utf-8")


def test_nothing_is_left_beside_it(folder):
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "–"), (float("inf"), "∞"), (0.0, "0"), (1797.0, "1,797"), (9.996, "10.0"), (123456.0, "123,000")]
    + [(-0.5, "−0.500"), (0.0012, "0.00120"), (1.2e-4, "1.2 × 10⁻⁴"), (-3e9, "−3 × 10⁹")],
)
def test_numbers(value, words):
    assert page.number(value) == words


# ---- in a browser ------------------------------------------------------------------------------------------------

SCREENS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 360, "height": 740}}


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by Playwright."""
    required = os.environ.get("HADAMARD_REQUIRE_BROWSER") == "1"
    absent = pytest.fail if required else pytest.skip
    program = os.environ.get("HADAMARD_BROWSER") or shutil.which("chromium")
    if not program or not Path(program).exists():
        absent("no browser: install Debian's package chromium, or name one in HADAMARD_BROWSER")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("no playwright: pip install 'hadamard[test]'")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def tabs(browser, folder):
    """The page on each screen, with what the console said and which hosts were asked."""
    opened = {}
    for name, screen in SCREENS.items():
        tab = browser.new_context(viewport=screen, reduced_motion="reduce", color_scheme="light").new_page()
        said: list[str] = []
        asked: list[str] = []
        tab.on("console", lambda m, said=said: said.append(m.text) if m.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error, said=said: said.append(str(error)))
        tab.on("request", lambda r, asked=asked: asked.append(r.url) if r.url.startswith("http") else None)
        tab.goto((folder / "index.html").as_uri())
        opened[name] = (tab, said, asked)
    return opened


@pytest.fixture(params=SCREENS)
def screen(tabs, request):
    """Each screen in turn; a word on the console or a look at the network fails the test."""
    tab, said, asked = tabs[request.param]
    yield tab
    assert (said, asked) == ([], [])


@pytest.fixture
def desktop(tabs):
    tab, said, asked = tabs["desktop"]
    yield tab
    assert (said, asked) == ([], [])


def _keys(tab):
    cells = tab.locator("#table tbody tr:visible th")
    return cells.evaluate_all("cells => cells.map(cell => cell.dataset.sort)")


def _first_plot(tab):
    plot = tab.locator("#sparse_newton .plot").first
    plot.scroll_into_view_if_needed()
    plot.locator(".scatterlayer .trace").first.wait_for(state="attached")
    return plot


@pytest.mark.browser
def test_every_plot_is_visible(screen):
    assert screen.locator(".plot").count() == 6
    for place in screen.locator(".plot").all():
        place.scroll_into_view_if_needed()
        drawing = place.locator("svg.main-svg, canvas").first
        drawing.wait_for(state="visible")
        box = drawing.bounding_box()
        assert min(box["width"], box["height"]) > 150
        assert place.locator(".scatterlayer path, .barlayer path").count() > 0
        assert place.locator("xpath=following-sibling::div[1]").locator("button").count() > 0
    sizes = screen.locator(".pictures img").evaluate_all("all => all.map(i => [i.naturalWidth, i.clientWidth])")
    assert len(sizes) == 5
    assert all(natural > 0 and shown > 60 for natural, shown in sizes)


@pytest.mark.browser
def test_nothing_is_wider_than_the_screen(screen):
    assert screen.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
def test_the_table_sorts_by_keyboard(desktop):
    before = _keys(desktop)
    head = desktop.locator("#table thead th").first
    head.locator("button").focus()
    desktop.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert _keys(desktop) == sorted(before)
    desktop.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert _keys(desktop) == sorted(before, reverse=True)


@pytest.mark.browser
def test_numbers_sort_as_numbers_and_the_unknown_stands_last(desktop):
    head = desktop.locator("#table thead th", has_text="Headline number")
    for ends in (["kernel_layer", "broken_peer"], ["slow_step", "broken_peer"]):
        head.locator("button").click()
        keys = _keys(desktop)
        assert [keys[0], keys[-1]] == ends


@pytest.mark.browser
def test_the_table_filters_and_the_claims_with_it(desktop):
    desktop.get_by_label("Family").select_option("optim")
    assert sorted(_keys(desktop)) == ["broken_peer", "slow_step"]
    desktop.get_by_label("Verdict").select_option("fails")
    assert _keys(desktop) == ["slow_step"]
    assert desktop.locator("article:visible").count() == 1
    assert desktop.locator(".filter output").text_content() == "1 of 6 claims"
    desktop.get_by_label("Family").select_option("all")
    desktop.get_by_label("Verdict").select_option("all")
    desktop.get_by_label("Find").fill("kernel_layer points")
    assert _keys(desktop) == ["kernel_layer"]
    desktop.locator(".dot").first.click()  # a link to a claim that the filter hides shows it again
    assert desktop.locator("article:visible").count() == 6


@pytest.mark.browser
def test_light_and_dark(desktop):
    _first_plot(desktop)
    look = """() => ["body", "#sparse_newton .scatterlayer .js-line"].map(place => {
        const style = getComputedStyle(document.querySelector(place)); return style.stroke + style.color; })"""
    light = desktop.evaluate(look)
    desktop.emulate_media(color_scheme="dark")
    desktop.wait_for_function(f"light => ({look})().every((now, i) => now !== light[i])", arg=light)
    desktop.locator("#theme").click()
    desktop.wait_for_function(f"light => ({look})().every((now, i) => now === light[i])", arg=light)
    assert desktop.evaluate("localStorage.getItem('hadamard-theme')") == "light"


@pytest.mark.browser
def test_a_series_can_be_put_away(desktop):
    from playwright.sync_api import expect

    plot = _first_plot(desktop)
    key = desktop.locator("#sparse_newton .legend").first.get_by_role("button", name="POT")
    expect(plot.locator(".scatterlayer .trace")).to_have_count(3)
    key.click()
    expect(plot.locator(".scatterlayer .trace")).to_have_count(2)
    assert key.get_attribute("aria-pressed") == "false"


@pytest.mark.browser
def test_print_shows_everything(desktop):
    assert desktop.locator("details.measured:not([open])").count() > 0
    desktop.evaluate("dispatchEvent(new Event('beforeprint'))")
    desktop.wait_for_function("[...document.querySelectorAll('.plot')].every(p => p.querySelector('svg.main-svg'))")
    assert desktop.locator("details.measured:not([open])").count() == 0
    desktop.evaluate("dispatchEvent(new Event('afterprint'))")
    assert desktop.locator("details.measured:not([open])").count() > 0
