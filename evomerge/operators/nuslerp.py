"""Spherical interpolation between two sources, or between their task vectors."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from evomerge.kernels.lines import column_gram, line_grams
from evomerge.kernels.plans import Blockwise, Combination
from evomerge.kernels.view import View
from evomerge.operators._sphere import arc
from evomerge.operators._varying import by_column, by_line
from evomerge.operators.parameters import Flag, Takes, Weights

_LINEAR = 1 - 1e-6


def nuslerp(
    view: Annotated[View, Takes("optional", 2, 2)],
    *,
    weight: Weights,
    nuslerp_row_wise: Flag = False,
    nuslerp_flatten: Flag = True,
) -> Combination | Blockwise:
    """The point at the share w_2 / (w_1 + w_2) of the arc from the first to the second source.

    With a base, the arc is that between the task vectors, and the base is added. Weights that
    sum to 0 count as equal. Opposite vectors are interpolated linearly, and so are vectors
    whose cosine is within 1e-6 of 1, where it makes no difference. A vector of zeros counts as
    at right angles to the other.

    Args:
        view: two sources, with or without a base.
        weight: one a source; only their ratio counts.
        nuslerp_row_wise: without `nuslerp_flatten`, whether a tensor is interpolated vector by
            vector down its first dimension rather than along its last.
        nuslerp_flatten: whether a tensor is one vector.
    """
    total = weight[0] + weight[1]
    t = weight[1] / total if abs(total) >= 1e-6 else 0.5
    if nuslerp_flatten or len(view.shape) < 2:
        first, second = (float(c) for c in arc(view.gram(), t, _LINEAR))
        return Combination((first, second), base=1.0 - first - second)
    if nuslerp_row_wise:
        one, two = arc(column_gram(view), t, _LINEAR)
        return by_column(view, (one, two), 1.0 - one - two)
    pairs = [arc(gram, t, _LINEAR) for gram in line_grams(view)]
    one, two = (np.concatenate([np.zeros(0), *(p[j] for p in pairs)]) for j in (0, 1))
    return by_line(view, (one, two), 1.0 - one - two)
