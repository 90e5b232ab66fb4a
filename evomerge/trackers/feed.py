"""Feeds trackers from a journal, each in a thread of its own, so that none can stop a study."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from queue import SimpleQueue
from typing import Any

from evomerge.trackers.base import Candidate, HeldOut, Study, Tracker
from evomerge.trackers.story import Record, Story

_PATIENCE = 120.0  # seconds that the end of a study waits for its trackers
_SILENT = 2.0  # of these, until it says so


class Feed:
    """Tells trackers of a study's events.

    What a tracker raises switches that tracker off, with one warning. What it had not written
    when the study ended or was killed follows when the study is resumed.
    """

    def __init__(
        self,
        trackers: Mapping[str, Tracker],
        story: Story,
        say: Callable[[str], None],
        patience: float = _PATIENCE,
    ) -> None:
        """Starts to listen.

        Args:
            trackers: by name.
            story: turns events into what they are told.
            say: told of trackers that fail.
            patience: seconds that `close` waits for all of them.
        """
        self._story = story
        self._say = say
        self._patience = patience
        self._followers = [_Follower(name, t, say) for name, t in trackers.items()]

    def hear(self, event: Mapping[str, Any]) -> None:
        """Takes an event; returns at once."""
        if not self._followers:
            return
        try:
            records = list(self._story.read(event))
        except (KeyError, TypeError, ValueError, OSError) as error:
            self._say(f"warning: trackers are switched off, an event was not read: {error!r}")
            self.close()
            return
        for record in records:
            for follower in self._followers:
                follower.tell(record)

    def hear_all(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Takes the events of a journal so far."""
        for event in events:
            self.hear(event)

    def close(self) -> None:
        """Waits until all is written."""
        followers, self._followers = self._followers, []
        for follower in followers:
            follower.finish()
        deadline = time.monotonic() + self._patience
        for follower in followers:
            if follower.join(min(_SILENT, self._patience)):
                continue
            if self._patience > _SILENT:
                self._say(f"waiting for the tracker {follower.name}")
            if not follower.join(max(0.0, deadline - time.monotonic())):
                self._say(
                    f"warning: {follower.name} did not finish within {self._patience:g} s; what "
                    "it lacks is logged when the study is run again"
                )


class _Follower:
    """One tracker and its thread."""

    def __init__(self, name: str, tracker: Tracker, say: Callable[[str], None]) -> None:
        self.name = name
        self._tracker = tracker
        self._say = say
        self._records: SimpleQueue[Record | None] = SimpleQueue()
        self._off = False
        self._thread = threading.Thread(target=self._run, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def tell(self, record: Record) -> None:
        if not self._off:
            self._records.put(record)

    def finish(self) -> None:
        self._records.put(None)

    def join(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (record := self._records.get()) is not None:
                self._pass_on(record)
            self._tracker.close()
        except (Exception, SystemExit) as error:  # whatever another tool's client raises
            self._off = True
            text = " ".join(str(error).split())[:300] or type(error).__name__
            self._say(f"warning: tracker {self.name} is switched off: {text}")
            with contextlib.suppress(Exception):
                self._tracker.close()

    def _pass_on(self, record: Record) -> None:
        if isinstance(record, Study):
            self._tracker.begin(record)
        elif isinstance(record, Candidate):
            self._tracker.candidate(record)
        elif isinstance(record, HeldOut):
            self._tracker.held_out(record)
