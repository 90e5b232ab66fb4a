"""Quality indicators against closed forms and brute force."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.report.objectives import Objective, losses
from evomerge.report.quality import (
    Box,
    hypervolume,
    igd,
    igd_plus,
    knee,
    nondominated,
    share_steps,
)

EMPTY = np.zeros((0, 2))


def grids(dimensions: int) -> st.SearchStrategy[np.ndarray]:
    """Points on a grid of 0 to 6, whose dominated cells can be counted; with duplicates."""
    point = st.tuples(*[st.integers(0, 6)] * dimensions)
    return st.lists(point, min_size=1, max_size=8).map(lambda rows: np.array(rows, dtype=float))


def counted(points: np.ndarray, reference: int) -> int:
    """Brute force: how many unit cells below the reference some point dominates."""
    cells = product(range(reference), repeat=points.shape[1])
    return sum(bool((points <= np.array(cell)).all(axis=1).any()) for cell in cells)


@settings(max_examples=60, deadline=None)
@given(st.one_of(grids(2), grids(3)))
def test_hypervolume_counts_dominated_cells(points: np.ndarray) -> None:
    reference = np.full(points.shape[1], 5.0)
    assert hypervolume(points, reference) == pytest.approx(counted(points, 5))


def test_hypervolume_by_hand() -> None:
    one = np.array([1.0, 1.0])
    assert hypervolume(np.array([[0.25, 0.5]]), one) == pytest.approx(0.75 * 0.5)
    assert hypervolume(np.array([[0.25, 0.5], [0.25, 0.5]]), one) == pytest.approx(0.375)
    assert hypervolume(np.array([[0.5, 0.0], [0.0, 0.5]]), one) == pytest.approx(0.75)
    assert hypervolume(np.array([[1.0, 0.0], [2.0, -3.0]]), one) == 0.0
    assert hypervolume(EMPTY, one) == 0.0


@settings(max_examples=60, deadline=None)
@given(st.one_of(grids(2), grids(3)))
def test_nondominated_by_brute_force(points: np.ndarray) -> None:
    expected = [not any((q <= p).all() and (q < p).any() for q in points) for p in points]
    assert nondominated(points).tolist() == expected


def test_nondominated_of_nothing() -> None:
    assert nondominated(EMPTY).tolist() == []


@settings(max_examples=40, deadline=None)
@given(grids(3), grids(3))
def test_distances_by_brute_force(points: np.ndarray, front: np.ndarray) -> None:
    nearest = [min(math.dist(p, z) for p in points) for z in front]
    assert igd(points, front) == pytest.approx(sum(nearest) / len(front))
    lacking = [min(math.hypot(*np.maximum(p - z, 0)) for p in points) for z in front]
    assert igd_plus(points, front) == pytest.approx(sum(lacking) / len(front))


def test_distances_of_nothing_are_unknown() -> None:
    point = np.array([[0.5, 0.5]])
    assert igd(EMPTY, point) is igd_plus(EMPTY, point) is igd(point, EMPTY) is None
    assert igd(point, point) == igd_plus(point, point) == 0.0


def test_share_is_of_the_box_between_reference_and_ideal() -> None:
    """A maximised share and minimised tokens: ideal (0.8, 20), worst (0.4, 60)."""
    objectives = [Objective("acc"), Objective("len", metric="tokens", minimised=True)]
    points = losses(objectives, [(0.8, 60.0), (0.6, 30.0), (0.4, 20.0)])
    box = Box.around(points)
    # (0.6, 30) dominates half of the range of acc and three quarters of that of len
    assert box.share(points) == pytest.approx(0.5 * 0.75)
    wide = Box.around(points, losses(objectives, [(0.0, 100.0)])[0])
    # cells of the box of 0.8 x 80: by acc up to 0.4, 0.6 and 0.8
    assert wide.share(points) == pytest.approx((0.4 * 80 + 0.2 * 70 + 0.2 * 40) / (0.8 * 80))
    assert wide.share(EMPTY) == 0.0


@settings(max_examples=40, deadline=None)
@given(
    grids(2), st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), st.tuples(*[st.floats(-5, 5)] * 2)
)
def test_share_does_not_depend_on_units(
    points: np.ndarray, scale: tuple[float, float], shift: tuple[float, float]
) -> None:
    moved = points * scale + shift
    assert Box.around(moved).share(moved) == pytest.approx(Box.around(points).share(points))


def test_share_of_degenerate_boxes() -> None:
    one = np.array([[3.0, 4.0]])
    assert Box.around(one).share(one) == 1.0
    flat = np.array([[3.0, 4.0], [3.0, 5.0]])
    assert Box.around(flat).share(flat) == pytest.approx(1.0)
    assert Box.around(flat).share(flat[1:]) == 0.0
    assert Box.around(flat, np.array([2.0, 9.0])).share(flat) == 0.0


def test_knee() -> None:
    bulging = np.array([[0.0, 1.0], [0.2, 0.3], [1.0, 0.0], [0.6, 0.1]])
    assert knee(bulging) == 1
    assert knee(bulging * [1, 1000]) == 1
    straight = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    assert knee(straight) is None
    assert knee(bulging[:2]) is knee(EMPTY) is None
    assert knee(np.array([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])) is None


@settings(max_examples=30, deadline=None)
@given(grids(2))
def test_steps_are_the_hypervolume_of_everything_so_far(points: np.ndarray) -> None:
    box = Box.around(points, np.array([7.0, 7.0]))
    path: list[np.ndarray | None] = [None, *points, None]
    steps = share_steps(path, box)
    for place in range(len(path)):
        so_far = np.array([p for p in path[: place + 1] if p is not None]).reshape(-1, 2)
        known = [share for at, share in steps if at <= place]
        assert (known[-1] if known else 0.0) == pytest.approx(box.share(so_far))
    assert [share for _, share in steps] == sorted({share for _, share in steps})
