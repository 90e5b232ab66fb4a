"""Decides in a race which candidates answer more items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from evomerge.candidates import Open, answers_of, next_stage, planned_items
from evomerge.estimators.racing import Runner
from evomerge.setup import Setup
from evomerge.standing import Standing
from evomerge.types import Fitness, ItemScores


@dataclass
class Heats:
    """Applies a study's race to the candidates of one search.

    Attributes:
        setup: with the race.
        standing: with the best candidate so far.
        read: reads answers from files of the run directory.
    """

    setup: Setup
    standing: Standing
    read: Callable[[Iterable[str]], list[ItemScores]]
    _rungs: dict[int, list[Fitness]] = field(default_factory=lambda: defaultdict(list))
    _elite: tuple[tuple[str, ...], Runner] | None = None

    def going_on(self, waiting: Sequence[Open]) -> set[int]:
        """Numbers of those that answer more, of candidates that answered as many items."""
        race = self.setup.race
        answered = waiting[0].answered
        planned = planned_items(self.setup, waiting[0].generation)
        if answered >= planned:
            return set()
        for candidate in waiting if race.against_elite else ():
            self.load(candidate)
        runners = [c.runner(self.setup, race.against_elite) for c in waiting]
        elite = self._best() if race.against_elite else None
        return race.going_on(runners, self._rungs[answered], elite, planned)

    def note(self, candidate: Open) -> None:
        """Remembers what a candidate was worth after as many items."""
        if candidate.rating is not None:
            self._rungs[candidate.answered].append(candidate.rating.fitness)

    def next_stage(self, candidate: Open) -> bool:
        """Sets what a candidate answers next; False if nothing is left."""
        if self.setup.race.adaptive:
            self.load(candidate)
        elite = self.standing.elite()
        goal = None if elite is None else next(iter(elite.values.values()))
        candidate.items = next_stage(self.setup, candidate, goal)
        return self.setup.item_count(candidate.items) > 0

    def load(self, candidate: Open) -> None:
        """Reads the answers of a candidate that a resumed study does not have in memory."""
        if not candidate.parts and candidate.files:
            candidate.parts = self.read(candidate.files)

    def _best(self) -> Runner | None:
        """The best complete candidate with its answers, read again when it changes."""
        trial = self.standing.elite()
        if trial is None or trial.fitness is None:
            return None
        key = (trial.digest, *trial.files)
        if self._elite is None or self._elite[0] != key:
            answers = answers_of(self.setup, self.read(trial.files))
            most = max(len(places) for places, _ in answers.values())
            self._elite = key, Runner(trial.id, most, trial.fitness, answers)
        return self._elite[1]
