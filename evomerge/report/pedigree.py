"""The lineage of a merge that was mated (M2N2), as a figure for the page."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.errors import EvomergeError
from evomerge.lineage import read_lineage, tree
from evomerge.lineage_figure import lineage_svg
from evomerge.report.parents import Parents, parents_of
from evomerge.report.reading import RunFiles, mapping

MOST = 120
"""The most members that the figure draws; a larger pedigree is told as text only."""

LINES = 400
"""The most lines of the text."""


@dataclass(frozen=True)
class Pedigree:
    """Who a merge descends from.

    Attributes:
        name: of the merge.
        svg: a picture, its texts escaped; empty if there are too many members.
        text: the same as lines of text.
        members: how many ancestors, the merge itself among them.
        parents: the seeds' shares.
    """

    name: str
    svg: str
    text: str
    members: int
    parents: Parents | None


def read_pedigree(run: RunFiles) -> Pedigree | None:
    """The lineage of the chosen merge, or of the best so far; None for a study without matings."""
    names = [mapping(d).get("name") for d in run.dimensions]
    if run.folder is None or "first" not in names:
        return None
    try:
        lineage = read_lineage(run.folder, events=run.events)
    except (EvomergeError, KeyError, ValueError):  # a study that has no result yet has none
        return None
    shares = lineage.shares[lineage.root]
    lines = tree(lineage).splitlines()
    cut = [f"... and {len(lines) - LINES} more lines"] if len(lines) > LINES else []
    rows = {name: shares[:, at].tolist() for at, name in enumerate(lineage.seeds)}
    return Pedigree(
        lineage.name(lineage.root),
        lineage_svg(lineage) if len(lineage.members) <= MOST else "",
        "\n".join([*lines[:LINES], *cut]),
        len(lineage.members),
        parents_of(rows, "share along the parameters"),
    )
