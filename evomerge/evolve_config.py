"""A config of mergekit-evolve as an experiment of ours, and what has no counterpart."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import ConfigError
from evomerge.markdown import printable
from evomerge.recipe.fields import Place
from evomerge.recipe.references import read_reference

_GENOME = (
    "models", "merge_method", "base_model", "tokenizer_source", "layer_granularity", "normalize",
    "allow_negative_weights", "filters", "smooth",
)  # fmt: skip
_TOP = (
    "genome", "tasks", "limit", "num_fewshot", "shuffle", "random_init", "apply_chat_template",
    "fewshot_as_multiturn",
)  # fmt: skip
_METHODS = ("linear", "task_arithmetic", "ties", "dare_ties", "slerp")
_DENSE = ("ties", "dare_ties")
_NEEDS_BASE = ("task_arithmetic", "ties", "dare_ties")
_LOWER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter")
"""Metrics of the harness of which less is better."""

_SIGMA = 1 / 6
_LARGEST = 1.5  # of a weight; CMA-ES has no bounds there, and needs some here


@dataclass(frozen=True)
class Flags:
    """What mergekit-evolve takes from its command line.

    Attributes:
        max_fevals: candidates.
        sigma0: standard deviation of the first samples.
        seed: of the search.
        vllm: whether vLLM answers.
        include_path: a folder of task YAMLs.
        trust_remote_code: whether models may run code of their own.
    """

    max_fevals: int = 100
    sigma0: float = _SIGMA
    seed: int = 0
    vllm: bool = False
    include_path: str | None = None
    trust_remote_code: bool = False


@dataclass
class Converted:
    """An experiment and what has to be said about it.

    Attributes:
        experiment: plain data, in the order in which it is written.
        notes: what has no counterpart, and what was done instead.
    """

    experiment: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def text(self, origin: str) -> str:
        """The experiment's YAML."""
        head = f"# @package _global_\n# Made from {printable(origin)} of mergekit-evolve.\n"
        notes = "".join(f"# - {printable(note)}\n" for note in self.notes)
        told = f"# What differs there:\n{notes}" if notes else ""
        body = yaml.safe_dump(self.experiment, sort_keys=False, allow_unicode=True)
        return f"{head}{told}{body}"


def read_evolve(path: Path) -> dict[str, Any]:
    """A config of mergekit-evolve as plain data.

    Raises:
        ConfigError: if there is none, or it is no mapping with a genome and tasks.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError.of(
            str(path), printable(str(error)), "a YAML file of mergekit-evolve", "Correct it."
        ) from error
    if not isinstance(data, dict) or not isinstance(data.get("genome"), dict):
        raise ConfigError.of(
            str(path), "no genome", "a config of mergekit-evolve, with genome and tasks",
            "A recipe of mergekit needs no import: python -m evomerge merge FILE OUT.",
        )  # fmt: skip
    if not isinstance(data.get("tasks"), list) or not data["tasks"]:
        raise ConfigError.of(str(path), "no tasks", "a list of lm-eval tasks", "Add it.")
    _check_keys(data, _TOP, "")
    _check_keys(data["genome"], _GENOME, "genome.")
    return data


def convert(data: Mapping[str, Any], name: str, flags: Flags, file: str) -> Converted:
    """The experiment that searches what a config of mergekit-evolve searches.

    Args:
        data: of `read_evolve`.
        name: of the experiment.
        flags: of mergekit-evolve's command line.
        file: for messages.

    Raises:
        ConfigError: for a genome that mergekit-evolve would not take either.
    """
    out = Converted({})
    genome = data["genome"]
    method = genome.get("merge_method")
    if method not in _METHODS:
        raise ConfigError.of(
            "genome.merge_method", repr(method), f"one of {', '.join(_METHODS)}", "Correct it."
        )
    base, sources = _models(genome, method, file, out)
    several = method == "slerp" and len(sources) > 1
    space = _space(genome, "multislerp" if several else method, len(sources), flags, out)
    tasks, objectives = _tasks(data, flags, out)
    first, *others = tasks
    experiment: dict[str, Any] = {
        "defaults": [
            *({f"/task@tasks.{task['name']}": "lm_eval"} for task in others),
            {"override /task": "lm_eval"},
            {"override /space": None},
            {"override /optimizer": "cma_es"},
            {"override /estimator": "mean"},
            {"override /engine": "vllm" if flags.vllm else "auto"},
        ],
        "experiment": name,
        "seed": flags.seed,
        "dtype": "bfloat16",
        "models": {"base": base, "sources": sources},
        "space": {"_target_": "evomerge.space.MergeSpace", **space},
        "task": first,
    }
    if others:
        experiment["tasks"] = {task["name"]: task for task in others}
    if objectives:
        experiment |= {"objectives": objectives}
        if len(objectives) > 1:
            experiment["scalarize"] = "weighted_sum"
    if data.get("limit") is not None:
        experiment["estimator"] = {"items": _whole(data["limit"], "limit")}
        out.notes.append(
            f"limit: {data['limit']} items of the search items of each task, chosen by the seed, "
            "are answered by every candidate (mergekit-evolve takes the first ones)"
        )
    experiment["budget"] = {"candidates": flags.max_fevals}
    if flags.trust_remote_code:
        experiment["trust_remote_code"] = True
    out.experiment = experiment
    _say_rest(data, out)
    return out


def _models(
    genome: Mapping[str, Any], method: str, file: str, out: Converted
) -> tuple[str, dict[str, str]]:
    """The base, and the sources by name."""
    listed = genome.get("models")
    if not isinstance(listed, list) or not listed:
        raise ConfigError.of("genome.models", repr(listed), "a list of models", "Add it.")
    refs = [read_reference(m, Place(file, "genome.models").item(i)) for i, m in enumerate(listed)]
    given = genome.get("base_model")
    base = None if given is None else read_reference(given, Place(file, "genome.base_model"))
    if base is None and method in _NEEDS_BASE:
        raise ConfigError.of("genome.base_model", "none", f"a base, for {method}", "Add it.")
    if method == "slerp":
        if len(refs) < 2:
            raise ConfigError.of("genome.models", str(len(refs)), "two models or more", "Add one.")
        if len(refs) == 2:
            out.notes.append(
                "slerp: t goes from the first model (0) to the second (1); mergekit-evolve derives "
                "it from two weights"
            )
            if base not in (None, *refs):
                out.notes.append(f"base_model: {base} is not used, as the first model is the base")
            return refs[0], _named(refs[1:])
        out.notes.append(
            "slerp of more than two models: multislerp with a weight for each; mergekit-evolve "
            "takes slerp of the two models with the largest weights in every group of layers"
        )
    if base is None:
        base = refs[0]
        out.notes.append(
            f"base_model: the first model, {base}, is what others are compared with, and lends "
            "config and tokenizer"
        )
    elif base in refs and method in _NEEDS_BASE:
        refs = [ref for ref in refs if ref != base]
        out.notes.append(
            "models: the base is left out of the sources, as it adds nothing to itself"
        )
    return base, _named(refs)


def _named(refs: list[str]) -> dict[str, str]:
    """Sources by names that can be config keys, from the last part of each reference."""
    out: dict[str, str] = {}
    for ref in refs:
        last = "_".join(Path(part.partition("@")[0]).name for part in ref.split("+"))
        name = re.sub(r"\W+", "_", last).strip("_") or "model"
        name = f"m_{name}" if name[0].isdigit() or name == "base" else name
        unique = name
        while unique in out:
            unique = f"{name}_{len(out)}"
        out[unique] = ref
    return out


def _space(
    genome: Mapping[str, Any], method: str, sources: int, flags: Flags, out: Converted
) -> dict[str, Any]:
    """The space of the merge's parameters."""
    blocks = _whole(genome.get("layer_granularity") or 0, "genome.layer_granularity")
    granularity: str | int = "global" if blocks < 1 else blocks
    negative = bool(genome.get("allow_negative_weights"))
    step = round(float(flags.sigma0), 6)
    if method == "slerp":
        t = {"low": 0.0, "high": 1.0, "start": 0.5, "step": step}
        return {"method": "slerp", "granularity": granularity, "parameters": {"t": t}}
    low = -_LARGEST if negative and method != "multislerp" else 0.0
    weight = {"low": low, "high": _LARGEST, "start": round(1 / sources, 6), "step": step}
    out.notes.append(
        f"weights are searched from {low:g} to {_LARGEST:g}, where mergekit-evolve has no bounds; "
        "change space.parameters.weight for others"
    )
    parameters: dict[str, Any] = {"weight": weight}
    if method in _DENSE:
        parameters["density"] = {
            "low": 0.05 if method == "ties" else 0.0, "high": 1.0, "start": 1.0, "step": step,
        }  # fmt: skip
    normalize = genome.get("normalize")
    if normalize is None:
        normalize = method in ("ties", "dare_ties", "linear")
    multi = method == "multislerp"
    fixed = {"normalize_weights": True} if multi else {"normalize": bool(normalize)}
    return {
        "method": method, "granularity": granularity, "parameters": parameters, "fixed": fixed
    }  # fmt: skip


def _tasks(
    data: Mapping[str, Any], flags: Flags, out: Converted
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The tasks of the harness, and objectives where weights or several tasks need them."""
    tasks: list[dict[str, Any]] = []
    objectives: dict[str, Any] = {}
    for i, entry in enumerate(data["tasks"]):
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ConfigError.of(f"tasks[{i}]", repr(entry), "a task with a name", "Correct it.")
        _check_keys(entry, ("name", "weight", "metric"), f"tasks[{i}].")
        weight = _number(entry.get("weight", 1.0), f"tasks[{i}].weight")
        metric, _, found = str(entry.get("metric", "acc,none")).partition(",")
        name = re.sub(r"\W+", "_", entry["name"]).strip("_")
        while any(task["name"] == name for task in tasks):
            name = f"{name}_{metric}"
        task: dict[str, Any] = {
            "name": name,
            "task": entry["name"],
            "metric": metric,
            "apply_chat_template": bool(data.get("apply_chat_template", True)),
            "fewshot_as_multiturn": bool(data.get("fewshot_as_multiturn", True)),
        }
        if found:
            task["filter"] = found
        if data.get("num_fewshot") is not None:
            task["num_fewshot"] = _whole(data["num_fewshot"], "num_fewshot")
        if flags.include_path:
            task["include_path"] = flags.include_path
        tasks.append(task)
        if weight == 0:
            raise ConfigError.of(f"tasks[{i}].weight", "0", "another number", "Remove the task.")
        objectives[name] = {"task": name, "weight": abs(weight)}
        if weight < 0 and metric in _LOWER:
            out.notes.append(
                f"tasks[{i}]: a weight below 0 became its amount, as scores of {metric} are turned "
                "around here: more is better"
            )
        elif weight < 0:
            objectives[name]["goal"] = "minimize"
            out.notes.append(f"tasks[{i}]: a weight below 0 became goal: minimize")
    plain = len(tasks) == 1 and "goal" not in next(iter(objectives.values()))
    return tasks, {} if plain else objectives


def _say_rest(data: Mapping[str, Any], out: Converted) -> None:
    """Notes on what has no counterpart, and on what a study does beyond."""
    genome = data["genome"]
    if genome.get("filters"):
        names = ", ".join(map(str, genome["filters"]))
        out.notes.append(
            f"filters: there are no parameters of their own for {names}; a group of layers has one "
            "set of them"
        )
    if genome.get("smooth"):
        out.notes.append(
            "smooth: values are not interpolated between groups of layers; each group has its own"
        )
    tokenizer = genome.get("tokenizer_source")
    if tokenizer not in (None, "base"):
        out.notes.append(
            f"tokenizer_source: {tokenizer!r} is not searched over; candidates have the base's "
            "vocabulary, and sources with another one are refused"
        )
    if data.get("random_init"):
        out.notes.append("random_init: the search begins at equal weights; see optimizer.restarts")
    if data.get("shuffle"):
        out.notes.append("shuffle: items are chosen by the seed in any case")
    out.notes.append(
        "splits: the search sees search items only; finalists are compared on validation items and "
        "the result is measured on test items, which the task's own splits are divided into"
    )


def _check_keys(data: Mapping[str, Any], known: tuple[str, ...], prefix: str) -> None:
    for key in data:
        if key not in known:
            raise ConfigError.of(
                f"{prefix}{key}", "a key that mergekit-evolve does not have",
                f"one of {', '.join(known)}", "Correct it.",
            )  # fmt: skip


def _number(value: object, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError.of(field, repr(value), "a number", "Correct it.")
    return float(value)


def _whole(value: object, field: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError.of(field, repr(value), "a whole number", "Correct it.")
    return value
