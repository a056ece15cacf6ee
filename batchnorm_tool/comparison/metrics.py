"""How good a ranking is: precision, recall, nDCG, MRR and MAP of each query.

The definitions are trec_eval's, as ir-measures gives them: ``P@k``, ``R@k``, ``nDCG@k``, ``RR@k``
and ``AP@k``. A row is relevant where its grade is above 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, product

import numpy as np

from batchnorm_tool.comparison import verdict
from batchnorm_tool.comparison.judgements import Judgements
from batchnorm_tool.comparison.verdict import Numbers, Quality, RankingFigures, Tests
from batchnorm_tool.norms.norm import Float64s

Int64s = np.ndarray
# A reader looks at rank r + 1 with this probability: the first ten ranks weigh 86 %.
RBO_PERSISTENCE = 0.9
# Queries at a time: 16 MB of ranks and rows at a depth of 100.
_QUERIES = 2048
# The figures of a metric, and of its test.
_INTERVAL = ("value", "low", "high")
_TESTED = ("difference", "low", "high", "p", "p_holm")


def quality(judgements: Judgements, rows: Int64s, ks: Sequence[int]) -> dict[str, Float64s]:
    """Measure the rankings of queries, at several depths.

    - ``precision@k``: share of the first k ranks that are relevant.
    - ``recall@k``: share of the relevant rows that are in the first k ranks.
    - ``ndcg@k``: sum of ``grade / log2(rank + 1)`` over that of the ideal ranking (Järvelin and
      Kekäläinen, Cumulated Gain-Based Evaluation of IR Techniques, ACM TOIS 20(4), 2002, with the
      discount that trec_eval has made usual).
    - ``mrr@k``: one over the rank of the first relevant row, 0 where the first k have none.
    - ``map@k``: sum of the precisions at relevant ranks up to k, over the number of relevant rows.

    The ``rows``, int64[q, kmax], are each query's neighbours, nearest first, each once; -1 where
    there are no more. For each of ``"precision@1"`` and so on, up to the depths ``ks``, the result
    has float64[q]: NaN for a query that is not judged, 0 for a judged one without relevant rows.
    """
    curves = _curves(judgements, judgements.grades(rows[:, : max(ks)]))
    judged = judgements.judged
    return {
        f"{metric}@{k}": np.where(judged, curve[:, k - 1], np.nan)
        for metric, curve in curves.items()
        for k in ks
    }


def _curves(judgements: Judgements, grades: Float64s) -> dict[str, Float64s]:
    """Return every metric at every depth: float64[q, k]."""
    hits = grades > 0
    relevant = judgements.relevant[:, None]
    ranks = np.arange(1, grades.shape[1] + 1)
    discounts = np.log2(ranks + 1)
    found = np.cumsum(hits, axis=1, dtype=np.int64)
    precision = found / ranks
    gains = np.cumsum(grades / discounts, axis=1)
    most = np.cumsum(judgements.ideal(len(ranks)) / discounts, axis=1)
    return {
        "precision": precision,
        "recall": _shares(found, relevant),
        "ndcg": _shares(gains, most),
        "mrr": np.maximum.accumulate(hits / ranks, axis=1),
        "map": _shares(np.cumsum(hits * precision, axis=1), relevant),
    }


def _shares(parts: Float64s | Int64s, wholes: Float64s | Int64s) -> Float64s:
    """Return parts over wholes, 0 where the whole is 0."""
    shares = np.zeros(parts.shape)
    return np.divide(parts, wholes, out=shares, where=wholes > 0)


def overlap(first: Int64s, second: Int64s, ks: Sequence[int]) -> Float64s:
    """Return the share of common rows among the ``k`` nearest of two rankings, ``float64[q, ks]``.

    Rankings are ``int64[q, m]``, rows nearest first, each once; -1 where there are no more. Where
    both have fewer rows than asked for, it is out of the longer one; 1 where neither has any.
    """
    shared = np.take(_shared_by_depth(first, second), np.subtract(ks, 1), axis=1)
    lengths = np.minimum(_lengths(first, second)[:, np.newaxis], ks)
    return np.where(lengths > 0, shared / np.maximum(lengths, 1), 1.0)


def rank_biased_overlap(
    first: Int64s, second: Int64s, persistence: float = RBO_PERSISTENCE
) -> Float64s:
    """Return rank-biased overlap of two rankings of equal length, extrapolated beyond their end.

    It is ``float64[q]``, 0 to 1, of rankings as `overlap` takes them; 1 where neither has any rows.
    """
    shared, lengths = _shared_by_depth(first, second), _lengths(first, second)
    # The mean agreement at all depths, depth `d` weighing `persistence ** (d - 1)`, as if it went
    # on beyond the last rank as it was there: equation 30 of Webber, Moffat and Zobel, A Similarity
    # Measure for Indefinite Rankings, ACM TOIS 28(4), 2010.
    depths = np.arange(1, shared.shape[1] + 1)
    # Depths beyond the longer ranking agree in nothing of their own; the last agreement stands for
    # them in `beyond`.
    weights = np.where(depths <= lengths[:, np.newaxis], persistence**depths, 0)
    within = (1 - persistence) / persistence * (shared / depths * weights).sum(axis=1)
    beyond = shared[:, -1] / np.maximum(lengths, 1) * persistence**lengths
    return np.where(lengths > 0, within + beyond, 1.0)


def _shared_by_depth(first: Int64s, second: Int64s) -> Int64s:
    """Count the rows that the first ``d`` ranks share, ``int64[q, m]`` for ``d`` to ``m``."""
    shared = np.empty(first.shape, np.int64)
    for start in range(0, len(first), _QUERIES):
        some = slice(start, start + _QUERIES)
        shared[some] = _shared(first[some], second[some])
    return shared


def _shared(first: Int64s, second: Int64s) -> Int64s:
    """Return the same at one go: a row is shared from the later of its two ranks on."""
    both = np.concatenate([first, second], axis=1)
    order = np.argsort(both, axis=1, kind="stable")
    rows, ranks = np.take_along_axis(both, order, 1), order % first.shape[1]
    # In this order a row of both rankings comes twice.
    twice = (rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)
    later = np.maximum(ranks[:, 1:], ranks[:, :-1])
    shared = np.zeros(first.shape, np.int64)
    np.add.at(shared, (np.nonzero(twice)[0], later[twice]), 1)
    return np.cumsum(shared, axis=1)


def _lengths(first: Int64s, second: Int64s) -> Int64s:
    """Return how many rows the longer one of two rankings has."""
    return np.maximum((first >= 0).sum(axis=1), (second >= 0).sum(axis=1))


def hubness(rows: Int64s, k: int, base_rows: int) -> Numbers:
    """Measure how unevenly neighbours ``int64[q, m]`` are spread over the rows of the base.

    A row's k-occurrence is the number of queries that have it among their ``k`` nearest. A few rows
    that are near to everything ("hubs") make it skewed: Radovanovic, Nanopoulos and Ivanovic, Hubs
    in Space, JMLR 11, 2010. ``skewness`` is its third standardized moment over all rows, None where
    all are equal; ``antihubs`` the share of rows that are no query's neighbour.
    """
    near = rows[:, :k]
    counts = np.bincount(near[near >= 0].ravel(), minlength=base_rows)
    away = counts - counts.mean()
    spread = float(np.sqrt(np.mean(away**2)))
    return {
        "k": k,
        "skewness": float(np.mean(away**3)) / spread**3 if spread else None,
        "antihubs": float(np.mean(counts == 0)),
        "largest": int(counts.max()),
    }


def rank_correlation(first: Float64s, second: Float64s) -> float | None:
    """Return Spearman's rank correlation, equal values sharing the mean of their ranks.

    It is None where all values of one are equal.
    """
    ranks = []
    for values in (first, second):
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[places])
    away = [each - each.mean() for each in ranks] if len(first) else ranks
    sizes = [float(np.sqrt(each @ each)) for each in away]
    if not all(sizes):
        return None
    return float(np.clip(away[0] @ away[1] / (sizes[0] * sizes[1]), -1, 1))


@dataclass(frozen=True)
class Rankings:
    """What each norm ranks first for every query.

    ``rows`` are, by the label of each norm, ``int64[q, max(ks)]``, nearest first; -1 where there
    are no more. The first norm is the one that the others are held against. Those ``with_options``,
    such as truncation, are by their plain norm, which they are held against, too.
    """

    rows: Mapping[str, Int64s]
    ks: tuple[int, ...]
    base_rows: int
    judgements: Judgements | None
    seed: int
    with_options: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @cached_property
    def quality(self) -> dict[str, dict[str, Float64s]] | None:
        """Each query's quality by norm and metric, ``float64[q]``, NaN where it is not judged."""
        if self.judgements is None:
            return None
        return {norm: quality(self.judgements, rows, self.ks) for norm, rows in self.rows.items()}

    @cached_property
    def _agreement(self) -> dict[frozenset[str], list[Float64s]]:
        """What two norms share of each query, ``float64[q]``: at each depth, and rank-biased."""
        found = {
            frozenset({norm}): [np.ones(len(rows))] * (len(self.ks) + 1)
            for norm, rows in self.rows.items()
        }
        for one, other in combinations(self.rows, 2):
            pair = self.rows[one], self.rows[other]
            shares = [*overlap(*pair, self.ks).T, rank_biased_overlap(*pair)]
            found[frozenset({one, other})] = shares
        return found

    def figures(self, queries: Int64s | None = None) -> RankingFigures:
        """Return all figures of some queries, ``int64[m]``, at least one; default: all."""
        everyone = np.arange(len(next(iter(self.rows.values()))))
        chosen = everyone if queries is None else queries
        quality, tests, of_options = self._quality_and_tests(chosen)
        overlaps: dict[str, dict[str, dict[str, float]]] = {norm: {} for norm in self.rows}
        rbo: dict[str, dict[str, float]] = {norm: {} for norm in self.rows}
        for one, other in product(self.rows, repeat=2):
            shares = self._agreement[frozenset({one, other})]
            *by_depth, rbo[one][other] = (float(share[chosen].mean()) for share in shares)
            overlaps[one][other] = dict(zip(map(str, self.ks), by_depth, strict=True))
        figures: RankingFigures = {
            "overlap": overlaps,
            "rbo": rbo,
            "hubness": {
                norm: hubness(rows[chosen], verdict.headline_k(self.ks), self.base_rows)
                for norm, rows in self.rows.items()
            },
            "quality": quality,
            "tests": tests,
        }
        return {**figures, "option_tests": of_options} if of_options else figures

    def _quality_and_tests(
        self, queries: Int64s
    ) -> tuple[Quality | None, Tests | None, list[Tests]]:
        if self.quality is None or self.judgements is None:
            return None, None, []
        judged = queries[self.judgements.judged[queries]]
        first, *others = self.rows
        metrics = list(self.quality[first])
        if not len(judged):
            interval = {metric: dict.fromkeys(_INTERVAL) for metric in metrics}
            test = {metric: dict.fromkeys(_TESTED) for metric in metrics}
            untested: Tests = {"against": first, **dict.fromkeys(others, test)}
            return dict.fromkeys(self.rows, interval), untested, []
        values = {
            norm: np.column_stack([by_metric[metric][judged] for metric in metrics])
            for norm, by_metric in self.quality.items()
        }

        def tests(against: str, norms: Sequence[str]) -> Tests:
            differences = {norm: values[norm] - values[against] for norm in norms}
            return {"against": against, **_tests(metrics, differences, self.seed)}

        found = {norm: intervals(metrics, each, self.seed) for norm, each in values.items()}
        of_options = [tests(plain, norms) for plain, norms in self.with_options.items()]
        return found, tests(first, others), of_options


def intervals(names: Sequence[str], values: Float64s, seed: int) -> dict[str, dict[str, float]]:
    """Return the mean of each named column of ``float64[q, m]``, not empty, and its interval."""
    return _figures(names, _INTERVAL, values.mean(axis=0), *verdict.bootstrap(values, seed))


def _tests(
    metrics: Sequence[str], differences: Mapping[str, Float64s], seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Return differences from another norm, p-values corrected for the number of norms."""
    p = {norm: verdict.paired_randomization(each, seed) for norm, each in differences.items()}
    corrected = [verdict.holm(of_metric) for of_metric in zip(*p.values(), strict=True)]
    p_holm = dict(zip(p, zip(*corrected, strict=True), strict=True))
    found = {}
    for norm, each in differences.items():
        low, high = verdict.bootstrap(each, seed)
        columns = (each.mean(axis=0), low, high, p[norm], p_holm[norm])
        found[norm] = _figures(metrics, _TESTED, *columns)
    return found


def _figures(
    metrics: Sequence[str], names: Sequence[str], *columns: Sequence[float] | Float64s
) -> dict[str, dict[str, float]]:
    """Return the named figures of each metric, from a column of each figure."""
    return {
        metric: dict(zip(names, map(float, figures), strict=True))
        for metric, figures in zip(metrics, zip(*columns, strict=True), strict=True)
    }
