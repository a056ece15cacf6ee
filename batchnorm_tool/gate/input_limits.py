"""Limits on tonight's input: how many rows differ, and whether a feature looks broken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from batchnorm_tool.gate.feature_limits import feature_findings, unjudged_features
from batchnorm_tool.gate.finding import Finding, not_judged

if TYPE_CHECKING:
    from batchnorm_tool.limits import InputLimits

_SHARES = {
    "new": "rows are new",
    "changed": "rows have other features",
    "vanished": "live rows are gone",
}
_NEW_SPACE = "in a new space every row is computed again"
_FIRST = "there are no live rows to compare with"
_NO_STATISTICS = "there are no statistics of an earlier input to compare with"


@dataclass(frozen=True)
class Counts:
    """Rows of a night by kind, as the difference counts them.

    Attributes:
        rows_in: Rows of tonight's input.
        live_rows: Rows of the live version.
        new: Rows whose key is not in the live version.
        changed: Rows with other features.
        touched: Rows with the same features and other passed-through values.
        same: Rows with nothing changed.
        vanished: Live rows that the input lacks, or deletes in delta mode.
        recomputed: Rows with the same features that are computed again all the same.
        bad: Rows with an invalid feature.
    """

    rows_in: int
    live_rows: int
    new: int = 0
    changed: int = 0
    touched: int = 0
    same: int = 0
    vanished: int = 0
    recomputed: int = 0
    bad: int = 0


def judge_input(  # noqa: PLR0913  (each is a fact of the night)
    limits: InputLimits,
    counts: Counts,
    statistics: Mapping[str, Any] | None,
    last: Mapping[str, Any] | None,
    *,
    mode: Literal["full", "delta"] = "full",
    new_space: bool = False,
) -> list[Finding]:
    """Judge tonight's input before the model runs.

    Shares are of the live rows, in delta mode too; without live rows nothing is judged, because
    every limit on the input compares.

    Args:
        limits: The job's ``gate.input``.
        counts: What the difference counted.
        statistics: ``InputStatistics.to_dict()`` of tonight: ``columns`` with ``rows`` and
            ``nulls`` of each; ``inputs`` with ``min`` and ``max`` of each component over ``rows``,
            and ``mean`` and ``std`` over ``count`` sampled rows.
        last: The same of the last published night.
        mode: In a delta, nulls, constancy and moments are judged from ``limits.min_rows`` rows on,
            and nulls only beyond what chance makes of so few rows.
        new_space: New and changed rows and features are not judged: every row is computed again,
            and features may be others.

    Returns:
        A finding for each limit, limits that are ``None`` or ``"ignore"`` left out.
    """
    findings = list(_share_findings(limits, counts, new_space=new_space))
    why = _incomparable(counts, new_space=new_space)
    if not why and statistics and last:
        return [*findings, *feature_findings(limits, statistics, last, mode)]
    return [*findings, *unjudged_features(limits, why or _NO_STATISTICS)]


def _incomparable(counts: Counts, *, new_space: bool) -> str:
    if not counts.live_rows:
        return _FIRST
    return _NEW_SPACE if new_space else ""


def _share_findings(limits: InputLimits, counts: Counts, *, new_space: bool) -> Iterator[Finding]:
    for name in _SHARES:
        allowed = getattr(limits, name)
        if allowed is None:
            continue
        # Rows vanish from any space alike.
        why = _incomparable(counts, new_space=new_space and name != "vanished")
        if why:
            yield not_judged(f"gate.input.{name}", "input", allowed, why)
        else:
            yield _share_finding(name, allowed, getattr(counts, name), counts.live_rows)


def _share_finding(name: str, allowed: float, rows: int, live_rows: int) -> Finding:
    share = rows / live_rows
    what = (
        f"{rows:,} {_SHARES[name]}, {share:.2%} of {live_rows:,} live rows; at most "
        f"{allowed:.2%} allowed."
    )
    return Finding(f"gate.input.{name}", "input", share, allowed, share <= allowed, what)
