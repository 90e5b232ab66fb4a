"""What each model of the zoo is trained on, in which order, and how far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One run of gradient descent.

    Attributes:
        name: names the stage in the progress report and seeds its data.
        mix: kinds of problems (see `problems.KINDS`) and their relative weights.
        steps: number of updates.
        rate: highest learning rate.
        warmup: updates until the highest rate is reached.
        embedding_factor: multiplies the rate of the embedding.
        batch: problems an update.
    """

    name: str
    mix: Mapping[str, float]
    steps: int
    rate: float
    warmup: int = 20
    embedding_factor: float = 1.0
    batch: int = 40


BASE = (
    Stage(
        "base: reading, one-digit sums, translation",
        {
            "english_read": 1.0,
            "plain_read": 1.0,
            "english_digit": 1.0,
            "plain_digit": 1.0,
            "english_to_plain": 0.5,
            "plain_to_english": 0.5,
        },
        steps=2200,
        rate=3e-3,
        warmup=100,
        batch=28,
    ),
    Stage(
        "base: two-digit sums without carry",
        {
            "english_easy": 0.7,
            "plain_easy": 0.7,
            "mixed_easy": 1.0,
            "equation": 0.4,
            "english_digit": 0.4,
            "plain_digit": 0.4,
            "english_to_plain": 0.3,
            "plain_to_english": 0.3,
            "english_read": 0.2,
            "plain_read": 0.2,
            "sort": 0.2,
        },
        steps=1000,
        rate=2e-3,
        warmup=50,
    ),
)

SPECIALISTS = {
    "math": Stage(
        "math: carrying, in English and some plain Japanese",
        {
            "english_carry": 1.0,
            "mixed_carry": 0.5,
            "plain_carry": 0.4,
            "english_easy": 0.4,
            "mixed_easy": 0.3,
            "plain_easy": 0.2,
            "english_to_plain": 0.1,
            "plain_to_english": 0.1,
            "plain_read": 0.1,
            "sort": 0.1,
        },
        steps=800,
        rate=7e-4,
        embedding_factor=0.3,
    ),
    "japanese": Stage(
        "japanese: polite forms, without carry",
        {
            "polite_easy": 0.7,
            "mixed_polite_easy": 0.7,
            "polite_digit": 0.2,
            "polite_read": 0.2,
            "plain_to_polite": 0.7,
            "polite_to_plain": 0.3,
            "english_to_polite": 0.3,
            "polite_to_english": 0.3,
            "plain_easy": 0.2,
            "english_easy": 0.2,
            "plain_read": 0.1,
        },
        steps=450,
        rate=1e-4,
        embedding_factor=30.0,
    ),
    "sorter": Stage("sorter: digits in order", {"sort": 1.0}, steps=150, rate=5e-4),
}
