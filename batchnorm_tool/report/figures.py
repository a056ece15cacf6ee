"""What pages and terminal summaries look up in the documents of a comparison and of a history."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar, cast

from batchnorm_tool.display import DASH, number, plural
from batchnorm_tool.norms.stats import NormStats
from batchnorm_tool.report.charts import Interval

if TYPE_CHECKING:
    from batchnorm_tool.comparison.drift import DifferenceDocument
    from batchnorm_tool.comparison.verdict import ComparisonDocument, Numbers, RankingFigures
    from batchnorm_tool.gate.record import GateRecord, History, RefreshRecord

_T = TypeVar("_T")
_FAMILIES = {"ndcg": "nDCG", "mrr": "MRR", "map": "MAP"}
# The first screen of results.
_USUAL_K = 10
_NO_INTERVAL = Interval(math.nan, math.nan, math.nan)
OUTCOMES = ("live", "kept", "rolled back", "removed", "waiting", "not published")
"""What can have become of a refresh, in the order in which a chart shows it."""
_NOT_PUBLISHED = {"superseded", "discarded"}
_SCOPES = {"input": "input", "changed": "changed rows", "whole": "all rows", "audit": "audit"}
EitherDocument: TypeAlias = "ComparisonDocument | DifferenceDocument"


def base_name(path: object) -> str:
    """Return the last piece of a path.

    Example:
        >>> base_name("runs/digits/"), base_name("/")
        ('digits', '/')
    """
    whole = str(path)
    return whole.rstrip("/").rsplit("/", 1)[-1] or whole


def describe_key(key: object) -> str:
    """Return the key of a row as text, its parts separated by commas where it has several.

    Example:
        >>> describe_key(17), describe_key(["shop", 17])
        ('17', 'shop, 17')
    """
    return ", ".join(map(str, key)) if isinstance(key, list | tuple) else str(key)


def real(value: float | None) -> float:
    """Return a number of the document, NaN where it holds none."""
    return math.nan if value is None else float(value)


def measured_norms(document: ComparisonDocument) -> dict[str, NormStats]:
    """Return the statistics of every norm; ``none`` divides by one and has nothing to show."""
    norms = document.get("norms") or {}
    return {
        label: NormStats.from_dict(stats)
        for label, stats in norms.items()
        if stats and label != "none"
    }


def between(matrix: Mapping[str, Mapping[str, _T]] | None, one: str, other: str) -> _T | None:
    """Return the entry of two labels from a symmetric matrix of which one half may be missing.

    Example:
        >>> between({"none": {"l2": 0.31}}, "l2", "none")
        0.31
    """
    rows = matrix or {}
    found = (rows.get(one) or {}).get(other)
    return (rows.get(other) or {}).get(one) if found is None else found


def metric_name(metric: str) -> str:
    """Return a metric as the literature spells it.

    Example:
        >>> metric_name("ndcg@10"), metric_name("precision")
        ('nDCG@10', 'precision')
    """
    family, at, k = metric.partition("@")
    return f"{_FAMILIES.get(family, family)}{at}{k}"


def families(document: ComparisonDocument) -> dict[str, list[str]]:
    """Return the metrics of a comparison by family, the headline's family first.

    Example:
        >>> quality = {"none": {"map@10": {}, "precision@10": {}, "precision@1": {}}}
        >>> families({"quality": quality, "headline": "precision@1"})
        {'precision': ['precision@1', 'precision@10'], 'map': ['map@10']}
    """
    every = dict.fromkeys(itertools.chain(*(document.get("quality") or {}).values()))
    decisive = str(document.get("headline")).partition("@")[0]
    found: dict[str, list[str]] = {}
    for metric in sorted(every, key=lambda name: name.partition("@")[0] != decisive):
        found.setdefault(metric.partition("@")[0], []).append(metric)
    return {family: sorted(metrics, key=k_of) for family, metrics in found.items()}


def k_of(metric: str) -> int:
    """Return the k of a metric such as ``precision@10``."""
    return int(metric.partition("@")[2] or 0)


def headline(document: ComparisonDocument) -> str | None:
    """Return the metric that the verdict is about, the first one where it names none."""
    named = document.get("headline")
    if named:
        return str(named)
    every = [metric for metrics in families(document).values() for metric in metrics]
    return every[0] if every else None


def shown_k(document: ComparisonDocument) -> int:
    """Return the k that stands for all: the headline's, or the largest up to ten.

    Example:
        >>> shown_k({"headline": "map@5", "k": [1, 5]}), shown_k({"k": [1, 8, 100]})
        (5, 8)
        >>> shown_k({"k": [50, 20]})
        20
    """
    named = k_of(str(document.get("headline") or ""))
    if named in document["k"]:
        return named
    return int(max((k for k in document["k"] if k <= _USUAL_K), default=min(document["k"])))


def interval(entry: Numbers | None) -> Interval:
    """Return ``value``, ``low`` and ``high`` of an entry; NaN for those that it lacks."""
    if not entry:
        return _NO_INTERVAL
    return Interval(*(real(entry.get(name)) for name in ("value", "low", "high")))


def quality(document: RankingFigures, norm: str, metric: str) -> Interval:
    """Return a norm's value and interval at a metric; NaN where there is none."""
    return interval(((document.get("quality") or {}).get(norm) or {}).get(metric))


def tested(document: ComparisonDocument, norm: str, metric: str) -> Numbers:
    """Return a norm's difference to the first norm at a metric, with interval and p values."""
    tests = document.get("tests") or {}
    entry = tests.get(norm)
    return (entry.get(metric) or {}) if isinstance(entry, Mapping) else {}


def describe_relevance(document: ComparisonDocument) -> str | None:
    """Say who is relevant to whom.

    Example:
        >>> describe_relevance({"relevance": {"kind": "labels", "column": "label", "classes": 10}})
        'rows of the same `label` (10 classes)'
    """
    relevance = document.get("relevance")
    if not relevance:
        return None
    if relevance["kind"] == "labels":
        return (
            f"rows of the same `{relevance['column']}` "
            f"({plural(cast('int', relevance['classes']), 'class', 'classes')})"
        )
    kind = "clicks" if relevance.get("clicks") else "judgements"
    return f"{relevance['pairs']:,} {kind} in `{relevance['path']}`"


def describe_unknown(document: ComparisonDocument) -> Sequence[str]:
    """Say how many queries and items of the relevance file are not among the vectors."""
    relevance = document.get("relevance") or {}
    pairs = [("unknown_queries", "queries"), ("unknown_items", "items")]
    return [f"{relevance[key]:,} unknown {what}" for key, what in pairs if relevance.get(key)]


def outcome(record: RefreshRecord, history: History) -> str:
    """Return what became of a refresh, one of `OUTCOMES`."""
    version = record.version
    if version == history.live:
        return "live"
    if record.state == "waiting":
        return "waiting"
    if record.state in _NOT_PUBLISHED:
        return "not published"
    if any((its.restores or 0) < version < its.version for its in history.rollbacks):
        return "rolled back"
    return "kept" if version in history.kept else "removed"


def describe_outcome(record: RefreshRecord, history: History) -> str:
    """Return what became of a refresh, with the reason where it waits or never was published."""
    its = outcome(record, history)
    if its == "waiting" and record.reason:
        return f"waiting ({record.reason})"
    if its == "rolled back" and record.version in history.kept:
        return "rolled back, kept"
    return record.state if its == "not published" else its


def describe_kind(record: RefreshRecord) -> str:
    """Return the kind of a refresh, such as ``rollback to 3`` or ``refresh, new space``."""
    if record.kind == "rollback":
        return f"rollback to {record.restores}"
    return f"{record.kind}, new space" if record.new_space else record.kind


def when(time: str) -> str:
    """Return a time to the minute, in UTC.

    Example:
        >>> when("2026-03-01T02:00:31.5+00:00")
        '2026-03-01 02:00'
    """
    return time[:16].replace("T", " ")


def quantile(record: RefreshRecord, name: str) -> float:
    """Return a quantile of a refresh's norms; NaN where there is none."""
    return real((record.norms or {}).get(name))


def describe_norms(record: RefreshRecord) -> str:
    """Return the median of a refresh's norms, and what 90 % of them lie between."""
    low, middle, high = (quantile(record, name) for name in ("q05", "q50", "q95"))
    if math.isnan(middle):
        return DASH
    return f"{number(middle)} [{number(low)}{DASH}{number(high)}]"


def finding_name(limit: str, scope: str) -> str:
    """Name a limit and what it was held against, as short as can be.

    Example:
        >>> finding_name("gate.output.norm_psi", "changed")
        'norm_psi (changed rows)'
    """
    return f"{limit.rpartition('.')[2]} ({_SCOPES.get(scope, scope)})"


def describe_gate(gate: GateRecord | None) -> str:
    """Return what the gate said of a refresh.

    Example:
        >>> from batchnorm_tool.gate.findings import Finding
        >>> from batchnorm_tool.gate.record import GateRecord
        >>> finding = Finding("gate.input.changed", "input", 0.3, 0.2, False, "30 % are changed.")
        >>> describe_gate(GateRecord("hold", False, (finding,)))
        'held: changed (input)'
    """
    if gate is None:
        return DASH
    names = [finding_name(finding.limit, finding.scope) for finding in gate.broken]
    if not names:
        return "passed"
    return f"{'warned' if gate.action == 'warn' else 'held'}: {', '.join(names)}"
