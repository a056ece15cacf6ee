"""The shapes of the documents that pages and summaries show; any key may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

if TYPE_CHECKING:
    from batchnorm_tool.comparison.drift import DifferenceDocument
    from batchnorm_tool.comparison.verdict import ComparisonDocument, Numbers

EitherDocument: TypeAlias = "ComparisonDocument | DifferenceDocument"


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
