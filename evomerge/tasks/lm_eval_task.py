"""Any task of the lm-eval harness as a task of a study."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from evomerge.errors import NotFiniteError, Problem, TaskError
from evomerge.tasks import lm_eval_docs as documents
from evomerge.tasks import lm_eval_loading as loading
from evomerge.tasks.lm_eval_metric import (
    TOKEN_PROBABILITY,
    Metric,
    check_weights,
    choose_metric,
)
from evomerge.tasks.lm_eval_run import Answered, ask
from evomerge.tasks.lm_eval_splits import Division, overlap_problems
from evomerge.types import SPLITS, Item, ItemScores, Sampling

Place = tuple[str, str, int]
"""Where an item comes from: a task of the harness, a split of its data set, a document."""


class LmEvalTask:
    """Asks the documents of a harness's task, group or tag; the harness builds prompts and scores.

    Nothing is read before the first use, and construction never fails: `validate` lists what is
    wrong, and `items` raises it.

    Args:
        name: name of the task in this study.
        task: the harness's name of a task, group or tag.
        include_path: a folder of task YAMLs of your own.
        search: where the items of the search come from: a split of the data set, by its name or
            as training, validation or test, or a mapping, see `Part`; None for what suits the
            task, see `default_splits`.
        validation: the same, or `{split_from: search, fraction: 0.2}`.
        test: the same.
        num_fewshot: few-shot examples; None takes what the task says.
        fewshot_seed: of their choice; the default is the harness's.
        apply_chat_template: ask through the tokenizer's chat template.
        fewshot_as_multiturn: with a chat template, examples are turns of their own.
        system_instruction: put before everything.
        chat_template_args: given to the chat template, such as `{enable_thinking: false}`.
        think_end_token: text that ends a reasoning model's thoughts; what stands before it does
            not count as answer.
        generation_kwargs: changes to the task's own, as `lm_eval --gen_kwargs`.
        metric: whose values are the items' scores; None takes the first that can be used.
        metric_range: the metric's least and greatest value; scores are between 0 and 1.
        filter: whose answers are scored; None takes the first one.
        group_weighting: `items` takes the mean over all items of a group that counts its tasks
            alike.
        loglik_weight: weight of the mean log-likelihood a token (nats) in an item's fitness.
        allow_code: run Python code that your task YAMLs name.
        key: config key of this task, for messages.
    """

    def __init__(
        self,
        name: str,
        task: str,
        include_path: str | None = None,
        search: object = None,
        validation: object = None,
        test: object = None,
        num_fewshot: int | None = None,
        fewshot_seed: int = 1234,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = True,
        system_instruction: str | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        think_end_token: str | None = None,
        generation_kwargs: Mapping[str, Any] | None = None,
        metric: str | None = None,
        metric_range: Sequence[float] = (0.0, 1.0),
        filter: str | None = None,
        group_weighting: str | None = None,
        loglik_weight: float = 0.0,
        allow_code: bool = False,
        key: str = "task",
    ) -> None:
        self.name = str(name)
        self._weight = loglik_weight
        self._key = key
        self._task = task
        self._include_path = include_path
        self._allow_code = bool(allow_code)
        self._fewshot = num_fewshot
        self._generation = dict(generation_kwargs or {})
        self._prompting = documents.Prompting(
            int(fewshot_seed),
            system_instruction,
            _messages_as_text if apply_chat_template else None,
            bool(fewshot_as_multiturn and apply_chat_template),
        )
        self._chat_arguments = dict(chat_template_args or {})
        self._think_end = think_end_token
        self._wanted = (metric, filter, metric_range, group_weighting)
        self._division = Division(dict(zip(SPLITS, (search, validation, test), strict=True)), key)
        self._prepared: dict[tuple[str, str, bool], documents.Prepared] = {}
        self._places: dict[str, Place] = {}

    @property
    def sampling(self) -> Sampling:
        """How answers are generated; of a task that generates none, greedily."""
        from evomerge.tasks.lm_eval_model import sampling_of

        for task in self._loaded.tasks.values():
            if task.OUTPUT_TYPE == "generate_until":
                return sampling_of(task.config.generation_kwargs)
        return Sampling()

    @property
    def loglik_weight(self) -> float:
        """Weight of the mean log-likelihood a token (nats) in an item's fitness."""
        good = _is_number(self._weight) and self._weight >= 0
        return float(self._weight) if good else 0.0

    @property
    def metric(self) -> Metric:
        """Whose values are the items' scores."""
        return self._metric

    @property
    def scored_by(self) -> str:
        """What the items are scored by, for people."""
        some = len(self._loaded.tasks)
        of = f" in {some} tasks" if some > 1 else ""
        return f"{self._metric.name} (filter {self._metric.filter}){of}"

    def items(self, split: str) -> Sequence[Item]:
        """The items of one of `SPLITS`, in the data set's order; read once.

        Raises:
            TaskError: if settings, task, data set, metric or splits are not usable.
        """
        if split not in SPLITS:
            raise TaskError.of("split", repr(split), ", ".join(SPLITS), "Name one of these.")
        return self._items[split]

    def prompt(self, item: Item) -> str:
        """The text that the model is given; with a chat template, the messages that it fills."""
        return item.fields["prompt"]

    def score(self, item: Item, text: str) -> float:
        """Score of a generated answer in [0, 1].

        Raises:
            TaskError: if the task's items are scored by log-likelihoods.
        """
        from evomerge.tasks.lm_eval_model import SaidLM

        place = self._places[item.id]
        if self._loaded.tasks[place[0]].OUTPUT_TYPE != "generate_until":
            raise TaskError.of(
                f"{self._key}.task", f"{place[0]}, whose items are scored by log-likelihoods",
                "a task that generates text", "Answer it with an engine.",
            )  # fmt: skip
        return self._score(self._ask(SaidLM(text), [place], loglik=False, own=True)[place])

    def answer(
        self, engine: Any, split: str, indices: Sequence[int] | None, loglik: bool
    ) -> ItemScores:
        """Lets an engine answer items, and the harness score them.

        Args:
            engine: with the weights of a model.
            split: one of `SPLITS`.
            indices: of the items; None for all.
            loglik: score the right answers, too.

        Raises:
            NotFiniteError: for a score or a log-likelihood that is not finite.
            TaskError, ConfigError: if the task's settings are at fault.
        """
        from evomerge.tasks.lm_eval_model import EngineLM

        everything = self.items(split)
        items = everything if indices is None else [everything[i] for i in indices]
        lm = EngineLM(engine, self._chat_arguments, self._think_end)
        if self._prompting.chat is not None:
            self._template = lm.apply_chat_template
        places = [self._places[item.id] for item in items]
        probable = self._metric.name == TOKEN_PROBABILITY
        found = self._ask(lm, places, loglik or probable)
        answers = [found[place] for place in places]
        logliks = np.array([one.loglik for one in answers], dtype=np.float64)
        if (loglik or probable) and not np.isfinite(logliks).all():
            raise NotFiniteError(f"{self.name}: log-likelihood is not finite")
        return ItemScores(
            task=self.name,
            split=split,
            ids=tuple(item.id for item in items),
            scores=np.array([self._score(one) for one in answers], dtype=np.float64),
            logliks=logliks if loglik else np.full(len(items), np.nan),
            texts=tuple(one.text for one in answers),
            tokens=np.array([one.tokens for one in answers], dtype=np.int64),
        )

    def validate(self) -> list[Problem]:
        """Everything wrong with the task, read or not; empty if it can be used."""
        try:
            return list(overlap_problems(self._items, lambda item: item.fields["doc"], self._key))
        except TaskError as error:
            return list(error.problems)

    def check_length(self, limit: int) -> Iterator[Problem]:
        """What a model's context is too short for.

        Longer prompts lose their beginning, as in the harness.

        Args:
            limit: most tokens of prompt and answer.
        """
        from evomerge.tasks.lm_eval_model import room_problem, sampling_of

        for name, task in self._loaded.tasks.items():
            if task.OUTPUT_TYPE == "generate_until":
                longest = sampling_of(task.config.generation_kwargs).max_new_tokens
                if longest >= limit:
                    yield room_problem(longest, limit, name)
                    return

    def prompt_room(self, limit: int) -> int:
        """Most tokens of a prompt that is asked whole.

        Args:
            limit: most tokens of prompt and answer.
        """
        kinds = {task.OUTPUT_TYPE for task in self._loaded.tasks.values()}
        return limit - (self.sampling.max_new_tokens if "generate_until" in kinds else 0)

    def contents(self) -> dict[str, str]:
        """What stands for settings whose meaning lies in files: a hash of the harness's own."""
        return {"task": self._digest, "include_path": ""}

    @cached_property
    def _loaded(self) -> loading.Loaded:
        if not isinstance(self._task, str) or not self._task:
            raise TaskError.of(
                f"{self._key}.task", repr(self._task), "the harness's name of a task, group or tag",
                f"Set {self._key}.task, for example to gsm8k.",
            )  # fmt: skip
        if not _is_number(self._weight) or self._weight < 0:
            raise TaskError.of(
                f"{self._key}.loglik_weight", repr(self._weight), "a number of at least 0",
                "Correct it.",
            )  # fmt: skip
        shots = self._fewshot
        if shots is not None and (type(shots) is not int or shots < 0):
            raise TaskError.of(
                f"{self._key}.num_fewshot", repr(shots), "a whole number of at least 0, or null",
                "Correct it.",
            )  # fmt: skip
        found = loading.load(self._task, self._include_path, self._allow_code, self._key)
        problems = [p for task in found.tasks.values() for p in self._set_up(task)]
        if problems:
            raise TaskError(list(dict.fromkeys(problems)))
        return found

    @cached_property
    def _metric(self) -> Metric:
        metric, filter, bounds, weighting = self._wanted
        low_high = [b for b in bounds if _is_number(b)]
        if len(low_high) != 2 or len(list(bounds)) != 2 or not low_high[0] < low_high[1]:
            raise TaskError.of(
                f"{self._key}.metric_range", repr(bounds), "two numbers, the lower one first",
                "Correct it.",
            )  # fmt: skip
        if weighting not in (None, "items"):
            raise TaskError.of(
                f"{self._key}.group_weighting", repr(weighting), "items or null", "Correct it."
            )
        found = self._loaded
        return choose_metric(found.tasks, found.group, metric, filter, low_high, self._key)

    @cached_property
    def _digest(self) -> str:
        metric = self._metric
        more = {**vars(metric), "release": self._loaded.release, "chat": self._chat_arguments,
                "think_end": self._think_end}  # fmt: skip
        return documents.settings_digest(self._loaded.tasks, self._prompting, more)

    @cached_property
    def _items(self) -> dict[str, tuple[Item, ...]]:
        first = next(iter(self._loaded.tasks.values()))
        metric = self._metric
        items = self._division.divide(
            first, self._read, lambda item: item.fields["doc"], lambda i: self._places[i.id][0]
        )
        sizes = {split: Counter(self._places[i.id][0] for i in items[split]) for split in SPLITS}
        check_weights(self._loaded.group, metric, sizes, self._wanted[3], self._key)
        tested = {self._places[item.id][:2] for item in items["test"]}
        for name, task in self._loaded.tasks.items():
            if (name, documents.fewshot_split(task)) in tested:
                raise TaskError.of(
                    f"{self._key}.num_fewshot",
                    f"{task.config.num_fewshot} examples of {name} out of "
                    f"{documents.fewshot_split(task)}, where its test items are",
                    "examples that are no test items",
                    f"Set {self._key}.num_fewshot=0, take test items from another split, or "
                    "give the task a fewshot_split in a YAML of your own that includes it.",
                )
        return items

    def _set_up(self, task: Any) -> Iterator[Problem]:
        """Puts our settings into a task of the harness, as its own command line does."""
        from evomerge.tasks.lm_eval_model import sampling_of

        own = task.get_config("num_fewshot")
        if self._fewshot is not None and own == 0 and self._fewshot > 0:
            yield Problem(
                f"{self._key}.num_fewshot", str(self._fewshot),
                f"0 or null, as {task.task_name} says that it takes no examples", "Correct it.",
            )  # fmt: skip
        task.set_config("num_fewshot", (own or 0) if self._fewshot is None else self._fewshot)
        if task.OUTPUT_TYPE != "generate_until":
            if self._generation:
                yield Problem(
                    f"{self._key}.generation_kwargs", f"settings for {task.task_name}",
                    "none, as it generates nothing", "Remove them.",
                )  # fmt: skip
            return
        task.set_config("generation_kwargs", self._generation, update=True)
        try:
            sampling_of(task.config.generation_kwargs)
        except (ValueError, TypeError) as error:
            yield Problem(
                f"{self._key}.generation_kwargs", f"{error} in {task.task_name}",
                "stop strings, a longest answer, and what `Sampling` has",
                f"Override it, such as {self._key}.generation_kwargs={{do_sample: false}}, "
                "with null for what the task should not have.",
            )  # fmt: skip

    def _read(self, wanted: str, field: str) -> list[Item]:
        """The items of a split of the data set, of all tasks."""
        items = []
        for name, task in self._loaded.tasks.items():
            split = documents.resolve_split(task, wanted, field)
            prepared = self._prepare(name, split, own=True)
            before = f"{name}/" if len(self._loaded.tasks) > 1 else ""
            for index in range(len(prepared.docs)):
                id = f"{before}{split}/{index}"
                self._places[id] = (name, split, index)
                fields = {
                    "doc": prepared.content(index),
                    "prompt": prepared.prompt(index),
                    "settings": self._digest,
                }
                gold = prepared.gold_text(index)
                items.append(Item(id, fields, gold.strip(), gold))
        return items

    def _prepare(self, name: str, split: str, own: bool) -> documents.Prepared:
        """A task with prompts: our text of chats, or what the model's template makes of them."""
        own = own or self._prompting.chat is None
        if (name, split, own) not in self._prepared:
            prompting = self._prompting if own else replace(self._prompting, chat=self._template)
            try:
                with loading.quiet():
                    found = documents.Prepared(self._loaded.tasks[name], split, prompting)
            except Exception as error:  # of a template, of the data, or of a task's own code
                raise TaskError.of(
                    f"{self._key}.task", f"{name}, whose prompts cannot be built "
                    f"({type(error).__name__}: {str(error)[:200]})",
                    "documents that fit the task's templates", "Correct the task or its data.",
                ) from error  # fmt: skip
            self._prepared[name, split, own] = found
        return self._prepared[name, split, own]

    def _ask(
        self, lm: Any, places: Iterable[Place], loglik: bool, own: bool = False
    ) -> dict[Place, Answered]:
        """Lets the harness ask a model some documents."""
        wanted: dict[tuple[str, str], set[int]] = {}
        for name, split, index in places:
            wanted.setdefault((name, split), set()).add(index)
        out: dict[Place, Answered] = {}
        for (name, split), found in wanted.items():
            prepared, indices = self._prepare(name, split, own), sorted(found)
            answers = ask(lm, prepared, indices, self._metric.filter, loglik, self._key)
            out |= {(name, split, i): one for i, one in zip(indices, answers, strict=True)}
        return out

    def _score(self, answered: Answered) -> float:
        metric = self._metric
        if metric.name == TOKEN_PROBABILITY:
            return math.exp(answered.loglik)
        if metric.name not in answered.values:
            raise TaskError.of(
                f"{self._key}.metric", f"no {metric.name} of an item", "a value of every item",
                "Choose another metric.",
            )  # fmt: skip
        return metric.score(answered.values[metric.name], self._key)


def _is_number(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


def _messages_as_text(messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
    """Stands for the prompt that a model's chat template makes of messages."""
    return "".join(f"[{one['role']}]\n{one['content']}\n" for one in messages)
