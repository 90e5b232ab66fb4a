"""Models in memory that lie at known changes from a base, for the tests of the pool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from evomerge.checkpoints.layout import layout_of
from evomerge.checkpoints.merger import Merger
from evomerge.kernels.weight import Stored
from evomerge.zoo import zoo_path

ZOO = ("math", "japanese", "sorter")
SHAPES = {
    "model.embed_tokens.weight": (6, 4),
    "model.layers.0.mlp.weight": (3, 5),
    "model.layers.1.mlp.weight": (3, 5),
    "model.norm.weight": (4,),
}
SIZE = sum(int(np.prod(s)) for s in SHAPES.values())


class Memory:
    """A model in memory."""

    def __init__(self, tensors: dict, name: str = "m", **config) -> None:
        self.ref, self.field, self.path, self.config = name, f"models.{name}", Path(), config
        self.tensors = {n: torch.as_tensor(t) for n, t in tensors.items()}
        self.shapes = {n: tuple(t.shape) for n, t in self.tensors.items()}
        self.names, self.layout = tuple(self.shapes), layout_of(self.shapes)
        self.vocabulary, self.fingerprint = {}, name

    def weight(self, name):
        return Stored(self.tensors[name])

    def tensor(self, name):
        return self.tensors[name]

    def dtype(self, name):
        return {torch.float64: "F64", torch.bfloat16: "BF16", torch.int64: "I64"}[
            self.tensors[name].dtype
        ]


def model(vector, name="m") -> Memory:
    """A small model whose parameters are a vector of `SIZE` numbers."""
    tensors, at = {}, 0
    for key, shape in SHAPES.items():
        count = int(np.prod(shape))
        tensors[key] = np.array(vector[at : at + count], dtype=np.float64).reshape(shape)
        at += count
    return Memory(tensors, name)


def pool(changes, seed=0):
    """A base, and sources that lie at these changes from it."""
    base = np.random.default_rng(seed).normal(size=SIZE)
    return model(base, "base"), {
        name: model(base + np.asarray(change), name) for name, change in changes.items()
    }


def directions(count: int) -> np.ndarray:
    """Orthogonal unit vectors."""
    return np.linalg.qr(np.random.default_rng(5).normal(size=(SIZE, count)))[0].T


def partition(labels):
    return {frozenset(np.flatnonzero(np.array(labels) == c).tolist()) for c in set(labels)}


def zoo_models():
    """The zoo's base, and its sources by name."""
    merger = Merger(threads=1)
    base = merger.checkpoint(str(zoo_path("models/base")))
    return base, {n: merger.checkpoint(str(zoo_path(f"models/{n}"))) for n in ZOO}
