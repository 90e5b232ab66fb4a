"""The plain sentences on top of the report."""

from __future__ import annotations

import pytest
import report_runs as runs

from evomerge.report.candidates import candidate_records
from evomerge.report.verdict import progress, verdict


def paired(difference: float, low: float, high: float, p: float) -> dict[str, object]:
    return {"against": "math", "difference": difference, "low": low, "high": high, "p": p}


def test_a_clear_gain() -> None:
    judged = verdict(runs.results())
    assert judged.kind == "better"
    assert judged.headline == (
        "The chosen merge, “evolved merge”, scores 62.0% [56.0%, 68.0%] (95% interval) on the "
        "held-out test split of jp_math (250 items)."
    )
    assert judged.sentences[0] == (
        "That is 12.0 percentage points above the best source “math” ([+5.0, +19.0], p < 0.001)."
    )
    assert "4.0 percentage points above the held-out score" in judged.sentences[1]
    assert len(judged.sentences) == 2


@pytest.mark.parametrize(
    ("test", "kind"),
    [
        (paired(0.01, -0.05, 0.07, 0.7), "unclear"),
        (paired(0.05, 0.001, 0.1, 0.06), "unclear"),
        (paired(0.05, -0.001, 0.1, 0.04), "unclear"),
        (paired(-0.1, -0.17, -0.03, 0.01), "worse"),
        (paired(0.1, 0.03, 0.17, 0.01), "better"),
        ({}, "untested"),
    ],
)
def test_what_is_significant(test: dict[str, object], kind: str) -> None:
    assert verdict(runs.results(paired_test=test)).kind == kind


def test_no_difference_is_said_plainly() -> None:
    judged = verdict(runs.results(paired_test=paired(0.01, -0.05, 0.07, 0.7)))
    assert "not significant: this study does not show" in judged.sentences[0]


def test_only_the_best_source_is_called_so() -> None:
    test = paired(0.33, 0.2, 0.4, 0.001) | {"against": "japanese"}
    assert "the source “japanese”" in verdict(runs.results(paired_test=test)).sentences[0]


def test_a_control_that_did_better_is_named() -> None:
    results = runs.results()
    results["models"]["TIES"]["scores"]["jp_math"]["test"]["value"] = 0.7
    assert verdict(results).sentences[-1] == (
        "Held-out scores above that of the chosen merge: “TIES” (70.0%)."
    )


def test_no_optimism() -> None:
    results = runs.results()
    results["models"]["evolved merge"]["scores"]["jp_math"]["search"]["value"] = 0.6
    assert "no sign of optimism" in verdict(results).sentences[1]


def test_the_same_score_is_no_gap() -> None:
    results = runs.results()
    results["models"]["evolved merge"]["scores"]["jp_math"]["search"]["value"] = 0.62
    assert "the same as the held-out score" in verdict(results).sentences[1]


def test_other_tasks_are_reported_without_search_scores() -> None:
    results = runs.results()
    results["models"]["evolved merge"]["scores"]["en_math"] = {"test": runs.score(0.4, 90)}
    assert verdict(results).sentences[-1] == (
        "On tasks that the search did not use, it scores 40.0% on en_math."
    )


def test_results_without_models_claim_nothing() -> None:
    judged = verdict({"models": {}})
    assert judged.kind == "untested"
    assert "no held-out score" in judged.headline


def test_a_running_study_claims_nothing() -> None:
    judged = progress(candidate_records([]), ended=False)
    assert judged.kind == "running"
    assert judged.headline == "0 of 0 proposed candidates have been evaluated, 0 of them failed."
    assert "no results.json yet" in judged.sentences[0]
