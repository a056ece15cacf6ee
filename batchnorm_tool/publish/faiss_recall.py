"""How many of the true neighbours an index finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

NEIGHBOURS = 10
# True neighbours that are remembered: more than ten, because any of equal score is right.
_REMEMBERED = 64
# Two ways to add up one float32 product of unit vectors differ by less.
_TOLERANCE = 1e-6


@dataclass
class Queries:
    """Rows of a version that are searched for.

    Attributes:
        vectors: ``float32[q, d]``.
        ids: ``int64[q]``, their own ids, which do not count as found.
    """

    vectors: np.ndarray
    ids: np.ndarray


@dataclass
class Sample:
    """Collects evenly spaced rows from batches that pass by.

    Attributes:
        rows: How many rows will pass.
        size: How many are taken, at most.
    """

    rows: int
    size: int
    _vectors: list[np.ndarray] = field(default_factory=list)
    _ids: list[np.ndarray] = field(default_factory=list)

    def take(self, first_row: int, vectors: np.ndarray, ids: np.ndarray) -> None:
        """Look at the rows from ``first_row`` on."""
        count = min(self.size, self.rows)
        positions = np.arange(count) * self.rows // max(count, 1) - first_row
        here = positions[(positions >= 0) & (positions < len(vectors))]
        self._vectors.append(vectors[here])
        self._ids.append(ids[here])

    def queries(self) -> Queries:
        """What was taken."""
        if not self._ids:
            return Queries(np.empty((0, 0), np.float32), np.empty(0, np.int64))
        return Queries(np.concatenate(self._vectors), np.concatenate(self._ids))


@dataclass
class Neighbours:
    """The true neighbours of queries, found batch by batch.

    Attributes:
        queries: What is searched for.
        scores: ``float32[q, k]``, inner products, largest first.
        ids: ``int64[q, k]``.
    """

    queries: Queries
    scores: np.ndarray = field(init=False)
    ids: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.queries.ids)
        self.scores = np.empty((count, 0), np.float32)
        self.ids = np.empty((count, 0), np.int64)

    def look_at(self, vectors: np.ndarray, ids: np.ndarray) -> None:
        """Take rows into account."""
        import faiss

        found = min(_REMEMBERED, len(ids))
        scores, rows = faiss.knn(
            self.queries.vectors, vectors, found, metric=faiss.METRIC_INNER_PRODUCT
        )
        own = ids[rows] == self.queries.ids[:, None]
        self._keep(np.where(own, -np.inf, scores), ids[rows])

    def _keep(self, scores: np.ndarray, ids: np.ndarray) -> None:
        scores, ids = np.hstack([self.scores, scores]), np.hstack([self.ids, ids])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :_REMEMBERED]
        self.scores = np.take_along_axis(scores, best, 1)
        self.ids = np.take_along_axis(ids, best, 1)

    def recall(self, index: Any) -> float | None:
        """The share of true neighbours among the ten that the index finds.

        Returns:
            ``None`` where a row has no neighbour.
        """
        if not len(self.queries.ids):
            return None
        _, found = index.search(self.queries.vectors, NEIGHBOURS + 1)
        shares = [self._share(query, ids) for query, ids in enumerate(found)]
        known = [share for share in shares if share is not None]
        return float(np.mean(known)) if known else None

    def _share(self, query: int, found: np.ndarray) -> float | None:
        scores = self.scores[query]
        wanted = min(NEIGHBOURS, int(np.isfinite(scores).sum()))
        if not wanted:
            return None
        least = scores[wanted - 1]
        right = self.ids[query][scores >= least - _TOLERANCE * max(1.0, abs(least))]
        others = found[found != self.queries.ids[query]][:NEIGHBOURS]
        return min(wanted, _overlap(others, right)) / wanted


def _overlap(first: Iterable[int], second: Iterable[int]) -> int:
    return len(set(first) & set(second))
