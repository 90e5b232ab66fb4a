"""The command `watch`: the report of a run in a browser, fresh while the study runs."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

from evomerge.errors import ConfigError
from evomerge.watching import HOST, Watched, WatchServer

_LEAST = 1.0  # seconds


def watch_command(arguments: list[str]) -> int:
    """Serves a run's report until it is interrupted; returns the exit code.

    Raises:
        ConfigError: if the run is a file or the port is taken.
    """
    parser = argparse.ArgumentParser(
        "python -m evomerge watch",
        description="Opens the report of a study and keeps it fresh. The page is served on "
        f"{HOST} only, made in memory from the run's files: watching changes nothing there. The "
        "run need not be there yet. Ctrl-C ends.",
    )
    parser.add_argument("run", type=Path, help="a study's run_dir")
    parser.add_argument("--port", type=int, default=0, help="default: any that is free")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    parser.add_argument(
        "--every", type=float, default=5.0, metavar="SECONDS",
        help="how often to look for news (default: 5)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if options.run.exists() and not options.run.is_dir():
        raise ConfigError.of(
            str(options.run), "a file", "the directory of a study", "Give the run_dir of a study."
        )
    if not options.every >= _LEAST:
        raise ConfigError.of(
            "--every", f"{options.every:g}", f"at least {_LEAST:g} second", "Correct it."
        )
    try:
        server = WatchServer(Watched(options.run, options.every), options.port)
    except (OSError, OverflowError) as error:
        raise ConfigError.of(
            "--port", f"{options.port}: {error}", "a port that is free", "Give another, or none."
        ) from error
    print(f"watching {options.run} at {server.url} (Ctrl-C ends)", flush=True)
    if not options.no_browser:
        webbrowser.open(server.url)
    try:
        server.run()
    except KeyboardInterrupt:
        print()
    return 0
