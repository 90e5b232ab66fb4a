"""Compares merges with a vocabulary of their own, token by token."""

from __future__ import annotations

from pathlib import Path

import torch
from compare import Row, compare_exact
from rounding import read_config, read_tensors
from tokenizers import Tokenizer

_ROWS = ("model.embed_tokens.weight", "lm_head.weight")


def compare_vocabularies(row: Row, ours: Path, theirs: Path) -> None:
    """Fills a row; the rows of embeddings are put in mergekit's order of tokens first.

    Args:
        row: gets verdict and figures.
        ours: folder that we wrote.
        theirs: folder that mergekit wrote.
    """
    mine, other = read_tensors(ours), read_tensors(theirs)
    a, b = _tokens(ours), _tokens(theirs)
    if set(a) != set(b):
        row.fail(f"tokens of one side only: {sorted(set(a) ^ set(b))[:6]}")
        return
    sizes = [read_config(f)["vocab_size"] for f in (ours, theirs)]
    rows = [t["model.embed_tokens.weight"].shape[0] for t in (mine, other)]
    if sizes[0] != sizes[1] or rows[0] != rows[1]:
        row.fail(f"rows {rows[0]} and {rows[1]}, vocab_size {sizes[0]} and {sizes[1]}")
    if a != b:
        row.notes.append("the same tokens with other numbers")
    order = sorted(b, key=b.__getitem__)
    for name in _ROWS:
        mine[name] = mine[name][torch.tensor([a[t] for t in order])]
        other[name] = other[name][torch.tensor([b[t] for t in order])]
    compare_exact(row, "", None, mine, other)


def _tokens(folder: Path) -> dict[str, int]:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return dict(tokenizer.get_vocab(with_added_tokens=True))
