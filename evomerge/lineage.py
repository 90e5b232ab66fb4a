"""Who a candidate of a study among matings descends from, read from the journal alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.controls import RANDOM_SEARCH
from evomerge.errors import ConfigError
from evomerge.journal import read_events
from evomerge.markdown import printable
from evomerge.mating import Mating, dimensions
from evomerge.types import FloatArray

POSITIONS = 1000
"""Places along the flattened parameters at which the seeds' shares are taken."""
_SEARCHES = ("search", RANDOM_SEARCH)


@dataclass(frozen=True)
class Member:
    """A candidate and how it came about.

    Attributes:
        id: of the candidate in the journal.
        mating: its own and its parents' member numbers, share and split.
        values: value of each objective in its own unit; None without a result.
        failed: whether the result is a failure.
    """

    id: int
    mating: Mating
    values: Mapping[str, float] | None
    failed: bool

    @property
    def score(self) -> str:
        """The objectives' values as text."""
        if self.failed:
            return "failed"
        if self.values is None:
            return "no result yet"
        return ", ".join(f"{printable(name)} {value:.3g}" for name, value in self.values.items())


@dataclass(frozen=True)
class Lineage:
    """A member and all its ancestors.

    Attributes:
        root: its member number.
        members: itself and its ancestors by member number, rising.
        seeds: names of the seeds.
        shares: of each seed at `POSITIONS` places along the flattened parameters of each member,
            by member number; each `POSITIONS x K`.
        note: how the root was found, where nobody named it and the study did not choose it.
    """

    root: int
    members: Mapping[int, Member]
    seeds: tuple[str, ...]
    shares: Mapping[int, FloatArray]
    note: str = ""

    def name(self, number: int) -> str:
        """What a member is called: a seed by its name, another by its candidate's number."""
        if number < len(self.seeds):
            return printable(self.seeds[number])
        return str(self.members[number].id)


def read_lineage(
    run: Path,
    candidate: int | None = None,
    events: Sequence[Mapping[str, Any]] | None = None,
) -> Lineage:
    """Reads a journal.

    Args:
        run: directory of a study.
        candidate: its number; None for the chosen merge, or the best so far: the largest fitness
            that keeps the constraints, of several objectives the first one's.
        events: of the journal, where they have been read; None to read them.

    Raises:
        JournalError: if there is no journal, or it is damaged.
        ConfigError: for a study without matings, or a candidate that is none of them.
    """
    events = read_events(run) if events is None else events
    wanted = [d.name for d in dimensions()]
    study = events[0] if events else {}
    if [d["name"] for d in study.get("space", {}).get("dimensions", [])] != wanted:
        raise ConfigError.of(
            str(run), "a study whose candidates have no parents", "a study with space=pieces",
            "Only matings have a lineage.",
        )  # fmt: skip
    results = {e["id"]: e for e in events if e["event"] == "result"}
    searches: dict[str, dict[int, Member]] = {name: {} for name in _SEARCHES}
    digests: dict[str, int] = {}
    for event in events:
        if event["event"] == "ask" and event["search"] in searches:
            for one in event["candidates"]:
                member = _member(one, results.get(one["id"]))
                searches[event["search"]][member.mating.member] = member
                digests.setdefault(one["digest"], member.id)
    if candidate is None:
        ended = [e["best"] for e in events if e["event"] == "end"]
        candidate = digests.get(ended[-1]) if ended else None
    note = ""
    if candidate is None:
        candidate = _best([results[m.id] for m in searches["search"].values() if m.values])
        note = "" if candidate is None else _by_what(study, results[candidate])
    everyone = {m.id: members for members in searches.values() for m in members.values()}
    if candidate not in everyone:
        raise ConfigError.of(
            "CANDIDATE", str(candidate), "the number of a candidate that was mated",
            f"Those of this study are {_ranges(sorted(everyone))}.",
        )  # fmt: skip
    members = everyone[candidate]
    [root] = [number for number, m in members.items() if m.id == candidate]
    return replace(_lineage(root, members, _seeds(study)), note=note)


def tree(lineage: Lineage) -> str:
    """The pedigree as lines of text, parents below their child; each member once in full."""
    lines = []
    seen: set[int] = set()
    waiting: list[tuple[int, str, str]] = [(lineage.root, "", "")]
    while waiting:
        number, before, behind = waiting.pop()
        member = lineage.members[number]
        one = member.mating
        label = lineage.name(number)
        if number in seen and not one.is_seed:
            lines.append(f"{before}{label} (see above)")
            continue
        seen.add(number)
        if one.is_seed:
            lines.append(f"{before}{label} (seed; {member.score})")
            continue
        lines.append(f"{before}{label} ({member.score}) = {_formula(lineage, one)}")
        parents = dict.fromkeys((one.first, one.second))
        for i, parent in enumerate(reversed(parents)):
            last = i == 0
            step, rest = ("└─ ", "   ") if last else ("├─ ", "│  ")
            waiting.append((parent, behind + step, behind + rest))
    note = [lineage.note] if lineage.note else []
    return "\n".join([*lines, *note, "", *_composition(lineage)])


def _member(candidate: Mapping[str, Any], result: Mapping[str, Any] | None) -> Member:
    failed = result is not None and result["status"] != "ok"
    values = None if result is None or failed else dict(result["values"])
    mating = Mating.from_genome(np.array(candidate["genome"], dtype=np.float64))
    return Member(int(candidate["id"]), mating, values, failed)


def _seeds(study: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the seeds: the sources, behind the base where it is one."""
    first = ("base",) if study["matter"].get("space.include_base") else ()
    key = "models.sources."
    return (*first, *(k.removeprefix(key) for k in study["matter"] if k.startswith(key)))


def _best(told: Sequence[Mapping[str, Any]]) -> int | None:
    """The best of successful results, as a search ranks them; the earlier one of equals."""
    rank = {}
    for result in told:
        violation = sum(max(0.0, c) for c in result.get("constraints", ()))
        rank[int(result["id"])] = -violation, float(result["fitness"][0])
    return max(rank, key=lambda number: rank[number], default=None)


def _by_what(study: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """What makes a result the best so far, in words."""
    count = len(best["fitness"])
    first = printable(str(study["objectives"][0]["name"]))
    by = f" by {first} alone, the first of {count} objectives" if count > 1 else ""
    broken = any(c > 0 for c in best.get("constraints", ()))
    return f"{best['id']} is the best so far{by}{'; none keeps the constraints' * broken}"


def _lineage(root: int, members: Mapping[int, Member], seeds: tuple[str, ...]) -> Lineage:
    found: set[int] = set()
    waiting = [root]
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            one = members[number].mating
            waiting += [] if one.is_seed else [one.first, one.second]
    shares: dict[int, FloatArray] = {}
    places = (np.arange(POSITIONS) + 0.5) / POSITIONS
    for number in sorted(found):  # parents have smaller numbers
        one = members[number].mating
        if one.is_seed:
            shares[number] = np.tile(np.eye(len(seeds))[number], (POSITIONS, 1))
        else:
            second = np.where(places < one.split, one.share, 1.0 - one.share)[:, None]
            shares[number] = (1.0 - second) * shares[one.first] + second * shares[one.second]
    return Lineage(root, {n: members[n] for n in sorted(found)}, seeds, shares)


def _formula(lineage: Lineage, one: Mating) -> str:
    """Parents and shares in words."""
    first, second = (lineage.name(n) for n in (one.first, one.second))

    def sides(share: float) -> str:
        return f"{1 - share:.0%} {first} + {share:.0%} {second}"

    if one.split >= 1:
        return sides(one.share)
    return f"{sides(one.share)} up to {one.split:.1%}, {sides(1 - one.share)} behind"


def _composition(lineage: Lineage) -> Iterator[str]:
    """Each seed's mean share, and where it has the largest one."""
    shares = lineage.shares[lineage.root]
    leads = shares.argmax(axis=1)
    yield f"seeds of {lineage.name(lineage.root)}, along its parameters:"
    for k, name in enumerate(lineage.seeds):
        mean, led = shares[:, k].mean(), (leads == k).mean()
        yield f"  {printable(name)}: {mean:.1%} on average, the largest share in {led:.1%}"


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers as ranges, such as 0-15, 20-31."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    return ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in runs) or "none yet"
