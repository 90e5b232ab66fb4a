"""Several runs together: grouping, indicators on common ground, tables, and the page."""

from __future__ import annotations

import csv
import io
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import front_runs as fronts
import numpy as np
import pytest
import report_runs as runs
from rich.console import Console
from test_report_page import Reader

from evomerge.errors import UserError
from evomerge.report import (
    common_parent,
    compare,
    comparison_markdown,
    comparison_table,
    write_comparison,
)
from evomerge.report.comparison import Comparison
from evomerge.report.comparison_figures import comparison_charts
from evomerge.report.comparison_page import render_comparison
from evomerge.report.quality import Box, hypervolume, igd, igd_plus, nondominated

SKILLS = {"gp": 1.2, "nsga2": 1.0, "random": 0.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three optimisers with four seeds each."""
    made = tmp_path_factory.mktemp("runs")
    for name, skill in SKILLS.items():
        for seed in range(4):
            fronts.make(made / name / f"seed{seed}", optimizer=name, seed=seed, skill=skill)
    return made


def paths(folder: Path) -> list[Path]:
    return sorted(p.parent for p in folder.glob("*/*/results.json"))


def raw_points(run: Path, budget: int | None = None) -> np.ndarray:
    """Held-out losses straight from the file: less accuracy and more tokens are worse."""
    front = json.loads((run / "results.json").read_text())["front"]
    return np.array(
        [
            (-p["values"]["test"]["accuracy"], p["values"]["test"]["length"])
            for p in front["points"]
            if budget is None or p["candidate"] in front["budgets"][str(budget)]
        ]
    ).reshape(-1, 2)


def plain(folder: Path, name: str, values: list[float], **changes: Any) -> list[Path]:
    """Runs with one objective, one a seed, in the form of before there were several."""
    made = []
    for seed, value in enumerate(values):
        outcome = runs.results(seed=seed, **changes)
        outcome["models"]["evolved merge"]["scores"]["jp_math"]["test"]["value"] = value
        config = {"experiment": "jp_math_tiny", "seed": seed, "run_dir": f"/x/{name}/{seed}",
                  "optimizer": {"_target_": f"evomerge.optimizers.{name}.Thing"}}  # fmt: skip
        log = runs.events(32 + 8 * seed, blocks=1)
        made.append(
            runs.write_run(folder / name / f"seed{seed}", log, outcome, "", json.dumps(config))
        )
    return made


def test_measures_against_the_files(folder: Path) -> None:
    found = compare(paths(folder))
    cloud = np.vstack([raw_points(run) for run in paths(folder)])
    ideal, nadir = cloud.min(axis=0), cloud.max(axis=0)
    assert found.ideal == pytest.approx((-ideal[0], ideal[1]))
    assert found.reference == pytest.approx((-nadir[0], nadir[1]))
    union = (cloud[nondominated(cloud)] - ideal) / (nadir - ideal)
    assert found.union == len(union)
    assert len(found.measures) == 3 * 12
    for measure in found.measures:
        run = folder / measure.run.optimizer / f"seed{measure.run.seed}"
        unit = (raw_points(run, measure.budget) - ideal) / (nadir - ideal)
        assert measure.hypervolume == pytest.approx(hypervolume(unit, np.ones(2)))
        assert measure.igd == pytest.approx(igd(unit, union))
        assert measure.igd_plus == pytest.approx(igd_plus(unit, union))
        assert measure.front == nondominated(unit).sum()


def test_groups_are_optimisers_and_their_means_are_over_seeds(folder: Path) -> None:
    found = compare(paths(folder))
    assert [(g.label, len(g.runs)) for g in found.groups] == [(name, 4) for name in SKILLS]
    assert found.budgets == list(fronts.BUDGETS)
    for summary in found.summaries:
        own = [
            m.hypervolume
            for m in found.measures
            if (m.group, m.budget) == (summary.group, summary.budget) and m.hypervolume is not None
        ]
        assert summary.main.value == pytest.approx(statistics.mean(own))
        assert summary.seeds == 4
    last = {s.group: s.main.value for s in found.summaries if s.budget == 120}
    assert sorted(last, key=lambda name: last[name] or 0) == ["random", "nsga2", "gp"]
    assert found.tests.method == "Mann-Whitney U test"
    assert found.tests.friedman is not None


def test_a_given_reference(folder: Path) -> None:
    found = compare(paths(folder), {"length": 150.0})
    assert found.reference[1] == 150.0
    assert found.reference[0] == compare(paths(folder)).reference[0]
    cloud = np.vstack([raw_points(run) for run in paths(folder)])
    reference = np.array([cloud[:, 0].max(), 150.0])
    box = Box.around(cloud, reference)
    measure = found.measures[-1]
    points = raw_points(folder / measure.run.optimizer / f"seed{measure.run.seed}", 120)
    volume = hypervolume(points, reference) / float((reference - cloud.min(axis=0)).prod())
    assert measure.hypervolume == pytest.approx(volume) == pytest.approx(box.share(points))
    assert "given for length" in Reader(render_comparison(found)).text


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ({"lenght": 150.0}, "accuracy, length"),
        ({"length": float("nan")}, "finite"),
        ({"length": 1.0}, "worse than"),
    ],
)
def test_a_reference_that_cannot_be_is_refused(
    folder: Path, reference: dict[str, float], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        compare(paths(folder), reference)


def test_bands_hold_lowest_median_and_highest(folder: Path) -> None:
    for band in compare(paths(folder)).bands:
        assert band.rows[-1][0] == 120
        assert all(low <= middle <= high for _, low, middle, high in band.rows)
        medians = [middle for _, _, middle, _ in band.rows]
        assert medians == sorted(medians)


def test_what_cannot_be_compared_is_left_out(folder: Path, tmp_path: Path) -> None:
    running = fronts.make(tmp_path / "a" / "running", finished=False)
    three = fronts.make(tmp_path / "a" / "three", [fronts.ACCURACY, fronts.LENGTH, fronts.POLITE])
    (tmp_path / "a" / "damaged").mkdir()
    (tmp_path / "a" / "damaged" / "results.json").write_text("{")
    again = shutil.copytree(folder / "gp" / "seed0", tmp_path / "a" / "again")
    strange = [running, three, tmp_path / "a" / "damaged", tmp_path / "a" / "none", again]
    found = compare([*paths(folder), *strange, paths(folder)[0]])
    assert len(found.measures) == 3 * 12
    text = "\n".join(found.left_out)
    assert "a/running is not finished" in text
    assert "a/three has other objectives (accuracy, length, politeness)" in text
    assert "a/damaged cannot be read" in text
    assert "a/none cannot be read" in text
    assert "a/again repeats the settings and the seed" in text
    assert len(found.left_out) == 5
    page = Reader(render_comparison(found)).text
    assert all(sentence in page for sentence in found.left_out)


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    running = fronts.make(tmp_path / "running", finished=False)
    with pytest.raises(UserError, match="is not finished"):
        compare([running, tmp_path / "none"])


def test_settings_that_differ_make_groups(tmp_path: Path) -> None:
    for size in (8, 16):
        for seed in range(2):
            run = tmp_path / f"p{size}" / f"seed{seed}"
            fronts.make(run, seed=seed, population=size, path=f"/home/someone/{size}/x")
    other = fronts.make(tmp_path / "gp" / "seed0", optimizer="gp", population=8, path="/x")
    found = compare([*sorted(tmp_path.glob("p*/*")), other])
    labels = [group.label for group in found.groups]
    assert labels == ["nsga2, population=16, path=x", "nsga2, population=8, path=x", "gp"]
    assert "someone" not in render_comparison(found)


def test_what_a_study_depends_on_makes_groups_not_where_it_lies(tmp_path: Path) -> None:
    """Equal models at another place, or with other workers, are repetitions; others are not."""
    for seed, (digest, items) in enumerate([("a" * 64, 32), ("a" * 64, 32), ("b" * 64, 64)]):
        run = fronts.make(tmp_path / f"seed{seed}", seed=seed, models=f"/home/{seed}/model",
                          executor={"workers": seed + 1})  # fmt: skip
        first, *rest = (run / "journal.jsonl").read_text().splitlines()
        matter = {"experiment": "x", "seed": seed, "models.sources.math": digest,
                  "estimator.items": items, "dimensions": [f"weight/{seed}"]}  # fmt: skip
        event = json.dumps(json.loads(first) | {"matter": matter})
        (run / "journal.jsonl").write_text("\n".join([event, *rest]) + "\n")
    groups = compare(sorted(tmp_path.iterdir())).groups
    assert [len(group.runs) for group in groups] == [2, 1]
    assert groups[0].label == f"math={'a' * 8}, items=32"


def test_labels_are_never_the_same(tmp_path: Path) -> None:
    settings = [{"path": f"/{at}/x"} for at in range(3)]
    for at, setting in enumerate(settings):
        fronts.make(tmp_path / str(at), **setting)
    labels = [group.label for group in compare(sorted(tmp_path.iterdir())).groups]
    assert labels == ["path=x", "path=x (2)", "path=x (3)"]


def test_other_budgets(tmp_path: Path) -> None:
    one = fronts.make(tmp_path / "one", budgets=(20, 60))
    two = fronts.make(tmp_path / "two", seed=1, budgets=(20, 120))
    found = compare([one, two])
    assert found.budgets == [20]
    assert "left out: 60, 120" in found.notes[0]
    three = fronts.make(tmp_path / "three", seed=2, budgets=(100,))
    none = compare([one, two, three])
    assert none.budgets == [None]
    assert "no budget in common" in none.notes[0]
    assert {m.front for m in none.measures} != {0}


def test_a_run_in_which_nothing_keeps_the_constraints(folder: Path, tmp_path: Path) -> None:
    bound = fronts.TOKENS | {"bound": -1.0}
    empty = fronts.make(tmp_path / "strict" / "seed0", constraints=[bound], optimizer="gp", seed=9)
    results = json.loads((empty / "results.json").read_text())
    results["front"]["points"] = [
        json.loads((folder / "gp/seed0/results.json").read_text())["front"]["points"][0]
        | {"violation": 3.0}
    ]
    (empty / "results.json").write_text(json.dumps(results))
    found = compare([*paths(folder), empty])
    row = next(m for m in found.measures if m.run.seed == "9")
    assert (row.hypervolume, row.igd, row.igd_plus, row.front) == (0.0, None, None, 0)
    assert any("no measured point that keeps" in note for note in found.notes)
    with pytest.raises(UserError, match="no point that was measured"):
        compare([empty])


def test_a_run_without_a_front_enters_with_its_chosen_merge(folder: Path, tmp_path: Path) -> None:
    one = fronts.make(tmp_path / "weighted" / "seed0", optimizer="weighted")
    results = json.loads((one / "results.json").read_text())
    del results["front"]
    (one / "results.json").write_text(json.dumps(results))
    found = compare([*paths(folder), one])
    assert any("1 of 13 runs have no front" in note for note in found.notes)
    assert [m.front for m in found.measures if m.run.optimizer == "weighted"] == [1]


def test_one_objective_is_compared_by_held_out_score(tmp_path: Path) -> None:
    made = plain(tmp_path, "cma_es", [0.6, 0.62, 0.64]) + plain(tmp_path, "tpe", [0.5, 0.52, 0.51])
    found = compare(made)
    assert not found.several
    assert [g.label for g in found.groups] == ["cma_es", "tpe"]
    assert [s.main.value for s in found.summaries] == pytest.approx([0.62, 0.51])
    assert found.tests.pairs[0].p == pytest.approx(0.1)
    assert "Too few seeds" in found.tests.warnings[0]
    assert found.bands[0].rows[-1][0] == 32  # the shortest of the three
    assert set(comparison_charts(found)) == {"values", "bands"}
    text = Reader(render_comparison(found)).text
    assert "62.0% [57.0%, 67.0%]" in text
    assert "+11.0 percentage points" in text
    with pytest.raises(UserError, match="several objectives"):
        compare(made, {"jp_math": 0.1})


def test_listed_and_unlisted_plain_objectives_are_the_same(tmp_path: Path) -> None:
    old = plain(tmp_path, "old", [0.6])
    new = plain(tmp_path, "new", [0.6], objectives=[fronts.ACCURACY], optimizer="new")
    assert compare(old + new).left_out == ()


def test_files_of_a_comparison(folder: Path, tmp_path: Path) -> None:
    page = write_comparison(paths(folder), tmp_path / "deep" / "out")
    assert page == tmp_path / "deep" / "out" / "comparison.html"
    rows = list(csv.DictReader(io.StringIO((page.parent / "comparison.csv").read_text())))
    assert len(rows) == 36
    first = rows[0]
    assert list(first)[:4] == ["experiment", "optimizer", "seed", "budget"]
    assert (first["optimizer"], first["seed"], first["budget"]) == ("gp", "0", "20")
    assert 0 <= float(first["hypervolume"]) <= 1
    models = json.loads((folder / "gp/seed0/results.json").read_text())["models"]
    chosen = models["evolved merge"]["objectives"]["test"]
    assert float(first["test:length"]) == chosen["length"]
    assert first["run"] == "gp/seed0"
    assert str(folder) not in page.read_text()


def test_common_parent(tmp_path: Path) -> None:
    assert common_parent([tmp_path / "a" / "b", tmp_path / "a" / "c"]) == tmp_path / "a"
    assert common_parent([tmp_path / "a", tmp_path / "a" / "c"]) == tmp_path
    assert common_parent([tmp_path / "a"]) == tmp_path


@pytest.fixture(scope="module")
def compared(folder: Path) -> Comparison:
    return compare(paths(folder))


def test_terminal_table_fits(compared: Comparison) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(comparison_table(compared))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    main = compared.summaries[-1].main
    assert main.value is not None
    assert main.high is not None
    assert any(f"{main.value:.3f}±{main.high - main.value:.3f}" in line for line in lines)


def test_markdown_table(compared: Comparison) -> None:
    lines = comparison_markdown(compared).splitlines()
    assert lines[0] == "| Group | Candidates | Seeds | Hypervolume | IGD | IGD+ | Front size |"
    assert len([line for line in lines if line.startswith("|")]) == 2 + 9


@pytest.mark.slow
def test_charts_of_a_comparison_are_valid_vega_lite(tmp_path: Path) -> None:
    altair = pytest.importorskip("altair")
    several = [
        fronts.make(tmp_path / f"c{seed}", seed=seed, candidates=12, budgets=(6, 12))
        for seed in range(2)
    ]
    single = plain(tmp_path, "a", [0.5, 0.6]) + plain(tmp_path, "b", [0.5])
    for made in (several, single):
        for spec in comparison_charts(compare(made)).values():
            altair.Chart.from_dict(spec, validate=True)


def test_nothing_of_hostile_runs_becomes_markup(tmp_path: Path) -> None:
    evil = f"{runs.EVIL}<img src=x onerror=alert(2)>"
    objectives = [fronts.ACCURACY | {"name": evil}, fronts.LENGTH]
    made = []
    for at in range(3):
        run = fronts.make(tmp_path / f"<b>{at}", objectives, optimizer=f"{evil} {at % 2}", seed=at)
        results = json.loads((run / "results.json").read_text()) | {"experiment": evil}
        (run / "results.json").write_text(json.dumps(results))
        made.append(run)
    found = compare(made)
    page = render_comparison(found)
    assert runs.EVIL not in page
    reader = Reader(page)
    assert not {"img", "b"} & set(reader.tags)
    assert reader.text.count(runs.EVIL) >= 10

    def outside_of_data(node: object) -> str:
        if isinstance(node, dict):
            return "".join(f"{k} {outside_of_data(v)}" for k, v in node.items() if k != "data")
        return "".join(map(outside_of_data, node)) if isinstance(node, list) else str(node)

    charts = comparison_charts(found)
    assert "alert" in json.dumps(charts)
    assert "alert" not in outside_of_data(charts)
    assert "<script" not in comparison_markdown(found)
