"""The wheel holds everything that a study needs."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="needs the source tree, not an installation"
)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Names in a wheel that setuptools builds from a copy of the source tree."""
    pytest.importorskip("setuptools", reason="setuptools builds the wheel")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    skipped = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("evomerge", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    code = "from setuptools import build_meta; build_meta.build_wheel('..')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=source, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def source_files(folder, pattern):
    return {
        p.relative_to(folder).as_posix()
        for p in folder.rglob(pattern)
        if p.is_file() and "__pycache__" not in p.parts
    }


def test_every_config_is_in_the_wheel(names):
    configs = source_files(ROOT / "conf", "*.yaml")
    assert "config.yaml" in configs
    assert any(c.startswith("experiment/") for c in configs)
    assert {f"evomerge/conf/{c}" for c in configs} <= names
    assert "evomerge/conf/__init__.py" in names


def test_every_module_is_in_the_wheel(names):
    assert {f"evomerge/{m}" for m in source_files(ROOT / "evomerge", "*.py")} <= names


@pytest.mark.parametrize(
    "folder", ["report/assets", "zoo/adapters", "zoo/data", "zoo/models", "zoo/skill_adapters"]
)
def test_data_is_in_the_wheel(names, folder):
    found = source_files(ROOT / "evomerge" / folder, "*")
    assert found
    assert {f"evomerge/{folder}/{f}" for f in found} <= names


def test_tests_and_licence(names):
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if n.startswith(("tests/", "conf/"))]


def test_every_room_is_listed():
    """A new directory with an __init__.py has to be added to pyproject.toml."""
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    rooms = {
        ".".join(("evomerge", *p.parent.relative_to(ROOT / "evomerge").parts))
        for p in (ROOT / "evomerge").rglob("__init__.py")
    }
    assert rooms | {"evomerge.conf"} == set(setup["tool"]["setuptools"]["packages"])
