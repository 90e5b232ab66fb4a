"""What is written loads with transformers, whole or not at all."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import yaml
from adapter_folders import random_factors, write_adapter
from checkpoint_models import random_tensors, real_model, write_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from evomerge.checkpoints.card import merge_card
from evomerge.checkpoints.checkpoint import Checkpoint
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.errors import EvomergeError, SourceError, UserError
from evomerge.recipe import Recipe, Scope, Source, Tokenizer
from evomerge.zoo import zoo_path


def write_models(folder, kind, **changes):
    refs = []
    for seed in range(3):
        path = folder / f"m{seed}"
        real_model(kind, seed=seed, **changes).save_pretrained(path)
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "_name_or_path": "/secret"}))
        refs.append(str(path))
    sources = tuple(Source(r, {"weight": 0.4}) for r in refs[1:])
    return Recipe("task_arithmetic", sources, refs[0], {}, "bfloat16")


@pytest.mark.parametrize("kind", ["Llama", "Gemma2", "GPT2", "Mixtral"])
@pytest.mark.parametrize("shard_bytes", [5 << 30, 4000])
def test_loads_with_transformers(tmp_path, kind, shard_bytes):
    recipe, merger = write_models(tmp_path, kind), Merger()
    out = tmp_path / "deep" / "out"
    write_checkpoint(recipe, merger, out, {"NOTE.md": "日本"}, shard_bytes)
    merged = dict(merger.merge(recipe))
    written = Checkpoint(str(out))
    assert {n: written.tensor(n).tolist() for n in written.names} == {
        n: t.tolist() for n, t in merged.items()
    }
    files = list(out.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes == 4000)
    sizes = [2 * t.numel() for t in merged.values()]
    assert all(f.stat().st_size < 4000 + max(sizes) + 8192 for f in files if len(files) > 1)
    config = json.loads((out / "config.json").read_text())
    assert "_name_or_path" not in config
    assert config["dtype"] == "bfloat16"
    assert (out / "NOTE.md").read_text(encoding="utf-8") == "日本"

    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    again = tmp_path / "again"
    model.save_pretrained(again)
    loaded = Checkpoint(str(again))
    for name in loaded.names:
        assert torch.equal(loaded.tensor(name), merged[name])


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_stay_tied_or_apart(tmp_path, tied):
    recipe = write_models(tmp_path, "Llama", tie_word_embeddings=tied)
    write_checkpoint(recipe, Merger(), tmp_path / "out")
    assert ("lm_head.weight" in Checkpoint(str(tmp_path / "out")).names) != tied
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    one, other = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (one.data_ptr() == other.data_ptr()) == tied


def test_the_tokenizer_comes_along(tmp_path):
    refs = [str(zoo_path(f"models/{name}")) for name in ("base", "math")]
    recipe = Recipe("task_arithmetic", (Source(refs[1], {"weight": 0.5}),), refs[0])
    write_checkpoint(recipe, Merger(), tmp_path / "out")
    tokenizer, base = (AutoTokenizer.from_pretrained(p) for p in (tmp_path / "out", refs[0]))
    assert tokenizer.get_vocab() == base.get_vocab()
    assert Checkpoint(str(tmp_path / "out")).vocabulary == base.get_vocab()


def test_dtype_and_path_of_nested_configs(tmp_path):
    config = {
        "vocab_size": 6, "_name_or_path": "/secret", "torch_dtype": "float32",
        "text_config": {"dtype": "float32", "_name_or_path": "/secret", "rope": {"dtype": 1}},
    }  # fmt: skip
    ref = str(write_folder(tmp_path / "m", random_tensors(0), 1, config))
    write_checkpoint(Recipe("linear", (Source(ref, {"weight": 1}),)), Merger(), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "vocab_size": 6, "torch_dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "rope": {"dtype": 1}},
    }  # fmt: skip


@pytest.fixture
def simple(tmp_path):
    ref = str(write_folder(tmp_path / "source", random_tensors(0)))
    return Recipe("linear", (Source(ref, {"weight": 1}),))


def left(folder):
    return sorted(p.name for p in folder.iterdir())


def test_an_existing_path_is_refused(tmp_path, simple):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    for name in ("folder", "file"):
        with pytest.raises(UserError, match="existing"):
            write_checkpoint(simple, Merger(), tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"
    assert left(tmp_path) == ["file", "folder", "source"]


def test_a_file_in_the_way_is_told(tmp_path, simple):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(EvomergeError, match="could not be written"):
        write_checkpoint(simple, Merger(), tmp_path / "file" / "out")


def test_a_source_that_does_not_fit_leaves_nothing(tmp_path, simple):
    tensors = random_tensors(1)
    tensors["model.norm.weight"] = torch.ones(5)
    odd = Source(str(write_folder(tmp_path / "odd", tensors)), {"weight": 1})
    recipe = Recipe("linear", (*simple.sources, odd))
    with pytest.raises(SourceError):
        write_checkpoint(recipe, Merger(), tmp_path / "out")
    assert left(tmp_path) == ["odd", "source"]


def test_weights_that_overflow_are_not_written(tmp_path):
    ref = str(write_folder(tmp_path / "source", {"w": torch.tensor([1.0, 7e4])}))
    recipe = Recipe("linear", (Source(ref, {"weight": 1}),), dtype="float16")
    with pytest.raises(EvomergeError, match="w of the merged model is not finite in float16"):
        write_checkpoint(recipe, Merger(), tmp_path / "out")
    assert left(tmp_path) == ["source"]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from evomerge.checkpoints.merger import Merger
from evomerge.checkpoints.card import merge_card
from evomerge.checkpoints.writer import write_checkpoint
from evomerge.errors import EvomergeError
from evomerge.recipe import Recipe, Source

recipe = Recipe("linear", (Source(sys.argv[1], {"weight": 1.0}),))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    write_checkpoint(recipe, Merger(), Path(sys.argv[2]), shard_bytes=int(sys.argv[4]))
except EvomergeError as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits file sizes as Linux does")
@pytest.mark.parametrize(("limit", "shard"), [(2000, 5 << 30), (10, 300)])
def test_a_full_disk_leaves_nothing_behind(tmp_path, simple, limit, shard):
    source, out = simple.sources[0].model, tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, source, str(out), str(limit), str(shard)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "could not be written" in done.stdout and "free some space" in done.stdout
    assert left(tmp_path) == ["source"]


# -- room, errors, card ---------------------------------------------------------------------


@pytest.mark.parametrize("short", [0, 1])
def test_too_little_room_is_found_before_the_merge(tmp_path, simple, monkeypatch, short):
    merger = Merger()
    needed = sum(2 * p.shape[0] * (p.shape[1:] or (1,))[0] for p in merger.assemble(simple).parts)
    asked = []

    def usage(folder):
        asked.append(folder)
        return SimpleNamespace(free=needed - short)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    out = tmp_path / "not" / "yet" / "there"
    if not short:
        write_checkpoint(simple, merger, out)
        assert out.is_dir()
    else:
        monkeypatch.setattr(merger, "stream", None)
        with pytest.raises(UserError, match="free on its disk"):
            write_checkpoint(simple, merger, out)
        assert left(tmp_path) == ["source"]
    assert asked == [tmp_path]


@pytest.mark.parametrize("after", [0, 1, 5, 20])
def test_a_disk_that_fills_leaves_nothing(tmp_path, simple, monkeypatch, after):
    """Whatever was written until then."""
    writes = 0
    plain = Path.open

    def opened(self, mode="r", *args, **kwargs):
        file = plain(self, mode, *args, **kwargs)
        if mode != "wb":
            return file

        def write(data):
            nonlocal writes
            writes += 1
            if writes > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return len(data)

        whole = mock.MagicMock(wraps=file)
        whole.__enter__.return_value = whole
        whole.__exit__.side_effect = lambda *_: file.close()
        whole.write.side_effect = write
        return whole

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(EvomergeError, match="No space left on device"):
        write_checkpoint(simple, Merger(), tmp_path / "out", shard_bytes=300)
    assert writes == after + 1
    assert left(tmp_path) == ["source"]


def test_a_nan_in_a_source_is_named_and_nothing_is_left(tmp_path, simple):
    tensors = random_tensors(1)
    tensors["model.layers.7.mlp.weight"][1, 2] = float("nan")
    bad = Source(str(write_folder(tmp_path / "bad", tensors)), {"weight": 1})
    recipe = Recipe("linear", (*simple.sources, bad))
    with pytest.raises(
        SourceError, match=r"1 values of model\.layers\.7\.mlp\.weight in .*bad that"
    ):
        write_checkpoint(recipe, Merger(), tmp_path / "out")
    assert left(tmp_path) == ["bad", "source"]


def test_an_interrupt_leaves_nothing(tmp_path, simple):
    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(simple, Merger(), tmp_path / "out", report=stop)
    assert left(tmp_path) == ["source"]


def test_progress_is_told(tmp_path, simple):
    told = []
    write_checkpoint(simple, Merger(), tmp_path / "out", report=lambda *both: told.append(both))
    total = len(random_tensors(0))
    assert told == [(i, total) for i in range(total + 1)]


def test_the_card_names_parents_without_their_paths(tmp_path):
    """Sources, adapters, a base, parents of a scope and of a tokenizer, merges within."""
    config = {"vocab_size": 6, "num_hidden_layers": 12}
    names = ("base-7b", "math-7b", "code-7b", "rest-7b")
    refs = [
        str(write_folder(tmp_path / n, random_tensors(i), 1, config)) for i, n in enumerate(names)
    ]
    adapter = write_adapter(tmp_path / "lora-ja", random_factors(0))
    inner = Recipe("linear", (Source(refs[1], {"weight": 1}), Source(refs[2], {"weight": 1})))
    sources = (Source(inner, {"weight": 0.5}), Source(f"{refs[0]}+{adapter}", {"weight": 0.5}))
    recipe = Recipe("task_arithmetic", sources, refs[0], scope=Scope("model.layers.", refs[3]))
    merger = Merger()
    text = merge_card("", "", recipe, merger.identities(recipe))
    assert str(tmp_path) not in text and tmp_path.name not in text
    head = yaml.safe_load(text.split("---")[1])
    assert set(head["base_model"]) == {*names, "lora-ja"}
    assert recipe.digest(merger.identities(recipe)) in text
    body = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    assert body["scope"] == {"prefix": "model.layers.", "rest": "rest-7b"}
    assert body["models"][1]["model"] == "base-7b+lora-ja"
    again = Recipe.from_dict(body)
    assert [s.parameters for s in again.sources] == [s.parameters for s in sources]
    with_tokenizer = replace(recipe, scope=None, tokenizer=Tokenizer(refs[2]))
    assert str(tmp_path) not in merge_card(
        "", "", with_tokenizer, merger.identities(with_tokenizer)
    )


def test_paths_leave_the_config_whatever_the_dtype(tmp_path):
    config = {"_name_or_path": "/secret", "text_config": {"_name_or_path": "/secret", "dtype": "x"}}
    ref = str(write_folder(tmp_path / "m", random_tensors(0), 1, {"vocab_size": 6, **config}))
    recipe = Recipe("linear", (Source(ref, {"weight": 1}),), dtype=None)
    write_checkpoint(recipe, Merger(), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        "vocab_size": 6, "text_config": {"dtype": "x"},
    }  # fmt: skip


def test_files_are_readable_by_others(tmp_path, simple):
    write_checkpoint(simple, Merger(), tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert {f.stat().st_mode & 0o777 for f in (tmp_path / "out").iterdir()} == {0o644}
