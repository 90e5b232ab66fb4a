"""Model stock: how far to go from the base to the sources' mean (arXiv 2403.19522)."""

from __future__ import annotations

import numpy as np

from evomerge.kernels.lines import line_grams
from evomerge.kernels.plans import Blockwise, Combination
from evomerge.operators._sphere import Floats, correlations
from evomerge.operators._varying import by_line
from evomerge.operators.parameters import Deltas, Flag

_SINGULAR = 1e-5


def model_stock(view: Deltas, *, filter_wise: Flag = False) -> Combination | Blockwise:
    """t * mean of the sources + (1 - t) * base, with t = N c / (1 + (N - 1) c).

    c is the mean cosine between pairs of task vectors; one of zeros has the cosine 0 with the
    others. t is 0 (the base) where the denominator is 0: task vectors that are as opposite as
    they can be. With one source, which is parallel to itself, t is 1.

    Args:
        view: a base and N sources; the method is meant for two or more.
        filter_wise: whether each vector along the last dimension has a t of its own.
    """
    count = len(view.sources)
    if filter_wise and len(view.shape) > 1:
        t = np.concatenate([np.zeros(0), *(_ratio(gram) for gram in line_grams(view))])
        return by_line(view, (t / count,) * count, 1.0 - t)
    whole = float(_ratio(view.gram()[None])[0])
    return Combination((whole / count,) * count, base=1.0 - whole)


def _ratio(gram: Floats) -> Floats:
    """t of each of several Gram matrices, lines x N x N (section 4.2 of the paper)."""
    count = gram.shape[-1]
    if count == 1:
        return np.ones(len(gram))
    pairs = np.triu_indices(count, 1)
    c = correlations(gram)[1][:, pairs[0], pairs[1]].mean(axis=1)
    denominator = 1 + (count - 1) * c
    regular = np.abs(denominator) > _SINGULAR
    return np.divide(count * c, denominator, out=np.zeros_like(c), where=regular)
