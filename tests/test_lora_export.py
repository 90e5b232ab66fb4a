"""A merge as an adapter: PEFT adds it to the base, and finds the merged model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, logging

from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.errors import RecipeError
from evomerge.lora_export import LoraReport, write_lora
from evomerge.recipe import Recipe
from evomerge.zoo import zoo_path

IDS = torch.tensor([[1, 5, 9, 3, 7, 11], [2, 4, 8, 16, 30, 31]])
logging.set_verbosity_error()


def recipe(
    base: str, sources: list[str], method: str = "task_arithmetic", **more: object
) -> Recipe:
    weights = [0.7, 0.4, -0.3]
    models = [
        {"model": s, "parameters": {"weight": w}} for s, w in zip(sources, weights, strict=False)
    ]
    data = {"merge_method": method, "base_model": base, "models": models, "dtype": "bfloat16"}
    return Recipe.from_dict({**data, **more})


def written(
    one: Recipe, base: str, folder: Path, rank: int | None = None
) -> tuple[LoraReport, torch.nn.Module, torch.nn.Module]:
    """The report, the base with the adapter, and the merged model, both in float32."""
    merger = Merger(1)
    (folder / "adapter").mkdir()
    report = write_lora(one, merger, base, folder / "adapter", base, rank)
    write_checkpoint(one, merger, folder / "merged")
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    both = PeftModel.from_pretrained(start, folder / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32).eval()
    return report, both, merged


def relative(both: torch.nn.Module, merged: torch.nn.Module) -> float:
    with torch.no_grad():
        ours, theirs = both(IDS).logits, merged(IDS).logits
    return float((ours - theirs).norm() / theirs.norm())


def test_a_sum_of_adapters_is_exact(tmp_path: Path) -> None:
    base = str(zoo_path("models/base"))
    sources = [f"{base}+{zoo_path(f'skill_adapters/{n}')}" for n in ("greatest", "who")]
    report, both, merged = written(recipe(base, sources), base, tmp_path)
    assert report.exact and report.ranks == (8, 8) and report.whole == 0
    assert report.errors.weights < 2**-8  # of rounding the merged model to bfloat16
    assert relative(both, merged) < 2**-6
    assert "nothing left out" in report.sentences[0] and "rounding" in report.sentences[1]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A base with biases and a head of its own, and two fine-tunings that change everything."""
    folder = tmp_path_factory.mktemp("tuned")
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, attention_bias=True, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    names = []
    for name in ("base", "one", "two"):
        model = LlamaForCausalLM(config)
        model.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in model.parameters() if name != "base" else ():
                parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
        names.append(str(folder / name))
    return names


def test_all_of_the_change_is_there_at_full_rank(tuned: list[str], tmp_path: Path) -> None:
    """Linear layers, biases, norms, embedding and head alike."""
    base, *sources = tuned
    one = recipe(base, sources, dtype="float32")
    report, both, merged = written(one, base, tmp_path, 64)
    assert not report.exact and report.whole == 5  # two norms a block, and the last
    assert report.errors.weights < 1e-6 and report.errors.change < 1e-5
    assert relative(both, merged) < 1e-5


def test_the_error_of_a_cut_is_the_one_that_is_told(tuned: list[str], tmp_path: Path) -> None:
    base, *sources = tuned
    report, both, merged = written(recipe(base, sources, dtype="float32"), base, tmp_path, 3)
    ours = both.merge_and_unload().state_dict()
    theirs = merged.state_dict()
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    rest = sum(float((ours[n] - theirs[n]).double().square().sum()) for n in theirs)
    change = sum(float((start[n] - theirs[n]).double().square().sum()) for n in theirs)
    whole = sum(float(theirs[n].double().square().sum()) for n in theirs)
    assert report.errors.change == pytest.approx((rest / change) ** 0.5, rel=1e-3)
    assert report.errors.weights == pytest.approx((rest / whole) ** 0.5, rel=1e-3)
    assert report.ranks == (3, 3) and report.errors.change > 0.1
    best = 0.0  # Eckart and Young: the squares of the singular values that were left out
    for name, tensor in theirs.items():
        if tensor.dim() == 2:
            best += float(torch.linalg.svdvals(tensor - start[name])[3:].double().square().sum())
    assert rest == pytest.approx(best, rel=1e-3)


def test_a_tied_embedding_is_changed_in_its_head_too(tmp_path: Path) -> None:
    base = str(zoo_path("models/base"))
    one = recipe(base, [str(zoo_path("models/math"))], dtype="float32")
    report, both, merged = written(one, base, tmp_path, 128)
    assert report.errors.weights < 1e-5
    assert relative(both, merged) < 1e-4


def test_a_merge_of_another_shape_is_refused(tmp_path: Path) -> None:
    base, math = str(zoo_path("models/base")), str(zoo_path("models/math"))
    runs = [{"sources": [{"model": math, "layer_range": [0, n]}]} for n in (4, 2)]
    deep = Recipe.from_dict({"merge_method": "passthrough", "slices": runs})
    with pytest.raises(
        RecipeError, match=r"layers\.4\..* in the merge, no such tensor in the base"
    ):
        write_lora(deep, Merger(1), base, tmp_path, base)
