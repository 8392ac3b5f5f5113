"""The pages in a real browser: opened from files, without a network, wide and narrow, with and without JavaScript."""

from __future__ import annotations

import importlib.util
import math
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SITE = ROOT / "results" / "site"
PAGES = sorted(path.name for path in SITE.glob("*.html"))
FILLED = sorted(
    (path for path in SITE.glob("*.html") if path.name != "index.html"), key=lambda path: -path.stat().st_size
)[0]
every_page = pytest.mark.parametrize("name", PAGES)


def claims_shown(page):
    rows = page.locator("tr[data-claim]").evaluate_all(
        """rows => rows.map(row => [row.dataset.claim, row.dataset.mode,
        ...["Reported", "Measured", "n"].map(label => row.querySelector(`[data-label="${label}"]`).dataset.value),
        row.querySelector('[data-label="Verdict"] .badge')?.lastChild.textContent.trim() ?? ""])"""
    )
    return [tuple(row) for row in rows]


def raw(value):
    return "" if value is None else value


def number(text):
    return float(text) if text else ""


@every_page
def test_a_page_opens_without_an_error_or_a_request(open_page, name):
    page = open_page(SITE / name)
    assert page.title()
    assert page.troubles == []
    assert page.locator("h1").count() == 1
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map(head => Number(head.tagName[1]))")
    assert all(after - before <= 1 for before, after in pairwise(levels)), levels
    assert page.locator("table:not(:has(caption))").count() <= page.locator(".prose table").count()
    assert page.locator("thead th:not([scope])").count() <= page.locator(".prose thead th").count()
    pictures = page.locator("img").evaluate_all("all => all.map(each => each.alt.length)")
    assert all(length > 20 for length in pictures)


@every_page
def test_a_page_of_360_pixels_has_no_sideways_scroll(open_page, name):
    page = open_page(SITE / name, width=360)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("script", [True, False], ids=["script", "no script"])
def test_the_rows_of_claims_are_those_of_the_json(open_page, results, script):
    for name, one in results.items():
        page = open_page(SITE / f"{name}.html", script=script)
        expected = [
            (
                row["claim"],
                row["mode"],
                raw(row["reported"]),
                raw(row["measured"]),
                row["n"],
                (row["verdict"] if row["n"] else "not run") if table["judged"] else "",
            )
            for table in one["tables"]
            for row in table["claims"]
        ]
        found = [(c, m, number(r), number(v), int(n), verdict) for c, m, r, v, n, verdict in claims_shown(page)]
        assert found == expected, name


def test_the_first_page_has_one_line_for_each_source_that_leads_to_its_seeds(open_page, results):
    page = open_page(SITE / "index.html")
    assert sorted(page.locator("tr[data-name]").evaluate_all("all => all.map(row => row.dataset.name)")) == [*results]
    for name, one in results.items():
        line = page.locator(f'tr[data-name="{name}"]')
        assert line.locator("th a").get_attribute("href") == f"{name}.html"
        if one["headline"]:
            file, _, seeds = line.locator('[data-label="Measured"] a').get_attribute("href").partition("#")
            assert file == f"{name}.html"
            assert f'id="{seeds}"' in (SITE / file).read_text()


def test_one_click_leads_from_a_claim_to_its_seeds_to_a_run_and_to_the_command(open_page, results):
    name = next(name for name, one in results.items() if one["headline"])
    page = open_page(SITE / f"{name}.html")
    page.locator("tr[data-claim] th a").first.click()
    seeds = page.locator("details.seeds").first
    assert seeds.get_attribute("open") is not None
    assert f"nox -s replicate_{name} -- --profile" in seeds.locator("pre").inner_text()
    link = seeds.locator("tbody td a").first
    shown, target = link.inner_text(), link.get_attribute("href")
    link.click()
    row = page.locator(f'[id="{target[1:]}"]')
    assert row.count() == 1
    assert shown in row.inner_text()


def test_every_link_within_the_pages_has_a_target(open_page):
    for name in PAGES:
        page = open_page(SITE / name)
        lost = page.evaluate(
            """[...document.querySelectorAll('a[href^="#"]')].map(link => link.getAttribute('href').slice(1))
            .filter(id => !document.getElementById(decodeURIComponent(id)))"""
        )
        assert lost == [], name
        files = page.locator("a[href], img[src]").evaluate_all(
            "all => all.map(each => each.getAttribute('href') ?? each.getAttribute('src'))"
        )
        local = [file.partition("#")[0] for file in files if ":" not in file and not file.startswith("#")]
        assert [file for file in local if not (SITE / file).exists()] == [], name


def test_tables_sort_by_number_and_back(open_page):
    page = open_page(SITE / "mnist.html")  # its first table has runs of many seeds
    table = page.locator("table.searched").first
    column = table.locator("thead th").evaluate_all(
        "heads => heads.findIndex(head => head.textContent.trim() === 'Seed')"
    )
    button = table.locator("thead th").nth(column).locator("button")

    def seeds():
        return [int(text) for text in table.locator(f"tbody tr td:nth-child({column + 1})").all_inner_texts()]

    assert sorted(seeds()) != [*reversed(sorted(seeds()))]
    button.click()
    assert seeds() == sorted(seeds())
    assert table.locator("th[aria-sort=ascending]").count() == 1
    button.press("Enter")
    assert seeds() == sorted(seeds(), reverse=True)
    assert table.locator("th[aria-sort=descending]").count() == 1


def test_search_and_filters_leave_the_rows_that_fit(open_page, results):
    page = open_page(SITE / "index.html")
    shown = page.locator("tr[data-name]:visible")
    whole = shown.count()
    assert whole == len(results)
    page.get_by_label("Search").fill("mnist transfer")
    names = shown.evaluate_all("all => all.map(row => row.dataset.name)")
    assert names == ["mnist"]
    assert page.locator("output").inner_text() == f"1 of {whole} rows"
    page.get_by_label("Search").fill("")
    page.get_by_label("Verdict").select_option("not yet run in full")
    assert shown.count() == sum(one["headline"] is None for one in results.values())


def test_a_link_to_a_folded_run_unfolds_it(open_page, results):
    one = next(one for one in results.values() if len(one["tables"]) > 1)
    table = one["tables"][1]
    run = table["runs"][0]
    label, arm = table["label"], next(iter(run["arms"]))
    page = open_page(SITE / f"{one['name']}.html", f"#run-{label}-{arm}-{run['seed']}")
    assert page.locator(f'[id="run-{label}-{arm}-{run["seed"]}"]').is_visible()


def test_a_page_is_whole_without_javascript(open_page, results):
    page = open_page(FILLED, script=False)
    one = results[FILLED.stem]
    assert page.locator("tr[data-claim]:visible").count() >= len(one["tables"][0]["claims"])
    assert page.locator("input, select, button").count() == 0
    folded = page.locator("details.seeds:not([open])").first
    command = folded.locator("pre").element_handle()
    assert not command.is_visible()
    folded.locator("summary").first.click()
    assert command.is_visible()
    assert page.locator("#runs").is_visible()


def test_the_dots_of_a_plot_are_where_their_numbers_are(open_page, results):
    """On one lane, places in percent and values lie on one straight line."""
    one = next(one for one in results.values() if one["headline"])
    page = open_page(SITE / f"{one['name']}.html")
    arm = one["tables"][0]["claims"][0]["arms"][0]
    lane = page.locator("details.seeds").first.locator(".lane").first
    places = lane.locator("circle").evaluate_all("all => all.map(dot => parseFloat(dot.getAttribute('cx')))")
    assert len(places) == len(arm["values"]) > 2
    (x0, y0), (x1, y1) = min(zip(arm["values"], places, strict=True)), max(zip(arm["values"], places, strict=True))
    for x, y in zip(arm["values"], places, strict=True):
        assert math.isclose(y, y0 + (y1 - y0) * (x - x0) / (x1 - x0), abs_tol=0.02)
    assert 0 <= min(places) <= max(places) <= 100


def test_the_keyboard_reaches_the_content_first_and_focus_is_seen(open_page):
    page = open_page(SITE / "index.html")
    page.keyboard.press("Tab")
    skip = page.locator(":focus")
    assert skip.get_attribute("href") == "#main"
    assert skip.bounding_box()["x"] >= 0
    page.keyboard.press("Tab")
    assert page.locator(":focus").evaluate("each => getComputedStyle(each).outlineStyle") != "none"


@pytest.mark.parametrize("name", ["index.html", "hostile.html"])
@pytest.mark.parametrize("width", [360, 1280])
def test_hostile_text_stays_text(open_page, hostile, name, width):
    page = open_page(hostile / name, width=width)
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert page.title() != "caught"
    assert page.troubles == []
    assert page.locator("main img, main script").count() == 0
    assert "<script>" in page.locator("main").inner_text()
    assert page.locator('a[href^="javascript"]').count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("name", ["index.html", FILLED.name, "hinton.html"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(open_page, name, dark):
    package = importlib.util.find_spec("axe_playwright_python")
    if package is None or package.origin is None:
        pytest.skip("needs the extra browser")
    (axe,) = Path(package.origin).parent.glob("**/axe.min.js")
    page = open_page(SITE / name, dark=dark)
    page.evaluate("document.querySelectorAll('details.seeds').forEach((each, i) => { each.open = i < 3 })")
    page.evaluate(axe.read_text())
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    serious = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in serious] == []


def test_numbers_from_a_thousand_on_are_sorted_as_numbers(open_page):
    page = open_page(SITE / "hinton.html")
    found = page.evaluate(
        "() => ['1,005.0', '236.0', '6,686.0', '977.0', '1,000,000'].sort((a, b) => compare(a, b)).join(' ')"
    )
    assert found == "236.0 977.0 1,005.0 6,686.0 1,000,000"
