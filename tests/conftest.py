"""Fixtures that several rooms share."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

if "EVOMERGE_CACHE" not in os.environ:  # the user's own is none of the tests' business
    os.environ["EVOMERGE_CACHE"] = tempfile.mkdtemp(prefix="evomerge-cache-")
    atexit.register(shutil.rmtree, os.environ["EVOMERGE_CACHE"], ignore_errors=True)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
