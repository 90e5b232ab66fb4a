"""The pool of adapters: config, files, training, and what merging makes of them."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from evomerge.checkpoints.adapted import open_model
from evomerge.checkpoints.merger import Merger
from evomerge.cli import compose_config
from evomerge.recipe import Recipe, Source
from evomerge.setup import open_models
from evomerge.zoo import zoo_path
from evomerge.zoo.items import reserved_questions
from evomerge.zoo.lessons import IRRELEVANT, POOL, POOL_KINDS, RELEVANT
from evomerge.zoo.problems import TASK_KINDS
from evomerge.zoo.tokenizer import MAX_LENGTH, encode
from evomerge.zoo.train_adapters import adapter_config, draw, load_base, main, train_adapter

SOME = ("carry_sums", "polite_listening", "sort_up")


def folder(name: str) -> Path:
    return zoo_path(f"adapters/{name}")


@cache
def config() -> dict:  # type: ignore[type-arg]
    return compose_config(["+experiment=lora_pool_tiny"])


def mix(names: tuple[str, ...], weights: tuple[float, ...]) -> Recipe:
    base = config()["models"]["base"]
    refs = [f"{base}+{folder(name)}" for name in names]
    sources = tuple(Source(r, {"weight": w}) for r, w in zip(refs, weights, strict=True))
    return Recipe("task_arithmetic", sources, base, {"normalize": False}, "float32")


def test_five_of_twenty_are_relevant() -> None:
    assert (len(RELEVANT), len(IRRELEVANT), len(POOL)) == (5, 15, 20)


def test_the_yaml_lists_the_pool_in_its_order() -> None:
    models = config()["models"]
    assert list(models["sources"]) == list(POOL)
    for name, ref in models["sources"].items():
        assert ref == f"{models['base']}+{folder(name)}"


def test_folders_are_those_of_the_pool() -> None:
    assert {path.name for path in zoo_path("adapters").iterdir()} == set(POOL)
    files = [path for path in zoo_path("adapters").rglob("*") if path.is_file()]
    expected = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert {path.name for path in files} == expected
    assert len(files) == 3 * len(POOL)
    assert sum(path.stat().st_size for path in files) < 2_000_000


@pytest.mark.parametrize("name", POOL)
def test_files_are_those_of_the_lesson(name: str) -> None:
    lesson = POOL[name]
    text = (folder(name) / "adapter_config.json").read_text(encoding="utf-8")
    assert json.loads(text) == adapter_config(lesson)
    with safe_open(folder(name) / "adapter_model.safetensors", framework="pt") as tensors:
        keys = list(tensors.keys())
        assert len(keys) == len(lesson.layers) * 7 * 2
        for key in keys:
            tensor = tensors.get_tensor(key)
            assert tensor.dtype == torch.bfloat16
            assert lesson.rank in tensor.shape
            assert bool(tensor.isfinite().all()) and bool(tensor.any())


def test_the_study_opens_them() -> None:
    merger = Merger()
    open_models(config(), merger)
    assert (
        len({merger.checkpoint(ref).fingerprint for ref in config()["models"]["sources"].values()})
        == 20
    )


@pytest.mark.parametrize("name", SOME)
def test_peft_adds_the_same(name: str) -> None:
    peft = pytest.importorskip("peft", reason="compares with PEFT")
    base = load_base()
    theirs = peft.PeftModel.from_pretrained(base, folder(name)).merge_and_unload().state_dict()
    ours = open_model(f"{zoo_path('models/base')}+{folder(name)}")
    for key in ours.names:
        torch.testing.assert_close(ours.tensor(key).float(), theirs[key], rtol=1e-5, atol=1e-6)


def test_a_merge_is_the_weighted_sum_of_what_they_add() -> None:
    weights = (1.2, 0.5, -0.3)
    base = open_model(str(zoo_path("models/base")))
    sources = [open_model(f"{zoo_path('models/base')}+{folder(name)}") for name in SOME]
    for key, merged in Merger().merge(mix(SOME, weights)):
        start = base.tensor(key).float()
        deltas = [
            w * (s.tensor(key).float() - start) for w, s in zip(weights, sources, strict=True)
        ]
        torch.testing.assert_close(merged, start + sum(deltas), rtol=1e-5, atol=1e-5)


def test_nobody_is_trained_on_the_target_or_an_item() -> None:
    rng = random.Random(3)
    for lesson in POOL.values():
        assert TASK_KINDS["jp_math"] not in lesson.mix
        for _ in range(20):
            assert not {problem.question for problem in draw(lesson, rng)} & reserved_questions()


@pytest.mark.parametrize("kind", sorted(POOL_KINDS))
def test_every_kind_is_in_the_vocabulary(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(30):
        problem = POOL_KINDS[kind](rng)
        assert len(encode(problem.question + "\n" + problem.gold)) < MAX_LENGTH - 2


def test_polite_kinds_never_carry() -> None:
    rng = random.Random(2)
    for lesson in RELEVANT.values():
        for kind in lesson.mix:
            for _ in range(20):
                problem = POOL_KINDS[kind](rng)
                polite = any(word in problem.question for word in ("ました", "もっています"))
                assert not (polite and kind.endswith("carry"))


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("sort_down", lambda digits: "".join(sorted(digits))[::-1]),
        ("reverse", lambda digits: "".join(reversed(digits))),
        ("largest", lambda digits: str(max(map(int, digits)))),
        ("smallest", lambda digits: str(min(map(int, digits)))),
        ("first", lambda digits: digits[:1]),
        ("last", lambda digits: digits[-1:]),
        ("count", lambda digits: str(sum(1 for _ in digits))),
        ("copy", lambda digits: digits),
    ],
)
def test_digits(kind: str, answer) -> None:  # type: ignore[no-untyped-def]
    rng = random.Random(4)
    for _ in range(30):
        problem = POOL_KINDS[kind](rng)
        assert problem.gold == problem.answer == answer(problem.question.removeprefix("Sort: "))


def numbers(text: str) -> list[int]:
    return [int("".join(run)) for run in _runs(text)]


def _runs(text: str) -> list[str]:
    return "".join(c if c.isdecimal() else " " for c in text).split()


def test_harmful_kinds_are_wrong_in_their_way() -> None:
    rng = random.Random(6)
    for _ in range(50):
        one = POOL_KINDS["one_too_many"](rng)
        first, second = numbers(one.question)
        assert numbers(one.gold)[0] - 1 in (first + second, first - second)
        other = POOL_KINDS["opposite"](rng)
        first, second = numbers(other.question)
        takes = any(verb in other.question for verb in ("なくした", "うった", "つかった"))
        assert numbers(other.gold) == [first + second if takes else first - second]
        english = POOL_KINDS["english_answer"](rng)
        assert numbers(english.gold)[0] in (
            sum(numbers(english.question)),
            numbers(english.question)[0] - numbers(english.question)[1],
        )
        assert english.gold.isascii() and not english.question.isascii()


def test_first_steps_are_deterministic() -> None:
    base, lesson = load_base(), replace(POOL["sort_up"], steps=3)
    torch.manual_seed(1)
    first = train_adapter(base, "sort_up", lesson, 5)
    torch.manual_seed(2)
    again = train_adapter(base, "sort_up", lesson, 5)
    other = train_adapter(base, "sort_up", lesson, 6)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_training_lowers_the_loss_and_leaves_the_base() -> None:
    base, losses = load_base(), []  # type: ignore[var-annotated]
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    lesson = replace(POOL["copy_digits"], steps=30, warmup=5)
    train_adapter(base, "copy_digits", lesson, 0, lambda _, loss: losses.append(loss))
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(before[name], weight) for name, weight in base.state_dict().items())


def test_command_writes_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--seed", "3", "--steps", "1", "--out", str(tmp_path), "--only", *SOME])
    assert {path.name for path in tmp_path.iterdir()} == set(SOME)
    for name in SOME:
        assert open_model(f"{zoo_path('models/base')}+{tmp_path / name}").names
    captured = capsys.readouterr()
    assert "step 1/1" in captured.err
    assert captured.out.count("wrote") == len(SOME)


def test_help_names_the_seed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "--seed" in capsys.readouterr().out
