"""How long a candidate may take, from how long others took."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from evomerge.executors.worker import Job

_KEPT = 64
_ENOUGH = 5
_HUNG, _SLOW = 10.0, 3.0
_UNKNOWN = 3600.0


def size_of(job: Job) -> int | None:
    """Number of items; None where a whole split is asked for."""
    counts = [None if r.indices is None else len(r.indices) for r in job.requests]
    return None if None in counts else sum(c for c in counts if c is not None)


class Limits:
    """Learns the times of jobs by their number of items.

    A job hangs after 10 times the 95% quantile of the times of jobs of its size, and is slow after
    3 times their median. Where fewer than 5 of its size have ended, times an item of all sizes
    are taken instead; where nothing is known, a job hangs after an hour.
    """

    def __init__(
        self, timeout: float | None = None, floor: float = 60.0, slow_floor: float = 5.0
    ) -> None:
        """Knows nothing yet.

        Args:
            timeout: seconds after which a job hangs; None learns them.
            floor: least seconds after which one hangs, if they are learnt; a worker's first job
                gets 5 times as many, since compilers run then.
            slow_floor: least seconds after which one is slow.
        """
        self._timeout = timeout
        self._floor = floor
        self._slow_floor = slow_floor
        self._seconds: dict[int | None, deque[float]] = {}
        self._rates: deque[float] = deque(maxlen=_KEPT)
        self._known: dict[int | None, tuple[float, float] | None] = {}

    def add(self, size: int | None, seconds: float) -> None:
        """Takes note of a job that ended."""
        self._seconds.setdefault(size, deque(maxlen=_KEPT)).append(seconds)
        if size:
            self._rates.append(seconds / size)
        self._known.clear()

    def hung(self, size: int | None, first: bool = False) -> float:
        """Seconds after which a job hangs; `first` of its worker."""
        if self._timeout is not None:
            return self._timeout
        typical = self._typical(size)
        if typical is None:
            return _UNKNOWN
        return max(_HUNG * typical[1], self._floor * (5 if first else 1))

    def slow(self, size: int | None) -> float | None:
        """Seconds after which a second worker is worth while; None if too little is known."""
        typical = self._typical(size)
        return None if typical is None else max(_SLOW * typical[0], self._slow_floor)

    def _typical(self, size: int | None) -> tuple[float, float] | None:
        """Median and 95% quantile in seconds."""
        if size not in self._known:
            own = self._seconds.get(size, ())
            if len(own) >= _ENOUGH:
                self._known[size] = _quantiles(own)
            elif size and len(self._rates) >= _ENOUGH:
                median, high = _quantiles(self._rates)
                self._known[size] = (median * size, high * size)
            else:
                self._known[size] = None
        return self._known[size]


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    median, high = np.quantile(np.array(values), [0.5, 0.95])
    return float(median), float(high)
