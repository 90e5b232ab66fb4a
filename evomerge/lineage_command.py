"""The `lineage` verb: prints and draws a pedigree."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from evomerge.errors import ConfigError
from evomerge.journal import write_atomic
from evomerge.lineage import read_lineage, tree
from evomerge.lineage_figure import lineage_svg

DESCRIPTION = """\
Prints who a candidate of a study with space=pieces descends from: parents, shares, splits and
scores, read from the journal alone. Shares are those of the matings, as if every mating
interpolated linearly; the factors of slerp add up to somewhat more than 1."""


def lineage_command(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code.

    Raises:
        UserError: for a directory or a candidate that has no lineage.
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
    lineage = read_lineage(options.run, options.candidate)
    print(tree(lineage))
    if options.out is not None:
        if not options.out.absolute().parent.is_dir():
            raise ConfigError.of(
                "--out", str(options.out), "a file in a directory that exists",
                "Make the directory first, or name another.",
            )  # fmt: skip
        write_atomic(options.out, lineage_svg(lineage))
        print(f"\n{options.out}")
    return 0
