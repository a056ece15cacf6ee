"""Limits on tonight's vectors: bad rows, and the distribution against that of the live version."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batchnorm_tool.gate.finding import SHOWN_ROWS, Finding, not_judged
from batchnorm_tool.gate.shift import MEASURES, Measure

if TYPE_CHECKING:
    from batchnorm_tool.gate.finding import Scope
    from batchnorm_tool.gate.vectors import Vectors
    from batchnorm_tool.limits import OutputLimits


@dataclass(frozen=True)
class BadCounts:
    """Bad rows of tonight, by input or prediction.

    Attributes:
        changed_rows: Rows that went to the model, or would have.
        changed_bad: The bad ones among them.
        whole_rows: All rows of the night.
        whole_bad: The bad ones among them, those remembered from earlier nights included.
        rows: Some of them: ``{"key": {column: value, …}, "reason": label}``.
    """

    changed_rows: int
    changed_bad: int
    whole_rows: int
    whole_bad: int
    rows: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class _Judge:
    """One scope against the live version."""

    limits: OutputLimits
    live: Vectors
    scope: Scope
    tonight: Vectors

    def findings(self) -> Iterator[Finding]:
        for measure in MEASURES:
            allowed = getattr(self.limits, measure.limit)
            if allowed is not None:
                yield self._finding(measure, float(allowed))

    def _finding(self, measure: Measure, allowed: float) -> Finding:
        name = f"gate.output.{measure.limit}"
        few = self._too_few()
        if few:
            return not_judged(name, self.scope, allowed, few)
        measured = measure.shift(self.live, self.tonight)
        chance = 0.0 if measured <= allowed else measure.chance(self.live, self.tonight)
        most = max(allowed, chance)
        passed = measured <= most
        rows = () if passed else measure.worst(self.live, self.tonight)
        raised = (
            f" ({allowed:g}, raised to what chance makes of so few rows)" if chance == most else ""
        )
        what = f"{measure.label}: {measured:.4g}; at most {most:.4g} allowed{raised}."
        return Finding(name, self.scope, measured, most, passed, what, rows)

    def _too_few(self) -> str:
        least = self.limits.min_rows
        for vectors, of in ((self.tonight, ""), (self.live, " in the live version")):
            rows = min(len(vectors.unit), len(vectors.norms))
            if rows < max(least, 1):
                return f"{rows:,} good rows{of}, fewer than `gate.output.min_rows: {least}`"
        return ""


def judge_output(
    limits: OutputLimits,
    changed: Vectors,
    whole: Vectors,
    live: Vectors | None,
    bad: BadCounts,
) -> list[Finding]:
    """Judge tonight's vectors, over the changed rows alone and over all rows.

    A distribution is judged from ``limits.min_rows`` rows on. Where a shift is beyond its limit,
    it is held against what chance alone makes of as many rows of the live version, and passes where
    that is more.

    Args:
        limits: The job's ``gate.output``.
        changed: Good rows that the model has seen tonight.
        whole: Good rows of the version that would be published.
        live: The live version; ``None`` on a first load and in a new space, where nothing can be
            compared and only absolute limits are judged.
        bad: Bad rows.

    Returns:
        A finding for each limit and scope, limits that are ``None`` left out.
    """
    findings = list(_bad_findings(limits, bad))
    if live is None:
        return findings
    for scope, tonight in _scopes(changed, whole):
        findings += _Judge(limits, live, scope, tonight).findings()
    return findings


def _scopes(changed: Vectors, whole: Vectors) -> Iterator[tuple[Scope, Vectors]]:
    yield "changed", changed
    yield "whole", whole


def _bad_findings(limits: OutputLimits, bad: BadCounts) -> Iterator[Finding]:
    allowed, name = limits.bad, "gate.output.bad"
    if allowed is None:
        return
    if bad.changed_rows < limits.min_rows:
        few = f"{bad.changed_rows:,} changed rows, fewer than `gate.output.min_rows`"
        yield not_judged(name, "changed", allowed, f"{few}: {limits.min_rows}")
    else:
        # A share of less than one row would forbid what the limit allows in a larger night.
        at_least_one = max(allowed, 1 / bad.changed_rows) if allowed else allowed
        yield _bad("changed", (bad.changed_bad, bad.changed_rows), at_least_one, bad.rows)
    yield _bad("whole", (bad.whole_bad, bad.whole_rows), allowed, bad.rows)


def _bad(
    scope: Scope, counts: tuple[int, int], allowed: float, rows: tuple[dict[str, Any], ...]
) -> Finding:
    share = counts[0] / max(counts[1], 1)
    what = (
        f"{counts[0]:,} of {counts[1]:,} rows are bad ({share:.4%}); at most {allowed:.4%} allowed."
    )
    passed = share <= allowed
    return Finding(
        "gate.output.bad", scope, share, allowed, passed, what, () if passed else rows[:SHOWN_ROWS]
    )
