"""Exact nearest neighbours under several norms, from one pass of products over the base.

One matrix product serves every norm: scores under another norm are the same products, scaled by
column. They are computed in float32, of unit vectors, block by block, and a little more than the
``k`` best of each query are kept (`filtering`). Where rounding may have put two of these in the
wrong order, both are scored again in float64 (`ordering`). Where the bound of the rounding error
cannot exclude that a neighbour was left out, as among many equal rows, the query is done over in
float64 alone (`Exact`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from batchnorm_tool.comparison.base import ArrayBase, Base, Queries, numbered
from batchnorm_tool.comparison.filtering import Filter
from batchnorm_tool.comparison.ordering import Exact, Rows, in_order
from batchnorm_tool.comparison.similarity import Metric, Score
from batchnorm_tool.machine import available_cores
from batchnorm_tool.norms import Anything, Norm, widen

if TYPE_CHECKING:
    from batchnorm_tool.comparison.keeping import Best

__all__ = ["ArrayBase", "Base", "Queries", "neighbours"]

Int64s = np.ndarray

# With half as many, a bar is too high for one query in a thousand, and all rows are read again.
_SAMPLE_ROWS = 8192
# 25,000 queries with 100 neighbours under four norms took 1.34 GB at one go.
_KEPT_BYTES = 128 << 20
_KEPT_BYTES_PER_NEIGHBOUR = 120
_FEWEST_QUERIES = 256


def neighbours(
    queries: Queries, base: Base, norms: Sequence[Norm], metric: Metric, k: int
) -> dict[str, Int64s]:
    """Find the ``k`` nearest rows of each query under each norm; of equally near ones the lower.

    Args:
        queries: Vectors, not normalized.
        base: Rows of ``d`` dimensions. Rows with NaN or inf are nobody's neighbours.
        norms: What rows are divided by before they are stored.
        metric: How the serving system compares.
        k: Neighbours wanted, 1 or more.

    Returns:
        By the label of each norm ``int64[q, k]``, rows nearest first; -1 where there are no more.
        Memory: for each thread one block of the base and 20 MiB of products, and about 128 MiB for
        the best rows so far; where there are more queries than fit (2,800 at ``k`` of 100 and four
        norms), they take turns, and the base is read again for each. While it runs, BLAS has one
        thread in the whole process. Not promised: an order among float64 rows whose products
        overflow.

    Example:
        >>> base = ArrayBase(np.array([[1.0, 0.0], [9.0, 9.0], [0.0, 1.0]]))
        >>> queries = Queries.of(base.array[:1], np.array([0]))
        >>> neighbours(queries, base, [Norm("none")], Metric.DOT, 2)["none"]
        array([[1, 2]])
    """
    wanted = {norm.label: Score.of(metric, norm) for norm in norms}
    scores = list(dict.fromkeys(wanted.values()))
    with (
        # Each thread multiplies on its own core: with two threads each, 5.0 CPU seconds became 3.5.
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(available_cores(), thread_name_prefix="neighbours") as pool,
    ):
        found = _Search(base, k, pool).run_in_turns(queries, scores)
    by_score = dict(zip(scores, found, strict=True))
    return {label: by_score[score] for label, score in wanted.items()}


@dataclass(frozen=True)
class _Search:
    """Looks for the ``k`` nearest rows of a base with the threads of a pool."""

    base: Base
    k: int
    pool: ThreadPoolExecutor

    def run_in_turns(self, queries: Queries, scores: Sequence[Score]) -> list[Int64s]:
        """As `run`, of so many queries at a time that what is kept for them stays small."""
        each = _KEPT_BYTES_PER_NEIGHBOUR * self.k * len(scores)
        size = max(_FEWEST_QUERIES, _KEPT_BYTES // each)
        turns = [
            self.run(queries.take(np.arange(at, min(at + size, len(queries)))), scores)
            for at in range(0, len(queries), size)
        ]
        return [np.concatenate(found) for found in zip(*turns, strict=True)]

    def run(self, queries: Queries, scores: Sequence[Score]) -> list[Int64s]:
        """The nearest rows for each score, ``int64[q, k]``."""
        best = self._filtered(queries, scores, self.base.sample(_SAMPLE_ROWS))
        for at, score in enumerate(scores):
            # The sample may have set a bar too high.
            unsure = np.flatnonzero(best[at].unsure(self.k))
            if len(unsure):
                (again,) = self._filtered(queries.take(unsure), [score])
                best[at] = best[at].replaced(unsure, again)
        found = in_order(self.base, queries, scores, best)
        for rows, score, kept in zip(found, scores, best, strict=True):
            unsure = np.flatnonzero(kept.unsure(self.k))
            if len(unsure):
                rows[unsure, : self.k] = self._exact(queries.take(unsure), score)
        return [rows[:, : self.k].copy() for rows in found]

    def _filtered(
        self, queries: Queries, scores: Sequence[Score], sample: Anything | None = None
    ) -> list[Best]:
        filter_ = Filter(queries.vectors, queries.rows, scores, self.k)
        if sample is not None:
            filter_.expect(sample, self.base.rows, self.pool.map)
        self._each(filter_.add, filter_.block_rows)
        return filter_.best(self.pool.map)

    def _exact(self, queries: Queries, score: Score) -> Int64s:
        searches = [
            Exact(queries.take(np.array([at])), score, self.k) for at in range(len(queries))
        ]
        for first, block in numbered(self.base.blocks()):
            rows = Rows.of(widen(block), score, first)
            list(self.pool.map(lambda each, rows=rows: each.add(rows), searches))
        return np.stack([each.rows for each in searches])

    def _each(self, act: Callable[[int, Anything], None], most_rows: int) -> None:
        """Act on all rows of the base, so many at a time, as many at once as there are threads."""
        under_way: deque[Future[None]] = deque()
        for first, block in numbered(self.base.blocks()):
            for start in range(0, len(block), most_rows):
                rows = block[start : start + most_rows]
                under_way.append(self.pool.submit(act, first + start, rows))
                if len(under_way) > 2 * available_cores():
                    under_way.popleft().result()
        for each in under_way:
            each.result()
