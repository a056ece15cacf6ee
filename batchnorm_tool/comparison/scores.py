"""How a norm enters the score by which a serving system ranks stored vectors.

A row ``b`` whose norm is ``N`` is stored as ``b / N``. For a query ``q`` the system then ranks by

- ``dot``: ``q . b / N``. The query's own norm multiplies all scores of a query alike, and changes
  no ranking.
- ``cosine``: ``q . b / |b|``, whatever ``N`` was: no norm can change anything.
- ``euclidean``: by the distance of ``q / M`` and ``b / N``, with the query's own norm ``M``; the
  nearest row is the one with the largest ``q . b / (M N) - (|b| / N)^2 / 2``.

``|b|`` is the L2 norm. With ``N`` the L2 norm all three rank alike, rows of zeros aside, which are
stored as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np

from batchnorm_tool.display import did_you_mean
from batchnorm_tool.errors import JobError
from batchnorm_tool.norms.norm import L2, Anything, Float64s, Norm, row_norms, widen

Int64s = np.ndarray
_BLOCK_ROWS = 8192


class Metric(StrEnum):
    """How a serving system compares a query with a stored vector."""

    DOT = "dot"
    EUCLIDEAN = "euclidean"
    COSINE = "cosine"

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Return the metric of that name.

        Example:
            >>> Metric.parse("dot")
            <Metric.DOT: 'dot'>
        """
        names = [str(metric) for metric in cls]
        if text in names:
            return cls(text)
        hint = did_you_mean(text, names)
        raise JobError(f"`metric` must be one of {', '.join(names)}. Received: {text!r}.{hint}")


@dataclass(frozen=True)
class Score:
    """A way to score stored rows, higher for nearer ones; equal ways are equal objects.

    Attributes:
        norm: What rows are divided by.
        subtracts: Whether half the square of the stored row's length is subtracted, as Euclidean
            distance asks for.
    """

    norm: Norm
    subtracts: bool

    @classmethod
    def of(cls, metric: Metric, norm: Norm) -> Score:
        """Return what ranks rows that are divided by ``norm`` under ``metric``.

        Example:
            >>> Score.of(Metric.COSINE, Norm("l1")) == Score.of(Metric.DOT, Norm("l2"))
            True
        """
        if metric is Metric.COSINE:
            return cls(L2, subtracts=False)
        return cls(norm, subtracts=metric is Metric.EUCLIDEAN)

    def divisors(self, x64: Float64s) -> Float64s:
        """Return what rows are divided by: their norms ``float64[n]``, and 1 for a row of zeros.

        Args:
            x64: Rows ``float64[n, d]``, C order.
        """
        norms = row_norms(x64, self.norm)[:, 0]
        norms[norms == 0] = 1
        return norms

    def exact(self, products: Float64s, squares: Float64s, divisors: Sides) -> Float64s:
        """Return scores ``float64[m]`` of pairs of a query and a row.

        Args:
            products: Their dot products before normalization, ``float64[m]``.
            squares: Those of each row with itself: roots squared would break ties by rounding.
            divisors: What both are divided by.
        """
        with np.errstate(all="ignore"):  # what float64 cannot hold has no order, see `neighbours`
            scores = products / divisors.rows
            if self.subtracts:
                scores = scores / divisors.queries - squares / np.square(divisors.rows) / 2
        return np.asarray(scores)


@dataclass(frozen=True)
class Sides:
    """A number for the query and one for the row of each pair.

    Attributes:
        queries: ``float64[m]``.
        rows: ``float64[m]``.
    """

    queries: Float64s
    rows: Float64s


class Base(Protocol):
    """Rows among which neighbours are looked for."""

    @property
    def rows(self) -> int:
        """How many there are."""

    def blocks(self) -> Iterator[Anything]:
        """Yield the rows in order, ``[n, d]`` at a time; each call begins again."""

    def sample(self, rows: int) -> Anything:
        """Return about so many rows, ``[m, d]``, spread evenly; they decide on speed alone."""


@dataclass(frozen=True)
class ArrayBase:
    """Rows in memory.

    Attributes:
        array: Real numbers ``[rows, d]``.
    """

    array: Anything

    @property
    def rows(self) -> int:
        """How many there are."""
        return len(self.array)

    def blocks(self) -> Iterator[Anything]:
        """Yield the rows in blocks of 8,192."""
        for start in range(0, len(self.array), _BLOCK_ROWS):
            yield self.array[start : start + _BLOCK_ROWS]

    def sample(self, rows: int) -> Anything:
        """Return rows at equal distances."""
        return self.array[:: -(-len(self.array) // max(rows, 1)) or 1]


@dataclass(frozen=True)
class Queries:
    """Vectors whose neighbours are looked for.

    Attributes:
        vectors: ``float64[q, d]``, finite.
        rows: ``int64[q]``, each query's own row of the base, which is left out; -1 for none.
    """

    vectors: Float64s
    rows: Int64s

    @classmethod
    def of(cls, vectors: Anything, rows: Int64s) -> Queries:
        """Return queries from real numbers ``[q, d]``, and their own rows ``int64[q]``."""
        return cls(widen(vectors), np.asarray(rows, np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Int64s) -> Queries:
        """Return some of the queries, ``int64[m]``."""
        return Queries(self.vectors[places], self.rows[places])
