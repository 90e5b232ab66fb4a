"""The `pick` verb on a real study by MAP: choices by brute force, predictions."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from studies import quick_config
from weighted_sums import by_hand

from evomerge.cli import run as command
from evomerge.optimizers.map import Map
from evomerge.predictions import fitted, replayed, surrogate_results
from evomerge.progress import Progress
from evomerge.report.reading import read_run
from evomerge.report.surrogate import predictions_markdown, read_predictions
from evomerge.setup import make_setup
from evomerge.study import run_study
from evomerge.types import Fitness, Observation

TASKS = ("task", "tasks.polite_tiny", "tasks.sort_tiny")
STUDY = (
    "+experiment=map_tiny",
    "optimizer.verify=3",
    "optimizer.design=12",
    "optimizer.population=12",
    "optimizer.generations=4",
    "budget.candidates=18",
    "front.budgets=[]",
    "front.size=6",
    "finalists=2",
    "task.sampling.max_new_tokens=8",
    *(f"++{t}.{s}.limit={n}" for t in TASKS for s, n in (("search", 6), ("validation", 4))),
    *(f"++{t}.test.limit=8" for t in TASKS),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("map") / "run"
    run_study(make_setup(quick_config(run_dir, *STUDY)), Progress(quiet=True))
    return run_dir


@pytest.fixture
def unproved(finished: Path, tmp_path: Path) -> Path:
    """The study as it was before its proof."""
    for name in ("config.yaml", "journal.jsonl"):
        shutil.copy(finished / name, tmp_path / name)
    return tmp_path


def pick(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = command(["pick", *map(str, arguments)])
    shown = capsys.readouterr()
    return code, shown.out + shown.err


def results(run_dir: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((run_dir / "results.json").read_text())


# -- the measured front -----------------------------------------------------------------------


@pytest.mark.parametrize("weights", [{"math": 2.0, "polite": 1.0}, {"sort": 1.0}])
def test_the_choice_has_the_largest_weighted_sum(
    finished: Path, capsys: pytest.CaptureFixture[str], weights: dict[str, float]
) -> None:
    text = ",".join(f"{n}={w}" for n, w in weights.items())
    code, out = pick(capsys, finished, "--prefer", text, "--measured")
    points = results(finished)["front"]["points"]
    sums = by_hand([p["values"]["test"] for p in points], weights)
    order = sorted(range(len(sums)), key=lambda i: (-sums[i], i))
    assert code == 0
    assert f"Choice: {points[order[0]]['name']}, weighted sum {sums[order[0]]:.3f}" in out
    assert f"Runner-up: {points[order[1]]['name']}, weighted sum {sums[order[1]]:.3f}" in out
    chosen = points[order[0]]
    for name, value in chosen["values"]["test"].items():
        interval = f"[{100 * chosen['low'][name]:.1f}%, {100 * chosen['high'][name]:.1f}%]"
        assert re.search(rf"{name} +{re.escape(f'{100 * value:.1f}% {interval}')}", out)
        apart = 100 * abs(value - points[order[1]]["values"]["test"][name])
        said = f"{apart:.1f} percentage points (better|worse)" if apart else "the same"
        assert re.search(f"{said} in {name}", " ".join(out.split()))


def test_bounds_are_kept(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = results(finished)["front"]["points"]
    best = max(p["values"]["test"]["sort"] for p in points)
    arguments = ["--prefer", "math=1", "--at-least", f"sort={best}", "--measured"]
    _, out = pick(capsys, finished, *arguments)
    kept = [p["name"] for p in points if p["values"]["test"]["sort"] >= best]
    assert any(f"Choice: {name}," in out for name in kept)


def test_before_the_proof_search_values_count(
    unproved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = pick(capsys, unproved, "--prefer", "math=1", "--measured")
    told = [json.loads(x) for x in (unproved / "journal.jsonl").read_text().splitlines()]
    best = max(e["values"]["math"] for e in told if e["event"] == "result")
    assert code == 0 and "search items (no proof" in out
    assert re.search(rf"math +{100 * best:.1f}%", out)


def test_the_written_recipe_is_the_candidates(
    finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "one.yaml"
    code, out = pick(capsys, finished, "--prefer", "sort=1", "--measured", "--out", file)
    name = re.search(r"Choice: (candidate \d+)", out)
    point = next(p for p in results(finished)["front"]["points"] if name and p["name"] == name[1])
    assert code == 0
    assert point["digest"] in file.read_text().splitlines()[0]
    weights = [m["parameters"]["weight"] for m in yaml.safe_load(file.read_text())["models"]]
    assert weights == pytest.approx(point["genome"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prefer", "maths=1"], "one of math, polite, sort"),
        (["--prefer", "math"], "'math'"),
        (["--prefer", "math=x"], "a number"),
        (["--prefer", "math=nan"], "a number"),
        (["--prefer", "math=0"], "no weight above 0"),
        (["--prefer", "math=1,polite=-1"], "a weight below 0 for polite"),
        (["--prefer", "math=1", "--at-least", "sort=2"], "the best reachable is"),
        (["--prefer", "math=1", "--at-least", "sort=2", "--measured"], "the best reachable is"),
        (["--prefer", "math=1", "--at-least", "speed=2"], "the objective 'speed'"),
    ],
)
def test_mistakes_are_named(
    finished: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, out = pick(capsys, finished, *arguments)
    assert code == 2 and said in out and "Traceback" not in out


def test_what_is_no_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out = pick(capsys, tmp_path, "--prefer", "math=1")
    assert code == 2 and "neither journal.jsonl nor results.json" in out


def test_a_run_without_results(unproved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (unproved / "journal.jsonl").read_text().splitlines(keepends=True)
    (unproved / "journal.jsonl").write_text("".join(lines[:2]))
    code, out = pick(capsys, unproved, "--prefer", "math=1")
    assert code == 2 and "no candidate with a result" in out


@pytest.mark.parametrize("name", ["none/a.yaml", "."])
def test_a_file_that_cannot_be_written_is_found_first(
    finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    code, out = pick(capsys, finished, "--prefer", "math=1", "--out", tmp_path / name)
    assert code == 2 and out.startswith("1 problem:\n- --out: found ")
    assert "expected a file in a directory that exists\n" in out and "Choice" not in out


@pytest.mark.parametrize(
    ("text", "said"), [("task: [1\n", "line 2"), ("- 1\n", "no mapping"), ("seed: 0\n", "'models'")]
)
def test_a_damaged_config_is_named(
    unproved: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (unproved / "config.yaml").write_text(text)
    code, out = pick(capsys, unproved, "--prefer", "math=1")
    assert code == 2 and "a damaged config.yaml in" in out and said in out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The study with what a test may change."""
    for name in ("config.yaml", "journal.jsonl", "results.json"):
        shutil.copy(finished / name, tmp_path / name)
    shutil.copytree(finished / "items", tmp_path / "items")
    return tmp_path


def change(run_dir: Path, config: dict, **result: object) -> None:  # type: ignore[type-arg]
    """Puts keys into a study's config, and into all results of its journal."""
    own = yaml.safe_load((run_dir / "config.yaml").read_text())
    (run_dir / "config.yaml").write_text(yaml.safe_dump({**own, **config}, sort_keys=False))
    lines = [json.loads(x) for x in (run_dir / "journal.jsonl").read_text().splitlines()]
    for event in lines:
        if event["event"] == "result":
            event |= {k: v(event) if callable(v) else v for k, v in result.items()}
    (run_dir / "journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in lines))


def written(file: Path, run_dir: Path, number: int) -> bool:
    """Whether a recipe is a candidate's."""
    points = results(run_dir)["front"]["points"]
    digest = next(p["digest"] for p in points if p["candidate"] == number)
    return file.is_file() and digest in file.read_text().splitlines()[0]


def test_points_without_a_number_are_left_out(
    copied: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = results(copied)
    points = found["front"]["points"]
    best = max(points, key=lambda p: p["values"]["test"]["sort"])
    best["values"]["test"]["sort"] = 1.0
    best["candidate"] = None
    (copied / "results.json").write_text(json.dumps(found))
    file = tmp_path / "one.yaml"
    arguments = ["--prefer", "sort=1", "--measured", "--out", file]
    code, out = pick(capsys, copied, *arguments)
    assert code == 0 and f"Choice: {best['name']}," not in out
    number = re.search(r"Choice: candidate (\d+)", out)
    assert number is not None and written(file, copied, int(number[1]))


def test_names_of_others_do_not_reach_the_terminal(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (copied / "results.json").read_text().replace('"polite"', '"po\\u001b[31mlite"')
    found = json.loads(text)
    for point in found["front"]["points"]:
        point["name"] += "\x1b]0;title\x07"
    (copied / "results.json").write_text(json.dumps(found))
    for more in (["--measured"], ["--measured", "--at-least", "maths=1"]):
        _, out = pick(capsys, copied, "--prefer", "math=1", *more)
        assert "[31m" in out and "\x1b" not in out and "\x07" not in out
    bounds = ["--at-least", "po\x1b[31mlite=2", "--measured"]
    _, out = pick(capsys, copied, "--prefer", "math=1", *bounds)
    assert "of at least 2: the best reachable" in out and "\x1b" not in out


def test_a_scalarised_study_writes_its_measured_choice(
    copied: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    mean = lambda e: [float(np.mean(e["fitness"]))]  # noqa: E731
    change(copied, {"scalarize": "weighted_sum"}, fitness=mean, stderr=[0.1])
    file = tmp_path / "one.yaml"
    code, out = pick(capsys, copied, "--prefer", "sort=1", "--out", file)
    number = re.search(r"Choice: candidate (\d+)", out)
    assert code == 0 and number is not None and written(file, copied, int(number[1]))
    assert "The surrogate is of one fitness" in out and "the measured choice" in out
    file.unlink()
    bounds = ["--at-least", "sort=2", "--out", file]
    code, out = pick(capsys, copied, "--prefer", "sort=1", *bounds)
    assert code == 2 and "the best reachable is" in out and "one fitness" in out
    assert not file.exists()


def test_a_constraint_that_no_prediction_keeps_is_named(
    copied: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Then what was measured is written."""
    bound = {"constraints": {"manners": {"task": "polite_tiny", "at_least": 0.9}}}
    change(copied, bound, constraints=[0.25])
    file = tmp_path / "one.yaml"
    code, out = pick(capsys, copied, "--prefer", "sort=1", "--out", file)
    number = re.search(r"Choice: candidate (\d+)", out)
    assert code == 0 and number is not None and written(file, copied, int(number[1]))
    assert "the study's constraint manners: all break it, by at least 0.25" in " ".join(out.split())
    assert "all bounds at once" not in out and "the measured choice" in out


def test_a_log_likelihood_beside_the_score_is_not_in_the_predictions(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shown and bounded are raw scores; what the optimiser was told has another unit."""
    arguments = ["--prefer", "polite=1,math=1", "--at-least", "polite=0.05"]
    _, before = pick(capsys, copied, *arguments)
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["tasks"]["polite_tiny"]["loglik_weight"] = 0.5

    def told(event: dict) -> list[float]:  # type: ignore[type-arg]
        values = list(event["fitness"])
        values[1] -= 1.0 + 0.1 * event["id"]
        return values

    def errors(event: dict) -> list[float]:  # type: ignore[type-arg]
        return [event["stderr"][0], 0.7, *event["stderr"][2:]]

    change(copied, {"tasks": config["tasks"]}, fitness=told, stderr=errors)
    _, after = pick(capsys, copied, *arguments)
    assert "polite" in after.split("Predicted from")[1] and after == before


def test_intervals_are_of_the_values_that_are_shown(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the score on its items where the optimiser was told something else."""
    (copied / "results.json").unlink()
    arguments = ["--prefer", "polite=1", "--measured"]
    _, before = pick(capsys, copied, *arguments)

    def told(event: dict) -> list[float]:  # type: ignore[type-arg]
        return [event["fitness"][0], event["fitness"][1] - 1.0, *event["fitness"][2:]]

    change(copied, {}, fitness=told, stderr=lambda event: [0.1, 0.9, 0.1])
    _, after = pick(capsys, copied, *arguments)
    (line,) = (x for x in after.splitlines() if x.startswith("  polite"))
    assert line in before and "[" in line
    shutil.rmtree(copied / "items")
    _, after = pick(capsys, copied, *arguments)
    (line,) = (x for x in after.splitlines() if x.startswith("  polite"))
    assert "[" not in line


# -- surrogates -------------------------------------------------------------------------------


def test_the_answer_of_the_surrogate(
    finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "predicted.yaml"
    code, out = pick(capsys, finished, "--prefer", "math=1,polite=1", "--out", file)
    assert code == 0 and "Predicted from 18 results" in out
    assert "would cost 18 items, about" in out
    setup = make_setup(quick_config(finished, *STUDY))
    model = fitted(setup, read_run(finished).events)
    assert model is not None
    for name, one in zip(("math", "polite", "sort"), model.objectives, strict=True):
        expected = "never changed" if one.r2 is None else f"leave-one-out R2 {one.r2:.2f}"
        assert re.search(rf"{name} .*\({re.escape('standard error')}.*{expected}", out)
    weights = [m["parameters"]["weight"] for m in yaml.safe_load(file.read_text())["models"]]
    genome = re.search(r"Genome: (.*(?:\n  .*)*)", out)
    assert genome is not None
    shown = [float(v) for v in re.findall(r"=(-?[\d.]+)", genome[1])]
    assert shown == pytest.approx(weights, abs=6e-4)
    low, high = model.box
    assert (low <= weights).all() and (weights <= high).all()


def test_a_replay_knows_what_the_study_knew(finished: Path) -> None:
    """Its next proposals are those of an optimiser that took part from the start."""
    setup = make_setup(quick_config(finished, *STUDY))
    events = read_run(finished).events
    optimizer = replayed(setup, events)
    asked = [c["genome"] for e in events if e.get("event") == "ask" for c in e["candidates"]]
    told = {e["id"]: e for e in events if e.get("event") == "result"}
    own = Map(setup.domain, 0)
    own.learn([
        Observation(np.array(g), Fitness(tuple(told[i]["fitness"]), tuple(told[i]["stderr"])))
        for i, g in enumerate(asked)
    ])  # fmt: skip
    points = np.random.default_rng(1).uniform(setup.domain.low, setup.domain.high, (20, 3))
    assert isinstance(optimizer, Map)
    first, second = optimizer.model(), own.model()
    assert first is not None and second is not None
    assert first.means(points) == pytest.approx(second.means(points))


def test_predictions_are_older_than_measurements(finished: Path) -> None:
    """Each is what a model of the earlier results alone predicts."""
    setup = make_setup(quick_config(finished, *STUDY))
    events = read_run(finished).events
    found = results(finished)["surrogate"]
    assert found == surrogate_results(setup, setup.goals, events)
    assert found["unknowns"] == 10 and found["results"] == 18
    assert found["candidates"] == list(range(12, 18))
    told = {e["id"]: e["values"] for e in events if e.get("event") == "result"}
    for start in (12, 15):
        earlier = [e for e in events if e.get("search") != "search" or _number(e) < start]
        model = fitted(setup, earlier)
        asked = next(
            e["candidates"] for e in events
            if e.get("event") == "ask" and e["candidates"][0]["id"] == start
        )  # fmt: skip
        assert model is not None
        means, _ = model.predict(np.array([c["genome"] for c in asked]))
        for place, name in enumerate(("math", "polite", "sort")):
            one = found["objectives"][name]
            rows = slice(start - 12, start - 9)
            assert one["predicted"][rows] == pytest.approx(means[:, place], abs=1e-5)
            values = [told[c["id"]][name] for c in asked]
            assert one["measured"][rows] == pytest.approx(values, abs=1e-6)


def _number(event: dict) -> int:  # type: ignore[type-arg]
    return event["id"] if "id" in event else event["candidates"][0]["id"]


def test_the_report_shows_them(finished: Path) -> None:
    found = results(finished)
    page = (finished / "report.html").read_text()
    assert "Predicted against measured" in page
    run = read_run(finished)
    from evomerge.report.objectives import read_objectives

    objectives = read_objectives(found, run.study)
    table = read_predictions(found, objectives, [12, 13, None, 99])
    assert table is not None and table.verified == 6 and table.front == (12, 13)
    for one in table.surrogates:
        told = found["objectives"] and found["surrogate"]["objectives"][one.objective.name]
        gaps = np.array(told["predicted"]) - np.array(told["measured"])
        assert one.bias == pytest.approx(gaps.mean())
        assert one.error == pytest.approx(np.abs(gaps).mean())
    assert "Leave-one-out R2" in predictions_markdown(found, objectives)
    assert read_predictions({}, objectives, []) is None
    damaged = {"surrogate": {"candidates": 3, "objectives": {"math": {"predicted": ["x"]}}}}
    empty = read_predictions(damaged, objectives, [])
    assert empty is not None and empty.verified == 0
