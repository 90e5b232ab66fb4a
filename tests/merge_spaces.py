"""A merge space over a made-up layout of 12 blocks, for the tests."""

from evomerge.checkpoints.layout import layout_of
from evomerge.space import MergeSpace

NAMES = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{part}" for i in range(12) for part in ("mlp.w", "self_attn.1.w")),
    "model.norm.weight",
    "lm_head.weight",
]
LAYOUT = layout_of(NAMES)
GROUPS = {group: LAYOUT.filters(group) for group in LAYOUT.groups()}
RANGES = {"weight": {"low": -1.0, "high": 2.0}, "density": {"low": 0.1, "high": 1.0}}
MIXED = {
    "weight": {"low": 0.0, "high": 1.0, "simplex": True},
    "density": {"choices": [0.25, 0.5, 1.0], "start": 0.5},
    "lambda": {"low": -1, "high": 2, "kind": "integer"},
    "normalize": {"choices": [False, True]},
    "rescale_norm": {"choices": ["density", "l1"], "step": 0.4},
}


def space(**changes):
    arguments = {
        "method": "ties",
        "parameters": RANGES,
        "base": "base",
        "sources": {"math": "/m/math", "japanese": "/m/ja"},
        "groups": GROUPS,
        **changes,
    }
    return MergeSpace(**arguments)
