"""Models whose blocks differ by place: routes are what would be written, or are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.engines.transformers import TransformersEngine
from evomerge.engines.vllm_worker import MergeWorkerExtension
from evomerge.errors import CandidateError
from evomerge.recipe import Recipe, Route, Slot
from evomerge.zoo import zoo_path

LOCAL, WHOLE = "sliding_attention", "full_attention"
KINDS: dict[str, dict[str, Any]] = {
    "gemma2": {"sliding_window": 4},
    "qwen3": {
        "sliding_window": 4,
        "use_sliding_window": True,
        "layer_types": [LOCAL, WHOLE, LOCAL, WHOLE],
    },
}
MERGER = Merger(threads=1)
PAIRS = [("1 + 2 = 3\n4 + 4 =", " 8"), ("Tom has 7 apples and eats 2.\n", "5 apples")]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random model of four blocks, every second of which sees four tokens only."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    config = AutoConfig.for_model(
        request.param, vocab_size=77, hidden_size=16, intermediate_size=20, num_hidden_layers=4,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=128,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        **KINDS[request.param],
    )  # fmt: skip
    torch.manual_seed(3)
    network = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    network.save_pretrained(folder)
    if request.param == "gemma2":  # as older files are: the kinds are implied
        stored = json.loads((folder / "config.json").read_text())
        del stored["layer_types"]
        (folder / "config.json").write_text(json.dumps(stored))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(zoo_path("models/base") / name, folder / name)
    return str(folder)


def route(model: str, *layers: int) -> Recipe:
    return Recipe("passthrough", route=Route(tuple(Slot(model, layer) for layer in layers)))


@pytest.fixture
def engine(model: str) -> TransformersEngine:
    return TransformersEngine(model)


@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (2, 1, 0), (2, 3), (0, 3, 2, 1)])
def test_blocks_that_keep_their_kind_answer_as_the_written_model(
    engine: TransformersEngine, model: str, layers: tuple[int, ...], tmp_path: Path
) -> None:
    engine.load(route(model, *layers))
    write_checkpoint(route(model, *layers), MERGER, tmp_path / "written")
    alone = TransformersEngine(tmp_path / "written")
    assert np.array_equal(engine.loglikelihood(PAIRS), alone.loglikelihood(PAIRS))


@pytest.mark.parametrize(("layers", "place"), [((1, 2, 3), 0), ((0, 1, 3), 2), ((0, 0, 1, 2), 1)])
def test_a_block_at_a_place_of_another_kind_is_refused(
    engine: TransformersEngine, model: str, layers: tuple[int, ...], place: int
) -> None:
    with pytest.raises(CandidateError, match=f"block {place} of the merge has .*layer_types"):
        engine.load(route(model, *layers))
    engine.load(route(model, 0, 1))
    assert np.isfinite(engine.loglikelihood(PAIRS)).all()


def test_a_kind_of_its_own_would_have_scored_differently(model: str, tmp_path: Path) -> None:
    """Why such routes are refused: the same weights, another model."""
    write_checkpoint(route(model, 1, 2, 3, 0), MERGER, tmp_path / "written")
    shutil.copytree(tmp_path / "written", tmp_path / "kept")
    shutil.copyfile(Path(model) / "config.json", tmp_path / "kept" / "config.json")
    found = [TransformersEngine(tmp_path / n).loglikelihood(PAIRS) for n in ("written", "kept")]
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize("layers", [(1, 2, 3), (1, 0, 3, 2)])
def test_a_vllm_worker_refuses_it_before_anything_is_written(
    model: str, layers: tuple[int, ...]
) -> None:
    worker: Any = MergeWorkerExtension()
    config = AutoConfig.from_pretrained(model)
    worker.model_runner = SimpleNamespace(model_config=SimpleNamespace(hf_text_config=config))
    reply = worker.evomerge_load(route(model, *layers).to_dict())
    assert not reply["ok"] and reply["sound"] and reply["tensors"] == 0
    assert "block 0 of the merge has full_attention in layer_types" in reply["error"]
