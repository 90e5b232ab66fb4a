"""Sources on a node's own disk: copied once, whole or not at all, and again when damaged."""

from __future__ import annotations

import multiprocessing
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from evomerge.errors import ConfigError, SourceError
from evomerge.executors import staging
from evomerge.executors.staging import content_digests, renamed, stage_sources
from evomerge.zoo import zoo_path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small model of a directory's own, so that it may be damaged."""
    folder = tmp_path / "source"
    shutil.copytree(zoo_path("models/math"), folder)
    (folder / "pytorch_model.bin").write_bytes(b"the same weights, pickled")
    return folder


def inodes(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_ino for p in folder.rglob("*") if p.is_file()}


def test_a_copy_has_every_file_but_pickles(source: Path, tmp_path: Path) -> None:
    digests = content_digests([str(source)])
    (copy,) = stage_sources(digests, tmp_path / "stage").values()
    names = {p.name for p in source.iterdir()} - {"pytorch_model.bin"}
    assert {p.name for p in Path(copy).iterdir()} == names
    for name in names:
        assert (Path(copy) / name).read_bytes() == (source / name).read_bytes()
    before = inodes(tmp_path / "stage")
    assert stage_sources(digests, tmp_path / "stage") == {str(source): copy}
    assert inodes(tmp_path / "stage") == before  # not copied again


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_copy_is_made_anew(source: Path, tmp_path: Path, name: str, damage: str) -> None:
    digests = content_digests([str(source)])
    (copy,) = stage_sources(digests, tmp_path / "stage").values()
    path = Path(copy) / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(content if damage == "flipped" else content[:-9])
    stage_sources(digests, tmp_path / "stage")
    assert path.read_bytes() == (source / name).read_bytes()


def _copy(digests: dict[str, str], folder: Path, log: Path) -> None:
    real = shutil.copyfile

    def logged(a: Path, b: Path) -> None:
        with log.open("a") as file:
            file.write(f"{a.name}\n")
        real(a, b)

    staging.shutil.copyfile = logged  # type: ignore[attr-defined]
    stage_sources(digests, folder)


def test_one_of_several_processes_copies(source: Path, tmp_path: Path) -> None:
    digests = content_digests([str(source)])
    log = tmp_path / "log"
    arguments = (digests, tmp_path / "stage", log)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_copy, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    copied = log.read_text().split()
    assert len(copied) == len(set(copied)) == len(list(source.iterdir())) - 1


def test_an_unfinished_copy_is_no_copy(source: Path, tmp_path: Path) -> None:
    """As a process that was killed leaves it."""
    digests = content_digests([str(source)])
    (copy,) = stage_sources(digests, tmp_path / "stage").values()
    unfinished = tmp_path / "stage" / f".{Path(copy).name}.unfinished"
    Path(copy).rename(unfinished)
    (unfinished / "model.safetensors").write_bytes(b"half")
    assert stage_sources(digests, tmp_path / "stage") == {str(source): copy}
    assert content_digests([copy]) == {copy: digests[str(source)]}
    assert not unfinished.exists()


def test_a_source_that_has_changed_since_is_refused(source: Path, tmp_path: Path) -> None:
    digests = content_digests([str(source)])
    (source / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="another content"):
        stage_sources(digests, tmp_path / "stage")
    assert [p for p in (tmp_path / "stage").iterdir() if p.is_dir()] == []


def test_too_little_room_is_told_before_copying(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: usage(10**9, 0, 10**7))
    with pytest.raises(ConfigError, match=r"executor\.stage: found 0\.01 GB free"):
        stage_sources(content_digests([str(source)]), tmp_path / "stage")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"executor\.stage"):
        stage_sources({}, tmp_path / "file")


def test_recipes_are_renamed_wherever_a_model_is_named() -> None:
    names = {"a/b": "/s/1", "c": "/s/2"}
    recipe = {
        "base_model": "a/b",
        "models": [{"model": "a/b+c", "parameters": {"weight": [1.0, 2.0]}}, {"model": "d+c"}],
        "tokenizer": {"source": "c", "tokens": {"x": {"source": {"model": "a/b"}}}},
        "sources": {"merge_method": "linear", "models": [{"model": "c"}]},
    }
    assert renamed(recipe, names) == {
        "base_model": "/s/1",
        "models": [{"model": "/s/1+/s/2", "parameters": {"weight": [1.0, 2.0]}}, {"model": "d+c"}],
        "tokenizer": {"source": "/s/2", "tokens": {"x": {"source": {"model": "/s/1"}}}},
        "sources": {"merge_method": "linear", "models": [{"model": "/s/2"}]},
    }
