"""A set of vectors as the gate sees it: a sample, what is measured of it, its rows by key."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batchnorm_tool.gate.finding import SHOWN_ROWS
from batchnorm_tool.moments import moments, reduced
from batchnorm_tool.norms import Float64s, widen


@dataclass(frozen=True)
class Vectors:
    """Good rows of one set: tonight's changed ones, all of tonight, or the live version.

    Attributes:
        unit: float[n, d], the vectors of a random sample of the rows, finite.
        sample_norms: float64[n], the norms of the same rows.
        norms: float64[m], the norms of all rows, or of a larger sample of them.
        keys: The key columns of the sample's ``n`` rows.
    """

    unit: npt.NDArray[Any]
    sample_norms: Float64s
    norms: Float64s
    keys: pa.Table

    @cached_property
    def wide(self) -> Float64s:
        """The sample's vectors as float64[n, d]."""
        return widen(self.unit)

    @cached_property
    def _moments(self) -> tuple[Float64s, Float64s]:
        x = self.wide
        if not len(x):
            return moments(x, np.float64(0), np.float64(0))
        return moments(x, reduced(np.minimum, x), reduced(np.maximum, x))

    @property
    def mean(self) -> Float64s:
        """float64[d], the mean vector; zeros without rows."""
        return self._moments[0]

    @property
    def deviations(self) -> Float64s:
        """float64[d], the standard deviation of each dimension."""
        return np.sqrt(self._moments[1] / max(len(self.unit), 1))

    @property
    def spread(self) -> float:
        """The root mean square distance of the vectors from their mean."""
        return math.sqrt(float(np.sum(self.deviations**2)))

    def split(self, rows: int, norms: int, generator: np.random.Generator) -> tuple[Vectors, ...]:
        """Draw so many rows and norms at random; return all others first, then those drawn."""
        order, norm_order = (generator.permutation(len(x)) for x in (self.unit, self.norms))
        return tuple(
            Vectors(self.unit[here], self.sample_norms[here], self.norms[there], self.keys[:0])
            for here, there in (
                (order[rows:], norm_order[norms:]),
                (order[:rows], norm_order[:norms]),
            )
        )

    def worst(self, badness: Float64s, values: Float64s) -> tuple[dict[str, Any], ...]:
        """Name the sample's rows that are largest by one measure.

        Args:
            badness: float64[n], by which rows are chosen.
            values: float64[n], what is said of them.

        Returns:
            `SHOWN_ROWS` rows at most, the worst first, ties in the sample's order.
        """
        rows = np.argsort(-badness, kind="stable")[:SHOWN_ROWS]
        named = self.keys.take(pa.array(rows)).to_pylist()
        shown = (float(values[row]) for row in rows)
        return tuple(
            {"key": plain_key(key), "value": value if math.isfinite(value) else None}
            for key, value in zip(named, shown, strict=True)
        )


def plain_key(key: dict[str, Any]) -> dict[str, Any]:
    """Return key values as JSON can hold them: numbers and text as they are, all else as text.

    Example:
        >>> import datetime
        >>> plain_key({"shop": "a", "day": datetime.date(2026, 3, 1), "id": 7})
        {'shop': 'a', 'day': '2026-03-01', 'id': 7}
    """
    kept = (bool, int, str)
    return {name: value if isinstance(value, kept) else str(value) for name, value in key.items()}
