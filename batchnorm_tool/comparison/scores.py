"""How stored rows are scored for a query: exactly, and in float32 to sort out nearly all of them.

A row ``b`` whose norm is ``N`` is stored as ``b / N``. For a query ``q`` the system then ranks by

- ``dot``: ``q . b / N``. The query's own norm multiplies all scores of a query alike, and changes
  no ranking.
- ``cosine``: ``q . b / |b|``, whatever ``N`` was: no norm can change anything.
- ``euclidean``: by the distance of ``q / M`` and ``b / N``, with the query's own norm ``M``; the
  nearest row is the one with the largest ``q . b / (M N) - (|b| / N)^2 / 2``.

``|b|`` is the L2 norm. With ``N`` the L2 norm all three rank alike, rows of zeros aside, which are
stored as they are.

`Filter` keeps a little more than the ``k`` best rows of each query. A product of unit vectors is a
cosine ``c``. With ``r = |b| / N``, the stored length of a row, a score is ``c r``, and less
``r^2 / (2 s)`` for Euclidean distance, ``s`` being the query's stored length; a factor that depends
on the query alone is left out. Nearly all products are far too small for any score. So the rows of
a block are put in order of their stored lengths, and one comparison with the least cosine that
could do for any score sorts them out; what a score is for the few that are left is worked out one
by one (`TopK`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from batchnorm_tool.display import did_you_mean
from batchnorm_tool.environment import map_in_order
from batchnorm_tool.errors import JobError
from batchnorm_tool.norms.norm import L2, Anything, Float64s, Norm, row_norms, wide_blocks

Float32s = np.ndarray
Int64s = np.ndarray
# Products computed at a time: 16 MiB of them, so that memory does not grow with the queries.
_PRODUCTS = 1 << 22
# Of these, so many at most are looked at one by one at a time: 36 bytes each, and as many again for
# each of the steps of `TopK`. Of 338,000 rows with many equal ones 4 million took 800 MB.
_HITS = 1 << 18
# Queries that meet a sample at a time: 4 MiB of products with 8,192 rows.
_EXPECTING_QUERIES = 128
# Rows of about the same stored length that one bar serves. Fewer take longer to go through, and of
# more too many pass: of 2,048 rows 2.2 % in slices of 256, and 9 % in one.
_ALIKE_ROWS = 256
# A bar that about so many times ``k`` rows of the base will pass, as a sample tells it.
_PASSING = 3
_LEAST_RANK = 8
# Rounding of float32, see Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
_UNIT_ROUNDOFF = 2.0**-24
_LEAST_FLOAT32 = 2.0**-148


class Metric(StrEnum):
    """How a serving system compares a query with a stored vector."""

    DOT = "dot"
    EUCLIDEAN = "euclidean"
    COSINE = "cosine"

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Return the metric of that name."""
        names = [str(metric) for metric in cls]
        if text in names:
            return cls(text)
        hint = did_you_mean(text, names)
        raise JobError(f"`metric` must be one of {', '.join(names)}. Received: {text!r}.{hint}")


@dataclass(frozen=True)
class Score:
    """A way to score rows divided by a norm, higher for nearer ones; equal ways are equal objects.

    With ``subtracts``, half the square of the stored length is subtracted, as Euclidean distance
    asks for.
    """

    norm: Norm
    subtracts: bool

    @classmethod
    def of(cls, metric: Metric, norm: Norm) -> Score:
        """Return what ranks rows that are divided by ``norm`` under ``metric``."""
        if metric is Metric.COSINE:
            return _COSINE
        return cls(norm, subtracts=metric is Metric.EUCLIDEAN)

    def divisors(self, x64: Float64s) -> Float64s:
        """Return what rows ``float64[n, d]`` are divided by: their norms, and 1 for zeros alone."""
        norms = row_norms(x64, self.norm)[:, 0]
        norms[norms == 0] = 1
        return norms

    def exact(
        self,
        products: Float64s,
        squares: Float64s,
        query_divisors: Float64s,
        row_divisors: Float64s,
    ) -> Float64s:
        """Return scores ``float64[m]`` of pairs of a query and a row, whose divisors are given.

        ``products`` are their dot products before normalization, ``squares`` those of each row with
        itself: roots squared would break ties by rounding.
        """
        with np.errstate(all="ignore"):  # what float64 cannot hold has no order, see `neighbours`
            scores = products / row_divisors
            if self.subtracts:
                scores = scores / query_divisors - squares / np.square(row_divisors) / 2
        return np.asarray(scores)


_COSINE = Score(L2, subtracts=False)


class Filter:
    """The best rows of each query ``float64[q, d]``, as float32 tells them; threads may share one.

    ``query_rows`` are each query's own row, which is left out, ``int64[q]``; -1 for none.
    """

    def __init__(
        self, queries: Float64s, query_rows: Int64s, scores: Sequence[Score], k: int
    ) -> None:
        lengths = row_norms(queries, L2)[:, 0]
        self._units = _units(queries, lengths)
        self._query_rows, self._k = query_rows, k
        self._local = threading.local()
        self._top_ks = [
            TopK(score, k + max(16, k // 4), lengths / score.divisors(queries)) for score in scores
        ]

    @property
    def block_rows(self) -> int:
        """Rows of which products are computed at a time."""
        rows = _PRODUCTS // max(len(self._units), 1)
        return max(_ALIKE_ROWS, rows // _ALIKE_ROWS * _ALIKE_ROWS)

    def expect(self, sample: Anything, rows: int) -> None:
        """Set the bars by a sample: what is below them is not worth a look."""
        share = (_PASSING * self._k + 64) / max(rows, 1)
        rank = max(_LEAST_RANK, math.ceil(share * len(sample)))
        # A rank so deep in a sample would set a bar that most rows pass.
        if rank * 4 > len(sample):
            return
        block = _Block.of(sample, [top_k.score for top_k in self._top_ks])
        starts = range(0, len(self._units), _EXPECTING_QUERIES)
        slices = [slice(start, start + _EXPECTING_QUERIES) for start in starts]
        list(map_in_order(lambda queries: self._expect(queries, block, rank), slices))

    def _expect(self, queries: slice, block: _Block, rank: int) -> None:
        products = self._units[queries] @ block.units.T
        products[:, ~block.usable] = -np.inf
        for top_k, ratios in zip(self._top_ks, block.ratios, strict=True):
            top_k.expect(queries, products, ratios, rank)

    def add(self, first: int, vectors: Anything) -> None:
        """Look through more rows."""
        block = _Block.of(vectors, [top_k.score for top_k in self._top_ks])
        if not block.usable.any():
            return
        products, above = self._space(len(block.order))
        np.matmul(self._units, block.units.T, out=products)
        self._leave_out(products, block, first)
        # One call: row by row of slices took 0.6 s for 200,000 rows and 2,000 queries, this 0.2 s.
        alike = (len(products), -1, _ALIKE_ROWS)
        needed = self._needed(block).T[:, :, np.newaxis]
        np.greater(products.reshape(alike), needed, out=above.reshape(alike))
        # All at once where they are few; among equal rows nearly every product may be above.
        few = np.count_nonzero(above) <= _HITS
        step = len(above) if few else max(1, _HITS // len(block.order))
        for start in range(0, len(above), step):
            hits = np.flatnonzero(above[start : start + step])
            owners, columns = np.divmod(hits, len(block.order))
            rows, cosines = block.order[columns], products[start : start + step].reshape(-1)[hits]
            rows += first
            owners += start
            for top_k, ratios in zip(self._top_ks, block.ratios, strict=True):
                top_k.offer(owners, rows, cosines, ratios[columns])

    def _needed(self, block: _Block) -> Float32s:
        """Return the least cosines ``float32[s, q]`` that may do for a score, by slices of rows."""
        starts = np.arange(0, len(block.order), _ALIKE_ROWS)
        needed = np.full((len(starts), len(self._units)), np.inf, np.float32)
        for top_k, ratios in zip(self._top_ks, block.ratios, strict=True):
            usable = np.where(block.usable, ratios, ratios[block.usable].min())
            low, high = np.minimum.reduceat(usable, starts), np.maximum.reduceat(usable, starts)
            np.minimum(needed, top_k.needed(low, high), out=needed)
        return needed

    def best(self) -> list[Best]:
        """Return what was kept for each score."""
        width = self._units.shape[1]
        return list(map_in_order(lambda top_k: top_k.best(width), self._top_ks))

    def _space(self, rows: int) -> tuple[Float32s, np.ndarray]:
        """Return each thread's own arrays ``[q, rows]``: new ones would be cleared page by page."""
        shape = (len(self._units), rows)
        space = getattr(self._local, "space", None)
        if space is None or space[0].shape != shape:
            self._local.space = space = (np.empty(shape, np.float32), np.empty(shape, bool))
        return space

    def _leave_out(self, products: Float32s, block: _Block, first: int) -> None:
        """Make NaN, which is above nothing, of each query's own row and of rows without a score."""
        if not block.usable.all():
            products[:, ~block.usable] = np.nan
        # A query that is a row would nearly always find itself first, whatever the space is worth.
        own = self._query_rows - first
        queries = np.flatnonzero((own >= 0) & (own < len(block.order)))
        places = np.empty(len(block.order), np.int64)
        places[block.order] = np.arange(len(block.order))
        products[queries, places[own[queries]]] = np.nan


@dataclass(frozen=True)
class _Block:
    """Rows in order of their stored lengths, under the score where these differ most.

    They are filled up to a multiple of `_ALIKE_ROWS` with rows that are not usable.
    """

    order: Int64s  # which row is in which place
    units: Float32s  # unit vectors, [n, d]
    usable: np.ndarray  # whether a row is finite
    ratios: list[Float32s]  # for each score the stored lengths

    @classmethod
    def of(cls, rows: Anything, scores: Sequence[Score]) -> _Block:
        count = -(-len(rows) // _ALIKE_ROWS) * _ALIKE_ROWS
        lengths = np.full(count, np.nan)
        units = np.zeros((count, rows.shape[1]), np.float32)
        ratios = [np.zeros(count) for _ in scores]
        for part, x64 in wide_blocks(rows):
            lengths[part] = row_norms(x64, L2)[:, 0]
            units[part] = _units(x64, lengths[part])
            for score, each in zip(scores, ratios, strict=True):
                each[part] = _ratios(score, x64, lengths[part])
        usable = np.isfinite(lengths)
        for each in ratios:
            each[~usable] = 1
        # One order serves all scores: that of the score whose lengths differ most, which gains most
        # by it.
        widest = max(ratios, key=lambda each: _range(each[usable]))
        order = np.argsort(widest, kind="stable")
        with np.errstate(over="ignore"):
            narrow = [each[order].astype(np.float32) for each in ratios]
        return cls(order, units[order], usable[order], narrow)


def _units(x64: Float64s, lengths: Float64s) -> Float32s:
    """Return unit vectors in float32; zeros for rows of zeros, and for rows that are not finite."""
    usable = np.isfinite(lengths) & (lengths > 0)
    units = np.zeros(x64.shape, np.float32)
    if usable.all():
        np.divide(x64, lengths[:, np.newaxis], out=units, casting="same_kind")
    else:
        units[usable] = x64[usable] / lengths[usable, np.newaxis]
    return units


def _ratios(score: Score, x64: Float64s, lengths: Float64s) -> Float64s:
    if score.norm == L2:
        return (lengths > 0).astype(np.float64)
    if score.norm.name == "none":
        return lengths
    with np.errstate(all="ignore"):  # rows that are not finite
        return lengths / score.divisors(x64)


def _range(ratios: Float64s) -> float:
    """Return how often the smallest positive one goes into the largest."""
    positive = ratios[ratios > 0]
    with np.errstate(over="ignore"):
        return float(positive.max() / positive.min()) if len(positive) else 1.0


@dataclass(frozen=True)
class Best:
    """What the filter kept for one score.

    Attributes:
        rows: ``int64[q, m]``, best first as float32 tells; -1 where there are no more.
        scores: ``float32[q, m]``, in units of the filter's own; -inf where there are no more.
        bars: ``float32[q]``: no row that was left out scores more, in float32.
        errors: ``float64[q]``: how far any of these may be from the truth; inf where they tell
            nothing.
    """

    rows: Int64s
    scores: Float32s
    bars: Float32s
    errors: Float64s

    def replaced(self, queries: Int64s, other: Best) -> Best:
        """Return the same with what another filter kept for some ``queries``."""
        arrays = {name: array.copy() for name, array in vars(self).items()}
        for name, better in vars(other).items():
            arrays[name][queries] = better
        return Best(**arrays)

    def unsure(self, k: int) -> np.ndarray:
        """Tell whether a row that was left out may be among the ``k`` best, ``bool[q]``."""
        worst = self.scores[:, k - 1].astype(np.float64)
        with np.errstate(invalid="ignore"):
            possible = (self.bars > -np.inf) | ~np.isfinite(self.errors)
            # The worst of those kept and the best of those left out may each be off by the error.
            return possible & ~(worst - self.bars > 2 * self.errors)


class TopK:
    """The ``kept`` best rows of each query, of stored length ``float64[q]``, for one score."""

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
            # The squared distance of lengths s and r is s**2 + r**2 - 2 s r cos. Divided by -2 s,
            # and less what all rows of a query share, it is r cos - r**2 / (2 s).
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
        """Return the least cosines ``float32[s, q]`` that may do, for ``s`` ranges of ratios."""
        self._largest = max(self._largest, float(high.max()))
        tiny = np.finfo(np.float32).tiny
        low, high = (np.maximum(each, tiny)[:, np.newaxis] for each in (low, high))
        bars = self._bars
        with np.errstate(all="ignore"):
            if self.score.subtracts:
                # The least of t / r + r / (2 s) between both ends.
                # The sum falls up to r = sqrt(2 s t) and rises from there.
                turn = np.sqrt(np.maximum(bars, 0)) / np.sqrt(self._halves)
                at = np.where(bars > 0, np.clip(turn, low, high), low)
                cosines = bars / at + at * self._halves
            else:
                cosines = np.where(bars > 0, bars / high, bars / low)
        # Lower by more than rounding here makes of it, so that it excludes nothing.
        cosines -= np.float32(16 * _UNIT_ROUNDOFF) * np.abs(cosines)
        cosines[np.isnan(cosines)] = -np.inf
        return cosines

    def offer(self, owners: Int64s, rows: Int64s, cosines: Float32s, ratios: Float32s) -> None:
        """Take what is above a query's bar, of pairs of a query, ascending, and a row."""
        halves = self._halves[owners] if self.score.subtracts else self._halves[:1]
        values = self._scored(cosines, ratios, halves)
        above = np.flatnonzero(values > self._bars[owners])
        owners, values, rows = owners[above], values[above], rows[above]
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
                # What finds no room waits until its queries are thinned out, which raises their
                # bars, too.
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
        # A bar never falls: what was left out below it is not read again.
        self._bars[queries] = np.maximum(self._bars[queries], kept.min(axis=1))

    def best(self, width: int) -> Best:
        """Return what was kept, of vectors of that width."""
        self._thin_out(np.flatnonzero(self._filled > self._kept))
        order = np.argsort(-self._scores[:, : self._kept], axis=1, kind="stable")
        # A product of d terms is off by at most d unit roundoffs (Higham, section 3.1); dividing by
        # norms, scaling and subtracting add a few.
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
