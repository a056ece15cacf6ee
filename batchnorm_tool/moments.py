"""Means and sums of squared deviations, measured of values and merged of two sets."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from batchnorm_tool.norms import Float64s

_Moment = TypeVar("_Moment", float, Float64s)

# NumPy reduces along the first axis row by row, and a short row costs more than its arithmetic:
# 1 M vectors of 64 took 0.06 s one by one, and 0.015 s in rows of 1,024 values.
_SIDE_BY_SIDE = 1024


def moments(
    values: Float64s, low: Float64s | np.float64, high: Float64s | np.float64
) -> tuple[Float64s, Float64s]:
    """Return the mean, and the sum of squared deviations from it, along the first axis.

    The mean is held within the extremes, which a rounded sum can leave.

    Args:
        values: float64[n] or float64[n, d], C order.
        low: float64 or float64[d], the smallest values.
        high: float64 or float64[d], the largest values.

    Returns:
        Two of float64 or float64[d]; zeros where there are no values. The sum of squares is inf
        where float64 cannot hold it.
    """
    if not len(values):
        return np.zeros(values.shape[1:]), np.zeros(values.shape[1:])
    with np.errstate(over="ignore", invalid="ignore"):
        mean = reduced(np.add, values) / len(values)
        if not np.isfinite(mean).all():  # the sum is beyond float64, the mean is not
            mean = reduced(np.add, values / len(values))
        mean = np.clip(mean, low, high)
        deviations = values - mean
        deviations *= deviations
        return mean, reduced(np.add, deviations)


def reduced(ufunc: np.ufunc, values: Float64s) -> Float64s:
    """Reduce along the first axis, in an order that depends on the shape alone.

    Args:
        ufunc: Such as `numpy.add`.
        values: float64[n] or float64[n, d], C order, at least one.

    Returns:
        float64 or float64[d].

    Example:
        >>> reduced(np.maximum, np.array([[1.0, 5.0], [3.0, 2.0], [2.0, 2.0]]))
        array([3., 5.])
    """
    rows, width = values.shape[0], values[0].size
    lanes = min(rows, _SIDE_BY_SIDE // width) if values.ndim > 1 and width else 1
    if lanes <= 1:
        return ufunc.reduce(values, axis=0)
    whole = rows // lanes * lanes
    found = ufunc.reduce(values[:whole].reshape(-1, lanes * width), axis=0)
    return ufunc.reduce(np.concatenate((found.reshape(lanes, width), values[whole:])), axis=0)


def merged_moments(
    one: tuple[int, _Moment, _Moment], other: tuple[int, _Moment, _Moment]
) -> tuple[_Moment, _Moment]:
    """Merge (count, mean, m2) of two sets, neither empty.

    The update of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances" (1979), eq. 2.1, from the larger set's mean: so written, equal means stay
    equal to the last bit, and no difference of means overflows.

    Args:
        one: Number of values, their mean and m2: float or float64[d] each.
        other: The same of the other set.

    Returns:
        Mean and m2 of both together.
    """
    if other[0] > one[0]:
        one, other = other, one
    (n, mean, m2), (other_n, other_mean, other_m2) = one, other
    share = other_n / (n + other_n)
    with np.errstate(over="ignore"):
        difference = other_mean - mean
        between = difference * difference * (n * share)
        return mean + (other_mean * share - mean * share), m2 + other_m2 + between
