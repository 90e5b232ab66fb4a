"""Writes scalars that TensorBoard shows."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import yaml

from evomerge.trackers.base import Candidate, HeldOut, Study, Tracker


class TensorBoard(Tracker):
    """Writes event files into a folder, for `tensorboard --logdir`.

    The files are written anew from the journal when a study is resumed, so that nothing is in
    them twice.
    """

    packages = ("tensorboard",)

    def __init__(self, run_dir: Path, folder: str | None = None) -> None:
        """Takes the settings.

        Args:
            run_dir: of the study.
            folder: where to write; by default `trackers/tensorboard` in the run directory.
                Studies that share one get a folder each inside it.
        """
        super().__init__(run_dir)
        self._shared = None if folder is None else Path(folder)
        self._writer: Any = None

    def begin(self, study: Study) -> None:
        """Opens a file that takes the place of earlier ones."""
        from torch.utils.tensorboard import SummaryWriter

        own = self.folder / "tensorboard" if self._shared is None else self._shared / study.label
        own.mkdir(parents=True, exist_ok=True)
        old = list(own.glob("events.out.tfevents.*"))
        # a TensorBoard that is running drops what it has read of this study before
        self._writer = SummaryWriter(str(own), purge_step=0, filename_suffix=f".{len(old)}")
        for file in old:
            file.unlink()
        config = yaml.safe_dump(dict(study.config), sort_keys=False, allow_unicode=True)
        self._writer.add_text("config", f"<pre>\n{escape(config, quote=False)}</pre>", 0)

    def candidate(self, candidate: Candidate) -> None:
        """Writes the numbers of a candidate."""
        for name, value in candidate.metrics.items():
            self._writer.add_scalar(name, value, candidate.step, candidate.ended)
        for name, param in candidate.params.items():
            if not isinstance(param, str):
                tag = f"{candidate.search} parameters/{name}"
                self._writer.add_scalar(tag, param, candidate.step, candidate.ended)

    def held_out(self, results: HeldOut) -> None:
        """Writes the results at the end."""
        for name, value in results.metrics.items():
            self._writer.add_scalar(name, value, results.step, results.time)
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        if self._writer is not None:
            self._writer.close()
