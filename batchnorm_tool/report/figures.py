"""What pages and summaries look up: names, keys, and figures in the document of a comparison."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

from batchnorm_tool.comparison.drift import TurnedRow
from batchnorm_tool.comparison.verdict import (
    ComparisonDocument,
    Numbers,
    RankingFigures,
    option_tests,
)
from batchnorm_tool.display import DASH, fixed, number, probability, signed, span
from batchnorm_tool.norms.stats import NormStats
from batchnorm_tool.report.charts import Interval

_FAMILIES = {"ndcg": "nDCG", "mrr": "MRR", "map": "MAP"}


def base_name(path: object) -> str:
    """Return the last piece of a path."""
    whole = str(path)
    return whole.rstrip("/").rsplit("/", 1)[-1] or whole


def describe_key(key: object) -> str:
    """Return the key of a row as text, its parts separated by commas where it has several."""
    return ", ".join(map(str, key)) if isinstance(key, list | tuple) else str(key)


def real(value: float | None) -> float:
    """Return a number of the document, NaN where it holds none."""
    return math.nan if value is None else float(value)


def measured_norms(document: ComparisonDocument) -> dict[str, NormStats]:
    """Return the statistics of every norm; ``none`` divides by one and has nothing to show."""
    norms = document["norms"].items()
    return {label: NormStats.from_dict(stats) for label, stats in norms if label != "none"}


def metric_name(metric: str) -> str:
    """Return a metric, or a family of metrics, as the literature spells it."""
    family, at, k = metric.partition("@")
    return f"{_FAMILIES.get(family, family)}{at}{k}"


def families(document: ComparisonDocument) -> dict[str, list[str]]:
    """Return the metrics of a comparison by family, the headline's family first."""
    every = dict.fromkeys(itertools.chain(*(document["quality"] or {}).values()))
    decisive = str(document["headline"]).partition("@")[0]
    found: dict[str, list[str]] = {}
    for metric in sorted(every, key=lambda name: name.partition("@")[0] != decisive):
        found.setdefault(metric.partition("@")[0], []).append(metric)
    return {family: sorted(metrics, key=k_of) for family, metrics in found.items()}


def k_of(metric: str) -> int:
    """Return the k of a metric such as ``precision@10``."""
    return int(metric.partition("@")[2])


def overlap(of: RankingFigures, one: str, other: str, k: int) -> float:
    """Return the share of the k nearest neighbours that two norms have in common."""
    return real(of["overlap"][one][other][str(k)])


def interval(entry: Numbers) -> Interval:
    """Return ``value``, ``low`` and ``high`` of an entry; NaN for what is None."""
    return Interval(*(real(entry[name]) for name in ("value", "low", "high")))


def quality(of: RankingFigures, norm: str, metric: str) -> Interval:
    """Return a norm's value and interval at a metric, where queries are judged."""
    return interval((of["quality"] or {})[norm][metric])


def tested(document: ComparisonDocument, norm: str, metric: str) -> Numbers:
    """Return a norm's difference to the first norm at a metric, with interval and p values."""
    entry = (document["tests"] or {}).get(norm)
    return entry[metric] if isinstance(entry, Mapping) else {}


def quality_cells(document: ComparisonDocument, norm: str, metric: str) -> list[str]:
    """Return a norm's value and interval and, if there are tests, its difference, ends and both p.

    Those of the test are empty for the first norm.
    """
    its, test = quality(document, norm, metric), tested(document, norm, metric)
    cells = [fixed(its.value), span(its.low, its.high)]
    if not document["tests"]:
        return cells
    if not test:
        return [*cells, "", "", "", ""]
    low, high = real(test["low"]), real(test["high"])
    ends = f"{signed(low)} to {signed(high)}" if math.isfinite(low + high) else DASH
    tests = (probability(test[name]) for name in ("p", "p_holm"))
    return [*cells, signed(test["difference"]), ends, *tests]


def turned_cells(row: TurnedRow) -> list[str]:
    """Return the cosine of a row that turned, and its L2 norms in A and B."""
    return [fixed(row["cosine"], 6), number(row["norm_a"]), number(row["norm_b"])]


def option_cells(document: ComparisonDocument) -> list[list[str]]:
    """Return norms with options, those without, and the tests of the headline's difference."""
    return [
        [
            norm,
            plain,
            signed(test["difference"]),
            f"{signed(test['low'])} to {signed(test['high'])}",
            probability(test["p_holm"]),
        ]
        for norm, plain, test in option_tests(document, str(document["headline"]))
    ]
