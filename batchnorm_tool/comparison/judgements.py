"""Who is relevant to whom: rows of the same class, or rows that people or logs have graded.

Both kinds of judgements are of q queries among the n rows of a base. A query that is itself a row
of the base is never judged relevant to itself.

- ``judged``, ``bool[q]``: queries with judgements; the others are left out of every mean.
- ``relevant``, ``int64[q]``: the number of rows with a grade above 0. A judged query may have none:
  every metric is 0 for it, and it counts.
- ``grades(rows)``: grades ``float64[q, k]`` of neighbours ``int64[q, k]``; 0 for rows that are not
  relevant, not judged, or -1, which is none.
- ``ideal(k)``: the ``k`` largest grades of each query, ``float64[q, k]``, descending, then zeros.
- ``take(queries)``: judgements of some queries, ``int64[m]``, over the same base.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from batchnorm_tool.norms.norm import Float64s

Int64s: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class LabelJudgements:
    """Rows of the query's class are relevant, all with grade 1; every query is judged.

    Labels are codes of classes, below 0 for one that no row of the base has; ``query_rows`` are the
    base rows that are the queries themselves, of the same class, or -1. Never more than a number
    for each query and neighbour: a class may hold millions of rows.
    """

    query_labels: Int64s
    base_labels: Int64s
    query_rows: Int64s

    @property
    def judged(self) -> Bools:
        """Every query."""
        return np.ones(len(self.query_labels), np.bool_)

    @cached_property
    def relevant(self) -> Int64s:
        """Other rows of the query's class; 0 where it is alone."""
        sizes = np.bincount(self.base_labels)
        present = (self.query_labels >= 0) & (self.query_labels < len(sizes))
        counts = np.zeros(len(self.query_labels), np.int64)
        counts[present] = sizes[self.query_labels[present]]
        return counts - (self.query_rows >= 0)

    def grades(self, rows: Int64s) -> Float64s:
        """Return 1 for other rows of the query's class."""
        same = self.base_labels[rows] == self.query_labels[:, None]
        same &= (rows >= 0) & (rows != self.query_rows[:, None])
        return same.astype(np.float64)

    def ideal(self, k: int) -> Float64s:
        """Return as many ones as there are relevant rows."""
        return (np.arange(k) < self.relevant[:, None]).astype(np.float64)

    def take(self, queries: Int64s) -> LabelJudgements:
        """Return judgements of some queries."""
        labels, rows = self.query_labels[queries], self.query_rows[queries]
        return LabelJudgements(labels, self.base_labels, rows)


@dataclass(frozen=True, eq=False)
class GradedJudgements:
    """Rows are relevant as graded; a query without a single judgement is not judged.

    Items that the base does not hold count as relevant and belong to the ideal ranking, like
    documents that no run retrieves. The judgements of query ``i`` are those from ``offsets[i]`` to
    ``offsets[i + 1]``: base rows, each at most once for a query and never the query itself, -1 for
    one that the base does not hold; and their grades, 0 for judged and not relevant.
    """

    offsets: Int64s
    items: Int64s
    item_grades: Float64s

    @property
    def judged(self) -> Bools:
        """Queries with at least one judgement, of whatever grade."""
        return self._lengths > 0

    @cached_property
    def relevant(self) -> Int64s:
        """Items of a grade above 0, those that the base does not hold among them."""
        counts = np.bincount(self._queries[self.item_grades > 0], minlength=len(self._lengths))
        return counts.astype(np.int64)

    def grades(self, rows: Int64s) -> Float64s:
        """Look up grades by bisection, in O(log m) for each neighbour."""
        codes, grades = self._by_code
        if not codes.size:
            return np.zeros(rows.shape)
        wanted = np.arange(len(rows))[:, None] * self._stride + rows
        places = np.minimum(np.searchsorted(codes, wanted), codes.size - 1)
        # A row outside of the stride would be taken for one of another query.
        found = (codes[places] == wanted) & (rows >= 0) & (rows < self._stride)
        return np.where(found, grades[places], 0.0)

    def ideal(self, k: int) -> Float64s:
        """Return the largest grades."""
        descending = np.lexsort((-self.item_grades, self._queries))
        ranks = np.arange(len(self.items)) - np.repeat(self.offsets[:-1], self._lengths)
        shown = ranks < k
        best = np.zeros((len(self._lengths), k))
        # Sorting moved items within their query only: place by place, the query is the same.
        best[self._queries[shown], ranks[shown]] = self.item_grades[descending][shown]
        return best

    def take(self, queries: Int64s) -> GradedJudgements:
        """Return judgements of some queries."""
        lengths = self._lengths[queries]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        moves = np.repeat(self.offsets[queries] - offsets[:-1], lengths)
        places = np.arange(offsets[-1]) + moves
        return GradedJudgements(offsets, self.items[places], self.item_grades[places])

    @cached_property
    def _lengths(self) -> Int64s:
        return np.diff(self.offsets)

    @cached_property
    def _queries(self) -> Int64s:
        """The query of each judgement."""
        return np.repeat(np.arange(len(self._lengths)), self._lengths)

    @cached_property
    def _stride(self) -> int:
        return int(self.items.max(initial=-1)) + 1

    @cached_property
    def _by_code(self) -> tuple[Int64s, Float64s]:
        """Codes of (query, row) in ascending order, with their grades."""
        held = np.flatnonzero(self.items >= 0)
        codes = self._queries[held] * self._stride + self.items[held]
        order = np.argsort(codes)
        return codes[order], self.item_grades[held[order]]


Judgements: TypeAlias = LabelJudgements | GradedJudgements
