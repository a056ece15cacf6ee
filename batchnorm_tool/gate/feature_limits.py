"""Limits on single features: nulls, constancy and moments, against those of the last night."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from batchnorm_tool.gate.component_shift import CHANCE, MEASURES, Scores, pairs
from batchnorm_tool.gate.finding import Finding, not_judged

if TYPE_CHECKING:
    from batchnorm_tool.limits import InputLimits


def feature_findings(
    limits: InputLimits,
    statistics: Mapping[str, Any],
    last: Mapping[str, Any],
    mode: Literal["full", "delta"],
) -> Iterator[Finding]:
    """Judge the features of tonight's input.

    Columns, inputs and components that one of the nights lacks are left out. What a few rows at the
    end of a component's range make of its moments does not count, so that a rare category may come
    and go; a component that was constant last night has no deviation to measure a shift by.

    Args:
        limits: The job's ``gate.input``.
        statistics: Tonight's, see `judge_input`.
        last: Those of the last published night.
        mode: In a delta, only columns and inputs of ``limits.min_rows`` rows or more are judged.

    Yields:
        A finding for each limit, about the worst column or component.
    """
    least = limits.min_rows if mode == "delta" else 1
    if limits.null_shift is not None:
        nulls = _null_shifts(limits.null_shift, _columns(statistics, last, least), mode)
        yield _finding("null_shift", limits.null_shift, [nulls])
    known = list(pairs(statistics, last, is_delta=mode == "delta"))
    for name, measure in MEASURES.items():
        allowed = _allowed(limits, name)
        # Extremes are of all rows; moments may be those of a sample.
        counted = "rows" if name == "constant_feature" else "count"
        if allowed is not None:
            enough = (pair for pair in known if pair.tonight[counted][0] >= least)
            yield _finding(name, allowed, [measure(pair, allowed) for pair in enough])


def unjudged_features(limits: InputLimits, why: str) -> Iterator[Finding]:
    """Say of each limit on features that it was not judged, and why."""
    for name in ("null_shift", *MEASURES):
        allowed = _allowed(limits, name)
        if allowed is not None:
            yield not_judged(f"gate.input.{name}", "input", allowed, why)


def _allowed(limits: InputLimits, name: str) -> float | None:
    if name == "constant_feature":
        return 0.0 if limits.constant_feature == "fail" else None
    allowed: float | None = getattr(limits, name)
    return allowed


def _finding(name: str, allowed: float, scores: list[Scores]) -> Finding:
    limit = f"gate.input.{name}"
    known = [score for score in scores if not np.isnan(score.measured).all()]
    if not known:
        return not_judged(limit, "input", allowed, "no feature can be compared with last night")
    first = max(known, key=lambda score: score.measured[score.worst] - score.allowed[score.worst])
    measured, most = (float(x[first.worst]) for x in (first.measured, first.allowed))
    others = sum(score.beyond for score in known) - 1
    more = f" {others:,} more are beyond their limit." if others > 0 else ""
    what = f"{first.words(first.worst)}.{more}"
    return Finding(limit, "input", measured, most, measured <= most, what)


def _columns(
    statistics: Mapping[str, Any], last: Mapping[str, Any], least: int
) -> dict[str, tuple[Mapping[str, int], Mapping[str, int]]]:
    """Nulls of every column that has rows enough in both nights: last night's and tonight's."""
    both = {
        name: (last["columns"][name], now)
        for name, now in statistics["columns"].items()
        if name in last["columns"]
    }
    return {name: pair for name, pair in both.items() if min(s["rows"] for s in pair) >= least}


def _null_shifts(
    limit: float, columns: Mapping[str, tuple[Mapping[str, int], Mapping[str, int]]], mode: str
) -> Scores:
    shares = np.array([[s["nulls"] / s["rows"] for s in pair] for pair in columns.values()])
    shares = shares.reshape(-1, 2)
    is_delta = mode == "delta"
    chances = [_chance(*pair) if is_delta else 0.0 for pair in columns.values()]
    allowed = np.maximum(limit, chances)

    def words(place: int) -> str:
        before, now = shares[place]
        return (
            f"Column `{list(columns)[place]}`: {now:.2%} nulls, {before:.2%} last night; a "
            f"difference of at most {allowed[place]:.2%} allowed"
        )

    return Scores(np.abs(shares[:, 1] - shares[:, 0]), allowed, words)


def _chance(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """The difference of two shares of nulls that chance makes once in a million."""
    share = (one["nulls"] + other["nulls"]) / (one["rows"] + other["rows"])
    return CHANCE * math.sqrt(share * (1 - share) * (1 / one["rows"] + 1 / other["rows"]))
