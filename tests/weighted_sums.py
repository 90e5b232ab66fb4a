"""Weighted sums of values that are scaled to their range, for the tests of picking."""

from __future__ import annotations


def by_hand(rows: list[dict[str, float]], weights: dict[str, float]) -> list[float]:
    ends = {n: (min(r[n] for r in rows), max(r[n] for r in rows)) for n in rows[0]}
    shares = {n: w / sum(weights.values()) for n, w in weights.items()}
    return [
        sum(
            s * (row[n] - ends[n][0]) / (ends[n][1] - ends[n][0])
            for n, s in shares.items()
            if ends[n][1] > ends[n][0]
        )
        for row in rows
    ]
