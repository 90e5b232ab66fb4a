"""The documents of a harness's task: prompts built once, and chosen ones handed to `evaluate`."""

from __future__ import annotations

import copy
import hashlib
import inspect
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from typing import Any

from evomerge.errors import TaskError

ROLES = ("training", "validation", "test")
"""What the harness calls the splits that a task names."""


@dataclass(frozen=True)
class Prompting:
    """How the harness is asked to build prompts.

    Attributes:
        seed: of the choice of few-shot examples.
        system: system instruction; None for none.
        chat: turns messages into a prompt; None builds plain text.
        multiturn: few-shot examples are turns of their own.
    """

    seed: int
    system: str | None = None
    chat: Callable[..., str] | None = None
    multiturn: bool = True


class Prepared:
    """One task of the harness on one split of its data set, with all its prompts.

    The harness builds all of them at once, as if it ran the whole split, so that a document has
    the same few-shot examples whatever others are asked with it.

    Attributes:
        name: of the task.
        split: of the data set.
        task: the harness's.
        docs: all documents of the split.
        requests: of each document, what the harness asks.
    """

    def __init__(self, task: Any, split: str, prompting: Prompting) -> None:
        """Builds the prompts.

        Args:
            task: the harness's; it stays as it is.
            split: of the data set.
            prompting: how.
        """
        self.name = str(task.task_name)
        self.split = split
        self.task = on_split(task, split)
        self.docs: list[Any] = list(self.task.eval_docs)
        self.task.set_fewshot_seed(seed=prompting.seed)
        with redirect_stderr(io.StringIO()):  # a progress bar that cannot be turned off
            self.task.build_all_requests(
                system_instruction=prompting.system,
                apply_chat_template=prompting.chat is not None,
                fewshot_as_multiturn=prompting.multiturn,
                chat_template=prompting.chat,
            )
        self.requests: list[list[Any]] = [[] for _ in self.docs]
        for instance in self.task.instances:
            self.requests[instance.doc_id].append(instance)

    def prompt(self, index: int) -> str:
        """What a document is asked with; of several choices in their contexts, all of them."""
        parts = dict.fromkeys(str(one.args[0]) for one in self.requests[index])
        return "\n\n".join(part for part in parts if part)

    def content(self, index: int) -> str:
        """A document as it is compared with others."""
        return json.dumps(self.docs[index], sort_keys=True, ensure_ascii=False, default=str)

    def gold(self, index: int) -> tuple[int, ...]:
        """Which of a document's requests hold right answers; none where it generates text."""
        if self.task.OUTPUT_TYPE != "multiple_choice":
            return () if self.task.OUTPUT_TYPE == "generate_until" else (0,)
        doc = self.docs[index]
        right = self.task.doc_to_text(doc) if self._contexts_differ() else None
        right = self.task.doc_to_target(doc) if right is None else right
        choices = self.task.doc_to_choice(doc)
        found = []
        for one in right if isinstance(right, list) else [right]:
            at = one if isinstance(one, int) else choices.index(one) if one in choices else -1
            found += [at] if 0 <= at < len(choices) else []
        return tuple(found)

    def gold_text(self, index: int) -> str:
        """A right answer behind its prompt; empty where the task has none in writing."""
        if self.task.OUTPUT_TYPE != "generate_until":
            gold = self.gold(index)
            return str(self.requests[index][gold[0]].args[-1]) if gold else ""
        target = self.task.doc_to_target(self.docs[index])
        target = target[0] if isinstance(target, list) and target else target
        if isinstance(target, int) and self.task.config.doc_to_choice is not None:
            target = self.task.doc_to_choice(self.docs[index])[target]
        if not isinstance(target, str | int | float) or target == "":
            return ""
        spaced = self.prompt(index)[-1:].isspace()
        return ("" if spaced else str(self.task.config.target_delimiter)) + str(target)

    def _contexts_differ(self) -> bool:
        return bool(getattr(self.task, "multiple_input", 0))


class Chosen:
    """Some documents of a prepared task, in the form that the harness's `evaluate` takes.

    It is the harness's task but for where its requests come from.
    """

    def __init__(self, prepared: Prepared, indices: Sequence[int]) -> None:
        """Takes indices of documents, ascending."""
        self._prepared = prepared
        self._indices = tuple(indices)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prepared.task, name)

    @property
    def eval_docs(self) -> list[Any]:
        """All documents of the split."""
        return self._prepared.docs

    def aggregation(self) -> Mapping[str, Callable[[Any], int]]:
        """Nothing is made of the items' values but their number: only the values are used."""
        return defaultdict(lambda: len)

    def build_all_requests(self, *, samples: Sequence[int], **_: Any) -> None:
        """Hands the task fresh requests of the chosen documents."""
        if tuple(samples) != self._indices:
            raise ValueError(f"other documents than chosen: {samples}")
        self._prepared.task._instances = [
            replace(
                request,
                arguments=copy.deepcopy(request.arguments),
                metadata=(request.task_name, place, request.repeats),
                resps=[],
                filtered_resps={},
            )
            for place, index in enumerate(self._indices)
            for request in self._prepared.requests[index]
        ]

    def doc_iterator(self, **_: Any) -> Iterator[tuple[int, Any]]:
        """Place and document of each chosen one."""
        return iter([(place, self.eval_docs[i]) for place, i in enumerate(self._indices)])


def on_split(task: Any, split: str) -> Any:
    """A copy of a task that asks the documents of a split, few-shot examples as they were.

    Where the examples are drawn from the same split, the document asked is left out of them.
    """
    other = copy.copy(task)
    other._config = copy.copy(task.config)
    natural = task.config.test_split or task.config.validation_split
    if split != natural:
        other._config.test_split = split
        settings = task.fewshot_cfg
        if settings.split is None and settings.samples is None and fewshot_split(task) == split:
            other.fewshot_cfg = replace(settings, split=split)
    if hasattr(task, "sampler"):
        other.sampler = copy.copy(task.sampler)
    other._instances = None
    return other


def fewshot_split(task: Any) -> str | None:
    """The split of the data set that few-shot examples are drawn from; None if from none."""
    settings = task.fewshot_cfg
    if not task.config.num_fewshot or (settings.split is None and settings.samples is not None):
        return None
    config = task.config
    first = config.training_split or config.validation_split or config.test_split
    found = settings.split if settings.split is not None else first
    return str(found) if found is not None else None


def resolve_split(task: Any, wanted: str, field: str) -> str:
    """The data set's name of a split, which is given by that name or as one of `ROLES`.

    Raises:
        TaskError: if there is none, or the task is a Python class that has its splits built in.
    """
    from lm_eval.api.task import ConfigurableTask

    config = task.config
    usual = ("has_test_docs", "test_docs", "has_validation_docs", "validation_docs")
    if any(getattr(type(task), m) is not getattr(ConfigurableTask, m) for m in usual):
        raise TaskError.of(
            field.rsplit(".", 1)[0] + ".task", f"{task.task_name!r}, a Python class of its own",
            "a task that is described by YAML", "Use another task.",
        )  # fmt: skip
    named = getattr(config, f"{wanted}_split", None) if wanted in ROLES else None
    if named is not None:
        return str(named)
    if wanted in task.dataset:
        return wanted
    raise TaskError.of(
        field, f"{wanted!r}, which {task.task_name} does not have",
        "one of " + ", ".join(dict.fromkeys([*_roles(config), *map(str, task.dataset)])),
        "Name one of these.",
    )  # fmt: skip


def default_splits(task: Any) -> dict[str, Any]:
    """Where search, validation and test come from if the user does not say.

    Validation documents are searched on and test documents tested on, if the task has both; else
    what it has is divided by the hash of ids, 48 to 12 to 40 in a hundred.
    """
    config = task.config
    carved = {"split_from": "search", "fraction": 0.2}
    both = config.validation_split, config.test_split
    if None not in both and both[0] != both[1]:
        return {"search": "validation", "validation": carved, "test": "test"}
    only = "test" if config.test_split is not None else "validation"
    return {
        "search": only,
        "validation": {"split_from": "search", "fraction": 0.12},
        "test": {"split_from": "search", "fraction": 0.4},
    }


def settings_digest(tasks: Mapping[str, Any], prompting: Prompting, more: Mapping[str, Any]) -> str:
    """Hash of all that scores depend on besides documents and weights.

    Data files and the places of files do not count: the documents do, each by its content.
    """
    rows: list[Any] = [prompting.seed, prompting.system, prompting.multiturn, dict(more)]
    for name, task in tasks.items():
        config = {k: v for k, v in vars(task.config).items() if not k.startswith("dataset_")}
        config.pop("metadata", None)
        rows.append([name, str(task.VERSION), config, vars(task.fewshot_cfg)])
    text = json.dumps(rows, sort_keys=True, default=_source)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _roles(config: Any) -> list[str]:
    return [role for role in ROLES if getattr(config, f"{role}_split", None) is not None]


def _source(value: Any) -> Any:
    """What stands for a value that JSON does not know: of a function its text."""
    if hasattr(value, "__dataclass_fields__"):
        return vars(value)
    if callable(value):
        try:
            return inspect.getsource(value)
        except (OSError, TypeError):
            return getattr(value, "__qualname__", type(value).__qualname__)
    return str(value)
