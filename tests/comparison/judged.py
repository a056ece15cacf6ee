"""Judgements written as dictionaries, and rankings at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batchnorm_tool.comparison.judgements import GradedJudgements

# What each query's items are graded; rows of -2 and below are items that the base does not hold.
Grades = Sequence[dict[int, float]]


def graded(grades: Grades) -> GradedJudgements:
    pairs = [pair for of_query in grades for pair in of_query.items()]
    offsets = np.cumsum([0, *(len(of_query) for of_query in grades)])
    items = np.array([max(item, -1) for item, _ in pairs], np.int64)
    return GradedJudgements(offsets, items, np.array([grade for _, grade in pairs], np.float64))


def random_grades(rng: np.random.Generator, queries: int, base: int) -> list[dict[int, float]]:
    """Queries of every kind: unjudged, without relevant rows, with items that are nowhere."""
    grades: list[dict[int, float]] = [
        {
            int(item): float(rng.integers(4))
            for item in rng.choice(np.arange(-6, base), rng.integers(1, 25), replace=False)
            if item != -1
        }
        for _ in range(queries)
    ]
    for query in range(0, queries, 5):
        grades[query] = {}
    for query in range(1, queries, 5):
        grades[query] = dict.fromkeys(grades[query], 0.0)
    for query in range(2, queries, 5):
        grades[query] = {-2: 3.0, -3: 1.0}
    return grades


def random_rows(rng: np.random.Generator, queries: int, base: int, k: int) -> np.ndarray:
    """Rankings without repetition; some of them end early."""
    rows = np.array([rng.permutation(base)[:k] for _ in range(queries)])
    rows[np.arange(k) >= rng.integers(0, 2 * k, (queries, 1))] = -1
    return rows
