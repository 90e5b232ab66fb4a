"""Writes the item files of the zoo: `python -m evomerge.zoo.make_items`."""

from __future__ import annotations

import argparse
from pathlib import Path

from evomerge.zoo import TASKS, zoo_path
from evomerge.zoo.items import item_file, render_items


def main(argv: list[str] | None = None) -> None:
    """Writes one JSON-lines file a task; the same files every time."""
    parser = argparse.ArgumentParser(
        prog="python -m evomerge.zoo.make_items",
        description="Write the search, validation and test items of the zoo's tasks.",
    )
    parser.add_argument(
        "--out", type=Path, default=zoo_path("data"), help="directory for the .jsonl files"
    )
    directory: Path = parser.parse_args(argv).out
    directory.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        path = item_file(task, directory)
        path.write_text(render_items(task), encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
