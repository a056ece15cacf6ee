"""What pages and terminal summaries look up in the documents of a comparison and of a history."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, TypeVar, cast

from batchnorm_tool.display import DASH, count, number, plural
from batchnorm_tool.norms.stats import NormStats
from batchnorm_tool.report.charts import Interval

if TYPE_CHECKING:
    from batchnorm_tool.comparison.drift import DifferenceDocument
    from batchnorm_tool.comparison.verdict import ComparisonDocument, Numbers, RankingFigures

_T = TypeVar("_T")
_FAMILIES = {"ndcg": "nDCG", "mrr": "MRR", "map": "MAP"}
# The first screen of results.
_USUAL_K = 10
_NO_INTERVAL = Interval(math.nan, math.nan, math.nan)
OUTCOMES = ("live", "kept", "rolled back", "removed", "waiting", "not published")
"""What can have become of a night, in the order in which a chart shows it."""
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


def outcome(record: ShownRecord, document: HistoryDocument) -> str:
    """Return what became of a night, one of `OUTCOMES`.

    Example:
        >>> nights = [{"version": v, "state": "published", "kind": "load"} for v in (1, 2)]
        >>> nights.append({"version": 3, "state": "published", "kind": "rollback", "restores": 1})
        >>> history = {"live": 3, "kept": [1, 2, 3], "nights": nights}
        >>> [outcome(night, history) for night in nights]
        ['kept', 'rolled back', 'live']
    """
    version = record["version"]
    if version == document["live"]:
        return "live"
    if record["state"] == "waiting":
        return "waiting"
    if record["state"] in _NOT_PUBLISHED:
        return "not published"
    if any(low < version < high for low, high in _rollbacks(document)):
        return "rolled back"
    return "kept" if version in document["kept"] else "removed"


def _rollbacks(document: HistoryDocument) -> Iterator[tuple[int, int]]:
    for record in document["nights"]:
        if record["kind"] == "rollback":
            yield record["restores"], record["version"]


def describe_outcome(record: ShownRecord, document: HistoryDocument) -> str:
    """Return what became of a night, with the reason where it waits or never was published."""
    its = outcome(record, document)
    if its == "waiting" and record.get("reason"):
        return f"waiting ({record['reason']})"
    if its == "rolled back" and record["version"] in document["kept"]:
        return "rolled back, kept"
    return str(record["state"]) if its == "not published" else its


def describe_kind(record: ShownRecord) -> str:
    """Return the kind of a night.

    Example:
        >>> describe_kind({"kind": "rollback", "restores": 3})
        'rollback to 3'
        >>> describe_kind({"kind": "refresh", "new_space": True})
        'refresh, new space'
    """
    if record["kind"] == "rollback":
        return f"rollback to {record['restores']}"
    return f"{record['kind']}, new space" if record.get("new_space") else str(record["kind"])


def when(record: ShownRecord) -> str:
    """Return when a night began, to the minute, in UTC.

    Example:
        >>> when({"started": "2026-03-01T02:00:31.5+00:00"})
        '2026-03-01 02:00'
    """
    return str(record["started"])[:16].replace("T", " ")


def rows_of(record: ShownRecord, name: str) -> int | None:
    """Return a count of a night's rows; ``None`` where it has none."""
    found: int | None = (record.get("rows") or {}).get(name)
    return found


def counted(value: int | None) -> str:
    """Return a count, a dash where there is none."""
    return DASH if value is None else count(value)


def changed_rows(record: ShownRecord) -> int | None:
    """Return how many rows a night computed again: changed ones and all others that it had to."""
    found = [rows_of(record, name) for name in ("changed", "recomputed")]
    known = [rows for rows in found if rows is not None]
    return sum(known) if known else None


def quantile(record: ShownRecord, name: str) -> float:
    """Return a quantile of a night's norms; NaN where there is none."""
    value = (record.get("norms") or {}).get(name)
    return math.nan if value is None else float(value)


def describe_norms(record: ShownRecord) -> str:
    """Return the median of a night's norms, and what 90 % of them lie between.

    Example:
        >>> describe_norms({"norms": {"q05": 0.5, "q50": 1.0, "q95": 2.0}})
        '1.000 [0.5000\u20132.000]'
    """
    low, middle, high = (quantile(record, name) for name in ("q05", "q50", "q95"))
    if math.isnan(middle):
        return DASH
    return f"{number(middle)} [{number(low)}{DASH}{number(high)}]"


def findings_of(record: ShownRecord) -> Sequence[FindingEntry]:
    """Return what the gate found in a night."""
    return (record.get("gate") or {}).get("findings") or []


def broken_of(record: ShownRecord) -> list[FindingEntry]:
    """Return the findings of a night that are beyond their limits."""
    return [finding for finding in findings_of(record) if not finding["passed"]]


def finding_name(finding: FindingEntry) -> str:
    """Name a limit and what it was held against, as short as can be.

    Example:
        >>> finding_name({"limit": "gate.output.norm_psi", "scope": "changed"})
        'norm_psi (changed rows)'
    """
    scope = str(finding["scope"])
    return f"{str(finding['limit']).rpartition('.')[2]} ({_SCOPES.get(scope, scope)})"


def describe_gate(record: ShownRecord) -> str:
    """Return what the gate said of a night.

    Example:
        >>> finding = {"limit": "gate.input.changed", "scope": "input", "passed": False}
        >>> describe_gate({"gate": {"action": "hold", "findings": [finding]}})
        'held: changed (input)'
        >>> describe_gate({"gate": {"action": "hold", "findings": []}})
        'passed'
    """
    if not record.get("gate"):
        return DASH
    names = [finding_name(finding) for finding in broken_of(record)]
    if not names:
        return "passed"
    verb = "warned" if record["gate"].get("action") == "warn" else "held"
    return f"{verb}: {', '.join(names)}"


class FindingEntry(TypedDict, total=False):
    """What one limit of the gate measured."""

    limit: str
    scope: str
    measured: float | None
    allowed: float | None
    passed: bool
    what: str
    rows: Sequence[Any]


class ShownRecord(TypedDict, total=False):
    """What a refresh, a rollback or a candidate that waits says of itself."""

    version: int
    kind: str
    new_space: bool
    state: str
    reason: str | None
    started: str
    restores: int
    rows: Mapping[str, int | None]
    model: Any
    norms: Numbers | None
    gate: Any
    seconds: Numbers
    warnings: Sequence[str]


class HistoryDocument(TypedDict, total=False):
    """The refreshes of a store, and where it stands."""

    path: str
    live: int | None
    hold: Any
    waiting: int | None
    kept: Sequence[int]
    nights: Sequence[ShownRecord]
