"""What is known of a task's items before a candidate answers, and what follows from it once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from evomerge.errors import ConfigError
from evomerge.estimators.clusters import response_features
from evomerge.estimators.irt_estimates import model_error
from evomerge.estimators.kriging import Kriging
from evomerge.estimators.population import Population
from evomerge.irt.ability import PRECISION, abilities
from evomerge.irt.model import ItemModel
from evomerge.types import FloatArray

MISFIT = 0.02
"""Standard deviation of a fitted model's error in a full score, where it was not measured."""


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What is known of one task's items before a candidate answers.

    Attributes:
        items: ids of the `N` items.
        model: of these items, in any order and with others among them; None if not fitted.
        responses: earlier models' answers, NaN where missing, `M x N`.
        sources: the sources' complete answers, `K x N`.
        features: embeddings of the items' texts, `N x F`.
        groups: what each earlier model belongs to, `M` names.
        misfit: standard deviation of the model's error in a full score (`calibration`); None takes
            `MISFIT`.

    Raises:
        ConfigError: for arrays that do not fit the items, or items unknown to the fit.
    """

    items: tuple[str, ...]
    model: ItemModel | None = None
    responses: FloatArray | None = None
    sources: FloatArray | None = None
    features: FloatArray | None = None
    groups: tuple[str, ...] | None = None
    misfit: float | None = None

    def __post_init__(self) -> None:
        n = len(self.items)
        if self.model is not None and self.model.items != self.items:
            object.__setattr__(self, "model", self.model.at(self.model.index(self.items)))
        for name, axis in (("responses", 1), ("sources", 1), ("features", 0)):
            array = getattr(self, name)
            if array is None:
                continue
            array = np.asarray(array, dtype=np.float64)
            object.__setattr__(self, name, array)
            if array.ndim != 2 or array.shape[axis] != n or 0 in array.shape:
                raise ConfigError.of(
                    f"estimator.{name}", f"an array of shape {array.shape}", f"{n} items",
                    "Give answers and features of the task's items, in their order.",
                )  # fmt: skip
        if self.sources is not None and np.isnan(self.sources).any():
            raise ConfigError.of(
                "estimator.sources", f"{int(np.isnan(self.sources).sum())} missing answers",
                "complete answers of every source", "Evaluate the sources on all items.",
            )  # fmt: skip
        if self.groups is not None and len(self.groups) != self.n_models:
            raise ConfigError.of(
                "estimator.groups", f"{len(self.groups)} groups",
                f"{self.n_models}, one an earlier model", "Name each model's group.",
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.items)

    @property
    def n_models(self) -> int:
        """Number of earlier models, M."""
        return 0 if self.responses is None else len(self.responses)

    def need(self, name: str, wanted_by: str) -> None:
        """Checks that something is known.

        Raises:
            ConfigError: if it is not.
        """
        if getattr(self, name) is None:
            raise ConfigError.of(
                f"estimator.{wanted_by}", f"no {name}", _NEEDED[name][0], _NEEDED[name][1]
            )

    @property
    def error(self) -> float:
        """The misfit, measured or taken for granted."""
        return MISFIT if self.misfit is None else self.misfit

    @cached_property
    def abilities(self) -> FloatArray:
        """Abilities of the earlier models, then of the sources, `(M + K) x D`."""
        assert self.model is not None
        rows = [a for a in (self.responses, self.sources) if a is not None]
        if not rows:
            return np.zeros((0, self.model.dimensions))
        found = abilities(self.model, np.concatenate(rows), 1.0)
        return np.array([each.mean for each in found])

    @cached_property
    def endpoints(self) -> FloatArray:
        """Abilities of the sources, `K x D`."""
        assert self.model is not None and self.sources is not None
        return np.array([found.mean for found in abilities(self.model, self.sources, PRECISION)])

    @cached_property
    def population(self) -> Population:
        """Where a candidate's ability may be."""
        assert self.model is not None
        return Population.of(self.model, self.abilities)

    @cached_property
    def kriging(self) -> Kriging:
        """Mean and covariance of the earlier models' answers."""
        assert self.responses is not None
        return Kriging.of(self.responses, self.groups)

    @cached_property
    def bias_and_variance(self) -> tuple[float, float]:
        """b and v of gp-IRT; the misfit and 1/4 if there are no earlier models."""
        assert self.model is not None
        if self.responses is None:
            return self.error, 0.25
        return model_error(self.model, self.responses)

    @cached_property
    def ease(self) -> FloatArray:
        """Share of right answers to each item, as far as known, an `N` array."""
        if self.responses is not None:
            return np.asarray(response_features(self.responses).mean(axis=1))
        if self.model is not None:
            return np.asarray(self.model.probability(self.population.theta[:128]).mean(axis=0))
        if self.sources is not None:
            return np.asarray(self.sources.mean(axis=0))
        raise ConfigError.of(
            "estimator", "neither responses nor a model nor sources", "one of them",
            "Strata of difficulty take answers of earlier models, fitted items or source answers.",
        )  # fmt: skip


_NEEDED = {
    "model": ("a file of fitted items", "Fit one: python -m evomerge irt fit MATRIX --out FILE."),
    "responses": ("answers of earlier models", "Give a matrix of answers."),
    "sources": ("complete answers of the sources", "Evaluate the sources on all items."),
    "features": ("embeddings of the items' texts", "Name a local model to embed them."),
}
