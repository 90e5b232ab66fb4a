"""Stages: what an earlier study, or recipes, give a study to begin with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.domain import Dimension
from evomerge.errors import ConfigError, UserError
from evomerge.journal import JOURNAL, read_events
from evomerge.objectives import Goals
from evomerge.recipe import Recipe
from evomerge.recipe.bundle import renamed
from evomerge.recipe.references import is_recipe_file
from evomerge.space import SearchSpace
from evomerge.types import Fitness, FloatArray, Observation

MODEL = Path("best") / "model"
RECIPE = Path("best") / "recipe.yaml"


@dataclass(frozen=True)
class Start:
    """What a study begins with.

    Attributes:
        observations: told to the optimiser before it proposes anything.
        mean: where the search begins, instead of the space's own start.
        anchors: genomes that are tried first by optimisers that use anchors.
        said: a sentence about it for the user.
    """

    observations: tuple[Observation, ...] = ()
    mean: FloatArray | None = None
    anchors: tuple[FloatArray, ...] = ()
    said: str = ""

    @property
    def digest(self) -> str:
        """Of everything but the sentence; empty if there is nothing."""
        if not self.observations and self.mean is None and not self.anchors:
            return ""
        sha = hashlib.sha256()
        for o in self.observations:
            fitness = None if o.fitness is None else (o.fitness.values, o.fitness.constraints)
            sha.update(repr((o.genome.tolist(), fitness)).encode())
        mean = None if self.mean is None else self.mean.tolist()
        sha.update(repr((mean, [g.tolist() for g in self.anchors])).encode())
        return sha.hexdigest()[:16]

    def begin(self, dimensions: Sequence[Dimension]) -> tuple[Dimension, ...]:
        """The dimensions with the mean as their start."""
        if self.mean is None:
            return tuple(dimensions)
        return tuple(
            replace(d, start=float(value)) for d, value in zip(dimensions, self.mean, strict=True)
        )


def read_start(node: Mapping[str, Any], space: SearchSpace, goals: Goals) -> Start:
    """Reads what the config's `warm_start` names.

    Raises:
        ConfigError: for a run over other dimensions or with other objectives, and for recipes
            that the space cannot say.
        JournalError: for a directory that is no study's.
    """
    start = Start()
    if node["run"] is not None:
        start = _from_run(Path(node["run"]), node, space, goals)
    recipes = [_genome(Path(path), space) for path in node["recipes"]]
    if not recipes:
        return start
    first = recipes[0] if node["mean"] else None
    return replace(
        start,
        mean=first if start.mean is None else start.mean,
        anchors=(*start.anchors, *recipes),
        said=f"{start.said} {len(recipes)} recipes are among the first candidates".strip(),
    )


def resolve_runs(models: Mapping[str, Any]) -> dict[str, Any]:
    """Lets a study's run_dir stand for the merge that it chose, as the base or a source.

    The written model if it is there, else its recipe.

    Raises:
        ConfigError: for a study that has not chosen yet, and for a recipe that is not there.
    """
    fields = {"models.base": models["base"]}
    fields |= {f"models.sources.{name}": ref for name, ref in models["sources"].items()}
    resolved = {}
    for field, ref in fields.items():
        if isinstance(ref, str) and (Path(ref) / JOURNAL).is_file():
            written = [p for p in (MODEL, RECIPE) if (Path(ref) / p).exists()]
            if not written:
                raise ConfigError.of(
                    field, f"{ref}, a study without a result", "a study that has come to its end",
                    "Run it to its end first, or name a model.",
                )  # fmt: skip
            ref = str(Path(ref) / written[0])
        elif isinstance(ref, str) and is_recipe_file(ref) and not Path(ref).is_file():
            raise ConfigError.of(
                field, f"no file {ref}", "a recipe that is there",
                "Run the study first whose result it is, or set another: "
                f"{field}=RECIPE, MODEL or RUN_DIR.",
            )  # fmt: skip
        resolved[field] = ref
    base = resolved.pop("models.base")
    return {
        **models,
        "base": base,
        "sources": dict(zip(models["sources"], resolved.values(), strict=True)),
    }


def _from_run(run: Path, node: Mapping[str, Any], space: SearchSpace, goals: Goals) -> Start:
    events = read_events(run)
    study = events[0] if events else {}
    _check_run(run, study, space, goals)
    genomes = {
        c["id"]: np.array(c["genome"], dtype=np.float64)
        for e in events
        if e["event"] == "ask" and e["search"] == "search"
        for c in e["candidates"]
    }
    low = np.array([d.low for d in space.dimensions])
    high = np.array([d.high for d in space.dimensions])
    told: list[Observation] = []
    stopped: set[int] = set()
    outside = 0
    for event in events:
        if event["event"] != "result" or event["search"] != "search":
            continue
        genome = genomes[event["id"]]
        if (genome < low).any() or (genome > high).any():
            outside += 1
            continue
        fitness = None
        if event["status"] == "ok":
            limits = tuple(event.get("constraints", ()))
            fitness = Fitness(tuple(event["fitness"]), tuple(event["stderr"]), limits)
        if event.get("complete") is False:
            stopped.add(len(told))
        told.append(Observation(genome, fitness))
    good = [o for o in told if o.fitness is not None]
    if not good:
        raise ConfigError.of(
            "warm_start.run", f"{run}, without a candidate that succeeded within these bounds",
            "at least one", "Name another run, or widen the bounds.",
        )  # fmt: skip
    # What a race stopped early was seen on few items, which may have been lucky ones.
    whole = [o for i, o in enumerate(told) if o.fitness is not None and i not in stopped]
    best = max(whole or good, key=_rank)
    said = f"{run}: {len(told)} candidates are known" if node["observations"] else ""
    if outside and said:
        said += f", {outside} lie outside the bounds and are left out"
    return Start(
        tuple(told) if node["observations"] else (),
        best.genome if node["mean"] else None,
        (),
        said,
    )


def _rank(observation: Observation) -> tuple[bool, float]:
    fitness = observation.fitness
    if fitness is None:
        return False, float("-inf")
    return fitness.feasible, sum(fitness.values) if fitness.feasible else -fitness.violation


def _check_run(run: Path, study: Mapping[str, Any], space: SearchSpace, goals: Goals) -> None:
    found = [
        (d["name"], tuple(d.get("choices", ())))
        for d in study.get("space", {}).get("dimensions", [])
    ]
    own = [(d.name, d.choices) for d in space.dimensions]
    if found != own:
        differ = sorted({name for name, _ in {*found} ^ {*own}})
        raise ConfigError.of(
            "warm_start.run", f"{run}, a study over {len(found)} dimensions"
            + (f" ({', '.join(differ[:3])} differ)" if differ else " in another order"),
            f"the {len(own)} dimensions of this study",
            "Use its space and sources, or use its best merge as a source: "
            f"+models.sources.first={run}.",
        )  # fmt: skip
    told = {
        "objectives": [_unnamed(o, goals.scalarize) for o in study.get("objectives", [])],
        "scalarize": study.get("scalarize"),
        "constraints": [_unnamed(c, "") for c in study.get("constraints", [])],
    }
    wanted = {
        "objectives": [_unnamed(asdict(o), goals.scalarize) for o in goals.objectives],
        "scalarize": goals.scalarize,
        "constraints": [_unnamed(asdict(c), "") for c in goals.constraints],
    }
    if told != wanted:
        raise ConfigError.of(
            "warm_start.run", f"{run}, a study with other objectives or constraints", "the same",
            "Give this study the same ones, or begin with its best merge: "
            f"warm_start.recipes=[{run}/best/recipe.yaml].",
        )  # fmt: skip


def _unnamed(node: Mapping[str, Any], weighted: object) -> dict[str, Any]:
    """What an objective or a constraint means to an optimiser; weights only where they count."""
    left_out = {"name"} if weighted else {"name", "weight"}
    return {key: value for key, value in node.items() if key not in left_out}


def _genome(path: Path, space: SearchSpace) -> FloatArray:
    recipe = _as_spoken(Recipe.from_yaml(path), space)
    try:
        genome = space.encode(recipe)
        same = space.decode(genome).to_dict() == recipe.to_dict()
    except (UserError, ValueError, KeyError, TypeError) as error:
        raise _unlike(path, str(error)) from error
    if not same:
        raise _unlike(path, "a merge that this space cannot say")
    outside = [
        d.name for d, value in zip(space.dimensions, genome, strict=True)
        if not d.low <= value <= d.high
    ]  # fmt: skip
    if outside:
        raise _unlike(path, f"{outside[0]} outside its bounds")
    return genome


def _as_spoken(recipe: Recipe, space: SearchSpace) -> Recipe:
    """The recipe with the space's own references to recipe files, if it names their copies."""
    named = [ref for ref in recipe.models() if is_recipe_file(ref) and Path(ref).is_file()]
    if not named:
        return recipe
    own: dict[str, str] = {}
    corners = [[getattr(d, at) for d in space.dimensions] for at in ("start", "low", "high")]
    for genome in (*map(np.array, corners), *space.anchors()):
        try:
            models = space.decode(genome).models()
        except UserError:  # a route without a block, say
            continue
        own |= {_content(Path(ref)): ref for ref in models if is_recipe_file(ref)}
    contents = {ref: _content(Path(ref)) for ref in named}
    return renamed(recipe, {ref: own[text] for ref, text in contents.items() if text in own})


def _content(path: Path) -> str:
    """Digest of a recipe file, in which recipe files that it names are replaced by theirs."""
    recipe = Recipe.from_yaml(path)
    return recipe.digest({r: _content(Path(r)) for r in recipe.models() if is_recipe_file(r)})


def _unlike(path: Path, found: str) -> ConfigError:
    return ConfigError.of(
        "warm_start.recipes", f"{path}: {found}",
        "a recipe of this space: the same operator, base, sources and layer groups",
        "Take it from a study over the same space, or use its merge as a source.",
    )  # fmt: skip
