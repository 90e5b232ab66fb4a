"""Matings of the zoo's models: what a genome merges to, and studies that search among them."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from studies import items, journal, quick_config, results

from evomerge.checkpoints.checking import check_recipe
from evomerge.checkpoints.flat import FlatOrder
from evomerge.checkpoints.gram import PrefixGram
from evomerge.checkpoints.lazy_gram import LazyGram
from evomerge.checkpoints.merger import Merger
from evomerge.errors import ConfigError, SourceError
from evomerge.journal import read_events
from evomerge.mating import Mating
from evomerge.pieces import ANGLES, INTERPOLATIONS
from evomerge.progress import Progress
from evomerge.recipe import Recipe, Source
from evomerge.setup import make_setup
from evomerge.spaces.pieces_space import PiecesSpace
from evomerge.study import run_study
from evomerge.zoo import zoo_path

BASE = str(zoo_path("models/base"))
SOURCES = {n: str(zoo_path(f"models/{n}")) for n in ("math", "japanese")}
MERGER = Merger(threads=1)
ORDER = FlatOrder.of(MERGER.checkpoint(BASE))
FAMILY = (
    Mating.of_seed(0),
    Mating.of_seed(1),
    Mating(2, 0, 1, 0.3, 0.4),
    Mating(3, 2, 1, 0.8, 0.9),
    Mating(4, 3, 2, 0.55, 0.1234),
)


@pytest.fixture
def space(tmp_path):
    def make(**changes):
        def grams(refs):
            return LazyGram([MERGER.checkpoint(r) for r in refs], tmp_path / "gram.npz")

        made = {"base": BASE, "sources": SOURCES, "groups": {}, "grams": grams, **changes}
        return PiecesSpace(**made)

    return make


def flat(ref):
    model = MERGER.checkpoint(ref)
    return np.concatenate([model.tensor(n).double().numpy().ravel() for n in ORDER.names])


def merged(recipe):
    """All parameters of a merge in float64, end to end."""
    tensors = dict(MERGER.merge(Recipe.from_dict(recipe.to_dict())))
    return np.concatenate([tensors[n].double().numpy().ravel() for n in ORDER.names])


def slerp(t, x, y, angle):
    return (math.sin((1 - t) * angle) * x + math.sin(t * angle) * y) / math.sin(angle)


def angle_between(x, y):
    return math.acos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def child(one, x, y, angle, interpolation):
    """The paper's child of two whole vectors."""
    s = round(one.split * len(x))
    out = np.empty_like(x)
    for part, t in ((slice(0, s), one.share), (slice(s, None), 1 - one.share)):
        a, b = x[part], y[part]
        if interpolation == "lerp":
            out[part] = (1 - t) * a + t * b
        else:
            turn = angle_between(x, y) if angle == "global" else angle_between(a, b)
            out[part] = slerp(t, a, b, turn) if math.cos(turn) < 0.9995 else (1 - t) * a + t * b
    return out


@pytest.mark.parametrize(
    ("angle", "interpolation"),
    [*((angle, "slerp") for angle in ANGLES), ("segment", "lerp")],
)
def test_descendants_are_those_of_real_vectors(space, angle, interpolation):
    """Three generations; the only differences are float32's rounding of the merged tensors."""
    made = space(angle=angle, interpolation=interpolation, dtype="float32")
    vectors = [flat(ref) for ref in SOURCES.values()]
    for one in FAMILY:
        found = merged(made.decode(one.to_genome()))
        if not one.is_seed:
            vectors.append(
                child(one, vectors[one.first], vectors[one.second], angle, interpolation)
            )
        np.testing.assert_allclose(found, vectors[one.member], rtol=3e-7, atol=3e-8)


def test_seeds_are_the_sources_bit_for_bit(space):
    made = space()
    for genome, ref in zip(made.anchors(), SOURCES.values(), strict=True):
        recipe = made.decode(genome)
        check_recipe(recipe, strict=True)
        tensors = dict(MERGER.merge(recipe))
        own = MERGER.checkpoint(ref)
        assert all(torch.equal(tensors[name], own.tensor(name)) for name in own.names)


def test_the_base_may_be_the_first_seed(space):
    made = space(include_base=True)
    assert made.seeds == 3
    assert [s.model for s in made.decode(made.anchors()[0]).sources] == [BASE, *SOURCES.values()]
    assert np.array_equal(merged(made.decode(made.anchors()[0])), flat(BASE))


def test_a_member_has_at_most_one_interval_more_than_ancestors(space):
    made = space()
    rng = np.random.default_rng(0)
    ancestors = [set(), set()]
    for genome in made.anchors():
        made.decode(genome)
    for number in range(2, 60):
        first, second = (int(n) for n in rng.integers(0, number, 2))
        made.decode(Mating(number, first, second, rng.random(), rng.random()).to_genome())
        ancestors.append(ancestors[first] | ancestors[second] | {number})
        assert len(made.member(number)) <= len(ancestors[number]) + 1


def test_a_genome_is_decoded_after_its_parents(space):
    made = space()
    with pytest.raises(ValueError, match="member 2 was not decoded before"):
        made.decode(FAMILY[3].to_genome())
    made.decode(FAMILY[2].to_genome())  # the seeds are always known
    one = made.decode(FAMILY[3].to_genome())
    assert made.decode(FAMILY[3].to_genome()) == one
    with pytest.raises(ValueError, match="another mating"):
        made.decode(Mating(3, 2, 1, 0.8, 0.91).to_genome())
    with pytest.raises(ValueError, match="seeds"):
        made.decode(Mating.of_seed(9).to_genome())
    with pytest.raises(ValueError, match="seeds"):
        made.decode(Mating(1, 0, 0, 0.5, 0.5).to_genome())
    with pytest.raises(ValueError, match="a mating"):
        made.decode(np.zeros(4))


def test_searches_of_one_study_have_members_of_their_own(space):
    made = space()
    made.decode(FAMILY[2].to_genome())
    other = made.fresh()
    with pytest.raises(ValueError, match="not decoded"):
        other.member(2)
    other.decode(Mating(2, 1, 0, 0.1, 0.2).to_genome())
    assert made.decode(FAMILY[2].to_genome()) != other.decode(Mating(2, 1, 0, 0.1, 0.2).to_genome())


def test_only_members_have_a_genome(space):
    made = space()
    recipes = [made.decode(one.to_genome()) for one in FAMILY]
    for one, recipe in zip(FAMILY, recipes, strict=True):
        assert np.array_equal(made.encode(Recipe.from_dict(recipe.to_dict())), one.to_genome())
    with pytest.raises(ValueError, match="parents"):
        made.fresh().encode(recipes[3])
    with pytest.raises(ValueError, match="parents"):
        made.encode(Recipe("linear", (Source(BASE, {"weight": 1.0}),)))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_inner_products_are_computed_when_needed_and_once(
    space, tmp_path, monkeypatch, interpolation
):
    made = space(interpolation=interpolation)
    for genome in made.anchors():
        made.decode(genome)
    file = tmp_path / "gram.npz"
    assert not file.exists()
    recipe = made.decode(FAMILY[2].to_genome())
    assert file.exists() == (interpolation == "slerp")
    monkeypatch.setattr(PrefixGram, "build", None)
    assert space(interpolation=interpolation).decode(FAMILY[2].to_genome()) == recipe


def test_inner_products_of_other_models_are_computed_anew(space, tmp_path):
    space(include_base=True).decode(Mating(3, 0, 1, 0.5, 0.5).to_genome())
    before = (tmp_path / "gram.npz").read_bytes()
    recipe = space().decode(FAMILY[2].to_genome())
    assert (tmp_path / "gram.npz").read_bytes() != before
    (tmp_path / "gram.npz").unlink()
    assert space().decode(FAMILY[2].to_genome()) == recipe


@pytest.mark.parametrize(
    ("key", "value"),
    [("angle", "acute"), ("interpolation", "nearest"), ("include_base", "no")],
)
def test_wrong_keys(space, key, value):
    with pytest.raises(ConfigError, match=rf"space\.{key}"):
        space(**{key: value})


def test_one_seed_is_not_enough(space):
    with pytest.raises(ConfigError, match="at least two"):
        space(sources={"math": SOURCES["math"]})
    assert space(sources={"math": SOURCES["math"]}, include_base=True).seeds == 2


def test_models_that_lack_a_tensor_are_refused_at_the_start(tmp_path):
    class Narrow:
        def __init__(self, model):
            self.model, self.field, self.ref = model, "models.sources.math", "narrow"
            self.shapes = dict(list(model.shapes.items())[:-1])

        def __getattr__(self, name):
            return getattr(self.model, name)

    seeds = [MERGER.checkpoint(BASE), Narrow(MERGER.checkpoint(SOURCES["math"]))]
    with pytest.raises(SourceError, match="narrow"):
        LazyGram(seeds, tmp_path / "gram.npz").check()


MATINGS = ("space=pieces", "~space.parameters", "optimizer=m2n2")


def run(run_dir, *overrides):
    setup = make_setup(quick_config(run_dir, *MATINGS, "optimizer.population=5", *overrides))
    return run_study(setup, Progress(quiet=True))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("matings") / "run"
    run(run_dir, "budget.candidates=12", "optimizer.batch=4", "controls.random_search=true")
    return run_dir


def asked(run_dir, search="search"):
    events = [e for e in read_events(run_dir) if e["event"] == "ask" and e["search"] == search]
    return [Mating.from_genome(np.array(c["genome"])) for e in events for c in e["candidates"]]


def test_a_study_mates_earlier_candidates(study):
    found = asked(study)
    assert [m.member for m in found] == list(range(12))
    assert [m.is_seed for m in found] == [True] * 3 + [False] * 9
    best = Recipe.from_yaml(study / "best" / "recipe.yaml")
    assert best.method == "pieces" and len(best.sources) == 3
    assert results(study)["models"]


def test_random_search_mates_its_own_candidates(study):
    found = asked(study, "random search")
    assert len(found) == 12
    assert found[:3] == asked(study)[:3] and found[3:] != asked(study)[3:]


def test_a_study_goes_on_from_its_journal_alone(study, tmp_path):
    """Cut with three candidates at work and no file of inner products."""
    lines = (study / "journal.jsonl").read_text().splitlines(keepends=True)
    results_seen = [i for i, line in enumerate(lines) if json.loads(line)["event"] == "result"]
    cut = tmp_path / "cut"
    (cut / "items").mkdir(parents=True)
    kept = lines[: results_seen[6]]
    (cut / "journal.jsonl").write_text("".join(kept))
    for line in kept:
        if (file := json.loads(line).get("file")) is not None:
            (cut / file).write_bytes((study / file).read_bytes())
    run(cut, "budget.candidates=12", "optimizer.batch=4", "controls.random_search=true")
    assert journal(cut) == journal(study)
    assert items(cut) == items(study)


def test_a_larger_budget_goes_on_where_the_smaller_one_ended(tmp_path):
    """One at a time: else the last candidates of the smaller budget see more than they would."""
    once, twice = tmp_path / "once", tmp_path / "twice"
    run(once, "budget.candidates=8", "optimizer.batch=1")
    run(twice, "budget.candidates=4", "optimizer.batch=1")
    (twice / "gram.npz").unlink()
    run(twice, "budget.candidates=8", "optimizer.batch=1")
    searches = [[e for e in journal(d) if e["event"] in ("ask", "result")] for d in (once, twice)]
    assert searches[0] == searches[1] and len(searches[0]) == 16


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("estimator.rotate=true", "estimator.items=6"), "estimator"),
        (
            ("+objectives.short={task: jp_math_tiny, metric: tokens, goal: minimize}",),
            "a score of each item",
        ),
        (("+objectives.a={task: jp_math_tiny, goal: minimize}",), "compete for items"),
        (("optimizer=cma_es",), "m2n2"),
        (("optimizer=gp",), "m2n2"),
        (("space.angle=acute",), "segment or global"),
        (("warm_start.recipes=[RECIPE]",), "no known parents"),
    ],
)
def test_mistakes_are_found_before_anything_is_merged(study, tmp_path, overrides, message):
    overrides = [o.replace("RECIPE", str(study / "best" / "recipe.yaml")) for o in overrides]
    with pytest.raises(ConfigError, match=message):
        make_setup(quick_config(tmp_path, *MATINGS, *overrides))


def test_pairwise_splits_rise(study):
    """Recipes in the journal are whole: breakpoints rise to the number of parameters."""
    best = Recipe.from_yaml(study / "best" / "recipe.yaml")
    ends = (0, *best.pieces.breakpoints)
    assert all(a < b for a, b in pairwise(ends)) and ends[-1] == ORDER.total
