"""Merging, searching and measuring the committed models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.zoo import SOURCES, search, table, zoo_path
from evomerge.zoo.items import read_items
from evomerge.zoo.measure import answers, is_right
from evomerge.zoo.merging import GROUPS, ZooMerger, group_of
from evomerge.zoo.tokenizer import build_tokenizer

MODELS = zoo_path("models")


@pytest.fixture(scope="module")
def merger() -> ZooMerger:
    return ZooMerger(MODELS)


def flat(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


def test_groups_cover_every_tensor(merger: ZooMerger) -> None:
    found = {group_of(name) for name, _ in merger.model.named_parameters()}
    assert found == set(range(len(GROUPS)))


def test_weight_of_one_is_the_source(merger: ZooMerger) -> None:
    for source, one in zip(SOURCES, np.eye(len(SOURCES)), strict=True):
        merged = flat(merger.merge(one[:, None]))
        assert torch.equal(merged, flat(ZooMerger(MODELS, (source,)).merge(np.ones((1, 1)))))
    base = flat(merger.merge(np.zeros((3, len(GROUPS)))))
    assert not torch.equal(base, merged)


def test_per_layer_weights_change_only_their_group(merger: ZooMerger) -> None:
    weights = np.zeros((3, len(GROUPS)))
    base = {k: v.clone() for k, v in merger.merge(weights).named_parameters()}
    weights[0, 2] = 1.0
    for name, weight in merger.merge(weights).named_parameters():
        assert torch.equal(weight, base[name]) == (group_of(name) != 2)


def test_fitness_prefers_the_better_merge(merger: ZooMerger) -> None:
    rows = read_items("jp_math", "search")[:40]
    uniform = search.fitness(merger.merge(np.full((3, 1), 1 / 3)), rows)
    tuned = search.fitness(merger.merge(np.array([[1.0], [1.0], [0.0]])), rows)
    assert tuned > uniform + 0.3


def test_a_merge_does_what_no_source_can(merger: ZooMerger) -> None:
    rows = read_items("jp_math", "test")[:100]
    model = merger.merge(np.array([[1.0], [1.0], [0.0]]))
    texts = answers(model, build_tokenizer(), [row["question"] for row in rows])
    right = [is_right("jp_math", t, row["answer"]) for t, row in zip(texts, rows, strict=True)]
    assert np.mean(right) >= 0.5


def test_search_finds_the_top_of_a_hill_and_repeats_itself() -> None:
    top = np.array([0.2, 1.0, 0.6])
    runs = [search.search(lambda x: -float(((x - top) ** 2).sum()), 3, 150, 4) for _ in range(2)]
    assert np.abs(runs[0][0] - top).max() < 0.05
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))
    assert len(runs[0]) == search.FINALISTS + 1


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merges = tmp_path / "merges.json"
    budgets = ["--global-budget", "7", "--layer-budget", "12"]
    search.main(["--items", "4", "--out", str(merges), *budgets])
    found = json.loads(merges.read_text(encoding="utf-8"))
    assert np.shape(found["global search"]) == (3, 1)
    assert np.shape(found["per-layer search"]) == (3, len(GROUPS))
    capsys.readouterr()
    table.main(["--items", "2", "--merges", str(merges)])
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| ") for line in lines) == 1 + 4 + 2 + 2
