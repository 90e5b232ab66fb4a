"""One search of the digits experiment: propose, run on the training images, hear."""

from __future__ import annotations

import time
from collections.abc import Callable

from evomerge.digits import methods
from evomerge.digits.records import Plan, Record, checkpoints
from evomerge.zoo import digits


def run(plan: Plan, report: Callable[[int, float], None] | None = None) -> list[Record]:
    """Searches as a plan says.

    A search that ends before its budget keeps its last accuracies for the rest of it.

    Args:
        plan: what to do.
        report: hears the number of evaluations and the best accuracy on the training images,
            about twice a second.

    Returns:
        where it stood after each of `checkpoints(plan.budget)`.
    """
    train, test = digits.load(plan.pixels)
    search = methods.make(plan, beginnings(plan, train), train.labels)
    runner, judge = digits.Classifier(train), digits.Classifier(test)
    began = shown = time.monotonic()
    records: list[Record] = []
    stops = checkpoints(plan.budget)
    done = 0
    for stop in stops:
        while done < stop:
            vectors = search.propose(stop - done)
            if not vectors:
                break
            for at, vector in enumerate(vectors):
                search.hear(at, runner.correct(vector))
            done += len(vectors)
            due = done < plan.budget and time.monotonic() - shown > 0.5
            if report is not None and due:
                shown = time.monotonic()
                report(done, search.best()[0])
        accuracy, vector = search.best()
        spent = time.monotonic() - began
        records.append(Record(stop, accuracy, judge.accuracy(vector), round(spent, 2)))
    if report is not None:
        report(stops[-1], records[-1].train)
    return records


def beginnings(plan: Plan, train: digits.Images) -> tuple[digits.Vector, digits.Vector]:
    """The two networks that a plan begins with."""
    if plan.start == "pretrained":
        return digits.pretrained(plan.seed, train, plan.initial)
    return digits.fresh(plan.seed, 0, plan.initial), digits.fresh(plan.seed, 1, plan.initial)
