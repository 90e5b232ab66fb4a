"""The small values that travel between the rooms of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

Prompt = str | Sequence[int]
"""What a model is asked: a text, which may be a `Chat`, or its token ids."""


class Chat(str):
    """A user's turn, which engines put into the tokenizer's own chat template.

    Attributes:
        system: text of the system's turn before it; empty for none.
    """

    system: str

    def __new__(cls, user: str, system: str = "") -> Chat:
        """Makes one of the user's text."""
        chat = super().__new__(cls, user)
        chat.system = system
        return chat

    def turns(self) -> list[dict[str, str]]:
        """The turns as templates take them: `role` and `content` of each."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": str(self)}]


SPLITS = ("search", "validation", "test")
"""The three disjoint splits of a task, in the order in which a study uses them."""


@dataclass(frozen=True)
class Item:
    """One problem of a task.

    Attributes:
        id: unique within the task.
        fields: every column of the row it came from, as text; fills the prompt template.
        target: the answer that the scorer compares with (a number as text, a label, a text).
        gold: the complete text of a right answer, for the log-likelihood; empty if unknown.
    """

    id: str
    fields: Mapping[str, str]
    target: str
    gold: str = ""


@dataclass(frozen=True)
class Sampling:
    """How an engine generates.

    Attributes:
        max_new_tokens: the longest answer, in tokens.
        stop: strings that end an answer; never part of the returned text.
        temperature: 0 is greedy; above, the settings from `top_p` to `min_p` say what is drawn.
        top_p: keep the likeliest tokens that have this probability together; 1 keeps all.
        top_k: keep so many of the likeliest tokens; 0 keeps all.
        min_p: keep tokens of at least this share of the likeliest one's probability; 0 keeps all.
        repetition_penalty: logits of tokens that stand in the prompt or the answer are divided by
            it where they are positive and multiplied where negative; 1 changes nothing. It applies
            to greedy answers, too.
        seed: of the draws, with the item's place; None takes the study's.
    """

    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None


@dataclass(frozen=True)
class Generation:
    """An engine's answer to one prompt: its text and its length in tokens."""

    text: str
    tokens: int


@dataclass(frozen=True)
class ItemScores:
    """What one model did on the items of one split: an array items x metrics with ids.

    Attributes:
        task: name of the task.
        split: one of `SPLITS`.
        ids: the items' ids, in order.
        scores: plain score of each item in [0, 1], an `n` array.
        logliks: mean log-likelihood a token (nats) of each item's gold answer,
            an `n` array; NaN where it was not asked for.
        texts: the answers; empty strings where nothing was generated.
        tokens: number of tokens generated for each item, an `n` array.
    """

    task: str
    split: str
    ids: tuple[str, ...]
    scores: FloatArray
    logliks: FloatArray
    texts: tuple[str, ...]
    tokens: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Fitness:
    """What a candidate is worth.

    Attributes:
        values: to be maximised, one an objective.
        stderr: their standard errors.
        constraints: one a constraint; satisfied at 0 or below, in the constrained metric's unit.
    """

    values: tuple[float, ...]
    stderr: tuple[float, ...]
    constraints: tuple[float, ...] = ()

    @property
    def violation(self) -> float:
        """Sum of what the constraints exceed 0 by; 0 if all are satisfied."""
        return float(sum(max(0.0, c) for c in self.constraints))

    @property
    def feasible(self) -> bool:
        """Whether every constraint is satisfied."""
        return self.violation == 0.0

    @classmethod
    def of_event(cls, event: Mapping[str, Any]) -> Fitness:
        """The fitness that an event of a journal holds."""
        limits = tuple(event.get("constraints", ()))
        return cls(tuple(event["fitness"]), tuple(event["stderr"]), limits)

    def rank(self, complete: bool = True) -> Rank:
        """To be maximised: feasible ones by their first value, complete ones first; the rest.

        Args:
            complete: whether all items were answered that a candidate may be asked.
        """
        return (2 + complete, self.values[0]) if self.feasible else (1, -self.violation)


Rank = tuple[int, float]
"""How candidates are ordered; greater is better."""


@dataclass(frozen=True)
class Observation:
    """What the optimiser is told of one candidate.

    Attributes:
        genome: of the candidate.
        fitness: None if it failed.
        scores: of each item, at least 0 and of the same items for all candidates, an `n` array;
            None where nobody asked for them (`Optimizer.uses_item_scores`) or it failed.
    """

    genome: FloatArray
    fitness: Fitness | None
    scores: FloatArray | None = None


class Task(Protocol):
    """Items, prompt and scorer, split into search, validation and held-out test."""

    name: str
    sampling: Sampling
    loglik_weight: float

    def items(self, split: str) -> Sequence[Item]:
        """The items of one of `SPLITS`, in a fixed order."""

    def prompt(self, item: Item) -> str:
        """The text that the model is given for an item."""

    def score(self, item: Item, text: str) -> float:
        """Plain score of an answer in [0, 1]."""


@runtime_checkable
class Answering(Protocol):
    """A task that asks a model and scores it by itself, instead of prompt by prompt."""

    def answer(
        self, engine: Engine, split: str, indices: Sequence[int] | None, loglik: bool
    ) -> ItemScores:
        """What a model has of some items of a split (None: of all), with `loglik` that, too."""


class Engine(Protocol):
    """Holds one running model, takes weights in place, generates or scores text."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Generation]:
        """Answers every prompt, a text or token ids, in the order given."""

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> FloatArray:
        """Mean log-likelihood a token (nats) of each continuation given its context."""

    def score_tokens(self, rows: Sequence[tuple[Sequence[int], int]]) -> list[tuple[float, bool]]:
        """Log-likelihood (nats) of the ends of rows of tokens, and whether each is the greedy one.

        A row is token ids and the index of the first one to score.
        """

    def close(self) -> None:
        """Frees the model; the engine cannot be used afterwards."""
