"""The engines' parts that need no model."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from engine_family import Family, tokenizer
from torch import nn

from evomerge.engines import auto
from evomerge.engines.batches import bucket, left_pad, positions_of
from evomerge.engines.tokens import Codec, cut, seed_of
from evomerge.engines.vllm_setup import check_version, known_arguments, undisturbed
from evomerge.engines.weights import WeightWriter, check_finite
from evomerge.errors import CandidateError, ConfigError, NotFiniteError, SourceError


def test_bucket_covers_all_and_keeps_to_its_budget() -> None:
    lengths = [5, 30, 7, 30, 1, 12, 100]
    batches = bucket(lengths, [4] * 7, 70)
    assert sorted(i for b in batches for i in b) == list(range(7))
    for batch in batches:
        width = max(lengths[i] for i in batch) + 4
        assert len(batch) == 1 or len(batch) * width <= 70
    assert batches[0] == [6]
    assert bucket(lengths, [4] * 7, 70) == batches
    assert bucket([], [], 10) == []


def test_left_pad_and_positions() -> None:
    ids, mask = left_pad([[5, 6, 7], [8]], 0, torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert positions_of(mask).tolist() == [[0, 1, 2], [0, 0, 0]]


def test_cut_takes_the_first_stop_string() -> None:
    assert cut("abc def", ("def", "c", "")) == "ab"
    assert cut("abc", ("x",)) == "abc"
    assert cut("abc", ()) == "abc"


def test_seed_of_differs_between_seeds_and_places() -> None:
    assert len({seed_of(s, i) for s in range(10) for i in range(50)}) == 500
    assert seed_of(3, 4) == seed_of(3, 4)


def test_pair_starts_behind_the_context(make_family: object, family: Family) -> None:
    codec = Codec(family.base)
    ids, start = codec.pair("w1 w2", " w3 w4")
    assert (len(ids), start) == (5, 3)
    ids, start = codec.pair("", "w3 w4")
    assert (len(ids), start) == (3, 1)


def test_pair_counts_a_straddling_token_as_continuation(family: Family) -> None:
    codec = Codec(family.base)
    ids, start = codec.pair("w1 w", "2 w3")
    assert codec.tokenizer.convert_ids_to_tokens(ids[start:]) == ["w2", "w3"]


def test_codec_gathers_every_end_token(family: Family, tmp_path: Path) -> None:
    assert Codec(family.base).eos_ids == (2,)
    assert Codec(family.base).max_len == 128
    with pytest.raises(SourceError, match="Hugging Face"):
        Codec(tmp_path)


def test_tokenizer_of_the_tests_is_lossless() -> None:
    inner = tokenizer()
    assert inner.decode(inner("w1 w2 w3")["input_ids"], skip_special_tokens=True) == "w1 w2 w3"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight


def tensors(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    given: dict[str, torch.Tensor | None] = {
        "embed.weight": torch.full((4, 3), 7.0),
        "norm.weight": torch.full((3,), 8.0),
        "norm.bias": torch.full((3,), 9.0),
    }
    given |= {k.replace("__", "."): v for k, v in changes.items()}
    return {k: v for k, v in given.items() if v is not None}


def test_writer_covers_tied_weights_and_keeps_buffers() -> None:
    model = Tied()
    writer = WeightWriter(model)
    writer.write(tensors().items())
    assert model.head.weight.eq(7).all() and model.norm.weight.eq(8).all()
    assert model.norm.running_var.eq(1).all()
    writer.write(tensors(norm__running_var=torch.full((3,), 2.0)).items())
    assert model.norm.running_var.eq(2).all()


def test_writer_takes_the_first_of_two_tied_copies_where_the_model_ties_them() -> None:
    other = torch.zeros(4, 3)
    model = Tied()
    given = tensors(head__weight=other)
    WeightWriter(model).write(given.items(), copies=True)
    assert model.embed.weight.eq(7).all()
    WeightWriter(model).write(reversed(given.items()), copies=True)
    assert model.embed.weight.eq(7).all()
    WeightWriter(model).write(tensors(embed__weight=None, head__weight=other).items())
    assert model.embed.weight.eq(0).all()


def test_writer_refuses_a_head_of_its_own_where_the_engine_ties_it() -> None:
    given = tensors(head__weight=torch.full((4, 3), 7.0))
    for order in (given.items(), reversed(given.items())):
        WeightWriter(Tied()).write(order)
    given["head.weight"][2, 1] = 6.5
    with pytest.raises(CandidateError, match=r"head\.weight differs from embed\.weight"):
        WeightWriter(Tied()).write(given.items())
    with pytest.raises(CandidateError, match=r"embed\.weight differs from head\.weight"):
        WeightWriter(Tied()).write(reversed(given.items()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm__bias": None}, r"1 tensors .* norm\.bias"),
        ({"embed__weight": None}, r"embed\.weight"),
        ({"other": torch.zeros(1)}, "no tensor other"),
        ({"norm__bias": torch.zeros(1)}, r"norm\.bias has shape \[1\].*\[3\]"),
        ({"norm__bias": torch.tensor([0.0, float("inf"), float("nan")])}, r"norm\.bias has 2"),
    ],
)
def test_writer_names_what_is_wrong(changes: dict[str, torch.Tensor | None], message: str) -> None:
    with pytest.raises(CandidateError, match=message):
        WeightWriter(Tied()).write(tensors(**changes).items())


def test_writer_refuses_a_repeated_tensor() -> None:
    given = [*tensors().items(), ("norm.bias", torch.zeros(3))]
    with pytest.raises(CandidateError, match=r"norm\.bias was given twice"):
        WeightWriter(Tied()).write(given)


def test_writer_skips_derived_buffers_of_old_checkpoints() -> None:
    given = tensors() | {"layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
    WeightWriter(Tied()).write(given.items())


def test_check_finite_lets_integers_pass() -> None:
    check_finite("count", torch.tensor([1, 2]))


def test_overflow_in_a_narrower_dtype_is_found() -> None:
    model = Tied().to(torch.float16)
    with pytest.raises(NotFiniteError, match=r"embed\.weight"):
        WeightWriter(model).write(tensors(embed__weight=torch.full((4, 3), 1e6)).items())


def test_auto_takes_vllm_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "find_spec", lambda name: object())
    assert auto.resolve_engine("auto") == "vllm"
    monkeypatch.setattr(auto, "find_spec", lambda name: None)
    assert auto.resolve_engine("auto") == "transformers"
    assert auto.resolve_engine("vllm") == "vllm"
    with pytest.raises(ConfigError, match="auto, vllm, transformers"):
        auto.resolve_engine("llamacpp")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"nmae": "auto"}, r"engine\.nmae"),
        ({"name": "transformers", "args": {"dtype": "float32"}}, r"engine\.args\.dtype"),
        ({"name": "transformers", "args": {"speed": 1}}, r"engine\.args\.speed.*device"),
    ],
)
def test_make_engine_names_the_key_at_fault(
    spec: dict[str, object], message: str, family: Family
) -> None:
    with pytest.raises(ConfigError, match=message):
        auto.make_engine(spec, family.base)


@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_arguments_for_vllm_are_checked_without_importing_it() -> None:
    assert {"gpu_memory_utilization", "tensor_parallel_size", "max_num_seqs", "lora_dtype"} <= (
        known_arguments()
    )
    auto.check_engine({"name": "vllm", "args": {"tensor_parallel_size": 2, "kv_cache_gb": 1}})
    for name, message in [
        ("gpu_memory_utilisation", r"engine\.args\.gpu_memory_utilisation.*such as gpu_memory_uti"),
        ("worker_extension_cls", r"engine\.args\.worker_extension_cls.*evomerge sets it"),
        ("max_model_len", r"engine\.args\.max_model_len.*engine\.max_model_len"),
    ]:
        with pytest.raises(ConfigError, match=message):
            auto.check_engine({"name": "vllm", "args": {name: 1}})


def test_make_engine_builds_what_the_spec_says(family: Family) -> None:
    spec = {"name": "transformers", "dtype": "bfloat16", "max_model_len": 32, "args": {}}
    engine = auto.make_engine(spec, family.base, seed=3)
    with pytest.raises(ConfigError, match="at most 31"):
        engine.loglikelihood([("w1 " * 40, "w2")])


def test_conf_files_share_their_keys() -> None:
    import yaml

    folder = Path(__file__).parents[2] / "conf" / "engine"
    for name in auto.NAMES:
        data = yaml.safe_load((folder / f"{name}.yaml").read_text())
        assert tuple(data) == auto.KEYS and data["name"] == name


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, evomerge.engines.auto\n"
        "print([m for m in ('torch', 'vllm', 'transformers', 'ray') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("version", ["0.32.0", "0.32.4", "0.32.1+cpu"])
def test_tested_releases_pass(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "1.0", "unknown", None])
def test_other_releases_are_named_and_refused(version: str | None) -> None:
    with pytest.raises(ConfigError, match=r"vllm.*expected vllm >=0\.32,<0\.33"):
        check_version(version)


def test_undisturbed_puts_random_state_and_threads_back() -> None:
    setter, state = torch.set_num_threads, torch.get_rng_state()
    with undisturbed():
        torch.manual_seed(5)
        torch.set_num_threads = lambda count: None
    assert torch.set_num_threads is setter
    assert torch.equal(torch.get_rng_state(), state)
