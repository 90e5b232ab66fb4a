"""Writes a merge of a study in forms that other programs read, with a card, whole or not at all."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge.checkpoints.parts import Assembly
from evomerge.checkpoints.whole_folder import check_free, whole_folder
from evomerge.checkpoints.writer import SHARD_BYTES, check_room, output_bytes, write_checkpoint
from evomerge.durable import write_atomic
from evomerge.errors import ConfigError
from evomerge.evidence import evidence_of
from evomerge.lora_export import RANK, check_shapes, write_lora
from evomerge.markdown import printable, short_name, without_paths
from evomerge.mergekit_yaml import mergekit_yaml
from evomerge.parents import parents_of, read_parents
from evomerge.recipe.bundle import bundled
from evomerge.recorded import Chosen, Recorded
from evomerge.report.card import Adaptation, model_card
from evomerge.report.licences import Parent
from evomerge.report.reading import Json

FORMATS = ("hf", "lora", "mergekit", "recipe")
_FILES = {"mergekit": "mergekit.yaml", "recipe": "recipe.yaml"}
_SLACK = 1 << 20  # bytes of tokenizer, config and card

Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Export:
    """What is to be written.

    Attributes:
        form: one of `FORMATS`.
        out: a path that is free, or an empty folder; of YAML formats it may be a file.
        rank: of an adapter's factors; None for the default.
        shard_bytes: largest weight file.
        published: whether paths of this machine are left out of recipe and adapter, too.
    """

    form: str
    out: Path
    rank: int | None = None
    shard_bytes: int = SHARD_BYTES
    published: bool = False

    @property
    def is_file(self) -> bool:
        """Whether `out` is one YAML file."""
        return self.form in _FILES and self.out.suffix in (".yaml", ".yml")


def check_out(export: Export) -> None:
    """Checks that the path is free, or an empty folder.

    Raises:
        UserError: if something is there.
    """
    out = export.out
    if out.is_dir() and not out.is_symlink() and not any(out.iterdir()) and not export.is_file:
        return
    check_free(out)


def write_export(
    study: Recorded,
    chosen: Chosen,
    parents: tuple[Parent, ...],
    export: Export,
    report: Report | None = None,
) -> tuple[str, ...]:
    """Writes a merge; nothing is there before all of it is.

    Args:
        study: that it is of.
        chosen: the merge.
        parents: what it is made of.
        export: how and where to write it.
        report: called with tensors done and all.

    Returns:
        notes for the user.

    Raises:
        UserError: if the path is taken, the disk too small, or the format cannot say the merge.
        EvomergeError: if the disk fails; nothing is left behind.
    """
    check_out(export)
    recipe, merger, out = chosen.recipe, study.merger, export.out
    text, files = bundled(recipe, merger.identities)
    notes: list[str] = []
    if export.form == "mergekit":
        text, found = mergekit_yaml(recipe)
        files, notes = {}, [*found]
    marked = _marked(text, chosen, merger.identities(recipe), export)
    if export.published:
        files = {name: without_paths(content) for name, content in files.items()}
    if export.is_file:
        for name, content in files.items():
            write_atomic(out.parent / name, content)
        write_atomic(out, marked)
        return tuple(notes)
    how = _how(study, chosen, export)
    card = _Card(study, chosen, parents, text, files, how)
    texts = {**files, _FILES.get(export.form, "recipe.yaml"): marked}
    with _vacated(out):
        if export.form == "hf":
            assembly = merger.assemble(recipe)
            notes += assembly.notes
            check_room(out, output_bytes(assembly) + _SLACK)
            write_checkpoint(
                recipe, merger, out, {**texts, "README.md": card.text()}, export.shard_bytes,
                report, assembly,
            )  # fmt: skip
            return tuple(notes)
        if export.form == "lora":
            base = str(study.config["models"]["base"])
            assembly = merger.assemble(recipe)
            check_shapes(assembly, merger.checkpoint(base))
            check_room(out, _factor_bytes(assembly, export.rank or RANK) + _SLACK)
            named = card.base() if export.published else _located(base)
            with whole_folder(out, texts) as folder:
                made = write_lora(
                    recipe, merger, base, folder, named, export.rank, report, assembly
                )
                texts["README.md"] = card.text(Adaptation(card.base(), made.sentences))
            return (*notes, *made.sentences)
        check_room(out, _SLACK)
        with whole_folder(out, {**texts, "README.md": card.text()}):
            pass
    return tuple(notes)


@dataclass(frozen=True)
class _Card:
    """Makes the README.md of an export."""

    study: Recorded
    chosen: Chosen
    parents: tuple[Parent, ...]
    recipe: str
    files: Mapping[str, str]
    how: tuple[str, ...]

    def text(self, adaptation: Adaptation | None = None) -> str:
        """The card."""
        return model_card(
            self._results(), self.recipe, self.files, parents=self.parents,
            evidence=evidence_of(self.study, self.chosen), adaptation=adaptation, how=self.how,
        )  # fmt: skip

    def base(self) -> str:
        """The name of the base, as a card may publish it."""
        ref = str(self.study.config["models"]["base"])
        base = self.study.merger.checkpoint(ref)
        found = (p.name for p in self.parents if p.fingerprint == base.fingerprint)
        return next(found, Path(ref).name)

    def _results(self) -> Json:
        """The results, or what the journal says while there are none."""
        first = self.study.files.study
        begun: Json = {k: first[k] for k in ("experiment", "seed", "versions") if k in first}
        return self.study.results or begun


def export_parents(study: Recorded, chosen: Chosen, form: str) -> tuple[Parent, ...]:
    """The models that an export is made of; an adapter is for the base, whatever it was made of."""
    found = read_parents(study.merger, chosen.recipe)
    if form != "lora":
        return found
    base = study.merger.checkpoint(study.config["models"]["base"])
    if any(parent.fingerprint == base.fingerprint for parent in found):
        return found
    return (*parents_of(base), *found)


@contextlib.contextmanager
def _vacated(out: Path) -> Iterator[None]:
    """Takes an empty folder away while something is written in its place."""
    empty = out.is_dir()
    if empty:
        out.rmdir()
    try:
        yield
    finally:
        if empty and not out.exists():
            out.mkdir()


def _marked(text: str, chosen: Chosen, identities: Mapping[str, str], export: Export) -> str:
    """A recipe with its digest and the fingerprints of its models as comments."""
    lines = [line for line in text.splitlines() if not line.startswith("# digest:")]
    shown = without_paths("\n".join(lines)) if export.published else "\n".join(lines)
    short = {ref: "+".join(map(short_name, ref.split("+"))) for ref in identities}
    named = short if export.published else {ref: ref for ref in identities}
    head = [f"# digest: {chosen.digest}", "# fingerprints of the models' weights:"]
    head += [f"#   {printable(named[ref])}: {mark}" for ref, mark in identities.items()]
    return "\n".join([*head, shown, ""])


def _how(study: Recorded, chosen: Chosen, export: Export) -> tuple[str, ...]:
    """Commands that make an export again, and that measure it again."""
    name = str(chosen.number) if chosen.number is not None else chosen.subject or "best"
    run = "RUN" if export.published else str(study.run_dir)
    form = [] if export.form == "hf" else ["--format", export.form]
    form += ["--rank", str(export.rank)] if export.rank else []
    lines = [["export", run, name, "OUT", *form], ["replay", run, name]]
    if export.form == "mergekit":
        return (*_commands(lines), "mergekit-yaml mergekit.yaml OUT")
    return (*_commands(lines), "python -m evomerge merge recipe.yaml OUT")


def _commands(lines: list[list[str]]) -> list[str]:
    return [f"python -m evomerge {shlex.join(line)}" for line in lines]


def _located(ref: str) -> str:
    """A base as an adapter names it: on the hub, or a folder that is found from anywhere."""
    path = Path(ref).expanduser()
    return str(path.absolute()) if path.is_dir() else ref


def _factor_bytes(assembly: Assembly, rank: int) -> int:
    """At most so many bytes are taken by float32 factors, and by what is saved whole."""
    total = 0
    for part in assembly.parts:
        if len(part.shape) == 2:
            total += 4 * min(rank, *part.shape) * sum(part.shape)
        elif len(part.shape) == 1:
            total += 4 * part.shape[0]
    return 2 * total  # a tied head has factors of its own


def check_format(form: str, rank: int | None) -> None:
    """Checks that options fit the format.

    Raises:
        ConfigError: for a rank where there is none.
    """
    if rank is not None and form != "lora":
        raise ConfigError.of(
            "--rank", f"it beside --format {form}", "it beside --format lora", "Leave it out."
        )
