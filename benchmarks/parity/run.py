"""Compares every operator with mergekit's on random checkpoints.

    python benchmarks/parity/run.py [--mergekit PYTHON] [--only TEXT ...] [--out FILE]

Prints a table for people and, as its last line, one JSON object with the same figures. Exit
status 1 if anything differs that should not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

from chance import compare_random  # noqa: E402
from checkpoints import BUFFERS, give_vocabularies, make_adapter, make_family  # noqa: E402
from compare import (  # noqa: E402
    DIFFERS,
    EQUAL,
    FAILS,
    PURPOSE,
    Row,
    compare_exact,
    read_inputs,
)
from environment import mergekit_python  # noqa: E402
from purposes import purpose  # noqa: E402
from recipes import Case, cases  # noqa: E402
from rounding import fused, read_config, read_tensors  # noqa: E402
from routes import route_recipes  # noqa: E402
from table import markdown  # noqa: E402
from vocabularies import compare_vocabularies  # noqa: E402

from evomerge.checkpoints.merger import Merger  # noqa: E402
from evomerge.checkpoints.writer import write_checkpoint  # noqa: E402
from evomerge.errors import EvomergeError  # noqa: E402
from evomerge.recipe import Recipe  # noqa: E402


@dataclass(frozen=True)
class Job:
    """A recipe in a file with the folders of both results.

    Attributes:
        case: what is compared.
        architecture: of the models.
        mode: key of `recipes.MODES`.
        models: folder of the models.
        recipe: what mergekit reads.
        out: where mergekit writes.
        source: what we merge, where it is not the recipe of the file.
        origin: number of the job whose recipe we wrote again.
    """

    case: Case
    architecture: str
    mode: str
    models: Path
    recipe: Path
    out: Path
    source: Recipe | None = None
    origin: int | None = None


def main() -> int:
    """Runs the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mergekit", type=Path, help="interpreter that has mergekit")
    parser.add_argument("--only", nargs="*", default=[], help="parts of names of cases or models")
    parser.add_argument("--out", type=Path, help="write the table to a file, too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    python = mergekit_python(options.mergekit)
    work = Path(tempfile.mkdtemp(prefix="evomerge-parity-"))
    os.environ["EVOMERGE_CACHE"] = str(work / "cache")  # nothing that was computed before
    try:
        return _compare(python, work, options.only, options.out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _compare(python: Path, work: Path, only: list[str], out: Path | None) -> int:
    started = time.perf_counter()
    jobs = _jobs(work, only)
    rows: list[Row] = []
    digests: list[str] = []
    last = started
    answers = _mergekit(python, work, jobs)
    about = next(answers)
    with torch.no_grad():
        for job, answer in zip(jobs, answers, strict=True):
            written = _digest(job.out) if job.mode == "float32" else ""
            digests.append(written)
            if written and job.origin is not None and digests[job.origin] == written:
                note = "what mergekit makes of it is the same to the bit"
                rows.append(replace(rows[job.origin], case=job.case.name, notes=[note]))
            else:
                rows.append(_row(job, answer))
            shutil.rmtree(job.out, ignore_errors=True)
            bad = rows[-1].verdict == DIFFERS
            if bad or time.perf_counter() - last > 5:
                last = time.perf_counter()
                name = f"{job.case.name} / {job.architecture} / {job.mode}"
                print(f"{len(rows)}/{len(jobs)}  {name}: {rows[-1].verdict}", flush=True)
                for note in rows[-1].notes if bad else ():
                    print(f"    {note}", flush=True)
    seconds = time.perf_counter() - started
    text = markdown(rows, about, seconds)
    print(text)
    if out is not None:
        out.write_text(text, encoding="utf-8")
    differ = sum(row.verdict == DIFFERS for row in rows)
    summary = {**about, "seconds": round(seconds), "differ": differ}
    print(json.dumps({**summary, "rows": [row.plain() for row in rows]}))
    return 1 if differ else 0


def _digest(folder: Path) -> str:
    """Of all tensors of a checkpoint; empty if there is none."""
    found = hashlib.sha256()
    tensors = read_tensors(folder)
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest() if tensors else ""


# -- what is run ------------------------------------------------------------------------------


def _jobs(work: Path, only: list[str]) -> list[Job]:
    jobs: list[Job] = []
    made: set[Path] = set()

    def add(
        case: Case, architecture: str, mode: str, text: str,
        source: Recipe | None = None, origin: int | None = None,
    ) -> None:  # fmt: skip
        recipe = work / f"{len(jobs)}.yaml"
        recipe.write_text(text, encoding="utf-8")
        folder = _models(work, architecture, mode)
        out = work / "out" / str(len(jobs))
        jobs.append(Job(case, architecture, mode, folder, recipe, out, source, origin))

    for case in cases():
        for mode in case.modes:
            for architecture in case.architectures:
                if not _wanted(f"{case.name} {architecture} {mode}", only):
                    continue
                folder = _models(work, architecture, mode)
                if folder not in made:
                    _make(folder, architecture, mode)
                    made.add(folder)
                text = yaml.safe_dump(case.written(mode, folder), sort_keys=False)
                add(case, architecture, mode, text)
    for number, job in enumerate(list(jobs)):
        if job.architecture in ("Llama", "vocabularies") and job.mode == "float32":
            source = Recipe.from_yaml(job.recipe)
            back = Case(f"written by us: {job.case.name}", job.case.recipe, job.case.kind)
            add(back, job.architecture, job.mode, source.to_yaml(), source, number)
    if _wanted("written by us: route", only):
        for architecture in ("Llama", "Llama tied", "Qwen2", "Phi-3"):
            folder = _models(work, architecture, "float32")
            if folder not in made:
                _make(folder, architecture, "float32")
                made.add(folder)
            for name, route, slices in route_recipes(folder):
                case = Case(f"written by us: {name}", {"merge_method": "passthrough"}, "structure")
                add(case, architecture, "float32", slices.to_yaml(), route)
    return jobs


def _wanted(name: str, only: list[str]) -> bool:
    return not only or any(part.lower() in name.lower() for part in only)


def _models(work: Path, architecture: str, mode: str) -> Path:
    stored = "float32" if mode == "float32" else "bfloat16"
    return work / "models" / f"{architecture} {stored}"


def _make(folder: Path, architecture: str, mode: str) -> None:
    dtype = torch.float32 if mode == "float32" else torch.bfloat16
    if architecture == "vocabularies":
        make_family(folder, "Llama", dtype)
        give_vocabularies(folder)
        return
    make_family(folder, architecture, dtype)
    if architecture == "Llama":
        make_adapter(folder / "adapter", folder / "base")


def _mergekit(python: Path, work: Path, jobs: list[Job]) -> Iterator[dict[str, Any]]:
    """Starts mergekit on all jobs; yields what it is, then one answer a job as it comes."""
    listed = [{"recipe": str(j.recipe), "out": str(j.out)} for j in jobs]
    (work / "jobs.json").write_text(json.dumps(listed), encoding="utf-8")
    command = [str(python), str(HERE / "mergekit_driver.py"), str(work / "jobs.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    with (work / "mergekit.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
            if process.wait():
                tail = (work / "mergekit.log").read_text("utf-8")[-2000:]
                raise RuntimeError(f"mergekit's process ended with {process.returncode}:\n{tail}")
        finally:
            process.kill()
            process.wait()


# -- what came of it --------------------------------------------------------------------------


def _row(job: Job, answer: dict[str, Any]) -> Row:
    row = Row(job.case.name, job.architecture, job.mode, job.case.kind)
    mine = job.out.with_name(f"{job.out.name}-ours")
    error = None
    try:
        recipe = job.source or Recipe.from_yaml(job.recipe)
        write_checkpoint(recipe, Merger(threads=1), mine)
    except EvomergeError as problem:
        error = str(problem)
    try:
        if answer["error"] or error:
            row.verdict = FAILS if not error else EQUAL if answer["error"] else DIFFERS
            row.notes += (
                ["mergekit: " + _short(str(answer["error"]), job.models)] if answer["error"] else []
            )
            row.notes += [f"ours: {error}"] if error else []
            if error and answer["error"]:
                row.notes.append("both refuse it")
        else:
            _judge(row, job, mine)
    finally:
        shutil.rmtree(mine, ignore_errors=True)
    return row


def _take_buffers(
    row: Row, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], models: Path
) -> None:
    """Takes buffers out, which are no parameters: ours copies them, whatever the operator."""
    stored = read_tensors(models / "a")
    names = [n for n in theirs if n.endswith(BUFFERS)]
    merged = 0
    for name in names:
        own = stored[re.sub(r"\.\d+\.", ".0.", name)]  # all blocks have the same
        found, other = ours.pop(name), theirs.pop(name)
        merged += not torch.equal(other, own.to(other.dtype))
        if not torch.equal(found, own.to(found.dtype)):
            row.fail(f"{name}: not the sources' own")
    if merged:
        row.notes.append(f"mergekit's {merged} buffers are not the sources' own")


def _short(message: str, models: Path) -> str:
    """An error's text in one line, without paths of this machine."""
    return " ".join(message.replace(f"{models}/", "").split())[:160]


def _judge(row: Row, job: Job, mine: Path) -> None:
    kind, method = job.case.kind, job.case.method
    if kind == "tokenizer":
        compare_vocabularies(row, mine, job.out)
    else:
        ours, theirs = read_tensors(mine), read_tensors(job.out)
        _take_buffers(row, ours, theirs, job.models)
        if kind == "structure":
            split = any(".block_sparse_moe." in name for name in ours)
            compare_exact(row, method, None, fused(ours) if split else ours, theirs)
        else:
            inputs = read_inputs(job.case, job.models)
            (compare_exact if kind == "exact" else compare_random)(
                row, method, inputs, ours, theirs
            )
    configs = [read_config(f) for f in (mine, job.out)]
    for key in ("num_hidden_layers", "vocab_size", "architectures", "dtype"):
        values = [config.get(key) for config in configs]
        if values[0] != values[1]:
            row.fail(f"config {key}: {values[0]} against {values[1]}")
    row.reason = purpose(row, method)
    if row.verdict == PURPOSE and row.reason is None:
        row.fail("no reason to differ is known")


if __name__ == "__main__":
    sys.exit(main())
