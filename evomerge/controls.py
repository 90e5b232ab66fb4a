"""The searches that a study's own search is compared with, at no more than its budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RANDOM_SEARCH = "random search"

CONTROLS: Mapping[str, str] = {
    RANDOM_SEARCH: "evomerge.optimizers.random.Random",
    "random parents": "evomerge.optimizers.random_parents.RandomParents",
    "greedy soup": "evomerge.optimizers.greedy_soup.GreedySoup",
    "selective merging": "evomerge.optimizers.selective_merging.SelectiveMerging",
}
"""Name of each control search, and the optimiser that proposes its candidates.

All but the random search work on averages of whole sources (`evomerge.soups.SoupSpace`).
"""


def controls(config: Mapping[str, Any]) -> list[str]:
    """Names of the control searches that a config switches on; those that average need sources."""
    node = config["controls"]
    names = [name for name in CONTROLS if node[name.replace(" ", "_")]]
    several = len(config["models"]["sources"]) > 1
    return [name for name in names if name == RANDOM_SEARCH or several]
