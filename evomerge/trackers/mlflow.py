"""Writes a run that MLflow shows."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evomerge.trackers.base import Candidate, HeldOut, Study, Tracker

_PARAMS = 100  # a call
_LENGTH = 500  # of a parameter's value, the least that servers take
_COUNT = "candidates"
_STUDY = "evomerge.study"


class Mlflow(Tracker):
    """Writes parameters and metrics of a run, found again by a tag when a study is resumed."""

    packages = ("mlflow", "sqlalchemy", "alembic")

    def __init__(
        self, run_dir: Path, uri: str | None = None, experiment: str | None = None
    ) -> None:
        """Takes the settings.

        Args:
            run_dir: of the study.
            uri: where runs are kept; by default MLFLOW_TRACKING_URI, or without that variable
                `trackers/mlflow.db` in the run directory.
            experiment: in which the run is; by default the study's.
        """
        super().__init__(run_dir)
        self._uri = uri
        self._experiment = experiment
        self._client: Any = None
        self._run = ""
        self._logged = 0

    def begin(self, study: Study) -> None:
        """Finds the study's run, or makes one."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")  # no handlers of its own
        from mlflow import MlflowClient
        from mlflow.entities import Param

        uri = self._uri or os.environ.get("MLFLOW_TRACKING_URI") or self._own()
        self._client = MlflowClient(tracking_uri=uri)
        experiment = self._in_experiment(self._experiment or study.name, uri)
        found = self._client.search_runs([experiment], f"tags.`{_STUDY}` = '{study.id}'")
        if found:
            run = found[0]
            self._logged = round(run.data.metrics.get(_COUNT, 0))
            self._client.update_run(run.info.run_id, status="RUNNING")
        else:
            run = self._client.create_run(experiment, run_name=study.label, tags={_STUDY: study.id})
            config = [
                Param(_name(key), str(value)[:_LENGTH]) for key, value in study.config.items()
            ]
            for i in range(0, len(config), _PARAMS):
                self._client.log_batch(run.info.run_id, params=config[i : i + _PARAMS])
        self._run = run.info.run_id

    def candidate(self, candidate: Candidate) -> None:
        """Writes the numbers of a candidate, unless they are there."""
        if candidate.step < self._logged:
            return
        self._logged = candidate.step + 1
        # the count comes last: with it, all is there
        metrics = {**candidate.metrics, _COUNT: float(self._logged)}
        self._log(metrics, candidate.ended, candidate.step)

    def held_out(self, results: HeldOut) -> None:
        """Writes the results at the end, unless they are there."""
        known = self._client.get_run(self._run).data.metrics
        new = {k: v for k, v in results.metrics.items() if known.get(_name(k)) != v}
        self._log(new, results.time, results.step)
        self._client.set_terminated(self._run)

    def close(self) -> None:
        """Lets go of the store; everything is there already."""
        self._client = None

    def _own(self) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{(self.folder / 'mlflow.db').resolve()}"

    def _in_experiment(self, name: str, uri: str) -> str:
        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        remote = uri.startswith(("http:", "https:", "databricks"))
        files = None if remote else (self.folder / "mlflow-artifacts").resolve().as_uri()
        return str(self._client.create_experiment(name, artifact_location=files))

    def _log(self, metrics: Mapping[str, float], time: float, step: int) -> None:
        from mlflow.entities import Metric

        rows = [Metric(_name(k), float(v), round(1000 * time), step) for k, v in metrics.items()]
        if rows:
            self._client.log_batch(self._run, metrics=rows)


def _name(text: str) -> str:
    """A name in the letters that MLflow takes."""
    return re.sub(r"[^\w.\- /]", "_", text)[:250]
