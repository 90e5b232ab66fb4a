"""The best linear unbiased prediction of a full score from the answers to some items (kriging).

The answers of a model to all items are a draw of a random vector, whose mean and covariance the
answers of earlier models tell. No model of the items is needed.

Source: Matheron 1963; Royall and Herson 1973 (prediction in finite populations).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from evomerge.errors import ConfigError
from evomerge.estimators.choice import Indices
from evomerge.estimators.clusters import response_features
from evomerge.estimators.estimate import Estimate, checked
from evomerge.types import FloatArray

RIDGES = (0.1, 0.2, 0.4, 0.8, 1.6)
_FOLDS, _DRAWS, _SIZES = 5, 4, (20, 60)
_CAUTION = 10


@dataclass(frozen=True, eq=False)
class Kriging:
    """Predicts the mean of all items as the Gaussian with the models' mean and covariance does.

    Sigma = C^T C / (M - 1) + ridge diag(v), with C the centred answers and v_i = p_i (1 - p_i);
    value = mean + c A^-1 (y - p_S), with A = Sigma_SS and c = Sigma_S1 / N, and
    stderr^2 = inflation (1 Sigma 1 / N^2 - c A^-1 c).

    Attributes:
        means: p, an `N` array.
        centred: C, `M x N`.
        ridge: weight of the items' own variance beside the models' covariance.
        inflation: mean squared error over its prediction, in cross-validation; drawn to 1 as if
            by `_CAUTION` more models.
    """

    means: FloatArray
    centred: FloatArray
    ridge: float
    inflation: float

    @cached_property
    def _score(self) -> FloatArray:
        """The models' full scores without their mean, an `M` array."""
        return np.asarray(self.centred.mean(axis=1))

    @cached_property
    def _own(self) -> FloatArray:
        """The items' own variances, times the ridge; an item that all got right has some too."""
        return self.ridge * np.maximum(self.means * (1 - self.means), 0.01)

    @classmethod
    def of(cls, responses: FloatArray, groups: Sequence[str] | None = None, seed: int = 0) -> Self:
        """Takes the ridge of the least error on models of groups left out.

        Args:
            responses: `M x N` with NaN where missing, which are taken to be the item's mean.
            groups: of the models; None if each is its own.
            seed: of folds and items.

        Raises:
            ConfigError: for fewer than three models.
        """
        if len(responses) < 3:
            raise ConfigError.of(
                "estimator.estimate", f"kriging with the answers of {len(responses)} models",
                "three or more", "Give more models' answers, or take another estimate.",
            )  # fmt: skip
        full = response_features(responses).T
        rng = np.random.default_rng(seed)
        names = (
            np.arange(len(full)) if groups is None else np.unique(groups, return_inverse=True)[1]
        )
        fold = rng.permutation(np.arange(int(names.max()) + 1) % _FOLDS)[names]
        squares = np.zeros((len(RIDGES), 2))
        sets = [
            rng.choice(full.shape[1], min(n, full.shape[1] // 2), replace=False)
            for n in _SIZES
            for _ in range(_DRAWS)
        ]
        for k in np.unique(fold):
            inside, outside = full[fold != k], full[fold == k]
            if len(inside) < 2:
                continue
            for j, ridge in enumerate(RIDGES):
                fitted = cls._fitted(inside, ridge)
                for places in sets:
                    value, variance = fitted.predict(places, outside[:, places])
                    errors = (value - outside.mean(axis=1)) ** 2
                    squares[j] += float(errors.sum()), float((errors / variance).sum())
        best = int(squares[:, 0].argmin())
        per_model = float(squares[best, 1]) / len(sets)
        return cls._fitted(full, RIDGES[best], (per_model + _CAUTION) / (len(full) + _CAUTION))

    @classmethod
    def _fitted(cls, full: FloatArray, ridge: float, inflation: float = 1.0) -> Self:
        means = full.mean(axis=0)
        return cls(means, full - means, ridge, inflation)

    def predict(self, places: Indices, answers: FloatArray) -> tuple[FloatArray, float]:
        """Means of all items for `m` models (from `m x n` answers), and their variance."""
        n_items, models = len(self.means), len(self.centred) - 1
        own, score = self._own, self._score
        known = self.centred[:, places]
        a = known.T @ known / models + np.diag(own[places])
        c = known.T @ score / models + own[places] / n_items
        gain = np.linalg.solve(a, c)
        total = float(score @ score / models + own.sum() / n_items**2)
        value = self.means.mean() + (answers - self.means[places]) @ gain
        return np.asarray(value), max(total - float(c @ gain), 1e-12)

    def estimate(
        self, indices: ArrayLike, answers: ArrayLike, weights: ArrayLike | None = None
    ) -> Estimate:
        """See `Predictor`; weights are not looked at. The value is kept within what is possible."""
        n_items = len(self.means)
        places, y, _ = checked(n_items, indices, answers)
        if len(y) == n_items:
            return Estimate(float(y.mean()), 0.0)
        value, variance = self.predict(places, y[None])
        least = float(y.sum()) / n_items
        most = least + 1 - len(y) / n_items
        error = math.sqrt(self.inflation * variance)
        return Estimate(min(most, max(least, float(value[0]))), error)
