"""Which way to choose items and to estimate is best for a matrix of answers, by cross-validation.

found = cross_validated(responses, CONFIGURATIONS, sizes=(30,))
best = selected(found)                      # least error on groups of models left out
knowledge = learnt(responses, best, misfit=measured_misfit(found[best][30]))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.estimators.calibration import folds, misfit
from evomerge.estimators.catalogue import choose, predict_any
from evomerge.estimators.designs import asked_by_variance
from evomerge.estimators.knowledge import Knowledge
from evomerge.irt.fit import fit_items
from evomerge.irt.responses import Responses
from evomerge.types import FloatArray

ADAPTIVE = "adaptive"
"""Each next item by the candidate's answers so far (`next_items("variance", ...)`), in place of one
of `catalogue.CHOICES`."""

DISCRIMINATION_MEAN = 1.2
TOLERANCE = 0.03  # of fits, in standard errors: probabilities are then exact to some 0.01


@dataclass(frozen=True)
class Configuration:
    """A way from earlier models' answers to estimates.

    Attributes:
        choose: `ADAPTIVE` or one of `catalogue.CHOICES`.
        estimate: one of `catalogue.ESTIMATES`.
        dimensions: of the fitted items; 0 fits none.
        discrimination_sd: of the fit's prior on discrimination. Small ones (0.3) draw items
            towards equal discrimination, and overrate less those that are chosen for theirs.
    """

    choose: str = ADAPTIVE
    estimate: str = "posterior"
    dimensions: int = 2
    discrimination_sd: float = 1.0

    def __str__(self) -> str:
        fit = f", D={self.dimensions}, sd {self.discrimination_sd:g}" if self.dimensions else ""
        return f"{self.choose} + {self.estimate}{fit}"


@dataclass(frozen=True, eq=False)
class Trial:
    """Estimates of models whose full scores are known.

    Attributes:
        values: estimates, `draws x m`.
        stderrs: their standard errors, `draws x m`.
        truth: full scores, an `m` array.
        unseen: share of the items that were not answered.
    """

    values: FloatArray
    stderrs: FloatArray
    truth: FloatArray
    unseen: float

    @property
    def errors(self) -> FloatArray:
        """Estimates minus full scores, `draws x m`."""
        return self.values - self.truth


CONFIGURATIONS = (
    *(Configuration(ADAPTIVE, dimensions=d) for d in (2, 3)),
    *(Configuration("balanced", dimensions=d, discrimination_sd=0.3) for d in (2, 3)),
    Configuration(ADAPTIVE, dimensions=1),
    Configuration("balanced", dimensions=1, discrimination_sd=0.3),
)
"""Those worth trying, in order of preference."""


def learnt(
    responses: Responses,
    configuration: Configuration,
    misfit: float | None = 0.0,
    sources: FloatArray | None = None,
) -> Knowledge:
    """Fits items as a configuration says, if it needs any.

    Raises:
        ConfigError: if the answers do not allow a fit.
    """
    model = None
    if configuration.dimensions:
        model = fit_items(
            responses,
            configuration.dimensions,
            discrimination_mean=DISCRIMINATION_MEAN,
            discrimination_sd=configuration.discrimination_sd,
            tolerance=TOLERANCE,
        ).model
    scores = responses.scores.astype(np.float64)
    return Knowledge(
        responses.items, model, scores, sources, groups=responses.groups, misfit=misfit
    )


def tried(
    knowledge: Knowledge,
    configuration: Configuration,
    answers: FloatArray,
    sizes: Sequence[int],
    draws: int = 1,
    seed: int = 0,
) -> dict[int, Trial]:
    """Estimates the full scores of models all of whose answers are known, from `n` of them.

    Args:
        knowledge: from other models.
        configuration: how to choose and estimate; the fit is the knowledge's.
        answers: complete, `m x N`.
        sizes: numbers of items n, each at most N.
        draws: sets of items; an adaptive choice has one a model.
        seed: of the draws.
    """
    built = predict_any(configuration.estimate, knowledge)
    truth = answers.mean(axis=1)
    out = {}
    asked = None
    if configuration.choose == ADAPTIVE:
        asked = asked_by_variance(knowledge.population, answers, max(sizes))
    for n in sizes:
        found = []
        for draw in range(1 if asked is not None else draws):
            if asked is not None:
                sets, weights = asked[:, :n], None
            else:
                choice = choose(configuration.choose, knowledge, n, seed * 1000 + draw)
                sets = np.tile(choice.indices, (len(answers), 1))
                weights = choice.weights
            found.append(
                [
                    built.estimate(places, row[places], weights)
                    for places, row in zip(sets, answers, strict=True)
                ]
            )
        values = np.array([[e.value for e in row] for row in found])
        stderrs = np.array([[e.stderr for e in row] for row in found])
        out[n] = Trial(values, stderrs, truth, 1 - n / answers.shape[1])
    return out


def cross_validated(
    responses: Responses,
    configurations: Sequence[Configuration],
    sizes: Sequence[int],
    k: int = 8,
    draws: int = 4,
    seed: int = 0,
) -> dict[Configuration, dict[int, Trial]]:
    """`tried` on models whose groups were left out of what is learnt, without misfit.

    Args:
        responses: complete answers of `M` models.
        configurations: to be tried; those with the same fit share it.
        sizes: numbers of items.
        k: number of folds.
        draws: sets of items a fold.
        seed: of folds and draws.

    Returns:
        by configuration and number of items, the trials of all `M` models, in the folds' order.
    """
    fold = folds(len(responses.models), responses.groups, k, seed)
    parts: dict[Configuration, list[dict[int, Trial]]] = {c: [] for c in configurations}
    for j in np.unique(fold):
        outside = responses.scores[fold == j].astype(np.float64)
        inside = responses.select(np.flatnonzero(fold != j))
        known: dict[tuple[int, float], Knowledge] = {}
        for c in configurations:
            key = (c.dimensions, c.discrimination_sd)
            if key not in known:
                known[key] = learnt(inside, c)
            parts[c].append(tried(known[key], c, outside, sizes, draws, seed))
    return {c: {n: _joined([p[n] for p in parts[c]]) for n in sizes} for c in configurations}


def _joined(parts: Sequence[Trial]) -> Trial:
    return Trial(
        np.concatenate([p.values for p in parts], axis=1),
        np.concatenate([p.stderrs for p in parts], axis=1),
        np.concatenate([p.truth for p in parts]),
        parts[0].unseen,
    )


def selected(
    found: Mapping[Configuration, Mapping[int, Trial]], sizes: Sequence[int] | None = None
) -> Configuration:
    """The first configuration that is at most one standard error worse than the best.

    The loss of a model is its mean absolute error relative to the least at that size, averaged
    over sizes; the standard error is that of the mean difference in loss, model by model. The order
    of the configurations says which is preferred where the models cannot tell.

    Args:
        found: by configuration and size, from `cross_validated`.
        sizes: that count; None for all.

    Source: the one-standard-error rule (Breiman et al. 1984, section 3.4.3).
    """
    counted = tuple(next(iter(found.values()))) if sizes is None else tuple(sizes)
    error = {c: [np.abs(found[c][n].errors).mean(axis=0) for n in counted] for c in found}
    least = [max(1e-12, min(float(error[c][k].mean()) for c in found)) for k in range(len(counted))]
    loss = {
        c: np.mean([e / scale for e, scale in zip(error[c], least, strict=True)], axis=0)
        for c in found
    }
    best = min(found, key=lambda c: float(loss[c].mean()))

    def close(c: Configuration) -> bool:
        worse = loss[c] - loss[best]
        return bool(worse.mean() <= worse.std(ddof=1) / np.sqrt(len(worse)))

    return next(c for c in found if c == best or close(c))


def measured_misfit(trial: Trial) -> float:
    """The misfit that makes 95% intervals cover 95% of the models left out."""
    return misfit(trial.errors.ravel(), trial.stderrs.ravel(), trial.unseen)
