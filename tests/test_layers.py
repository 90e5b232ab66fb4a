"""Imports point downwards only, and the heavy libraries stay out of light imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import evomerge

ROOT = Path(evomerge.__file__).parent

RANKS = [
    [
        "sweeping",
        "scaling",
        "types",
        "errors",
        "config",
        "seeds",
        "versions",
        "markdown",
        "controls",
    ],
    ["live", "durable", "config_errors"],
    ["build", "progress", "recipe", "journal", "kernels", "domain"],
    ["ledger", "questions"],
    ["operators", "pieces", "pareto", "objectives", "mating", "irt"],
    ["spaces", "trackers", "checkpoints", "soups", "vectors", "lineage"],
    ["engines", "estimators", "optimizers", "tasks", "pool_geometry", "space", "lineage_figure"],
    ["report"],
    ["executors", "fisher", "testing", "warm_start", "pool_relevance", "digits", "route_checks"],
    ["fidelity", "pool", "lineage_command", "irt_compare"],
    ["irt_command"],
    [
        "setup",
        "evaluation",
        "merging",
        "trials",
        "parents",
        "lora_export",
        "hub_upload",
        "mergekit_yaml",
        "evolve_config",
    ],
    ["workers"],
    ["footprint"],
    ["answering", "rating"],
    ["candidates", "records", "standing"],
    ["heats", "limits", "rechecks", "search_state"],
    ["resources", "study_scale", "search", "pool_command", "identity", "predictions", "recorded"],
    ["finalists", "pruning", "picking", "evidence"],
    ["exporting", "replaying"],
    [
        "pick_command",
        "report_command",
        "status_command",
        "export_command",
        "replay_command",
        "import_command",
        "watch_page",
    ],
    ["watching"],
    ["watch_command"],
    ["proof"],
    ["front_results"],
    ["results"],
    ["study"],
    ["check"],
    ["cli", "reference"],
    ["__main__"],
]
"""Rooms and modules from the bottom to the top: one imports only from lines above its own.

`zoo` stands apart: it imports nothing of the rest; only `cli` asks it for a path, and `digits` for
its networks.
"""

RANK = {room: i for i, rooms in enumerate(RANKS) for room in rooms}
HEAVY = {"ray", "vllm", "hydra", "omegaconf", "transformers", "torch"}


def files():
    return sorted(p for p in ROOT.rglob("*.py") if "__pycache__" not in p.parts)


def module_of(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def modules():
    return {module_of(p) for p in files()}


def imports(path, known):
    """(line, module) of every import anywhere in a file, type-checking ones included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield node.lineno, full if full in known else str(node.module)


def edges():
    known = modules()
    for path in files():
        for line, name in imports(path, known):
            if name.split(".")[0] == "evomerge":
                yield f"{path.relative_to(ROOT)}:{line}", room_of(module_of(path)), room_of(name)


def test_every_room_has_a_rank():
    assert {room_of(m) for m in modules()} - {"", "zoo"} == set(RANK)


def test_imports_point_downwards():
    upwards = [
        f"{place} imports {to}"
        for place, room, to in edges()
        if room and to and room != to and "zoo" not in (room, to) and RANK[to] >= RANK[room]
    ]
    assert upwards == []


def test_the_package_itself_imports_nothing_of_its_own():
    assert [place for place, room, to in edges() if not room and to] == []


def test_siblings_do_not_import_each_other():
    siblings = {"engines", "estimators", "optimizers", "tasks"}
    crossing = [
        f"{place} imports {to}"
        for place, room, to in edges()
        if room in siblings and to in siblings and room != to
    ]
    assert crossing == []


def test_the_report_reads_journals_only():
    reached = {to for _, room, to in edges() if room == "report"}
    readers = {
        "report",
        "journal",
        "durable",
        "questions",
        "recipe",
        "lineage",
        "lineage_figure",
        "irt",
    }
    assert reached <= {*readers, "estimators", "markdown", "errors", "types", ""}
    known = modules()
    report = [name for path in (ROOT / "report").glob("*.py") for _, name in imports(path, known)]
    of_estimators = {name for name in report if name.startswith("evomerge.estimators")}
    assert of_estimators == {"evomerge.estimators.intervals"}  # pure functions of numbers


def test_the_zoo_stands_apart():
    assert {to for _, room, to in edges() if room == "zoo"} <= {"zoo"}
    assert {room for _, room, to in edges() if to == "zoo"} <= {"zoo", "cli", "digits"}


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("hydra", {"cli.py", "sweeping.py"}),
        ("omegaconf", {"cli.py"}),
        ("ray", {"executors/actor.py", "executors/cluster.py", "executors/pool.py"}),
        ("vllm", {"engines/vllm.py", "engines/vllm_worker.py", "engines/vllm_setup.py"}),
        ("cma", {"optimizers/cma_es.py"}),
        ("pytest", {"testing/operators.py", "testing/optimizers.py"}),
    ],
)
def test_a_library_has_one_importer(library, allowed):
    known = modules()
    users = {
        str(path.relative_to(ROOT))
        for path in files()
        for _, name in imports(path, known)
        if name.split(".")[0] == library
    }
    assert users <= allowed


@pytest.mark.parametrize(
    "module",
    ["evomerge", "evomerge.cli", "evomerge.engines", "evomerge.tasks", "evomerge.report"],
)
def test_light_imports_stay_light(module):
    code = f"import sys, {module}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert out.stdout.split() == []
