"""How far one set of vectors moved from another: one number for each limit, and the worst rows.

Every measure is 0 for equal sets and has no unit, so that one limit suits every model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from batchnorm_tool.comparison.drift import (
    Gaussian,
    frechet_distance,
    population_stability_index,
)

if TYPE_CHECKING:
    from batchnorm_tool.gate.vectors import Vectors
    from batchnorm_tool.norms import Float64s

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles of the norms that are compared."""

FRECHET_WIDTH = 256
"""Dimensions that the Fréchet distance takes into account: those with the largest variance in the
live version. A covariance of more costs seconds and needs more rows than a sample has."""

_LEAST_DEVIATION = 0.1
"""A dimension that varies less than this share of a typical one is measured by this share instead,
so that a shift of one that hardly varies, or not at all, counts only where it is large enough to
matter beside the others."""


# Standard deviations of a normal distribution.
_ONCE_IN_A_MILLION = 4.9
# The largest of a million simulated samples of 200 rows was 57, of 1,000 rows 41.
_PSI_CHANCE = 60.0
# Of nine values that chance makes alike, one is hardly ever more than twice the largest of the
# others: never in 200 nights of any kind in tests/gate/test_false_alarms.py.
_DRAWS = 8
_MARGIN = 2.0


def draw_chance(
    shift: Callable[[Vectors, Vectors], float], live: Vectors, tonight: Vectors
) -> float:
    """Return twice the largest shift among eight draws of as many rows from the live version.

    Each draw is held against all other rows of the live version.
    """
    # The same rows give the same draws, and the same decision, every time.
    generator = np.random.default_rng(0)
    rows = min(len(tonight.unit), len(live.unit) // 2)
    norms = min(len(tonight.norms), len(live.norms) // 2)
    draws = (live.split(rows, norms, generator) for _ in range(_DRAWS))
    return _MARGIN * max(shift(rest, drawn) for rest, drawn in draws)


@dataclass(frozen=True)
class Measure:
    """One way to say how far a set moved.

    Attributes:
        limit: Its name among the limits.
        label: What it measures, as the beginning of a sentence.
        shift: The number, of the live set and tonight's; inf where it is beyond any number.
        worst: The rows of tonight's set that contribute most.
        exact_chance: What chance alone makes of as many rows, where that is known without draws.
    """

    limit: str
    label: str
    shift: Callable[[Vectors, Vectors], float]
    worst: Callable[[Vectors, Vectors], tuple[dict[str, Any], ...]]
    exact_chance: Callable[[Vectors, Vectors], float] | None = None

    def chance(self, live: Vectors, tonight: Vectors) -> float:
        """Return the shift that chance alone may make of as many rows as tonight's."""
        if self.exact_chance is not None:
            return self.exact_chance(live, tonight)
        return draw_chance(self.shift, live, tonight)


def norm_psi(live: Vectors, tonight: Vectors) -> float:
    """Return the population stability index of the norms."""
    return population_stability_index(live.norms, tonight.norms)


def psi_chance(live: Vectors, tonight: Vectors) -> float:
    """Return the population stability index that chance makes once in a million.

    Under chance the index times the rows is about chi-square with nine degrees of freedom, whose
    quantile at one in a million is 45; with 200 rows its tail is longer.
    """
    return _PSI_CHANCE * (1 / len(live.norms) + 1 / len(tonight.norms))


def norm_quantiles(live: Vectors, tonight: Vectors) -> float:
    """Return the largest relative shift of a quantile of the norms.

    A quantile below a quarter of the live version's median is measured against that quarter: norms
    near zero are no scale.
    """
    before, after = (np.quantile(vectors.norms, QUANTILES) for vectors in (live, tonight))
    return float(np.max(_ratio(np.abs(after - before), _norm_scale(before))))


def _norm_scale(quantiles: Float64s) -> Float64s:
    return np.maximum(quantiles, quantiles[len(quantiles) // 2] / 4)


def quantile_chance(live: Vectors, tonight: Vectors) -> float:
    """Return the relative shift of a quantile that chance makes once in a million.

    A sample's quantile lies between those quantiles of all values whose shares are the ends of
    Wilson's interval ("Probable inference, the law of succession, and statistical inference",
    1927). Unlike draws, this sees a gap between the norms into which a quantile rarely falls.
    """
    rows = 1 / (1 / len(live.norms) + 1 / len(tonight.norms))
    shares, z2 = np.array(QUANTILES), _ONCE_IN_A_MILLION**2 / rows
    middle = shares + z2 / 2
    half = np.sqrt(z2 * (shares * (1 - shares) + z2 / 4))
    here = np.quantile(live.norms, QUANTILES)
    ends = np.quantile(live.norms, np.stack([middle - half, middle + half]) / (1 + z2))
    return float(np.max(_ratio(np.abs(ends - here), _norm_scale(here))))


def centroid_shift(live: Vectors, tonight: Vectors) -> float:
    """Return how far the mean vector moved, relative to the live version's spread."""
    moved = np.linalg.norm(tonight.mean - live.mean)
    return float(_ratio(moved, np.float64(live.spread)))


def dimension_shift(live: Vectors, tonight: Vectors) -> float:
    """Return the largest shift of a dimension's mean, in its standard deviations."""
    return float(np.max(np.abs(_dimension_shifts(live, tonight)), initial=0.0))


def _dimension_shifts(live: Vectors, tonight: Vectors) -> Float64s:
    typical = live.spread / math.sqrt(max(len(live.mean), 1))
    scale = np.maximum(live.deviations, _LEAST_DEVIATION * typical)
    return _ratio(tonight.mean - live.mean, scale)


def frechet(live: Vectors, tonight: Vectors) -> float:
    """Return the Fréchet distance over the live version's total variance.

    Both are taken over the `FRECHET_WIDTH` dimensions that vary most in the live version.
    """
    widest = np.sort(np.argsort(-live.deviations, kind="stable")[:FRECHET_WIDTH])
    one, other = (
        Gaussian.of(np.ascontiguousarray(vectors.wide[:, widest])) for vectors in (live, tonight)
    )
    distance = np.float64(frechet_distance(one, other))
    return float(_ratio(distance, np.trace(one.covariance)))


def _ratio(part: Any, whole: Any) -> Any:
    """A part of a whole, 0 of nothing if it is 0 itself, else inf."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(part == 0, 0.0, part / whole)


def _extreme_norms(live: Vectors, tonight: Vectors) -> tuple[dict[str, Any], ...]:
    middle = np.median(live.norms)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.abs(np.log(tonight.sample_norms / middle))
    return tonight.worst(np.nan_to_num(factors, nan=math.inf), tonight.sample_norms)


def _farthest_along(live: Vectors, tonight: Vectors) -> tuple[dict[str, Any], ...]:
    direction = tonight.mean - live.mean
    length = np.linalg.norm(direction) * (live.spread or 1.0)
    along = (tonight.wide - live.mean) @ direction / (length or 1.0)
    return tonight.worst(along, along)


def _farthest_in_dimension(live: Vectors, tonight: Vectors) -> tuple[dict[str, Any], ...]:
    shifts = _dimension_shifts(live, tonight)
    dimension = int(np.argmax(np.abs(shifts)))
    values = tonight.wide[:, dimension]
    return tonight.worst(values * np.sign(shifts[dimension]), values)


def _farthest_away(live: Vectors, tonight: Vectors) -> tuple[dict[str, Any], ...]:
    distances = np.linalg.norm(tonight.wide - live.mean, axis=1) / (live.spread or 1.0)
    return tonight.worst(distances, distances)


MEASURES = (
    Measure(
        "norm_psi",
        "Population stability index of the norms",
        norm_psi,
        _extreme_norms,
        psi_chance,
    ),
    Measure(
        "norm_quantiles",
        "Largest relative shift of the norms' quantiles",
        norm_quantiles,
        _extreme_norms,
        quantile_chance,
    ),
    Measure(
        "centroid_shift",
        "Shift of the centroid relative to the spread",
        centroid_shift,
        _farthest_along,
    ),
    Measure(
        "dimension_shift",
        "Largest shift of a dimension in standard deviations",
        dimension_shift,
        _farthest_in_dimension,
    ),
    Measure("frechet", "Fréchet distance relative to the total variance", frechet, _farthest_away),
)
"""Every measure, in the order of the limits."""
