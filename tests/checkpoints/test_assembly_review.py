"""What members disagree in is named, or said; files beside the weights; room and leftovers."""

import json
from pathlib import Path

import pytest
from checkpoint_models import random_tensors, write_folder
from tokenizers import Tokenizer as Fast
from tokenizers import models

from evomerge.checkpoints import writer
from evomerge.checkpoints.checking import check_recipe
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.cli import VERBS, run
from evomerge.errors import ConfigError, RecipeError, SourceError, UserError
from evomerge.merging import merge_command
from evomerge.recipe import Recipe

WORDS = ("a", "b", "c", "d")
CONFIG = {"vocab_size": 6, "num_hidden_layers": 2, "num_attention_heads": 2, "rope_theta": 1e4}


def folder(path: Path, seed=0, words=WORDS, drop=(), **config) -> str:
    tensors = random_tensors(seed, blocks=2)
    for name in drop:
        tensors.pop(name)
    write_folder(path, tensors, 1, {**CONFIG, **config})
    if words:
        ids = {w: i for i, w in enumerate(words)}
        Fast(models.WordLevel(ids, words[0])).save(str(path / "tokenizer.json"))
    return str(path)


def linear(*refs, **more) -> Recipe:
    sources = [{"model": r, "parameters": {"weight": 1}} for r in refs]
    return Recipe.from_dict({"merge_method": "linear", "models": sources, **more})


def in_slices(one, two) -> Recipe:
    pieces = [
        {"sources": [{"model": r, "layer_range": [i, i + 1], "parameters": {"weight": 1}}
                     for r in (one, two)]}
        for i in (0, 1)
    ]  # fmt: skip
    return Recipe.from_dict({"merge_method": "linear", "slices": pieces})


def in_modules(one, two) -> Recipe:
    both = [{"model": r, "parameters": {"weight": 1}} for r in (one, two)]
    return Recipe.from_dict({"merge_method": "linear", "modules": {"default": {"models": both}}})


@pytest.mark.parametrize("form", [linear, in_slices, in_modules])
def test_clashing_vocabularies_are_refused(tmp_path, form):
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two", 1, ("a", "c", "b", "d"))
    with pytest.raises(SourceError) as error:
        Merger().assemble(form(one, two))
    text = str(error.value)
    assert "2 ids mean another token" in text and "id 1 is 'b' in" in text
    assert "[1].model" in text and "tokenizer_source: base" in text
    Merger().assemble(form(one, folder(tmp_path / "none", 1, ())))
    assert not Merger().assemble(form(one, folder(tmp_path / "same", 1))).notes


def test_blocks_of_another_vocabulary_may_stand_between(tmp_path):
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two", 1, ("d", "c", "b", "a"))
    pieces = [
        {"sources": [{"model": r, "layer_range": [0, 1]}]} for r in (one, two, one)
    ]  # fmt: skip
    Merger().assemble(Recipe.from_dict({"merge_method": "passthrough", "slices": pieces}))


def test_a_clash_is_no_mistake_with_a_tokenizer_key(tmp_path):
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two", 1, ("a", "c", "b", "d"))
    assert Merger().assemble(linear(one, two, tokenizer_source="base")).vocabulary is not None


def test_added_tokens_are_told(tmp_path):
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two", 1, (*WORDS, "e"))
    (note,) = Merger().assemble(linear(one, two)).notes
    assert "1 token" in note and "'e'" in note


def test_configs_are_compared(tmp_path):
    one = folder(tmp_path / "one", head_dim=None)
    with pytest.raises(SourceError, match=r"models\[1\].model: found num_attention_heads: 4"):
        Merger().assemble(linear(one, folder(tmp_path / "two", num_attention_heads=4)))
    other = folder(tmp_path / "three", rope_theta=1e6, head_dim=2)
    (note,) = Merger().assemble(linear(one, other)).notes
    assert note == f"{other} has rope_theta 1000000.0; the merge is run with 10000.0 of {one}."


def test_an_untied_model_behind_a_tied_one(tmp_path):
    tied = folder(tmp_path / "tied", drop=("lm_head.weight",), tie_word_embeddings=True)
    own = folder(tmp_path / "own", 1)
    with pytest.raises(SourceError, match=r"tied to the embedding.*List .*own first"):
        Merger().assemble(linear(tied, own))
    Merger().assemble(linear(own, tied))


def pieces(**more):
    data = {
        "merge_method": "pieces", "models": [{"model": "a"}, {"model": "b"}],
        "pieces": {"breakpoints": [4], "coefficients": [[0.5, 0.5]]},
    }  # fmt: skip
    return {**data, **more}


def test_pieces_take_no_parameters_and_no_base():
    check_recipe(Recipe.from_dict(pieces()))
    sources = [{"model": "a", "parameters": {"weight": 1}}, {"model": "b"}]
    with pytest.raises(RecipeError, match=r"models\[0\].parameters.weight"):
        check_recipe(Recipe.from_dict(pieces(models=sources)))
    with pytest.raises(RecipeError, match="base_model"):
        check_recipe(Recipe.from_dict(pieces(base_model="c")))


def test_rank_is_of_adapters(tmp_path):
    with pytest.raises(ConfigError, match="--rank"):
        merge_command([str(tmp_path / "r.yaml"), str(tmp_path / "out"), "--rank", "2"])


@pytest.mark.parametrize(("key", "data"), [
    ("route.depth", {"route": {"depth": 10_001, "slots": [{"model": "a", "layer": 0}]}}),
    ("tokenizer.pad_to_multiple_of", {
        "merge_method": "linear", "models": [{"model": "a"}],
        "tokenizer": {"pad_to_multiple_of": 1_000_001}}),
])  # fmt: skip
def test_sizes_have_an_end(key, data):
    with pytest.raises(RecipeError, match=rf"{key}.*from \d to 1"):
        Recipe.from_dict(data)


@pytest.mark.parametrize(("verb", "says"), [
    ("merge", "nothing was written"), ("check", "the same command goes on from here")
])  # fmt: skip
def test_what_an_interrupt_leaves(monkeypatch, capsys, verb, says):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(VERBS[verb].replace(":", "."), stop)
    assert run([verb]) == 130
    assert says in capsys.readouterr().err


def test_what_a_base_gives_to_modules(tmp_path):
    refs = [folder(tmp_path / n, i) for i, n in enumerate("abc")]
    both = [{"model": r, "parameters": {"weight": 1}} for r in refs[1:]]
    data = {"merge_method": "linear", "base_model": refs[0],
            "modules": {"embed_tokens": {"models": both}}}  # fmt: skip
    (note,) = Merger().assemble(Recipe.from_dict(data)).notes
    assert "the tensors that no module has" in note


def test_all_files_of_a_tokenizer_are_copied(tmp_path):
    one, two = (
        folder(tmp_path / "one", auto_map={"AutoModel": "code.Model"}),
        folder(tmp_path / "two", 1),
    )
    names = ("spiece.model", "sentencepiece.bpe.model", "tekken.json", "qwen.tiktoken",
             "tiktoken.model", "vocab.bpe", "additional_chat_templates/tool.jinja")  # fmt: skip
    (tmp_path / "one/additional_chat_templates").mkdir()
    for name in names:
        (tmp_path / "one" / name).write_text(name)
    merger, recipe = Merger(), linear(one, two)
    write_checkpoint(recipe, merger, tmp_path / "out")
    for name in names:
        assert (tmp_path / "out" / name).read_text() == name
        assert (tmp_path / "out" / name).stat().st_mode & 0o777 == 0o644
    assert any("auto_map" in note for note in merger.assemble(recipe).notes)


def test_room_is_checked_before_values(tmp_path, monkeypatch):
    one = folder(tmp_path / "one")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(linear(one, one).to_yaml())
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1}))
    monkeypatch.setattr("evomerge.merging._check_values", lambda *_: pytest.fail("read"))
    with pytest.raises(UserError, match="for the merged model"):
        merge_command([str(recipe), str(tmp_path / "out")])


def test_folders_of_a_failed_merge_go_too(tmp_path, monkeypatch):
    one = folder(tmp_path / "one")
    (tmp_path / "stays").mkdir()
    monkeypatch.setattr(writer, "write_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(linear(one, one), Merger(), tmp_path / "stays/new/newer/out")
    assert list((tmp_path / "stays").iterdir()) == []


def test_a_chat_template_has_to_be_jinja():
    good = "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% generation %}" \
           "{{ m }}{% endgeneration %}{% endfor %}"  # fmt: skip
    check_recipe(linear("a", chat_template=good))
    with pytest.raises(RecipeError, match=r"chat_template.*line 2"):
        check_recipe(linear("a", chat_template="{% if a %}\n{{ a }}{% endfor %}"))


def test_the_config_is_written_as_it_was(tmp_path):
    """Comparing leaves the donor's config alone."""
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two", 1, rope_theta=1e6)
    write_checkpoint(linear(one, two), Merger(), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["rope_theta"] == 1e4


def test_pieces_are_compared_too(tmp_path):
    one, two = folder(tmp_path / "one"), folder(tmp_path / "two", 1, ("a", "c", "b", "d"))
    total = sum(t.numel() for t in random_tensors(0, blocks=2).values())
    cut = {"breakpoints": [total], "coefficients": [[0.5, 0.5]]}
    with pytest.raises(SourceError, match="2 ids mean another token"):
        Merger().assemble(
            Recipe.from_dict(pieces(models=[{"model": one}, {"model": two}], pieces=cut))
        )
    three = folder(tmp_path / "three", 1, rope_theta=1e6)
    recipe = Recipe.from_dict(pieces(models=[{"model": one}, {"model": three}], pieces=cut))
    assert "rope_theta" in Merger().assemble(recipe).notes[0]
