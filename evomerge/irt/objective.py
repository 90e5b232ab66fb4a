"""What a fit minimises, in passes over tiles of the matrix: no array as large as it is made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evomerge.types import FloatArray

_ROWS, _COLUMNS = 256, 1024  # of a tile: 1 MB in float32 stays in the processor's cache
_EXACT = 2**22  # answers up to which passes are in float64


@dataclass(frozen=True)
class Priors:
    """Independent normal priors.

    Attributes:
        ability_precision: of each dimension of an ability, about 0.
        discrimination_mean: of the first dimension's alpha; the others' mean is 0.
        discrimination_sd: standard deviation of alpha.
        difficulty_sd: standard deviation of beta, about 0.
    """

    ability_precision: float = 1.0
    discrimination_mean: float = 1.0
    discrimination_sd: float = 1.0
    difficulty_sd: float = 3.0

    def plain(self) -> dict[str, float]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Gradient:
    """Negative log-posterior and its gradient.

    Attributes:
        loss: nats, summed over all answers.
        ability: `M x D`.
        item: by (alpha, beta), `N x (D + 1)`.
    """

    loss: float
    ability: FloatArray
    item: FloatArray


@dataclass(frozen=True)
class Curvature:
    """Diagonal blocks of the Hessian of the negative log-posterior.

    Attributes:
        ability: of each model, `M x D x D`.
        item: of each item by (alpha, beta), `N x (D + 1) x (D + 1)`.
    """

    ability: FloatArray
    item: FloatArray


class Objective:
    """Negative log-posterior of abilities and items, given the answers.

    A score y in [0, 1] enters as y log P + (1 - y) log(1 - P): the likelihood where scores are 0
    or 1, a quasi-likelihood elsewhere. Missing answers enter nowhere. Sums over tiles are in
    float64; within a tile the arithmetic is float64 for small matrices and float32 for large ones.
    """

    def __init__(self, scores: NDArray[np.float32], priors: Priors) -> None:
        """Takes the answers, `M x N` with NaN where missing; they are not copied."""
        import torch

        self.priors = priors
        self.exact = scores.size <= _EXACT
        self._scores = torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32))
        self._type = torch.float64 if self.exact else torch.float32

    def gradient(self, theta: FloatArray, items: FloatArray) -> Gradient:
        """At abilities `M x D` and items `N x (D + 1)`, alpha then beta."""
        import torch

        loss = 0.0
        by_ability, by_item = np.zeros_like(theta), np.zeros_like(items)
        with torch.inference_mode():
            for rows, columns, y, one, other in self._tiles(theta, items):
                z = one @ other.T
                p = torch.sigmoid(z)
                # log(1 + exp(z)) = max(z, 0) - log(max(P, 1 - P))
                terms = z.clamp(min=0).sub_(torch.maximum(p, 1 - p).log_()).sub_(z.mul_(y))
                error = p.sub_(y).nan_to_num_(nan=0.0)
                by_ability[rows] += (error @ other[:, :-1]).double().numpy()
                by_item[columns] += (error.T @ one).double().numpy()
                loss += float(terms.nan_to_num_(nan=0.0).sum(dim=1).double().sum())
        prior, precision = self._prior(items.shape[1])
        loss += 0.5 * self.priors.ability_precision * float((theta**2).sum())
        loss += 0.5 * float((precision * (items - prior) ** 2).sum())
        return Gradient(
            loss,
            by_ability + self.priors.ability_precision * theta,
            by_item + precision * (items - prior),
        )

    def curvature(self, theta: FloatArray, items: FloatArray) -> Curvature:
        """At the same arrays as `gradient`."""
        import torch

        size = items.shape[1]
        of_ability = np.zeros((len(theta), (size - 1) ** 2))
        of_item = np.zeros((len(items), size**2))
        with torch.inference_mode():
            for rows, columns, y, one, other in self._tiles(theta, items):
                p = torch.sigmoid(one @ other.T)
                weight = p.mul_(1 - p).mul_(~y.isnan())
                of_ability[rows] += (weight @ _squares(other[:, :-1])).double().numpy()
                of_item[columns] += (weight.T @ _squares(one)).double().numpy()
        _, precision = self._prior(size)
        ability = self.priors.ability_precision * np.eye(size - 1)
        return Curvature(
            of_ability.reshape(-1, size - 1, size - 1) + ability,
            of_item.reshape(-1, size, size) + np.diag(precision),
        )

    def pull(self, theta: FloatArray, items: FloatArray, vectors: FloatArray) -> FloatArray:
        """The residuals y - P of all models times `N x k` vectors, `M x k`."""
        import torch

        out = np.zeros((len(theta), vectors.shape[1]))
        right = torch.from_numpy(vectors).to(self._type)
        with torch.inference_mode():
            for rows, columns, y, one, other in self._tiles(theta, items):
                error = y.sub(torch.sigmoid(one @ other.T)).nan_to_num_(nan=0.0)
                out[rows] += (error @ right[columns]).double().numpy()
        return out

    def pull_items(self, theta: FloatArray, items: FloatArray, vectors: FloatArray) -> FloatArray:
        """The residuals y - P of all items times `M x k` vectors, `N x k`."""
        import torch

        out = np.zeros((len(items), vectors.shape[1]))
        right = torch.from_numpy(vectors).to(self._type)
        with torch.inference_mode():
            for rows, columns, y, one, other in self._tiles(theta, items):
                error = y.sub(torch.sigmoid(one @ other.T)).nan_to_num_(nan=0.0)
                out[columns] += (error.T @ right[rows]).double().numpy()
        return out

    def _prior(self, size: int) -> tuple[FloatArray, FloatArray]:
        """Means and precisions of (alpha, beta)."""
        mean, precision = np.zeros(size), np.full(size, self.priors.discrimination_sd**-2.0)
        mean[0] = self.priors.discrimination_mean
        precision[-1] = self.priors.difficulty_sd**-2.0
        return mean, precision

    def _tiles(
        self, theta: FloatArray, items: FloatArray
    ) -> Iterator[tuple[slice, slice, Any, Any, Any]]:
        """Places, answers, and the two factors of the logits: (theta, -1) and (alpha, beta)."""
        import torch

        left = torch.from_numpy(np.column_stack([theta, np.full(len(theta), -1.0)])).to(self._type)
        right = torch.from_numpy(items).to(self._type)
        for i in range(0, len(theta), _ROWS):
            for j in range(0, len(items), _COLUMNS):
                rows, columns = slice(i, i + _ROWS), slice(j, j + _COLUMNS)
                y = self._scores[rows, columns].to(self._type)
                yield rows, columns, y, left[rows], right[columns]


def _squares(x: Any) -> Any:
    """Each row's outer product with itself, flat: `n x k` to `n x k^2`."""
    return (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
