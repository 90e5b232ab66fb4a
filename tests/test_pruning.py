"""The pool of a real study: warned about, pruned, and the same when resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies import quick_config

from evomerge.errors import ConfigError
from evomerge.progress import Progress
from evomerge.pruning import prepared
from evomerge.setup import make_setup
from evomerge.study import run_study
from evomerge.zoo import zoo_path

TWIN = f"+models.sources.twin={zoo_path('models/math')}"
QUIET = Progress(quiet=True)


def test_a_pool_without_findings_stays_as_it_is(tmp_path: Path) -> None:
    config = quick_config(tmp_path / "run")
    assert prepared(config, QUIET) == config
    kept = json.loads((tmp_path / "run" / "pool" / "pool.json").read_text())
    assert kept["kept"] == ["math", "japanese", "sorter"] and kept["warnings"] == []


def test_near_duplicates_are_named_and_pruned_where_wanted(tmp_path: Path, capsys) -> None:
    config = quick_config(tmp_path / "warned", TWIN)
    assert prepared(config, Progress()) == config
    assert "twin" in capsys.readouterr().err
    pruned = prepared(quick_config(tmp_path / "pruned", TWIN, "pool.prune=true"), QUIET)
    assert list(pruned["models"]["sources"]) == ["math", "japanese", "sorter"]


def test_irrelevant_sources_are_left_out_and_a_resumed_study_does_not_measure_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On sorting alone, nothing but the sorter is better than the base."""
    overrides = (
        "task=sort_tiny", "++task.search.limit=60", "pool.prune=true", "pool.relevance=true",
        "estimator.items=60", "budget.candidates=5", "optimizer=random",
    )  # fmt: skip
    config = quick_config(tmp_path / "run", *overrides)
    pruned = prepared(config, QUIET)
    assert "sorter" in pruned["models"]["sources"]
    assert "japanese" not in pruned["models"]["sources"]
    found = json.loads((tmp_path / "run" / "pool" / "pool.json").read_text())
    assert set(found["dropped"]) == set(config["models"]["sources"]) - set(found["kept"])
    results = run_study(make_setup(pruned), QUIET)
    assert "japanese" not in results["models"]
    monkeypatch.setattr("evomerge.pruning._measured", lambda *arguments: pytest.fail("again"))
    assert prepared(config, QUIET) == pruned


def test_no_check_reads_nothing(tmp_path: Path) -> None:
    config = quick_config(tmp_path / "run", TWIN, "pool.check=false")
    assert prepared(config, QUIET) == config
    assert not (tmp_path / "run").exists()


def test_a_rule_without_what_it_needs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pool\.keep"):
        prepared(quick_config(tmp_path / "run", "pool.keep=2"), QUIET)
