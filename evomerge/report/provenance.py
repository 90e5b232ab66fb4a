"""Where the sources come from, what ran, and what it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import UserError
from evomerge.markdown import short_name
from evomerge.report.licences import Parent, licence_flags
from evomerge.report.model_files import model_origin, read_licence
from evomerge.report.reading import Json, RunFiles, count, mapping

UNKNOWN = "not stated"


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
        revision, licence = _told(reference.split("+")[0]) if reference else ("", "")
        fingerprint = str(identities.get(name, ""))
        known = parents.get(fingerprint, {})
        found.append(
            Origin(
                name, short_name(reference) if reference else UNKNOWN,
                str(known.get("revision") or revision or UNKNOWN), fingerprint[:12],
                str(known.get("licence") or licence or UNKNOWN),
            )
        )  # fmt: skip
    return found


def _told(reference: str) -> tuple[str, str]:
    """Revision and licence that the files of a model tell, where it is still there."""
    try:
        _, revision = model_origin(reference, Path(reference))
        licence, _ = read_licence(Path(reference))
    except UserError:  # what cannot be read says nothing
        return "", ""
    return revision, licence


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
