"""Statistics of vectors and of their dimensions before normalization; they merge as norms' do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchnorm_tool.errors import Damaged
from batchnorm_tool.norms.histogram import merged_moments, moments, reduced
from batchnorm_tool.norms.norm import (
    L1,
    L2,
    MAX,
    Anything,
    Float64s,
    Norm,
    row_blocks,
    row_norms,
    widen,
)
from batchnorm_tool.norms.stats import JsonStats, NormStats, finite_or_none, float_or_inf, reading


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
        with reading("dimension statistics"):
            values = {
                name: np.array([float_or_inf(v) for v in data[name]], dtype=np.float64)
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

        Example:
            >>> stats = VectorStats.of(np.array([[3.0, -4.0]]), rows=1, in_use=Norm("l2"))
            >>> {label: norms.max for label, norms in stats.norms.items()}
            {'l1': 7.0, 'l2': 5.0, 'max': 4.0}
        """
        known = {} if in_use_norms is None else {in_use: in_use_norms}
        own = () if in_use.name == "none" else (in_use,)
        measured = tuple(dict.fromkeys((L1, L2, MAX, *own)))
        lengths = {norm: known.get(norm, np.empty((len(vectors), 1))) for norm in measured}
        dimensions = DimensionStats.of(np.zeros((0, vectors.shape[1])))
        for block in row_blocks(*vectors.shape):
            x64 = widen(vectors[block])
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
        """Return what `to_dict` was called on."""
        with reading("vector statistics"):
            counts = {name: int(data[name]) for name in ("rows", "vectors", "zero", "nonfinite")}
            norms = {label: NormStats.from_dict(stats) for label, stats in data["norms"].items()}
            if not {"l1", "l2", "max"} <= norms.keys():
                raise ValueError(f"l1, l2 or max is missing among the norms {', '.join(norms)}")
            return cls(
                **counts, norms=norms, dimensions=DimensionStats.from_dict(data["dimensions"])
            )
