"""Exact nearest neighbours under several norms, from one pass of products over the base.

One matrix product serves every norm: scores under another norm are the same products, scaled by
column. They are computed in float32, of unit vectors, block by block, and a little more than the
``k`` best of each query are kept (`scores.Filter`). Where rounding may have put two of these in the
wrong order, both are scored again in float64 (`in_order`). Where the bound of the rounding
error cannot exclude that a neighbour was left out, as among many equal rows, the query is done over
in float64 alone (`Exact`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import Protocol

import numpy as np
from threadpoolctl import threadpool_limits

from batchnorm_tool.chunk import numbered
from batchnorm_tool.comparison.scores import Best, Filter, Score
from batchnorm_tool.environment import map_in_order
from batchnorm_tool.norms.norm import Anything, Float64s, widen

Int64s = np.ndarray
_SAMPLE_ROWS = 8192
# 25,000 queries with 100 neighbours under four norms took 1.34 GB at one go.
_KEPT_BYTES = 128 << 20
_KEPT_BYTES_PER_NEIGHBOUR = 120
_FEWEST_QUERIES = 256
# Products have 256 columns at least: 32,000 queries with one neighbour each took 222 MB, not 131.
_MOST_QUERIES = 1 << 14
# Pairs scored at a time: their two sides take 2 MiB in float64 at 128 dimensions.
_PAIRS = 1024
_BLOCK_ROWS = 8192


class Base(Protocol):
    """Rows among which neighbours are looked for; those with NaN or inf are nobody's."""

    @property
    def rows(self) -> int:
        """How many there are."""

    def blocks(self) -> Iterator[Anything]:
        """Yield the rows in order, ``[n, d]`` at a time; each call begins again."""

    def sample(self, rows: int) -> Anything:
        """Return about so many rows, ``[m, d]``, spread evenly; they decide on speed alone."""


@dataclass(frozen=True)
class ArrayBase:
    """Rows in memory, real numbers ``[rows, d]``."""

    array: Anything

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.array)

    def blocks(self) -> Iterator[Anything]:
        """Yield the rows in blocks of 8,192."""
        for start in range(0, len(self.array), _BLOCK_ROWS):
            yield self.array[start : start + _BLOCK_ROWS]

    def sample(self, rows: int) -> Anything:
        """Return rows at equal distances."""
        return self.array[:: -(-len(self.array) // max(rows, 1)) or 1]


@dataclass(frozen=True)
class Queries:
    """Vectors ``float64[q, d]``, finite and not normalized, whose neighbours are looked for.

    ``rows`` are each query's own row of the base, which is left out, ``int64[q]``; -1 for none.
    """

    vectors: Float64s
    rows: Int64s

    @classmethod
    def of(cls, vectors: Anything, rows: Int64s) -> Queries:
        """Return queries from real numbers ``[q, d]``."""
        return cls(widen(vectors), np.asarray(rows, np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Int64s) -> Queries:
        """Return some of the queries, ``int64[m]``."""
        return Queries(self.vectors[places], self.rows[places])


def nearest(queries: Queries, base: Base, wanted: Mapping[str, Score], k: int) -> dict[str, Int64s]:
    """Find the ``k`` nearest rows of each query for each score; of equally near ones the lower.

    The result is, by the name of each score, ``int64[q, k]``, rows nearest first; -1 where there
    are no more. Memory: for each thread one block of the base and 20 MiB of products, and about 128
    MiB for the best rows so far; where there are more queries than fit (2,800 at ``k`` of 100 and
    four norms), they take turns, and the base is read again for each. While it runs, BLAS has one
    thread in the whole process. Not promised: an order among float64 rows whose products overflow.
    """
    scores = list(dict.fromkeys(wanted.values()))
    # Each thread multiplies on its own core: with two threads each, 5.0 CPU seconds became 3.5.
    with threadpool_limits(1, user_api="blas"):
        found = _Search(base, k).run_in_turns(queries, scores)
    by_score = dict(zip(scores, found, strict=True))
    return {label: by_score[score] for label, score in wanted.items()}


@dataclass(frozen=True)
class _Search:
    """A search for the ``k`` nearest rows of a base."""

    base: Base
    k: int

    def run_in_turns(self, queries: Queries, scores: Sequence[Score]) -> list[Int64s]:
        """Do as `run`, of so many queries at a time that what is kept for them stays small."""
        each = _KEPT_BYTES_PER_NEIGHBOUR * self.k * len(scores)
        # Not fewer at a time: the base is read again for each turn.
        size = max(_FEWEST_QUERIES, min(_MOST_QUERIES, _KEPT_BYTES // each))
        turns = [
            self.run(queries.take(np.arange(at, min(at + size, len(queries)))), scores)
            for at in range(0, len(queries), size)
        ]
        return [np.concatenate(found) for found in zip(*turns, strict=True)]

    def run(self, queries: Queries, scores: Sequence[Score]) -> list[Int64s]:
        """Return the nearest rows for each score, ``int64[q, k]``."""
        best = self._filtered(queries, scores, self.base.sample(_SAMPLE_ROWS))
        for at, score in enumerate(scores):
            # The sample may have set a bar too high.
            if len(unsure := np.flatnonzero(best[at].unsure(self.k))):
                (again,) = self._filtered(queries.take(unsure), [score])
                best[at] = best[at].replaced(unsure, again)
        found = in_order(self.base, queries, scores, best)
        for rows, score, kept in zip(found, scores, best, strict=True):
            if len(unsure := np.flatnonzero(kept.unsure(self.k))):
                rows[unsure, : self.k] = self._exact(queries.take(unsure), score)
        return [rows[:, : self.k].copy() for rows in found]

    def _filtered(
        self, queries: Queries, scores: Sequence[Score], sample: Anything | None = None
    ) -> list[Best]:
        filter_ = Filter(queries.vectors, queries.rows, scores, self.k)
        if sample is not None:
            filter_.expect(sample, self.base.rows)
        list(map_in_order(lambda each: filter_.add(*each), numbered(self.base.blocks())))
        return filter_.best()

    def _exact(self, queries: Queries, score: Score) -> Int64s:
        searches = [
            Exact(queries.take(np.array([at])), score, self.k) for at in range(len(queries))
        ]
        for first, block in numbered(self.base.blocks()):
            x64 = widen(block)
            rows = BaseRows(first, x64, _squares(x64), score.divisors(x64))
            list(map_in_order(methodcaller("add", rows), searches))
        return np.stack([each.rows for each in searches])


def in_order(
    base: Base, queries: Queries, scores: Sequence[Score], best: Sequence[Best]
) -> list[Int64s]:
    """Put what a filter kept in its exact order; of equal scores the lower row first."""
    groups = [_groups(kept) for kept in best]
    pairs = [_doubtful(kept, group) for kept, group in zip(best, groups, strict=True)]
    exact = _exact_scores(base, queries, list(zip(scores, pairs, strict=True)))
    found = []
    for kept, group, (places, owners, rows), values in zip(best, groups, pairs, exact, strict=True):
        # Groups keep the order that float32 is sure of; within one, exact scores decide, then rows.
        order = np.lexsort((rows, -values, owners * group.shape[1] + group[places]))
        ordered = kept.rows.copy()
        ordered[places] = rows[order]
        found.append(ordered)
    return found


def _groups(kept: Best) -> Int64s:
    """Return a number for each row, ``int64[q, m]``; those whose order is in doubt share theirs."""
    with np.errstate(invalid="ignore"):  # where there are no more rows
        gaps = kept.scores[:, :-1].astype(np.float64) - kept.scores[:, 1:]
    # Each score may be off by the error, in either direction. As a negation, rows that are not
    # there are apart.
    apart = ~(gaps <= 2 * kept.errors[:, np.newaxis])
    groups = np.zeros(kept.rows.shape, np.int64)
    np.cumsum(apart, axis=1, out=groups[:, 1:])
    return groups


_Pairs = tuple[tuple[np.ndarray, ...], Int64s, Int64s]


def _doubtful(kept: Best, groups: Int64s) -> _Pairs:
    """Return what has to be scored exactly: its places in ``[q, m]``, the queries and the rows."""
    shared = np.zeros(groups.shape, bool)
    same = groups[:, 1:] == groups[:, :-1]
    shared[:, 1:] |= same
    shared[:, :-1] |= same
    places = np.nonzero(shared & (kept.rows >= 0))
    return places, places[0], kept.rows[places]


def _exact_scores(
    base: Base, queries: Queries, wanted: Sequence[tuple[Score, _Pairs]]
) -> list[Float64s]:
    """Return exact scores of the pairs of each score, from one pass over the base."""
    orders = [np.argsort(rows, kind="stable") for _, (_, _, rows) in wanted]
    values = [np.empty(len(order)) for order in orders]
    if not any(len(order) for order in orders):
        return values

    def score_all(first: int, block: Anything) -> None:
        for (score, (_, owners, rows)), order, into in zip(wanted, orders, values, strict=True):
            start, stop = np.searchsorted(rows, [first, first + len(block)], sorter=order)
            for at in range(start, stop, _PAIRS):
                pairs = order[at : min(at + _PAIRS, stop)]
                into[pairs] = _scored(
                    score, queries.vectors[owners[pairs]], widen(block[rows[pairs] - first])
                )

    list(map_in_order(lambda each: score_all(*each), numbered(base.blocks())))
    return values


def _scored(score: Score, queries: Float64s, rows: Float64s) -> Float64s:
    # A loop over each pair's own numbers alone: equal rows get equal bits, wherever they stand.
    products = np.einsum("ij,ij->i", queries, rows)
    return score.exact(products, _squares(rows), score.divisors(queries), score.divisors(rows))


@dataclass(frozen=True)
class BaseRows:
    """Rows ``float64[n, d]`` of the base, from number ``first`` on, for a search in float64."""

    first: int
    x64: Float64s
    squares: Float64s  # products with themselves; not finite where a row is not
    divisors: Float64s


class Exact:
    """The search for one query in float64 alone.

    Its ``rows`` are the nearest so far, ``int64[k]``, nearest first; -1 where there are no more.
    """

    def __init__(self, query: Queries, score: Score, k: int) -> None:
        self._query, self._score = query, score
        self._divisor = score.divisors(query.vectors)
        self.rows = np.full(k, -1, np.int64)
        self._scores = np.full(k, -np.inf)

    def add(self, rows: BaseRows) -> None:
        """Look through more rows, which come in order: a later one must be nearer, not as near."""
        with np.errstate(all="ignore"):  # rows that are not finite
            products = np.einsum("ij,j->i", rows.x64, self._query.vectors[0])
        scores = self._score.exact(products, rows.squares, self._divisor, rows.divisors)
        scores[~np.isfinite(rows.squares)] = -np.inf
        own = int(self._query.rows[0]) - rows.first
        if 0 <= own < len(scores):
            scores[own] = -np.inf
        # Not `>=`: of equal scores the lower row stays, and it came first.
        worth = np.flatnonzero(scores > self._scores[-1])
        if len(worth):
            numbers = np.concatenate([self.rows, worth + rows.first])
            values = np.concatenate([self._scores, scores[worth]])
            order = np.lexsort((numbers, -values))[: len(self.rows)]
            self.rows, self._scores = numbers[order], values[order]


def _squares(x64: Float64s) -> Float64s:
    with np.errstate(all="ignore"):  # rows that are not finite
        return np.asarray(np.einsum("ij,ij->i", x64, x64))
