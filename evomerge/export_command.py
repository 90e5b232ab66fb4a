"""The `export` verb: a merge of a study as a checkpoint, an adapter or a recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from evomerge.checkpoints.writer import SHARD_BYTES
from evomerge.errors import ConfigError
from evomerge.exporting import (
    FORMATS,
    Export,
    check_format,
    check_out,
    export_parents,
    write_export,
)
from evomerge.hub_upload import check_upload, upload
from evomerge.merging import positive, reporter, size_in_bytes
from evomerge.progress import Progress
from evomerge.recorded import find, open_recorded
from evomerge.report.licences import licence_flags

EPILOG = """\
CANDIDATE is a candidate's number, best, a name of results.json (such as 'greedy soup' or a
source's), or what pick printed. OUT must not exist, or be an empty folder; it appears only when it
is complete.

formats:
  hf        an ordinary checkpoint with tokenizer and model card (default)
  lora      a LoRA adapter of the base, in PEFT's format: exact where the merge is a sum of
            adapters, otherwise cut to --rank; says how far base plus adapter is from the merge
  mergekit  YAML that mergekit reads; refuses what it cannot say
  recipe    evomerge's YAML with the fingerprints of all models
  (OUT of the last two may be a file, OUT.yaml)

examples:
  python -m evomerge export runs/jp_math_tiny/seed0 best merged
  python -m evomerge export runs/map_tiny/seed0 17 adapter --format lora --rank 32
  python -m evomerge export runs/jp_math_tiny/seed0 best merged --push-to-hub me/merged
"""


def export_command(arguments: Sequence[str]) -> int:
    """Runs the verb with its arguments; returns the exit code."""
    options = _parser().parse_args(arguments)
    check_format(options.format, options.rank)
    pushed = options.push_to_hub is not None
    if not pushed and (options.public or options.accept_licence_conflict):
        name = "--public" if options.public else "--accept-licence-conflict"
        raise ConfigError.of(name, "it without --push-to-hub", "both or neither", "Correct it.")
    export = Export(options.format, options.out, options.rank, options.shard_size, pushed)
    if pushed and export.is_file:
        raise ConfigError.of(
            "OUT", str(options.out), "a folder, which --push-to-hub uploads", "Leave .yaml out."
        )
    check_out(export)
    study = open_recorded(options.run, options.model)
    chosen = find(study, options.candidate)
    parents = export_parents(study, chosen, export.form)
    flags = licence_flags(parents)
    if pushed:
        check_upload(options.push_to_hub, options.public, flags, options.accept_licence_conflict)
    with Progress() as progress:
        progress.say(f"exporting {chosen.name} of {options.run}")
        if chosen.note:
            progress.say(chosen.note)
        notes = write_export(study, chosen, parents, export, reporter(progress))
    for note in notes:
        print(note)
    _warn(flags)
    print(f"{options.out}  digest: {chosen.digest}")
    if pushed:
        message = f"{chosen.name} of {study.files.study.get('experiment')}, by evomerge"
        print(upload(options.out, options.push_to_hub, options.public, message))
    return 0


def _warn(flags: Sequence[str]) -> None:
    """Says loudly what stands against passing the merge on."""
    if not flags:
        return
    print("\nLICENCE WARNING:")
    for flag in flags:
        print(f"  ! {flag}")
    print("  The model card says so, too. This is no legal advice.\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m evomerge export",
        description="Writes a merge of a study with a model card: parents, licences, recipe, "
        "held-out results and how to reproduce it. Starts no engine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a study's run_dir")
    parser.add_argument("candidate", metavar="CANDIDATE", help="a number, best or a name")
    parser.add_argument("out", type=Path, metavar="OUT", help="where to write it")
    parser.add_argument("--format", choices=FORMATS, default="hf")
    parser.add_argument("--rank", type=positive, metavar="N",
                        help="of an adapter (default: a sum's own, else 64)")  # fmt: skip
    parser.add_argument("--shard-size", type=size_in_bytes, default=SHARD_BYTES, metavar="SIZE",
                        help="largest weight file, such as 5G (default) or 500M")  # fmt: skip
    parser.add_argument("--model", action="append", default=[], metavar="NAME=PATH",
                        help="where a source, or base, is now, if it was moved")  # fmt: skip
    parser.add_argument("--push-to-hub", metavar="NAME",
                        help="upload OUT to the Hugging Face hub, too, privately")  # fmt: skip
    parser.add_argument("--public", action="store_true", help="as a public one")
    parser.add_argument("--accept-licence-conflict", action="store_true",
                        help="upload although the parents' licences speak against it")  # fmt: skip
    return parser
