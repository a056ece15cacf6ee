"""How far single components of the model's inputs moved from one night to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from batchnorm_tool.norms import Float64s

CHANCE = 4.9
"""So many standard deviations happen by chance once in a million."""

# So many rows, where they are expected, are missing altogether once in a million: e**-13.8.
_ROWS_NEVER_MISSING = 13.8
# What so many rows at one end of a component's range make of its standard deviation is a rare
# category that comes and goes: one row of a one-hot component, or a single outlier.
_ROWS_THAT_VARY = 2
_ROWS_THAT_WEIGH = 10
# In few rows that would hide every deviation: that of a normal distribution is 0.15 of its range
# at 1,000 rows, and a quarter of that must still be seen.
_MOST_OF_RANGE = 0.03
# Fewer rows of a lognormal distribution broke default limits by chance: means in 8 of 600 nights
# of 4 rows, deviations in 7 of 600 nights of 63 rows.
_FEWEST_FOR_MEANS = 20
_FEWEST_FOR_DEVIATIONS = 100


@dataclass(frozen=True)
class Scores:
    """What was measured of some columns or components, and how much of each is allowed.

    Attributes:
        measured: float64[n]; NaN for what was not measured.
        allowed: float64[n].
        words: Names one of them, and says its numbers.
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
    """The statistics of one model input: last night's and tonight's, float64[components] each."""

    name: str
    last: Mapping[str, Float64s]
    tonight: Mapping[str, Float64s]
    is_delta: bool

    @property
    def counts(self) -> tuple[float, float]:
        """Rows that the moments are of: last night's and tonight's."""
        return float(self.last["count"][0]), float(self.tonight["count"][0])

    @property
    def rows(self) -> float:
        """Rows that tonight's extremes are of: all, where moments are of a sample."""
        return float(self.tonight["rows"][0])

    def spread(self, share: float, most: float = _MOST_OF_RANGE) -> Float64s:
        """The standard deviation that such a share of rows makes at one end of last night's range.

        It is never more than the part ``most`` of that range.
        """
        return (self.last["max"] - self.last["min"]) * min(math.sqrt(share), most)

    def label(self, component: int) -> str:
        """Name a component, or the input that has no other."""
        several = len(self.last["mean"]) > 1
        return (
            f"Component {component} of input `{self.name}`" if several else f"Input `{self.name}`"
        )

    def scores(self, measured: Float64s, allowed: float, words: Callable[[int], str]) -> Scores:
        """What was measured of each component, all with the same limit."""
        return Scores(measured, np.full(len(measured), allowed), words)


def pairs(
    statistics: Mapping[str, Any], last: Mapping[str, Any], *, is_delta: bool
) -> Iterator[Pair]:
    """Yield the statistics of every numeric input that both nights have, of one width.

    Args:
        statistics: Tonight's, see `judge_input`.
        last: Those of the last published night.
        is_delta: Whether tonight's are those of a few rows.
    """
    for name, now in statistics["inputs"].items():
        before = last["inputs"].get(name)
        if before is None or not (now["count"] and before["count"]):
            continue
        pair = Pair(name, _arrays(before), _arrays(now), is_delta)
        if len(pair.last["mean"]) == len(pair.tonight["mean"]):
            yield pair


def _arrays(side: Mapping[str, Any]) -> dict[str, Float64s]:
    names = ("rows", "count", "min", "max", "mean", "std")
    # None, where a moment is beyond float64, becomes NaN, which no limit is broken by.
    return {name: np.ravel(np.asarray(side[name], dtype=np.float64)) for name in names}


def _constants(pair: Pair, allowed: float) -> Scores:
    constant = pair.tonight["min"] == pair.tonight["max"]
    broken = _varied(pair) & constant & (pair.rows > 1)

    def words(place: int) -> str:
        if not broken[place]:
            return "No feature that varied last night is constant tonight"
        value = pair.tonight["min"][place]
        return f"{pair.label(place)} varied last night and is {value:.6g} in every row tonight"

    return pair.scores(broken.astype(np.float64), allowed, words)


def _varied(pair: Pair) -> npt.NDArray[np.bool_]:
    """Which components varied last night by more than a category that tonight may lack."""
    share = _ROWS_THAT_VARY / pair.counts[0]
    if not pair.is_delta:
        return pair.last["std"] > pair.spread(share)
    share = max(share, _ROWS_NEVER_MISSING / pair.rows)
    # At one end of the range lie all rows without the category; elsewhere, nothing is so common.
    value = pair.tonight["min"]
    at_an_end = (value == pair.last["min"]) | (value == pair.last["max"])
    least = np.where(at_an_end, pair.spread(share, most=1.0), pair.spread(share))
    return pair.last["std"] > least


def _mean_shifts(pair: Pair, allowed: float) -> Scores:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shifts = np.abs(pair.tonight["mean"] - pair.last["mean"]) / pair.last["std"]
        most = np.fmax(allowed, _mean_chance(pair) / pair.last["std"])

    def words(place: int) -> str:
        before, now = (side["mean"][place] for side in (pair.last, pair.tonight))
        return (
            f"{pair.label(place)}: the mean moved from {before:.4g} to {now:.4g}, by "
            f"{shifts[place]:.4g} of last night's standard deviations; at most {most[place]:.4g} "
            "allowed"
        )

    known = (pair.last["std"] > 0) & (min(pair.counts) >= _FEWEST_FOR_MEANS)
    return Scores(np.where(known, shifts, np.nan), most, words)


def _mean_chance(pair: Pair) -> Float64s:
    """The difference of the means of two samples that chance makes once in a million."""
    before, now = (
        side["std"] ** 2 / count
        for side, count in zip((pair.last, pair.tonight), pair.counts, strict=True)
    )
    return CHANCE * np.sqrt(before + now)


def _deviation_ratios(pair: Pair, allowed: float) -> Scores:
    floor = pair.spread(_ROWS_THAT_WEIGH / pair.counts[0])
    before, now = (np.maximum(side["std"], floor) for side in (pair.last, pair.tonight))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratios = np.maximum(now / before, before / now)
    # A component that is constant in a night is judged by `constant_feature`, or was left alone.
    varies = (pair.last["std"] > 0) & (pair.tonight["std"] > 0)
    known = varies & (min(pair.counts) >= _FEWEST_FOR_DEVIATIONS)

    def words(place: int) -> str:
        one, other = (side["std"][place] for side in (pair.last, pair.tonight))
        return (
            f"{pair.label(place)}: the standard deviation went from {one:.4g} to {other:.4g}, a "
            f"factor of {ratios[place]:.4g}; at most {allowed:g} allowed"
        )

    return pair.scores(np.where(known, ratios, np.nan), allowed, words)


MEASURES: dict[str, Callable[[Pair, float], Scores]] = {
    "constant_feature": _constants,
    "mean_shift": _mean_shifts,
    "deviation_ratio": _deviation_ratios,
}
"""Every measure of a component, by the name of its limit."""
