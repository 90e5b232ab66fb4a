"""Mirrors a study into an optuna storage, for optuna-dashboard and optuna's own plots."""

from __future__ import annotations

import json
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.errors import ConfigError
from evomerge.trackers.base import Candidate, HeldOut, Study, Tracker

if TYPE_CHECKING:
    import optuna

_STATES = {"complete": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL"}


class OptunaMirror(Tracker):
    """Writes a trial a candidate: parameters, values, constraints and state.

    A candidate that a race stopped is a pruned trial, with its value after each stage. A trial
    is written whole, when its candidate has ended. Trials cannot be changed later: they keep
    what a candidate was worth when it ended, whatever further items said of it. Candidates of
    the study's own search only; those of controls vary other things.
    """

    packages = ("optuna",)

    def __init__(self, run_dir: Path, storage: str | None = None, name: str | None = None) -> None:
        """Takes the settings.

        Args:
            run_dir: of the study.
            storage: the address of a database that SQLAlchemy knows, such as
                `sqlite:///studies.db`, or the path of a journal file, whose name ends in .log;
                by default `trackers/optuna.log` in the run directory.
            name: of the study in it; by default of experiment, seed and an id.

        Raises:
            ConfigError: for another kind of storage.
        """
        super().__init__(run_dir)
        if storage is not None and "://" not in storage and not storage.endswith(".log"):
            raise ConfigError.of(
                "trackers.optuna.storage", storage, "sqlite:///FILE.db or FILE.log",
                "Give the address of a database, or a journal file.",
            )  # fmt: skip
        self._storage = storage
        self._name = name
        self._study: optuna.Study | None = None
        self._known: set[int] = set()
        self._spaces: dict[str, optuna.distributions.BaseDistribution] = {}

    def begin(self, study: Study) -> None:
        """Opens or makes the study in the storage."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        better = optuna.study.StudyDirection
        mirror = optuna.create_study(
            storage=self._open(),
            study_name=self._name or study.label,
            directions=[better[goal.upper()] for _, goal in study.objectives],
            load_if_exists=True,
        )
        attributes = mirror.user_attrs
        if attributes.get("evomerge") not in (None, study.id):
            raise ValueError(f"{mirror.study_name} in that storage is another study")
        if "evomerge" not in attributes:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                mirror.set_metric_names([name for name, _ in study.objectives])
            mirror.set_user_attr("config", dict(study.config))
            mirror.set_user_attr("evomerge", study.id)
        self._study = mirror
        self._spaces = {d["name"]: _distribution(d) for d in study.dimensions}
        trials = mirror.get_trials(deepcopy=False)
        self._known = {t.user_attrs["candidate"] for t in trials if "candidate" in t.user_attrs}

    def candidate(self, candidate: Candidate) -> None:
        """Writes a trial, unless it is there."""
        if candidate.search != "search" or candidate.id in self._known or self._study is None:
            return
        from optuna.trial import TrialState, create_trial

        state = TrialState[_STATES[candidate.status]]
        values = list(candidate.values.values())
        stages = candidate.stages if len(values) == 1 else {}
        trial = create_trial(
            state=state,
            values=values or None,
            params=dict(candidate.params),
            distributions={name: self._spaces[name] for name in candidate.params},
            user_attrs={
                "candidate": candidate.id,
                "generation": candidate.generation,
                "digest": candidate.digest,
            },
            intermediate_values=dict(stages),
            constraints=dict(candidate.constraints) or None,
        )
        trial.datetime_start = datetime.fromtimestamp(candidate.began)
        trial.datetime_complete = datetime.fromtimestamp(candidate.ended)
        self._study.add_trial(trial)
        self._known.add(candidate.id)

    def held_out(self, results: HeldOut) -> None:
        """Writes the results into the study's attributes."""
        if self._study is not None:
            self._study.set_user_attr("held-out", json.loads(json.dumps(dict(results.metrics))))

    def close(self) -> None:
        """Lets go of the storage; every trial is there already."""
        self._study = None

    def _open(self) -> Any:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        if self._storage is not None and "://" in self._storage:
            return self._storage
        file = Path(self._storage) if self._storage else self.folder / "optuna.log"
        file.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(file)))


def _distribution(dimension: Any) -> optuna.distributions.BaseDistribution:
    from optuna import distributions

    if dimension.get("choices"):
        return distributions.CategoricalDistribution(dimension["choices"])
    if dimension.get("kind", "real") == "real":
        return distributions.FloatDistribution(dimension["low"], dimension["high"])
    return distributions.IntDistribution(round(dimension["low"]), round(dimension["high"]))
