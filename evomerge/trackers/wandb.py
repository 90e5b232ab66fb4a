"""Writes a run of Weights & Biases, on the disk or to its server."""

from __future__ import annotations

import json
import netrc
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evomerge.durable import write_atomic
from evomerge.errors import ConfigError
from evomerge.trackers.base import Candidate, HeldOut, Study, Tracker

_MODES = ("offline", "online")
_SERVER = "https://api.wandb.ai"


class Wandb(Tracker):
    """Writes config, metrics and results; no code, console output or facts about the machine.

    Offline runs are in `trackers/wandb` of the run directory, to be sent with `wandb sync`. When
    a study is resumed they go on in another folder with the same run id; a file says how far.
    """

    packages = ("wandb",)

    def __init__(
        self,
        run_dir: Path,
        project: str = "evomerge",
        entity: str | None = None,
        mode: str = "offline",
    ) -> None:
        """Takes the settings.

        Args:
            run_dir: of the study.
            project: of the run.
            entity: user or team; by default the account's own.
            mode: offline, or online, which needs an account.

        Raises:
            ConfigError: for another mode, or online without a key.
        """
        super().__init__(run_dir)
        if mode not in _MODES:
            raise ConfigError.of(
                "trackers.wandb.mode", repr(mode), f"one of {', '.join(_MODES)}", "Correct it."
            )
        if mode == "online" and not _has_key():
            raise ConfigError.of(
                "trackers.wandb.mode", "online, and no account", "a key for the server",
                "Run `wandb login`, set WANDB_API_KEY, or leave it offline.",
            )  # fmt: skip
        self._settings: dict[str, Any] = {"project": project, "entity": entity, "mode": mode}
        self._run: Any = None
        self._study = ""
        self._logged = 0

    def begin(self, study: Study) -> None:
        """Opens the study's run, or goes on with it."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        self._study = study.id
        self._logged = self._read()
        self._run = wandb.init(
            **self._settings,
            id=study.id, name=study.label, group=study.name, resume="allow",
            dir=str(self.folder.resolve()), config=dict(study.config), save_code=False,
            settings=wandb.Settings(
                console="off", disable_git=True, silent=True, x_disable_meta=True,
                x_disable_stats=True, x_disable_machine_info=True,
            ),
        )  # fmt: skip

    def candidate(self, candidate: Candidate) -> None:
        """Writes the numbers of a candidate, unless they are there."""
        if candidate.step < self._logged:
            return
        row = {**candidate.metrics, "candidate": candidate.id}
        self._run.log(row, step=candidate.step)
        self._write(candidate.step + 1)

    def held_out(self, results: HeldOut) -> None:
        """Writes the results into the run's summary."""
        self._run.summary.update(dict(results.metrics))

    def close(self) -> None:
        """Ends the run."""
        if self._run is not None:
            self._run.finish()

    @property
    def _file(self) -> Path:
        return self.folder / "wandb.json"

    def _read(self) -> int:
        """How many candidates are in earlier folders of this study's run."""
        if not self._file.is_file():
            return 0
        found = json.loads(self._file.read_text("utf-8"))
        return int(found["logged"]) if found["study"] == self._study else 0

    def _write(self, logged: int) -> None:
        self._logged = logged
        write_atomic(self._file, json.dumps({"study": self._study, "logged": logged}))


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", _SERVER)).hostname or ""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
