"""The second step of `neighbours`: exact scores in float64, where float32 cannot tell an order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool.comparison.base import Base, Queries, numbered
from batchnorm_tool.comparison.similarity import Score, Sides
from batchnorm_tool.norms import Float64s, row_blocks, widen

if TYPE_CHECKING:
    from batchnorm_tool.comparison.keeping import Best

Int64s = np.ndarray

# Pairs scored at a time: their two sides take 2 MiB in float64 at 128 dimensions.
_PAIRS = 1024


def in_order(
    base: Base, queries: Queries, scores: Sequence[Score], best: Sequence[Best]
) -> list[Int64s]:
    """Put what a filter kept in its exact order; of equal scores the lower row first.

    Args:
        base: The rows.
        queries: The queries.
        scores: What to rank by.
        best: What the filter kept for each score.

    Returns:
        For each score ``int64[q, m]``, rows nearest first; -1 where there are no more.
    """
    groups = [_groups(kept) for kept in best]
    pairs = [_doubtful(kept, group) for kept, group in zip(best, groups, strict=True)]
    exact = _exact_scores(base, queries, list(zip(scores, pairs, strict=True)))
    found = []
    for kept, group, (places, _, _), values in zip(best, groups, pairs, exact, strict=True):
        within = np.zeros(kept.rows.shape)
        within[places] = -values
        order = np.lexsort((kept.rows, within, group), axis=-1)
        found.append(np.take_along_axis(kept.rows, order, 1))
    return found


def _groups(kept: Best) -> Int64s:
    """A number for each row, ``int64[q, m]``; those whose order is in doubt share theirs."""
    with np.errstate(invalid="ignore"):  # where there are no more rows
        gaps = kept.scores[:, :-1].astype(np.float64) - kept.scores[:, 1:]
    apart = ~(gaps <= 2 * kept.errors[:, np.newaxis])
    groups = np.zeros(kept.rows.shape, np.int64)
    np.cumsum(apart, axis=1, out=groups[:, 1:])
    return groups


_Pairs = tuple[tuple[np.ndarray, ...], Int64s, Int64s]


def _doubtful(kept: Best, groups: Int64s) -> _Pairs:
    """What has to be scored exactly: its places in ``[q, m]``, the queries and the rows."""
    shared = np.zeros(groups.shape, bool)
    same = groups[:, 1:] == groups[:, :-1]
    shared[:, 1:] |= same
    shared[:, :-1] |= same
    places = np.nonzero(shared & (kept.rows >= 0))
    return places, places[0], kept.rows[places]


def _exact_scores(
    base: Base, queries: Queries, wanted: Sequence[tuple[Score, _Pairs]]
) -> list[Float64s]:
    """Exact scores of the pairs of each score, from one pass over the base."""
    orders = [np.argsort(rows, kind="stable") for _, (_, _, rows) in wanted]
    values = [np.empty(len(order)) for order in orders]
    if not any(len(order) for order in orders):
        return values
    for first, block in numbered(base.blocks()):
        for (score, (_, owners, rows)), order, into in zip(wanted, orders, values, strict=True):
            start, stop = np.searchsorted(rows, [first, first + len(block)], sorter=order)
            for at in range(start, stop, _PAIRS):
                pairs = order[at : min(at + _PAIRS, stop)]
                into[pairs] = _scored(
                    score, queries.vectors[owners[pairs]], widen(block[rows[pairs] - first])
                )
    return values


def _scored(score: Score, queries: Float64s, rows: Float64s) -> Float64s:
    # A loop over each pair's own numbers alone: equal rows get equal bits, wherever they stand.
    products = np.einsum("ij,ij->i", queries, rows)
    divisors = Sides(score.divisors(queries), score.divisors(rows))
    return score.exact(products, _squares(rows), divisors)


@dataclass(frozen=True)
class Rows:
    """Rows of the base for a search in float64.

    Attributes:
        first: Number of the first one.
        x64: ``float64[n, d]``.
        squares: ``float64[n]``, their products with themselves; not finite where they are not.
        divisors: ``float64[n]``, what they are divided by.
    """

    first: int
    x64: Float64s
    squares: Float64s
    divisors: Float64s

    @classmethod
    def of(cls, x64: Float64s, score: Score, first: int) -> Rows:
        """Measure rows, the first of which has that number."""
        return cls(first, x64, _squares(x64), score.divisors(x64))


class Exact:
    """The search for one query in float64 alone.

    Args:
        query: One query.
        score: What to rank by.
        k: Neighbours wanted.

    Attributes:
        rows: ``int64[k]``, the nearest rows so far, nearest first; -1 where there are no more.
    """

    def __init__(self, query: Queries, score: Score, k: int) -> None:
        self._query, self._score = query, score
        self._divisor = score.divisors(query.vectors)
        self.rows = np.full(k, -1, np.int64)
        self._scores = np.full(k, -np.inf)

    def add(self, rows: Rows) -> None:
        """Look through more rows, which come in order: a later one must be nearer, not as near."""
        scores = self._scored(rows)
        own = int(self._query.rows[0]) - rows.first
        if 0 <= own < len(scores):
            scores[own] = -np.inf
        worth = np.flatnonzero(scores > self._scores[-1])
        if len(worth):
            numbers = np.concatenate([self.rows, worth + rows.first])
            values = np.concatenate([self._scores, scores[worth]])
            order = np.lexsort((numbers, -values))[: len(self.rows)]
            self.rows, self._scores = numbers[order], values[order]

    def _scored(self, rows: Rows) -> Float64s:
        scores = np.empty(len(rows.x64))
        query = self._query.vectors[0]
        with np.errstate(all="ignore"):  # rows that are not finite
            for block in row_blocks(*rows.x64.shape):
                products = np.einsum("ij,j->i", rows.x64[block], query)
                divisors = Sides(self._divisor, rows.divisors[block])
                scores[block] = self._score.exact(products, rows.squares[block], divisors)
        scores[~np.isfinite(rows.squares)] = -np.inf
        return scores


def _squares(x64: Float64s) -> Float64s:
    with np.errstate(all="ignore"):  # rows that are not finite
        return np.asarray(np.einsum("ij,ij->i", x64, x64))
