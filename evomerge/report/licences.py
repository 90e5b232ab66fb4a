"""What the licences of a merge's parents mean for the merge; a warning, no legal advice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

UNKNOWN = "unknown"
_PERMISSIVE = {
    "0bsd", "afl-3.0", "apache-2.0", "artistic-2.0", "bsd", "bsd-2-clause", "bsd-3-clause",
    "bsd-3-clause-clear", "bsl-1.0", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "isc", "mit", "ms-pl", "ncsa",
    "odc-by", "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
}  # fmt: skip
_COPYLEFT = re.compile(r"^(a|l)?gpl|^cc-by-sa|^eupl|^osl|^mpl|^epl|^cdla-sharing|^odbl")
_NON_COMMERCIAL = re.compile(r"(^|[-_ ])nc([-_ ]|$)|non[-_ ]?commercial|research")
_NO_DERIVATIVES = re.compile(r"(^|[-_ ])nd([-_ ]|$)|no[-_ ]?deriv")


@dataclass(frozen=True)
class Parent:
    """A model that a merge is made of.

    Attributes:
        name: on the hub, or the last part of its path.
        revision: commit on the hub; empty if unknown.
        fingerprint: of its weights, hex digits; empty if unknown.
        licence: identifier as the hub spells them, or a name; empty if none was found.
        found_in: the file that says so; empty if none does.
    """

    name: str
    revision: str = ""
    fingerprint: str = ""
    licence: str = ""
    found_in: str = ""

    @property
    def kind(self) -> str:
        """unknown, non-commercial, no derivatives, copyleft, permissive or own terms."""
        licence = self.licence.lower()
        if licence in ("", UNKNOWN, "other", "unlicensed"):
            return UNKNOWN
        if _NON_COMMERCIAL.search(licence):
            return "non-commercial"
        if _NO_DERIVATIVES.search(licence):
            return "no derivatives"
        if _COPYLEFT.search(licence):
            return "copyleft"
        return "permissive" if licence in _PERMISSIVE else "own terms"


def licence_flags(parents: Sequence[Parent]) -> tuple[str, ...]:
    """What stands against passing a merge on, one sentence each; empty if nothing was found."""

    def of(*kinds: str) -> list[Parent]:
        return [parent for parent in parents if parent.kind in kinds]

    flags = []
    if found := of(UNKNOWN):
        flags.append(f"No licence was found of {_names(found)}: without one, nothing is permitted.")
    if found := [p for p in parents if _NON_COMMERCIAL.search(p.licence.lower())]:
        flags.append(f"Not for commercial use: {_with_licence(found)}.")
    if found := [p for p in parents if _NO_DERIVATIVES.search(p.licence.lower())]:
        flags.append(f"May not be changed and passed on, as a merge does: {_with_licence(found)}.")
    binding = of("copyleft", "own terms", "non-commercial", "no derivatives")
    if len({p.licence.lower() for p in binding}) > 1:
        flags.append(
            f"The parents' terms may exclude one another: {_with_licence(binding)}. The merge has "
            "to keep all of them."
        )
    return tuple(flags)


def merged_licence(parents: Sequence[Parent]) -> str | list[str]:
    """What a model card may name as the licence: the parents' own, or `other` where they differ.

    Permissive licences of several parents are listed; beside one that binds, that one stands.
    """
    if not parents or any(parent.kind == UNKNOWN for parent in parents):
        return "other"
    names = list(dict.fromkeys(parent.licence.lower() for parent in parents))
    binding = list(dict.fromkeys(p.licence.lower() for p in parents if p.kind != "permissive"))
    if len(binding) > 1:
        return "other"
    if binding:
        return binding[0]
    return names[0] if len(names) == 1 else names


def _names(parents: Sequence[Parent]) -> str:
    return ", ".join(dict.fromkeys(parent.name for parent in parents))


def _with_licence(parents: Sequence[Parent]) -> str:
    return ", ".join(dict.fromkeys(f"{parent.name} ({parent.licence})" for parent in parents))
