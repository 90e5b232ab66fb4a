"""`irt compare`: which way to choose items and to estimate suits a matrix, by cross-validation."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evomerge.errors import ConfigError
from evomerge.estimators.selection import (
    ADAPTIVE,
    CONFIGURATIONS,
    Configuration,
    Trial,
    cross_validated,
    measured_misfit,
    selected,
)
from evomerge.irt.responses import Responses, read_responses
from evomerge.progress import Progress

LEAST_MODELS = 16
"""Fewer complete rows say nothing of models that were left out."""

OTHERS = (
    Configuration("random", "mean", 0),
    Configuration("stratified", "stratified", 0),
    Configuration("random", "kriging", 0),
    Configuration("random", "p_irt", 1),
    Configuration("kmeans_items", "gp_irt", 1),
)
"""Shown beside those that are recommended, so that one sees what they gain."""

Found = Mapping[Configuration, Mapping[int, Trial]]


def add_arguments(parser: argparse.ArgumentParser, matrix_help: str) -> None:
    """The options of `irt compare`."""
    parser.add_argument("matrix", metavar="MATRIX", nargs="+", type=Path, help=matrix_help)
    parser.add_argument("--items", metavar="N[,N]", default="20,50",
                        help="numbers of items that a candidate answers (20,50)")  # fmt: skip
    parser.add_argument("--task", metavar="NAME", help="takes only this task's items")
    parser.add_argument("--metric", metavar="NAME", help="of lm-eval's samples: METRIC[,FILTER]")
    parser.add_argument("--split", metavar="NAME", default="search",
                        help="of run directories and ledgers (search)")  # fmt: skip


def compare(options: argparse.Namespace) -> int:
    """Cross-validates, prints a table and the settings of a study; returns the exit code.

    Raises:
        ConfigError: for numbers of items that cannot be, and too few complete models.
    """
    with Progress() as progress:
        progress.say("reading the answers")
        answers = complete(
            read_responses(
                options.matrix, task=options.task, metric=options.metric, split=options.split
            )
        )
        sizes = _sizes(options.items, len(answers.items))
        progress.say(
            f"leaving out models of {len(answers.models)}, {len(answers.items)} items each"
        )
        found = cross_validated(answers, (*CONFIGURATIONS, *OTHERS), sizes)
    print(table(found, sizes))
    for name, pool in (
        ("each candidate its own items", CONFIGURATIONS),
        ("the same items for all", [c for c in CONFIGURATIONS if c.choose != ADAPTIVE]),
    ):
        best = selected({c: found[c] for c in pool})
        print(f"\nbest, {name}: {best}\n  {settings(best, found[best], options.matrix)}")
    return 0


def complete(responses: Responses) -> Responses:
    """The models that answered every item.

    Raises:
        ConfigError: if they are too few.
    """
    rows = np.flatnonzero(~np.isnan(responses.scores).any(axis=1))
    if len(rows) < LEAST_MODELS:
        raise ConfigError.of(
            "MATRIX", f"{len(rows)} of {len(responses.models)} models with answers to all items",
            f"at least {LEAST_MODELS}, since models are left out in turn",
            "Give answers of more models, or of one task alone (--task).",
        )  # fmt: skip
    return responses if len(rows) == len(responses.models) else responses.select(rows)


def table(found: Found, sizes: Sequence[int]) -> str:
    """Mean absolute error in points and coverage of 95% intervals, a line a configuration."""
    width = max(len(str(c)) for c in found)
    head = "".join(f"{f'{n} items':>22}" for n in sizes)
    lines = [f"{'error in points (95% interval covers)':{width}}{head}"]
    for configuration, trials in found.items():
        cells = ""
        for n in sizes:
            trial = trials[n]
            extra = measured_misfit(trial) * trial.unseen
            half = 1.96 * np.hypot(trial.stderrs, extra)
            inside = float((np.abs(trial.errors) <= half).mean())
            cells += f"{100 * float(np.abs(trial.errors).mean()):>14.2f} ({inside:.0%})".rjust(22)
        lines.append(f"{configuration!s:{width}}{cells}")
    return "\n".join(lines)


def settings(best: Configuration, trials: Mapping[int, Trial], matrix: Sequence[Path]) -> str:
    """What to give a study."""
    size = min(trials)
    parts = [
        f"estimator=anchors estimator.estimate={best.estimate}",
        f"estimator.dimensions={best.dimensions} estimator.misfit="
        f"{measured_misfit(trials[size]):.3g}",
        f"estimator.items={size}",
    ]
    if best.choose == ADAPTIVE:
        parts.append("racing=adaptive estimator.next=variance")
    else:
        parts.append(f"estimator.choose={best.choose}")
    paths = ",".join(str(path) for path in matrix)
    parts.append(f"estimator.responses={paths if len(matrix) == 1 else f'[{paths}]'}")
    return " ".join(parts)


def _sizes(text: str, most: int) -> list[int]:
    sizes = [int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if any(not 2 <= n <= most for n in sizes):
        raise ConfigError.of(
            "--items", text, f"numbers from 2 to {most}, with commas between them",
            "For example --items 20,50.",
        )  # fmt: skip
    return sorted(set(sizes))
