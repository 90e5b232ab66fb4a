"""What a card says of a merge that the study did not choose."""

from __future__ import annotations

import json

import front_runs
import pytest

from evomerge.checkpoints.merger import Merger
from evomerge.estimators.intervals import wilson
from evomerge.evidence import evidence_of, search_interval
from evomerge.recipe import Recipe
from evomerge.recorded import Chosen, Recorded
from evomerge.report.objectives import Objective
from evomerge.report.reading import read_run

RECIPE = Recipe.from_dict(
    {"merge_method": "linear", "models": [{"model": "m", "parameters": {"weight": 1}}]}
)


def chosen(number: int, subject: str = "") -> Chosen:
    return Chosen(f"candidate {number}", RECIPE, "d", number, subject)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = front_runs.make(tmp_path_factory.mktemp("front") / "run")
    return Recorded(folder, read_run(folder), {}, Merger())


def test_a_point_of_the_front_has_its_held_out_values(study: Recorded) -> None:
    points = json.loads((study.run_dir / "results.json").read_text())["front"]["points"]
    point = next(p for p in points if not p["chosen"])
    found = evidence_of(study, chosen(point["candidate"]))
    assert found is not None and "not its choice" in found.sentences[0]
    accuracy, length = found.table.splitlines()[2:]
    test, low, high = (
        part["accuracy"] for part in (point["values"]["test"], point["low"], point["high"])
    )
    assert f"| {100 * test:.1f}% | [{100 * low:.1f}%, {100 * high:.1f}%] |" in accuracy
    assert accuracy.startswith("| accuracy (higher is better) |")
    assert length.startswith("| length, tokens (lower is better) |")


def test_the_choice_tells_of_itself_and_others_of_the_table(study: Recorded) -> None:
    best = str(study.results["best"])
    assert evidence_of(study, chosen(0, best)) is None
    source = next(n for n, m in study.results["models"].items() if m["role"] == "source")
    found = evidence_of(study, chosen(0, source))
    assert found is not None and source in found.sentences[0] and best in found.table


def test_what_was_not_measured_says_so(study: Recorded) -> None:
    numbers = {p["candidate"] for p in study.results["front"]["points"]}
    results = [e for e in study.files.events if e["event"] == "result" and e["status"] == "ok"]
    event = next(e for e in results if e["id"] not in numbers)
    found = evidence_of(study, chosen(event["id"]))
    assert found is not None and "not measured on held-out items" in found.sentences[0]
    assert "**not** measured on held-out items" in found.table
    assert f"| {100 * event['values']['accuracy']:.1f}% |" in found.table


def test_a_score_without_spread_has_wilsons_interval() -> None:
    event = {"scores": {"jp": {"items": 12}}}
    score = Objective("jp", "jp")
    assert search_interval(event, score, 0.0, 0.0) == wilson(0, 12)
    assert search_interval(event, score, 1.0, 0.0) == wilson(12, 12)
    assert search_interval(event, score, 0.5, 0.1) == pytest.approx((0.304, 0.696), abs=1e-3)
    assert search_interval(event, score, 0.99, 0.1)[1] == 1.0
