"""Where we differ from mergekit on purpose, and why."""

from __future__ import annotations

from compare import Row

WIDE = (
    "mergekit writes float32 although bfloat16 was asked for (arcee_fusion, ramplus_tl); ours "
    "writes what was asked for. Compared after rounding."
)
EXPERTS = (
    "mergekit fuses all experts of a block into one tensor (the layout of transformers 5 in "
    "memory) and takes norms, ranks and quantiles over it; ours merges the tensors of the file "
    "one by one and writes the names of the file. Each is what float64 gives for its layout."
)
RANKS = (
    "magnitudes that are equal at the edge of what is kept: mergekit's sort leaves their order "
    "open, ours draws from them by position, and takes magnitudes of 16-bit files as equal that "
    "differ by less than 2^-9 of their size."
)
LOW = (
    "mergekit computes in bfloat16, ours in float32 with one rounding at the end, so that "
    "decisions (ranks, signs, thresholds) fall otherwise where bfloat16 cannot tell; ours is the "
    "float64 result, rounded (magnitudes at the edge as in 3)."
)
UNLISTED = (
    "a base_model that is not among the models of linear or karcher lends config and vocabulary "
    "in ours; mergekit averages it in as one more model, with the weight of the whole recipe."
)
REASONS = (WIDE, EXPERTS, RANKS, LOW, UNLISTED)

_RANKED = {"ties", "breadcrumbs", "breadcrumbs_ties", "sce"}


def purpose(row: Row, method: str) -> str | None:
    """Why this recipe may differ; None if it should not."""
    if row.case.endswith("base not among the models: linear"):
        return UNLISTED
    if row.ours is None or not row.explained:
        return None
    if row.architecture == "Mixtral":
        return EXPERTS
    if row.mode == "bfloat16":
        return WIDE if row.wide else LOW
    return RANKS if method in _RANKED else None
