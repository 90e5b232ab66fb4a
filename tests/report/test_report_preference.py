"""The sliders choose what `pick` chooses, in a real browser."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import front_runs as fronts
import numpy as np
import pytest

from evomerge.objectives import Objective
from evomerge.pick_command import read_measured
from evomerge.picking import Preference, ranked, read_preference
from evomerge.report import write_report
from evomerge.report.content import prepare
from evomerge.report.objectives import read_objectives
from evomerge.report.reading import read_run

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
THREE = [fronts.ACCURACY, fronts.LENGTH, fronts.POLITE]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("preferences")
    return {
        "proved": fronts.make(folder / "proved", THREE, candidates=80, budgets=(40, 80)),
        "searching": fronts.make(folder / "searching", [fronts.ACCURACY, fronts.LENGTH],
                                 constraints=[fronts.TOKENS], finished=False, candidates=60),
    }  # fmt: skip


def preference(run: Path, prefer: str, at_least: str = "", at_most: str = "") -> Preference:
    shown = read_objectives(read_run(run).results or {}, read_run(run).study)
    listed = [
        Objective(o.name, o.task or None, o.metric, "minimize" if o.minimised else "maximize")
        for o in shown
    ]
    return read_preference(listed, prefer, at_least, at_most)


@pytest.mark.parametrize("name", ["proved", "searching"])
def test_the_page_has_what_pick_has(folders: dict[str, Path], name: str) -> None:
    files = read_run(folders[name])
    content = prepare(files)
    assert content.preferences is not None
    data = content.preferences.data
    measured = read_measured(files, list(content.objectives), folders[name])
    assert data["ids"] == list(measured.numbers)
    assert data["names"] == list(measured.names)
    assert np.array(data["raw"]).tolist() == measured.raw.tolist()
    assert data["heldOut"] == (measured.split == "held-out test")


@pytest.fixture(scope="module")
def tabs(folders: dict[str, Path]) -> Iterator[dict[str, Any]]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        program = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        found = {}
        for name, run in folders.items():
            tab = program.new_page(viewport={"width": 1000, "height": 900})
            tab.goto(write_report(run).as_uri())
            tab.wait_for_selector("html[data-charts=drawn]", state="attached")
            found[name] = tab
        yield found
        program.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["proved", "searching"])
def test_browser_and_pick_choose_the_same(
    folders: dict[str, Path], tabs: dict[str, Any], name: str
) -> None:
    files = read_run(folders[name])
    shown = read_objectives(files.results or {}, files.study)
    measured = read_measured(files, shown, folders[name])
    rng = random.Random(5)
    for _ in range(60):
        weights = [rng.choice([0, rng.randint(1, 100)]) for _ in shown]
        if not any(weights):
            continue
        limits = [
            float(rng.choice(measured.raw[:, k])) if rng.random() < 0.4 else None
            for k in range(len(shown))
        ]
        pairs = [
            ",".join(
                f"{o.name}={v}"
                for o, v in zip(shown, limits, strict=True)
                if v is not None and o.minimised is minimised
            )
            for minimised in (False, True)
        ]
        prefer = ",".join(f"{o.name}={w}" for o, w in zip(shown, weights, strict=True) if w)
        wish = preference(folders[name], prefer, *pairs)
        order = tabs[name].evaluate(
            "([w, l]) => window.evomergePage.rank(w, l).order", [weights, limits]
        )
        assert order[:3] == ranked(wish, measured.raw)[:3]


@pytest.mark.slow
def test_moving_a_slider_changes_pick_command_and_table(
    folders: dict[str, Path], tabs: dict[str, Any]
) -> None:
    tab, run = tabs["proved"], folders["proved"]
    files = read_run(run)
    shown = read_objectives(files.results or {}, files.study)
    measured = read_measured(files, shown, run)
    sliders = tab.locator("#preference input[type=range]")
    chosen = []
    for wanted in ([100, 0, 0], [0, 100, 0], [30, 20, 90]):
        for at, value in enumerate(wanted):
            sliders.nth(at).fill(str(value))
        prefer = ",".join(f"{o.name}={w}" for o, w in zip(shown, wanted, strict=True))
        best = ranked(preference(run, prefer), measured.raw)[0]
        assert tab.locator("#picked-name").inner_text() == measured.names[best]
        command = tab.locator("#picked-export").inner_text()
        assert command == f"python -m evomerge export {run} {measured.numbers[best]} OUT"
        again = tab.locator("#picked-again").inner_text()
        assert again.startswith(f"python -m evomerge pick {run} --prefer ")
        chosen.append(measured.numbers[best])
        rows = tab.locator("tr.picked").evaluate_all("(all) => all.map((r) => r.dataset.candidate)")
        assert set(rows) <= {str(chosen[-1])}
        ring = tab.evaluate(
            "window.evomergePage.views.get('front-0-1').data('pick').map(({x, y}) => [x, y])"
        )
        assert ring == [[measured.raw[best][0], measured.raw[best][1]]]
    assert len(set(chosen)) > 1
    focus = sliders.nth(0)
    focus.focus()
    before = focus.input_value()
    tab.keyboard.press("ArrowRight")
    assert int(focus.input_value()) == int(before) + 1
    tab.locator("#preference input[type=number]").nth(0).fill("100")
    assert tab.locator("#picked-name").inner_text() == "None"
    assert "No measured merge keeps these bounds" in tab.locator("#picked-why").inner_text()
    tab.locator("#preference select").select_option(str(measured.numbers[0]))
    assert tab.locator("#picked-name").inner_text() == measured.names[0]
    tab.locator("#preference button[type=reset]").click()
    assert tab.locator("#preference input[type=number]").nth(0).input_value() == ""
