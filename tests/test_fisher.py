"""Fisher distances on the zoo against autograd in float64 and sums over all parameters."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import evomerge.fisher as fisher
from evomerge import zoo
from evomerge.checkpoints.merger import Merger
from evomerge.fisher import FisherGram, diagonal_fisher, fisher_distance, gold_pairs
from evomerge.recipe import Source
from evomerge.space import MergeSpace
from evomerge.types import Item

ZOO = next(iter(zoo.__path__)) + "/models"
BASE = f"{ZOO}/base"
SOURCES = {name: f"{ZOO}/{name}" for name in ("math", "japanese", "sorter")}
PAIRS = [
    (
        "けんはりんごを5こもっています。けんは8こもらいました。\n",
        "けんは13こもっています。",
    ),
    ("Sort: 5391\n", "1359"),
    ("Politely: Ken has 3 apples.\n", "けんはりんごを3こもっています。"),
]
WEIGHT = {"weight": {"low": -0.25, "high": 1.25}}
BOTH = {**WEIGHT, "density": {"low": 0.0, "high": 1.0}}


@pytest.fixture(scope="module")
def merger():
    return Merger()


def make_space(merger, method="task_arithmetic", parameters=WEIGHT, granularity="layer", **fixed):
    layout = merger.checkpoint(BASE).layout
    groups = {group: layout.filters(group) for group in layout.groups()}
    return MergeSpace(
        method, parameters, BASE, SOURCES, groups, granularity, fixed=fixed, dtype="float32"
    )


def genomes(space, count, seed=0):
    rng = np.random.default_rng(seed)
    low, high = (np.array([getattr(d, at) for d in space.dimensions]) for at in ("low", "high"))
    return low + (high - low) * rng.random((count, len(low)))


@pytest.fixture(scope="module")
def squares():
    """Fisher information by autograd in float64, the prompts encoded here."""
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    names, parameters = zip(*model.named_parameters(), strict=True)
    out = {name: torch.zeros_like(p) for name, p in zip(names, parameters, strict=True)}
    for prompt, gold in PAIRS:
        own, joint = (tokenizer(t)["input_ids"] for t in (prompt, prompt + gold))
        assert joint[: len(own)] == own
        logprobs = model(torch.tensor([joint])).logits[0].log_softmax(-1)
        rows = range(len(own), len(joint))
        total = torch.stack([logprobs[i - 1, joint[i]] for i in rows]).sum()
        for name, gradient in zip(names, torch.autograd.grad(total, parameters), strict=True):
            out[name] += gradient**2 / len(PAIRS)
    return out


@pytest.fixture(scope="module")
def gram_file(merger, tmp_path_factory):
    """The file of a run's matrices for a space by layer."""
    path = tmp_path_factory.mktemp("fisher") / "fisher.json"
    fisher_distance(make_space(merger), merger, PAIRS, cache=path)
    return path


def test_information_is_the_mean_squared_gradient(merger, squares):
    found = diagonal_fisher(merger.checkpoint(BASE), PAIRS)
    assert set(found) == set(squares)
    for name, expected in squares.items():
        scale = expected.max()
        assert scale > 0
        assert torch.allclose(found[name].double(), expected, rtol=1e-3, atol=1e-5 * scale)


def test_tied_embeddings_count_once_with_both_gradients(merger):
    """The zoo's embedding is its head; apart, the two gradients do not sum to the same square."""
    assert "lm_head.weight" not in merger.checkpoint(BASE).names
    tied = diagonal_fisher(merger.checkpoint(BASE), PAIRS[:1])
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    own, joint = (tokenizer(t)["input_ids"] for t in (PAIRS[0][0], "".join(PAIRS[0])))
    logprobs = model(torch.tensor([joint])).logits[0].log_softmax(-1)
    sum(logprobs[i - 1, joint[i]] for i in range(len(own), len(joint))).backward()
    into, out = model.get_input_embeddings().weight.grad, model.lm_head.weight.grad
    found = tied["model.embed_tokens.weight"]
    assert torch.allclose(found, (into + out) ** 2, rtol=1e-2, atol=1e-5 * found.max())
    assert not torch.allclose(found, into**2 + out**2, rtol=1e-2, atol=1e-3 * found.max())


@pytest.mark.parametrize("granularity", ["layer", "global"])
@pytest.mark.parametrize("fixed", [{}, {"lambda": 0.7, "normalize": True}])
def test_task_arithmetic_is_exact(merger, squares, granularity, fixed):
    """Against the sum over all parameters of the merged model itself."""
    space = make_space(merger, granularity=granularity, **fixed)
    distance = fisher_distance(space, merger, PAIRS)
    base = merger.checkpoint(BASE)
    for genome in genomes(space, 3):
        expected = sum(
            float((squares[name] * (tensor.double() - base.tensor(name).double()) ** 2).sum())
            for name, tensor in merger.merge(space.decode(genome))
        )
        assert distance(genome) == pytest.approx(expected, rel=1e-3)


def test_base_and_multiples(merger, gram_file):
    """No change is no distance, and twice the change four times the distance."""
    space = make_space(merger)
    distance = fisher_distance(space, merger, PAIRS, cache=gram_file)
    genome = genomes(space, 1)[0] / 2
    assert distance(0 * genome) == 0.0
    assert distance(2 * genome) == pytest.approx(4 * distance(genome))
    assert distance(genome) > 0


@pytest.mark.parametrize(
    ("method", "fixed", "share"),
    [
        ("ties", {"normalize": False}, 0.4),  # keeps the density
        ("dare_linear", {}, 1.0),  # makes up for what it drops
        ("dare_linear", {"rescale": False}, 0.4),
        ("breadcrumbs", {}, 0.4),
    ],
)
def test_density_scales_unless_it_is_made_up_for(merger, gram_file, method, fixed, share):
    whole = make_space(merger)
    thinned = make_space(merger, method, BOTH, **fixed)
    weights = genomes(whole, 1)[0]
    exact = fisher_distance(whole, merger, PAIRS, cache=gram_file)(weights)
    distance = fisher_distance(thinned, merger, PAIRS, cache=gram_file)
    found = distance(np.append(weights, np.full(len(weights), 0.4)))
    assert found == pytest.approx(share**2 * exact)
    assert distance(np.append(weights, np.zeros(len(weights)))) == 0.0


def test_matrices_are_kept(merger, gram_file, monkeypatch):
    space = make_space(merger)
    first = fisher_distance(space, merger, PAIRS, cache=gram_file)
    monkeypatch.setattr(fisher, "_measure", lambda *_: pytest.fail("computed again"))
    again = fisher_distance(space, merger, PAIRS, cache=gram_file)
    for genome in genomes(space, 3):
        assert again(genome) == first(genome)


def test_files_of_other_things_and_damaged_ones_are_not_read(merger, gram_file, tmp_path):
    key = json.loads(gram_file.read_text())["key"]
    assert FisherGram.load(gram_file, key) is not None
    assert FisherGram.load(gram_file, key[::-1]) is None
    assert FisherGram.load(tmp_path / "none.json", key) is None
    text = gram_file.read_text()
    damaged = json.loads(text)
    damaged["matrices"][0][0][0] *= 1.5
    for wrong in (text[:-20], "[]", "{}", json.dumps(damaged), "\x00"):
        path = tmp_path / "wrong.json"
        path.write_text(wrong)
        assert FisherGram.load(path, key) is None


@pytest.mark.parametrize("change", ["pairs", "limit", "groups"])
def test_a_change_computes_again(merger, gram_file, tmp_path, change):
    path = tmp_path / "fisher.json"
    path.write_bytes(gram_file.read_bytes())
    space = make_space(merger, granularity="global" if change == "groups" else "layer")
    pairs = PAIRS[::-1] if change == "pairs" else PAIRS
    fisher_distance(space, merger, pairs, limit=1 if change == "limit" else 32, cache=path)
    assert path.read_bytes() != gram_file.read_bytes()


def test_other_spaces_have_no_distance(merger):
    assert fisher_distance(object(), merger, PAIRS) is None
    assert fisher_distance(make_space(merger), merger, []) is None
    mean = make_space(merger, "linear", WEIGHT)
    assert fisher_distance(mean, merger, PAIRS) is None


def test_random_states_and_threads_stay(merger):
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    diagonal_fisher(merger.checkpoint(BASE), PAIRS[:1])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_gold_pairs_are_the_first_items_that_have_an_answer():
    class Some:
        def items(self, split):
            assert split == "search"
            return [Item(str(i), {}, str(i), f"gold {i}" if i % 2 else "") for i in range(9)]

        def prompt(self, item):
            return f"prompt {item.id}"

    assert gold_pairs(Some(), 2) == [("prompt 1", "gold 1"), ("prompt 3", "gold 3")]


def test_coefficients_of_a_fixed_weight(merger):
    """A weight that is the same for all sources and groups."""
    space = make_space(merger, "ties", {"density": BOTH["density"]}, weight=0.5, normalize=False)
    recipe = space.decode(genomes(space, 1)[0])
    assert isinstance(recipe.sources[0], Source)
    found = fisher._coefficients(recipe, "model.layers.1.mlp.up_proj.weight")
    own = [dict(zip(space.groups, g, strict=True)) for g in genomes(space, 1)[0].reshape(3, -1)]
    assert np.allclose(found, [0.5 * one["block.1"] for one in own])
