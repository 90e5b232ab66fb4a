"""Two stages: a merge found in parameter space is a source of a search in data-flow space."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from studies import journal, quick_config

from evomerge.check import check
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.cli import compose_config
from evomerge.errors import ConfigError, SourceError
from evomerge.merging import merge_command
from evomerge.progress import Progress
from evomerge.recipe import Recipe, Route, Slot, Source
from evomerge.recipe.bundle import bundled
from evomerge.setup import make_setup
from evomerge.study import run_study
from evomerge.workers import TEMPLATE, template_recipe
from evomerge.zoo import zoo_path

BASE, MATH, JAPANESE = (str(zoo_path(f"models/{n}")) for n in ("base", "math", "japanese"))


def run(run_dir: Path, *overrides: str) -> dict[str, Any]:
    return run_study(make_setup(quick_config(run_dir, *overrides)), Progress(quiet=True))


def hybrid(merge: Path, *overrides: str) -> tuple[str, ...]:
    return ("+experiment=jp_math_hybrid_tiny", f"models.sources.merge={merge}", *overrides)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short study in parameter space."""
    run_dir = tmp_path_factory.mktemp("first") / "run"
    run(run_dir, "budget.candidates=3", "pool.check=false")
    return run_dir


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    sources = (Source(MATH, {"weight": 0.7}), Source(JAPANESE, {"weight": 0.6}))
    path = tmp_path / "recipe.yaml"
    path.write_text(Recipe("ties", sources, BASE, {"density": 0.5}).to_yaml())
    return path


def test_the_result_of_a_study_is_a_source_of_the_next(first: Path, tmp_path: Path) -> None:
    """By its recipe; the run_dir stands for its written model, with the same outcome."""
    few = ("budget.candidates=4", "space.indicators=integer", "pool.check=false")
    recipe = first / "best" / "recipe.yaml"
    found = run(tmp_path / "a", *hybrid(recipe, *few))
    assert {n for n, m in found["models"].items() if m["role"] == "source"} == {
        "base", "merge", "math",
    }  # fmt: skip
    best = Recipe.from_yaml(tmp_path / "a/best/recipe.yaml")
    (copy,) = (tmp_path / "a/best").glob("merge-*.yaml")
    assert best.base == str(copy) and best.route is not None
    assert {s.model for s in best.route.slots} <= {str(copy), MATH}
    assert Recipe.from_yaml(copy) == Recipe.from_yaml(recipe)
    assert not (tmp_path / "a" / TEMPLATE).exists()
    scores = {
        e["name"]: e["scores"]["jp_math_tiny"]["validation"]["score"]
        for e in journal(tmp_path / "a")
        if e["event"] == "measure" and e["role"] == "finalist"
    }
    assert "search finalist start" in scores  # the first stage's own blocks may win
    again = run(tmp_path / "b", *hybrid(first, *few))
    for name in ("merge", "best merge"):
        assert found["models"][name]["scores"] == again["models"][name]["scores"]


def test_a_genome_without_a_route_is_a_failed_candidate(first: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    few = (
        "budget.candidates=6", "space.indicators=integer", "space.min_blocks=5", "optimizer=sobol",
        "space.repeats=1",
        "pool.check=false", "++task.test.limit=3", "finalists=1", "space.scale=null",
        "+objectives.quality.task=jp_math_tiny", "+objectives.cost.metric=blocks",
    )  # fmt: skip
    found = run(run_dir, *hybrid(first / "best/recipe.yaml", *few))
    results = [e for e in journal(run_dir) if e["event"] == "result"]
    failed = [e["reason"] for e in results if e["status"] == "failed"]
    assert 0 < len(failed) == found["cost"]["failed"] < len(results)
    assert all("route.slots: found []; expected a list of at least one slot" in r for r in failed)
    assert {e["values"]["cost"] for e in results if e["status"] == "ok"} <= {5.0, 6.0}


def test_a_recipe_is_the_model_that_it_would_write(recipe_file: Path, tmp_path: Path) -> None:
    merger = Merger(threads=1)
    write_checkpoint(Recipe.from_yaml(recipe_file), merger, tmp_path / "model")
    held, written = merger.checkpoint(str(recipe_file)), merger.checkpoint(str(tmp_path / "model"))
    assert held.shapes == written.shapes
    for name in written.names:
        assert torch.equal(held.tensor(name), written.tensor(name))
        assert held.tensor(name) is held.tensor(name)  # computed once
    slots = [(3, 1.0), (0, 0.8), (0, 1.2)]
    made = [
        dict(
            merger.merge(
                Recipe("passthrough", route=Route(tuple(Slot(ref, n, s) for n, s in slots)))
            )
        )
        for ref in (str(recipe_file), str(tmp_path / "model"))
    ]
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert held.fingerprint == Recipe.from_yaml(recipe_file).digest(
        {ref: merger.checkpoint(ref).fingerprint for ref in (BASE, MATH, JAPANESE)}
    )


def test_a_result_needs_no_file_of_the_stage_before(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder can be moved, and merged wherever its models are; the card shows all of it."""
    stage = tmp_path / "stage"
    shutil.copytree(first, stage)
    few = ("budget.candidates=3", "space.indicators=integer", "pool.check=false", "finalists=1")
    run(tmp_path / "run", *hybrid(stage / "best/recipe.yaml", *few))
    text = (tmp_path / "run/best/recipe.yaml").read_text()
    (copy,) = (tmp_path / "run/best").glob("merge-*.yaml")
    card = (tmp_path / "run/best/model/README.md").read_text()
    assert f"`{copy.name}` in it:" in card
    assert set(copy.read_text().splitlines()[:2]) <= set(card.splitlines())
    assert str(stage) not in text + copy.read_text() + card
    shutil.copytree(tmp_path / "run/best", tmp_path / "moved")
    shutil.rmtree(stage)
    shutil.rmtree(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for out, recipe in (("again", "moved/recipe.yaml"), ("thrice", "again/recipe.yaml")):
        assert merge_command([recipe, out]) == 0
        for name in ("model.safetensors", "config.json"):
            assert Path(out, name).read_bytes() == Path("moved/model", name).read_bytes()
        assert Path(out, "recipe.yaml").read_text() == text
        assert Path(out, copy.name).read_text() == Path("moved", copy.name).read_text()


def test_a_result_begins_a_study_over_its_space(first: Path, tmp_path: Path) -> None:
    """Though it names a copy of the recipe that the space names."""
    few = ("budget.candidates=3", "space.indicators=integer", "pool.check=false", "finalists=1")
    source = first / "best/recipe.yaml"
    run(tmp_path / "run", *hybrid(source, *few))
    best = tmp_path / "run/best/recipe.yaml"
    begun = make_setup(
        quick_config(tmp_path / "next", *hybrid(source, *few, f"warm_start.recipes=[{best}]"))
    )
    (genome,) = begun.start.anchors
    found, wanted = begun.space.decode(genome), Recipe.from_yaml(best)
    assert found.models()[0] == str(source) and wanted.models()[0] != str(source)
    identities = begun.merger.identities
    assert found.digest(identities(found)) == wanted.digest(identities(wanted))


def test_recipe_files_in_recipe_files_are_copied(recipe_file: Path, tmp_path: Path) -> None:
    """References to recipe files are looked up beside the recipe first."""
    middle = tmp_path / "middle" / "recipe.yaml"
    middle.parent.mkdir()
    nested = Recipe(
        "linear", (Source(str(recipe_file), {"weight": 0.5}), Source(MATH, {"weight": 1}))
    )
    outer = Recipe(
        "linear", (Source(str(middle), {"weight": 1.0}), Source(nested, {"weight": 2.0}))
    )
    middle.write_text(nested.to_yaml())
    merger = Merger(threads=1)
    text, files = bundled(outer, merger.identities)
    assert len(files) == 2 and text == bundled(outer, merger.identities)[0]
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name, content in {**files, "outer.yaml": text}.items():
        assert str(tmp_path) not in content
        (bundle / name).write_text(content)
    read = Recipe.from_yaml(bundle / "outer.yaml")
    assert read.models()[0].startswith(str(bundle))
    assert read.digest(merger.identities(read)) == outer.digest(merger.identities(outer))
    assert bundled(read, merger.identities) == (text, files)
    for (name, one), (_, other) in zip(merger.merge(outer), merger.merge(read), strict=True):
        assert torch.equal(one, other), name


def test_a_recipe_without_recipe_files_stands_alone(recipe_file: Path) -> None:
    recipe = Recipe.from_yaml(recipe_file)
    identities = Merger(threads=1).identities
    assert bundled(recipe, identities) == (recipe.to_yaml(identities(recipe)), {})


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        quick_config(tmp_path / "run", *hybrid(tmp_path / "no" / "recipe.yaml"))
    (problem,) = raised.value.problems
    assert problem.field == "models.sources.merge" and "no file" in problem.found
    assert "Run the study first" in problem.remedy
    with pytest.raises(SourceError, match=r"no file nowhere\.yaml"):
        Merger().checkpoint("nowhere.yaml", "route.slots[0].model")


def test_a_recipe_that_contains_itself_is_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one.yaml", tmp_path / "other.yaml"
    one.write_text(Recipe("linear", (Source(str(other), {"weight": 1.0}),)).to_yaml())
    other.write_text(Recipe("linear", (Source(str(one), {"weight": 1.0}),)).to_yaml())
    with pytest.raises(SourceError, match="contains itself"):
        Merger().checkpoint(str(one))


def test_check_verifies_a_recipe_as_a_source(recipe_file: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert check(quick_config(tmp_path / "run", *hybrid(recipe_file)), said.append) == []
    assert "models: 3 checkpoints" in " ".join(said)
    text = recipe_file.read_text().replace("ties", "tiess")
    recipe_file.write_text(text)
    problems = check(quick_config(tmp_path / "run", *hybrid(recipe_file)))
    assert problems and "tiess" in str(problems[0])


def test_blocks_are_no_objective_where_all_merges_have_as_many(tmp_path: Path) -> None:
    config = quick_config(
        tmp_path / "run", "+objectives.quality.task=jp_math_tiny", "optimizer=nsga2",
        "+objectives.cost.metric=blocks",
    )  # fmt: skip
    (problem,) = check(config)
    assert problem.field == "objectives" and "space=routes" in problem.remedy


@pytest.mark.parametrize(("depth", "wanted"), [("null", None), ("3", None), ("6", 6)])
def test_engines_of_another_depth_start_on_a_template(
    tmp_path: Path, depth: str, wanted: int | None
) -> None:
    config = quick_config(tmp_path / "run", "+experiment=jp_math_dfs_tiny", f"space.depth={depth}")
    merger = Merger(threads=1)
    recipe = template_recipe(config, merger)
    if wanted is None:
        assert recipe is None
    else:
        assert recipe is not None
        assert merger.assemble(recipe).config["num_hidden_layers"] == wanted
    assert template_recipe(quick_config(tmp_path / "run"), merger) is None


def test_the_published_settings_pass_on_local_models(tmp_path: Path) -> None:
    """jp_math_dfs and jp_math_hybrid with the zoo's models and problems in the others' place."""
    rows = [json.loads(x) for x in zoo_path("data/jp_math.jsonl").read_text().splitlines()[:130]]
    for name, part in (("search", rows[:120]), ("test", rows[120:])):
        lines = [json.dumps({k: str(r[k]) for k in ("question", "answer")}) for r in part]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    for experiment, sources in (
        ("jp_math_dfs", {"abel": MATH, "shisa_gamma": JAPANESE}),
        ("jp_math_hybrid", {"merge": MATH, "shisa_gamma": JAPANESE}),
    ):
        config = compose_config([
            f"+experiment={experiment}", f"run_dir={tmp_path / experiment}",
            "engine=transformers", "executor=serial", "executor.threads=1",
            f"models.base={BASE}",
            *(f"models.sources.{k}={v}" for k, v in sources.items()),
            f"task.search.path={tmp_path / 'search.jsonl'}",
            f"task.test={{path: {tmp_path / 'test.jsonl'}}}", "engine.max_model_len=256",
            "executor.gpus_per_worker=0",
        ])  # fmt: skip
        said: list[str] = []
        assert check(config, said.append) == []
        assert config["optimizer"]["population"] == 128 and config["space"]["repeats"] == 3
        assert "search: 48 dimensions" in said
