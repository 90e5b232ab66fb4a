"""The chosen merge against every other model on the same held-out items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.estimators.intervals import paired_test
from evomerge.report.answers import Answers
from evomerge.report.statistics import LEVEL, holm
from evomerge.report.words import listed


@dataclass(frozen=True)
class Against:
    """How much better the chosen merge is than another model on one task.

    Attributes:
        task: the task.
        name: of the other model.
        role: of it.
        difference: mean of merge minus other, a share.
        low, high: of its 95% interval.
        p: of the two-sided paired test.
        adjusted: the same after Holm's correction over all comparisons of the task.
        items: how many items both answered.
        wins: items on which the merge scores higher.
        losses: items on which it scores lower.
        method: of the test, in words.
    """

    task: str
    name: str
    role: str
    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    items: int
    wins: int
    losses: int
    method: str

    @property
    def finding(self) -> str:
        """The result in a plain word or two."""
        if self.adjusted >= LEVEL:
            return "not significant"
        return "better" if self.difference > 0 else "worse"


METHODS = {
    "mcnemar": "McNemar's exact test, Tango's interval",
    "permutation": "sign-flip permutation test, bootstrap interval",
}


def controls_sentence(rows: Sequence[Against]) -> str:
    """What the comparisons with the controls of one task say; empty without controls."""
    controls = [row for row in rows if row.role == "control"]
    if not controls:
        return ""

    def of(finding: str) -> str:
        found = [row for row in controls if row.finding == finding]
        return listed([f"“{row.name}” ({points_short(row.difference)})" for row in found])

    parts = [f"significantly better than {of('better')}"] if of("better") else []
    parts += [f"significantly worse than {of('worse')}"] if of("worse") else []
    parts += [f"not significantly different from {of('not significant')}"] * bool(
        of("not significant")
    )
    return (
        f"Against the controls on {controls[0].task}, corrected for all {len(rows)} comparisons, "
        f"it is {'; '.join(parts)}."
    )


def points_short(difference: float) -> str:
    """A difference of shares in points: "+3.1"."""
    return f"{100 * difference:+.1f}"


def against_all(answers: Answers) -> dict[str, list[Against]]:
    """By task, the comparisons with every source and control, the closest one first."""
    found: dict[str, list[Against]] = {}
    for task in answers.tasks:
        merge = task.chosen
        others = [at for at in range(len(task.subjects)) if at != merge]
        if merge is None or not others:
            continue
        tests = [paired_test(task.scores[merge], task.scores[at]) for at in others]
        adjusted = holm([test.p for test in tests])
        rows = []
        for at, test, corrected in zip(others, tests, adjusted, strict=True):
            gaps = task.scores[merge] - task.scores[at]
            rows.append(
                Against(
                    task.task, task.subjects[at].name, task.subjects[at].role, test.difference,
                    test.low, test.high, test.p, corrected, test.n, int((gaps > 0).sum()),
                    int((gaps < 0).sum()), METHODS[test.test_method],
                )
            )  # fmt: skip
        found[task.task] = sorted(rows, key=lambda row: row.difference)
    return found
