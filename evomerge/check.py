"""Finds everything that is wrong with a study before the first expensive second."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.build import build
from evomerge.checkpoints.fit import check_fit
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.model import Model
from evomerge.checkpoints.remote import download_size
from evomerge.checkpoints.writer import existing_folder
from evomerge.controls import CONTROLS
from evomerge.domain import Dimension, Domain
from evomerge.errors import Problem, UserError
from evomerge.estimators.base import ItemPlan
from evomerge.estimators.racing import Race
from evomerge.fidelity import check_item_scores, make_evaluation
from evomerge.objectives import Goals
from evomerge.optimizers.base import Optimizer
from evomerge.pool import PoolSettings
from evomerge.progress import check_log
from evomerge.proof import BEST
from evomerge.resources import check_resources, quiet_base
from evomerge.setup import (
    Config,
    all_task_nodes,
    check_candidates,
    check_traits,
    control_recipes,
    make_goals,
    make_space,
    make_task,
    optimizer_name,
    search_domain,
    task_nodes,
)
from evomerge.space import SearchSpace
from evomerge.trackers.choice import make_trackers
from evomerge.types import SPLITS, Chat, Task
from evomerge.warm_start import Start, read_start

Tell = Callable[[str], None]


def check(config: Config, say: Tell | None = None, download: bool = False) -> list[Problem]:
    """Verifies sources, tasks, search, engine, devices, memory and disk.

    Args:
        config: the resolved config.
        say: called with a sentence about each part that is in order, and with notes.
        download: fetch models that are on the hub only, to look into them; otherwise it is
            only asked whether the hub has them.

    Returns:
        All problems, in the order in which a user would mend them.
    """
    tell = say or (lambda text: None)
    merger = Merger()
    problems: list[Problem] = []
    if not download:
        problems, config = _without_remote(config, tell)
    for step in (_models, _names, _tasks, _numbers, _watched, _search, check_resources):
        try:
            problems.extend(step(config, merger, tell))
        except UserError as error:
            problems.extend(error.problems)
    unique = dict.fromkeys(problems)
    return list(unique)


def _watched(config: Config, merger: Merger, tell: Tell) -> Iterator[Problem]:
    """What follows the study while it runs."""
    for part in (lambda: check_log(config["log"]), lambda: make_trackers(config)):
        try:
            made = part()
        except UserError as error:
            yield from error.problems
        else:
            if made:
                tell(f"trackers: {', '.join(made)}")


def remote_models(config: Config) -> dict[str, int]:
    """Models that would have to be downloaded: config key to bytes.

    Raises:
        SourceError: for one that the hub does not give.
    """
    sizes = {field: download_size(ref, field) for field, ref in _references(config).items()}
    return {field: size for field, size in sizes.items() if size}


def _references(config: Config) -> dict[str, str]:
    models = config["models"]
    named = {f"models.sources.{name}": ref for name, ref in models["sources"].items()}
    return {"models.base": models["base"], **named}


def _without_remote(config: Config, tell: Tell) -> tuple[list[Problem], Config]:
    """The config without models that are not here yet, and what is wrong with those."""
    problems: list[Problem] = []
    absent, size = [], 0
    for field, ref in _references(config).items():
        try:
            pending = download_size(ref, field)
        except UserError as error:
            problems.extend(error.problems)
            absent.append(field)
            continue
        if pending:
            tell(f"{field}: {ref} will be downloaded ({pending / 1e9:.1f} GB)")
            absent.append(field)
            size += pending
    if size:
        from huggingface_hub.constants import HF_HUB_CACHE

        free = shutil.disk_usage(existing_folder(Path(HF_HUB_CACHE))).free
        if free < size:
            problems.append(
                Problem(
                    "models", f"{free / 1e9:.1f} GB free on the disk of {HF_HUB_CACHE}",
                    f"{size / 1e9:.1f} GB for the models to download",
                    "Free some space, or set HF_HOME to a folder on another disk.",
                )
            )  # fmt: skip
    sources = {
        name: ref
        for name, ref in config["models"]["sources"].items()
        if f"models.sources.{name}" not in absent
    }
    base = None if "models.base" in absent else config["models"]["base"]
    if not absent:
        return problems, config
    return problems, {
        **config,
        "models": {"base": base, "sources": sources},
        "_absent": absent,
        "_names": list(config["models"]["sources"]),
    }


def _models(config: Config, merger: Merger, tell: Tell) -> Iterator[Problem]:
    if not config["models"]["sources"] and not config.get("_absent"):
        yield Problem(
            "models.sources", "none", "at least one source", "Add `models.sources.NAME: PATH`."
        )
    opened: dict[str, Model] = {}
    named = {field: ref for field, ref in _references(config).items() if ref is not None}
    for field, ref in named.items():
        try:
            opened[field] = merger.checkpoint(ref, field)
        except UserError as error:
            yield from error.problems
    base = opened.get("models.base")
    for field, checkpoint in opened.items():
        if base is not None and checkpoint is not base:
            yield from _against_base(field, base, checkpoint, tell)
        bad = dict(checkpoint.non_finite())
        if bad:
            first, count = next(iter(bad.items()))
            more = f" and in {len(bad) - 1} other tensors" if len(bad) > 1 else ""
            yield Problem(
                field, f"{count} values that are NaN or infinite in {first}{more}",
                "finite weights", "Download or write the model again.",
            )  # fmt: skip
    if opened and len(opened) == len(named):
        size = sum(c.bytes() for c in opened.values())
        tell(f"models: {len(opened)} checkpoints, {size / 1e6:.1f} MB, open and fit together")


_GEOMETRY = (
    "hidden_act", "head_dim", "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
    "layer_norm_eps", "rope_theta", "rope_parameters", "rope_scaling", "sliding_window",
)  # fmt: skip
"""Config keys that change what the same weights compute; the base's are used for all."""


def _against_base(field: str, base: Model, source: Model, tell: Tell) -> Iterator[Problem]:
    kinds = [c.config.get("architectures") or c.config.get("model_type") for c in (base, source)]
    if kinds[0] != kinds[1]:
        yield Problem(
            field, f"architecture {kinds[1]}", f"{kinds[0]} as the base has",
            "Merge models of one architecture.",
        )  # fmt: skip
    try:
        check_fit(base, source)
    except UserError as error:
        yield from error.problems
        return
    for key in _GEOMETRY:
        have, want = source.config.get(key), base.config.get(key)
        if have != want:
            tell(f"note: {field} has {key} {have!r}; it is run with the base's {want!r}")
    have, want = source.vocabulary, base.vocabulary
    if not have or not want:
        tell(f"note: {field}: no tokenizer.json to compare its vocabulary with the base's")
        return
    other = [t for t, i in want.items() if have.get(t) != i]
    if other:
        token = sorted(other)[0]
        yield Problem(
            field,
            f"another vocabulary: {len(other)} tokens differ, such as {token!r} "
            f"with id {have.get(token)} instead of {want[token]}",
            "the base's tokenizer, with tokens at most added at the end",
            "Merge models that share a tokenizer.",
        )


def _names(config: Config, merger: Merger, tell: Tell) -> Iterator[Problem]:
    """Names of the result table must not clash."""
    taken = {"base": "models.base", BEST: "the chosen merge"}
    taken |= {name: "a control search" for name in CONTROLS}
    named = [(name, f"models.sources.{name}") for name in config["models"]["sources"]]
    named += [(name, f"controls.recipes.{name}") for name in config["controls"]["recipes"]]
    for name, field in named:
        if name in taken:
            yield Problem(
                field, f"the name {name!r}", f"a name that {taken[name]} does not have",
                "Rename it.",
            )  # fmt: skip
        taken.setdefault(name, field)


def _numbers(config: Config, merger: Merger, tell: Tell) -> Iterator[Problem]:
    """Numbers that must be positive, and a budget that ends."""
    positive = {f"budget.{k}": v for k, v in config["budget"].items()}
    positive["finalists"] = config["finalists"]
    positive["stop.patience"] = config["stop"]["patience"]
    positive["engine.batch_tokens"] = config["engine"]["batch_tokens"]
    positive["engine.max_model_len"] = config["engine"]["max_model_len"]
    positive |= {f"recheck.{k}": v for k, v in config["recheck"].items() if k != "backfill"}
    positive["front.size"] = config["front"]["size"]
    positive |= {f"front.budgets[{i}]": b for i, b in enumerate(config["front"]["budgets"])}
    for field, value in positive.items():
        if value is not None and not value > 0:
            yield Problem(field, str(value), "a positive number", "Correct it.")
    if all(limit is None for limit in config["budget"].values()):
        yield Problem(
            "budget", "no limit at all", "candidates, item_evaluations or hours",
            "Set one, for example budget.candidates=300.",
        )  # fmt: skip


def _tasks(config: Config, merger: Merger, tell: Tell) -> Iterator[Problem]:
    names: dict[str, str] = {}
    for field, node in all_task_nodes(config).items():
        if not node:
            yield Problem(field, "nothing", "a task", "Choose one, for example task=jp_math_tiny.")
            continue
        try:
            task: Any = make_task(node, field)
        except UserError as error:
            yield from error.problems
            continue
        found = list(task.validate())
        yield from found
        if task.name in names:
            yield Problem(
                f"{field}.name", repr(task.name), f"a name that {names[task.name]} does not have",
                "Rename one of the tasks.",
            )  # fmt: skip
        names[task.name] = field
        if not found:
            scored = bool(task.loglik_weight) or task.name in _read_logliks(config)
            if scored and not all(i.gold for split in SPLITS for i in task.items(split)):
                yield Problem(
                    f"{field}.gold", "items without a right answer's text",
                    "one for every item, as an objective or constraint reads its log-likelihood",
                    f"Set {field}.gold to a template, or use the metric score.",
                )  # fmt: skip
            yield from _lengths(field, task, config, merger, scored, tell)
            for split in SPLITS if not field.startswith("report_tasks") else ():
                if len(task.items(split)) < 2:
                    yield Problem(
                        f"{field}.{split}", "one item", "at least two, or nothing has an error bar",
                        "Give more items.",
                    )  # fmt: skip
            counts = ", ".join(f"{len(task.items(s))} {s}" for s in SPLITS)
            by = f", scored by {task.scored_by}" if hasattr(task, "scored_by") else ""
            tell(f"{field} {task.name}: {counts} items, no overlap{by}")


def _read_logliks(config: Config) -> set[str]:
    """Names of the tasks whose log-likelihood a goal reads; none where goals are at fault."""
    with contextlib.suppress(UserError):
        goals = make_goals(config)
        return {task for task in goals.tasks() if goals.wants_loglik(task)}
    return set()


def _lengths(
    field: str, task: Any, config: Config, merger: Merger, scored: bool, tell: Tell
) -> Iterator[Problem]:
    """Prompts, and right answers behind them, must fit the model's context."""
    base = quiet_base(config, merger)
    tokenizer = base.tokenizer() if base is not None else None
    if base is None or tokenizer is None:
        return
    limits = [config["engine"]["max_model_len"], base.config.get("max_position_embeddings")]
    limit = min((n for n in limits if n), default=None)
    if limit is None:
        return
    if hasattr(task, "check_length"):
        yield from task.check_length(limit)
        texts = [task.prompt(item) for split in SPLITS for item in task.items(split)]
        room = task.prompt_room(limit)
        cut = sum(len(row.ids) > room for row in tokenizer.encode_batch(texts))
        if cut:
            tell(f"note: {cut} prompts of {field} exceed {room} tokens; they lose their beginning")
        return
    longest, split, name = 0, "", ""
    for part in SPLITS:
        items = task.items(part)
        texts = [(task.prompt(i), i.gold if scored else "") for i in items]
        try:
            lengths = _token_counts(texts, tokenizer, base.path)
        except UserError as error:
            for problem in error.problems:
                yield replace(problem, field=problem.field.replace("task", field, 1))
            return
        for item, length in zip(items, lengths, strict=True):
            if length > longest:
                longest, split, name = length, part, item.id
    if longest >= limit:
        yield Problem(
            "engine.max_model_len",
            f"{limit}, and {longest} tokens in item {name} of {field}.{split}",
            "room for the longest prompt and an answer",
            "Raise it (up to the model's own limit), or leave long items out.",
        )  # fmt: skip


def _token_counts(texts: Sequence[tuple[str, str]], tokenizer: Any, model: Path) -> list[int]:
    """Tokens of prompts and the answers behind them.

    Raises:
        UserError: if a chat finds no template in the model's folder.
    """
    if any(isinstance(prompt, Chat) for prompt, _ in texts):
        from evomerge.engines.tokens import Codec

        codec = Codec(model)
        return [len(codec.joint(prompt, gold)) for prompt, gold in texts]
    return [len(row.ids) for row in tokenizer.encode_batch([p + gold for p, gold in texts])]


def _search(config: Config, merger: Merger, tell: Tell) -> Iterator[Problem]:
    parts: list[Callable[[], Any]] = [
        lambda: build(config["estimator"], "estimator"),
        lambda: build(config["racing"], "racing"),
        lambda: PoolSettings.of(config["pool"]),
    ]
    space: SearchSpace | None = None
    if config.get("_absent"):
        tell("note: the search space is checked when the models are here")
    elif quiet_base(config, merger) is not None:
        parts.append(lambda: control_recipes(config))
        try:
            space = make_space(config, merger)
            tell(f"search: {len(space.dimensions)} dimensions")
        except UserError as error:
            yield from error.problems
    try:
        goals = make_goals(config) if config["task"] else None
    except UserError as error:
        yield from error.problems
        goals = None
    if goals is not None:
        if space is not None:
            known = space
            parts.append(lambda: check_traits(known, goals))
        tell(_described(goals))
    found: list[tuple[Race, Mapping[str, ItemPlan]]] = []
    parts.append(lambda: found.extend(_evaluation(config, goals, tell)))
    parts.append(lambda: _optimizer(config, goals, space, found, tell))
    for part in parts:
        try:
            part()
        except UserError as error:
            yield from error.problems


def _evaluation(
    config: Config, goals: Goals | None, tell: Tell
) -> Iterator[tuple[Race, Mapping[str, ItemPlan]]]:
    """The plans of the tasks and the race; none where goals or tasks are at fault."""
    tasks = _quiet_tasks(config)
    if goals is None or tasks is None:
        return
    _, race, plans = make_evaluation(config, tasks, goals)
    planned = {task: len(plan.choose(0)) for task, plan in plans.items()}
    for task, count in planned.items():
        first = race.first(0, count)
        stages = f", of which {first} in the first stage" if first < count else ""
        tell(f"a candidate answers {count} of the search items of {task}{stages}")
    yield race, plans


def _quiet_tasks(config: Config) -> list[Task] | None:
    """The tasks of the search; None where one is at fault, which is said elsewhere."""
    try:
        tasks = [make_task(node, field) for field, node in task_nodes(config).items() if node]
        for task in tasks:
            task.items("search")
    except UserError:
        return None
    return tasks


def _optimizer(
    config: Config,
    goals: Goals | None,
    space: SearchSpace | None,
    found: Sequence[tuple[Race, Mapping[str, ItemPlan]]],
    tell: Tell,
) -> None:
    """The optimiser and what it asks of the rest; a space or goals at fault are None."""
    start = Start()
    domain = Domain((Dimension("weight/x/all", 0.0, 1.0, 0.5, 0.1),))
    if goals is not None:
        domain = replace(domain, objectives=goals.count, constraints=len(goals.constraints))
    whole = space is not None and not config["pool"]["prune"]  # pruning changes the space
    if goals is not None and space is not None and whole:
        start = read_start(config["warm_start"], space, goals)
        if start.said:
            tell(f"warm start: {start.said}")
    if goals is not None and space is not None:
        nodes = task_nodes(config).values()
        weights = {str(node["name"]): node.get("loglik_weight", 0.0) for node in nodes}
        domain = search_domain(space, goals, start, weights)
    optimizer: Optimizer = build(config["optimizer"], "optimizer", domain=domain, seed=0)
    if goals is not None:
        for race, plans in found:
            check_item_scores(optimizer_name(config), optimizer, goals, race, plans)
    if whole:
        check_candidates(optimizer, config["budget"]["candidates"], start)


def _described(goals: Goals) -> str:
    """Objectives and constraints in a sentence."""
    wanted = ", ".join(
        f"{o.goal} {o.name}" + (f" ({o.metric})" if o.metric != "score" else "")
        for o in goals.objectives
    )
    how = f", as one by {goals.scalarize}" if goals.scalarize else ""
    limits = [f"{c.name} {c.sense.replace('_', ' ')} {c.bound}" for c in goals.constraints]
    return f"objectives: {wanted}{how}" + (f"; constraints: {', '.join(limits)}" if limits else "")
