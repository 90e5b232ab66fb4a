"""How the report writes numbers; None is always a dash."""

from __future__ import annotations

import math

NONE = "\N{EN DASH}"


def percent(value: float | None) -> str:
    """A share as a percentage with one decimal: 0.625 is "62.5%"."""
    return NONE if value is None else f"{100 * value:.1f}%"


def interval(low: float | None, high: float | None) -> str:
    """The interval of a share: "[55.6%, 69.0%]"."""
    if low is None or high is None:
        return NONE
    return f"[{percent(low)}, {percent(high)}]"


def points(value: float | None, sign: bool = True) -> str:
    """A difference of shares in percentage points: 0.085 is "+8.5 percentage points"."""
    if value is None:
        return NONE
    text = f"{100 * value:+.1f}" if sign else f"{100 * abs(value):.1f}"
    return f"{'0.0' if text in ('+0.0', '-0.0') else text} percentage points"


def points_interval(low: float | None, high: float | None) -> str:
    """The interval of a difference: "[+2.1, +14.9]", in percentage points."""
    if low is None or high is None:
        return NONE
    return f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def p_value(p: float | None) -> str:
    """A p-value: "p = 0.012", "p < 0.001"."""
    if p is None:
        return f"p {NONE}"
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.2f}" if p >= 0.1 else f"p = {p:.3f}"


def p_number(p: float) -> str:
    """A p-value in a column of its own: "0.012", "< 0.001"."""
    return p_value(p).removeprefix("p ").removeprefix("= ")


def whole(value: int | None) -> str:
    """A count with thousands separated: "12,000"."""
    return NONE if value is None else f"{value:,}"


def duration(seconds: float | None) -> str:
    """A time span in its two largest units: "1 h 5 min", "4.2 s"."""
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min"


def coefficient(value: float | None) -> str:
    """A merge parameter with three decimals: "-0.125"."""
    return NONE if value is None else f"{value:.3f}"


UNITS = {"loglik": "nats a token", "tokens": "tokens", "seconds": "s", "blocks": "blocks"}
"""The units of what a search may optimise; the other metrics are shares."""


def amount(metric: str, value: float | None, unit: bool = True) -> str:
    """A value of a metric in its own unit: "62.5%", "41.2 tokens", "0.52 s", "-1.234 nats a token".

    Args:
        metric: score, loglik, tokens, seconds, sparsity or blocks.
        value: in the metric's unit; shares in [0, 1].
        unit: whether the unit is written; the sign of a percentage always is.
    """
    if value is None:
        return NONE
    if metric not in UNITS:
        return percent(value)
    text = f"{value:.3f}" if metric == "loglik" else _significant(value)
    return f"{text} {UNITS[metric]}" if unit else text


def amount_interval(metric: str, low: float | None, high: float | None) -> str:
    """The interval of a value in its metric's unit, without naming the unit: "[38.2, 44.1]"."""
    if low is None or high is None:
        return NONE
    return f"[{amount(metric, low, unit=False)}, {amount(metric, high, unit=False)}]"


def indicator(value: float | None) -> str:
    """A quality indicator or a violation with four decimals: "0.4213"."""
    return NONE if value is None else f"{value:.4f}"


def _significant(value: float) -> str:
    """Four significant digits, never an exponent: "0.05213", "41.25", "12,345"."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    decimals = max(1, min(8, 3 - math.floor(math.log10(abs(value)))))
    return f"{value:.{decimals}f}"
