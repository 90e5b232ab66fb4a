"""What trackers are told, and their interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from evomerge.errors import ConfigError

FOLDER = "trackers"
"""Where trackers write by default, in the run directory."""


@dataclass(frozen=True)
class Study:
    """What is known of a study when it begins.

    Attributes:
        id: of this study alone, the same when it is resumed.
        name: of its experiment.
        seed: of the study.
        config: flat, by dotted key, without secrets and without the trackers' own settings.
        objectives: name and goal (maximize or minimize) of each value of a candidate, as
            `values` of `Candidate` has them.
        dimensions: of the genomes: name, low, high, kind and choices.
    """

    id: str
    name: str
    seed: int
    config: Mapping[str, Any]
    objectives: Sequence[tuple[str, str]]
    dimensions: Sequence[Mapping[str, Any]]

    @property
    def label(self) -> str:
        """A name that no other study has."""
        return f"{self.name}-seed{self.seed}-{self.id}"


@dataclass(frozen=True)
class Candidate:
    """A candidate with its result.

    Attributes:
        step: how many results the journal has before it; its number, unless a race ended later
            candidates first.
        id: its number.
        search: the search that proposed it; the study's own is called search.
        generation: of that search.
        digest: of its recipe.
        params: by dimension; empty for a control that varies other things.
        status: complete, stopped (by a race) or failed.
        values: by objective; empty if it failed.
        constraints: satisfied at 0 or below, by name.
        stages: in a race, the first value by number of items answered.
        metrics: numbers to plot over `step`, by name.
        began: seconds since 1970 when it was put to work, as far as is known.
        ended: seconds since 1970.
    """

    step: int
    id: int
    search: str
    generation: int
    digest: str
    params: Mapping[str, float | int | str]
    status: str
    values: Mapping[str, float] = field(default_factory=dict)
    constraints: Mapping[str, float] = field(default_factory=dict)
    stages: Mapping[int, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    began: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True)
class HeldOut:
    """The results at the end of a study: numbers by name, after so many candidates."""

    step: int
    metrics: Mapping[str, float]
    time: float = 0.0


class Tracker(ABC):
    """Writes a study into another tool; is told everything from the beginning each time.

    A study that is resumed tells its whole history again: a tracker passes over what it has
    written before. All calls come from one thread. A tracker that raises is switched off.
    """

    packages: tuple[str, ...] = ()

    def __init__(self, run_dir: Path) -> None:
        """Checks settings and packages, and writes nothing.

        Raises:
            ConfigError: if a package is missing or a setting cannot be.
        """
        self.run_dir = run_dir
        self.folder = run_dir / FOLDER
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            raise ConfigError.of(
                "trackers", f"{type(self).__name__}, and no package {', '.join(missing)}",
                "its packages to be installed", "Run: pip install 'evomerge[trackers]'",
            )  # fmt: skip

    @abstractmethod
    def begin(self, study: Study) -> None:
        """Opens what it writes to, and finds out what is there already."""

    @abstractmethod
    def candidate(self, candidate: Candidate) -> None:
        """Takes a result."""

    @abstractmethod
    def held_out(self, results: HeldOut) -> None:
        """Takes the results at the end."""

    @abstractmethod
    def close(self) -> None:
        """Writes what is left and closes; the study ended or was interrupted."""
