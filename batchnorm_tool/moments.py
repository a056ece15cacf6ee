"""Means and sums of squared deviations, measured of values and merged of two sets."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from batchnorm_tool.norms import Float64s

_Moment = TypeVar("_Moment", float, Float64s)


def moments(
    values: Float64s, low: Float64s | np.float64, high: Float64s | np.float64
) -> tuple[Float64s, Float64s]:
    """Return the mean, and the sum of squared deviations from it, along the first axis.

    The mean is held within ``low`` and ``high``, the extremes, which a rounded sum can leave.
    """
    if not len(values):
        return np.zeros(values.shape[1:]), np.zeros(values.shape[1:])
    with np.errstate(over="ignore", invalid="ignore"):
        mean = np.add.reduce(values, axis=0) / len(values)
        if not np.isfinite(mean).all():  # the sum is beyond float64, the mean is not
            mean = np.add.reduce(values / len(values), axis=0)
        mean = np.clip(mean, low, high)
        deviations = values - mean
        deviations *= deviations
        return mean, np.add.reduce(deviations, axis=0)


def merged_moments(
    one: tuple[int, _Moment, _Moment], other: tuple[int, _Moment, _Moment]
) -> tuple[_Moment, _Moment]:
    """Merge (count, mean, m2) of two sets, neither empty.

    The update of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances" (1979), eq. 2.1, from the larger set's mean: so written, equal means stay
    equal to the last bit, and no difference of means overflows.
    """
    if other[0] > one[0]:
        one, other = other, one
    (n, mean, m2), (other_n, other_mean, other_m2) = one, other
    share = other_n / (n + other_n)
    with np.errstate(over="ignore"):
        difference = other_mean - mean
        between = difference * difference * (n * share)
        return mean + (other_mean * share - mean * share), m2 + other_m2 + between
