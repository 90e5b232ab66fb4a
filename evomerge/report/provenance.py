"""Where the sources come from, what ran, and what it took."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge.markdown import short_name
from evomerge.report.licences import Parent, licence_flags
from evomerge.report.reading import Json, RunFiles, count, mapping

UNKNOWN = "not stated"
_REVISION = re.compile(r"^[0-9a-f]{40}$")


@dataclass(frozen=True)
class Origin:
    """A source: what the study calls it, its reference, revision, content and licence."""

    name: str
    reference: str
    revision: str
    fingerprint: str
    licence: str


def flags(results: Json) -> list[str]:
    """What the licences of the merge's parents mean for it, as its model card says it."""
    listed = results.get("parents")
    parents = [
        Parent(str(p.get("name", "")), licence=str(p.get("licence") or ""))
        for p in map(mapping, listed if isinstance(listed, list) else [])
    ]
    return list(licence_flags(parents)) if parents else []


def origins(run: RunFiles, settings: Json) -> list[Origin]:
    """The base and the sources of a study.

    The fingerprint is that of the weights, as the journal recorded it. Revision and licence are
    those of the results, where they name the model among the merge's parents; else they are
    read from the model's folder, where it is still there: a hub cache names its folders by the
    revision, and a model card states the licence.
    """
    models = mapping(settings.get("models"))
    references = {"base": models.get("base"), **mapping(models.get("sources"))}
    identities = mapping(run.study.get("identities"))
    listed = mapping(run.results).get("parents")
    parents = {
        str(p.get("fingerprint")): p
        for p in map(mapping, listed if isinstance(listed, list) else [])
    }
    found = []
    for name in dict.fromkeys([*references, *identities]):
        reference = str(references.get(name) or "")
        folder = Path(reference.split("+")[0]) if reference else None
        fingerprint = str(identities.get(name, ""))
        known = parents.get(fingerprint, {})
        found.append(
            Origin(
                name, short_name(reference) if reference else UNKNOWN,
                str(known.get("revision") or _revision(reference)), fingerprint[:12],
                str(known.get("licence") or _licence(folder)),
            )
        )  # fmt: skip
    return found


def _revision(reference: str) -> str:
    """`model@revision`, or the folder of a hub cache; empty where neither is."""
    _, at, revision = reference.partition("@")
    if at:
        return revision
    return next((p for p in reversed(Path(reference).parts) if _REVISION.match(p)), UNKNOWN)


def _licence(folder: Path | None) -> str:
    """The licence that the model card in a folder states."""
    import yaml

    card = folder / "README.md" if folder is not None else None
    if card is None or not card.is_file():
        return UNKNOWN
    text = card.read_text(encoding="utf-8", errors="replace")[:20_000]
    head = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        told = mapping(yaml.safe_load(head[1])) if head else {}
    except yaml.YAMLError:
        return UNKNOWN
    value = told.get("license_name") or told.get("license") or UNKNOWN
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def workers_of(settings: Json, study: Json) -> tuple[int | None, float | None]:
    """Number of workers, and GPUs of each; None where the run does not say."""
    executor = mapping(settings.get("executor"))
    workers = count(executor.get("workers"))
    if executor.get("name") == "serial":
        workers = 1
    device = str(mapping(study.get("matter")).get("device", ""))
    gpus = executor.get("gpus_per_worker")
    if device == "cpu":
        return workers, 0.0
    if isinstance(gpus, (int, float)) and not isinstance(gpus, bool):
        return workers, float(gpus)
    return workers, 1.0 if device else None


def gpu_hours(busy: float, gpus: float | None) -> str:
    """What the workers' busy seconds come to."""
    if gpus is None:
        return "not known"
    if gpus == 0:
        return "0 (the study ran on the CPU)"
    return f"{busy * gpus / 3600:.2f} (busy seconds of the workers x {gpus:g} GPU each)"


def model_names(settings: Json) -> Mapping[str, str]:
    """What the study calls its models, by reference."""
    models = mapping(settings.get("models"))
    named = {"base": models.get("base"), **mapping(models.get("sources"))}
    return {str(reference): name for name, reference in named.items() if reference}
