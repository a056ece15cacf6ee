"""The figures of a comparison, over all its queries or over a group of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from batchnorm_tool.comparison import agreement
from batchnorm_tool.comparison.agreement import Hubness
from batchnorm_tool.comparison.quality import quality
from batchnorm_tool.comparison.resampling import bootstrap, holm, paired_randomization

if TYPE_CHECKING:
    from batchnorm_tool.comparison.judgements import Judgements
    from batchnorm_tool.norms import Float64s

Int64s = np.ndarray

# What people look at: the first screen of results.
_HEADLINE_K = 10
# The figures of a metric, and of its test.
_INTERVAL = ("value", "low", "high")
_TESTED = ("difference", "low", "high", "p", "p_holm")


@dataclass(frozen=True)
class Rankings:
    """What each norm ranks first for every query.

    Attributes:
        rows: By the label of each norm, ``int64[q, max(ks)]``, nearest first; -1 where there are no
            more. The first norm is the one that the others are held against.
        ks: Depths at which figures are given, ascending.
        base_rows: Rows of the base.
        judgements: Which rows are relevant to which query, where that is known.
        seed: Of the resampling.
    """

    rows: Mapping[str, Int64s]
    ks: tuple[int, ...]
    base_rows: int
    judgements: Judgements | None
    seed: int

    @property
    def norms(self) -> list[str]:
        """Labels of the norms."""
        return list(self.rows)

    @property
    def headline_k(self) -> int:
        """The depth of what is shown first: the largest up to 10, else the smallest."""
        return max((k for k in self.ks if k <= _HEADLINE_K), default=self.ks[0])

    @cached_property
    def quality(self) -> dict[str, dict[str, Float64s]] | None:
        """Each query's quality by norm and metric, ``float64[q]``, NaN where it is not judged."""
        if self.judgements is None:
            return None
        return {norm: quality(self.judgements, rows, self.ks) for norm, rows in self.rows.items()}

    @cached_property
    def overlaps(self) -> dict[tuple[str, str], dict[int, Float64s]]:
        """Overlap of two norms for each query, by the pair (in order) and the depth."""
        return {
            pair: {k: agreement.overlap(self.rows[pair[0]], self.rows[pair[1]], k) for k in self.ks}
            for pair in self._pairs
        }

    @cached_property
    def rank_biased_overlaps(self) -> dict[tuple[str, str], Float64s]:
        """Rank-biased overlap of two norms for each query, by the pair."""
        return {
            (one, other): agreement.rank_biased_overlap(self.rows[one], self.rows[other])
            for one, other in self._pairs
        }

    @property
    def _pairs(self) -> list[tuple[str, str]]:
        norms = self.norms
        return [(one, other) for at, one in enumerate(norms) for other in norms[at + 1 :]]

    def figures(self, queries: Int64s | None = None) -> dict[str, Any]:
        """All figures, as plain data.

        Args:
            queries: ``int64[m]``, which queries, at least one; default: all.

        Returns:
            ``overlap``, ``rbo``, ``hubness``, ``quality`` and ``tests`` as the document of a
            comparison has them; the last two are ``None`` without judgements.
        """
        everyone = np.arange(len(self.rows[self.norms[0]]))
        chosen = everyone if queries is None else queries
        return {
            "overlap": self._overlap(chosen),
            "rbo": self._rbo(chosen),
            "hubness": self._hubness(chosen),
            **self._quality_and_tests(chosen),
        }

    def _overlap(self, queries: Int64s) -> dict[str, dict[str, dict[str, float]]]:
        means = {
            pair: {str(k): float(values[queries].mean()) for k, values in by_k.items()}
            for pair, by_k in self.overlaps.items()
        }
        return _mirrored(self.norms, means, {str(k): 1.0 for k in self.ks})

    def _rbo(self, queries: Int64s) -> dict[str, dict[str, float]]:
        means = {
            pair: float(values[queries].mean())
            for pair, values in self.rank_biased_overlaps.items()
        }
        return _mirrored(self.norms, means, 1.0)

    def _hubness(self, queries: Int64s) -> dict[str, dict[str, Any]]:
        found = {
            norm: Hubness.of(rows[queries], self.headline_k, self.base_rows)
            for norm, rows in self.rows.items()
        }
        return {
            norm: {
                "k": one.k,
                "skewness": plain(one.skewness),
                "antihubs": one.antihubs,
                "largest": one.largest,
            }
            for norm, one in found.items()
        }

    def _quality_and_tests(self, queries: Int64s) -> dict[str, Any]:
        if self.quality is None or self.judgements is None:
            return {"quality": None, "tests": None}
        judged = queries[self.judgements.judged[queries]]
        metrics = list(self.quality[self.norms[0]])
        values = {
            norm: np.column_stack([by_metric[metric][judged] for metric in metrics])
            for norm, by_metric in self.quality.items()
        }
        first, *others = self.norms
        differences = {norm: values[norm] - values[first] for norm in others}
        return {
            "quality": {
                norm: _intervals(metrics, each, self.seed) for norm, each in values.items()
            },
            "tests": {"against": first, **_tests(metrics, differences, self.seed)},
        }


def _intervals(
    metrics: Sequence[str], values: Float64s, seed: int
) -> dict[str, dict[str, float | None]]:
    if not len(values):
        return {metric: dict.fromkeys(_INTERVAL) for metric in metrics}
    figures = zip(values.mean(axis=0), *bootstrap(values, seed), strict=True)
    return {
        metric: dict(zip(_INTERVAL, map(float, of_metric), strict=True))
        for metric, of_metric in zip(metrics, figures, strict=True)
    }


def _tests(
    metrics: Sequence[str], differences: Mapping[str, Float64s], seed: int
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Differences from the first norm, each metric's p-values corrected for the number of norms."""
    if not all(len(each) for each in differences.values()):
        untested = {metric: dict.fromkeys(_TESTED) for metric in metrics}
        return dict.fromkeys(differences, untested)
    p = {norm: paired_randomization(each, seed) for norm, each in differences.items()}
    corrected = [holm(of_metric) for of_metric in zip(*p.values(), strict=True)]
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for place, (norm, each) in enumerate(differences.items()):
        p_holm = [of_norms[place] for of_norms in corrected]
        figures = zip(each.mean(axis=0), *bootstrap(each, seed), p[norm], p_holm, strict=True)
        found[norm] = {
            metric: dict(zip(_TESTED, map(float, of_metric), strict=True))
            for metric, of_metric in zip(metrics, figures, strict=True)
        }
    return found


def _mirrored(norms: Sequence[str], pairs: Mapping[tuple[str, str], Any], same: Any) -> Any:
    """A matrix of norms from the values of its upper half."""
    return {
        one: {
            other: same if one == other else pairs.get((one, other), pairs.get((other, one)))
            for other in norms
        }
        for one in norms
    }


def plain(value: float) -> float | None:
    """A number as JSON has it: what is not finite is ``None``.

    Example:
        >>> plain(0.5), plain(float("nan"))
        (0.5, None)
    """
    return float(value) if math.isfinite(value) else None
