"""Changes of scale, origin and axes that leave every probability as it is.

theta -> A theta + c, alpha -> A^-T alpha, beta -> beta + alpha' . c: the likelihood does not see
them, so a search on the whole posterior creeps along them, led by the priors alone. The priors know
of abilities and items only their first and second moments; the best change is found from those.
"""

from __future__ import annotations

import numpy as np

from evomerge.irt.objective import Priors
from evomerge.types import FloatArray


def settle(theta: FloatArray, items: FloatArray, priors: Priors) -> tuple[FloatArray, FloatArray]:
    """Moves to where the priors are highest at the same likelihood, to the nearest such mode.

    Takes and gives abilities `M x D` and items `N x (D + 1)`.
    """
    from scipy.optimize import minimize

    d = theta.shape[1]
    mean = np.zeros(d)
    mean[0] = priors.discrimination_mean
    of_alpha, of_beta = priors.discrimination_sd**-2.0, priors.difficulty_sd**-2.0
    alpha, beta = items[:, :-1], items[:, -1]
    theta_sum, theta_square = theta.sum(axis=0), theta.T @ theta
    alpha_sum, alpha_square = alpha.sum(axis=0), alpha.T @ alpha
    crossed, m = alpha.T @ beta, len(theta)

    def value(x: FloatArray) -> tuple[float, FloatArray]:
        """The part of the negative log-prior that changes, by (A, e) with c = A e."""
        a, e = x[: d * d].reshape(d, d), x[d * d :]
        inverse = np.linalg.inv(a)
        # theta' = A (theta + e), alpha' = A^-T alpha, beta' = beta + alpha . e
        second = theta_square + np.outer(theta_sum, e) + np.outer(e, theta_sum) + m * np.outer(e, e)
        gram = inverse.T @ alpha_square @ inverse
        total = 0.5 * priors.ability_precision * float(np.trace(a @ second @ a.T))
        total += 0.5 * of_alpha * float(np.trace(gram) - 2 * mean @ inverse.T @ alpha_sum)
        total += of_beta * float(crossed @ e + 0.5 * e @ alpha_square @ e)
        by_a = priors.ability_precision * (a @ second)
        by_a -= of_alpha * (gram - np.outer(inverse.T @ alpha_sum, mean)) @ inverse.T
        pulled = a.T @ a @ (theta_sum + m * e)
        by_e = priors.ability_precision * pulled + of_beta * (crossed + alpha_square @ e)
        return total, np.concatenate([by_a.ravel(), by_e])

    start = np.concatenate([np.eye(d).ravel(), np.zeros(d)])
    found = minimize(value, start, jac=True, method="BFGS", options={"gtol": 1e-8 * m})
    if not np.isfinite(found.x).all() or found.fun > value(start)[0]:
        return theta, items
    a, e = found.x[: d * d].reshape(d, d), found.x[d * d :]
    moved = np.column_stack([alpha @ np.linalg.inv(a), beta + alpha @ e])
    return (theta + e) @ a.T, moved
