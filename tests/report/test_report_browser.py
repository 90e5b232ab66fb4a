"""The page in a browser: nothing loaded, nothing logged, charts drawn, phone and dark mode."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import report_runs as runs

from evomerge.report import write_report

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
    assert wanted == {"running": 3, "deep": 5}.get(name, 4)
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
