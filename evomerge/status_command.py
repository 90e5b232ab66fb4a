"""The command `status`: how far a study is, and by its exit code whether it is finished."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from evomerge.errors import ConfigError
from evomerge.journal import JOURNAL, read_events
from evomerge.types import Fitness

Config = Mapping[str, Any]
FINISHED, RUNNING, UNFINISHED, ABSENT = "finished", "running", "unfinished", "absent"

_ELSEWHERE = ("run_dir", "executor", "models", "pool", "ledger", "log", "trackers")
"""Keys that do not say what a study leaves: where and with what it runs, and what a pruned pool
changes."""


@dataclass(frozen=True)
class Status:
    """How far a study is.

    Attributes:
        run: its run directory.
        state: finished (the journal's last event is the study's `end`), running (a process of
            this machine holds the directory), unfinished, or absent (there is no journal).
        candidates: of the study's own search that have a result.
        budget: of candidates; None without one.
        failed: candidates that failed.
        best: first objective of the best candidate, in its own unit; None before there is one.
        event: the kind of the journal's last event.
        age: seconds since then.
        changed: keys of the config asked about that the finished study had otherwise.
    """

    run: str
    state: str
    candidates: int = 0
    budget: int | None = None
    failed: int = 0
    best: float | None = None
    event: str | None = None
    age: float | None = None
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.state == ABSENT:
            return f"{self.run}: absent, no {JOURNAL} there"
        total = "" if self.budget is None else f" of {self.budget}"
        parts = [self.state, f"{self.candidates}{total} candidates"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.best is not None:
            parts.append(f"best {self.best:.4g}")
        parts.append(f"last event `{self.event}` {self.age:.0f} s ago")
        if self.changed:
            parts.append(f"it ended with another {', '.join(self.changed)}")
        return f"{self.run}: {', '.join(parts)}"


def status_command(arguments: list[str], compose: Callable[[list[str]], dict[str, Any]]) -> int:
    """Prints how far studies are.

    Args:
        arguments: run directories, or the arguments that a study is started with.
        compose: makes a config of the latter.

    Returns:
        0 if all are finished, 1 if one is not, 2 if one is absent.

    Raises:
        UserError: if a config cannot be composed or a journal is damaged.
    """
    parser = argparse.ArgumentParser(
        "python -m evomerge status",
        description="Says how far studies are. The exit code is 0 if all are finished (the last "
        "event of their journals is `end`), 1 if one is not and 2 if there is no such study.",
        epilog="RUN is a study's run_dir; or give the arguments that the study is started with: "
        "python -m evomerge status +experiment=NAME seed=1. It is finished then only if it ended "
        "with this config, its budget included.",
    )
    parser.add_argument("run", nargs="+", metavar="RUN", help="run_dir, or KEY=VALUE ...")
    parser.add_argument("--json", action="store_true", help="one JSON object a study")
    options, unknown = parser.parse_known_args(arguments)
    given = [a for a in arguments if a != "--json"]
    if unknown or any("=" in run and not Path(run).is_dir() for run in options.run):
        config = compose(given)
        found = [study_status(Path(config["run_dir"]), config)]
    else:
        found = [study_status(Path(run)) for run in options.run]
    for status in found:
        print(json.dumps(asdict(status)) if options.json else status)
    states = {status.state for status in found}
    return 2 if ABSENT in states else int(states != {FINISHED})


def study_status(run_dir: Path, config: Config | None = None) -> Status:
    """Reads how far a study is.

    Args:
        run_dir: of the study.
        config: that it has to have ended with to count as finished; None for any.

    Raises:
        JournalError: if the journal is damaged.
        ConfigError: if its `config.yaml` is.
    """
    if not (run_dir / JOURNAL).is_file():
        return Status(str(run_dir), RUNNING if _held(run_dir) else ABSENT, event="none", age=0.0)
    return status_of(run_dir, read_events(run_dir), kept_config(run_dir), config)


def status_of(
    run_dir: Path, events: Sequence[Mapping[str, Any]], kept: Config, config: Config | None = None
) -> Status:
    """How far a study is at this moment.

    Args:
        run_dir: of the study.
        events: of its journal.
        kept: its `config.yaml`.
        config: as for `study_status`.
    """
    results = [e for e in events if e["event"] == "result" and e.get("search") == "search"]
    last: Mapping[str, Any] = events[-1] if events else {"event": "none", "time": time.time()}
    changed: tuple[str, ...] = ()
    state = RUNNING if _held(run_dir) else UNFINISHED
    if last["event"] == "end" and state != RUNNING:
        changed = _changed(kept, config) if config is not None else ()
        state = UNFINISHED if changed else FINISHED
    return Status(
        str(run_dir), state, len(results), kept.get("budget", {}).get("candidates"),
        sum(e["status"] != "ok" for e in results), _best(results), last["event"],
        round(max(0.0, time.time() - last["time"]), 1), changed,
    )  # fmt: skip


def _best(results: Sequence[Mapping[str, Any]]) -> float | None:
    """The first objective of the fittest candidate."""
    good = [e for e in results if e["status"] == "ok"]
    if not good:
        return None
    best = max(good, key=lambda e: Fitness.of_event(e).rank(e.get("complete", True)))
    return float(next(iter(best["values"].values())))


def kept_config(run_dir: Path) -> dict[str, Any]:
    """The `config.yaml` of a study; empty if there is none.

    Raises:
        ConfigError: if it is damaged.
    """
    path = run_dir / "config.yaml"
    try:
        kept = yaml.safe_load(path.read_text("utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError.of(
            str(path), f"a damaged file ({error})", "the config of a study",
            "Run the study's command again, which writes it anew.",
        ) from error  # fmt: skip
    return kept if isinstance(kept, dict) else {}


def _changed(kept: Config, config: Config) -> tuple[str, ...]:
    plain = json.loads(json.dumps(config))
    keys = [key for key in plain if key not in _ELSEWHERE]
    return tuple(key for key in keys if plain[key] != kept.get(key))


def _held(run_dir: Path) -> bool:
    """Whether a process of this machine holds the run directory (Linux; False elsewhere).

    Asking the kernel takes no lock, which a study that starts now could stumble over.
    """
    with contextlib.suppress(OSError):
        inode = str((run_dir / ".lock").stat().st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "FLOCK" in fields and any(f.split(":")[-1] == inode for f in fields[4:]):
                return True
    return False
