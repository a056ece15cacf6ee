"""How far two rankings agree, and how unevenly neighbours are spread over the base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from batchnorm_tool.norms import Float64s

Int64s = np.ndarray

# A reader looks at rank r + 1 with this probability: the first ten ranks weigh 86 %.
RBO_PERSISTENCE = 0.9
# Queries at a time: 16 MB of ranks and rows at a depth of 100.
_QUERIES = 2048


def overlap(first: Int64s, second: Int64s, k: int) -> Float64s:
    """Share of the ``k`` nearest rows that two rankings have in common.

    Args:
        first: ``int64[q, m]``, rows nearest first, each once; -1 where there are no more.
        second: The same for the other ranking.
        k: Ranks looked at, at most ``m``.

    Returns:
        ``float64[q]``, 0 to 1. Where both have fewer than ``k`` rows, out of the longer one; 1
        where neither has any.

    Example:
        >>> overlap(np.array([[1, 2, 3]]), np.array([[2, 1, 9]]), 3)
        array([0.66666667])
    """
    shared = _shared_by_depth(first[:, :k], second[:, :k])[:, -1]
    lengths = _lengths(first[:, :k], second[:, :k])
    return np.where(lengths > 0, shared / np.maximum(lengths, 1), 1.0)


def rank_biased_overlap(
    first: Int64s, second: Int64s, persistence: float = RBO_PERSISTENCE
) -> Float64s:
    """Rank-biased overlap of two rankings of equal length, extrapolated beyond their end.

    The mean agreement at all depths, depth ``d`` weighing ``persistence ** (d - 1)``, as if it went
    on beyond the last rank as it was there: equation 30 of Webber, Moffat and Zobel, A Similarity
    Measure for Indefinite Rankings, ACM TOIS 28(4), 2010.

    Args:
        first: ``int64[q, m]``, rows nearest first, each once; -1 where there are no more.
        second: The same for the other ranking.
        persistence: Between 0 and 1, both excluded.

    Returns:
        ``float64[q]``, 0 to 1; 1 where neither has any rows.

    Example:
        >>> rank_biased_overlap(np.array([[1, 2]]), np.array([[2, 1]]), 0.5)
        array([0.5])
    """
    shared, lengths = _shared_by_depth(first, second), _lengths(first, second)
    depths = np.arange(1, shared.shape[1] + 1)
    weights = np.where(depths <= lengths[:, np.newaxis], persistence**depths, 0)
    within = (1 - persistence) / persistence * (shared / depths * weights).sum(axis=1)
    beyond = shared[:, -1] / np.maximum(lengths, 1) * persistence**lengths
    return np.where(lengths > 0, within + beyond, 1.0)


def _shared_by_depth(first: Int64s, second: Int64s) -> Int64s:
    """How many rows the first ``d`` ranks have in common, ``int64[q, m]`` for ``d`` to ``m``."""
    shared = np.empty(first.shape, np.int64)
    for start in range(0, len(first), _QUERIES):
        some = slice(start, start + _QUERIES)
        shared[some] = _shared(first[some], second[some])
    return shared


def _shared(first: Int64s, second: Int64s) -> Int64s:
    """The same at one go: a row is shared from the later of its two ranks on."""
    count, depth = first.shape
    queries = np.repeat(np.arange(count), depth)
    ranks = np.tile(np.arange(depth), count)
    both = np.concatenate([first.ravel(), second.ravel()])
    owners, places = np.concatenate([queries, queries]), np.concatenate([ranks, ranks])
    real = both >= 0
    both, owners, places = both[real], owners[real], places[real]
    order = np.lexsort((places, both, owners))
    both, owners, places = both[order], owners[order], places[order]
    twice = np.flatnonzero((both[1:] == both[:-1]) & (owners[1:] == owners[:-1])) + 1
    shared = np.zeros((count, depth), np.int64)
    np.add.at(shared, (owners[twice], places[twice]), 1)
    return np.cumsum(shared, axis=1)


def _lengths(first: Int64s, second: Int64s) -> Int64s:
    """How many rows the longer one of two rankings has."""
    return np.maximum((first >= 0).sum(axis=1), (second >= 0).sum(axis=1))


@dataclass(frozen=True)
class Hubness:
    """How unevenly neighbours are spread over the base.

    A row's k-occurrence is the number of queries that have it among their ``k`` nearest. A few rows
    that are near to everything ("hubs") make it skewed: Radovanovic, Nanopoulos and Ivanovic, Hubs
    in Space, JMLR 11, 2010.

    Attributes:
        k: Ranks looked at.
        skewness: Of the k-occurrence over all rows of the base, its third standardized moment; NaN
            where all are equal.
        antihubs: Share of rows that are nobody's neighbour, 0 to 1. With ``q`` queries over ``n``
            rows it is at least ``1 - q k / n``.
        largest: The largest k-occurrence.
    """

    k: int
    skewness: float
    antihubs: float
    largest: int

    @classmethod
    def of(cls, rows: Int64s, k: int, base_rows: int) -> Hubness:
        """Measure rankings.

        Args:
            rows: ``int64[q, m]``, nearest first; -1 where there are no more.
            k: Ranks looked at, at most ``m``.
            base_rows: Rows of the base, 1 or more.

        Example:
            >>> Hubness.of(np.array([[0, 1], [0, 2], [0, 3], [0, 4]]), 1, 5).largest
            4
        """
        near = rows[:, :k]
        counts = np.bincount(near[near >= 0].ravel(), minlength=base_rows)
        away = counts - counts.mean()
        spread = float(np.sqrt(np.mean(away**2)))
        skewness = float(np.mean(away**3)) / spread**3 if spread else float("nan")
        return cls(k, skewness, float(np.mean(counts == 0)), int(counts.max()))


def rank_correlation(first: Float64s, second: Float64s) -> float:
    """Spearman's rank correlation, equal values sharing the mean of their ranks.

    Args:
        first: ``float64[n]``, finite.
        second: ``float64[n]``, finite.

    Returns:
        -1 to 1; NaN where all values of one are equal.

    Example:
        >>> round(rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([3.0, 4.0, 9.0])), 12)
        1.0
    """
    ranks = [_mean_ranks(values) for values in (first, second)]
    away = [each - each.mean() for each in ranks] if len(first) else ranks
    sizes = [float(np.sqrt(each @ each)) for each in away]
    if not all(sizes):
        return float("nan")
    return float(np.clip(away[0] @ away[1] / (sizes[0] * sizes[1]), -1, 1))


def _mean_ranks(values: Float64s) -> Float64s:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[places]
