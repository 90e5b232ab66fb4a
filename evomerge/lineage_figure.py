"""A lineage as a picture: the pedigree, and the seeds' shares along the parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import pairwise
from xml.sax.saxutils import escape

import numpy as np

from evomerge.lineage import POSITIONS, Lineage
from evomerge.markdown import printable
from evomerge.types import FloatArray

COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442", "#7a8794",
)  # fmt: skip
"""One a seed (Okabe and Ito's, told apart with any colour vision); then they begin anew."""

_STEP, _ROW, _MARGIN, _RADIUS, _STRIP = 58.0, 74.0, 40.0, 15.0, 96.0
_WIDEST = 14  # members side by side; a wider generation takes several lines


def lineage_svg(lineage: Lineage) -> str:
    """An SVG file: seeds on top, each member below its parents, and a strip at the foot.

    A member's colour is that of the seed with the largest share. A thick line leads to the parent
    that it has more of.
    """
    places, height = _places(lineage)
    width = max(x for x, _ in places.values()) + _MARGIN
    width = max(width, 560.0)
    body = [
        *_links(lineage, places),
        *_nodes(lineage, places),
        *_strip(lineage, height, width),
        *_legend(lineage, height + _STRIP + 62.0, width),
    ]
    total = height + _STRIP + 84.0 + 22.0 * ((len(lineage.seeds) - 1) // _columns(width))
    name = escape(lineage.name(lineage.root))
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {total:.0f}" '
        f'width="{width:.0f}" height="{total:.0f}" role="img" '
        'font-family="system-ui, Segoe UI, Roboto, sans-serif" font-size="11">',
        f"<title>Lineage of candidate {name}</title>",
        f'<rect width="{width:.0f}" height="{total:.0f}" fill="#ffffff"/>',
        *body,
        "</svg>",
    ]) + "\n"  # fmt: skip


def _colour(seed: int) -> str:
    return COLOURS[seed % len(COLOURS)]


def _leader(shares: FloatArray) -> int:
    """The seed with the largest mean share."""
    return int(shares.mean(axis=0).argmax())


def _places(lineage: Lineage) -> tuple[dict[int, tuple[float, float]], float]:
    """Where each member stands, and the height of the pedigree: by the longest way to a seed."""
    depth: dict[int, int] = {}
    rows: dict[int, list[int]] = defaultdict(list)
    for number, member in lineage.members.items():  # parents come first
        one = member.mating
        depth[number] = 0 if one.is_seed else 1 + max(depth[one.first], depth[one.second])
        rows[depth[number]].append(number)
    lines = [
        row[i : i + _WIDEST] for _, row in sorted(rows.items()) for i in range(0, len(row), _WIDEST)
    ]
    widest = max(560.0 - 2 * _MARGIN, _STEP * (max(map(len, lines)) - 1))
    places = {}
    for y, line in enumerate(lines):
        for x, number in enumerate(line):
            across = widest * (x + 0.5) / len(line)
            places[number] = _MARGIN + across, _MARGIN + _ROW * y
    return places, _MARGIN + _ROW * len(lines)


def _links(lineage: Lineage, places: Mapping[int, tuple[float, float]]) -> Iterator[str]:
    for number, member in lineage.members.items():
        one = member.mating
        if one.is_seed:
            continue
        second = one.split * one.share + (1 - one.split) * (1 - one.share)
        x, y = places[number]
        for parent, share in ((one.first, 1 - second), (one.second, second)):
            a, b = places[parent]
            yield (
                f'<path d="M{a:.1f} {b:.1f} C{a:.1f} {(b + y) / 2:.1f} {x:.1f} '
                f'{(b + y) / 2:.1f} {x:.1f} {y:.1f}" fill="none" stroke="#8a95a1" '
                f'stroke-opacity="0.7" stroke-width="{0.6 + 3.4 * share:.2f}"/>'
            )


def _nodes(lineage: Lineage, places: Mapping[int, tuple[float, float]]) -> Iterator[str]:
    for number, member in lineage.members.items():
        x, y = places[number]
        name = escape(lineage.name(number))
        one = member.mating
        fill = _colour(_leader(lineage.shares[number]))
        tip = f"{name}: {escape(member.score)}"
        if not one.is_seed:
            tip += f"; share {one.share:.2f}, split {one.split:.2f}"
        ring = 3 if number == lineage.root else 1
        value = "" if not member.values else f"{next(iter(member.values.values())):.3g}"
        yield (
            f'<g><title>{tip}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="{_RADIUS:.0f}" '
            f'fill="{fill}" stroke="#1c2733" stroke-width="{ring}"/>'
        )
        label = name if one.is_seed else str(member.id)
        if one.is_seed:
            yield f'<text x="{x:.1f}" y="{y - 20:.1f}" text-anchor="middle">{label}</text>'
        else:
            yield (
                f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" stroke="#ffffff" '
                f'stroke-width="3" paint-order="stroke">{label}</text>'
            )
        yield (
            f'<text x="{x:.1f}" y="{y + 28:.1f}" text-anchor="middle" fill="#566270" '
            f'stroke="#ffffff" stroke-width="3" paint-order="stroke">{value}</text></g>'
        )


def _strip(lineage: Lineage, top: float, width: float) -> Iterator[str]:
    """Shares of the seeds on top of one another, interval by interval."""
    shares = lineage.shares[lineage.root]
    span = width - 2 * _MARGIN
    edges = np.flatnonzero((shares[1:] != shares[:-1]).any(axis=1)) + 1
    ends = [0, *edges.tolist(), POSITIONS]
    name = escape(lineage.name(lineage.root))
    yield (
        f'<text x="{_MARGIN:.0f}" y="{top + 2:.1f}">Share of each seed along the parameters '
        f"of {name}, first to last</text>"
    )
    for start, stop in pairwise(ends):
        level = top + 12.0
        for seed, share in enumerate(shares[start].tolist()):
            if share > 0:
                yield (
                    f'<rect x="{_MARGIN + span * start / POSITIONS:.2f}" y="{level:.2f}" '
                    f'width="{span * (stop - start) / POSITIONS:.2f}" '
                    f'height="{share * _STRIP:.2f}" fill="{_colour(seed)}" '
                    'shape-rendering="crispEdges"/>'
                )
                level += share * _STRIP
    for place in (0, 25, 50, 75, 100):
        yield (
            f'<text x="{_MARGIN + span * place / 100:.1f}" y="{top + _STRIP + 28:.1f}" '
            f'text-anchor="middle" fill="#566270">{place}%</text>'
        )


def _columns(width: float) -> int:
    return max(1, int((width - 2 * _MARGIN) / 150))


def _legend(lineage: Lineage, top: float, width: float) -> Iterator[str]:
    shares = lineage.shares[lineage.root].mean(axis=0)
    columns = _columns(width)
    for seed, name in enumerate(lineage.seeds):
        x, y = _MARGIN + 150.0 * (seed % columns), top + 22.0 * (seed // columns)
        yield f'<rect x="{x:.0f}" y="{y - 10:.0f}" width="12" height="12" fill="{_colour(seed)}"/>'
        name = printable(name)
        shown = name if len(name) <= 14 else f"{name[:13]}…"
        yield f'<text x="{x + 18:.0f}" y="{y:.0f}">{escape(shown)} {shares[seed]:.0%}</text>'
