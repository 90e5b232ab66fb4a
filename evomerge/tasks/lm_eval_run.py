"""Lets the harness ask a model chosen documents of a task, and reads what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.errors import TaskError
from evomerge.tasks.lm_eval_docs import Chosen, Prepared
from evomerge.tasks.lm_eval_loading import quiet


@dataclass(frozen=True)
class Answered:
    """What the harness found of one document.

    Attributes:
        values: the document's own value of each metric.
        text: what was generated, or which of the choices was the likeliest; may be empty.
        tokens: number of generated tokens.
        loglik: mean log-likelihood a token (nats) of the right answer; NaN if not asked for.
    """

    values: Mapping[str, Any]
    text: str
    tokens: int
    loglik: float


def ask(
    lm: Any, prepared: Prepared, indices: Sequence[int], filter: str, loglik: bool, key: str
) -> list[Answered]:
    """Answers documents and scores them; the harness's `evaluate` does all of it.

    Args:
        lm: one of the harness's models.
        prepared: the task.
        indices: of the documents, ascending and each once.
        filter: whose answers are scored.
        loglik: score the right answers, too; the model has to be an `EngineLM`.
        key: config key of the task, for messages.

    Raises:
        TaskError: if the harness answered other documents.
    """
    from lm_eval.evaluator import evaluate

    name, indices = prepared.name, list(indices)
    with quiet():
        found = evaluate(
            lm,
            {"tasks": {name: Chosen(prepared, indices)}},
            samples={name: indices},
            bootstrap_iters=0,
            log_samples=True,
        )
    rows = [row for row in found["samples"][name] if row["filter"] == filter]
    if [row["doc_id"] for row in rows] != indices:
        raise TaskError.of(
            f"{key}.task", f"answers to other documents of {name} than were asked",
            "the chosen ones in their order", "Report this: the harness has changed.",
        )  # fmt: skip
    asked: list[list[Any]] = [[] for _ in indices]
    for request in prepared.task.instances:
        asked[request.doc_id].append(request)
    logliks = _logliks(lm, prepared, indices, asked) if loglik else [float("nan")] * len(indices)
    lengths = getattr(lm, "lengths", {})
    generates = prepared.task.OUTPUT_TYPE == "generate_until"
    return [
        Answered(
            {metric: row[metric] for metric in row["metrics"]},
            _said(prepared.task.OUTPUT_TYPE, requests),
            sum(lengths.get(id(one), 0) for one in requests) if generates else 0,
            value,
        )
        for row, requests, value in zip(rows, asked, logliks, strict=True)
    ]


def _logliks(
    lm: Any, prepared: Prepared, indices: Sequence[int], asked: Sequence[Sequence[Any]]
) -> list[float]:
    """Mean log-likelihood a token (nats) of each document's right answer, of several the best."""
    right: list[list[Any]] = []
    if prepared.task.OUTPUT_TYPE == "generate_until":
        from lm_eval.api.instance import Instance

        for index in indices:
            pair = prepared.requests[index][0].args[0], prepared.gold_text(index)
            extra = Instance("loglikelihood", prepared.docs[index], pair, 0, (prepared.name, 0, 1))
            right.append([extra] if pair[1] else [])
        lm.loglikelihood([one for ones in right for one in ones])
    else:
        for index, requests in zip(indices, asked, strict=True):
            right.append([requests[at] for at in prepared.gold(index)])
    return [
        max((lm.sums[id(one)] / lm.lengths[id(one)] for one in ones), default=float("nan"))
        for ones in right
    ]


def _said(kind: str, requests: Sequence[Any]) -> str:
    """The first text that was generated, or the likeliest of several choices."""
    if kind == "generate_until":
        return str(requests[0].resps[0])
    if kind != "multiple_choice":
        return ""
    likeliest = max(requests, key=lambda one: one.resps[0][0])
    return str(likeliest.args[-1]).strip()
