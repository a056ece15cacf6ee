"""The shapes of the documents that pages and summaries show; any key may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

Counts: TypeAlias = Mapping[str, int]
Numbers: TypeAlias = Mapping[str, float | None]
"""Numbers by name; None where there was nothing to measure."""
ByNorm: TypeAlias = Mapping[str, Numbers]


class PredictionSet(TypedDict, total=False):
    """Predictions that were compared: where they lie, and what is known of them."""

    path: str
    kind: str
    rows: int
    width: int
    dtype: str
    key: Sequence[str]
    column: Sequence[str] | str | None
    zero: int
    nonfinite: int
    missing: int
    provenance: Mapping[str, object] | None


class VerdictEntry(TypedDict, total=False):
    """A verdict in words, and the norm that it is for."""

    norm: str | None
    words: str
    reason: str
    cost: str
    notes: Sequence[str]


class Measured(TypedDict, total=False):
    """What is measured over all queries, or those of a group; by norm, or by pair of norms."""

    quality: Mapping[str, ByNorm] | None
    overlap: Mapping[str, ByNorm] | None
    rbo: ByNorm | None
    hubness: Any


class GroupEntry(Measured):
    """A group of queries."""

    group: str
    queries: int


class ComparisonDocument(Measured, total=False):
    """What `compare` found."""

    kind: Literal["comparison"]
    version: str
    source: PredictionSet
    queries_from: PredictionSet | None
    metric: str
    compared: Sequence[str]
    k: Sequence[int]
    seed: int
    queries: Counts
    relevance: Any
    norms: Mapping[str, Mapping[str, object]]
    rank_correlation: ByNorm
    ranked_rows: int
    unit_share: Numbers
    rbo_p: float
    popularity: Numbers | None
    tests: Any
    by: Any
    verdict: VerdictEntry
    headline: str | None
    warnings: Sequence[str]
    seconds: float


class PairFigures(TypedDict, total=False):
    """How a figure is distributed over pairs of rows; a bar is its two ends and its count."""

    count: int
    mean: float | None
    min: float | None
    max: float | None
    quantiles: Numbers
    histogram: Sequence[tuple[float, float, int]]


class DifferenceDocument(TypedDict, total=False):
    """What `diff` found between two sets of predictions."""

    kind: Literal["diff"]
    version: str
    a: PredictionSet
    b: PredictionSet
    same_space: bool | None
    rows: Counts
    examples: Mapping[str, Sequence[object]]
    cosine: PairFigures
    norm_ratio: PairFigures
    norms: Any
    worst: Sequence[Any]
    centroid: Numbers
    dimensions: Any
    frechet: float | None
    overlap: ByNorm | None
    sample: int
    metric: str
    verdict: VerdictEntry
    warnings: Sequence[str]


EitherDocument: TypeAlias = ComparisonDocument | DifferenceDocument


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
