"""The evidence page: what it says of every kind of record, and how it behaves in a browser."""

import json
import os
import shutil
from html import escape
from pathlib import Path

import numpy as np
import pytest

from hadamard.claims import page, plots

RNG = np.random.default_rng(0)
ENVIRONMENT = {
    "cpu": "A processor", "cores": 2, "memory_gb": 7.8, "gpu": None, "python": "3.11.2",
    "versions": {"hadamard": "0.1.0", "torch": "2.13.0+cpu"},
}  # fmt: skip


def _row(case, contender, role, measure, unit, median, spread=0.1, n=5):
    low, high = median * (1 - spread), median * (1 + spread)
    names = ("case", "contender", "role", "measure", "unit", "median", "low", "high", "n")
    return dict(zip(names, (case, contender, role, measure, unit, median, low, high, n)))


def _bar(text, bound, value, holds, *, spread=0.0, sense=">=", **more):
    bar = {"text": text, "source": "card, claim 1", "original_bound": f"at least {bound}", "sense": sense, "bound": bound}
    bar |= {"value": value, "low": value * (1 - spread), "high": value * (1 + spread), "holds": holds}
    return bar | {"seconds": bool(spread), "headline": False, "weakened": "", "why": ""} | more


def _record(key, family, verdict, **more):
    record = {
        "schema": 1, "key": key, "family": family, "title": f"On {key}", "authors": "Curie, Marie and Noether, Emmy",
        "venue": "ICLR", "year": 2024, "arxiv": "2401.12253", "size": "quick", "statement": f"{key} does it with less.",
        "paper_figure": "5 to 15 times faster (figure 3)", "command": f"hadamard claims {key} --size quick", "seed": 0,
        "date": "2025-11-23T13:44:01+00:00", "seconds_total": 9.2, "environment": ENVIRONMENT, "measurements": [],
        "bars": [], "verdict": verdict, "cause": "", "paper_headline": "reproduced", "checkpoints": [],
        "timings": "measured", "plot": [],
    }  # fmt: skip
    return record | more


def _records():
    """One record of every verdict, with line, bar and picture plots."""
    sizes = [100, 200, 400, 800]
    peers = {"Newton": ("method", 1e-5), "Sinkhorn": ("baseline", 9e-5), "POT": ("peer", 6e-5)}
    measured = [
        _row(f"n = {n}", name, role, "seconds", "s", t * n**1.5) for n in sizes for name, (role, t) in peers.items()
    ] + [_row("n = 100", name, role, "peak_memory", "bytes", 3e6, 0.0, 1) for name, (role, _) in peers.items()]
    curves = {name: (sizes, [t * n**1.5 for n in sizes]) for name, (_, t) in peers.items()}
    yield _record(
        "sparse_newton", "transport", "holds",
        statement="Entropic transport to `1e-9` in a fifth of the time, <script>alert('no')</script> & exactly.",
        measurements=measured,
        bars=[
            _bar("Speed-up over Sinkhorn at n = 800", 5, 8.43, "yes", spread=0.06, headline=True),
            _bar("Largest marginal error", 1e-9, 4.2e-13, "yes", sense="<="),
        ],
        plot=[
            plots.lines(curves, x="points n", y="seconds", log="xy", caption="Ours lies below at every size."),
            plots.bars(
                {name: {"small": 1e3 * t, "large": 4e3 * t} for name, (_, t) in peers.items()}, y="milliseconds per step",
                errors={name: {"small": 80 * t, "large": 300 * t} for name, (_, t) in peers.items()},
                caption="One step costs least in ours.",
            ),
        ],
    )  # fmt: skip
    yield _record(
        "kernel_layer", "layers", "holds_weaker", paper_headline="not at this size",
        measurements=[_row("digits", "EvoNorm S0", "method", "accuracy", "%", 97.9), _row("digits", "GroupNorm", "baseline", "accuracy", "%", 97.1)],
        bars=[_bar("Accuracy against GroupNorm, in points", -0.5, 0.8, "yes", weakened="three seeds instead of ten")],
        plot=plots.lines({"EvoNorm S0": ([1, 2, 3], [2.0, 1.2, 0.7]), "GroupNorm": ([1, 2, 3], [2.1, 1.4, 0.9])}, x="epoch", y="loss", reference={"chance": 2.3}, markers=False, caption="Both fall."),
    )  # fmt: skip
    pictures = {title: RNG.random((48, 64)) for title in ("truth", "ours, 31.2 dB", "filtered back-projection, 24.0 dB")}
    yield _record(
        "picture_prior", "imaging", "inconclusive", cause="Its interval straddles the bound.",
        measurements=[_row("blur", "LPN", "method", "seconds", "s", 0.0123), _row("blur", "CNN", "peer", "seconds", "s", 0.0131)],
        bars=[_bar("Time against the CNN", 1.0, 1.06, "inconclusive", spread=0.2)],
        checkpoints=[{"name": "lpn_digits", "date": "2025-11-20", "command": "hadamard train picture_prior", "sha256": "ab" * 32, "data": "scikit-learn digits"}],
        plot=[plots.pictures(pictures, caption="The middle picture keeps the edges."), plots.pictures({"dot": np.eye(8), "colour": RNG.random((3, 64, 64))})],
    )  # fmt: skip
    yield _record(
        "slow_step", "optim", "fails", cause="At this size the overhead of a step outweighs what it saves.",
        bars=[_bar("Steps to the optimum", 100, 250, "no", sense="<=", why="the problem is too easy for AdamW to need them")],
        measurements=[_row("quadratic", "Lion-K", "method", "steps", "steps", 250.0, 0.0, 1)],
        plot=plots.bars({"Lion-K": {"quadratic": 250}, "AdamW": {"quadratic": 90}}, y="steps", caption="AdamW needs fewer."),
    )  # fmt: skip
    broken = _record("broken_peer", "optim", "error", cause="ImportError: no peer", traceback="Traceback <most recent>")
    for absent in ("statement", "bars", "measurements", "plot", "environment", "paper_headline", "seed"):
        del broken[absent]
    yield broken


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("evidence")
    for record in _records():
        (directory / f"{record['key']}.json").write_text(json.dumps(record))
    (directory / "gpu").mkdir()
    faster = next(_records()) | {"size": "gpu", "environment": ENVIRONMENT | {"gpu": "A GPU"}}
    (directory / "gpu" / "sparse_newton.json").write_text(json.dumps(faster))
    (directory / "expected.json").write_text('{"sparse_newton": "holds"}')
    (directory / "half.json").write_text('{"schema": 1, "key": ')
    page.build(directory, total=53)
    return directory


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "index.html").read_text(encoding="utf-8")


def test_every_claim_stands_on_it_once(text):
    anchors = ("sparse_newton", "sparse_newton-gpu", "kernel_layer", "picture_prior", "slow_step", "broken_peer")
    assert all(text.count(f'<article id="{anchor}"') == 1 for anchor in anchors)
    assert text.count("<article ") == len(anchors)
    assert "5 of 53 claims so far" in text


def test_text_is_escaped(text):
    assert "<script>alert" not in text
    assert escape("<script>alert('no')</script>").replace("&#x27;", "&#39;") in text
    assert "Traceback &lt;most recent&gt;" in text


def test_it_says_what_the_records_say(text):
    for words in ("Marie Curie, Emmy Noether", "≥ 5", "8.43", "[7.92, 8.94]", "12.3 ms", "3 MB", "holds, weaker",
                  "three seeds instead of ten", "hadamard train picture_prior", "ab" * 32, "A GPU", "4.2 × 10⁻¹³"):  # fmt: skip
        assert words in text


def test_it_needs_no_network(text):
    start = text.index("<script>/**") if "<script>/**" in text else text.index("<script>\n/**")
    ours = text[:start]
    assert "<link rel=\"stylesheet\"" not in text
    assert "src=\"http" not in ours
    assert "@import" not in ours


def test_an_empty_folder_gives_a_page(tmp_path):
    assert "No claim has landed yet" in page.build(tmp_path, total=8).read_text(encoding="utf-8")


def test_nothing_is_left_beside_it(folder):
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "value, words", [(None, "–"), (float("inf"), "∞"), (0.0, "0"), (1797.0, "1,797"), (9.996, "10.0"), (123456.0, "123,000"), (-0.5, "−0.500"), (0.00012, "0.000120")]
)  # fmt: skip
def test_numbers(value, words):
    assert page.number(value) == words


# ---- in a browser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, driven by Playwright."""
    path = os.environ.get("HADAMARD_BROWSER") or shutil.which("chromium")
    required = os.environ.get("HADAMARD_REQUIRE_BROWSER") == "1"
    if path is None or not Path(path).exists():
        reason = "no browser: install Debian's chromium or set HADAMARD_BROWSER"
        pytest.fail(reason) if required else pytest.skip(reason)
    api = __import__("playwright.sync_api").sync_api if required else pytest.importorskip("playwright.sync_api")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu", *quiet])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, folder, request):
    """The page in a tab of its own; whatever the console complains about fails the test."""
    context = browser.new_context(**getattr(request, "param", {}), reduced_motion="reduce")
    sheet = context.new_page()
    complaints, asked = [], []
    sheet.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    sheet.on("pageerror", lambda error: complaints.append(str(error)))
    sheet.on("request", lambda r: asked.append(r.url) if r.url.startswith("http") else None)
    sheet.goto((folder / "index.html").as_uri())
    yield sheet
    context.close()
    assert complaints == []
    assert asked == []


WIDTHS = [{"viewport": {"width": 1280, "height": 900}}, {"viewport": {"width": 360, "height": 740}}]


def _keys(tab):
    return tab.locator("#table tbody tr:visible").evaluate_all("rows => rows.map(row => row.dataset.claim)")


@pytest.mark.browser
@pytest.mark.parametrize("tab", WIDTHS, indirect=True, ids=["desktop", "phone"])
def test_every_plot_is_visible(tab):
    for place in tab.locator(".plot").all():
        place.scroll_into_view_if_needed()
        drawing = place.locator("svg.main-svg, canvas").first
        drawing.wait_for(state="visible")
        box = drawing.bounding_box()
        assert box["width"] > 150
        assert box["height"] > 150
        marks = place.locator(".scatterlayer path, .barlayer path")
        assert marks.count() > 0
        assert place.locator("xpath=following-sibling::div[1]").locator("button").count() >= 1
    assert tab.locator(".plot").count() == 6
    pictures = tab.locator(".pictures img")
    assert pictures.count() == 5
    assert all(pictures.evaluate_all("all => all.map(image => image.naturalWidth > 0 && image.clientWidth > 60)"))


@pytest.mark.browser
@pytest.mark.parametrize("tab", WIDTHS, indirect=True, ids=["desktop", "phone"])
def test_nothing_is_wider_than_the_screen(tab):
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.browser
def test_the_table_sorts_by_keyboard(tab):
    before = _keys(tab)
    head = tab.locator("#table thead th").first
    head.locator("button").focus()
    tab.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert _keys(tab) == sorted(before)
    tab.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert _keys(tab) == sorted(before, reverse=True)
    number = tab.locator("#table thead th", has_text="Headline number")
    number.locator("button").click()
    assert head.get_attribute("aria-sort") == "none"
    assert _keys(tab)[0] == "kernel_layer"
    assert _keys(tab)[-1] == "broken_peer"  # has no number: last either way
    number.locator("button").click()
    assert _keys(tab)[0] == "slow_step"
    assert _keys(tab)[-1] == "broken_peer"


@pytest.mark.browser
def test_the_table_filters_and_the_claims_with_it(tab):
    tab.get_by_label("Family").select_option("optim")
    assert sorted(_keys(tab)) == ["broken_peer", "slow_step"]
    tab.get_by_label("Verdict").select_option("fails")
    assert _keys(tab) == ["slow_step"]
    assert tab.locator("article:visible").count() == 1
    assert tab.locator(".filter output").text_content() == "1 of 6 claims"
    tab.get_by_label("Family").select_option("all")
    tab.get_by_label("Verdict").select_option("all")
    tab.get_by_label("Find").fill("kernel_layer points")
    assert _keys(tab) == ["kernel_layer"]
    tab.locator(".dot").first.click()  # a link to a claim that the filter hides shows it again
    assert tab.locator("article:visible").count() == 6


@pytest.mark.browser
@pytest.mark.parametrize("tab", [{"color_scheme": "dark"}], indirect=True)
def test_light_and_dark(tab):
    first = tab.locator(".plot").first
    first.scroll_into_view_if_needed()
    first.locator("svg.main-svg").first.wait_for(state="visible")
    ink = "getComputedStyle(document.body).color"
    stroke = "getComputedStyle(document.querySelector('.plot .scatterlayer .js-line')).stroke"
    dark = tab.evaluate(ink), tab.evaluate(stroke)
    tab.locator("#theme").click()
    light = tab.evaluate(ink), tab.evaluate(stroke)
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    tab.reload()
    assert tab.evaluate(ink) == light[0]


@pytest.mark.browser
def test_a_series_can_be_put_away(tab):
    first = tab.locator(".plot").first
    first.scroll_into_view_if_needed()
    lines = first.locator(".scatterlayer .trace")
    lines.first.wait_for(state="attached")
    shown = lines.count()
    key = tab.locator(".legend").first.get_by_role("button", name="POT")
    key.click()
    assert lines.count() == shown - 1
    assert tab.locator(".legend").first.get_by_role("button", name="POT").get_attribute("aria-pressed") == "false"


@pytest.mark.browser
def test_print_shows_everything(tab):
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    tab.wait_for_function("[...document.querySelectorAll('.plot')].every(plot => plot.querySelector('svg.main-svg'))")
    assert tab.locator("details.measured:not([open])").count() == 0
