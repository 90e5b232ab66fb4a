"""Figures and tables beside the page, and item curves."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import answer_runs as answers
import front_runs as fronts
import numpy as np
import pytest
import report_runs as runs

from evomerge.irt.model import ItemModel
from evomerge.report.content import prepare
from evomerge.report.files import csv_text, tables, write_figure, write_files
from evomerge.report.page import write_report
from evomerge.report.reading import read_run


def test_a_cell_is_no_formula(tmp_path: Path) -> None:
    rows = [["=1+1", -0.5, None], ["@x", 3, 'a "b", c'], ["-2+3", True, "\u2028"]]
    path = tmp_path / "table.csv"
    path.write_text(csv_text(["+name", "b", "c"], rows), encoding="utf-8")
    with path.open(newline="", encoding="utf-8") as file:
        back = list(csv.reader(file))
    assert back == [["'+name", "b", "c"], ["'=1+1", "-0.5", ""], ["'@x", "3", 'a "b", c'],
                    ["'-2+3", "True", "\u2028"]]  # fmt: skip


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = runs.evil_run(tmp_path_factory.mktemp("evil"))
    name = next(iter(json.loads((run / "results.json").read_text())["models"]["evolved merge"]
                     ["scores"]))  # fmt: skip
    answers.add_answers(run, items=12, text=answers.EVIL, tasks=(name,))
    return run


def test_tables_hold_everything(evil: Path) -> None:
    content = prepare(read_run(evil))
    found = {name: (head, list(rows)) for name, (head, rows) in tables(content).items()}
    assert set(found) >= {"candidates", "scores", "against", "items", "phases", "coefficients"}
    head, rows = found["candidates"]
    assert len(rows) == 48 and len(head) == len(rows[0])
    genes = [name for name in head if name.startswith(("weight/", "density/"))]
    assert len(genes) == 48
    first = next(e for e in read_run(evil).events if e.get("event") == "ask")["candidates"][0]
    assert [rows[0][head.index(name)] for name in genes] == first["genome"]
    head, rows = found["items"]
    assert len(rows) == 12 * 8
    assert sum(answers.EVIL in row[head.index("answer")] for row in rows) == 96


def test_figures_are_pictures_without_scripts(evil: Path, tmp_path: Path) -> None:
    charts = prepare(read_run(evil)).charts
    for name in ("scores-1", "grid-1"):
        write_figure(tmp_path / name, charts[name])
        svg = ElementTree.parse(tmp_path / f"{name}.svg")
        tags = {element.tag.rsplit("}", 1)[-1] for element in svg.iter()}
        assert not tags & {"script", "foreignObject", "image", "a"}
        assert runs.EVIL[:20] in "".join(svg.getroot().itertext())
        assert (tmp_path / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert charts["grid-1"].get("config") is None  # the page's own charts stay as they were


def test_files_go_beside_the_page(tmp_path: Path) -> None:
    run = fronts.make(tmp_path, candidates=40, budgets=(40,))
    page = write_report(run, files=True)
    assert page == run / "report.html"
    written = {path.name for path in (run / "report").iterdir()}
    assert {"front.csv", "candidates.csv", "front-0-1.svg", "front-0-1.png"} <= written
    with (run / "report" / "front.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    points = json.loads((run / "results.json").read_text())["front"]["points"]
    tested = {str(p["candidate"]): p["values"]["test"]["accuracy"] for p in points}
    assert rows and all(float(r["test accuracy"]) == tested[r["candidate"]] for r in rows)


def test_curves_of_an_item_model(tmp_path: Path) -> None:
    run = runs.finished_run(tmp_path / "run")
    answers.add_answers(run, items=12)
    rng = np.random.default_rng(0)
    items = tuple(f"item-{i:03d}" for i in range(12))
    slopes, hard = rng.uniform(0.5, 2, (12, 1)), np.linspace(-2, 2, 12)
    model = ItemModel(items, slopes, hard, np.ones((12, 1)), np.ones(12))
    model.save(tmp_path / "items.npz")
    config = {"estimator": {"model": str(tmp_path / "items.npz")}}
    (run / "config.yaml").write_text(json.dumps(config))
    content = prepare(read_run(run))
    [found] = content.curves
    assert len(found.curves) == 6 and found.dimensions == 1
    curve = found.curves[2]
    at = items.index(curve.item)
    expected = 1 / (1 + np.exp(-(slopes[at, 0] * np.array(curve.x) - hard[at])))
    assert np.allclose(curve.y, expected, atol=2e-3)  # x is rounded to 3 decimals
    theta = {name: ability for name, _, ability in found.abilities}
    right = {one.subjects[k].name: one.scores[k].mean() for one in content.tasks.tasks
             for k in range(len(one.subjects))}  # fmt: skip
    assert set(theta) == set(right)
    (run / "config.yaml").write_text(json.dumps({"estimator": {"model": "gone.npz"}}))
    content = prepare(read_run(run))
    assert content.curves == [] and any("gone.npz" in note for note in content.notes)


def test_what_was_fitted_is_kept_by_the_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making a page writes nothing, and the next one does not fit again, whichever the task."""
    run, names = runs.finished_run(tmp_path / "run"), ("jp_math", "polite")
    answers.add_answers(run, items=12, tasks=names)
    rng = np.random.default_rng(0)
    for name in names:
        right = rng.random((40, 12)) < 1 / (1 + np.exp(-rng.normal(size=(40, 1))))
        head = ["model", *(f"item-{i:03d}" for i in range(12))]
        rows = [[f"m{at}", *row.astype(int).tolist()] for at, row in enumerate(right)]
        (tmp_path / f"{name}.csv").write_text(csv_text(head, rows))
    given = {name: str(tmp_path / f"{name}.csv") for name in names}
    (run / "config.yaml").write_text(json.dumps({"estimator": {"responses": given}}))
    (run / "report").mkdir()
    before = set(run.rglob("*"))
    content = prepare(read_run(run))
    assert [found.task for found in content.curves] == list(names)
    assert set(run.rglob("*")) == before
    write_files(replace(content, charts={}), run)

    def refuse(*_: object) -> None:
        raise AssertionError("fitted again")

    monkeypatch.setattr("evomerge.report.curves.fit_items", refuse)
    again = prepare(read_run(run)).curves
    assert [found.curves for found in again] == [found.curves for found in content.curves]
