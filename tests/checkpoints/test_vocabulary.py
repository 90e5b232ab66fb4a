"""Vocabularies against a loop over tokens in float64, and against the tokenizers themselves."""

from __future__ import annotations

import functools
import json

import jinja2
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Fast

from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.layout import layout_of
from evomerge.checkpoints.remapped import fit_rows, take_rows, vocabulary_tensors
from evomerge.checkpoints.vocabulary import (
    choose_chat_template,
    config_changes,
    moved_ids,
    plan_vocabulary,
    same_vocabulary,
    write_tokenizer,
)
from evomerge.errors import RecipeError, SourceError
from evomerge.kernels.weight import Stored, whole
from evomerge.recipe.data import Tokenizer, TokenRule

EMBED, HEAD, BIAS = "model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"
TEMPLATES = {"a": "{{ messages[0] }}", "b": "{{ messages[1] }}\n", "c": "{{ messages[1] }}"}
MERGES = [("a", "b"), ("c", "d"), ("ab", "cd")]


special = functools.partial(AddedToken, special=True, normalized=False)


def words(names, added=(), merges=None):
    """A BPE tokenizer if there are merges, else one of whole words."""
    ids = {n: i for i, n in enumerate(names.split() if isinstance(names, str) else names)}
    tokenizer = Fast(models.BPE(ids, merges) if merges else models.WordLevel(ids, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens(list(added))
    return tokenizer


def write(folder, tokenizer, rows, seed=0, width=4, dtype=torch.float32, config=None, extra=None):
    """A checkpoint of random embeddings, with a tokenizer if there is one."""
    folder.mkdir(parents=True)
    rng = torch.Generator().manual_seed(seed)
    shapes = {
        EMBED: (rows, width),
        HEAD: (rows, width),
        BIAS: (rows,),
        "model.norm.weight": (rows,),
    }
    shapes["model.layers.0.mlp.weight"] = (rows, width)
    save_file(
        {n: torch.randn(s, generator=rng).to(dtype) for n, s in shapes.items()},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps({"vocab_size": rows, **(config or {})}))
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
        settings_ = {"tokenizer_class": "PreTrainedTokenizerFast", **(extra or {})}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    return Checkpoint(str(folder))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Overlapping vocabularies in different orders; `wide` has rows to spare, `short` too few."""
    root = tmp_path_factory.mktemp("vocabularies")
    base = words("</s> <unk> a b c d ab cd abcd", [special("<pad>")], MERGES)
    added = [special("<pad>"), special("<tool>")]
    x = words("</s> <unk> b a c d ab e abe", added, [("a", "b"), ("ab", "e")])
    y = words(["<unk>", "e", "f", "a", "</s>", "c", "g"], [special("<tool>", lstrip=True), "<img>"])
    decoder = {"added_tokens_decoder": {"9": {"content": "<pad>"}}, "chat_template": "{{ 1 }}"}
    ids = {"eos_token_id": [0, 9], "pad_token_id": 9, "bos_token_id": None}
    return {
        "base": write(root / "base", base, 10, 0, config=ids, extra=decoder),
        "x": write(root / "x", x, 16, 1),
        "y": write(root / "y", y, 9, 2, config={"eos_token_id": 4, "pad_token_id": 7}),
        "bare": write(root / "bare", None, 10, 3),
        "wide": write(root / "wide", base, 14, 4),
        "short": write(root / "short", base, 7, 5),
        "half": write(root / "half", y, 9, 6, dtype=torch.bfloat16),
    }


def pick(pool, *names):
    return {name: pool[name] for name in names}


def stored(chosen, name=EMBED):
    return {ref: Stored(model.tensor(name)) for ref, model in chosen.items()}


def reference(tokens, rows, chosen, base, rules, name=EMBED):
    """The remapped tensors as nested lists of floats: one token after the other."""
    own = {r: m.tensor(name).double().reshape(m.shapes[name][0], -1) for r, m in chosen.items()}
    first = chosen.get(base) or next(iter(chosen.values()))
    has = {
        r: {t: i for t, i in (m.vocabulary or first.vocabulary).items() if i < len(own[r])}
        for r, m in chosen.items()
    }
    width = next(iter(own.values())).shape[1]
    out = {}
    for ref in chosen:
        result = torch.full((rows, width), float("nan"), dtype=torch.float64)
        for token, row in tokens.items():
            rule = rules.get(token, TokenRule())
            donors = [r for r in chosen if token in has[r]]
            if token in has[ref] and not rule.force:
                result[row] = own[ref][has[ref][token]]
            elif rule.kind == "zero":
                result[row] = 0
            elif rule.kind == "model":
                result[row] = own[rule.model][has[rule.model][token]]
            elif rule.kind == "model_token":
                i = rule.token_id if rule.token is None else has[rule.model][rule.token]
                result[row] = own[rule.model][i]
            elif not donors:
                result[row] = 0
            elif base in donors:
                result[row] = own[base][has[base][token]]
            else:
                result[row] = sum(own[r][has[r][token]] for r in donors) / len(donors)
        used = sorted(set(tokens.values()))
        for row in range(rows):
            if row not in used:
                result[row] = result[used].mean(0)
        out[ref] = result
    return out


def check(plan, chosen, base, rules=None):
    for name in (EMBED, HEAD, BIAS):
        expected = reference(plan.tokens, plan.rows, chosen, base, rules or {}, name)
        for ref, weight in plan.remap(stored(chosen, name)).items():
            assert weight.shape == (plan.rows, *chosen[ref].shapes[name][1:])
            got = whole(weight)
            assert got.dtype == weight.dtype
            torch.testing.assert_close(
                got.double().reshape(plan.rows, -1), expected[ref], rtol=1e-6, atol=1e-6
            )


@pytest.mark.parametrize("source", ["base", "union", "x", "y"])
@pytest.mark.parametrize("pad", [None, 8, 64])
@pytest.mark.parametrize("base", ["base", None])
def test_rows_come_from_where_a_loop_over_the_tokens_finds_them(pool, source, pad, base):
    chosen = pick(pool, "base", "x", "y")
    plan = plan_vocabulary(Tokenizer(source, pad_to_multiple_of=pad), chosen, base)
    assert plan.rows % (pad or 1) == 0 and 0 <= plan.rows - len(plan.tokens) < (pad or 1)
    check(plan, chosen, base or "base")


def test_the_base_gives_rows_only_where_it_is_merged(pool):
    chosen = pick(pool, "base", "x", "y")
    plan = plan_vocabulary(Tokenizer("base"), chosen, "base", ["x", "y"])
    got = plan.remap(stored(chosen))
    assert not whole(got["x"])[plan.tokens["cd"]].any()  # of the members none has it
    assert "No model has token 'abcd' and 1 more: the rows are zero." in plan.notes


def test_a_donor_that_is_not_merged_gives_its_row_only(pool):
    chosen = pick(pool, "base", "x", "y")
    rules = {"<new>": TokenRule("model_token", "y", token="f")}
    plan = plan_vocabulary(Tokenizer("union", rules), chosen, "base", ["base", "x"])
    got = plan.remap(stored(chosen))
    assert set(got) == {"base", "x"} and "f" not in plan.tokens
    assert torch.equal(whole(got["x"])[plan.tokens["<new>"]], pool["y"].tensor(EMBED)[2])


def test_the_union_has_every_token_once_and_the_base_first(pool):
    chosen = pick(pool, "base", "x", "y")
    plan = plan_vocabulary(Tokenizer("union"), chosen, "base")
    assert set(plan.tokens) == {t for m in chosen.values() for t in m.vocabulary}
    assert sorted(plan.tokens.values()) == list(range(len(plan.tokens)))
    assert {t: plan.tokens[t] for t in pool["base"].vocabulary} == pool["base"].vocabulary
    new = [t for t in plan.tokens if t not in pool["base"].vocabulary]
    assert new == ["e", "abe", "f", "g", "<tool>", "<img>"]
    assert any("'<tool>' is added with other settings in y" in note for note in plan.notes)


RULES = {
    "<tool>": TokenRule("model", "y", force=True),
    "e": TokenRule("model", "x"),
    "a": TokenRule("zero", force=True),
    "c": TokenRule("zero"),
    "b": TokenRule("default", force=True),
    "<img>": TokenRule("model_token", "x", token="<tool>"),
    "<new>": TokenRule("model_token", "x", token_id=13),
    "<nil>": TokenRule("zero"),
    "<by default>": TokenRule(),
}


@pytest.mark.parametrize("source", ["union", "base"])
def test_rules_choose_rows_and_add_tokens(pool, source):
    chosen = pick(pool, "base", "x", "y")
    plan = plan_vocabulary(Tokenizer(source, RULES, 4), chosen, "base")
    check(plan, chosen, "base", RULES)
    assert set(RULES) <= set(plan.tokens) and any("<by default>" in n for n in plan.notes)


def test_a_token_that_a_rule_adds_does_not_take_a_spare_row_of_the_base(pool):
    chosen, rules = pick(pool, "wide", "y"), {"<new>": TokenRule("model_token", "y", token="f")}
    plan = plan_vocabulary(Tokenizer("base", rules), chosen, "wide")
    check(plan, chosen, "wide", rules)
    assert plan.rows == 11


@pytest.mark.parametrize("source", ["base", "union", "short"])
def test_tokens_without_a_row_are_absent(pool, source):
    chosen = pick(pool, "short", "y")
    plan = plan_vocabulary(Tokenizer(source), chosen, "short")
    check(plan, chosen, "short")
    assert ("cd" in plan.tokens) == (source == "short")
    assert any("short has no row for token '<pad>' and 2 more" in note for note in plan.notes)
    left = ["abcd"] if source == "short" else ["ab", "c", "d"]
    assert plan.tokenizer.encode("abcd").tokens == left


def test_a_model_without_tokenizer_has_the_vocabulary_of_the_base(pool):
    chosen = pick(pool, "base", "bare", "y")
    plan = plan_vocabulary(Tokenizer("union"), chosen, "base")
    assert torch.equal(plan.mappings["bare"], plan.mappings["base"])
    assert any("bare has no tokenizer.json" in note for note in plan.notes)
    check(plan, chosen, "base")


def test_a_gap_in_the_ids_is_filled_like_padding(tmp_path):
    gap = Fast(models.WordLevel({"<unk>": 0, "a": 1, "b": 4}, "<unk>"))
    chosen = {"g": write(tmp_path / "g", gap, 6, 1), "h": write(tmp_path / "h", gap, 6, 2)}
    plan = plan_vocabulary(Tokenizer("base"), chosen, "g")
    assert plan.rows == 5
    check(plan, chosen, "g")
    with pytest.raises(SourceError, match="without gaps"):
        plan_vocabulary(Tokenizer("base", {t: TokenRule() for t in "nm"}), chosen, "g")


@pytest.mark.parametrize("as_is", [True, False])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_range_can_be_read(pool, as_is, data):
    chosen = pick(pool, "base", "x", "half")
    rules = {"<tool>": TokenRule("model", "half", force=True)}
    plan = plan_vocabulary(Tokenizer("union", rules, 16), chosen, "base")
    weights = {ref: w if as_is else Pieces(w) for ref, w in stored(chosen).items()}
    for weight in plan.remap(weights).values():
        size = weight.shape[0] * weight.shape[1]
        start, stop = sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2)))
        got = weight.read(start, stop)
        assert got.dim() == 1 and got.is_contiguous() and got.dtype == weight.dtype
        assert torch.equal(got, whole(weight).reshape(-1)[start:stop])


class Pieces:
    """A weight that can be read but is not a tensor; remembers how much was asked for."""

    def __init__(self, weight):
        self.weight, self.shape, self.dtype, self.most = weight, weight.shape, weight.dtype, 0

    def read(self, start, stop):
        self.most = max(self.most, stop - start)
        return self.weight.read(start, stop)


def test_no_more_is_read_than_the_rows_asked_for(pool):
    chosen = pick(pool, "base", "x", "y")
    plan = plan_vocabulary(Tokenizer("union"), chosen, "base")
    weights = {ref: Pieces(weight) for ref, weight in stored(chosen).items()}
    got = plan.remap(weights)
    for weight in got.values():
        weight.read(9, 18)  # of rows 2, 3 and 4
    assert max(w.most for w in weights.values()) <= 12
    assert torch.equal(whole(got["x"]), whole(plan.remap(stored(chosen))["x"]))


def test_the_same_vocabulary_costs_nothing(pool):
    chosen = pick(pool, "base", "bare")
    weights = stored(chosen)
    plan = plan_vocabulary(Tokenizer("base"), chosen, "base")
    got = plan.remap(weights)
    assert got["base"] is weights["base"] and got["bare"] is weights["bare"]
    wide = stored(pick(pool, "wide", "x"))
    plan = plan_vocabulary(Tokenizer("base"), pick(pool, "wide", "x"), "wide")
    remapped, tensor = plan.remap(wide)["wide"], wide["wide"].tensor
    assert remapped.shape == (10, 4)
    assert remapped.read(4, 20).data_ptr() == tensor.data_ptr() + 16  # a view, not a copy


def test_dtypes_are_kept_where_nothing_is_averaged(pool):
    chosen = pick(pool, "y", "half")
    got = plan_vocabulary(Tokenizer("base"), chosen, "y").remap(stored(chosen))
    assert got["half"].dtype == torch.bfloat16
    padded = plan_vocabulary(Tokenizer("base", {}, 16), chosen, "y").remap(stored(chosen))
    assert padded["half"].dtype == torch.float32
    both = pick(pool, "x", "half")
    more = plan_vocabulary(Tokenizer("union"), both, "x").remap(stored(both))
    assert more["half"].dtype == torch.float32  # some rows are of x


def test_a_head_with_fewer_rows_than_the_embedding_lacks_the_rest(pool):
    chosen = pick(pool, "base", "x")
    plan = plan_vocabulary(Tokenizer("base"), chosen, "base")
    heads = {"base": Stored(pool["base"].tensor(HEAD)), "x": Stored(pool["x"].tensor(HEAD)[:5])}
    got = whole(plan.remap(heads)["x"])
    i = pool["x"].vocabulary
    assert i["d"] == 5 and torch.equal(got[plan.tokens["d"]], pool["base"].tensor(HEAD)[5])
    assert torch.equal(got[plan.tokens["c"]], pool["x"].tensor(HEAD)[i["c"]])


def test_rows_are_cut_or_refused():
    tensor = torch.arange(12.0).reshape(6, 2)
    for weight in (Stored(tensor), Pieces(Stored(tensor))):
        cut = fit_rows(weight, 4)
        assert fit_rows(weight, 6) is weight and cut.shape == (4, 2)
        assert torch.equal(whole(cut), tensor[:4])
        assert torch.equal(take_rows(cut, torch.tensor([3, 0, 1])), tensor[[3, 0, 1]])
        with pytest.raises(SourceError, match=r"lm_head\.weight with 6 rows; expected at least 7"):
            fit_rows(weight, 7, "lm_head.weight", "models[1]")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Tokenizer("nobody"), "tokenizer.source: found 'nobody'"),
        (Tokenizer("base", pad_to_multiple_of=0), "pad_to_multiple_of: found 0"),
        (Tokenizer("base", {"a": TokenRule("model", "nobody")}), "tokens.a: found model 'nobody'"),
        (Tokenizer("base", {"a": TokenRule("model")}), "tokens.a: found model None"),
        (Tokenizer("base", {"zz": TokenRule("model", "x")}), "token 'zz', which has no row in x"),
        (Tokenizer("base", {"a": TokenRule("model_token", "x", token="f")}), "token 'f', which"),
        (Tokenizer("base", {"a": TokenRule("model_token", "x")}), "both or neither"),
        (Tokenizer("base", {"a": TokenRule("model_token", "x", token_id=16)}), "token_id 16"),
        (Tokenizer("base", {"a": TokenRule("model_token", "x", token_id=-1)}), "token_id -1"),
        (Tokenizer("base", {"a": TokenRule("mean")}), "kind 'mean'"),
    ],
)
def test_mistakes_in_the_recipe_are_named(pool, spec, message):
    with pytest.raises(RecipeError) as caught:
        plan_vocabulary(spec, pick(pool, "base", "x"), "base")
    assert message in str(caught.value)


def test_sources_that_cannot_be_used_are_named(pool, tmp_path):
    for source, base in (("bare", "base"), ("base", "bare")):
        with pytest.raises(SourceError, match=r"no tokenizer\.json in"):
            plan_vocabulary(Tokenizer(source), pick(pool, "base", "bare"), base)
    wider = write(tmp_path / "wider", words(["<unk>", "a"]), 2, width=6)
    with pytest.raises(SourceError, match=r"rows of \[6\] in wider; expected rows of \[4\]"):
        plan_vocabulary(Tokenizer("base"), {"base": pool["base"], "wider": wider}, "base")
    rules = {"a": TokenRule("model", "x")}
    plan = plan_vocabulary(Tokenizer("base", rules), pick(pool, "base", "x"), "base")
    with pytest.raises(SourceError, match="x as donor, which lacks the tensor"):
        plan.remap(stored(pick(pool, "base")))


@pytest.mark.parametrize("source", ["base", "union", "y"])
def test_the_written_tokenizer_is_that_of_the_plan(pool, source, tmp_path):
    chosen = pick(pool, "base", "x", "y")
    plan = plan_vocabulary(Tokenizer(source, {"<new>": TokenRule()}), chosen, "base")
    write_tokenizer(plan, tmp_path, "{{ messages }}")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == dict(plan.tokens)
    assert loaded.chat_template == "{{ messages }}"
    assert loaded.tokenize("ab <new> c") == plan.tokenizer.encode("ab <new> c").tokens
    if source == "union":
        marked = json.loads((tmp_path / "tokenizer_config.json").read_text())
        ids = {int(i): t["content"] for i, t in marked["added_tokens_decoder"].items()}
        assert ids == {i: t for t, i in plan.tokens.items() if i >= 9}  # all but the base's words


def test_an_unchanged_tokenizer_is_copied(pool, tmp_path):
    write_tokenizer(plan_vocabulary(Tokenizer("base"), pool, "base"), tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (pool["base"].path / name).read_bytes()


def test_special_ids_follow_their_tokens(pool):
    chosen = pick(pool, "base", "x", "y")
    stays = plan_vocabulary(Tokenizer("union", {}, 32), chosen, "base")
    assert config_changes(stays) == {"vocab_size": 32}
    assert moved_ids(stays, {"pad_token_id": 31, "eos_token_id": 99}) == {"eos_token_id": None}
    plan = plan_vocabulary(Tokenizer("y"), chosen, "base")
    # </s> is 0 in the base and 4 in y, which has no <pad>: y's own pad_token_id
    assert config_changes(plan) == {"vocab_size": 9, "eos_token_id": [4], "pad_token_id": 7}
    given_ids = {"eos_token_id": 0, "suppress": 0, "bos_token_id": 9}
    assert moved_ids(plan, given_ids) == {"eos_token_id": 4, "bos_token_id": None}


def test_the_config_of_a_language_model_inside_another_is_changed_too(tmp_path):
    text = {"text_config": {"vocab_size": 3, "eos_token_id": 1, "hidden_size": 4}}
    one = write(tmp_path / "1", words(["<unk>", "</s>", "a"]), 3, config={"vocab_size": 3, **text})
    two = write(tmp_path / "2", words(["<unk>", "a", "b", "</s>"]), 4)
    plan = plan_vocabulary(Tokenizer("two"), {"one": one, "two": two}, "one")
    for width in (4, 6):  # of a config that something else has changed as well
        text["text_config"]["hidden_size"] = width
        changed = {"vocab_size": 4, "eos_token_id": 3, "hidden_size": width}
        assert config_changes(plan, text) == {"text_config": changed}


class Shapes:
    """A model of which only the names, shapes and config are known."""

    def __init__(self, shapes, config):
        self.shapes, self.config, self.layout = shapes, config, layout_of(shapes)


@pytest.mark.parametrize(
    ("shapes", "config", "expected"),
    [
        (
            {"model.embed_tokens.weight": (64, 8), "model.layers.0.mlp.up.weight": (64, 8),
             "model.norm.weight": (64,), "lm_head.weight": (64, 8), "lm_head.bias": (64,)},
            {"vocab_size": 60},
            {"model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"},
        ),
        (
            {"transformer.wte.weight": (20, 8), "transformer.wpe.weight": (32, 8),
             "transformer.h.0.attn.weight": (8, 24), "transformer.ln_f.bias": (8,)},
            {"vocab_size": 20},
            {"transformer.wte.weight"},
        ),
        (
            {"language_model.model.embed_tokens.weight": (40, 8),
             "language_model.model.layers.0.mlp.weight": (8, 8),
             "language_model.lm_head.weight": (40, 8),
             "vision_tower.layers.0.fc.weight": (64, 8), "vision_tower.layers.1.fc.weight": (64, 8),
             "vision_tower.layers.2.fc.weight": (64, 8),
             "vision_tower.embeddings.position_embedding.weight": (50, 8),
             "multi_modal_projector.linear_1.weight": (8, 16)},
            {"text_config": {"vocab_size": 40}},
            {"language_model.model.embed_tokens.weight", "language_model.lm_head.weight"},
        ),
        (  # a block that predicts a further token carries copies of both
            {"model.embed_tokens.weight": (40, 8), "model.layers.0.mlp.weight": (24, 8),
             "model.layers.1.embed_tokens.weight": (40, 8), "model.layers.1.mlp.weight": (24, 8),
             "model.layers.1.shared_head.head.weight": (40, 8), "lm_head.weight": (40, 8)},
            {"vocab_size": 40},
            {"model.embed_tokens.weight", "model.layers.1.embed_tokens.weight",
             "model.layers.1.shared_head.head.weight", "lm_head.weight"},
        ),
        (  # an embedding for every layer, with fewer rows and another width
            {"model.embed_tokens.weight": (40, 8), "model.embed_tokens_per_layer.weight": (36, 30),
             "model.layers.0.mlp.weight": (24, 8)},
            {"text_config": {"vocab_size": 40, "vocab_size_per_layer_input": 36}},
            {"model.embed_tokens.weight", "model.embed_tokens_per_layer.weight"},
        ),
        ({"anything": (5, 5), "else.bias": (5,)}, {}, set()),
    ],
)  # fmt: skip
def test_tensors_of_the_vocabulary_are_told_from_the_rest(shapes, config, expected):
    assert vocabulary_tensors(Shapes(shapes, config)) == expected


def test_vocabularies_are_compared(pool):
    for other in ("wide", "bare"):
        assert same_vocabulary(pool["base"], pool[other]).differing == 0
    found = same_vocabulary(pool["base"], pool["x"])
    # ids 2 and 3 swapped, 7 and 8 other words, one token more
    assert found.differing == 2 + 4 + 1
    assert found.clashing == 4 and "id 2 is 'a'" in found.example and "'b'" in found.example


def test_a_token_more_clashes_with_nothing(pool, tmp_path):
    more = write(tmp_path / "more", words([*pool["y"].vocabulary, "new"]), 10)
    fewer = write(tmp_path / "fewer", words(list(pool["y"].vocabulary)), 9)
    found = same_vocabulary(fewer, more)
    assert (found.differing, found.clashing) == (1, 0) and "'new' has no id" in found.example


def test_chat_templates(tmp_path):
    folders = {}
    for name, template in TEMPLATES.items():
        named = [{"name": "default", "template": template}] if name == "c" else template
        written = {"chat_template": named}
        folders[name] = write(tmp_path / name, words("<unk>"), 1, extra=written)
    assert choose_chat_template(None, folders) is None
    assert choose_chat_template("auto", folders) == "{{ messages[1] }}"
    (folders["b"].path / "chat_template.jinja").write_text(TEMPLATES["a"])
    assert choose_chat_template("auto", folders) == "{{ messages[0] }}"
    assert choose_chat_template("{{ messages }}", folders) == "{{ messages }}"
    assert choose_chat_template("auto", {"d": write(tmp_path / "d", None, 1)}) is None
    with pytest.raises(RecipeError, match="chat_template: found 'llama3'"):
        choose_chat_template("llama3", folders)


def test_chatml_is_what_it_is_known_to_be():
    template = jinja2.Template(choose_chat_template("chatml", {}))
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(messages=talk) == asked + "Yes<|im_end|>\n"
    assert template.render(messages=talk[:1], add_generation_prompt=True) == asked
