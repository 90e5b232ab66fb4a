"""The `lineage` verb: prints and draws a pedigree."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from evomerge.durable import write_atomic
from evomerge.errors import ConfigError
from evomerge.lineage import read_lineage, tree
from evomerge.lineage_figure import lineage_svg

DESCRIPTION = """\
Prints who a candidate of a study with space=pieces descends from: parents, shares, splits and
scores, read from the journal alone. Shares are those of the matings, as if every mating
interpolated linearly; the factors of slerp add up to somewhat more than 1."""


def lineage_command(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code.

    Raises:
        UserError: for a directory or a candidate that has no lineage, and a file that cannot be
            written.
    """
    parser = argparse.ArgumentParser(
        "python -m evomerge lineage",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="exit codes: 0 printed, 2 a mistake in the arguments or the run.",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="directory of a study")
    parser.add_argument(
        "candidate", metavar="CANDIDATE", type=int, nargs="?",
        help="number of a candidate (default: the chosen merge)",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="FILE.svg", type=Path,
        help="write the pedigree and the seeds' shares along the parameters as a picture",
    )  # fmt: skip
    options = parser.parse_args(list(arguments))
    if options.out is not None:
        check_out(options.out)
    lineage = read_lineage(options.run, options.candidate)
    print(tree(lineage))
    if options.out is not None:
        write_atomic(options.out, lineage_svg(lineage))
        print(f"\n{options.out}")
    return 0


def check_out(out: Path) -> None:
    """Checks that a file can be written where `--out` says.

    Raises:
        ConfigError: if its directory is missing or read-only, or it is a directory itself.
    """
    folder = out.absolute().parent
    found = ""
    if out.is_dir():
        found = f"{out}, a directory"
    elif not folder.is_dir():
        found = str(out)
    elif not os.access(folder, os.W_OK):
        found = f"{out}, in a directory that is read-only"
    if found:
        raise ConfigError.of(
            "--out", found, "a file in a directory that exists",
            "Make the directory first, or name another.",
        )  # fmt: skip
