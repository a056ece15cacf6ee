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
a block are put in order of the least cosine that could do for any score of a usual query, and one
comparison with what each query needs of rows that are alike sorts them out; what a score is for the
few that are left is worked out one by one (`TopK`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
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
# Queries that meet a sample at a time: 2 MiB of products with 4,096 rows.
_EXPECTING_QUERIES = 128
# Rows that need about the same cosine, which one bar serves. Fewer take longer to go through, and
# of more too many pass.
_ALIKE_ROWS = 256
# A sample's scores of which only the best one is ranked: 14 times as fast as ranking all.
_RANKED_OF = 8
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
        if text in (names := list(cls)):
            return cls(text)
        hint = did_you_mean(text, names)
        raise JobError(f"`metric` must be one of {', '.join(names)}. Received: {text!r}.{hint}")


@dataclass(frozen=True)
class Score:
    """A way to score rows divided by a norm, higher for nearer ones; equal ways are equal objects.

    With ``subtracts``, half the square of the stored length is subtracted, as Euclidean distance
    asks for. What divides is the norm to the power of ``exponent``.
    """

    norm: Norm
    subtracts: bool
    exponent: float = 1

    @classmethod
    def of(cls, metric: Metric, norm: Norm, exponent: float = 1) -> Score:
        """Return what ranks rows that are divided by ``norm``, or a power, under ``metric``."""
        if metric is Metric.COSINE:
            return _COSINE
        return cls(norm, metric is Metric.EUCLIDEAN, exponent)

    def divisors(self, x64: Float64s) -> Float64s:
        """Return what rows ``float64[n, d]`` are divided by: their norms, and 1 for zeros alone."""
        norms = row_norms(x64, self.norm)[:, 0]
        if self.exponent != 1:
            norms **= self.exponent
        norms[norms == 0] = 1
        return norms

    def exact(
        self, products: Float64s, squares: Float64s, query_divisors: Float64s, divisors: Float64s
    ) -> Float64s:
        """Return scores ``float64[m]`` of pairs of a query and a row, whose divisors are given.

        ``products`` are their dot products before normalization, ``squares`` those of each row with
        itself: roots squared would break ties by rounding.
        """
        with np.errstate(all="ignore"):  # what float64 cannot hold has no order, see `nearest`
            scores = products / divisors
            if self.subtracts:
                scores = scores / query_divisors - squares / np.square(divisors) / 2
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
        rows = _PRODUCTS // max(len(queries), 1)  # of which products are computed at a time
        self._block_rows = max(_ALIKE_ROWS, rows // _ALIKE_ROWS * _ALIKE_ROWS)
        self._top_ks = [
            TopK(score, k + max(16, k // 4), lengths / score.divisors(queries)) for score in scores
        ]

    def expect(self, sample: Anything, rows: int) -> None:
        """Set the bars by a sample: what is below them is not worth a look."""
        mean = self._k * len(sample) / max(rows, 1)  # of a query's best rows, how many are in it
        # Of a million samples about one has so many of them (Poisson's distribution).
        rank = math.ceil(mean + 4 * math.sqrt(mean) + 4)
        # A rank so deep in a sample would set a bar that most rows pass.
        if rank * 4 > len(sample):
            return
        block = next(_Block.cut(sample, self._top_ks, rank * len(sample)), None)
        if block is None:
            return

        def expect(start: int) -> None:
            queries = slice(start, start + _EXPECTING_QUERIES)
            products = self._units[queries] @ block.units.T
            products[:, block.usable :] = -np.inf
            for top_k, ratios in zip(self._top_ks, block.ratios, strict=True):
                top_k.expect(queries, products, ratios, rank)

        list(map_in_order(expect, range(0, len(self._units), _EXPECTING_QUERIES)))

    def add(self, first: int, vectors: Anything) -> None:
        """Look through more rows."""
        # A query that is a row would nearly always find itself first, whatever the space is worth.
        own = self._query_rows - first
        queries = np.flatnonzero((own >= 0) & (own < len(vectors)))
        for block in _Block.cut(vectors, self._top_ks, self._block_rows, first):
            products, above = self._space(len(block.rows))
            np.matmul(self._units, block.units.T, out=products)
            products[:, block.usable :] = np.nan  # which is above nothing
            places = np.full(len(vectors), -1)
            places[block.rows[: block.usable] - first] = np.arange(block.usable)
            columns = places[own[queries]]
            products[queries[columns >= 0], columns[columns >= 0]] = np.nan
            # One call: row by row of slices took 0.6 s (200,000 rows, 2,000 queries), this 0.2 s.
            alike = (len(products), -1, _ALIKE_ROWS)
            needed = self._needed(block).T[:, :, np.newaxis]
            np.greater(products.reshape(alike), needed, out=above.reshape(alike))
            self._offer(block, products, above)

    def _offer(self, block: _Block, products: Float32s, above: np.ndarray) -> None:
        # All at once where they are few; among equal rows nearly every product may be above.
        few = np.count_nonzero(above) <= _HITS
        step = len(above) if few else max(1, _HITS // len(block.rows))
        for start in range(0, len(above), step):
            hits = np.flatnonzero(above[start : start + step])
            owners, columns = np.divmod(hits, len(block.rows))
            rows, cosines = block.rows[columns], products[start : start + step].reshape(-1)[hits]
            owners += start
            for top_k, ratios in zip(self._top_ks, block.ratios, strict=True):
                top_k.offer(owners, rows, cosines, ratios[columns])

    def _needed(self, block: _Block) -> Float32s:
        """Return the least cosines ``float32[s, q]`` that may do for a score, by slices of rows."""
        starts = np.arange(0, block.usable, _ALIKE_ROWS)
        needed = np.full((len(starts), len(self._units)), np.inf, np.float32)
        for top_k, ratios in zip(self._top_ks, block.ratios, strict=True):
            usable = ratios[: block.usable]
            low, high = np.minimum.reduceat(usable, starts), np.maximum.reduceat(usable, starts)
            np.minimum(needed, top_k.needed(low, high), out=needed)
        return needed

    def best(self) -> list[Best]:
        """Return what was kept for each score."""
        width = self._units.shape[1]
        return list(map_in_order(lambda top_k: top_k.best(width), self._top_ks))

    def _space(self, rows: int) -> tuple[Float32s, np.ndarray]:
        """Return each thread's own arrays ``[q, rows]``: new ones would be cleared page by page."""
        if not hasattr(self._local, "space"):
            most = len(self._units) * self._block_rows
            self._local.space = np.empty(most, np.float32), np.empty(most, bool)
        shape = (len(self._units), rows)
        products, above = (each[: math.prod(shape)].reshape(shape) for each in self._local.space)
        return products, above


@dataclass(frozen=True)
class _Block:
    """Rows in order of the cosines that a usual query needs of them.

    Those that are not finite are left out, but for some at the end that fill it up to a multiple of
    `_ALIKE_ROWS`.
    """

    rows: Int64s  # which row is in which place
    units: Float32s  # unit vectors, [n, d]
    usable: int  # how many rows are finite; the others come last
    ratios: list[Float32s]  # for each score the stored lengths

    @classmethod
    def cut(
        cls, vectors: Anything, top_ks: Sequence[TopK], most: int, first: int = 0
    ) -> Iterator[_Block]:
        """Yield blocks of so many rows at most; those of no finite row are left out."""
        lengths, units, ratios = _measured(vectors, [top_k.score for top_k in top_ks])
        pairs = zip(top_ks, ratios, strict=True)
        needed = np.min([top_k.usually_needed(each) for top_k, each in pairs], axis=0)
        needed[~np.isfinite(lengths)] = np.nan  # sorted last
        usable = int(np.count_nonzero(np.isfinite(lengths)))
        order = np.argsort(needed)[: -(-usable // _ALIKE_ROWS) * _ALIKE_ROWS]
        for start in range(0, len(order), most):
            some = order[start : start + most]
            left = min(usable - start, len(some))
            yield cls(some + first, units.take(some, 0), left, [each[some] for each in ratios])


def _measured(rows: Anything, scores: Sequence[Score]) -> tuple[Float64s, Float32s, list[Float32s]]:
    """Return lengths, unit vectors and stored lengths, filled up to a multiple of `_ALIKE_ROWS`."""
    count = -(-len(rows) // _ALIKE_ROWS) * _ALIKE_ROWS
    lengths = np.full(count, np.nan)
    units = np.zeros((count, rows.shape[1]), np.float32)
    ratios = [np.empty(count, np.float32) for _ in scores]
    for part, x64 in wide_blocks(rows):
        lengths[part] = row_norms(x64, L2)[:, 0]
        units[part] = _units(x64, lengths[part])
        for score, each in zip(scores, ratios, strict=True):
            with np.errstate(over="ignore"):
                each[part] = _ratios(score, x64, lengths[part])
    for each in ratios:
        each[~np.isfinite(lengths)] = 1
    return lengths, units, ratios


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
    if score.norm == L2 and score.exponent == 1:
        return (lengths > 0).astype(np.float64)
    if score.norm.name == "none":
        return lengths
    with np.errstate(all="ignore"):  # rows that are not finite
        return lengths / score.divisors(x64)


@dataclass(frozen=True)
class Best:
    """What the filter kept for one score."""

    rows: Int64s  # [q, m], best first as float32 tells; -1 where there are no more
    scores: Float32s  # [q, m], in units of the filter's own; -inf where there are no more
    bars: Float32s  # [q]: no row that was left out scores more, in float32
    errors: Float64s  # [q]: how far any of these may be from the truth; inf where they tell nothing

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
        # A rank among the best of groups is no higher than the same rank among all, and hardly
        # lower where the groups are many.
        size = _RANKED_OF if rank * 4 * _RANKED_OF <= scores.shape[1] else 1
        best = scores.reshape(len(scores), size, -1).max(axis=1)
        cut = best.shape[1] - rank
        best.partition(cut, axis=1)
        self._bars[queries] = best[:, cut]

    def needed(self, low: Float32s, high: Float32s) -> Float32s:
        """Return the least cosines ``float32[s, q]`` that may do, for ``s`` ranges of ratios."""
        self._largest = max(self._largest, float(high.max()))
        ends = low[:, np.newaxis], high[:, np.newaxis]
        return self._least_cosines(*ends, self._bars, self._halves)

    def usually_needed(self, ratios: Float32s) -> Float32s:
        """Return the least cosines ``float32[n]`` that may do for a query of middling bar."""
        bars, halves = (np.median(each, keepdims=True) for each in (self._bars, self._halves))
        return self._least_cosines(ratios, ratios, bars, halves)

    def _least_cosines(
        self, low: Float32s, high: Float32s, bars: Float32s, halves: Float32s
    ) -> Float32s:
        tiny = np.finfo(np.float32).tiny
        low, high = np.maximum(low, tiny), np.maximum(high, tiny)
        with np.errstate(all="ignore"):
            if self.score.subtracts:
                # The least of t / r + r / (2 s) between both ends.
                # The sum falls up to r = sqrt(2 s t) and rises from there.
                turn = np.sqrt(np.maximum(bars, 0)) / np.sqrt(halves)
                at = np.where(bars > 0, np.clip(turn, low, high), low)
                cosines = bars / at + at * halves
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
        size = self._scores.shape[1]
        with self._lock:
            while len(values):
                counts = np.bincount(owners, minlength=len(self._bars))
                free = self._filled - np.cumsum(counts) + counts
                places = free[owners] + np.arange(len(owners))
                fits = places < size
                slots = owners[fits] * size + places[fits]
                self._scores.reshape(-1)[slots] = values[fits]
                self._rows.reshape(-1)[slots] = rows[fits]
                self._filled = np.minimum(self._filled + counts, size)
                # What finds no room waits until its queries are thinned out, which raises their
                # bars, too.
                owners, values, rows = owners[~fits], values[~fits], rows[~fits]
                self._thin_out(np.flatnonzero(np.bincount(owners, minlength=len(counts))))
                above = np.flatnonzero(values > self._bars[owners])
                owners, values, rows = owners[above], values[above], rows[above]

    def _scored(self, cosines: Float32s, ratios: Float32s, halves: Float32s) -> Float32s:
        if self.score == _COSINE:
            return cosines
        with np.errstate(all="ignore"):  # lengths beyond float32; then no bar excludes anything
            scores = cosines * ratios
            # In this order nothing overflows that need not: a square of 1e-30 would be 0.
            return scores - ratios * (ratios * halves) if self.score.subtracts else scores

    def _thin_out(self, queries: Int64s) -> None:
        """Drop all but the best of some queries that have more."""
        if not len(queries):
            return
        scores, cut = self._scores[queries], self._scores.shape[1] - self._kept
        best = np.argpartition(scores, cut, axis=1)[:, cut:]
        kept = np.take_along_axis(scores, best, 1)
        self._rows[queries, : self._kept] = self._rows[queries[:, np.newaxis], best]
        self._scores[queries, : self._kept], self._scores[queries, self._kept :] = kept, -np.inf
        self._filled[queries] = self._kept
        # A bar never falls: what was left out below it is not read again.
        self._bars[queries] = np.maximum(self._bars[queries], kept.min(axis=1))

    def best(self, width: int) -> Best:
        """Return what was kept, of vectors of that width."""
        self._thin_out(np.flatnonzero(self._filled > self._kept))
        order = np.argsort(-self._scores[:, : self._kept], axis=1)
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
