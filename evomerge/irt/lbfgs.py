"""L-BFGS for smooth functions whose values carry rounding noise.

Sums over many answers in float32 stop falling before their gradient has stopped pointing downhill:
a line search on values alone, such as scipy's, then ends some hundredths of a standard error away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evomerge.types import FloatArray

_SLACK = 0.1  # delta of the approximate Wolfe condition
_SHORTENINGS = 30


@dataclass(frozen=True)
class Minimum:
    """Where the search ended.

    Attributes:
        x: the point, an `n` array.
        value: there.
        largest: largest absolute element of the gradient there.
        iterations: steps taken.
    """

    x: FloatArray
    value: float
    largest: float
    iterations: int


def minimise(
    function: Callable[[FloatArray], tuple[float, FloatArray]],
    x: FloatArray,
    tolerance: float,
    max_iterations: int,
    *,
    noise: float = 1e-15,
    memory: int = 20,
) -> Minimum:
    """Goes downhill until no element of the gradient exceeds the tolerance.

    A step is taken if the value falls enough (Armijo), or if it does not rise by more than the
    noise and the slope at the new point says that the minimum along the line was not passed by far
    (the approximate Wolfe condition of Hager and Zhang 2005, SIAM J. Optim. 16, eq. 4.1).

    Args:
        function: value and gradient, an `n` array.
        x: the start; its coordinates scaled so that the Hessian is about the identity.
        tolerance: of the largest absolute element of the gradient.
        max_iterations: steps, at most.
        noise: of values, relative.
        memory: how many steps the approximation of the Hessian remembers.
    """
    value, gradient = function(x)
    steps: deque[tuple[FloatArray, FloatArray, float]] = deque(maxlen=memory)
    taken = 0
    while taken < max_iterations and np.abs(gradient).max() > tolerance:
        direction = _direction(gradient, steps)
        slope = float(gradient @ direction)
        size = 1.0
        for _ in range(_SHORTENINGS):
            new = x + size * direction
            new_value, new_gradient = function(new)
            new_slope = float(new_gradient @ direction)
            if new_value <= value + _SLACK * size * slope or (
                new_value <= value + noise * abs(value) and new_slope <= (2 * _SLACK - 1) * slope
            ):
                break
            # where a parabola through both slopes is level
            level = slope / (slope - new_slope) if new_slope > 0 else 0.5
            size *= min(0.7, max(0.1, level))
        else:
            if not steps:
                break
            steps.clear()  # once more, straight downhill
            continue
        step, change = new - x, new_gradient - gradient
        curvature = float(step @ change)
        if curvature > 1e-12 * float(change @ change):
            steps.append((step, change, curvature))
        x, value, gradient = new, new_value, new_gradient
        taken += 1
    return Minimum(x, value, float(np.abs(gradient).max()), taken)


def _direction(
    gradient: FloatArray, steps: deque[tuple[FloatArray, FloatArray, float]]
) -> FloatArray:
    """The two-loop recursion (Nocedal and Wright 2006, algorithm 7.4)."""
    q = -gradient
    shares = []
    for step, change, curvature in reversed(steps):
        share = float(step @ q) / curvature
        q = q - share * change
        shares.append(share)
    if steps:
        _, change, curvature = steps[-1]
        q = q * (curvature / float(change @ change))
    for (step, change, curvature), share in zip(steps, reversed(shares), strict=True):
        q = q + (share - float(change @ q) / curvature) * step
    return q
