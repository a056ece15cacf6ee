"""Statistics that merge: of norms (quantiles, moments), of vectors, and of their dimensions.

Counts, extremes and histograms, and with them quantiles, come out identical however rows are
split. Moments depend on the split in their last bits, and come out identical when the same pieces
are merged in the same order.
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic_core import CoreSchema, core_schema

from batchnorm_tool.errors import RECREATE, Damaged, JobError
from batchnorm_tool.norms.histogram import Histogram, merged_moments, moments, reduced
from batchnorm_tool.norms.norm import L1, L2, MAX, Anything, Float64s, Norm, row_norms, wide_blocks

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""The quantiles that records keep: of chunks, runs, versions and comparisons."""

MIDDLE_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Those of them that tables and charts show, and that the gate compares."""


def quantile_column(share: float) -> str:
    """Return what a quantile is called where names are columns: `q05`, or `q99_9` for 0.999."""
    whole, _, rest = f"{100 * share:.10g}".partition(".")
    return f"q{whole:0>2}_{rest}" if rest else f"q{whole:0>2}"


def quantile_label(share: float) -> str:
    """Return what a quantile is called in tables: `5 %`, `median`, or `99.9 %` for 0.999."""
    return "median" if share == 0.5 else f"{100 * share:.10g} %"


MIDDLE_COLUMNS = tuple(map(quantile_column, MIDDLE_QUANTILES))


class JsonStats:
    """Statistics that write and read their JSON by hand, which records may hold all the same.

    They are mostly arrays, and are read for every part of a run.
    """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return these statistics as JSON data; what float64 cannot hold is None there."""

    @classmethod
    @abstractmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return what `to_dict` was called on; `Damaged` where ``data`` is not what it gives."""

    @classmethod
    def _of_record(cls, data: Any) -> Self:
        try:
            return data if isinstance(data, cls) else cls.from_dict(data)
        except Damaged as error:
            raise ValueError(error.message) from error

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: object) -> CoreSchema:
        writing = core_schema.plain_serializer_function_ser_schema(cls.to_dict)
        return core_schema.no_info_plain_validator_function(cls._of_record, serialization=writing)


@dataclass(frozen=True)
class NormStats(JsonStats):
    """Statistics of norms; without arguments, of no norms at all.

    Args:
        count: Finite norms, zeros among them.
        zero: Norms that are zero.
        nonfinite: Norms that are NaN or inf; nothing else here knows of them.
        min: The smallest finite norm, None where there is none.
        max: The largest finite norm, None where there is none.
        mean: Mean of the finite norms, None where there is none.
        m2: Sum of the squared deviations from ``mean``; inf where float64 cannot hold it.
        histogram: Finite norms in each bucket; see `Histogram`.

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
    histogram: Histogram = field(default_factory=Histogram)

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
        mean, m2 = moments(finite, low, high)
        return cls(
            count=finite.size,
            zero=finite.size - int(np.count_nonzero(finite)),
            nonfinite=lost,
            min=float(low),
            max=float(high),
            mean=float(mean),
            m2=float(m2),
            histogram=Histogram.of(finite),
        )

    def merge(self, other: NormStats) -> NormStats:
        """Return the statistics of the norms of both."""
        ends = [end for end in (self.min, self.max, other.min, other.max) if end is not None]
        mean, m2 = self._merged_moments(other)
        return NormStats(
            count=self.count + other.count,
            zero=self.zero + other.zero,
            nonfinite=self.nonfinite + other.nonfinite,
            min=min(ends, default=None),
            max=max(ends, default=None),
            mean=mean,
            m2=m2,
            histogram=self.histogram.merge(other.histogram),
        )

    __add__ = merge

    def _merged_moments(self, other: NormStats) -> tuple[float | None, float]:
        if self.mean is None:
            return other.mean, other.m2
        if other.mean is None:
            return self.mean, self.m2
        return merged_moments((self.count, self.mean, self.m2), (other.count, other.mean, other.m2))

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
                raise JobError(f"A quantile must be a number from 0 to 1. Received: {q!r}.")
        if self.min is None or self.max is None:
            return [None] * len(shares)
        lower, upper = self.histogram.edges()
        # The inverse of the empirical distribution function, type 1 of Hyndman and Fan, "Sample
        # Quantiles in Statistical Packages" (1996): made of counts alone, it comes out the same
        # however rows were split.
        ranks = [max(1, math.ceil(q * self.count)) for q in shares]
        found = np.searchsorted(np.cumsum(self.histogram.counts), ranks)
        # Halves, because the edges of the last buckets add up beyond float64.
        middles = np.clip(lower[found] / 2 + upper[found] / 2, self.min, self.max)
        return [
            self._exact(rank, float(middle)) for rank, middle in zip(ranks, middles, strict=True)
        ]

    def _exact(self, rank: int, middle: float) -> float | None:
        # What is known exactly is not taken from a bucket: the ends and the zeros.
        if rank == self.count:
            return self.max
        if rank <= self.zero:
            return 0.0
        return self.min if rank == 1 else middle

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
        # Counts below each edge are rounded, not the counts between: their differences then add up
        # to the count of all, whatever rounding did.
        below = np.rint(np.interp(edges, *self._ascent())).astype(np.int64)
        below[0], below[-1] = 0, self.count
        return edges, np.diff(below)

    def _ascent(self) -> tuple[Float64s, Float64s]:
        """Return the corners of the line that climbs from 0 at ``min`` to ``count`` at ``max``."""
        ends = np.cumsum(self.histogram.counts)
        starts = ends - self.histogram.counts
        places = np.column_stack(self.histogram.edges()).reshape(-1)
        heights = np.column_stack((starts, ends)).reshape(-1).astype(np.float64)
        return np.clip(places, self.min, self.max), heights

    def to_dict(self) -> dict[str, Any]:
        """Return these statistics as JSON data; what float64 cannot hold is None there."""
        return {
            "count": self.count,
            "zero": self.zero,
            "nonfinite": self.nonfinite,
            "min": self.min,
            "max": self.max,
            "mean": self.mean,
            "m2": finite_or_none(self.m2),
            "std": finite_or_none(self.std),
            "quantiles": {str(q): value for q, value in self.quantiles().items()},
            "histogram": self.histogram.pairs(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NormStats:
        """Return what `to_dict` was called on; the derived std and quantiles are ignored.

        Raises:
            Damaged: ``data`` is not what `to_dict` gives.
        """
        with _reading("norm statistics"):
            stats = cls(
                count=int(data["count"]),
                zero=int(data["zero"]),
                nonfinite=int(data["nonfinite"]),
                **{
                    name: None if data[name] is None else float(data[name])
                    for name in ("min", "max", "mean")
                },
                m2=_float_or_inf(data["m2"]),
                histogram=Histogram.from_pairs(data["histogram"]),
            )
            if stats.histogram.counts.sum() != stats.count:
                raise ValueError("the histogram does not add up to the count")
            if stats.count and None in (stats.min, stats.max, stats.mean):
                raise ValueError("norms were counted, and there is no min, max or mean")
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
    """

    count: int
    mean: Float64s
    m2: Float64s
    min: Float64s
    max: Float64s

    @classmethod
    def of(cls, x64: Float64s) -> DimensionStats:
        """Measure vectors float64[n, d], all of them finite."""
        if not len(x64):
            nothing = np.zeros(x64.shape[1])
            return cls(0, nothing, nothing, nothing + math.inf, nothing - math.inf)
        # Which of -0.0 and 0.0 wins depends on their order; adding 0.0 makes both 0.0.
        smallest = reduced(np.minimum, x64) + 0.0
        largest = reduced(np.maximum, x64) + 0.0
        mean, m2 = moments(x64, smallest, largest)
        return cls(len(x64), mean, m2, smallest, largest)

    def merge(self, other: DimensionStats) -> DimensionStats:
        """Return the statistics of the vectors of both."""
        if len(self.mean) != len(other.mean):
            raise Damaged(
                "Statistics of vectors of different widths cannot be merged. "
                f"Expected: {len(self.mean)} dimensions. Received: {len(other.mean)}. They come "
                "from different runs; start over."
            )
        if not (self.count and other.count):
            return self if self.count else other
        mean, m2 = merged_moments(
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
        named = {name: [finite_or_none(v) for v in vs.tolist()] for name, vs in lists.items()}
        return {"count": self.count, **named}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DimensionStats:
        """Return what `to_dict` was called on."""
        with _reading("dimension statistics"):
            values = {
                name: np.array([_float_or_inf(v) for v in data[name]], dtype=np.float64)
                for name in ("mean", "m2", "min", "max")
            }
            if len({len(v) for v in values.values()}) != 1:
                raise ValueError("its lists differ in length")
            measured = np.concatenate([values["mean"], values["min"], values["max"]])
            if data["count"] and not np.isfinite(measured).all():
                raise ValueError("vectors were counted, and a mean, min or max is not finite")
            if not data["count"]:
                # JSON has null for infinity of either sign, and of no vectors the maximum is the
                # negative one.
                values["max"] = -values["max"]
            return cls(int(data["count"]), **values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DimensionStats) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class VectorStats(JsonStats):
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
        cls, vectors: Anything, *, rows: int, in_use: Norm, in_use_norms: Float64s | None = None
    ) -> VectorStats:
        """Measure vectors.

        Args:
            vectors: Real numbers [n, d].
            rows: Rows of the table that the n vectors came from.
            in_use: The norm that the vectors are to be divided by.
            in_use_norms: float64[n, 1], that norm of each, where it is known already.
        """
        known = {} if in_use_norms is None else {in_use: in_use_norms}
        own = () if in_use.name == "none" else (in_use,)
        measured = tuple(dict.fromkeys((L1, L2, MAX, *own)))
        lengths = {norm: known.get(norm, np.empty((len(vectors), 1))) for norm in measured}
        dimensions = DimensionStats.of(np.zeros((0, vectors.shape[1])))
        for block, x64 in wide_blocks(vectors):
            for norm in lengths.keys() - known.keys():
                lengths[norm][block] = row_norms(x64, norm)
            # NaN and inf survive into a row's largest component, and no rounding adds any: it tells
            # of the whole row.
            finite = np.isfinite(lengths[MAX][block, 0])
            # Without a copy where all are finite, as they nearly always are.
            dimensions += DimensionStats.of(x64 if finite.all() else x64[finite])
        peaks = lengths[MAX]
        return cls(
            rows=rows,
            vectors=len(vectors),
            zero=len(vectors) - int(np.count_nonzero(peaks)),
            nonfinite=len(vectors) - int(np.count_nonzero(np.isfinite(peaks))),
            norms={norm.label: NormStats.of(lengths[norm]) for norm in measured},
            dimensions=dimensions,
        )

    def merge(self, other: VectorStats) -> VectorStats:
        """Return the statistics of the vectors of both."""
        if self.norms.keys() != other.norms.keys():
            raise Damaged(
                "Statistics of different norms cannot be merged. "
                f"Expected: {', '.join(self.norms)}. Received: {', '.join(other.norms)}. They "
                "come from different runs; start over."
            )
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
        norms = {label: stats.to_dict() for label, stats in self.norms.items()}
        return {**vars(self), "norms": norms, "dimensions": self.dimensions.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VectorStats:
        """Return what `to_dict` was called on."""
        with _reading("vector statistics"):
            counts = {name: int(data[name]) for name in ("rows", "vectors", "zero", "nonfinite")}
            norms = {label: NormStats.from_dict(stats) for label, stats in data["norms"].items()}
            if not {"l1", "l2", "max"} <= norms.keys():
                raise ValueError(f"l1, l2 or max is missing among the norms {', '.join(norms)}")
            return cls(
                **counts, norms=norms, dimensions=DimensionStats.from_dict(data["dimensions"])
            )


def finite_or_none(value: float | None) -> float | None:
    """Return a number for JSON, which knows neither inf nor NaN."""
    return None if value is None or not math.isfinite(value) else value


def _float_or_inf(value: Any) -> float:
    """Return a number of JSON that is None where it was inf."""
    return math.inf if value is None else float(value)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Say of data that is not what `to_dict` gives that it is damaged."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise Damaged(
            f"The stored {what} cannot be read. Expected: what this version writes. Received: "
            f"{type(error).__name__}: {error}. {RECREATE.capitalize()}."
        ) from error
