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

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from batchnorm_tool.display import did_you_mean
from batchnorm_tool.errors import JobError
from batchnorm_tool.norms import L2, Float64s, Norm, row_norms


class Metric(StrEnum):
    """How a serving system compares a query with a stored vector."""

    DOT = "dot"
    EUCLIDEAN = "euclidean"
    COSINE = "cosine"

    @classmethod
    def parse(cls, text: str) -> Metric:
        """The metric of that name.

        Raises:
            JobError: There is none.

        Example:
            >>> Metric.parse("dot")
            <Metric.DOT: 'dot'>
        """
        names = [str(metric) for metric in cls]
        if text in names:
            return cls(text)
        hint = did_you_mean(text, names)
        msg = f"`metric` must be one of {', '.join(names)}. Received: {text!r}.{hint}"
        raise JobError(msg)


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
        """What ranks rows that are divided by ``norm`` under ``metric``.

        Example:
            >>> Score.of(Metric.COSINE, Norm("l1")) == Score.of(Metric.DOT, Norm("l2"))
            True
        """
        if metric is Metric.COSINE:
            return cls(L2, subtracts=False)
        return cls(norm, subtracts=metric is Metric.EUCLIDEAN)

    def divisors(self, x64: Float64s) -> Float64s:
        """What rows are divided by: their norms ``float64[n]``, and 1 for a row of zeros.

        Args:
            x64: Rows ``float64[n, d]``, C order.
        """
        norms = row_norms(x64, self.norm)[:, 0]
        norms[norms == 0] = 1
        return norms

    def exact(self, products: Float64s, squares: Float64s, divisors: Sides) -> Float64s:
        """Scores ``float64[m]`` of pairs of a query and a row.

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
