"""`export`, `replay` and `pick` on one small study of the zoo, as a user would call them."""

from __future__ import annotations

import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from studies import quick_config

from evomerge.checkpoints.merger import Merger
from evomerge.cli import run as command
from evomerge.journal import read_events, read_items, write_items
from evomerge.mating import Mating
from evomerge.progress import Progress
from evomerge.recipe import Recipe
from evomerge.setup import make_setup, make_space
from evomerge.study import run_study
from evomerge.zoo import zoo_path

STUDY = ("budget.candidates=5", "optimizer.population=5", "space.granularity=global")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("study") / "run"
    run_study(make_setup(quick_config(run_dir, *STUDY)), Progress(quiet=True))
    return run_dir


@pytest.fixture
def running(study: Path, tmp_path: Path) -> Path:
    """The study as it was before its proof."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in ("config.yaml", "journal.jsonl"):
        shutil.copy(study / name, run_dir / name)
    shutil.copytree(study / "items", run_dir / "items")
    return run_dir


def called(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = command(list(map(str, arguments)))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def results(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "results.json").read_text())


def genome(run_dir: Path, number: int) -> list[float]:
    asked = [c for e in read_events(run_dir) if e["event"] == "ask" for c in e["candidates"]]
    return next(c["genome"] for c in asked if c["id"] == number)


def other_candidate(run_dir: Path) -> int:
    """One that no table of the results has."""
    digests = {m["digest"] for m in results(run_dir)["models"].values()}
    asked = [c for e in read_events(run_dir) if e["event"] == "ask" for c in e["candidates"]]
    return next(c["id"] for c in asked if c["digest"] not in digests)


def head_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_candidate_is_the_merge_that_its_genome_means(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = other_candidate(study)
    code, out, _ = called(capsys, "export", study, number, tmp_path / "out")
    assert code == 0 and str(tmp_path / "out") in out
    base = load_file(str(zoo_path("models/base/model.safetensors")))
    names = ("math", "japanese", "sorter")
    sources = [load_file(str(zoo_path(f"models/{n}/model.safetensors"))) for n in names]
    ours = load_file(str(tmp_path / "out" / "model.safetensors"))
    assert ours.keys() == base.keys()
    for name, tensor in ours.items():
        start = base[name].double()
        parts = zip(genome(study, number), sources, strict=True)
        expected = start + sum(w * (s[name].double() - start) for w, s in parts)
        torch.testing.assert_close(tensor, expected.to(tensor.dtype), rtol=2**-7, atol=1e-6)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).is_file()
    card = (tmp_path / "out" / "README.md").read_text()
    assert head_of(card)["base_model"] == ["base", *names]
    assert "not** measured on held-out items" in card
    assert f"python -m evomerge replay {study} {number}" in card
    assert head_of(card)["license"] == "apache-2.0" and "WARNING" not in out.upper()
    assert card.count("| apache-2.0 | README.md |") == 4
    recipe = Recipe.from_yaml(tmp_path / "out" / "recipe.yaml")
    digest = recipe.digest(Merger().identities(recipe))
    assert f"digest: {digest}" in out


def test_the_choice_has_the_card_of_the_study_and_its_held_out_table(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()  # an empty folder is as good as none
    assert called(capsys, "export", study, "best", tmp_path / "out")[0] == 0
    theirs, ours = study / "best" / "model", tmp_path / "out"
    for name, tensor in load_file(str(theirs / "model.safetensors")).items():
        assert torch.equal(tensor, load_file(str(ours / "model.safetensors"))[name])
    sections = ("## Parents", "## Held-out results")
    cards = [(folder / "README.md").read_text() for folder in (theirs, ours)]
    assert head_of(cards[0]) == head_of(cards[1])
    for section in sections:
        parts = [card.split(section)[1].split("\n## ")[0] for card in cards]
        assert parts[0] == parts[1] and "|" in parts[0]
    assert "**best merge**" in cards[1]


def test_what_is_there_is_not_touched(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    code, _, err = called(capsys, "export", study, 0, tmp_path / "full")
    assert code == 2 and "expected a path that is free" in err
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    code, _, err = called(capsys, "export", study, 0, tmp_path / "empty")
    assert code == 2 and "0.00 GB free on its disk" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "full"]
    assert not any((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["99", "out"], "expected a candidate's number (0 to 4), or one of best, "),
        (["bset", "out"], "Did you mean best?"),
        (["0", "out", "--rank", "4"], "--rank: found it beside --format hf"),
        (["0", "out", "--public"], "--public: found it without --push-to-hub"),
        (["0", "out", "--model", "mth=/x"], "NAME=PATH with one of base, math"),
        (["0", "out", "--model", "math=/none"], "models.sources.math: found no directory /none"),
        (["0", "a.yaml", "--format", "recipe", "--push-to-hub", "a/b"], "a folder, which"),
    ],
)
def test_mistakes_are_named(
    study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = called(capsys, "export", study, *arguments)
    assert code == 2 and said in err and not any(tmp_path.iterdir())


def test_a_running_study_gives_its_best_so_far(
    running: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {e["id"]: e["fitness"][0] for e in read_events(running) if e["event"] == "result"}
    code, out, err = called(capsys, "export", running, "best", tmp_path / "r", "--format", "recipe")
    assert code == 0 and f"exporting candidate {max(told, key=told.get)} of" in err
    assert "the best so far by its search items" in err
    assert "no proof on held-out items yet" in (tmp_path / "r" / "README.md").read_text()
    code, out, _ = called(capsys, "pick", running, "--prefer", "jp_math_tiny=1")
    line = re.search(r"To export it: python -m evomerge (export .*) OUT", out)
    assert code == 0 and line
    again = [*line[1].split(), str(tmp_path / "again.yaml"), "--format", "recipe"]
    assert called(capsys, *again)[0] == 0


def test_moved_and_changed_sources_are_told_apart(
    running: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((running / "config.yaml").read_text())
    real = config["models"]["sources"]["math"]
    config["models"]["sources"]["math"] = "/old/place/math"
    (running / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    out = tmp_path / "a.yaml"
    code, _, err = called(capsys, "export", running, 1, out, "--format", "recipe")
    assert code == 2 and "models.sources.math" in err and "--model math=PATH" in err
    moved = ("--model", f"math={real}")
    assert called(capsys, "export", running, 1, out, "--format", "recipe", *moved)[0] == 0
    assert real in out.read_text() and "/old/place" not in out.read_text()
    wrong = ("--model", f"math={zoo_path('models/sorter')}")
    code, _, err = called(capsys, "export", running, 1, tmp_path / "b.yaml", *wrong)
    assert code == 2 and "its weights have changed" in err and err.startswith("1 problem")


def test_recipes_carry_fingerprints_and_mergekit_gets_its_own_form(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(capsys, "export", study, 2, tmp_path / "a.yaml", "--format", "recipe")[0] == 0
    text = (tmp_path / "a.yaml").read_text()
    recipe = Recipe.from_yaml(tmp_path / "a.yaml")
    for ref, mark in Merger().identities(recipe).items():
        assert f"#   {ref}: {mark}\n" in text
    assert (
        called(capsys, "export", study, "japanese", tmp_path / "b", "--format", "mergekit")[0] == 0
    )
    data = yaml.safe_load((tmp_path / "b" / "mergekit.yaml").read_text())
    assert data["merge_method"] == "linear" and "seed" not in data.get("parameters", {})
    card = (tmp_path / "b" / "README.md").read_text()
    assert "it is not what the study chose" in card and "mergekit-yaml mergekit.yaml OUT" in card


def test_an_adapter_says_how_far_it_is_from_the_merge(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    code, said, _ = called(capsys, "export", study, 1, out, "--format", "lora", "--rank", 2)
    assert code == 0
    told = re.search(r"differs from the merged model by ([\d.e-]+) of the norm", said)
    card = (out / "README.md").read_text()
    assert told and 0.001 < float(told[1]) < 0.5 and told[0] in card
    assert head_of(card)["library_name"] == "peft" and head_of(card)["base_model"] == ["base"]
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["r"] == 2 and Path(config["base_model_name_or_path"]).is_dir()


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files needs."""

    log: list[tuple[str, Any]]
    public = False

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            self.answer(200, {"name": "me", "type": "user", "orgs": []})
        elif self.public:
            self.answer(200, {"id": "me/merged", "private": False, "siblings": [], "tags": []})
        else:
            self.answer(404, {"error": "none"}, ("X-Error-Code", "RepoNotFound"))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.log.append((self.path, body))
        if self.path == "/api/repos/create":
            self.answer(200, {"url": f"http://{self.headers['Host']}/me/merged"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            self.answer(200, {"files": [{"path": f["path"], **regular} for f in files]})
        elif "/commit/" in self.path and self.public is None:
            self.answer(500, {"error": "on fire"})
        else:
            url = f"http://{self.headers['Host']}/me/merged/commit/{'a' * 40}"
            self.answer(200, {"success": True, "commitOid": "a" * 40, "commitUrl": url})

    def answer(self, code: int, data: object, *headers: tuple[str, str]) -> None:
        body = json.dumps(data).encode()
        self.send_response(code)
        for name, value in (("Content-Length", str(len(body))), *headers):
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keeps quiet."""


def pushed(study: Path, out: Path, public: object, *more: str) -> tuple[Any, list[Any]]:
    """An upload by a process of its own to a hub on this machine, and what that was sent."""
    handler = type("Hub", (Hub,), {"log": [], "public": public})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_TOKEN": "hf_x",
        "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    arguments = ["export", str(study), "0", str(out), "--format", "recipe", "--push-to-hub"]
    done = subprocess.run(
        [sys.executable, "-m", "evomerge", *arguments, "me/merged", *more], timeout=300,
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    server.shutdown()
    return done, handler.log  # type: ignore[attr-defined]


@pytest.mark.slow
def test_an_upload_is_private_and_names_no_folder_of_this_machine(
    study: Path, tmp_path: Path
) -> None:
    done, sent = pushed(study, tmp_path / "out", False)
    assert done.returncode == 0, done.stderr
    paths = [path for path, _ in sent]
    made = json.loads(sent[0][1])
    assert paths[0] == "/api/repos/create"
    assert made.get("visibility") == "private" or made.get("private") is True
    assert "/me/merged/commit/" in done.stdout
    commit = sent[-1][1].decode()
    assert '"README.md"' in commit and '"recipe.yaml"' in commit
    for file in (tmp_path / "out").iterdir():
        assert str(Path(zoo_path("models/base")).parent) not in file.read_text()
        assert str(study) not in file.read_text()


@pytest.mark.slow
def test_a_failed_upload_loses_nothing(study: Path, tmp_path: Path) -> None:
    done, _ = pushed(study, tmp_path / "a", True)
    assert done.returncode == 2 and "the public repository me/merged" in done.stderr
    assert not (tmp_path / "a").exists()
    done, _ = pushed(study, tmp_path / "b", None)
    assert done.returncode == 1 and f"hf upload me/merged {tmp_path / 'b'}" in done.stderr
    assert (tmp_path / "b" / "recipe.yaml").is_file() and "Traceback" not in done.stderr


def test_what_stands_against_an_upload_is_told_before_the_work(
    study: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    out = tmp_path / "out"
    shutil.copytree(zoo_path("models/math"), tmp_path / "math")
    (tmp_path / "math" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    restricted = ("--model", f"math={tmp_path / 'math'}")
    for more, said in (
        (("me/x", *restricted), "Not for commercial use: math (cc-by-nc-4.0)"),
        (("me/x", *restricted, "--accept-licence-conflict"), "no token of the hub"),
        (("me//x",), "a repository such as owner/model"),
    ):
        code, _, err = called(capsys, "export", study, 0, out, "--push-to-hub", *more)
        assert code == 2 and said in err and not out.exists()
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    code, _, err = called(capsys, "export", study, 0, out, "--push-to-hub", "me/x")  # offline
    assert code == 1 and "could not be asked about me/x" in err and not out.exists()
    code, said, _ = called(capsys, "export", study, 0, out, "--format", "recipe", *restricted)
    assert code == 0 and "LICENCE WARNING:\n  ! Not for commercial use" in said
    card = (out / "README.md").read_text()
    assert "> **Licence warning.**" in card and head_of(card)["license"] == "cc-by-nc-4.0"


def test_a_candidate_reproduces(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in study.rglob("*") if p.is_file())
    code, out, _ = called(capsys, "replay", study, 3)
    assert code == 0 and "12 of 12 the same" in out and out.endswith("candidate 3 reproduces\n")
    assert before == sorted((p, p.stat().st_mtime_ns) for p in study.rglob("*") if p.is_file())
    code, out, _ = called(capsys, "replay", study, "best", "--held-out")
    assert code == 0 and "test items:" in out and "validation items:" in out


def test_what_does_not_reproduce_is_shown_item_by_item(
    running: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a race's portions, one of which says something else than was answered."""
    lines = (running / "journal.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    place = next(i for i, e in enumerate(events) if e["event"] == "result" and e["id"] == 2)
    (part,) = read_items(running / events[place]["file"])
    changed = part.scores.copy()
    changed[4] = 1.0 - changed[4]
    texts = (*part.texts[:4], "<b>\x1b[31mforged", *part.texts[5:])
    portions = []
    for stage, rows in enumerate((np.arange(0, 5), np.arange(5, 12))):
        own = {
            "ids": tuple(part.ids[i] for i in rows), "texts": tuple(texts[i] for i in rows),
            "scores": changed[rows], "logliks": part.logliks[rows], "tokens": part.tokens[rows],
        }  # fmt: skip
        name = f"items/part-000002-{stage:02d}.parquet"
        write_items(running / name, [type(part)(part.task, part.split, **own)])
        portions.append({**events[place], "event": "part", "file": name})
    events[0]["versions"]["torch"] = "0.1"
    events[place:place] = portions
    (running / "journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    code, out, _ = called(capsys, "replay", running, 2)
    assert code == 1 and out.count("11 of 12 the same") == 2
    assert f"{part.ids[4]}: score {changed[4]:g} then, {part.scores[4]:g} now" in out
    assert "then: <b>[31mforged" in out and "\x1b" not in out
    assert "8.3 percentage points" in out and "p = 1" in out
    assert "no more than chance" in out and "torch was 0.1, is" in out
    assert out.endswith("candidate 2 does not reproduce\n")


def test_replay_wants_the_same_items(
    running: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((running / "config.yaml").read_text())
    config["task"]["search"]["limit"] = 11
    (running / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    code, _, err = called(capsys, "replay", running, 0)
    assert code == 2 and "task.search: found items of the digest" in err


def test_replay_needs_answers(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finalists = {e["digest"] for e in read_events(study) if e["event"] == "measure"}
    asked = [c for e in read_events(study) if e["event"] == "ask" for c in e["candidates"]]
    number = next(c["id"] for c in asked if c["digest"] not in finalists)
    code, _, err = called(capsys, "replay", study, number, "--held-out")
    assert code == 2 and "answered no held-out items" in err


def test_a_mating_is_found_with_its_ancestors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "items").mkdir(parents=True)
    config = quick_config(run_dir, "+experiment=m2n2_tiny", "report_tasks=null")
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    merger = Merger()
    space, own = make_space(config, merger), []
    seeds = [Mating.of_seed(k) for k in range(space.seeds)]
    n = space.seeds
    for mating in (*seeds, Mating(n, 0, 1, 0.3, 0.6), Mating(n + 1, n, 1, 0.5, 0.2)):
        recipe = space.decode(mating.to_genome())
        digest = recipe.digest(merger.identities(recipe))
        own.append({"id": len(own), "genome": mating.to_genome().tolist(), "digest": digest})
    named = {"base": config["models"]["base"], **config["models"]["sources"]}
    marks = {name: merger.checkpoint(ref).fingerprint for name, ref in named.items()}
    events = [
        {"event": "study", "schema": 1, "identities": marks, "matter": {}, "versions": {}},
        {"event": "ask", "search": "search", "generation": 0, "candidates": own},
    ]
    (run_dir / "journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    out = tmp_path / "a.yaml"
    code, _, err = called(capsys, "export", run_dir, n + 1, out, "--format", "recipe")
    assert code == 0, err
    assert Recipe.from_yaml(out) == recipe
    code, _, err = called(capsys, "export", run_dir, n + 1, tmp_path / "b", "--format", "mergekit")
    assert code == 2 and "intervals of the parameters" in err
