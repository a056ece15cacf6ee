"""Agreement of rankings against loops over their definitions, and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from batchnorm_tool.comparison.metrics import (
    RBO_PERSISTENCE,
    hubness,
    overlap,
    rank_biased_overlap,
    rank_correlation,
)
from tests.comparison.judged import random_rows

few_values = hnp.arrays(np.float64, st.integers(3, 30), elements=st.integers(0, 4).map(float))


def rows_of(ranking: np.ndarray) -> list[int]:
    """A ranking without what stands for no more rows."""
    return [row for row in ranking.tolist() if row >= 0]


def equation_32(one: list[int], other: list[int], p: float) -> float:
    """Extrapolated RBO as Webber et al. 2010 write it, for lists that may differ in length."""
    short, long = sorted((one, other), key=len)
    s, length = len(short), len(long)
    shared = [0] + [len(set(short[:d]) & set(long[:d])) for d in range(1, length + 1)]
    within = sum(shared[d] / d * p**d for d in range(1, length + 1))
    within += sum(shared[s] * (d - s) / (s * d) * p**d for d in range(s + 1, length + 1))
    beyond = ((shared[length] - shared[s]) / length + shared[s] / s) * p**length
    return (1 - p) / p * within + beyond


@pytest.fixture(scope="module")
def rankings() -> tuple[np.ndarray, np.ndarray]:
    """120 queries, 12 ranks of 20 rows, some of them fewer: as many in both."""
    rng = np.random.default_rng(0)
    one = np.array([rng.permutation(20)[:12] for _ in range(120)])
    other = np.array([rng.permutation(20)[:12] for _ in range(120)])
    other[::4] = one[::4]
    ends = np.arange(12) >= rng.integers(1, 24, (120, 1))
    return np.where(ends, -1, one), np.where(ends, -1, other)


@pytest.mark.parametrize("k", [1, 5, 12])
def test_overlap_is_the_share_of_common_rows(
    rankings: tuple[np.ndarray, np.ndarray], k: int
) -> None:
    expected = [
        len(set(rows_of(one[:k])) & set(rows_of(other[:k]))) / len(rows_of(one[:k]))
        for one, other in zip(*rankings, strict=True)
    ]
    np.testing.assert_allclose(overlap(*rankings, [k])[:, 0], expected, rtol=1e-15)
    assert len(set(expected)) > 1


def test_overlap_of_rankings_of_different_length_is_out_of_the_longer_one() -> None:
    one, other = np.array([[4, 5, -1, -1]]), np.array([[5, 7, 8, -1]])
    assert overlap(one, other, [4, 3, 1]).tolist() == [[1 / 3, 1 / 3, 0]]
    assert overlap(other, one, [2]).tolist() == [[1 / 2]]


@pytest.mark.parametrize("persistence", [RBO_PERSISTENCE, 0.5, 0.98])
def test_rank_biased_overlap_is_equation_32(
    rankings: tuple[np.ndarray, np.ndarray], persistence: float
) -> None:
    expected = [
        equation_32(rows_of(one), rows_of(other), persistence)
        for one, other in zip(*rankings, strict=True)
    ]
    found = rank_biased_overlap(*rankings, persistence)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("one", "other", "persistence", "expected"),
    [
        # Equation 30 by hand: agreements 0, 1, 1, 3/4.
        ("abcd", "bace", 0.9, 0.1 / 0.9 * (0.81 + 0.729 + 0.75 * 0.6561) + 0.75 * 0.6561),
        ("ab", "ba", 0.5, 0.5),
        ("abc", "abc", 0.9, 1.0),
        ("abc", "xyz", 0.9, 0.0),
        # The same first row alone: all of the weight but that of deeper ranks.
        ("abc", "axy", 0.5, 0.5 + 0.25 / 2 + 0.125 / 3 + 0.125 / 3),
    ],
    ids=["four", "swapped", "same", "disjoint", "first"],
)
def test_rank_biased_overlap_of_known_rankings(
    one: str, other: str, persistence: float, expected: float
) -> None:
    rows = [np.array([[ord(letter) for letter in ranking]]) for ranking in (one, other)]
    assert rank_biased_overlap(*rows, persistence).item() == pytest.approx(expected, abs=1e-14)


def test_nothing_equals_nothing() -> None:
    nothing = np.full((2, 3), -1)
    assert overlap(nothing, nothing, [2]).tolist() == [[1], [1]]
    assert rank_biased_overlap(nothing, nothing).tolist() == [1, 1]
    something = np.array([[1, 2, -1], [3, -1, -1]])
    assert overlap(something, nothing, [3]).tolist() == [[0], [0]]
    assert rank_biased_overlap(something, nothing).tolist() == [0, 0]


def test_hubness_agrees_with_a_loop_and_scipy() -> None:
    rows = random_rows(np.random.default_rng(1), 200, 50, 8)
    for k in (1, 5, 8):
        counts = np.zeros(60)
        for ranking in rows:
            for row in rows_of(ranking[:k]):
                counts[row] += 1
        found = hubness(rows, k, 60)
        assert found["skewness"] == pytest.approx(stats.skew(counts), rel=1e-12)
        assert found["antihubs"] == np.mean(counts == 0)
        assert (found["k"], found["largest"]) == (k, counts.max())


def test_equal_occurrences_have_no_skewness() -> None:
    found = hubness(np.array([[1], [2], [0]]), 1, 3)
    assert found == {"k": 1, "skewness": None, "antihubs": 0, "largest": 1}


@given(data=st.data(), one=few_values)
def test_rank_correlation_is_scipys_with_ties(data: st.DataObject, one: np.ndarray) -> None:
    numbers = st.integers(0, 4).map(float)
    other = data.draw(hnp.arrays(np.float64, one.shape, elements=numbers))
    found = rank_correlation(one, other)
    if np.ptp(one) and np.ptp(other):
        assert found == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-14)
    else:
        assert found is None


def test_rank_correlation_stays_within_one() -> None:
    rng = np.random.default_rng(0)
    for size in range(2, 60):
        one = rng.integers(0, size, size).astype(float)
        assert (rank_correlation(one, one) or 0) <= 1


def test_rank_correlation_of_nothing_is_unknown() -> None:
    assert rank_correlation(np.array([]), np.array([])) is None
