"""The best rows of each query for one score, in float32: what the first step keeps."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from batchnorm_tool.comparison.similarity import Score
from batchnorm_tool.norms import L2

if TYPE_CHECKING:
    from batchnorm_tool.norms import Float64s

Float32s = np.ndarray
Int64s = np.ndarray

# Rounding of float32, see Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
_UNIT_ROUNDOFF = 2.0**-24
_LEAST_FLOAT32 = 2.0**-148
_COSINE = Score(L2, subtracts=False)


@dataclass(frozen=True)
class Best:
    """What the filter kept for one score.

    Attributes:
        rows: ``int64[q, m]``, best first as float32 tells; -1 where there are no more.
        scores: ``float32[q, m]``, in units of the filter's own; -inf where there are no more.
        bars: ``float32[q]``: no row that was left out scores more, in float32.
        errors: ``float64[q]``: how far any of these numbers may be from the truth; inf where they
            tell nothing.
    """

    rows: Int64s
    scores: Float32s
    bars: Float32s
    errors: Float64s

    def replaced(self, queries: Int64s, other: Best) -> Best:
        """The same with what another filter kept for some ``queries``."""
        mine = (self.rows.copy(), self.scores.copy(), self.bars.copy(), self.errors.copy())
        theirs = (other.rows, other.scores, other.bars, other.errors)
        for array, better in zip(mine, theirs, strict=True):
            array[queries] = better
        return Best(*mine)

    def unsure(self, k: int) -> np.ndarray:
        """Whether a row that was left out may be among the ``k`` best, ``bool[q]``."""
        worst = self.scores[:, k - 1].astype(np.float64)
        with np.errstate(invalid="ignore"):
            possible = (self.bars > -np.inf) | ~np.isfinite(self.errors)
            return possible & ~(worst - self.bars > 2 * self.errors)


@dataclass(frozen=True)
class Numbered:
    """Rows as a keeper needs them: stored lengths ``float32[n]``, numbers ``int64[n]``."""

    ratios: Float32s
    rows: Int64s


class Keeper:
    """The best rows of each query for one score.

    Args:
        score: The score.
        kept: How many rows a query keeps.
        query_ratios: ``float64[q]``, the queries' own stored lengths.
    """

    def __init__(self, score: Score, kept: int, query_ratios: Float64s) -> None:
        self.score, self._kept = score, kept
        count = len(query_ratios)
        self._scores = np.full((count, 4 * kept), -np.inf, np.float32)
        self._rows = np.full((count, 4 * kept), -1, np.int64)
        self._filled = np.zeros(count, np.int64)
        self._bars = np.full(count, -np.inf, np.float32)
        self._largest = 0.0
        self._lock = threading.Lock()
        with np.errstate(divide="ignore", over="ignore"):
            halves = 1 / (2 * query_ratios)
            self._halves = np.asarray(halves if score.subtracts else 0 * query_ratios, np.float32)

    def expect(self, queries: slice, products: Float32s, ratios: Float32s, rank: int) -> None:
        """Set the bars of some queries to the score of a certain rank in a sample."""
        scores = self._scored(products, ratios, self._halves[queries, np.newaxis])
        scores = scores.copy() if scores is products else scores
        cut = scores.shape[1] - rank
        scores.partition(cut, axis=1)
        self._bars[queries] = scores[:, cut]

    def needed(self, low: Float32s, high: Float32s) -> Float32s:
        """The least cosines ``float32[s, q]`` that may do, of rows with ratios in ``s`` ranges."""
        self._largest = max(self._largest, float(high.max()))
        tiny = np.finfo(np.float32).tiny
        low, high = (np.maximum(each, tiny)[:, np.newaxis] for each in (low, high))
        bars = self._bars
        with np.errstate(all="ignore"):
            if self.score.subtracts:
                # The least of t / r + r / (2 s) between both ends.
                turn = np.sqrt(np.maximum(bars, 0)) / np.sqrt(self._halves)
                at = np.where(bars > 0, np.clip(turn, low, high), low)
                cosines = bars / at + at * self._halves
            else:
                cosines = np.where(bars > 0, bars / high, bars / low)
        # Lower by more than rounding here makes of it, so that it excludes nothing.
        cosines -= np.float32(16 * _UNIT_ROUNDOFF) * np.abs(cosines)
        cosines[np.isnan(cosines)] = -np.inf
        return cosines

    def offer(self, owners: Int64s, columns: Int64s, cosines: Float32s, block: Numbered) -> None:
        """Take what is above a query's bar.

        Args:
            owners: ``int64[m]``, queries, ascending.
            columns: ``int64[m]``, rows of the block.
            cosines: ``float32[m]``, the cosine of each such pair.
            block: The rows of the block.
        """
        halves = self._halves[owners] if self.score.subtracts else self._halves[:1]
        values = self._scored(cosines, block.ratios[columns], halves)
        above = np.flatnonzero(values > self._bars[owners])
        owners, values, rows = owners[above], values[above], block.rows[columns[above]]
        with self._lock:
            while len(values):
                above = np.flatnonzero(values > self._bars[owners])
                owners, values, rows = owners[above], values[above], rows[above]
                counts = np.bincount(owners, minlength=len(self._bars))
                ranks = np.arange(len(owners)) - (np.cumsum(counts) - counts)[owners]
                room = self._scores.shape[1] - self._filled
                fits = ranks < room[owners]
                self._put(owners[fits], values[fits], rows[fits], ranks[fits])
                if fits.all():
                    return
                owners, values, rows = owners[~fits], values[~fits], rows[~fits]
                self._thin_out(np.unique(owners))

    def _put(self, owners: Int64s, values: Float32s, rows: Int64s, ranks: Int64s) -> None:
        places = self._filled[owners] + ranks
        self._scores[owners, places] = values
        self._rows[owners, places] = rows
        self._filled += np.bincount(owners, minlength=len(self._filled))

    def _scored(self, cosines: Float32s, ratios: Float32s, halves: Float32s) -> Float32s:
        if self.score == _COSINE:
            return cosines
        with np.errstate(all="ignore"):  # lengths beyond float32; then no bar excludes anything
            scores = cosines * ratios
            # In this order nothing overflows that need not: a square of 1e-30 would be 0.
            return scores - ratios * (ratios * halves) if self.score.subtracts else scores

    def _thin_out(self, queries: Int64s) -> None:
        """Drop all but the best of some queries that have more."""
        cut = self._scores.shape[1] - self._kept
        scores = self._scores[queries]
        best = np.argpartition(scores, cut, axis=1)[:, cut:]
        kept = np.take_along_axis(scores, best, 1)
        rows = np.take_along_axis(self._rows[queries], best, 1)
        self._scores[queries], self._rows[queries] = -np.inf, -1
        self._scores[queries, : self._kept], self._rows[queries, : self._kept] = kept, rows
        self._filled[queries] = self._kept
        self._bars[queries] = np.maximum(self._bars[queries], kept.min(axis=1))

    def best(self, width: int) -> Best:
        """What was kept, of vectors of that width."""
        self._thin_out(np.flatnonzero(self._filled > self._kept))
        order = np.argsort(-self._scores[:, : self._kept], axis=1, kind="stable")
        errors = np.full(len(self._bars), (width + 8) * _UNIT_ROUNDOFF * self._largest)
        halves = self._halves.astype(np.float64)
        with np.errstate(all="ignore"):  # lengths that float32 cannot hold: nothing is certain
            errors += 8 * _UNIT_ROUNDOFF * halves * self._largest**2 + _LEAST_FLOAT32
        errors[~np.isfinite(errors)] = np.inf
        return Best(
            np.take_along_axis(self._rows[:, : self._kept], order, 1),
            np.take_along_axis(self._scores[:, : self._kept], order, 1),
            self._bars,
            errors,
        )
