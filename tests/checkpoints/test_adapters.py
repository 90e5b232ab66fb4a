"""Adapters are added while weights are read, exactly as PEFT adds them, or refused by name."""

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from adapter_folders import PREFIX, factor_pair, peft_adapter, random_factors, write_adapter
from checkpoint_models import random_tensors, real_model, write_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.checkpoints.adapted import AdaptedCheckpoint, open_model
from evomerge.checkpoints.adapter import AdaptedWeight, Adapter
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.errors import SourceError
from evomerge.kernels.weight import Stored, whole

if TYPE_CHECKING:
    from evomerge.checkpoints.model import Model

    def _are_models(one: Checkpoint, other: AdaptedCheckpoint) -> tuple[Model, Model]:
        return one, other


BLOCK = "model.layers.3.mlp"


@pytest.fixture
def base(tmp_path):
    return write_folder(tmp_path / "base", random_tensors(0))


@pytest.fixture
def adapter(tmp_path):
    return write_adapter(tmp_path / "adapter", random_factors(1))


def problem_of(call):
    with pytest.raises(SourceError) as raised:
        call()
    [problem] = raised.value.problems
    return problem


def refused(base, adapter, *parts):
    problem = problem_of(lambda: open_model(f"{base}+{adapter}", "models.a"))
    assert problem.field == "models.a"
    for part in (*parts, str(adapter)):
        assert part in str(problem)


def assert_equal_models(model, tensors, tolerance=1e-5):
    assert set(model.names) == set(tensors)
    for name, tensor in tensors.items():
        assert model.shapes[name] == tuple(tensor.shape)
        torch.testing.assert_close(
            model.tensor(name).float(), tensor.float(), rtol=tolerance, atol=tolerance
        )


KINDS = {
    "linear": ("Llama", dict(r=4, lora_alpha=10, target_modules=["q_proj", "down_proj"])),
    "rslora": ("Llama", dict(r=4, lora_alpha=3, use_rslora=True, target_modules=["v_proj"])),
    "patterns": (
        "Llama",
        dict(
            r=2, lora_alpha=4, target_modules=["q_proj", "k_proj", "up_proj", "lm_head"],
            rank_pattern={r"layers\.1\.self_attn.q_proj": 5, "up_proj": 3, "proj": 7},
            alpha_pattern={"k_proj": 9, "1.self_attn.q_proj": 1.5, "lm_head": 0.5},
        ),
    ),
    "embedding": (
        "Llama", dict(r=3, target_modules=["embed_tokens", "o_proj"], use_rslora=True)
    ),
    "saved": (
        "Llama", dict(r=3, target_modules=["gate_proj"], modules_to_save=["lm_head", "norm"])
    ),
    "some layers": (
        "Llama",
        dict(r=3, target_modules=["gate_proj"], layers_to_transform=[1], lora_dropout=0.5),
    ),
    "biases": ("Qwen2", dict(r=3, target_modules=["q_proj"], bias="all")),
    "biases of its layers": ("Qwen2", dict(r=3, target_modules=["k_proj"], bias="lora_only")),
    "fan in, fan out": ("GPT2", dict(r=3, target_modules=["c_attn", "c_proj", "wpe"])),
    "square, fan out": (
        "GPT2", dict(r=3, target_modules=r".*\.attn\.c_proj", fan_in_fan_out=True)
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_that_of_peft(tmp_path, kind):
    pytest.importorskip("peft")
    architecture, lora = KINDS[kind]
    small = {} if architecture == "GPT2" else {"num_hidden_layers": 2, "tie_word_embeddings": False}
    model = real_model(architecture, **small)
    model.save_pretrained(tmp_path / "base")
    plain = {n: t.clone() for n, t in model.state_dict().items()}
    plain = {n: plain[n] for n in Checkpoint(str(tmp_path / "base")).names}
    folder, adapted = peft_adapter(tmp_path / "adapter", model, **lora)
    if "bias" in lora:
        for name, parameter in adapted.named_parameters():
            if name.endswith("bias") and parameter.requires_grad:
                torch.nn.init.normal_(parameter)
        adapted.save_pretrained(folder)
    want = adapted.merge_and_unload().state_dict()
    ours = open_model(f"{tmp_path / 'base'}+{folder}")
    assert_equal_models(ours, {name: want[name] for name in plain})
    changed = {n for n in plain if not torch.equal(want[n], plain[n])}
    assert changed, "the adapter of this test changes nothing"
    assert {n for n in ours.names if not torch.equal(ours.tensor(n), plain[n])} == changed


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lora", [{"target_modules": ["lm_head"]}, {
    "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}])  # fmt: skip
def test_a_tied_head_that_is_adapted_alone_is_untied(tmp_path, lora):
    """Against PEFT's forward pass: its merging would write into the shared embedding."""
    pytest.importorskip("peft")
    model = real_model("Llama", num_hidden_layers=1, tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "base")
    folder, adapted = peft_adapter(tmp_path / "adapter", model, r=3, **lora)
    ids = torch.arange(8)[None]
    want = adapted.eval()(ids).logits
    assert "lm_head.weight" not in Checkpoint(str(tmp_path / "base")).names
    ours = open_model(f"{tmp_path / 'base'}+{folder}")
    assert ours.config["tie_word_embeddings"] is False
    untied = real_model("Llama", num_hidden_layers=1, tie_word_embeddings=False, seed=5)
    untied.load_state_dict({name: ours.tensor(name) for name in ours.names}, strict=True)
    torch.testing.assert_close(untied.eval()(ids).logits, want, rtol=1e-4, atol=1e-4)


def test_an_embedding_tied_to_an_unadapted_head_is_refused(tmp_path):
    tensors = {k: v for k, v in random_tensors(0).items() if k != "lm_head.weight"}
    base = write_folder(tmp_path / "b", tensors, config={"tie_word_embeddings": True})
    rows = {
        f"{PREFIX}model.embed_tokens.lora_embedding_A": torch.ones(2, 6),
        f"{PREFIX}model.embed_tokens.lora_embedding_B": torch.ones(4, 2),
    }
    adapter = write_adapter(tmp_path / "a", rows)
    refused(base, adapter, "model.embed_tokens.weight", "tied")
    both = {**rows, **factor_pair("lm_head", 6, 4, 2, torch.Generator())}
    write_adapter(tmp_path / "a", both, ensure_weight_tying=True)
    refused(base, adapter, "ensure_weight_tying")
    write_adapter(tmp_path / "a", both)
    assert open_model(f"{base}+{adapter}").names[-1] == "lm_head.weight"


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 7), columns=st.integers(1, 9), rank=st.integers(1, 4),
    transposed=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    cut=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)  # fmt: skip
def test_any_range_is_that_range_of_the_whole_sum(rows, columns, rank, transposed, dtype, cut):
    rng = torch.Generator().manual_seed(rows * 100 + columns)
    base = torch.randn(rows, columns, generator=rng).to(dtype)
    left, right = torch.randn(rows, rank, generator=rng), torch.randn(rank, columns, generator=rng)
    if transposed:
        left, right = left.T.contiguous().T, right.T.contiguous().T
    left, right = left.to(dtype), right.to(dtype)
    want = base.double() + 1.5 * left.double() @ right.double()
    weight = AdaptedWeight(Stored(base), left, right, 1.5)
    start, stop = sorted(round(c * rows * columns) for c in cut)
    part = weight.read(start, stop)
    assert part.is_contiguous() and part.dtype == weight.dtype == torch.float32
    torch.testing.assert_close(part.double(), want.reshape(-1)[start:stop], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(whole(weight).double(), want, rtol=1e-5, atol=1e-5)


def test_tensors_left_alone_are_the_models_own(base, adapter):
    plain, both = Checkpoint(str(base)), open_model(f"{base}+{adapter}")
    assert both.names == plain.names and both.shapes == plain.shapes
    assert both.layout == plain.layout and both.path == plain.path
    assert both.ref == f"{base}+{adapter}"
    assert both.bytes() == plain.bytes() + (adapter / "adapter_model.safetensors").stat().st_size
    assert both.vocabulary == {} and both.tokenizer() is None
    for name in plain.names:
        adapted = name.endswith("mlp.weight")
        assert both.dtype(name) == "F32"
        assert isinstance(both.weight(name), AdaptedWeight) == adapted
        own = both.base.tensor(name).data_ptr() == both.tensor(name).data_ptr()
        assert own != adapted


def test_a_bfloat16_model_is_summed_in_float32(tmp_path, adapter):
    tensors = random_tensors(0, dtype=torch.bfloat16)
    both = open_model(f"{write_folder(tmp_path / 'b', tensors)}+{adapter}")
    factors = random_factors(1)
    name = f"{PREFIX}{BLOCK}.lora_"
    want = tensors[f"{BLOCK}.weight"].double() + 3 * (
        factors[f"{name}B.weight"].double() @ factors[f"{name}A.weight"].double()
    )
    torch.testing.assert_close(both.tensor(f"{BLOCK}.weight").double(), want, rtol=1e-6, atol=1e-5)
    assert both.dtype(f"{BLOCK}.weight") == "BF16"


def test_the_fingerprint_follows_both_parts(tmp_path, base, adapter):
    def fingerprint(base, adapter):
        return open_model(f"{base}+{adapter}").fingerprint

    value = fingerprint(base, adapter)
    assert len(value) == 64
    same = write_adapter(tmp_path / "same", random_factors(1), base_model_name_or_path="x")
    assert fingerprint(base, same) == value
    changed = {
        value, Checkpoint(str(base)).fingerprint,
        fingerprint(base, write_adapter(tmp_path / "c", random_factors(2))),
        fingerprint(base, write_adapter(tmp_path / "d", random_factors(1), lora_alpha=7)),
        fingerprint(base, write_adapter(tmp_path / "e", random_factors(1), use_rslora=True)),
        fingerprint(write_folder(tmp_path / "f", random_tensors(3)), adapter),
    }  # fmt: skip
    assert len(changed) == 6


def test_nan_is_found_in_either_part(tmp_path):
    tensors = random_tensors(0)
    tensors["model.norm.weight"][2] = float("nan")
    factors = random_factors(1)
    factors[f"{PREFIX}{BLOCK}.lora_B.weight"][1] = float("inf")
    base, sick = write_folder(tmp_path / "b", tensors), write_adapter(tmp_path / "a", factors)
    counts = dict(open_model(f"{base}+{sick}").non_finite())
    assert counts == {f"{BLOCK}.weight": 5, "model.norm.weight": 1}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"layer_replication": [[0, 4], [2, 6]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_parameters": ["mlp.weight"]}, "target_parameters"),
        ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens"),
        ({"a_setting_of_tomorrow": 0.5}, "a_setting_of_tomorrow: 0.5"),
        ({"peft_type": "ADALORA"}, "ADALORA"),
        ({"peft_type": None}, "peft_type None"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"bias": "some"}, "'some'"),
        ({"r": "2"}, "r '2'"),
        ({"r": 3}, "[3, in]"),
        ({"lora_alpha": None}, "lora_alpha None"),
        ({"rank_pattern": {"mlp": 4}}, "[4, in]"),
        ({"rank_pattern": [2]}, "rank_pattern [2]"),
        ({"alpha_pattern": {"mlp": "x"}}, "alpha_pattern"),
        ({"alpha_pattern": {"(": 2}}, "'('"),
    ],
)
def test_settings_that_change_the_sum_are_refused(tmp_path, base, changes, part):
    refused(base, write_adapter(tmp_path / "a", random_factors(1), **changes), part)


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_settings_of_training_are_no_hindrance(tmp_path, base, init):
    extra = {"lora_dropout": 0.1, "loftq_config": {}, "tomorrow": None, "init_lora_weights": init}
    folder = write_adapter(tmp_path / "a", random_factors(1), **extra)
    assert len(open_model(f"{base}+{folder}").adapter.modules) == 12


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"model.layers.3.mlp.lora_A.weight": None}, "model.layers.3.mlp with lora_B"),
        ({"model.layers.3.mlp.lora_B.weight": None}, "model.layers.3.mlp with lora_A"),
        ({"model.layers.3.mlp.lora_A.weight": (2, 4)}, "[3, 4]"),
        ({"model.layers.3.mlp.lora_B.weight": (3, 1)}, "[3, 1]"),
        ({"model.layers.3.mlp.lora_embedding_A": (2, 5)}, "lora_embedding_A"),
        ({"model.layers.3.mlp.lora_magnitude_vector": (3,)}, "lora_magnitude_vector"),
        ({"model.layers.3.mlp.lora_B.bias": (3,)}, "lora_B.bias"),
        ({"model.layers.3.mlp.lora_A.default.weight": (2, 5)}, "lora_A.default"),
        ({"model.embed.token_adapter.trainable_tokens_delta": (2, 5)}, "token_adapter"),
        ({"model.norm.weight": (5,)}, "model.norm.weight of shape [5]"),
        ({"model.other.weight": (5,)}, "model.other.weight"),
        ({"model.layers.12.mlp.lora_A.weight": (2, 5), "model.layers.12.mlp.lora_B.weight": (3, 2)},
         "model.layers.12.mlp.weight"),
        ({"model.conv.lora_A.weight": (2, 5, 1, 1), "model.conv.lora_B.weight": (3, 2, 1, 1)},
         "[2, 5, 1, 1]"),
    ],
)  # fmt: skip
def test_factors_that_do_not_fit_are_named(tmp_path, base, change, part):
    factors = random_factors(1)
    for name, shape in change.items():
        factors.pop(f"{PREFIX}{name}", None)
        if shape is not None:
            factors[f"{PREFIX}{name}"] = torch.ones(shape)
    refused(base, write_adapter(tmp_path / "a", factors), part)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_targets_and_factors_are_refused(tmp_path, adapter, dtype):
    tensors = {**random_tensors(0), f"{BLOCK}.weight": torch.ones(3, 5).to(dtype)}
    refused(write_folder(tmp_path / "q", tensors), adapter, f"{BLOCK}.weight", "quantised")
    factors = {**random_factors(1), f"{PREFIX}{BLOCK}.lora_A.weight": torch.ones(2, 5).to(dtype)}
    plain = write_folder(tmp_path / "b", random_tensors(0))
    refused(plain, write_adapter(tmp_path / "a", factors), "lora_A", "floating point")


def square(tmp_path, names, **changes):
    """A model of one block with the shapes given and an adapter of all of them."""
    rng = torch.Generator().manual_seed(0)
    tensors = {
        f"h.0.{n}.weight": torch.randn(p, q, generator=rng) for n, (p, q, _) in names.items()
    }
    factors = {}
    for name, (p, q, transposed) in names.items():
        out, into = (q, p) if transposed else (p, q)
        factors |= factor_pair(f"transformer.h.0.{name}", out, into, 2, rng)
    base = write_folder(tmp_path / "b", tensors)
    return base, write_adapter(tmp_path / "a", factors, **changes), tensors, factors


def test_a_square_weight_is_turned_like_its_neighbours(tmp_path):
    """And GPT-2's files lack the `transformer.` that its modules have."""
    names = {"wide": (4, 6, True), "square": (4, 4, True)}
    base, adapter, tensors, factors = square(tmp_path, names)
    both = open_model(f"{base}+{adapter}")
    name = f"{PREFIX}transformer.h.0.square.lora_"
    delta = 3 * factors[f"{name}B.weight"] @ factors[f"{name}A.weight"]
    torch.testing.assert_close(
        both.tensor("h.0.square.weight"), tensors["h.0.square.weight"] + delta.T
    )


def test_a_square_weight_among_both_kinds_is_refused(tmp_path):
    names = {"wide": (4, 6, True), "tall": (6, 4, False), "square": (4, 4, True)}
    base, adapter, _, _ = square(tmp_path, names)
    refused(base, adapter, "square")


def test_references(tmp_path, base, adapter):
    plus = write_folder(tmp_path / "a+b", random_tensors(0))
    assert isinstance(open_model(str(base)), Checkpoint)
    assert isinstance(open_model(str(plus)), Checkpoint)
    assert open_model(f"{plus}+{adapter}").base.path == plus
    other = write_adapter(tmp_path / "x+y", random_factors(1))
    assert open_model(f"{plus}+{other}").adapter.path == other
    for ref in (
        f"{base}+{adapter}+{adapter}",
        f"{base}+",
        f"+{adapter}",
        "+",
        f"{base}++{adapter}",
    ):
        problem = problem_of(lambda ref=ref: open_model(ref, "models.a"))
        assert "MODEL+ADAPTER" in problem.expected and problem.field == "models.a"
    assert "no directory" in problem_of(lambda: open_model(f"{base}+{tmp_path / 'no'}")).found
    assert "adapter_config.json" in problem_of(lambda: open_model(f"{base}+{base}")).found
    assert "config.json" in problem_of(lambda: open_model(f"{adapter}+{adapter}")).found


def test_a_model_is_opened_once_for_all_its_adapters(tmp_path, base, adapter):
    opened = {}
    other = write_adapter(tmp_path / "other", random_factors(2))
    models = [open_model(f"{base}+{a}", opened=opened) for a in (adapter, other)]
    assert models[0].base is models[1].base is open_model(str(base), opened=opened)
    assert set(opened) == {str(base)}


def test_an_adapter_alone_brings_its_model(tmp_path, base):
    alone = write_adapter(tmp_path / "a", random_factors(1), base_model_name_or_path=str(base))
    model = open_model(str(alone))
    assert isinstance(model, AdaptedCheckpoint) and model.base.path == base
    for name, part in [(None, "does not name"), ("/no/where", "/no/where")]:
        lost = write_adapter(tmp_path / "lost", random_factors(1), base_model_name_or_path=name)
        problem = problem_of(lambda lost=lost: open_model(str(lost), "models.a"))
        assert part in problem.found and f"models.a=MODEL+{lost}" in problem.remedy


@pytest.mark.parametrize(
    ("name", "revision", "want"),
    [
        ("org/m", None, "org/m"),
        ("org/m", "v1", "org/m@v1"),
        ("/x/m", "v1", "/x/m"),
        (5, None, None),
    ],
)
def test_the_base_has_its_revision(tmp_path, name, revision, want):
    folder = write_adapter(
        tmp_path / "a", random_factors(1), base_model_name_or_path=name, revision=revision
    )
    assert Adapter(str(folder)).base == want


def test_a_damaged_adapter_is_named(tmp_path, base, adapter):
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(weights[:-9])
    refused(base, adapter, "adapter_model.safetensors is damaged")
    (adapter / "adapter_model.safetensors").unlink()
    refused(base, adapter, "no weight files")
    (adapter / "adapter_config.json").write_text("{")
    refused(base, adapter, "adapter_config.json is damaged")


POOL = """
import sys
from pathlib import Path
import torch
from evomerge.checkpoints.adapted import open_model

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

refs, opened, block = sys.argv[1:], {}, 1 << 16
first = open_model(refs[0], opened=opened)
for name in first.names:
    first.weight(name).read(0, block)
before = anonymous()
models = [open_model(ref, opened=opened) for ref in refs]
for name, (rows, columns) in first.shapes.items():
    weights = [m.weight(name) for m in models]
    total = torch.zeros(block)
    for start in range(0, rows * columns, block):
        for weight in weights:
            total += weight.read(start, start + block)
print(anonymous() - before)
"""


@pytest.mark.slow
def test_a_pool_of_a_hundred_adapters_fits(tmp_path):
    """Every weight of 100 adapted models is read block by block, in a process of its own.

    Merged they would take 800 MB. What the process holds in memory of its own, file maps
    aside, grows by far less.
    """
    side, rng, tensors, factors = 1024, torch.Generator().manual_seed(0), {}, {}
    for name in ("model.layers.0.mlp", "model.layers.1.mlp"):
        tensors[f"{name}.weight"] = torch.randn(side, side, generator=rng)
        factors |= factor_pair(name, side, side, 2, rng)
    base = write_folder(tmp_path / "base", tensors)
    refs = [f"{base}+{write_adapter(tmp_path / str(i), factors)}" for i in range(100)]
    out = subprocess.run(
        [sys.executable, "-c", POOL, *refs], capture_output=True, text=True, check=True, timeout=300
    )
    assert float(out.stdout) < 20, "MB"
