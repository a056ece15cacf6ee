"""Limits on the input: how many rows differ, and whether a feature looks broken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from batchnorm_tool.display import percent, plural
from batchnorm_tool.features.statistics import ColumnNulls, ComponentSummary, InputSummary
from batchnorm_tool.gate.findings import Finding, not_evaluated
from batchnorm_tool.gate.rows import RefreshRows
from batchnorm_tool.job.refresh_sections import InputGate
from batchnorm_tool.norms.norm import Float64s

_NEW_SPACE = "in a new space every row is recomputed"
_FIRST = "there are no live rows to compare with"
_NO_STATISTICS = "there are no statistics of an earlier input to compare with"
CHANCE = 4.9
"""So many standard deviations of a normal distribution happen by chance once in a million."""
# So many rows, where they are expected, are missing altogether once in a million: e**-13.8.
_ROWS_NEVER_MISSING = 13.8
# What so many rows at one end of a component's range make of its standard deviation is a rare
# category that comes and goes: one row of a one-hot component, or a single outlier.
_ROWS_THAT_VARY = 2
_ROWS_THAT_WEIGH = 10
# In few rows that would hide every deviation: that of a normal distribution is 0.15 of its range
# at 1,000 rows, and a quarter of that must still be seen.
_MOST_OF_RANGE = 0.03
# Fewer rows of a lognormal distribution broke default limits by chance: means in 8 of 600 refreshes
# of 4 rows, deviations in 7 of 600 refreshes of 63 rows.
_FEWEST_FOR_MEANS = 20
_FEWEST_FOR_DEVIATIONS = 100


def evaluate_input(  # noqa: PLR0913  (each is a fact of the refresh)
    limits: InputGate,
    counts: RefreshRows,
    statistics: InputSummary | None,
    previous: InputSummary | None,
    *,
    mode: Literal["full", "delta"] = "full",
    new_space: bool = False,
) -> list[Finding]:
    """Judge the input before the model runs, against that of the last published refresh.

    Shares are of the live rows, in delta mode too; without live rows nothing is judged, because
    every limit on the input compares. A limit that is ``None`` or ``"ignore"`` has no finding. In a
    delta, nulls, constancy and moments are judged from ``limits.min_rows`` rows on, and nulls only
    beyond what chance makes of so few rows. In a new space, new and changed rows and features are
    not judged: every row is computed again, and features may be others.
    """
    findings = list(_share_findings(limits, counts, new_space=new_space))
    why = _incomparable(counts, new_space=new_space)
    if not why and statistics and previous:
        return [*findings, *_feature_findings(limits, statistics, previous, mode)]
    return [*findings, *_unevaluated_features(limits, why or _NO_STATISTICS)]


def _incomparable(counts: RefreshRows, *, new_space: bool) -> str:
    if not counts.live:
        return _FIRST
    return _NEW_SPACE if new_space else ""


def _share_findings(
    limits: InputGate, counts: RefreshRows, *, new_space: bool
) -> Iterator[Finding]:
    for name in ("new", "changed", "vanished"):
        allowed = getattr(limits, name)
        if allowed is None:
            continue
        limit, rows, live = f"gate.input.{name}", getattr(counts, name), counts.live
        # Rows vanish from any space alike.
        why = _incomparable(counts, new_space=new_space and name != "vanished")
        if why:
            yield not_evaluated(limit, "input", allowed, why)
            continue
        share = rows / live
        what = (
            f"{plural(rows, f'{name} row')}, {percent(share, 2)} of {plural(live, 'live row')}; "
            f"at most {percent(allowed, 2)} allowed."
        )
        yield Finding(limit, "input", share, allowed, share <= allowed, what)


def _feature_findings(
    limits: InputGate, statistics: InputSummary, previous: InputSummary, mode: str
) -> Iterator[Finding]:
    """Judge the features of the input; each finding is about the worst column or component."""
    # Columns, inputs and components that one of the two lacks are left out. What a few rows at the
    # end of a component's range make of its moments does not count, so that a rare category may
    # come and go; a component that was constant in the previous version has no deviation to measure
    # a shift by.
    least = limits.min_rows if mode == "delta" else 1
    if limits.null_shift is not None:
        nulls = _null_shifts(limits.null_shift, _columns(statistics, previous, least), mode)
        yield _finding("null_shift", limits.null_shift, [nulls])
    known = list(_pairs(statistics, previous, is_delta=mode == "delta"))
    for name, measure in _MEASURES.items():
        allowed = _allowed(limits, name)
        # Extremes are of all rows; moments may be those of a sample.
        counted = "rows" if name == "constant_feature" else "count"
        if allowed is not None:
            enough = (pair for pair in known if pair.current[counted][0] >= least)
            yield _finding(name, allowed, [measure(pair, allowed) for pair in enough])


def _unevaluated_features(limits: InputGate, why: str) -> Iterator[Finding]:
    for name in ("null_shift", *_MEASURES):
        allowed = _allowed(limits, name)
        if allowed is not None:
            yield not_evaluated(f"gate.input.{name}", "input", allowed, why)


def _allowed(limits: InputGate, name: str) -> float | None:
    if name == "constant_feature":
        return 0.0 if limits.constant_feature == "fail" else None
    allowed: float | None = getattr(limits, name)
    return allowed


def _finding(name: str, allowed: float, scores: list[Scores]) -> Finding:
    limit = f"gate.input.{name}"
    known = [score for score in scores if not np.isnan(score.measured).all()]
    if not known:
        return not_evaluated(
            limit, "input", allowed, "no feature can be compared with the previous version"
        )
    # The one that exceeds its limit most, not the largest: limits differ with the number of rows.
    first = max(known, key=lambda score: score.measured[score.worst] - score.allowed[score.worst])
    measured, most = (float(x[first.worst]) for x in (first.measured, first.allowed))
    others = sum(score.beyond for score in known) - 1
    more = f" {others:,} more exceed their limit." if others > 0 else ""
    what = f"{first.words(first.worst)}.{more}"
    return Finding(limit, "input", measured, most, measured <= most, what)


def _columns(
    statistics: InputSummary, previous: InputSummary, least: int
) -> dict[str, tuple[ColumnNulls, ColumnNulls]]:
    """Return the nulls, then and now, of every column that has rows enough in both."""
    return {
        name: (before, now)
        for name, now in statistics.columns.items()
        if (before := previous.columns.get(name)) and min(before.rows, now.rows) >= least
    }


def _null_shifts(
    limit: float, columns: Mapping[str, tuple[ColumnNulls, ColumnNulls]], mode: str
) -> Scores:
    shares = np.array([[s.nulls / s.rows for s in pair] for pair in columns.values()])
    shares = shares.reshape(-1, 2)
    chances = [_chance(*pair) if mode == "delta" else 0.0 for pair in columns.values()]
    allowed = np.maximum(limit, chances)

    def words(place: int) -> str:
        before, now = shares[place]
        return (
            f"Column `{list(columns)[place]}`: {percent(now, 2)} nulls, {percent(before, 2)} in "
            f"the previous version; a difference of at most {percent(allowed[place], 2)} allowed"
        )

    return Scores(np.abs(shares[:, 1] - shares[:, 0]), allowed, words)


def _chance(one: ColumnNulls, other: ColumnNulls) -> float:
    """Return the difference of two shares of nulls that chance makes once in a million."""
    share = (one.nulls + other.nulls) / (one.rows + other.rows)
    return CHANCE * math.sqrt(share * (1 - share) * (1 / one.rows + 1 / other.rows))


@dataclass(frozen=True)
class Scores:
    """What was measured of ``n`` columns or components, and how much of each is allowed.

    NaN stands for what was not measured; ``words`` names one of them, and says its numbers.
    """

    measured: Float64s
    allowed: Float64s
    words: Callable[[int], str]

    @property
    def beyond(self) -> int:
        """How many are beyond what is allowed."""
        return int(np.count_nonzero(self.measured > self.allowed))

    @property
    def worst(self) -> int:
        """The place of the one that is farthest beyond, or nearest to, what is allowed."""
        return int(np.nanargmax(self.measured - self.allowed))


@dataclass(frozen=True)
class Pair:
    """Statistics of one model input, before and now: float64[components] each."""

    name: str
    previous: Mapping[str, Float64s]
    current: Mapping[str, Float64s]
    is_delta: bool

    @property
    def counts(self) -> tuple[float, float]:
        """Rows that the moments are of: the previous version's and this refresh's."""
        return float(self.previous["count"][0]), float(self.current["count"][0])

    @property
    def rows(self) -> float:
        """Rows that the input's extremes are of: all, where moments are of a sample."""
        return float(self.current["rows"][0])

    def spread(self, share: float, most: float = _MOST_OF_RANGE) -> Float64s:
        """Return the deviation that such a share of rows makes at one end of the previous range.

        It is never more than the part ``most`` of that range.
        """
        return (self.previous["max"] - self.previous["min"]) * min(math.sqrt(share), most)

    def label(self, component: int) -> str:
        """Name a component, or the input that has no other."""
        several = len(self.previous["mean"]) > 1
        return (
            f"Component {component} of input `{self.name}`" if several else f"Input `{self.name}`"
        )


def _pairs(statistics: InputSummary, previous: InputSummary, *, is_delta: bool) -> Iterator[Pair]:
    """Yield the statistics of every numeric input that both versions have, of one width."""
    for name, now in statistics.inputs.items():
        before = previous.inputs.get(name)
        if before is None or not (now.count and before.count):
            continue
        pair = Pair(name, _arrays(before), _arrays(now), is_delta)
        if len(pair.previous["mean"]) == len(pair.current["mean"]):
            yield pair


def _arrays(side: ComponentSummary) -> dict[str, Float64s]:
    # None, where a moment is beyond float64, becomes NaN, which no limit is broken by.
    return {name: np.ravel(np.asarray(value, np.float64)) for name, value in vars(side).items()}


def _constants(pair: Pair, allowed: float) -> Scores:
    constant = pair.current["min"] == pair.current["max"]
    broken = _varied(pair) & constant & (pair.rows > 1)

    def words(place: int) -> str:
        if not broken[place]:
            return "No feature that varied in the previous version is constant in this refresh"
        value = pair.current["min"][place]
        return (
            f"{pair.label(place)} varied in the previous version and is {value:.6g} in every row "
            "of this refresh"
        )

    return Scores(broken.astype(np.float64), np.full(len(broken), allowed), words)


def _varied(pair: Pair) -> npt.NDArray[np.bool_]:
    """Return which components varied before by more than a category that may be absent now."""
    share = _ROWS_THAT_VARY / pair.counts[0]
    if not pair.is_delta:
        return pair.previous["std"] > pair.spread(share)
    share = max(share, _ROWS_NEVER_MISSING / pair.rows)
    # At one end of the range lie all rows without the category; elsewhere, nothing is so common.
    value = pair.current["min"]
    at_an_end = (value == pair.previous["min"]) | (value == pair.previous["max"])
    least = np.where(at_an_end, pair.spread(share, most=1.0), pair.spread(share))
    return pair.previous["std"] > least


def _mean_shifts(pair: Pair, allowed: float) -> Scores:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shifts = np.abs(pair.current["mean"] - pair.previous["mean"]) / pair.previous["std"]
        most = np.fmax(allowed, _mean_chance(pair) / pair.previous["std"])

    def words(place: int) -> str:
        before, now = (side["mean"][place] for side in (pair.previous, pair.current))
        return (
            f"{pair.label(place)}: the mean moved from {before:.4g} to {now:.4g}, "
            f"by {shifts[place]:.4g} of the previous version's standard deviations; at "
            f"most {most[place]:.4g} allowed"
        )

    known = (pair.previous["std"] > 0) & (min(pair.counts) >= _FEWEST_FOR_MEANS)
    return Scores(np.where(known, shifts, np.nan), most, words)


def _mean_chance(pair: Pair) -> Float64s:
    """Return the difference of the means of two samples that chance makes once in a million."""
    before, now = (
        side["std"] ** 2 / count
        for side, count in zip((pair.previous, pair.current), pair.counts, strict=True)
    )
    return CHANCE * np.sqrt(before + now)


def _deviation_ratios(pair: Pair, allowed: float) -> Scores:
    floor = pair.spread(_ROWS_THAT_WEIGH / pair.counts[0])
    before, now = (np.maximum(side["std"], floor) for side in (pair.previous, pair.current))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = np.maximum(now / before, before / now)
    # A component that is constant in a refresh is judged by `constant_feature`, or was left alone.
    varies = (pair.previous["std"] > 0) & (pair.current["std"] > 0)
    known = varies & (min(pair.counts) >= _FEWEST_FOR_DEVIATIONS)

    def words(place: int) -> str:
        one, other = (side["std"][place] for side in (pair.previous, pair.current))
        return (
            f"{pair.label(place)}: the standard deviation went from {one:.4g} to {other:.4g}, a "
            f"factor of {ratios[place]:.4g}; at most {allowed:g} allowed"
        )

    return Scores(np.where(known, ratios, np.nan), np.full(len(ratios), allowed), words)


# Every measure of a component, by the name of its limit.
_MEASURES: dict[str, Callable[[Pair, float], Scores]] = {
    "constant_feature": _constants,
    "mean_shift": _mean_shifts,
    "deviation_ratio": _deviation_ratios,
}
