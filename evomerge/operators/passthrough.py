"""One model as it is, or scaled."""

from __future__ import annotations

from typing import Annotated

from evomerge.kernels.plans import Combination
from evomerge.kernels.view import View
from evomerge.operators.parameters import Scales, Takes


def passthrough(view: Annotated[View, Takes("never", 1, 1)], *, scale: Scales) -> Combination:
    """scale * x.

    Args:
        view: one model.
        scale: of every element, one number in a sequence; 1 by default.
    """
    return Combination(tuple(scale))
