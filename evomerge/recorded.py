"""A study as its run directory has it: its config, its unchanged models, its candidates by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evomerge.checkpoints.merger import Merger
from evomerge.config import Config as Schema
from evomerge.controls import CONTROLS, RANDOM_SEARCH
from evomerge.errors import ConfigError, JournalError, Problem, RecipeError, SourceError, UserError
from evomerge.markdown import printable
from evomerge.recipe import Recipe
from evomerge.recipe.bundle import renamed
from evomerge.report.candidates import CandidateRecord, candidate_records, find_best
from evomerge.report.reading import Json, RunFiles, mapping, read_run
from evomerge.setup import Config, control_recipes, make_space, source_recipes
from evomerge.soups import SoupSpace
from evomerge.space import SearchSpace

BEST = "best"
"""What the command line calls the study's choice, or the best so far while there is none."""

_NUMBER = re.compile(r"(?:candidate |.* finalist )?(\d+)")
_SHOWN = 12  # hex digits of a fingerprint in a message


@dataclass(frozen=True)
class Chosen:
    """A candidate, or another model of a study, by the name that somebody gave it.

    Attributes:
        name: in words, such as `candidate 7` or `best merge`.
        recipe: its merge.
        digest: of the recipe.
        number: the candidate's number; None of sources, fixed controls, and merges that no
            candidate was.
        subject: its name in `results.json`; empty if it is not among the models there.
        note: what the reader has to know of the choice; may be empty.
    """

    name: str
    recipe: Recipe
    digest: str
    number: int | None = None
    subject: str = ""
    note: str = ""


@dataclass(frozen=True)
class Recorded:
    """A study that has been run, or runs.

    Attributes:
        run_dir: its directory.
        files: what it holds.
        config: as the study wrote it, with the models where they are now.
        merger: holds the open models, which are those that the study used.
        moved: what models were called then, and where they are now.
    """

    run_dir: Path
    files: RunFiles
    config: Config
    merger: Merger
    moved: Mapping[str, str] = field(default_factory=dict)

    @property
    def results(self) -> Json:
        """`results.json`, empty while there is none."""
        return self.files.results or {}

    @cached_property
    def fixed(self) -> dict[str, Recipe]:
        """Sources and those controls that need no search, by name."""
        return {**source_recipes(self.config), **control_recipes(self.config)}

    def identify(self, recipe: Recipe) -> str:
        """The digest of a recipe by the content of its models."""
        return recipe.digest(self.merger.identities(recipe))


def read_config(run_dir: Path, text: str) -> dict[str, Any]:
    """The config that a study wrote, with its run directory where that is now.

    Raises:
        UserError: if it is missing or damaged.
    """
    found, cause = f"no config.yaml in {run_dir}", None
    damaged = f"a damaged config.yaml in {run_dir}"
    try:
        config = yaml.safe_load(text) if text else None
        if isinstance(config, dict) and isinstance(config.get("models"), dict):
            return {**_completed(config), "run_dir": str(run_dir)}
        if text:
            lack = "without 'models'" if isinstance(config, dict) else "which is no mapping"
            found = f"{damaged}, {lack}"
    except yaml.YAMLError as error:
        found, cause = f"{damaged}: {printable(str(error))}", error
    raise UserError.of(
        "run directory", found, "the one that the study wrote",
        "Run the study's command again; it writes the file anew.",
    ) from cause  # fmt: skip


def _completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of an earlier version, with defaults for keys that came later."""
    out = dict(config)
    for key, default in asdict(Schema()).items():
        given = config.get(key, default)
        both = isinstance(default, dict) and isinstance(given, dict)
        out[key] = {**default, **given} if both else given
    return out


def open_recorded(run_dir: Path, models: Sequence[str] = ()) -> Recorded:
    """Opens a study with its models, which may lie elsewhere now.

    Args:
        run_dir: where the study is.
        models: `NAME=PATH` for each model (a source's name, or base) that was moved.

    Raises:
        UserError: if there is no study, or its config is damaged.
        ConfigError: for a model that the study does not have.
        SourceError: with all models that are missing or have other weights than then.
    """
    files = read_run(run_dir)
    config = read_config(run_dir, files.config)
    if not files.study:
        raise UserError.of(
            str(run_dir), "no journal of a study", "journal.jsonl as the study wrote it",
            "Give the run directory itself, not a part of it.",
        )  # fmt: skip
    config["models"], moved = _moved(config["models"], models)
    merger = Merger()
    _check_models(config, merger, mapping(files.study.get("identities")))
    return Recorded(run_dir, files, config, merger, moved)


def _moved(
    models: Mapping[str, Any], given: Sequence[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The models where they are now, and what is called otherwise."""
    named = {"base": models["base"], **models["sources"]}
    moved: dict[str, str] = {}
    for text in given:
        name, sign, path = text.partition("=")
        if name not in named or not sign or not path:
            raise ConfigError.of(
                "--model", repr(text), f"NAME=PATH with one of {', '.join(named)}", "Correct it."
            )
        moved[str(named[name])] = path
    sources = {name: moved.get(ref, ref) for name, ref in models["sources"].items()}
    return {**models, "base": moved.get(models["base"], models["base"]), "sources": sources}, moved


def _check_models(config: Config, merger: Merger, identities: Mapping[str, Any]) -> None:
    """Checks that every model is there and is what it was.

    Raises:
        SourceError: with all that are not.
    """
    models = config["models"]
    problems = []
    for name, ref in {"base": models["base"], **models["sources"]}.items():
        key = "models.base" if name == "base" else f"models.sources.{name}"
        then = str(identities.get(name, ""))
        expected = f"the model of the fingerprint {then[:_SHOWN]}, which the study used"
        remedy = f"Say where that is: --model {name}=PATH."
        try:
            now = merger.checkpoint(ref, key).fingerprint
        except UserError as error:
            problems.append(Problem(key, error.problems[0].found, expected, remedy))
            continue
        if then and now != then:
            found = f"{ref} with the fingerprint {now[:_SHOWN]}: its weights have changed"
            problems.append(Problem(key, found, expected, remedy))
    if problems:
        raise SourceError(problems)


def find(study: Recorded, text: str) -> Chosen:
    """A candidate by its number, `best`, a name of `results.json`, or what `pick` prints.

    Raises:
        UserError: for a name that nothing has, and for a candidate that now means another merge.
    """
    name = text.strip()
    records = candidate_records(study.files.events)
    results = study.results
    if name == BEST and not results:
        record = find_best([r for r in records if r.search == "search"])
        if record is None:
            raise UserError.of(
                "CANDIDATE", "best, before any candidate of the study has a result",
                "one result at least", "Let the study run on, or give a number.",
            )  # fmt: skip
        note = "It is the best so far by its search items; the study has chosen nothing yet."
        return replace(_candidate(study, record), note=note)
    if name == BEST:
        name = str(results.get("best", ""))
    measured = mapping(results.get("models"))
    fixed = study.fixed
    if name in measured:
        return _subject(study, name, mapping(measured[name]), records)
    if name in fixed:
        return Chosen(printable(name), fixed[name], study.identify(fixed[name]))
    if (found := _NUMBER.fullmatch(name)) is not None:
        record = next((r for r in records if r.id == int(found[1])), None)
        if record is not None:
            chosen = _candidate(study, record)
            subject = _subject_of(measured, chosen.digest)
            return replace(chosen, subject=subject)
    raise _unknown(text, [BEST, *measured, *(n for n in fixed if n not in measured)], records)


def _subject(study: Recorded, name: str, model: Json, records: Sequence[CandidateRecord]) -> Chosen:
    """A model of `results.json`."""
    digest = str(model.get("digest", ""))
    record = next((r for r in records if r.digest == digest and r.genome), None)
    if record is not None:
        return replace(_candidate(study, record), name=printable(name), subject=name)
    recipe = _fixed(study, name)
    if recipe is None:
        raise UserError.of(
            "CANDIDATE", f"{name}, whose merge is in no file of the run directory",
            "a candidate of the journal, the chosen merge, a source or a fixed control",
            "Give another one.",
        )  # fmt: skip
    _check_digest(name, study.identify(recipe), digest)
    return Chosen(printable(name), recipe, digest, None, name)


def _fixed(study: Recorded, name: str) -> Recipe | None:
    """The merge of a model that no genome of the journal stands for."""
    if name == study.results.get("best"):
        path = study.run_dir / "best" / "recipe.yaml"
        return renamed(Recipe.from_yaml(path), study.moved) if path.is_file() else None
    return study.fixed.get(name)


def _candidate(study: Recorded, record: CandidateRecord) -> Chosen:
    """A candidate of the journal."""
    space = _space(study, record.search)
    if hasattr(space, "fresh"):  # what a mating means depends on its parents
        for other in candidate_records(study.files.events):
            if other.search == record.search and other.id < record.id:
                space.decode(np.array(other.genome, dtype=np.float64))
    try:
        recipe = space.decode(np.array(record.genome, dtype=np.float64))
        now = study.identify(recipe)
    except (ValueError, RecipeError) as error:
        raise JournalError.of(
            f"candidate {record.id}", f"a genome that means no merge ({printable(str(error))})",
            "one of the space of config.yaml",
            "Restore config.yaml and journal.jsonl as the study wrote them.",
        ) from error  # fmt: skip
    _check_digest(f"candidate {record.id}", now, record.digest)
    notes = {
        "failed": f"It failed in the search: {printable(record.reason)}",
        "pending": "It has no result yet.",
    }
    return Chosen(
        f"candidate {record.id}", recipe, now, record.id, note=notes.get(record.status, "")
    )


def _space(study: Recorded, search: str) -> SearchSpace:
    """The space that a search's candidates come from."""
    models, averages = study.config["models"], set(CONTROLS) - {RANDOM_SEARCH}
    if search in averages:
        return SoupSpace(models["base"], models["sources"], study.config["dtype"])
    space = make_space(study.config, study.merger)
    fresh = search == RANDOM_SEARCH and hasattr(space, "fresh")
    found: SearchSpace = space.fresh() if fresh else space  # type: ignore[attr-defined]
    return found


def _check_digest(name: str, now: str, then: str) -> None:
    if now != then:
        raise JournalError.of(
            name, f"a merge of the digest {now[:_SHOWN]}", f"{then[:_SHOWN]}, as it was recorded",
            "Restore config.yaml as the study wrote it, or use the version of evomerge of then.",
        )  # fmt: skip


def _subject_of(measured: Json, digest: str) -> str:
    """The name in `results.json` of a merge; empty if it is not there."""
    found = (n for n, model in measured.items() if mapping(model).get("digest") == digest)
    return next(found, "")


def _unknown(text: str, names: Sequence[str], records: Sequence[CandidateRecord]) -> UserError:
    known = [printable(name) for name in names]
    numbers = f"0 to {records[-1].id}" if records else "none yet"
    close = difflib.get_close_matches(text, known, 1)
    return UserError.of(
        "CANDIDATE", repr(text), f"a candidate's number ({numbers}), or one of {', '.join(known)}",
        f"Did you mean {close[0]}?" if close else "Correct it.",
    )  # fmt: skip
