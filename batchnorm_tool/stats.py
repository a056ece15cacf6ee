"""Statistics of norms and of dimensions that merge: of chunks into parts, of parts into runs.

Counts, extremes and histograms, and with them quantiles, come out identical however rows are
split. Moments depend on the split in their last bits, and come out identical when the same pieces
are merged in the same order.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from batchnorm_tool.errors import Damaged, JobError
from batchnorm_tool.norms import L1, L2, MAX, Float64s, Norm, row_norms

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""The quantiles that manifests and summaries show."""

# A bucket is a float64 without its low 43 bits: 2**9 buckets for each octave.
_SHIFT = 43
# Eight coarse buckets for each octave: another 6 bits less.
_COARSE_SHIFT = 6
# Up to this many buckets from first to last, counting in an array (8 bytes for each bucket) is
# cheaper than sorting the values of a chunk.
_COUNTABLE_BUCKETS = 1 << 16

_Moment = TypeVar("_Moment", float, Float64s)


@dataclass(frozen=True)
class NormStats:
    """Statistics of norms; without arguments, of no norms at all.

    Args:
        count: Finite norms, zeros among them.
        zero: Norms that are zero.
        nonfinite: Norms that are NaN or inf; nothing else here knows of them.
        min: The smallest finite norm, None where there is none.
        max: The largest finite norm, None where there is none.
        mean: Mean of the finite norms, None where there is none.
        m2: Sum of the squared deviations from ``mean``; inf where float64 cannot hold it.
        histogram: Finite norms in each bucket, empty buckets left out. The bucket of a norm is
            ``norm.view(uint64) >> 43``: 512 for each octave, of relative width 2**-9.

    Example:
        >>> stats = NormStats.of(np.array([1.0, 3.0])) + NormStats.of(np.array([2.0, np.nan]))
        >>> stats.count, stats.nonfinite, stats.mean, stats.max
        (3, 1, 2.0, 3.0)
    """

    count: int = 0
    zero: int = 0
    nonfinite: int = 0
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    m2: float = 0.0
    histogram: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, norms: Float64s) -> NormStats:
        """Measure norms.

        Args:
            norms: float64 of any shape, none of them negative.
        """
        flat = np.abs(norms).reshape(-1)  # without the sign of -0.0, which is no bucket's
        finite = flat[np.isfinite(flat)]
        lost = flat.size - finite.size
        if not finite.size:
            return cls(nonfinite=lost)
        low, high = finite.min(), finite.max()
        mean, m2 = _moments(finite, low, high)
        return cls(
            count=finite.size,
            zero=finite.size - int(np.count_nonzero(finite)),
            nonfinite=lost,
            min=float(low),
            max=float(high),
            mean=float(mean),
            m2=float(m2),
            histogram=_histogram(finite),
        )

    def merge(self, other: NormStats) -> NormStats:
        """Return the statistics of the norms of both."""
        nonfinite = self.nonfinite + other.nonfinite
        mean, m2 = self._merged_moments(other)
        return NormStats(
            count=self.count + other.count,
            zero=self.zero + other.zero,
            nonfinite=nonfinite,
            min=min(_given(self.min, other.min), default=None),
            max=max(_given(self.max, other.max), default=None),
            mean=mean,
            m2=m2,
            histogram=_added(self.histogram, other.histogram),
        )

    __add__ = merge

    def _merged_moments(self, other: NormStats) -> tuple[float | None, float]:
        if self.mean is None:
            return other.mean, other.m2
        if other.mean is None:
            return self.mean, self.m2
        return _merged_moments(
            (self.count, self.mean, self.m2), (other.count, other.mean, other.m2)
        )

    @property
    def std(self) -> float | None:
        """Population standard deviation, None without norms, inf where ``m2`` is."""
        return math.sqrt(self.m2 / self.count) if self.count else None

    def quantile(self, q: float) -> float | None:
        """Return the norm below or at which a share ``q`` of the norms lies.

        It is the middle of the bucket that holds the norm of rank ``ceil(q * count)``, within
        ``min`` and ``max``, and thus at most 2**-10 away from that norm, relatively (subnormal
        norms excepted). Zeros, the smallest and the largest norm are exact.

        Args:
            q: From 0 to 1.

        Returns:
            The quantile, or None where there are no finite norms.

        Raises:
            JobError: ``q`` is not within 0 and 1.

        Example:
            >>> NormStats.of(np.arange(101.0)).quantile(0.5)
            50.03125
        """
        return self._quantiles((q,))[0]

    def quantiles(self) -> dict[float, float | None]:
        """Return `quantile` of each of `QUANTILES`."""
        return dict(zip(QUANTILES, self._quantiles(QUANTILES), strict=True))

    def _quantiles(self, shares: Sequence[float]) -> list[float | None]:
        for q in shares:
            if not 0 <= q <= 1:
                message = f"A quantile is asked for by a number from 0 to 1. Received: {q!r}."
                raise JobError(message)
        if self.min is None or self.max is None:
            return [None] * len(shares)
        buckets, ends = self._cumulative()
        ranks = [max(1, math.ceil(q * self.count)) for q in shares]
        found = buckets[np.searchsorted(ends, ranks)]
        middles = np.clip(_lower_edges(found) / 2 + _lower_edges(found + 1) / 2, self.min, self.max)
        return [
            self._exact(rank, float(middle)) for rank, middle in zip(ranks, middles, strict=True)
        ]

    def _exact(self, rank: int, middle: float) -> float | None:
        if rank == self.count:
            return self.max
        if rank <= self.zero:
            return 0.0
        return self.min if rank == 1 else middle

    def _cumulative(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the buckets in order, and how many norms lie in each or before it."""
        pairs = sorted(self.histogram.items())
        table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
        return table[:, 0], np.cumsum(table[:, 1])

    def buckets(self, bins: int) -> tuple[Float64s, npt.NDArray[np.int64]]:
        """Return a histogram with bars of equal width, for plotting.

        The norms of a bucket that lies across several bars are shared out evenly, so that a bar's
        count is near its true one, and the sum of all is exact.

        Args:
            bins: Number of bars, at least 1.

        Returns:
            Edges float64[bins + 1] from ``min`` to ``max`` (from half to one and a half of the only
            norm, where they are equal; from 0 to 1 without norms), and counts int64[bins].

        Example:
            >>> NormStats.of(np.array([1.0, 1.0, 2.0, 5.0])).buckets(4)
            (array([1., 2., 3., 4., 5.]), array([2, 1, 0, 1]))
        """
        if self.min is None or self.max is None:
            return np.linspace(0.0, 1.0, bins + 1), np.zeros(bins, dtype=np.int64)
        low, high = self.min, self.max
        if low == high:
            half = low / 2 or 0.5
            low, high = max(0.0, low - half), min(high + half, sys.float_info.max)
        with np.errstate(over="ignore"):  # rounded up beyond float64 just before it is clipped
            edges = np.clip(low + (high - low) * np.linspace(0.0, 1.0, bins + 1), low, high)
        edges[-1] = high
        below = np.rint(np.interp(edges, *self._ascent())).astype(np.int64)
        below[0], below[-1] = 0, self.count
        return edges, np.diff(below)

    def _ascent(self) -> tuple[Float64s, Float64s]:
        """Return the corners of the line that climbs from 0 at ``min`` to ``count`` at ``max``."""
        buckets, ends = self._cumulative()
        starts = np.concatenate(([0], ends[:-1]))
        places = np.column_stack((_lower_edges(buckets), _lower_edges(buckets + 1))).reshape(-1)
        heights = np.column_stack((starts, ends)).reshape(-1).astype(np.float64)
        return np.clip(places, self.min, self.max), heights

    def coarse_histogram(self) -> list[tuple[float, float, int]]:
        """Return the histogram with 8 buckets for each octave, empty ones left out.

        Returns:
            ``(lower, upper, count)``, ascending: norms from ``lower`` to just below ``upper``.
            Zeros are in the bucket that begins at 0.

        Example:
            >>> NormStats.of(np.array([1.0, 1.1, 3.0])).coarse_histogram()
            [(1.0, 1.125, 2), (3.0, 3.25, 1)]
        """
        coarse: dict[int, int] = {}
        for bucket, count in sorted(self.histogram.items()):
            coarse[bucket >> _COARSE_SHIFT] = coarse.get(bucket >> _COARSE_SHIFT, 0) + count
        first = np.fromiter(coarse, np.int64, len(coarse))
        lower = _lower_edges(first << _COARSE_SHIFT)
        upper = np.minimum(_lower_edges((first + 1) << _COARSE_SHIFT), sys.float_info.max)
        return list(zip(lower.tolist(), upper.tolist(), coarse.values(), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return these statistics as JSON data; what float64 cannot hold is None there."""
        return {
            "count": self.count,
            "zero": self.zero,
            "nonfinite": self.nonfinite,
            "min": self.min,
            "max": self.max,
            "mean": self.mean,
            "m2": _finite_or_none(self.m2),
            "std": None if self.std is None else _finite_or_none(self.std),
            "quantiles": {str(q): value for q, value in self.quantiles().items()},
            "histogram": [list(pair) for pair in sorted(self.histogram.items())],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NormStats:
        """Return what `to_dict` was called on; the derived std and quantiles are not looked at.

        Raises:
            Damaged: ``data`` is not what `to_dict` gives.
        """
        with _reading("norm statistics"):
            stats = cls(
                count=int(data["count"]),
                zero=int(data["zero"]),
                nonfinite=int(data["nonfinite"]),
                **{name: _float_or_none(data[name]) for name in ("min", "max", "mean")},
                m2=_float_or_inf(data["m2"]),
                histogram={int(bucket): int(count) for bucket, count in data["histogram"]},
            )
            if sum(stats.histogram.values()) != stats.count:
                raise ValueError("the histogram does not add up to the count")
            return stats


@dataclass(frozen=True, eq=False)
class DimensionStats:
    """Statistics of each dimension of vectors, before normalization.

    Args:
        count: Vectors.
        mean: float64[d]; zeros where there are no vectors.
        m2: float64[d], sums of squared deviations from ``mean``; inf where float64 cannot hold it.
        min: float64[d]; inf where there are no vectors.
        max: float64[d]; -inf where there are no vectors.

    Example:
        >>> DimensionStats.of(np.array([[1.0, 5.0], [3.0, 5.0]])).variance
        array([1., 0.])
    """

    count: int
    mean: Float64s
    m2: Float64s
    min: Float64s
    max: Float64s

    @classmethod
    def of(cls, x64: Float64s) -> DimensionStats:
        """Measure vectors.

        Args:
            x64: float64[n, d], all of them finite.
        """
        # Which of -0.0 and 0.0 wins depends on their order; adding 0.0 makes both 0.0.
        smallest = x64.min(axis=0, initial=math.inf) + 0.0
        largest = x64.max(axis=0, initial=-math.inf) + 0.0
        mean, m2 = _moments(x64, smallest, largest)
        return cls(len(x64), mean, m2, smallest, largest)

    def merge(self, other: DimensionStats) -> DimensionStats:
        """Return the statistics of the vectors of both.

        Raises:
            Damaged: The vectors of the two differ in width.
        """
        if len(self.mean) != len(other.mean):
            message = (
                "Statistics of vectors of different widths cannot be merged. Expected: "
                f"{len(self.mean)} dimensions. Received: {len(other.mean)}. They are records of "
                "different runs; start afresh."
            )
            raise Damaged(message)
        if not (self.count and other.count):
            return self if self.count else other
        mean, m2 = _merged_moments(
            (self.count, self.mean, self.m2), (other.count, other.mean, other.m2)
        )
        smallest, largest = np.minimum(self.min, other.min), np.maximum(self.max, other.max)
        return DimensionStats(self.count + other.count, mean, m2, smallest, largest)

    __add__ = merge

    @property
    def variance(self) -> Float64s:
        """Population variance float64[d]; zeros where there are no vectors."""
        return self.m2 / max(self.count, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return these statistics as JSON data; what float64 cannot hold is None there."""
        lists = {"mean": self.mean, "m2": self.m2, "min": self.min, "max": self.max}
        named = {name: [_finite_or_none(v) for v in vs.tolist()] for name, vs in lists.items()}
        return {"count": self.count, **named}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DimensionStats:
        """Return what `to_dict` was called on.

        Raises:
            Damaged: ``data`` is not what `to_dict` gives.
        """
        with _reading("dimension statistics"):
            values = {
                name: np.array([_float_or_inf(v) for v in data[name]], dtype=np.float64)
                for name in ("mean", "m2", "min", "max")
            }
            if len({len(v) for v in values.values()}) != 1:
                raise ValueError("its lists differ in length")
            if not data["count"]:
                values["max"] = -values["max"]
            return cls(int(data["count"]), **values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DimensionStats) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class VectorStats:
    """Statistics of the vectors of one output of a model, before normalization.

    Args:
        rows: Rows of the table.
        vectors: Vectors in them; as many as rows, unless the output has rank above 2.
        zero: Vectors that are all zeros.
        nonfinite: Vectors with NaN or inf in them.
        norms: Statistics of each norm by its label: l1, l2, max, and the one in use if it is lp.
        dimensions: Statistics of each dimension, over the finite vectors.
    """

    rows: int
    vectors: int
    zero: int
    nonfinite: int
    norms: Mapping[str, NormStats]
    dimensions: DimensionStats

    @classmethod
    def of(
        cls, x64: Float64s, *, rows: int, in_use: Norm, in_use_norms: Float64s | None = None
    ) -> VectorStats:
        """Measure vectors.

        Args:
            x64: float64[n, d], C order.
            rows: Rows of the table that the n vectors came from.
            in_use: The norm that the vectors are to be divided by.
            in_use_norms: float64[n, 1], that norm of each, where it is known already.

        Example:
            >>> stats = VectorStats.of(np.array([[3.0, -4.0]]), rows=1, in_use=Norm("l2"))
            >>> {label: norms.max for label, norms in stats.norms.items()}
            {'l1': 7.0, 'l2': 5.0, 'max': 4.0}
        """
        peaks = row_norms(x64, MAX)
        known = {MAX: peaks} if in_use_norms is None else {MAX: peaks, in_use: in_use_norms}
        measured = (L1, L2, MAX, in_use) if in_use.name == "lp" else (L1, L2, MAX)
        finite = np.isfinite(peaks[:, 0])
        return cls(
            rows=rows,
            vectors=len(x64),
            zero=len(x64) - int(np.count_nonzero(peaks)),
            nonfinite=len(x64) - int(np.count_nonzero(finite)),
            norms={n.label: NormStats.of(_norms_of(x64, n, known)) for n in measured},
            dimensions=DimensionStats.of(x64 if finite.all() else x64[finite]),
        )

    def merge(self, other: VectorStats) -> VectorStats:
        """Return the statistics of the vectors of both.

        Raises:
            Damaged: The two measured other norms, or vectors of another width.
        """
        if self.norms.keys() != other.norms.keys():
            message = (
                "Statistics of different norms cannot be merged. Expected: "
                f"{', '.join(self.norms)}. Received: {', '.join(other.norms)}. They are records of "
                "different runs; start afresh."
            )
            raise Damaged(message)
        return VectorStats(
            rows=self.rows + other.rows,
            vectors=self.vectors + other.vectors,
            zero=self.zero + other.zero,
            nonfinite=self.nonfinite + other.nonfinite,
            norms={label: norms + other.norms[label] for label, norms in self.norms.items()},
            dimensions=self.dimensions + other.dimensions,
        )

    __add__ = merge

    def to_dict(self) -> dict[str, Any]:
        """Return these statistics as JSON data."""
        return {
            "rows": self.rows,
            "vectors": self.vectors,
            "zero": self.zero,
            "nonfinite": self.nonfinite,
            "norms": {label: norms.to_dict() for label, norms in self.norms.items()},
            "dimensions": self.dimensions.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VectorStats:
        """Return what `to_dict` was called on.

        Raises:
            Damaged: ``data`` is not what `to_dict` gives.
        """
        with _reading("vector statistics"):
            counts = {name: int(data[name]) for name in ("rows", "vectors", "zero", "nonfinite")}
            norms = {label: NormStats.from_dict(stats) for label, stats in data["norms"].items()}
            return cls(
                **counts, norms=norms, dimensions=DimensionStats.from_dict(data["dimensions"])
            )


def _norms_of(x64: Float64s, norm: Norm, known: Mapping[Norm, Float64s]) -> Float64s:
    return known[norm] if norm in known else row_norms(x64, norm)


def _moments(
    values: Float64s, low: Float64s | np.float64, high: Float64s | np.float64
) -> tuple[Float64s, Float64s]:
    """Return the mean, and the sum of squared deviations from it, along the first axis.

    The mean is held within ``low`` and ``high``, the extremes, which a rounded sum can leave.
    """
    if not len(values):
        return np.zeros(values.shape[1:]), np.zeros(values.shape[1:])
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.add.reduce(values, axis=0) / len(values)
        if not np.isfinite(mean).all():  # the sum is beyond float64, the mean is not
            mean = np.add.reduce(values / len(values), axis=0)
        mean = np.clip(mean, low, high)
        deviations = values - mean
        deviations *= deviations
        return mean, np.add.reduce(deviations, axis=0)


def _merged_moments(
    one: tuple[int, _Moment, _Moment], other: tuple[int, _Moment, _Moment]
) -> tuple[_Moment, _Moment]:
    """Merge (count, mean, m2) of two sets, neither empty.

    The update of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances" (1979), eq. 2.1, from the larger set's mean: so written, equal means stay
    equal to the last bit, and no difference of means overflows.
    """
    if other[0] > one[0]:
        one, other = other, one
    (n, mean, m2), (other_n, other_mean, other_m2) = one, other
    share = other_n / (n + other_n)
    with np.errstate(over="ignore"):
        difference = other_mean - mean
        between = difference * difference * (n * share)
        return mean + (other_mean * share - mean * share), m2 + other_m2 + between


def _histogram(finite: Float64s) -> dict[int, int]:
    buckets = (finite.view(np.uint64) >> np.uint64(_SHIFT)).astype(np.intp)
    first = buckets.min()
    if buckets.max() - first < _COUNTABLE_BUCKETS:
        counts = np.bincount(buckets - first)
        found = np.flatnonzero(counts)
        return dict(zip((found + first).tolist(), counts[found].tolist(), strict=True))
    found, counts = np.unique(buckets, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def _added(one: Mapping[int, int], other: Mapping[int, int]) -> dict[int, int]:
    total = dict(one)
    for bucket, count in other.items():
        total[bucket] = total.get(bucket, 0) + count
    return total


def _lower_edges(buckets: npt.NDArray[np.int64]) -> Float64s:
    return (buckets << _SHIFT).view(np.float64)


def _given(*values: float | None) -> list[float]:
    return [value for value in values if value is not None]


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _float_or_none(value: Any) -> float | None:
    return None if value is None else float(value)


def _float_or_inf(value: Any) -> float:
    return math.inf if value is None else float(value)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = (
            f"The stored {what} cannot be read. Expected: what this version writes. Received: "
            f"{type(error).__name__}: {error}. Run the job again with --fresh."
        )
        raise Damaged(message) from error
