"""Which sources of a pool can be merged, told from their files alone, and which to leave out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Self

import numpy as np

from evomerge.checkpoints.model import Model
from evomerge.errors import ConfigError
from evomerge.pool_geometry import PoolGeometry, clusters, distinct, measure
from evomerge.pool_relevance import SIGNIFICANCE, Gain, Scores, gains

EQUAL = 1e-6
"""Relative norm up to which a source is the base: float32 rounding; another dtype leaves more."""
OPPOSED = -0.3
"""Cosine below which the sum of two task vectors of one length has lost a fifth of what
orthogonal ones keep: sqrt(1 - 0.3) = 0.84."""
UNRELATED = 0.01
"""Largest absolute cosine of a source that shares no direction with any other."""

WARNINGS = ("equal", "duplicate", "far", "opposed", "irrelevant")
"""Kinds of findings that ask for a decision; `unrelated` only informs."""


@dataclass(frozen=True)
class PoolSettings:
    """What a study does about its pool before it searches.

    Attributes:
        check: measure the sources and warn.
        prune: leave sources out: those equal to the base, all but one of near duplicates and,
            if `relevance` is on, the irrelevant ones.
        duplicate: cosine of task vectors above which two sources are near duplicates; in
            clusters the average one.
        far: norm of a task vector, in units of the base's norm, above which a source lies
            outside the base's basin.
        relevance: hold the sources' scores on the search items against the base's.
        keep: how many sources are left at most, the most relevant ones; None for all.
    """

    check: bool = True
    prune: bool = False
    duplicate: float = 0.98
    far: float = 0.5
    relevance: bool = False
    keep: int | None = None

    def __post_init__(self) -> None:
        for key in ("check", "prune", "relevance"):
            if not isinstance(getattr(self, key), bool):
                raise _wrong(key, getattr(self, key), "true or false")
        if not _is_number(self.duplicate) or not 0 < self.duplicate <= 1:
            raise _wrong("duplicate", self.duplicate, "a cosine in (0, 1]")
        if not _is_number(self.far) or not self.far > 0:
            raise _wrong("far", self.far, "a positive number")
        if self.keep is None:
            return
        if not isinstance(self.keep, int) or isinstance(self.keep, bool) or self.keep < 1:
            raise _wrong("keep", self.keep, "an integer of at least 1, or null")
        for key in ("prune", "relevance"):
            if not getattr(self, key):
                raise ConfigError.of(
                    "pool.keep", f"{self.keep} beside pool.{key}=false",
                    "a pool that is pruned by relevance", f"Set pool.{key}=true, or remove it.",
                )  # fmt: skip

    @classmethod
    def of(cls, node: Mapping[str, Any] | None) -> Self:
        """Settings of a config node.

        Raises:
            ConfigError: for an unknown key or a value that cannot be.
        """
        known = [f.name for f in fields(cls)]
        for key in node or {}:
            if key not in known:
                raise ConfigError.of(
                    f"pool.{key}", "an unknown key", f"one of {', '.join(known)}", "Correct it."
                )
        return cls(**(node or {}))


@dataclass(frozen=True)
class Finding:
    """One thing that a reader of the pool should know.

    Attributes:
        kind: equal, duplicate, far, opposed, unrelated or irrelevant.
        sources: whom it concerns.
        value: the number that was compared with a threshold.
        text: a plain sentence.
    """

    kind: str
    sources: tuple[str, ...]
    value: float
    text: str

    @property
    def warning(self) -> bool:
        """Whether it asks for a decision."""
        return self.kind in WARNINGS


@dataclass(frozen=True)
class PoolFindings:
    """What was measured of a pool, and what it means.

    Attributes:
        geometry: norms and cosines.
        clusters: number of each source's cluster of near duplicates, from 0.
        distinct: effective number of distinct sources.
        findings: most serious kinds first.
        gains: of each source over the base on each task; empty if no scores were given.
    """

    geometry: PoolGeometry
    clusters: tuple[int, ...]
    distinct: float
    findings: tuple[Finding, ...]
    gains: Mapping[str, Mapping[str, Gain]]

    @property
    def names(self) -> tuple[str, ...]:
        """The sources."""
        return self.geometry.names

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences that ask for a decision."""
        return tuple(f.text for f in self.findings if f.warning)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that only inform."""
        return tuple(f.text for f in self.findings if not f.warning)

    @cached_property
    def relevance(self) -> dict[str, float]:
        """Largest gain over the base of each source that was scored, in the tasks' unit."""
        return {n: max(g.gain for g in own.values()) for n, own in self.gains.items() if own}

    def of(self, kind: str) -> tuple[Finding, ...]:
        """The findings of one kind."""
        return tuple(f for f in self.findings if f.kind == kind)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data that JSON can hold."""
        rows = {}
        for i, name in enumerate(self.names):
            rows[name] = {
                "norm": float(self.geometry.norms[i]),
                "group_norms": dict(
                    zip(self.geometry.groups, self.geometry.group_norms[:, i].tolist(), strict=True)
                ),
                "cluster": self.clusters[i],
                "gains": {
                    task: vars(gain).copy() for task, gain in self.gains.get(name, {}).items()
                },
            }
        groups = zip(self.geometry.groups, self.geometry.group_cosines.tolist(), strict=True)
        return {
            "parameters": self.geometry.parameters,
            "base_norm": self.geometry.base_norm,
            "sources": rows,
            "cosines": self.geometry.cosines.tolist(),
            "group_cosines": dict(groups),
            "distinct": self.distinct,
            "findings": [{**asdict(f), "sources": list(f.sources)} for f in self.findings],
        }


def check_pool(
    base: Model,
    sources: Mapping[str, Model],
    settings: PoolSettings | None = None,
    scores: Scores | None = None,
    report: Callable[[int, int], None] | None = None,
) -> PoolFindings:
    """Reads all models once, side by side, and judges what was measured.

    Args:
        base: what task vectors start from.
        sources: name to model.
        settings: thresholds.
        scores: model (`base` or a source) to task to the values of the search items, larger
            is better, in the same order for all models.
        report: told the parameters that are done and those that there are.

    Raises:
        SourceError: if a source does not fit the base or holds NaN or infinity.
    """
    return judge(measure(base, sources, report), settings or PoolSettings(), scores)


def judge(
    geometry: PoolGeometry, settings: PoolSettings, scores: Scores | None = None
) -> PoolFindings:
    """Compares measurements with the thresholds.

    Raises:
        ValueError: if the base has no scores where a source has, or for scores that are not
            finite or of different lengths.
    """
    by_source = {} if scores is None else dict(gains(geometry.names, scores))
    findings = [
        *_equal(geometry),
        *_far(geometry, settings.far),
        *_duplicates(geometry, settings.duplicate),
        *_opposed(geometry),
        *_irrelevant(by_source),
        *_unrelated(geometry),
    ]
    return PoolFindings(
        geometry,
        clusters(geometry.cosines, settings.duplicate),
        distinct(geometry.cosines, geometry.norms > EQUAL),
        tuple(findings),
        by_source,
    )


@dataclass(frozen=True)
class Pruned:
    """What is left of a pool; `dropped` gives the reason for each source that is not."""

    kept: tuple[str, ...]
    dropped: Mapping[str, str]


def prune(names: Sequence[str], findings: PoolFindings, settings: PoolSettings) -> Pruned:
    """Leaves sources out that a merge cannot gain from.

    First those equal to the base; then, if `relevance` is on, those without a significant gain
    on any task; of each cluster all but the most relevant one (the first without scores); and
    at last all but the `keep` most relevant. Far sources stay: the search can weigh them with 0.

    Args:
        names: the sources to choose from, in the order of the config.
        findings: of a pool that holds them.
        settings: the rule; `prune` and `check` themselves are the caller's business.

    Raises:
        ConfigError: if no source would be left.
        ValueError: for a name that is not in the findings, and where the rule needs scores
            and the findings have none.
    """
    unknown = [name for name in names if name not in findings.names]
    if unknown:
        raise ValueError(f"prune: {unknown[0]} is not in the findings")
    if settings.relevance and not findings.gains:
        raise ValueError("prune: relevance needs findings with scores")
    cluster = dict(zip(findings.names, findings.clusters, strict=True))
    worth = findings.relevance
    ranked = sorted(names, key=lambda n: -worth.get(n, -math.inf))  # stable: first among equals
    dropped: dict[str, str] = {}
    for finding in findings.of("equal"):
        dropped[finding.sources[0]] = "equal to the base"
    if settings.relevance:
        for finding in findings.of("irrelevant"):
            dropped.setdefault(finding.sources[0], "no significant gain over the base on any task")
    chosen: dict[int, str] = {}
    for name in ranked:
        if name not in dropped and chosen.setdefault(cluster[name], name) != name:
            dropped[name] = f"a near duplicate of {chosen[cluster[name]]}"
    if settings.keep is not None:
        left = [name for name in ranked if name not in dropped]
        for name in left[settings.keep :]:
            dropped[name] = f"not among the {settings.keep} most relevant"
    kept = tuple(name for name in names if name not in dropped)
    reasons = {name: dropped[name] for name in names if name in dropped}
    if not kept:
        raise ConfigError.of(
            "pool.prune", "no source left: "
            + ("; ".join(f"{n}: {reason}" for n, reason in reasons.items()) or "none was given"),
            "at least one source to merge",
            "Set pool.prune=false or pool.relevance=false, or give the study other sources.",
        )  # fmt: skip
    return Pruned(kept, reasons)


# -- findings ---------------------------------------------------------------------------------


def _equal(geometry: PoolGeometry) -> list[Finding]:
    return [
        Finding(
            "equal", (name,), float(norm),
            f"{name} equals the base (its change is {norm:.1g} of the base's norm): it adds "
            "nothing to a merge.",
        )
        for name, norm in zip(geometry.names, geometry.norms, strict=True)
        if norm <= EQUAL
    ]  # fmt: skip


def _far(geometry: PoolGeometry, limit: float) -> list[Finding]:
    out = []
    for i, (name, norm) in enumerate(zip(geometry.names, geometry.norms, strict=True)):
        if norm > limit:
            group, most = geometry.largest(i)
            out.append(
                Finding(
                    "far", (name,), float(norm),
                    f"{name} lies far from the base: its change is {norm:.2f} of the base's norm "
                    f"(limit {limit:g}; {most:.2f} in {group}). About 1.41 means a model trained "
                    "from another start, whose average with the base works as neither of them.",
                )
            )  # fmt: skip
    return out


def _duplicates(geometry: PoolGeometry, limit: float) -> list[Finding]:
    return [
        Finding(
            "duplicate", pair, value,
            f"{pair[0]} and {pair[1]} are near duplicates: the cosine of their changes is "
            f"{value:.3f} (limit {limit:g}).",
        )
        for pair, value in geometry.pairs()
        if value > limit
    ]  # fmt: skip


def _opposed(geometry: PoolGeometry) -> list[Finding]:
    return [
        Finding(
            "opposed", pair, value,
            f"{pair[0]} and {pair[1]} pull in opposite directions: the cosine of their changes is "
            f"{value:.2f} (limit {OPPOSED:g}), so a sum of both loses part of each.",
        )
        for pair, value in geometry.pairs()
        if value < OPPOSED
    ]  # fmt: skip


def _unrelated(geometry: PoolGeometry) -> list[Finding]:
    """Sources without any direction in common; two sources alone say nothing of that."""
    changed = np.flatnonzero(geometry.norms > EQUAL)
    if len(changed) < 3:
        return []
    shared = np.abs(geometry.cosines[np.ix_(changed, changed)])
    np.fill_diagonal(shared, 0.0)
    return [
        Finding(
            "unrelated", (geometry.names[i],), float(most),
            f"{geometry.names[i]} shares no direction with any other source: its largest cosine "
            f"is {most:.3f} in size. It neither helps nor disturbs them along what they learnt.",
        )
        for i, most in zip(changed, shared.max(axis=1), strict=True)
        if most < UNRELATED
    ]  # fmt: skip


def _irrelevant(by_source: Mapping[str, Mapping[str, Gain]]) -> list[Finding]:
    out = []
    for name, own in by_source.items():
        if not own or any(g.significant for g in own.values()):
            continue
        task, best = max(own.items(), key=lambda item: item[1].gain)
        error = "" if best.stderr is None else f" +- {best.stderr:.3f}"
        out.append(
            Finding(
                "irrelevant", (name,), best.gain,
                f"{name} is not significantly better than the base on any task (p < "
                f"{SIGNIFICANCE:g}); its largest gain is {best.gain:+.3f}{error}, on {task}.",
            )
        )  # fmt: skip
    return out


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(key: str, value: Any, expected: str) -> ConfigError:
    return ConfigError.of(f"pool.{key}", repr(value), expected, "Correct it.")
