"""The page in a browser: nothing loaded, nothing logged, charts drawn, phone and dark mode."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import answer_runs as answers
import front_runs as fronts
import pytest
import report_runs as runs

from evomerge.report import write_comparison, write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield program
        program.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    running = runs.write_run(folder / "running", runs.events(40)[:-1])
    outcome = runs.results()
    for model in outcome["models"].values():
        model["scores"]["en_math"] = {"test": runs.score(0.01, 500, half=0.01)}
    deep = runs.write_run(folder / "deep", runs.events(48, blocks=48), outcome, runs.RECIPE)
    return {
        "finished": write_report(runs.finished_run(folder / "finished")),
        "evil": write_report(runs.evil_run(folder / "evil")),
        "running": write_report(running),
        "deep": write_report(deep),
    }


def opened(browser: Any, page: Path, noises: list[str], width: int = 1100, **options: Any) -> Any:
    """Opens a page and waits for its charts; adds what goes wrong to `noises`."""
    tab = browser.new_page(viewport={"width": width, "height": 800}, **options)
    tab.on("console", lambda message: noises.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: noises.append(f"error: {error}"))
    tab.on("dialog", lambda dialog: (noises.append("dialog"), dialog.dismiss()))
    tab.on("request", lambda request: noises.append(f"request: {request.url}"))
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-charts=drawn]", state="attached")
    noises[:] = [n for n in noises if n not in (f"request: {page.as_uri()}", "request: data:,")]
    return tab


@pytest.mark.parametrize("name", ["finished", "evil", "running", "deep"])
@pytest.mark.parametrize("width", [1100, 390])
def test_page_is_quiet_and_draws_its_charts(
    browser: Any, pages: dict[str, Path], name: str, width: int
) -> None:
    noises: list[str] = []
    tab = opened(browser, pages[name], noises, width)
    wanted = tab.locator("[data-chart]").count()
    assert wanted == {"running": 6, "deep": 8}.get(name, 7)
    assert tab.locator("[data-chart] svg").count() == wanted
    tab.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.close()
    assert noises == []


def test_dark_mode_changes_page_and_charts(browser: Any, pages: dict[str, Path]) -> None:
    noises: list[str] = []
    looks = {}
    for scheme in ("light", "dark"):
        tab = opened(browser, pages["finished"], noises, color_scheme=scheme)
        looks[scheme] = tab.evaluate(
            """[getComputedStyle(document.body).backgroundColor,
                document.querySelector("[data-chart] svg text").getAttribute("fill")]"""
        )
        tab.close()
    assert looks["light"][0] != looks["dark"][0]
    assert looks["light"][1] != looks["dark"][1]
    assert noises == []


def test_charts_follow_a_change_of_the_colour_scheme(browser: Any, pages: dict[str, Path]) -> None:
    noises: list[str] = []
    tab = opened(browser, pages["finished"], noises, color_scheme="light")
    tab.emulate_media(color_scheme="dark")
    tab.wait_for_selector('[data-chart="scores-1"] svg text[fill="#e6ebf1"]')
    tab.close()
    assert noises == []


def test_hovering_shows_text_not_markup(browser: Any, pages: dict[str, Path]) -> None:
    noises: list[str] = []
    tab = opened(browser, pages["evil"], noises)
    tab.locator('[data-chart="grid-1"] .mark-rect path').first.hover(force=True)
    tip = tab.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert runs.EVIL in tip.inner_text()
    assert tip.locator("script, img").count() == 0
    tab.close()
    assert noises == []


def test_copy_button_and_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    noises: list[str] = []
    tab = opened(browser, pages["finished"], noises)
    button = tab.locator('[data-copy="recipe-yaml"]')
    button.press("Enter")
    button.filter(has_text=re.compile("Copied|Selected")).wait_for()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "recipe-yaml"
    tab.close()
    assert noises == []


CHARTS = {"two": 5, "three": 8, "searching": 4, "fronts": 5, "evil-fronts": 5, "scores": 2}


@pytest.fixture(scope="module")
def front_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of runs with several objectives, and of several runs."""
    folder = tmp_path_factory.mktemp("fronts")
    three = [fronts.ACCURACY, fronts.LENGTH, fronts.POLITE]
    evil = f"{runs.EVIL}<img src=x onerror=alert(2)>"
    names = [fronts.ACCURACY | {"name": evil}, fronts.LENGTH]
    two = fronts.make(folder / "two", constraints=[fronts.TOKENS])
    searching = fronts.make(folder / "searching", constraints=[fronts.TOKENS], finished=False)
    groups: dict[str, list[Path]] = {"fronts": [], "evil-fronts": [], "scores": []}
    for seed in range(3):
        for name in ("nsga2", "random"):
            run = folder / "runs" / name / f"seed{seed}"
            groups["fronts"].append(fronts.make(run, optimizer=name, seed=seed))
            run = folder / "evil" / name / f"seed{seed}"
            groups["evil-fronts"].append(
                fronts.make(run, names, optimizer=f"{evil} {name}", seed=seed)
            )
            run = folder / "scores" / name / f"seed{seed}"
            outcome = runs.results(seed=seed, optimizer=name)
            groups["scores"].append(runs.write_run(run, runs.events(40), outcome))
    return {
        "two": write_report(two),
        "three": write_report(fronts.make(folder / "three", three)),
        "searching": write_report(searching),
        **{name: write_comparison(made, folder / name) for name, made in groups.items()},
    }


@pytest.mark.parametrize("name", list(CHARTS))
@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (1100, "dark"), (390, "dark")])
def test_pages_of_fronts_are_quiet_and_draw_their_charts(
    browser: Any, front_pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    noises: list[str] = []
    tab = opened(browser, front_pages[name], noises, width, color_scheme=scheme)
    wanted = tab.locator("[data-chart]").count()
    assert wanted == CHARTS[name]
    assert tab.locator("[data-chart] svg").count() == wanted
    assert tab.locator("script:not([type])").count() == 2
    assert tab.locator("img").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.close()
    assert noises == []


def test_a_table_sorts_by_value(browser: Any, front_pages: dict[str, Path]) -> None:
    noises: list[str] = []
    tab = opened(browser, front_pages["two"], noises)
    table = tab.locator("#front ~ * table.sortable, section:has(#front) table.sortable").first
    values = (
        """(table) => [...table.tBodies[0].rows].map((r) => Number(r.cells[3].dataset.value))"""
    )
    heading = table.locator("thead th").nth(3)
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    up = table.evaluate(values)
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert table.evaluate(values) == up[::-1] == sorted(up, reverse=True)
    names = table.locator("thead th").nth(0)
    names.locator("button").click()
    texts = table.locator("tbody th").all_inner_texts()
    assert [int(text.split()[1]) for text in texts] == sorted(int(t.split()[1]) for t in texts)
    assert heading.get_attribute("aria-sort") is None
    tab.close()
    assert noises == []


def test_a_long_table_is_searched(browser: Any, front_pages: dict[str, Path]) -> None:
    noises: list[str] = []
    tab = opened(browser, front_pages["three"], noises)
    rows = tab.locator("label.filter + .scroll").first.locator("tbody tr:visible")
    search = tab.locator("label.filter input").first
    names = tab.locator("label.filter + .scroll").first.locator("tbody th").all_inner_texts()
    assert len(names) >= 12
    search.fill(f"{names[5]} on")
    assert 1 <= rows.count() < len(names)
    assert all(names[5] in row.inner_text() for row in rows.all())
    search.fill("")
    assert rows.count() == len(names)
    tab.close()
    assert noises == []


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run whose answers try to run scripts."""
    run = runs.finished_run(tmp_path_factory.mktemp("answered"))
    answers.add_answers(run, items=45, text=answers.EVIL, tasks=("jp_math", "en_math"))
    return write_report(run)


@pytest.mark.parametrize(("width", "scheme"), [(1100, "light"), (390, "dark")])
def test_answers_are_searched_and_stay_text(
    browser: Any, answered: Path, width: int, scheme: str
) -> None:
    noises: list[str] = []
    tab = opened(browser, answered, noises, width, color_scheme=scheme)
    cards, found = tab.locator("#answer-list > li"), tab.locator("#found")
    assert found.inner_text() == "45 of 45 items"
    assert cards.count() == 10
    assert answers.EVIL.split("\u2028")[0] in cards.first.inner_text()
    assert tab.locator("#browser script, #browser img").count() == 0
    tab.locator("#browser input[type=search]").fill("says 17")
    assert found.inner_text() == "1 of 45 items"
    assert "evolved merge says 17" in cards.first.inner_text()
    tab.locator("#browser input[type=search]").fill("nothing like this")
    assert (found.inner_text(), cards.count()) == ("0 of 45 items", 0)
    tab.locator("#browser input[type=search]").fill("")
    tab.locator("select[name=kind]").select_option("forgotten")
    told = tab.locator(".tile.down strong").first.inner_text()
    assert found.inner_text() == f"{told} of 45 items"
    for card in cards.all():
        assert "wrong" in card.locator(".answer").first.inner_text()
    tab.locator("select[name=kind]").select_option("")
    tab.locator("#later").press("Enter")
    assert tab.locator("#page-number").inner_text() == "Page 2 of 5"
    assert "item-010" in cards.first.inner_text()
    tab.locator("select[name=task]").select_option("1")
    assert tab.locator("#page-number").inner_text() == "Page 1 of 5"
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.close()
    assert noises == []


ACCESS = """() => {
  const found = [];
  const levels = [...document.querySelectorAll("h1, h2, h3, h4")].map((h) => Number(h.tagName[1]));
  levels.forEach((level, n) => { if (n && level > levels[n - 1] + 1) found.push(`heading ${n}`); });
  for (const node of document.querySelectorAll("input, select")) {
    if (!node.labels?.length && !node.getAttribute("aria-label")) found.push(node.outerHTML);
  }
  for (const table of document.querySelectorAll("main table")) {
    if (!table.caption) found.push("no caption");
    for (const cell of table.querySelectorAll("th")) if (!cell.scope) found.push("no scope");
  }
  for (const chart of document.querySelectorAll("[data-chart]")) {
    if ((chart.getAttribute("aria-label") ?? "").length < 20) found.push(chart.dataset.chart);
  }
  for (const tag of ["main", "header", "footer", "nav"]) {
    if (document.querySelectorAll(tag).length !== 1) found.push(tag);
  }
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  if (new Set(ids).size !== ids.length) found.push("an id twice");
  for (const node of document.querySelectorAll("[aria-labelledby]")) {
    if (!document.getElementById(node.getAttribute("aria-labelledby"))) found.push(node.tagName);
  }
  return found;
}"""


def test_structure_is_accessible(
    browser: Any, answered: Path, front_pages: dict[str, Path], pages: dict[str, Path]
) -> None:
    for page in (answered, front_pages["three"], pages["running"]):
        noises: list[str] = []
        tab = opened(browser, page, noises)
        assert tab.evaluate(ACCESS) == []
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "skip"
        outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        tab.close()
        assert noises == []


def test_text_has_contrast(browser: Any, answered: Path) -> None:
    """WCAG's contrast of 4.5 for text on cards, in both schemes."""
    for scheme in ("light", "dark"):
        tab = opened(browser, answered, [], color_scheme=scheme)
        names = ("--text", "--muted", "--accent", "--good", "--warn", "--bad")
        colours = tab.evaluate(
            """(names) => { const style = getComputedStyle(document.documentElement);
            return [...names, "--card"].map((name) => style.getPropertyValue(name).trim()); }""",
            names,
        )
        card = luminance(colours[-1])
        for name, colour in zip(names, colours[:-1], strict=True):
            light, dark = sorted((luminance(colour), card), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (scheme, name)
        tab.close()


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
